// The Python module: thin wrappers, one section for each part of the core. Nothing else here knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>
#include <chrono>
#include <memory>
#include "layout.h"
#include "machine.h"
#include "plan.h"

namespace nb = nanobind;
using namespace dvm;

// ---- machine ----
// Raises a class of dvm_rt.errors with keyword arguments `fields`.
[[noreturn]] static void raise_error(const char* name, const std::string& message, nb::dict fields = nb::dict()) {
  nb::object type = nb::module_::import_("dvm_rt.errors").attr(name);
  nb::object error = type(message, **fields);
  PyErr_SetObject(type.ptr(), error.ptr());
  throw nb::python_error();
}

static std::string enum_name(const char* enumeration, uint32_t value) {
  return nb::cast<std::string>(nb::module_::import_("dvm_rt.isa.layout").attr("ENUMS")[enumeration][value]);
}

static std::string at(const char* what, uint64_t number) { return std::string(what) + " " + std::to_string(number); }

// What each VerifyCode found wrong; "allowed" is the largest or the only number that passes, where there is one.
static const char* rule(VerifyCode code) {
  switch (code) {
    case VerifyCode::OK: return "nothing";
    case VerifyCode::TRUNCATED: return "length in bytes is not what the records say";
    case VerifyCode::MAGIC: return "not a program";
    case VerifyCode::VERSION: return "another format version";
    case VerifyCode::TABLE_HASH: return "made for another instruction table";
    case VerifyCode::CHECKSUM: return "checksum does not match the bytes";
    case VerifyCode::LIMIT: return "beyond a limit of the format";
    case VerifyCode::RESERVED: return "a field that must be empty is not";
    case VerifyCode::SECTION_KIND: return "no such kind of section";
    case VerifyCode::DTYPE: return "dtype code that cannot stand here";
    case VerifyCode::DIMENSION: return "rank or dimension";
    case VerifyCode::ARGUMENT: return "no such argument, or one that cannot stand here";
    case VerifyCode::OPERAND: return "operand does not have the form that is needed here";
    case VerifyCode::OPCODE: return "no such opcode";
    case VerifyCode::OPERAND_FORM: return "inner stride or dtype does not fit the form of the word";
    case VerifyCode::SLOT: return "slot number";
    case VerifyCode::ROW_SCALAR: return "row scalar number";
    case VerifyCode::REDUCTION: return "reduction";
    case VerifyCode::NESTING: return "word cannot stand here";
    case VerifyCode::JUMP: return "distance to the start of the pass";
    case VerifyCode::UNINITIALISED: return "read before it is written";
    case VerifyCode::OUT_OF_BOUNDS: return "reaches outside of its argument, to byte";
    case VerifyCode::ALIGNMENT: return "not aligned to its elements";
    case VerifyCode::PERMISSION: return "mode does not allow the access";
    case VerifyCode::OVERLAP: return "written bytes move under another access";
    case VerifyCode::FUEL: return "work is more than the head claims";
    case VerifyCode::OVERFLOW: return "sizes overflow";
  }
  return "unknown";
}

[[noreturn]] static void raise_refused(const VerifyError& error) {
  const std::string code = enum_name("VerifyCode", uint32_t(error.code)), section = at("section", error.section);
  std::string where = "head";
  switch (error.place) {
    case Place::HEAD: break;
    case Place::ARGUMENT: where = at("argument", error.word); break;
    case Place::SECTION: where = section; break;
    case Place::OPERAND: where = section + ", " + at("operand", error.word); break;
    case Place::WORD: where = section + ", " + at("word", error.word); break;
  }
  nb::dict fields;
  fields["code"] = code, fields["section"] = error.section, fields["word"] = error.word;
  raise_error("InvalidBytecodeError", "verifier: " + where + ": " + rule(error.code) + " (" + code + "), got " +
              std::to_string(error.got) + ", allowed " + std::to_string(error.allowed), fields);
}

[[noreturn]] static void raise_trap(const Trap& trap) {
  const std::string where = at("section", trap.section) + ", " + at("word", trap.word);
  const std::string got = ", got " + std::to_string(trap.got), most = std::to_string(trap.allowed);
  if (trap.code == TrapCode::GATHER_RANGE)
    raise_error("DeviceTrap", "machine: " + where + ": gathered row" + got + ", allowed -" + most + " .. " + most + " - 1");
  if (trap.code == TrapCode::BINDING)
    raise_error("DeviceTrap", "machine: " + at("argument", trap.word) + ": bound buffer is too small, not aligned or read-only" +
                got + " bytes, allowed " + most);
  raise_error("DeviceTrap", "machine: " + where + ": " + enum_name("TrapCode", uint32_t(trap.code)) + got + ", allowed " + most);
}

