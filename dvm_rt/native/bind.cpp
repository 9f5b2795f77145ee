// The Python module: thin wrappers, one section for each part of the core. Nothing else here knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <chrono>
#include <memory>
#include "device.h"
#include "layout.h"
#include "machine.h"
#include "plan.h"
#include "stream.h"
#include "worker.h"

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
  std::vector<int64_t> cleared() const {
    std::vector<int64_t> numbers;
    for (int i = 0; i < program->head().arg_count; i++)
      if (program->args()[i].mode & ZERO_FILL) numbers.push_back(i);
    if (program->zero_workspace()) numbers.push_back(WORKSPACE);
    return numbers;
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
           "Nanoseconds per run, the mean of `reps`.")
      .def_prop_ro("cleared", &PyProgram::cleared, "Arguments that are cleared before each run, because the program may leave "
                   "parts of them out; WORKSPACE stands for the workspace.");
}

// ---- encode ----
namespace {
// The symbol values of a call, from any sequence of Python ints.
struct Symbols {
  int64_t value[MAX_SYMBOLS];
  size_t count = 0;
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
    count = n;
  }
  std::string text() const {
    std::string all;
    for (size_t i = 0; i < count; i++) all += (i ? ", " : "") + std::to_string(value[i]);
    return "(" + all + ")";
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
      const std::string where = result.error == EVALUATION ? "" : "kernel " + std::to_string(result.kernel) + ": ";
      raise_error("EncodeError", "encode: " + where + result.error + ", got symbols " + given.text());
    }
    return nb::bytes(program_.data(), size_t(result.bytes));
  }
  nb::list evaluate(nb::handle symbols) {
    const Symbols given(*plan_, symbols);
    if (!plan_->evaluate(given.value, values_.data())) raise_error("EncodeError", std::string("encode: ") + EVALUATION + ", got symbols " + given.text());
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

// ---- stream ----
// An Error of the core becomes the class of dvm_rt.errors that it names, its numbers attributes.
static void translate_error(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    nb::object made = nb::module_::import_("dvm_rt.errors").attr(error.type)(error.message);
    for (auto& [name, value] : error.numbers) made.attr(name) = value;
    if (std::string_view(error.type) == "InvalidBytecodeError") made.attr("code") = VerifyCode_NAMES[nb::cast<size_t>(made.attr("code"))];
    PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
  }
}

namespace {
std::span<const uint8_t> span_of(nb::bytes bytes) { return {static_cast<const uint8_t*>(bytes.data()), bytes.size()}; }
nb::bytes bytes_of(std::span<const uint8_t> bytes) { return nb::bytes(bytes.data(), bytes.size()); }
nb::object adopt(PyObject* made) {
  if (!made) throw nb::python_error();
  return nb::steal(made);
}
uint64_t nanoseconds(double seconds) { return seconds >= 9e9 ? NEVER : uint64_t(std::max(seconds, 0.0) * 1e9); }

// The stream's lock, without ever waiting for it with the GIL: who holds it may be inside a long kernel. Nothing that can
// run Python code (collections included) may happen while it is held.
class StreamLock {
 public:
  explicit StreamLock(Stream& stream) : held_(stream.lock(), std::try_to_lock) {
    while (!held_) {
      {
        nb::gil_scoped_release released;
        std::lock_guard wait(stream.lock());
      }
      held_.try_lock();
    }
    stream.enter();
  }
  void unlock() { held_.unlock(); }

