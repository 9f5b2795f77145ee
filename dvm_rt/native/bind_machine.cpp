// Python over the verifier and the machine: a Program that is verified, run and timed on the caller's buffers.
#include "bind.h"
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <algorithm>
#include <memory>
#include "known_passes.h"
#include "machine.h"
#include "together.h"

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
    case VerifyCode::CONSTANT: return "constants of the section, or the number of one";
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
  if (trap.code == TrapCode::HOST_RANGE || trap.code == TrapCode::HOST_FAILED)
    raise_error("DeviceTrap",
                "machine: " + at("section", trap.section) + ": host function " + enum_name("HostFunction", trap.word) +
                    (trap.code == TrapCode::HOST_RANGE ? ": index" + got + ", allowed -" + most + " .. " + most + " - 1"
                                                       : " failed"));
  if (trap.code == TrapCode::STOPPED)
    raise_error("DeviceTimeoutError", "machine: " + at("section", trap.section) + ": a loop that goes on" + got +
                                          " ms, allowed " + most + " ms");
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
  // What a program writes is nobody else's: NumPy views may overlap, and then bits would depend on the order of accesses. But an
  // output may continue an input (machine.h).
  void check_apart(const VerifiedProgram& program) const {
    const size_t count = std::min<size_t>(program.head().arg_count, bindings_.size());
    auto writes = [&](size_t i) { return bool(program.args()[i].mode & WRITE); };
    auto begin = [&](size_t i) { return reinterpret_cast<uintptr_t>(bindings_[i].address); };
    auto end = [&](size_t i) { return begin(i) + std::min(bindings_[i].bytes, program.args()[i].bytes); };
    for (size_t w = 0; w < count; w++)
      for (size_t i = 0; writes(w) && i < count; i++) {
        const uintptr_t from = std::max(begin(i), begin(w)), to = std::min(end(i), end(w));
        const bool continues = begin(i) == begin(w) && end(i) < end(w) && !writes(i);
        if (i != w && from < to && !continues)
          raise_error("DeviceTrap", "machine: " + at("argument", w) + ": written, and its buffer overlaps that of " +
                                        at("argument", i) + ", got " + std::to_string(to - from) +
                                        " bytes of both, allowed 0");
      }
  }

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

struct PyProgram {  // Program in Python: verified, loaded, runnable on buffers of the caller
  std::unique_ptr<VerifiedProgram> program;