namespace {
// The buffers of the Python objects that are a program's arguments, for the time of one run.
class Buffers {
 public:
  explicit Buffers(nb::sequence objects) {
    for (nb::handle object : objects) {
      Py_buffer view;
      bool writable = PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) == 0;
      if (!writable) {
        PyErr_Clear();
        if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_C_CONTIGUOUS)) {
          release();
          throw nb::python_error();
        }
      }
      views_.push_back(view);
      bindings_.push_back({static_cast<uint8_t*>(view.buf), uint64_t(view.len), writable});
    }
  }
  ~Buffers() { release(); }
  Buffers(const Buffers&) = delete;
  std::span<const Binding> bindings() const { return bindings_; }

 private:
  void release() {
    for (Py_buffer& view : views_) PyBuffer_Release(&view);
  }
  std::vector<Py_buffer> views_;
  std::vector<Binding> bindings_;
};

struct AlignedBytes {
  uint8_t* data;
  explicit AlignedBytes(size_t n) : data(static_cast<uint8_t*>(::operator new(n + 1, std::align_val_t(ARENA_ALIGN)))) {}
  ~AlignedBytes() { ::operator delete(data, std::align_val_t(ARENA_ALIGN)); }
  AlignedBytes(const AlignedBytes&) = delete;
};

const Target& target_named(const std::string& name) {
  if (name.empty()) return best_target();
  const Target* target = find_target(name.c_str());
  if (!target) throw nb::value_error(("machine: target: not on this CPU, got " + name + ", allowed those of targets()").c_str());
  return *target;
}

template <class F> double nanoseconds_each(int64_t reps, F run) {
  const auto begin = std::chrono::steady_clock::now();
  for (int64_t i = 0; i < reps; i++) run();
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count() / double(reps);
}

struct PyProgram {  // Program in Python: verified, loaded, runnable on buffers of the caller
  std::unique_ptr<VerifiedProgram> program;

  explicit PyProgram(nb::bytes bytes) {
    VerifyError error;
    program = VerifiedProgram::load(static_cast<const uint8_t*>(bytes.data()), bytes.size(), error);
    if (!program) raise_refused(error);
  }
  void run(nb::sequence args, const std::string& target) const {
    Machine machine(target_named(target));
    const Buffers buffers(args);
    const AlignedBytes workspace(program->head().workspace_bytes);
    const Trap trap = machine.run(*program, buffers.bindings(), workspace.data);
    if (trap.code != TrapCode::NONE) raise_trap(trap);
  }
  double time_run(nb::sequence args, int64_t reps, const std::string& target) const {
    Machine machine(target_named(target));
    const Buffers buffers(args);
    const AlignedBytes workspace(program->head().workspace_bytes);
    Trap trap = machine.run(*program, buffers.bindings(), workspace.data);
    const double ns = nanoseconds_each(reps, [&] { trap = machine.run(*program, buffers.bindings(), workspace.data); });
    if (trap.code != TrapCode::NONE) raise_trap(trap);
    return ns;
  }
};
}  // namespace

static double verify_time(nb::bytes bytes, int64_t reps) {
  VerifyError error;
  const double ns = nanoseconds_each(
      reps, [&] { VerifiedProgram::load(static_cast<const uint8_t*>(bytes.data()), bytes.size(), error); });
  if (error.code != VerifyCode::OK) raise_refused(error);
  return ns;
}

static void bind_machine(nb::module_& m) {
  m.def("targets", [] {
    std::vector<std::string> names;
    for (const Target* target : targets()) names.push_back(target->name);
    return names;
  }, "Names of the instruction sets that this CPU can run, best first.");
  m.def("checksum", [](nb::bytes bytes) { return checksum(static_cast<const uint8_t*>(bytes.data()), bytes.size()); },
        "64-bit checksum of some bytes, as dvm_rt.isa.checksum.");
  m.def("verify_time", verify_time, nb::arg("program"), nb::arg("reps"), "Nanoseconds to copy, verify and load a program.");
  nb::class_<PyProgram>(m, "Program", "A verified program. Raises InvalidBytecodeError with code, section and word.")
      .def(nb::init<nb::bytes>(), nb::arg("program"))
      .def("run", &PyProgram::run, nb::arg("args"), nb::arg("target") = "",
           "Runs on C-contiguous buffers, one per argument; raises DeviceTrap. Outputs are written in place.")
      .def("time_run", &PyProgram::time_run, nb::arg("args"), nb::arg("reps"), nb::arg("target") = "",
           "Nanoseconds per run, the mean of `reps`.");
}