 private:
  std::unique_lock<std::mutex> held_;
};

// For the trace, and for the device's account of its idle time: the client is in our code.
struct InsideClient {
  Stream& stream;
  const uint64_t begin_ns = now_ns();
  const bool outermost;
  TraceKind kind = TraceKind::NONE;
  uint64_t id = 0, extra = 0;
  explicit InsideClient(Stream& stream) : stream(stream), outermost(stream.began(begin_ns)) {}
  void is(TraceKind what, uint64_t of, uint64_t more) { kind = what, id = of, extra = more; }
  ~InsideClient() {
    const uint64_t end_ns = now_ns();
    if (outermost) stream.ended(end_ns);
    if (kind != TraceKind::NONE) stream.add_trace(kind, begin_ns, end_ns, id, extra);
  }
};

// Waits without the GIL, in slices short enough for Ctrl-C. False: the time is over.
template <class Wait> bool wait_in_slices(double timeout_s, Wait wait) {
  const uint64_t begin = now_ns(), left = nanoseconds(timeout_s), end = left > NEVER - begin ? NEVER : begin + left;
  for (uint64_t now = begin;; now = now_ns()) {
    bool there;
    {
      nb::gil_scoped_release released;
      there = wait(std::min<uint64_t>(end - now, 50'000'000));
    }
    if (there) return true;
    if (PyErr_CheckSignals()) throw nb::python_error();
    if (now_ns() >= end) return false;
  }
}

// Instances that wait for company leave when there are enough, or when somebody is about to wait for what they make.
void pump(Stream& stream, bool waits) {
  const size_t count = stream.outbox_count();
  if (count && stream.on_outbox && (waits || count >= stream.outbox_limit)) stream.on_outbox(waits);
}

bool wait_for(Stream& stream, uint64_t seq, double timeout_s) {
  stream.enter();
  if (stream.done() >= seq) return true;
  pump(stream, true);
  InsideClient inside(stream);
  const bool there = wait_in_slices(timeout_s, [&](uint64_t ns) { return stream.wait(seq, ns); });
  inside.is(TraceKind::WAIT, seq, there);
  return there;
}

void take_credit(Stream& stream) {
  if (stream.has_credit()) return;
  pump(stream, true);
  const double timeout_s = stream.options().credit_timeout_s;
  if (!wait_in_slices(timeout_s, [&](uint64_t ns) { return stream.wait_credit(ns); }))
    throw Error("BackpressureTimeout", "stream: launch: seconds without a commit, got " + std::to_string(timeout_s) + " with " +
                                           std::to_string(stream.launched() - stream.done()) + " launches out, allowed " +
                                           std::to_string(stream.options().launches_max));
}

PyTypeObject* tensor_type() {
  static PyTypeObject* type = reinterpret_cast<PyTypeObject*>(nb::type<Tensor>().ptr());
  return type;
}
const Tensor& tensor_of(PyObject* object) {
  if (Py_TYPE(object) != tensor_type()) throw nb::type_error("stream: argument: not a tensor, got another type, allowed dvm_rt._native.Tensor");
  return *nb::inst_ptr<Tensor>(object);
}
nb::object wrap(Tensor&& tensor) {
  nb::object made = nb::inst_alloc(nb::type<Tensor>());
  new (nb::inst_ptr<Tensor>(made)) Tensor(std::move(tensor));
  nb::inst_mark_ready(made);
  return made;
}

constexpr size_t ARGUMENTS_MAX = 256;
struct Arguments {  // of a call
  const Tensor* tensors[ARGUMENTS_MAX];
  nb::object owner;  // keeps them, where the caller's own sequence may not
  size_t count = 0;
  void add(const Tensor& tensor) {
    if (count == ARGUMENTS_MAX)
      throw Error("ShapeError", "stream: call: arguments, got more, allowed " + std::to_string(ARGUMENTS_MAX));
    tensors[count++] = &tensor;
  }
  std::span<const Tensor* const> span() const { return {tensors, count}; }
};
void collect(nb::handle sequence, Arguments& out) {
  out.owner = adopt(PySequence_Fast(sequence.ptr(), "stream: call: arguments: not a sequence of tensors"));
  PyObject* fast = out.owner.ptr();
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); ++i) out.add(tensor_of(PySequence_Fast_GET_ITEM(fast, i)));
}

nb::object call(Stream& stream, uint32_t plan, const Arguments& args) {
  stream.enter();
  InsideClient inside(stream);
  take_credit(stream);
  const size_t count = stream.output_count(plan);
  nb::object out = adopt(PyTuple_New(Py_ssize_t(count)));  // before the lock: it may start a collection
  {
    StreamLock lock(stream);
    stream.prepare(plan, args.span());
    for (size_t i = 0; i < count; ++i) PyTuple_SET_ITEM(out.ptr(), i, wrap(std::move(stream.outputs()[i])).release().ptr());
    if (stream.long_running()) {
      nb::gil_scoped_release released;
      stream.execute();
      inside.is(TraceKind::CALL, stream.launched(), plan);
      lock.unlock();
    } else {
      stream.execute();
      inside.is(TraceKind::CALL, stream.launched(), plan);
    }
  }
  pump(stream, false);
  return out;
}

// ---- arrays in and out ----
int dtype_code(const char* format, Py_ssize_t bytes) {
  if (*format == '@' || *format == '=' || (*format == '<' && format[1])) ++format;
  if (!*format || format[1]) return -1;
  const char* found = strchr("?bhilqBHILQefd", *format);
  if (!found) return -1;
  const char kind = *format == '?' ? 'b' : strchr("bhilq", *format) ? 'i' : strchr("BHILQ", *format) ? 'u' : 'f';
  for (DType code : {DType::BOOL, DType::INT8, DType::INT16, DType::INT32, DType::INT64, DType::UINT8, DType::UINT16, DType::UINT32,
                     DType::UINT64, DType::FLOAT16, DType::FLOAT32, DType::FLOAT64}) {
    const char of = code == DType::BOOL ? 'b' : code <= DType::INT64 ? 'i' : code <= DType::UINT64 ? 'u' : 'f';
    if (of == kind && DTYPE_BYTES[int(code)] == bytes) return int(code);
  }
  return -1;
}

struct ArrayView {  // a Python object's C-contiguous memory
  Py_buffer view{};
  explicit ArrayView(nb::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) == 0) return;
    PyErr_Clear();
    nb::object copy = nb::module_::import_("numpy").attr("array")(object, nb::arg("order") = "C", nb::arg("copy") = true);
    if (PyObject_GetBuffer(copy.ptr(), &view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS) == 0) return;
    PyErr_Clear();
    throw Error("DTypeError", "stream: asarray: dtype, got " + nb::cast<std::string>(copy.attr("dtype").attr("__str__")()) + ", allowed those of dvm_rt.dtypes");
  }
  ~ArrayView() { PyBuffer_Release(&view); }
  ArrayView(const ArrayView&) = delete;
};