  explicit PyProgram(nb::bytes bytes) {
    VerifyError error;
    program = VerifiedProgram::load(static_cast<const uint8_t*>(bytes.data()), bytes.size(), error);
    if (!program) raise_refused(error);
  }
  void run(nb::sequence args, const std::string& target, int threads, int64_t parts, double loop_s, uint64_t lots) const {
    Machine machine(target_named(target), threads_checked(threads));
    machine.limit_loops(uint64_t(loop_s * 1e9));
    machine.cut_always(parts);
    machine.draw_lots(lots);
    const Buffers buffers(args);
    buffers.check_apart(*program);
    const AlignedBytes workspace(program->head().workspace_bytes);
    const Trap trap = machine.run(*program, buffers.bindings(), workspace.data);
    if (trap.code != TrapCode::NONE) raise_trap(trap);
  }
  std::vector<int64_t> cleared() const {
    std::vector<int64_t> numbers;
    for (int i = 0; i < program->head().arg_count; i++)
      if (program->args()[i].mode & ZERO_FILL) numbers.push_back(i);
    if (program->zero_workspace()) numbers.push_back(WORKSPACE);
    return numbers;
  }
  std::vector<std::tuple<int64_t, int64_t, int64_t>> split() const {
    std::vector<std::tuple<int64_t, int64_t, int64_t>> out;
    for (const SectionView& section : program->sections())
      out.emplace_back(section.split.units, section.split.parts, section.split.ns);
    return out;
  }
  double time_run(nb::sequence args, int64_t reps, const std::string& target, int threads) const {
    Machine machine(target_named(target), threads_checked(threads));
    const Buffers buffers(args);
    buffers.check_apart(*program);
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

void bind_machine(nb::module_& m) {
  nb::class_<Tuning>(m, "Tuning", "How the runs of one program are tuned, without program and clock.")
      .def(nb::init<>())
      .def("begins", &Tuning::begins)
      .def("offer", &Tuning::offer, nb::arg("choices"))
      .def("took", &Tuning::took, nb::arg("ns"))
      .def_prop_ro("choice", &Tuning::choice)
      .def_prop_ro("under_way", &Tuning::under_way)
      .def_prop_ro("gained_ns", &Tuning::gained_ns);
  m.def("targets", [] {
    std::vector<std::string> names;
    for (const Target* target : targets()) names.push_back(target->name);
    return names;
  }, "Names of the instruction sets that this CPU can run, best first.");
  m.def("checksum", [](nb::bytes bytes) { return checksum(static_cast<const uint8_t*>(bytes.data()), bytes.size()); },
        "64-bit checksum of some bytes, as dvm_rt.isa.checksum.");
  m.attr("pass_loops") = KnownPasses::COUNT;
  m.def("verify_time", verify_time, nb::arg("program"), nb::arg("reps"), "Nanoseconds to copy, verify and load a program.");
  nb::class_<PyProgram>(m, "Program", "A verified program. Raises InvalidBytecodeError with code, section and word.")
      .def(nb::init<nb::bytes>(), nb::arg("program"))
      .def("run", &PyProgram::run, nb::arg("args"), nb::arg("target") = "", nb::arg("threads") = 1,
           nb::arg("parts") = 0, nb::arg("loop_s") = 1e6, nb::arg("lots") = 0,
           "Runs on C-contiguous buffers, one per argument, of which none that is written overlaps another one; raises "
           "DeviceTrap, or DeviceTimeoutError when loops go on after `loop_s`. Outputs are written in place. `parts`: "
           "every "
           "section is cut into so many, if it can be; 0: only where it pays. `lots`: not 0: which thread runs which "
           "part, and when, is "
           "drawn by lot.")
      .def("time_run", &PyProgram::time_run, nb::arg("args"), nb::arg("reps"), nb::arg("target") = "",
           nb::arg("threads") = 1, "Nanoseconds per run, the mean of `reps`.")
      .def_prop_ro(
          "together",
          [](const PyProgram& p) {
            std::vector<int64_t> out;
            for (size_t i = 0; i < p.program->sections().size(); i++) out.push_back(beside_of(*p.program)[i].count);
            return out;
          },
          "For each section how many may run at the same time from it on.")
      .def("choose", [](const PyProgram& p, uint8_t choice) { p.program->choose(choice); }, nb::arg("choice"),
           "Bits: stores through the caches (1), other prefetch distances (2), other tiles (4) and blocks (8) of products; 0: as it "
           "was encoded.")
      .def_prop_ro("choices", [](const PyProgram& p) { return p.program->choices(); },
                   "Those that would change a word, or the way through a product.")
      .def_prop_ro(
          "loops",
          [](const PyProgram& p) {
            std::vector<int> out;
            for (const SectionView& section : p.program->sections())
              for (int i = 0; SectionKind(section.head->kind) == SectionKind::VECTOR && i < section.head->word_count; i++)
                if (section.words[i].op == OP_pass) out.push_back(section.words[i].a);
            return out;
          },
          "For each pass the number of the loop that the machine has for its words; 0: none, the words are run.")
      .def_prop_ro(
          "in_registers",
          [](const PyProgram& p) {
            std::vector<bool> out;
            for (const SectionView& section : p.program->sections())
              for (int i = 0; SectionKind(section.head->kind) == SectionKind::VECTOR && i < section.head->word_count; i++)
                if (section.words[i].op == OP_pass) out.push_back(section.register_words && section.register_words[i].op);
            return out;
          },
          "For each pass whether its words have register words, which run where the instruction set has registers for them.")
      .def_prop_ro("split", &PyProgram::split,
                   "(units, parts that threads share, modelled ns if they do) of each section.")
      .def_prop_ro("cleared", &PyProgram::cleared,
                   "Arguments that are cleared before each run, because the program may leave "
                   "parts of them out; WORKSPACE stands for the workspace.");
}