// ---- encode ----
namespace {
// The symbol values of a call, from any sequence of Python ints.
struct Symbols {
  int64_t value[MAX_SYMBOLS];
  Symbols(const Plan& plan, nb::handle sequence) {
    PyObject* fast = PySequence_Fast(sequence.ptr(), "encode: symbols: not a sequence");
    if (!fast) throw nb::python_error();
    const nb::object owner = nb::steal(fast);
    const size_t n = size_t(PySequence_Fast_GET_SIZE(fast));
    if (n != plan.symbols().size()) {
      raise_error("EncodeError", "encode: symbols: number of them, got " + std::to_string(n) + ", allowed " +
            std::to_string(plan.symbols().size()));
    }
    for (size_t i = 0; i < n; i++) {
      value[i] = PyLong_AsLongLong(PySequence_Fast_GET_ITEM(fast, i));
      if (value[i] == -1 && PyErr_Occurred()) throw nb::python_error();
    }
  }
};

class PyPlan {  // Plan in Python: loaded, with room to encode into
 public:
  explicit PyPlan(nb::bytes bytes) {
    std::string error;
    plan_ = Plan::load(static_cast<const uint8_t*>(bytes.data()), bytes.size(), error);
    if (!plan_) raise_error("GraphError", error);
    values_.resize(plan_->exprs().size() + 1);
    program_.resize(plan_->program_bytes_max() / sizeof(uint64_t) + 1);
  }
  nb::bytes encode(nb::handle symbols) {
    const Symbols given(*plan_, symbols);
    const EncodeResult result = encode_once(given.value);
    if (result.error) {
      raise_error("EncodeError", "encode: kernel " + std::to_string(result.kernel) + ": " + result.error);
    }
    return nb::bytes(program_.data(), size_t(result.bytes));
  }
  nb::list evaluate(nb::handle symbols) {
    const Symbols given(*plan_, symbols);
    if (!plan_->evaluate(given.value, values_.data())) raise_error("EncodeError", std::string("encode: ") + EVALUATION);
    nb::list list;
    for (size_t i = 0; i < plan_->exprs().size(); i++) list.append(values_[i]);
    return list;
  }
  // Nanoseconds per encode; symbol `vary` grows by 0 to 63 from one encode to the next, if it is not negative.
  double time_encode(nb::handle symbols, int64_t reps, int vary) {
    Symbols given(*plan_, symbols);
    if (vary >= int(plan_->symbols().size())) raise_error("EncodeError", "encode: vary: no such symbol, got " + std::to_string(vary) +
                                                    ", allowed below " + std::to_string(plan_->symbols().size()));
    const int64_t base = vary < 0 ? 0 : given.value[vary];
    const char* error = nullptr;
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < reps; i++) {
      if (vary >= 0) given.value[vary] = base + (i & 63);
      const EncodeResult result = encode_once(given.value);
      if (result.error) error = result.error;
    }
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - begin;
    if (error) raise_error("EncodeError", std::string("encode: ") + error);
    return spent.count() / double(reps);
  }
  nb::dict info() const {
    nb::dict info;
    info["symbols"] = plan_->symbols().size(), info["expressions"] = plan_->exprs().size();
    info["parameters"] = plan_->parameters().size(), info["outputs"] = plan_->outputs().size();
    info["buffers"] = plan_->buffers().size(), info["packs"] = plan_->packs().size(), info["slots"] = plan_->slots();
    info["kernels"] = plan_->kernels().size(), info["program_bytes_max"] = plan_->program_bytes_max();
    return info;
  }

 private:
  static constexpr const char* EVALUATION = "symbols: a negative dimension, a division by zero or a size beyond 64 bits";

  EncodeResult encode_once(const int64_t* symbols) {
    if (!plan_->evaluate(symbols, values_.data())) return {0, EVALUATION, 0};
    return dvm::encode(*plan_, values_.data(), reinterpret_cast<uint8_t*>(program_.data()), program_.size() * sizeof(uint64_t));
  }
  std::unique_ptr<Plan> plan_;
  std::vector<int64_t> values_;
  std::vector<uint64_t> program_;
};
}  // namespace

static void bind_encode(nb::module_& m) {
  nb::class_<PyPlan>(m, "Plan", "A loaded plan. Raises GraphError if the bytes are damaged or name what does not exist.")
      .def(nb::init<nb::bytes>(), nb::arg("plan"))
      .def("encode", &PyPlan::encode, nb::arg("symbols"),
           "Program bytes for these symbol values; empty if there is nothing to run. Raises EncodeError.")
      .def("evaluate", &PyPlan::evaluate, nb::arg("symbols"), "The value of every expression. Raises EncodeError.")
      .def("time_encode", &PyPlan::time_encode, nb::arg("symbols"), nb::arg("reps"), nb::arg("vary") = -1,
           "Nanoseconds per encode (evaluation included), the mean of `reps`; symbol `vary` changes each time.")
      .def_prop_ro("info", &PyPlan::info, "Number of records of each kind.");
}

NB_MODULE(_native, m) {
  m.attr("TABLE_HASH") = TABLE_HASH;
  bind_machine(m);
  bind_encode(m);
}