nb::object as_tensor(Stream& stream, nb::handle array, std::optional<int> dtype) {
  stream.enter();
  InsideClient inside(stream);
  ArrayView array_view(array);
  const Py_buffer& view = array_view.view;
  int code = dtype_code(view.format ? view.format : "B", view.itemsize);
  if (dtype && code >= 0 && *dtype >= 0 && size_t(*dtype) < std::size(DTYPE_BYTES) && DTYPE_BYTES[*dtype] == view.itemsize) code = *dtype;
  else if (dtype && *dtype != code) code = -1;
  if (code < 0)
    throw Error("DTypeError", std::string("stream: asarray: dtype, got buffer format ") + (view.format ? view.format : "B") + ", allowed those of dvm_rt.dtypes");
  int64_t shape[64];
  std::copy_n(view.shape, view.ndim, shape);
  std::optional<Tensor> tensor;
  while (!tensor) {
    uint64_t launched;
    {
      StreamLock lock(stream);
      tensor = stream.host_tensor(uint8_t(code), {shape, size_t(view.ndim)});
      launched = stream.launched();
    }
    if (!tensor && !wait_for(stream, launched, stream.options().credit_timeout_s))
      throw Error("BackpressureTimeout", "stream: asarray: launches that hold the arena, got no commit, allowed " +
                                             std::to_string(stream.options().credit_timeout_s) + " s");
  }
  if (tensor->bytes > 1 << 20) {
    nb::gil_scoped_release released;
    memcpy(tensor->data(), view.buf, tensor->bytes);
  } else if (tensor->bytes) {
    memcpy(tensor->data(), view.buf, tensor->bytes);
  }
  return wrap(std::move(*tensor));
}

int tensor_buffer(PyObject* self, Py_buffer* view, int flags) {
  const Tensor& tensor = *nb::inst_ptr<Tensor>(self);
  return PyBuffer_FillInfo(view, self, tensor.data(), Py_ssize_t(tensor.bytes), 1, flags);
}

nb::object shape_tuple(const Tensor& tensor) {
  nb::object out = adopt(PyTuple_New(tensor.rank));
  for (int d = 0; d < tensor.rank; ++d) PyTuple_SET_ITEM(out.ptr(), d, PyLong_FromLongLong(tensor.dims[d]));
  return out;
}

// The value is there and good, or this throws.
const Tensor& await_value(Stream& stream, nb::handle object, double timeout_s) {
  const Tensor& tensor = tensor_of(object.ptr());
  stream.enter();
  if (tensor.buffer->arena != &stream.arena())
    throw Error("ClosedError", "stream: read: a tensor of another runtime, got one, allowed those of this runtime");
  if (!stream.settled(tensor)) {
    if (!wait_for(stream, tensor.seq(), timeout_s))
      throw Error("DeviceTimeoutError", "stream: read: seconds for launch " + std::to_string(tensor.seq()) + ", got " + std::to_string(timeout_s) +
                                            " (" + std::to_string(stream.done()) + " are done), allowed more or a faster device");
    StreamLock lock(stream);
    stream.retire();
  }
  stream.check_value(tensor);
  return tensor;
}

nb::object numpy_dtype(uint8_t code) {  // never given back: they live as long as the interpreter
  static const std::vector<PyObject*> dtypes = [] {
    std::vector<PyObject*> out;
    for (nb::handle row : nb::module_::import_("dvm_rt.dtypes").attr("DTYPES")) out.push_back(nb::object(row.attr("numpy")).release().ptr());
    return out;
  }();
  return nb::borrow(dtypes[code]);
}

