// What the binding files share: errors on their way to Python, bytes, time. Nothing outside of bind*.cpp knows Python.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <chrono>
#include <span>
#include "errors.h"
#include "layout.h"
#include "shared.h"
#include "control.h"
#include "threads.h"

namespace nb = nanobind;
using namespace dvm;

// One function for each part of the core, each in a file of its own.
void bind_machine(nb::module_& m);
void bind_encode(nb::module_& m);
void bind_tensor(nb::module_& m);
void bind_stream(nb::module_& m);
void bind_arena(nb::module_& m);
void bind_processes(nb::module_& m);
void bind_host();
void bind_lazy(nb::module_& m);
void bind_calls(nb::module_& m);
void bind_dlpack(nb::module_& m);

void set_python_error(const Error& error);  // as the class of dvm_rt.errors that it names, its numbers attributes

// Raises a class of dvm_rt.errors with keyword arguments `fields`.
[[noreturn]] inline void raise_error(const char* name, const std::string& message, nb::dict fields = nb::dict()) {
  nb::object type = nb::module_::import_("dvm_rt.errors").attr(name);
  nb::object error = type(message, **fields);
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

inline std::string enum_name(const char* enumeration, uint32_t value) {
  return nb::cast<std::string>(nb::module_::import_("dvm_rt.isa.layout").attr("ENUMS")[enumeration][value]);
}


template <class F> double nanoseconds_each(int64_t reps, F run) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < reps; i++) run();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / double(reps);
}
inline int threads_checked(int threads) {
  if (threads >= 1 && threads <= ThreadPool::THREADS_MAX) return threads;
  throw nb::value_error(("machine: threads: out of range, got " + std::to_string(threads) + ", allowed 1 to " +
                         std::to_string(ThreadPool::THREADS_MAX)).c_str());
}
inline std::span<const uint8_t> span_of(nb::bytes bytes) { return {static_cast<const uint8_t*>(bytes.data()), bytes.size()}; }
inline nb::bytes bytes_of(std::span<const uint8_t> bytes) { return nb::bytes(bytes.data(), bytes.size()); }
inline nb::object adopt(PyObject* made) {
  if (!made) throw nb::python_error();
  return nb::steal(made);
}
inline uint64_t nanoseconds(double seconds) { return seconds >= 9e9 ? NEVER : uint64_t(std::max(seconds, 0.0) * 1e9); }
