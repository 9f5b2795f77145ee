// Python over what device and encoder processes run, and over the arena's allocator alone.
#include "bind.h"
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include "arena.h"
#include "device.h"
#include "worker.h"

namespace {
struct PyArena {
  Arena* arena;
  explicit PyArena(uint64_t bytes_max) : arena(new Arena(bytes_max)) {}
  ~PyArena() { arena->close(); }
  PyArena(const PyArena&) = delete;
};
struct PyBlock {
  BufferRef buffer;
};
}  // namespace

void bind_arena(nb::module_& m) {
  nb::class_<PyBlock>(m, "ArenaBlock")
      .def_prop_ro("offset", [](PyBlock& b) { return b.buffer->offset; })
      .def_prop_ro("bytes", [](PyBlock& b) { return b.buffer->bytes; });
  nb::class_<PyArena>(m, "Arena", "The allocator alone, for its tests.")
      .def(nb::init<uint64_t>(), nb::arg("bytes_max"))
      .def(
          "allocate",
          [](PyArena& a, uint64_t bytes, uint64_t committed, bool host) -> std::optional<PyBlock> {
            Buffer* buffer = a.arena->allocate(bytes, committed, host ? Writer::HOST : Writer::LAUNCH);
            return buffer ? std::optional(PyBlock{BufferRef(buffer)}) : std::nullopt;
          },
          nb::arg("bytes"), nb::arg("committed") = 0, nb::arg("host") = false)
      .def_prop_rw(
          "launched", [](PyArena& a) { return a.arena->launched.load(); },
          [](PyArena& a, uint64_t seq) { a.arena->launched = seq; })
      .def("check", [](PyArena& a) { return a.arena->report(), a.arena->check(); })
      .def("report",
           [](PyArena& a) {
             auto r = a.arena->report();
             return nb::make_tuple(r.tensors, r.free, r.arena);
           });
}

void bind_processes(nb::module_& m) {
  nb::class_<Device>(m, "Device", "What a device process runs: serve() over the client's and the workers' rings.")
      .def(
          "__init__",
          [](Device* d, int control, int arena, std::vector<int> rings, int eventfd, double spin_us, int trace,
             const std::string& target, int threads, double loop_s, std::vector<int> beside_cpus, int64_t beside_ns,
             int beside_gate, bool tune) {
            new (d) Device({control, arena, eventfd, trace, std::move(rings), spin_us, 1ull << 30, target,
                            threads_checked(threads), loop_s, std::move(beside_cpus), beside_ns, beside_gate, tune});
          },
          nb::arg("control_fd"), nb::arg("arena_fd"), nb::arg("ring_fds"), nb::arg("eventfd") = -1,
          nb::arg("spin_us") = 50.0, nb::arg("trace_fd") = -1, nb::arg("target") = "", nb::arg("threads") = 1,
          nb::arg("loop_s") = 1e6, nb::arg("beside_cpus") = std::vector<int>(), nb::arg("beside_ns") = 50'000,
          nb::arg("beside_gate") = -1, nb::arg("tune") = false)
      .def(
          "serve", [](Device& d, double timeout_us) { d.serve(nanoseconds(timeout_us * 1e-6)); }, nb::arg("timeout_us"),
          nb::call_guard<nb::gil_scoped_release>())
      .def(
          "step",
          [](Device& d) -> const char* {
            static const char* const names[] = {"idle", "took", "ran", "committed"};
            return names[int(d.step())];
          },
          "One step, never waiting: 'took' a message, 'ran' a launch, 'committed' it, or 'idle'.")
      .def_prop_ro("programs", &Device::program_count)
      .def_prop_ro("refused", &Device::refused);
  nb::class_<Encoder>(m, "Encoder",
                      "What an encoder worker runs; without control page and ring, what a pool's worker runs.")
      .def(
          "__init__",
          [](Encoder* e, int control, int ring, int worker, int trace, uint64_t work_ns) {
            new (e) Encoder({control, ring, worker, trace, work_ns});
          },
          nb::arg("control_fd") = -1, nb::arg("ring_fd") = -1, nb::arg("worker_index") = 0, nb::arg("trace_fd") = -1,
          nb::arg("encode_work_ns") = 0)
      .def(
          "add_plan", [](Encoder& e, uint32_t plan, nb::bytes bytes) { e.add_plan(plan, span_of(bytes)); },
          nb::arg("plan"), nb::arg("bytes"))
      .def("forget_plan", &Encoder::forget_plan, nb::arg("plan"))
      .def(
          "encode",
          [](Encoder& e, nb::bytes instances, size_t start, double budget_us) {
            auto span = span_of(instances);
            nb::gil_scoped_release released;
            return e.encode(span, start, budget_us);
          },
          nb::arg("instances"), nb::arg("start") = 0, nb::arg("budget_us") = 50.0,
          "Encodes instances into the ring from byte `start`, for about budget_us; returns the byte to go on from.")
      .def(
          "encode_programs",
          [](Encoder& e, nb::bytes instances, size_t start, double budget_us) {
            Encoder::Programs programs;
            size_t next;
            {
              auto span = span_of(instances);
              nb::gil_scoped_release released;
              next = e.encode(span, start, budget_us, programs);
            }
            nb::list out;
            for (auto& [id, bytes] : programs) out.append(nb::make_tuple(id, bytes_of(bytes)));
            return nb::make_tuple(next, out);
          },
          nb::arg("instances"), nb::arg("start") = 0, nb::arg("budget_us") = 50.0,
          "The same, handing the programs back: (next byte, [(id, bytes)]).")
      .def_prop_ro("encoded", &Encoder::encoded);
}