nb::object read_array(Stream& stream, nb::handle object, double timeout_s) {
  const Tensor& tensor = await_value(stream, object, timeout_s);
  static PyObject* const ndarray = nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr();
  nb::object shape = shape_tuple(tensor), dtype = numpy_dtype(tensor.dtype);
  PyObject* args[] = {nullptr, shape.ptr(), dtype.ptr(), object.ptr()};
  return adopt(PyObject_Vectorcall(ndarray, args + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

nb::object item(Stream& stream, nb::handle object, double timeout_s) {
  const Tensor& tensor = await_value(stream, object, timeout_s);
  if (tensor.bytes != DTYPE_BYTES[tensor.dtype])
    throw Error("ShapeError", "stream: item: bytes of the tensor, got " + std::to_string(tensor.bytes) + ", allowed one element");
  const void* at = tensor.data();
  auto load = [&](auto value) {
    memcpy(&value, at, sizeof value);
    return value;
  };
  switch (DType(tensor.dtype)) {
    case DType::BOOL: return nb::bool_(load(uint8_t()) != 0);
    case DType::INT8: return nb::int_(load(int8_t()));
    case DType::INT16: return nb::int_(load(int16_t()));
    case DType::INT32: return nb::int_(load(int32_t()));
    case DType::INT64: return nb::int_(load(int64_t()));
    case DType::UINT8: return nb::int_(load(uint8_t()));
    case DType::UINT16: return nb::int_(load(uint16_t()));
    case DType::UINT32: return nb::int_(load(uint32_t()));
    case DType::UINT64: return nb::int_(load(uint64_t()));
    case DType::FLOAT32: return nb::float_(double(load(float())));
    case DType::FLOAT64: return nb::float_(load(double()));
    default: return read_array(stream, object, timeout_s).attr("item")();
  }
}

Tensor reshaped(const Tensor& tensor, nb::sequence shape) {
  Tensor out = tensor;
  std::vector<int64_t> dims;
  for (nb::handle dim : shape) dims.push_back(nb::cast<int64_t>(dim));
  if (shape_bytes(tensor.dtype, dims) != tensor.bytes)
    throw Error("ShapeError", "stream: reshape: bytes, got " + std::to_string(shape_bytes(tensor.dtype, dims)) + ", allowed " + std::to_string(tensor.bytes));
  out.rank = uint8_t(dims.size());
  std::copy(dims.begin(), dims.end(), out.dims.begin());
  return out;
}

// ---- reports ----
nb::dict stats(Stream& stream) {
  nb::dict out;
  StreamCounters c;
  MemoryReport memory;
  size_t outbox, plans;
  {
    StreamLock lock(stream);
    stream.retire();
    c = stream.counters();
    memory = stream.memory();
    outbox = stream.outbox_count();
    plans = stream.plan_count();
  }
  out["launched"] = stream.launched(), out["done"] = stream.done();
  out["calls"] = c.calls, out["cached_calls"] = c.cached_calls, out["plans"] = plans, out["programs"] = c.instances;
  out["encoded"] = c.encoded, out["encode_ns"] = c.encode_ns, out["packs"] = c.packs, out["evicted"] = c.evicted;
  out["refused"] = c.refused, out["traps"] = c.traps, out["devices_lost"] = c.devices_lost, out["outbox"] = outbox;
  out["program_cache_bytes"] = c.program_cache_bytes;
  nb::dict bytes;
  bytes["tensors"] = memory.tensors, bytes["workspace"] = memory.workspace, bytes["packed"] = memory.packed;
  bytes["free"] = memory.free, bytes["arena"] = memory.arena;
  out["memory"] = bytes;
  const Control& control = stream.control();
  const bool here = stream.options().inline_mode;
  out["busy_ns"] = here ? c.busy_ns : control.get(CONTROL_BUSY_NS);
  for (auto [name, word] : {std::pair{"exposed_ns", CONTROL_EXPOSED_NS}, {"exposed_count", CONTROL_EXPOSED_COUNT},
                            {"starved_client_ns", CONTROL_STARVED_CLIENT_NS}, {"starved_user_ns", CONTROL_STARVED_USER_NS},
                            {"waiting_program", CONTROL_WAITING_PROGRAM}, {"device_wakes", CONTROL_DEVICE_WAKES},
                            {"client_ns", CONTROL_CLIENT_NS}})
    out[name] = here ? 0 : control.get(word);
  nb::list workers;
  for (int i = 0; i < stream.options().workers; ++i) {
    nb::dict worker;
    worker["encoded"] = control.worker(i, WORKER_ENCODED).load(), worker["encode_ns"] = control.worker(i, WORKER_ENCODE_NS).load();
    worker["received"] = control.worker(i, WORKER_RECEIVED).load();
    workers.append(worker);
  }
  out["workers"] = workers;
  return out;
}

nb::bytes trace_bytes(const std::vector<TraceRecord>& records) {
  return nb::bytes(reinterpret_cast<const char*>(records.data()), records.size() * sizeof(TraceRecord));
}

nb::list events_of(Stream& stream) {
  std::vector<Event> events;
  {
    StreamLock lock(stream);
    stream.retire();
    stream.flush();
    events = stream.take_events();
  }
  nb::list out;
  for (const Event& e : events) {
    nb::dict row;
    const bool refused = EventKind(e.kind) == EventKind::PROGRAM_REFUSED;
    row["kind"] = EventKind_NAMES[e.kind], row["code"] = refused ? VerifyCode_NAMES[e.code] : TrapCode_NAMES[e.code];
    row["program"] = e.program, row["seq"] = e.seq, row["section"] = e.section, row["word"] = e.word;
    row["got"] = e.got, row["allowed"] = e.allowed;
    out.append(row);
  }
  return out;
}

Where where_named(const std::string& name) {
  if (name == "caller") return Where::CALLER;
  if (name == "workers") return Where::WORKERS;
  if (name == "auto") return Where::AUTO;
  throw Error("GraphError", "stream: where: who encodes, got " + name + ", allowed caller, workers, auto");
}

// ---- from signature to plan, in one native call ----
class Dispatcher {
 public:
  explicit Dispatcher(nb::object stream) : owner_(stream), stream_(nb::cast<Stream*>(stream)) {}

  void add(nb::sequence signature, uint32_t plan) {
    std::vector<uint32_t> key;
    for (nb::handle row : signature) {
      auto [dtype, rank, ones] = nb::cast<std::tuple<uint32_t, uint32_t, uint32_t>>(row);
      key.push_back(packed(dtype, rank, ones));
    }
    auto& found = plans_[hash(key)];
    for (auto& entry : found)
      if (entry.first == key) return void(entry.second = plan);
    found.emplace_back(std::move(key), plan);
  }

  nb::object call_tuple(nb::tuple args) {
    Arguments arguments;
    uint32_t key[ARGUMENTS_MAX];
    nb::object held[16];  // what a property returns would not outlive the loop
    std::vector<nb::object> more;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args.ptr()); ++i) {
      nb::object tensor = adopt(PyObject_GetAttr(PyTuple_GET_ITEM(args.ptr(), i), name()));
      if (tensor.is_none()) return nb::none();
      const Tensor& t = tensor_of(tensor.ptr());
      arguments.add(t);
      uint32_t ones = 0;
      for (int d = 0; d < t.rank; ++d) ones |= uint32_t(t.dims[d] == 1) << d;
      key[i] = packed(t.dtype, t.rank, ones);
      if (i < 16) held[i] = std::move(tensor);
      else more.push_back(std::move(tensor));
    }
    std::span<const uint32_t> wanted(key, arguments.count);
    auto found = plans_.find(hash(wanted));
    if (found == plans_.end()) return nb::none();
    for (auto& [signature, plan] : found->second)
      if (std::equal(signature.begin(), signature.end(), wanted.begin(), wanted.end())) return call(*stream_, plan, arguments);
    return nb::none();
  }

 private:
  static PyObject* name() {
    static PyObject* const interned = PyUnicode_InternFromString("_tensor");
    return interned;
  }
  static uint32_t packed(uint32_t dtype, uint32_t rank, uint32_t ones) { return dtype << 16 | rank << 8 | ones; }
  static uint64_t hash(std::span<const uint32_t> key) {
    uint64_t h = key.size();
    for (uint32_t k : key) h = (h ^ k) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    return h;
  }
  nb::object owner_;
  Stream* stream_;
  std::unordered_map<uint64_t, std::vector<std::pair<std::vector<uint32_t>, uint32_t>>> plans_;
};

// The arena's allocator alone, for its tests.
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

static void bind_tensor(nb::module_& m) {
  static PyType_Slot slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(tensor_buffer)}, {0, nullptr}};
  nb::class_<Tensor>(m, "Tensor", nb::type_slots(slots), "Immutable, contiguous, in the arena. Its bytes mean something once Stream.read() gave it.")
      .def_prop_ro("shape", &shape_tuple)
      .def_prop_ro("dtype", [](const Tensor& t) { return int(t.dtype); }, "Code of dvm_rt.dtypes.")
      .def_prop_ro("rank", [](const Tensor& t) { return int(t.rank); })
      .def_prop_ro("nbytes", [](const Tensor& t) { return t.bytes; })
      .def_prop_ro("seq", [](const Tensor& t) { return t.seq(); }, "The launch that makes it; 0: it was copied in.")
      .def_prop_ro("arena_offset", [](const Tensor& t) { return t.arena_offset(); })
      .def("reshape", &reshaped, nb::arg("shape"), "The same memory in another shape of as many elements.");
}

static const char* failure_class(const std::string& name) {
  for (const char* known : {"PoolUnhealthyError", "DeviceLostError", "WorkerLostError", "PoisonRequestError"})
    if (name == known) return known;
  throw Error("GraphError", "stream: fail: class of error, got " + name + ", allowed PoolUnhealthyError, DeviceLostError, ...");
}

static void bind_stream_policy(nb::class_<Stream>& c) {
  using Ids = std::vector<uint64_t>;
  c.def_prop_ro("fds", [](Stream& s) {
     const Stream::Descriptors& d = s.descriptors();
     nb::dict out;
     out["control"] = d.control, out["arena"] = d.arena, out["eventfd"] = d.eventfd, out["rings"] = nb::cast(d.rings), out["traces"] = nb::cast(d.traces);
     return out;
   }, "Descriptors for the children. rings: client, worker 0, ...; traces: device, worker 0, ... The stream owns them.")
      .def("set_where", [](Stream& s, uint32_t plan, const std::string& where) { StreamLock l(s); s.set_where(plan, where_named(where)); },
           nb::arg("plan"), nb::arg("where"), "Who encodes this plan: 'caller', 'workers', or 'auto' (as encode_mode).")
      .def("set_encode_mode", [](Stream& s, const std::string& where) { StreamLock l(s); s.set_default_where(where_named(where)); }, nb::arg("where"))
      .def("set_encode_work_ns", [](Stream& s, uint64_t ns) { StreamLock l(s); s.set_encode_work_ns(ns); }, nb::arg("ns"))
      .def("set_spin_us", [](Stream& s, double us) { StreamLock l(s); s.set_spin_us(us); }, nb::arg("us"))
      .def_prop_ro("outbox_count", [](Stream& s) { return s.outbox_count(); })
      .def("take_outbox", [](Stream& s, size_t limit) {
         std::vector<uint8_t> out;
         { StreamLock l(s); out = s.take_outbox(limit); }
         return bytes_of(out);
       }, nb::arg("limit"), "Instances that a worker should encode: InstanceHead and symbols, one after another.")
      .def("take_outbox_batch", [](Stream& s, size_t limit) {
         std::vector<uint8_t> out;
         { StreamLock l(s); out = s.take_outbox(limit); }
         std::vector<InstanceHead> heads;
         for (size_t at = 0; at < out.size(); at += sizeof(InstanceHead) + 8 * heads.back().symbols)
           memcpy(&heads.emplace_back(), out.data() + at, sizeof(InstanceHead));
         nb::object programs = adopt(PyTuple_New(Py_ssize_t(heads.size()))), plans = adopt(PyTuple_New(Py_ssize_t(heads.size())));
         for (size_t i = 0; i < heads.size(); ++i) {
           PyTuple_SET_ITEM(programs.ptr(), i, PyLong_FromUnsignedLongLong(heads[i].program));
           PyTuple_SET_ITEM(plans.ptr(), i, PyLong_FromUnsignedLong(heads[i].plan));
         }
         return nb::make_tuple(bytes_of(out), programs, plans);
       }, nb::arg("limit"), "The same, with the program and the plan of each: (bytes, programs, plans).")
      .def("instances", [](Stream& s, const Ids& ids) {
         std::vector<uint8_t> out;
         { StreamLock l(s); out = s.instance_bytes(ids); }
         return bytes_of(out);
       }, nb::arg("ids"), "The same bytes again, for another lease. Programs that are gone are left out.")
      .def("encode_here", [](Stream& s, const Ids& ids) { StreamLock l(s); return s.encode_here(ids); }, nb::arg("ids"),
           "Encodes and pushes those that the device does not have for certain. Returns how many.")
      .def("deliver", [](Stream& s, uint64_t id, nb::bytes program) { StreamLock l(s); return s.deliver(id, span_of(program)); },
           nb::arg("program_id"), nb::arg("program"), "A program from outside. False: not wanted any more, or no room now.")
      .def("program_state", [](Stream& s, uint64_t id) -> const char* {
         StreamLock l(s);
         static const char* const names[] = {"absent", "encoding", "ready", "failed"};
         auto state = s.program_state(id);
         return state ? names[int(*state)] : "unknown";
       }, nb::arg("program_id"))
      .def("prefetch", [](Stream& s, uint32_t plan, const std::vector<int64_t>& symbols) { StreamLock l(s); return s.prefetch(plan, symbols); },
           nb::arg("plan"), nb::arg("symbols"), "Has a program made before a launch wants it; returns its number.")
      .def("plan_bytes", [](Stream& s, uint32_t plan) {
         StreamLock l(s);
         auto& bytes = s.plan(plan).bytes;
         l.unlock();
         return bytes_of(bytes);
       }, nb::arg("plan"))
      .def("set_outbox_pump", [](Stream& s, nb::object pump) {
         s.on_outbox = pump.is_none() ? nullptr : std::function<void(bool)>([pump](bool waits) { pump(waits); });
       }, nb::arg("pump").none(), "pump(waits: bool) is called when the outbox has outbox_limit instances, or somebody is about to wait.")
      .def_prop_rw("outbox_limit", [](Stream& s) { return s.outbox_limit; }, [](Stream& s, size_t limit) { s.outbox_limit = limit; })
      .def("fail_program", [](Stream& s, uint64_t id, const std::string& type, const std::string& message) {
         const char* known = failure_class(type);
         StreamLock l(s);
         s.fail_program(id, Error(known, message));
       }, nb::arg("program_id"), nb::arg("type"), nb::arg("message"), "Its launches, and all that is computed from them, give this error.")
      .def("retire", &events_of, "Takes commits and events into account; returns the events since the last call.")
      .def("device_lost", [](Stream& s, bool encode_all) { StreamLock l(s); s.device_lost(encode_all); }, nb::arg("encode_all") = true,
           "The device is dead and no other is started yet: everything that is not committed is pushed again for the next. "
           "encode_all=False: but not the programs that workers were asked for and that no commit has shown to be there.")
      .def("wake_all", [](Stream& s) { StreamLock l(s); s.wake_all(); }, "Wakes everybody who waits, to look again.")
      .def("fail", [](Stream& s, const std::string& type, const std::string& message) {
         const char* known = failure_class(type);
         StreamLock l(s);
         s.fail(Error(known, message));
       }, nb::arg("type"), nb::arg("message"), "Whoever waits or calls from now on gets this error.")
      .def("arm", &Stream::arm, nb::arg("seq"), "Has the eventfd written when `seq` is done. True: it is done already.")
      .def("counters", [](Stream& s) {
         const Control& control = s.control();
         nb::list workers;
         const uint64_t launched = s.launched();  // before `done`: never less
         for (int i = 0; i < s.options().workers; ++i)
           workers.append(nb::make_tuple(control.worker(i, WORKER_RECEIVED).load(), control.worker(i, WORKER_ENCODED).load()));
         const uint64_t done = control.get(CONTROL_DONE);
         return nb::make_tuple(std::min(done, launched), launched, control.get(CONTROL_WAITING_PROGRAM),
                               control.get(CONTROL_DEVICE_CPU) != NEVER, nb::tuple(workers));
       }, "(done, launched, program that the device misses or 0, device is in its loop, ((received, encoded) of each worker)).")
      .def("control", [](Stream& s, int word) {
         if (s.options().inline_mode || word < 0 || word >= CONTROL_BYTES / 8) throw nb::index_error("stream: control: no such word");
         return s.control().get(word);
       }, nb::arg("word"), "One word of the control page.");
}

static void bind_stream(nb::module_& m) {
  nb::register_exception_translator(translate_error);
  bind_tensor(m);
  m.def("now_ns", &now_ns, "The clock of traces and counters.");
  nb::class_<Stream> c(m, "Stream");
  c.def("__init__", [](Stream* s, bool inline_mode, uint64_t arena_bytes_max, uint64_t program_cache_bytes, uint64_t ring_bytes,
                       uint64_t launches_max, int workers, double spin_us, double credit_timeout_s, const std::string& encode_mode,
                       const std::string& target) {
     new (s) Stream({inline_mode, arena_bytes_max, program_cache_bytes, ring_bytes, launches_max, workers, spin_us, credit_timeout_s, target});
     s->set_default_where(where_named(encode_mode));
   }, nb::arg("inline") = true, nb::arg("arena_bytes_max") = 4ull << 30, nb::arg("program_cache_bytes") = 64ull << 20,
      nb::arg("ring_bytes") = 16ull << 20, nb::arg("launches_max") = 1024, nb::arg("workers") = 0, nb::arg("spin_us") = 200.0,
      nb::arg("credit_timeout_s") = 60.0, nb::arg("encode_mode") = "auto", nb::arg("target") = "")
      .def("asarray", &as_tensor, nb::arg("array"), nb::arg("dtype") = nb::none(), "Copies an array in, C order. `dtype`: code, for bfloat16 bits.")
      .def("register", [](Stream& s, nb::bytes plan, nb::sequence captured) {
         std::vector<Tensor> tensors;
         for (nb::handle t : captured) tensors.push_back(tensor_of(t.ptr()));
         StreamLock lock(s);
         return s.register_plan(span_of(plan), std::move(tensors));
       }, nb::arg("plan"), nb::arg("captured") = nb::list(), "Loads a plan; `captured` tensors are its last parameters. Returns its number.")
      .def("forget", [](Stream& s, uint32_t plan) {
         std::vector<Tensor> captured;
         StreamLock lock(s);
         captured = s.forget_plan(plan);
       }, nb::arg("plan"), "Gives up a plan, its programs and its hold on captured tensors; launches in flight go on.")
      .def("call", [](Stream& s, uint32_t plan, nb::handle args) {
         Arguments arguments;
         collect(args, arguments);
         return call(s, plan, arguments);
       }, nb::arg("plan"), nb::arg("args"), "Launches a plan; returns its outputs as a tuple, at once.")
      .def("read", &read_array, nb::arg("tensor"), nb::arg("timeout_s") = 60.0, "Waits; a read-only array over the tensor's memory, which it keeps.")
      .def("item", &item, nb::arg("tensor"), nb::arg("timeout_s") = 60.0, "Waits; the one element as a Python scalar.")
      .def("wait", &wait_for, nb::arg("seq"), nb::arg("timeout_s") = 60.0, "Waits until launch `seq` is done. False: the time is over.")
      .def_prop_ro("launched", &Stream::launched)
      .def_prop_ro("done", &Stream::done)
      .def_prop_ro("inline", [](Stream& s) { return s.options().inline_mode; })
      .def("stats", &stats)
      .def("trace_records", [](Stream& s, size_t process) { return trace_bytes(s.trace_records(process)); }, nb::arg("process") = 0,
           "TraceRecords, oldest first, of process 0 (this one), 1 (device), 2.. (workers).")
      .def("programs", [](Stream& s, uint32_t plan) {
         std::vector<std::pair<uint64_t, std::vector<int64_t>>> out;
         { StreamLock l(s); out = s.programs(plan); }
         return nb::cast(out);
       }, nb::arg("plan"), "(program number, symbols) of every program of a plan that is in the cache.")
      .def("program_bytes", [](Stream& s, uint32_t plan, nb::handle args) {
         Arguments arguments;
         collect(args, arguments);
         std::vector<uint8_t> out;
         { StreamLock l(s); out = s.program_bytes(plan, arguments.span()); }
         return bytes_of(out);
       }, nb::arg("plan"), nb::arg("args"), "The program that call() runs for these arguments; empty if there is nothing to run.")
      .def("planning_began", [](Stream& s) { return s.began(now_ns()); },
           "The client plans now: device idle time is ours, not the user's. True: from outside, which planning_ended() is told.")
      .def("planning_ended", [](Stream& s, bool outermost, uint64_t begin_ns, uint32_t plan, uint64_t kernels) {
         const uint64_t end_ns = now_ns();
         if (outermost) s.ended(end_ns);
         s.add_trace(TraceKind::PLAN, begin_ns, end_ns, plan, kernels);
       }, nb::arg("outermost"), nb::arg("begin_ns"), nb::arg("plan"), nb::arg("kernels"), "begin_ns: of time.monotonic_ns().")
      .def("close", [](Stream& s) { std::unique_lock lock(s.lock()); s.close(); })
      .def("fail_allocation", [](Stream& s, uint64_t after) { StreamLock l(s); s.arena().fail_after = after; }, nb::arg("after"),
           "Fault injection: the allocation after `after` others fails.");
  bind_stream_policy(c);

  nb::class_<Dispatcher>(m, "Dispatcher", "From the types of a call's arguments to a plan, and through it, in one native call.")
      .def(nb::init<nb::object>(), nb::arg("stream"))
      .def("add", &Dispatcher::add, nb::arg("signature"), nb::arg("plan"), "signature: (dtype code, rank, bit mask of dims that are 1) per argument.")
      .def("__call__", &Dispatcher::call_tuple, nb::arg("args"), "Objects with an attribute `_tensor`. None: no plan, or one is not computed yet.");

  nb::class_<PyBlock>(m, "ArenaBlock").def_prop_ro("offset", [](PyBlock& b) { return b.buffer->offset; }).def_prop_ro("bytes", [](PyBlock& b) { return b.buffer->bytes; });
  nb::class_<PyArena>(m, "Arena", "The allocator alone, for its tests.")
      .def(nb::init<uint64_t>(), nb::arg("bytes_max"))
      .def("allocate", [](PyArena& a, uint64_t bytes, uint64_t committed, bool host) -> std::optional<PyBlock> {
         Buffer* buffer = a.arena->allocate(bytes, committed, host ? Writer::HOST : Writer::LAUNCH);
         return buffer ? std::optional(PyBlock{BufferRef(buffer)}) : std::nullopt;
       }, nb::arg("bytes"), nb::arg("committed") = 0, nb::arg("host") = false)
      .def_prop_rw("launched", [](PyArena& a) { return a.arena->launched.load(); }, [](PyArena& a, uint64_t seq) { a.arena->launched = seq; })
      .def("check", [](PyArena& a) { return a.arena->report(), a.arena->check(); })
      .def("report", [](PyArena& a) { auto r = a.arena->report(); return nb::make_tuple(r.tensors, r.free, r.arena); })
      .def("time_allocate", [](PyArena& a, uint64_t bytes, int64_t reps) {
         return nanoseconds_each(reps, [&] { BufferRef made(a.arena->allocate(bytes, 0, Writer::LAUNCH)); });
       }, nb::arg("bytes"), nb::arg("reps"));
}

static void bind_processes(nb::module_& m) {
  nb::class_<Device>(m, "Device", "What a device process runs: serve() over the client's and the workers' rings.")
      .def("__init__", [](Device* d, int control, int arena, std::vector<int> rings, int eventfd, double spin_us, int trace, const std::string& target) {
         new (d) Device({control, arena, eventfd, trace, std::move(rings), spin_us, 1ull << 30, target});
       }, nb::arg("control_fd"), nb::arg("arena_fd"), nb::arg("ring_fds"), nb::arg("eventfd") = -1, nb::arg("spin_us") = 50.0,
          nb::arg("trace_fd") = -1, nb::arg("target") = "")
      .def("serve", [](Device& d, double timeout_us) { d.serve(nanoseconds(timeout_us * 1e-6)); }, nb::arg("timeout_us"),
           nb::call_guard<nb::gil_scoped_release>())
      .def("step", [](Device& d) -> const char* {
         static const char* const names[] = {"idle", "took", "ran", "committed"};
         return names[int(d.step())];
       }, "One step, never waiting: 'took' a message, 'ran' a launch, 'committed' it, or 'idle'.")
      .def_prop_ro("programs", &Device::program_count)
      .def_prop_ro("refused", &Device::refused);
  nb::class_<Encoder>(m, "Encoder", "What an encoder worker runs; without control page and ring, what a pool's worker runs.")
      .def("__init__", [](Encoder* e, int control, int ring, int worker, int trace, uint64_t work_ns) {
         new (e) Encoder({control, ring, worker, trace, work_ns});
       }, nb::arg("control_fd") = -1, nb::arg("ring_fd") = -1, nb::arg("worker_index") = 0, nb::arg("trace_fd") = -1, nb::arg("encode_work_ns") = 0)
      .def("add_plan", [](Encoder& e, uint32_t plan, nb::bytes bytes) { e.add_plan(plan, span_of(bytes)); }, nb::arg("plan"), nb::arg("bytes"))
      .def("forget_plan", &Encoder::forget_plan, nb::arg("plan"))
      .def("encode", [](Encoder& e, nb::bytes instances, size_t start, double budget_us) {
         auto span = span_of(instances);
         nb::gil_scoped_release released;
         return e.encode(span, start, budget_us);
       }, nb::arg("instances"), nb::arg("start") = 0, nb::arg("budget_us") = 50.0,
           "Encodes instances into the ring from byte `start`, for about budget_us; returns the byte to go on from.")
      .def("encode_programs", [](Encoder& e, nb::bytes instances, size_t start, double budget_us) {
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
       }, nb::arg("instances"), nb::arg("start") = 0, nb::arg("budget_us") = 50.0, "The same, handing the programs back: (next byte, [(id, bytes)]).")
      .def_prop_ro("encoded", &Encoder::encoded);
}

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // arrays that live until the interpreter ends are no leak
  m.attr("TABLE_HASH") = TABLE_HASH;
  bind_machine(m);
  bind_encode(m);
  bind_stream(m);
  bind_processes(m);
}
