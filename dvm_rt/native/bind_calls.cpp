// Calls that wait for each other: recorded, then run with equal calls stacked into one launch.
//
// A CallLog holds the calls of one session that were recorded and not run; a Recorder adds those of one function, and knows
// what its results look like for shapes that it was told of. The arrays that a recorded call gives are pending: their node names
// the call. run() takes all calls, level by level (a call comes after those whose results it reads): calls of one function on
// arguments of equal shapes, whose shared arguments are the same tensors, are one launch. Their other arguments are laid one
// behind the other along some axis: they lie so already if they are results of one launch, in their order; else they are copied.
// Results that lie so along the first axis become tensors of their own; along another one, lazy slices of what was made, which
// the next step reads as it lies, and which cost nothing as long as nobody looks at one alone.
// How a launch is made, and what may be stacked, is Python's business (array/stacked.py). Everything here happens with the GIL.
#include "bind_stream.h"
#include <structmember.h>
#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

namespace {

constexpr int OUTPUTS_MAX = 64;

struct Form {
  uint8_t dtype = 0, rank = 0;
  std::array<int64_t, MAX_RANK> dims{};
  bool operator==(const Form& other) const = default;
};

Form form_of(const Tensor& t) { return {t.dtype, t.rank, t.dims}; }

// The slots of a Python class, read and written without the interpreter.
class Slots {
 public:
  Slots(nb::handle type, std::initializer_list<const char*> names) : type_(nb::borrow(type)) {
    for (const char* name : names) {
      nb::object member = type_.attr(name);
      if (Py_TYPE(member.ptr()) != &PyMemberDescr_Type)
        throw nb::type_error("calls: class: no slot of a known name, allowed Array, Node, Pending");
      offsets_.push_back(reinterpret_cast<PyMemberDescrObject*>(member.ptr())->d_member->offset);
    }
  }
  bool is(PyObject* object) const { return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type_.ptr(); }
  PyObject* get(PyObject* object, int slot) const { return at(object, slot); }
  void set(PyObject* object, int slot, nb::object value) const {
    PyObject* before = std::exchange(at(object, slot), value.release().ptr());
    Py_XDECREF(before);
  }
  nb::object make() const {
    auto* type = reinterpret_cast<PyTypeObject*>(type_.ptr());
    return adopt(type->tp_alloc(type, 0));
  }

 private:
  PyObject*& at(PyObject* object, int slot) const {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object) + offsets_[size_t(slot)]);
  }
  nb::object type_;
  std::vector<Py_ssize_t> offsets_;
};

enum ArraySlot { TENSOR, NODE, SESSION };
enum NodeSlot { OPERATOR, INPUTS, ATTRIBUTES, SHAPE, DTYPE_OF, DATA };
enum PendingSlot { ARRAY, SIZE };

constexpr int SHARED = -1;  // by all calls: no axis

struct Output {
  Form form;
  int axis = SHARED;
  nb::object shape, dtype, leaf;  // `leaf`: the attributes of its node once its value is there
};

struct Kind {  // of calls: one function, arguments of these forms
  std::vector<Form> arguments;
  std::vector<int> axes;
  std::vector<Output> outputs;
  bool stackable = false, single = false;
  nb::object run;  // run(tensors, stacked) -> tensors, or None: not stacked
};

struct Place {  // a value: a tensor, or `count` of its elements along an axis, from `start`
  nb::object tensor;
  int axis = SHARED;
  int64_t start = 0, count = 0;
};

struct Given {  // an argument: a value, or a result of an earlier call
  Place place;
  uint64_t call = 0;
  int output = 0;
};

struct Call {
  std::shared_ptr<Kind> kind;
  uint32_t level = 0;
  bool done = false;
  std::vector<Given> arguments;
  std::vector<nb::object> nodes;
  std::vector<Place> results;
};

class CallLog {
 public:
  CallLog(nb::object stream, nb::handle array, nb::handle node, nb::handle pending, nb::object parameter,
          nb::object call, nb::object index, size_t limit)
      : owner_(stream), stream_(nb::cast<Stream*>(stream)), arrays(array, {"_tensor", "_node", "_session"}),
        nodes(node, {"operator", "inputs", "attributes", "shape", "dtype", "data"}),
        pendings(pending, {"array", "size"}), parameter_(parameter), call_(call), index_(index), one_(nb::int_(1)),
        none_tuple_(nb::tuple()), limit_(limit) {}

  size_t size() const { return calls_.size(); }

  // Forms and places of the arguments; false: something else, or what is on its way.
  bool look_up(PyObject* args, std::vector<Form>& forms, std::vector<Given>& given, uint32_t& level, PyObject*& session) {
    if (running_ || calls_.size() >= limit_) return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args); ++i) {
      PyObject* array = PyTuple_GET_ITEM(args, i);
      if (!arrays.is(array)) return false;
      PyObject* of = arrays.get(array, SESSION);
      if (!session) session = of;
      if (of != session) return false;
      if (PyObject* tensor = arrays.get(array, TENSOR); tensor != Py_None) {
        forms.push_back(form_of(tensor_of(tensor)));
        given.push_back({{nb::borrow(tensor)}, 0, 0});
        continue;
      }
      PyObject* node = arrays.get(array, NODE);
      if (nodes.get(node, OPERATOR) == index_.ptr()) {
        Place place = slice(node);
        if (!place.tensor.is_valid()) return false;
        forms.push_back(form_of(tensor_of(place.tensor.ptr())));
        forms.back().dims[size_t(place.axis)] = place.count;
        given.push_back({std::move(place), 0, 0});
        continue;
      }
      if (nodes.get(node, OPERATOR) != call_.ptr()) return false;
      const uint64_t number = PyLong_AsUnsignedLongLong(nodes.get(node, ATTRIBUTES));
      const uint64_t index = number / OUTPUTS_MAX;
      if (index < first_ || index - first_ >= calls_.size()) return false;
      const Call& maker = calls_[index - first_];
      const int output = int(number % OUTPUTS_MAX);
      forms.push_back(maker.kind->outputs[size_t(output)].form);
      given.push_back({{}, index, output});
      level = std::max(level, maker.level + 1);
    }
    return true;
  }

  nb::object record(std::shared_ptr<Kind> kind, std::vector<Given> given, uint32_t level, PyObject* session) {
    const uint64_t index = first_ + calls_.size();
    Call call{std::move(kind), level, false, std::move(given), {}, {}};
    const size_t count = call.kind->outputs.size();
    nb::object out = call.kind->single ? nb::object() : adopt(PyTuple_New(Py_ssize_t(count)));
    for (size_t o = 0; o < count; ++o) {
      const Output& output = call.kind->outputs[o];
      nb::object array = arrays.make(), node = nodes.make(), pending = pendings.make();
      pendings.set(pending.ptr(), ARRAY, adopt(PyWeakref_NewRef(array.ptr(), nullptr)));
      pendings.set(pending.ptr(), SIZE, one_);
      nodes.set(node.ptr(), OPERATOR, call_);
      nodes.set(node.ptr(), INPUTS, none_tuple_);
      nodes.set(node.ptr(), ATTRIBUTES, adopt(PyLong_FromUnsignedLongLong(index * OUTPUTS_MAX + o)));
      nodes.set(node.ptr(), SHAPE, output.shape);
      nodes.set(node.ptr(), DTYPE_OF, output.dtype);
      nodes.set(node.ptr(), DATA, std::move(pending));
      arrays.set(array.ptr(), TENSOR, nb::none());
      arrays.set(array.ptr(), NODE, node);
      arrays.set(array.ptr(), SESSION, nb::borrow(session));
      call.nodes.push_back(std::move(node));
      if (call.kind->single) out = std::move(array);
      else PyTuple_SET_ITEM(out.ptr(), Py_ssize_t(o), array.release().ptr());
    }
    calls_.push_back(std::move(call));
    return out;
  }

  // Runs all calls. (launches of several calls, calls in them). What raises stays recorded, with all that comes after it.
  std::pair<size_t, size_t> run() {
    if (running_) return {0, 0};
    struct Running {
      bool& flag;
      explicit Running(bool& flag) : flag(flag) { flag = true; }
      ~Running() { flag = false; }
    } guard(running_);
    launches_ = stacked_ = 0;
    uint32_t levels = 0;
    for (const Call& call : calls_) levels = std::max(levels, call.level + 1);
    std::vector<std::vector<size_t>> by_level(levels);
    for (size_t i = 0; i < calls_.size(); ++i)
      if (!calls_[i].done) by_level[calls_[i].level].push_back(i);
    for (const auto& level : by_level) run_level(level);
    first_ += calls_.size();
    calls_.clear();
    return {launches_, stacked_};
  }

  const Slots arrays, nodes, pendings;

 private:
  // A node that is x[:, .., start:stop] of a value that is there; else nothing.
  Place slice(PyObject* node) const {
    PyObject *inputs = nodes.get(node, INPUTS), *source = PyTuple_GET_ITEM(inputs, 0), *attributes = nodes.get(node, ATTRIBUTES);
    if (nodes.get(source, OPERATOR) != parameter_.ptr()) return {};
    PyObject *data = nodes.get(source, DATA), *entries = PyTuple_GET_ITEM(attributes, 0);
    if (Py_TYPE(data) != tensor_type() || !PyTuple_GET_SIZE(entries)) return {};
    const Py_ssize_t axis = PyTuple_GET_SIZE(entries) - 1;
    int64_t bounds[2];
    for (Py_ssize_t i = 0; i <= axis; ++i) {
      PyObject* entry = PyTuple_GET_ITEM(entries, i);
      if (!PyTuple_CheckExact(entry) || PyTuple_GET_ITEM(entry, 2) != Py_None) return {};
      for (int end = 0; end < 2; ++end) {
        PyObject* bound = PyTuple_GET_ITEM(entry, end);
        if ((bound == Py_None) != (i < axis) || (i == axis && !PyLong_CheckExact(bound))) return {};
        if (i == axis) bounds[end] = PyLong_AsLongLong(bound);
      }
    }
    const int64_t size = tensor_of(data).dims[size_t(axis)];
    if (bounds[0] < 0 || bounds[1] <= bounds[0] || bounds[1] > size) return {};
    return {nb::borrow(data), int(axis), bounds[0], bounds[1] - bounds[0]};
  }

  const Place& place_of(const Given& given) const {
    return given.place.tensor.is_valid() ? given.place : calls_[given.call - first_].results[size_t(given.output)];
  }

  void run_level(const std::vector<size_t>& level) {
    std::map<std::vector<int64_t>, std::vector<size_t>> groups;  // by kind and shared values
    std::vector<const std::vector<size_t>*> order;
    std::vector<int64_t> key;
    for (size_t i : level) {
      const Call& call = calls_[i];
      key.assign(1, reinterpret_cast<int64_t>(call.kind.get()));
      for (size_t p = 0; p < call.arguments.size(); ++p) {
        if (call.kind->axes[p] != SHARED) continue;
        const Place& place = place_of(call.arguments[p]);
        key.insert(key.end(), {reinterpret_cast<int64_t>(place.tensor.ptr()), place.axis, place.start});
      }
      auto& group = groups[key];
      if (group.empty()) order.push_back(&group);
      group.push_back(i);
    }
    for (const auto* group : order)
      if (group->size() < 2 || !run_stacked(*group))
        for (size_t i : *group) run_alone(calls_[i]);
  }

  void run_alone(Call& call) {
    nb::list tensors;
    for (size_t p = 0; p < call.arguments.size(); ++p)
      tensors.append(alone(place_of(call.arguments[p]), call.kind->arguments[p]));
    nb::object made = call.kind->run(tensors, false);
    for (size_t o = 0; o < call.kind->outputs.size(); ++o)
      settle(call, o, nb::borrow(PyTuple_GET_ITEM(made.ptr(), Py_ssize_t(o))));
    call.done = true;
  }

  // A tensor that is this value and nothing else.
  nb::object alone(const Place& place, const Form& form) {
    if (place.axis == SHARED) return place.tensor;
    if (place.axis == 0) return rows_of(tensor_of(place.tensor.ptr()), place.start, place.count);
    return wrap(std::move(*copied({&place}, form, place.axis, false)));
  }

  static nb::object rows_of(const Tensor& tensor, int64_t start, int64_t count) {
    Tensor rows = tensor;
    const uint64_t each = tensor.bytes / uint64_t(std::max<int64_t>(tensor.dims[0], 1));
    rows.dims[0] = count;
    rows.bytes = each * uint64_t(count);
    rows.offset += each * uint64_t(start);
    return wrap(std::move(rows));
  }

  // False: they have to run one by one.
  bool run_stacked(const std::vector<size_t>& group) {
    const std::shared_ptr<Kind> kind = calls_[group[0]].kind;
    if (!kind->stackable) return false;
    nb::list tensors;
    std::vector<const Place*> parts(group.size());
    for (size_t p = 0; p < kind->arguments.size(); ++p) {
      for (size_t i = 0; i < group.size(); ++i) parts[i] = &place_of(calls_[group[i]].arguments[p]);
      const int axis = kind->axes[p];
      if (axis == SHARED) {
        tensors.append(alone(*parts[0], kind->arguments[p]));
        continue;
      }
      nb::object together = as_they_lie(parts, kind->arguments[p], axis);
      if (!together.is_valid()) {
        std::optional<Tensor> copy = copied(parts, kind->arguments[p], axis, true);
        if (!copy) return false;
        together = wrap(std::move(*copy));
      }
      tensors.append(together);
    }
    nb::object made = kind->run(tensors, true);
    if (made.is_none()) return false;
    for (size_t o = 0; o < kind->outputs.size(); ++o)
      share_out(group, o, nb::borrow(PyTuple_GET_ITEM(made.ptr(), Py_ssize_t(o))));
    for (size_t i : group) calls_[i].done = true;
    ++launches_;
    stacked_ += group.size();
    return true;
  }

  // Gives each call its part of an output.
  void share_out(const std::vector<size_t>& group, size_t o, nb::object whole) {
    const Output& output = calls_[group[0]].kind->outputs[o];
    const Tensor& tensor = tensor_of(whole.ptr());
    if (output.axis == SHARED) {
      for (size_t i : group) settle(calls_[i], o, whole);
      return;
    }
    const int64_t each = output.form.dims[size_t(output.axis)], calls = int64_t(group.size());
    if (tensor.dims[size_t(output.axis)] != calls * each)
      throw Error("ShapeError", say("calls: output ", o, ": size along axis ", output.axis, " for ", calls, " calls, got ",
                                    tensor.dims[size_t(output.axis)], ", allowed ", calls * each));
    nb::object leaf = output.axis ? leaf_of(whole, output) : nb::object();
    for (int64_t i = 0; i < calls; ++i) {
      Call& call = calls_[group[size_t(i)]];
      if (output.axis == 0) settle(call, o, rows_of(tensor, i * each, each));
      else settle_slice(call, o, {whole, output.axis, i * each, each}, leaf);
    }
  }

  nb::object leaf_of(nb::object whole, const Output& output) {
    nb::object node = nodes.make(), shape = whole.attr("shape");
    nodes.set(node.ptr(), OPERATOR, parameter_);
    nodes.set(node.ptr(), INPUTS, none_tuple_);
    nodes.set(node.ptr(), ATTRIBUTES, nb::make_tuple(-1, shape, ""));
    nodes.set(node.ptr(), SHAPE, shape);
    nodes.set(node.ptr(), DTYPE_OF, output.dtype);
    nodes.set(node.ptr(), DATA, whole);
    return node;
  }

  // The tensor over parts that lie one behind the other, all of them or rows of one buffer; else none.
  static nb::object as_they_lie(const std::vector<const Place*>& parts, const Form& form, int axis) {
    const int64_t each = form.dims[size_t(axis)], count = int64_t(parts.size());
    const Place& first = *parts[0];
    bool slices = true, rows = axis == 0;
    for (int64_t i = 0; i < count; ++i) {
      const Place& part = *parts[size_t(i)];
      slices = slices && part.axis == axis && part.start == first.start + i * each && part.tensor.is(first.tensor);
      if (part.axis != SHARED) rows = false;
      if (!rows) continue;
      const Tensor &t = tensor_of(part.tensor.ptr()), &base = tensor_of(first.tensor.ptr());
      rows = t.buffer.get() == base.buffer.get() && t.offset == base.offset + uint64_t(i) * base.bytes;
    }
    if (slices) {
      const Tensor& whole = tensor_of(first.tensor.ptr());
      if (first.start == 0 && whole.dims[size_t(axis)] == count * each) return first.tensor;
      if (axis == 0) return rows_of(whole, first.start, count * each);
    }
    if (!rows) return {};
    Tensor together = tensor_of(first.tensor.ptr());
    together.dims[0] *= count;
    together.bytes *= uint64_t(count);
    return wrap(std::move(together));
  }

  // Parts copied behind each other along an axis; waits for them. With `careful` none if one of them has failed, so that each
  // goes alone; else the copy has failed too.
  std::optional<Tensor> copied(const std::vector<const Place*>& parts, const Form& form, int axis, bool careful) {
    uint64_t last = 0;
    for (const Place* part : parts) last = std::max(last, tensor_of(part->tensor.ptr()).seq());
    const double limit_s = stream_->options().credit_timeout_s;
    const uint64_t calls = parts.size(), each = uint64_t(form.dims[size_t(axis)]);
    Form whole = form;
    whole.dims[size_t(axis)] *= int64_t(calls);
    std::optional<Tensor> made;
    while (!made) {
      if (!wait_for(*stream_, last, limit_s))
        throw Error("DeviceTimeoutError", say("calls: values to stack: seconds for launch ", last, ", got ",
                                              int64_t(limit_s), ", allowed more"));
      StreamLock lock(*stream_);
      stream_->retire();
      Failure failure;
      for (const Place* part : parts)
        if (const Failure& of = tensor_of(part->tensor.ptr()).buffer->failure; of && !failure) failure = of;
      if (failure && careful) return {};
      made = stream_->host_tensor(form.dtype, {whole.dims.data(), form.rank});
      if (made && failure) made->buffer->failure = failure;
      last = stream_->launched();
    }
    uint64_t outer = 1, inner = DTYPE_BYTES[form.dtype];
    for (int d = 0; d < axis; ++d) outer *= uint64_t(form.dims[size_t(d)]);
    for (int d = axis + 1; d < form.rank; ++d) inner *= uint64_t(form.dims[size_t(d)]);
    for (uint64_t i = 0; i < calls; ++i) {
      const Tensor& from = tensor_of(parts[i]->tensor.ptr());
      const uint64_t size = uint64_t(from.dims[size_t(axis)]), start = uint64_t(parts[i]->start);
      for (uint64_t o = 0; o < outer; ++o)
        memcpy(made->data() + (o * calls + i) * each * inner, from.data() + (o * size + start) * inner, each * inner);
    }
    return made;
  }

  // The value of a result is there.
  void settle(Call& call, size_t output, nb::object tensor) {
    call.results.push_back({tensor});
    PyObject* node = call.nodes[output].ptr();
    nb::object pending = nb::borrow(nodes.get(node, DATA));
    nb::object array = nb::borrow(PyWeakref_GetObject(pendings.get(pending.ptr(), ARRAY)));
    nodes.set(node, OPERATOR, parameter_);
    nodes.set(node, ATTRIBUTES, call.kind->outputs[output].leaf);
    nodes.set(node, DATA, tensor);
    if (!array.is_none() && arrays.get(array.ptr(), NODE) == node) arrays.set(array.ptr(), TENSOR, std::move(tensor));
  }

  // The value of a result is there, as a part of `leaf`: a lazy slice.
  void settle_slice(Call& call, size_t output, Place place, nb::object leaf) {
    nb::object entries = adopt(PyTuple_New(place.axis + 1)), all = nb::make_tuple(nb::none(), nb::none(), nb::none());
    for (int i = 0; i < place.axis; ++i) PyTuple_SET_ITEM(entries.ptr(), i, nb::object(all).release().ptr());
    PyTuple_SET_ITEM(entries.ptr(), place.axis,
                     nb::make_tuple(place.start, place.start + place.count, nb::none()).release().ptr());
    PyObject* node = call.nodes[output].ptr();
    nodes.set(node, OPERATOR, index_);
    nodes.set(node, INPUTS, nb::make_tuple(leaf));
    nodes.set(node, ATTRIBUTES, nb::make_tuple(entries));
    call.results.push_back(std::move(place));
  }

  nb::object owner_;
  Stream* stream_;
  nb::object parameter_, call_, index_, one_, none_tuple_;
  size_t limit_;
  std::vector<Call> calls_;
  uint64_t first_ = 0;  // number of calls_[0]
  bool running_ = false;
  size_t launches_ = 0, stacked_ = 0;
};

class Recorder {
 public:
  explicit Recorder(nb::object log) : owner_(log), log_(nb::cast<CallLog*>(log)) {}

  void add(nb::sequence arguments, nb::sequence axes, nb::sequence outputs, bool stackable, bool single, nb::object run) {
    auto kind = std::make_shared<Kind>();
    for (nb::handle row : arguments) kind->arguments.push_back(form(row));
    for (nb::handle axis : axes) kind->axes.push_back(nb::cast<int>(axis));
    for (nb::handle row : outputs) {  // (code, shape, axis, dtype, attributes of a leaf)
      Output output{form(row), nb::cast<int>(row[2]), nb::object(row[1]), nb::object(row[3]), nb::object(row[4])};
      kind->outputs.push_back(std::move(output));
    }
    if (kind->arguments.size() != kind->axes.size() || kind->outputs.empty() || kind->outputs.size() > OUTPUTS_MAX)
      throw Error("GraphError",
                  say("calls: kind: arguments and outputs, got ", kind->arguments.size(), " and ", kind->outputs.size(),
                      ", allowed one axis an argument, 1 to ", OUTPUTS_MAX, " outputs"));
    kind->stackable = stackable, kind->single = single, kind->run = run;
    if (count_ >= KINDS_MAX) kinds_.clear(), count_ = 0;  // calls keep theirs
    kinds_[hash(kind->arguments)].push_back(kind);
    ++count_;
  }

  nb::object call(nb::tuple args) {
    forms_.clear();
    std::vector<Given> given;
    given.reserve(size_t(PyTuple_GET_SIZE(args.ptr())));
    uint32_t level = 0;
    PyObject* session = nullptr;
    if (!log_->look_up(args.ptr(), forms_, given, level, session)) return nb::none();
    auto found = kinds_.find(hash(forms_));
    if (found == kinds_.end()) return nb::none();
    for (const auto& kind : found->second)
      if (kind->arguments == forms_) return log_->record(kind, std::move(given), level, session);
    return nb::none();
  }

 private:
  static constexpr size_t KINDS_MAX = 4096;
  static Form form(nb::handle row) {
    Form out;
    out.dtype = nb::cast<uint8_t>(row[0]);
    for (nb::handle size : nb::borrow<nb::tuple>(row[1])) {
      if (out.rank == MAX_RANK) throw Error("ShapeError", say("calls: kind: rank, got more, allowed ", int(MAX_RANK)));
      out.dims[out.rank++] = nb::cast<int64_t>(size);
    }
    return out;
  }
  static uint64_t hash(const std::vector<Form>& forms) {
    uint64_t h = forms.size();
    for (const Form& f : forms) h = h * 31 + f.dtype, h ^= hash_of({f.dims.data(), f.rank});
    return h;
  }
  nb::object owner_;
  CallLog* log_;
  std::unordered_map<uint64_t, std::vector<std::shared_ptr<Kind>>> kinds_;
  size_t count_ = 0;
  std::vector<Form> forms_;
};

}  // namespace

void bind_calls(nb::module_& m) {
  nb::class_<CallLog>(m, "CallLog", "Calls that wait for each other; see array/stacked.py.")
      .def(nb::init<nb::object, nb::handle, nb::handle, nb::handle, nb::object, nb::object, nb::object, size_t>(),
           nb::arg("stream"), nb::arg("array_type"), nb::arg("node_type"), nb::arg("pending_type"),
           nb::arg("parameter"), nb::arg("call"), nb::arg("index"), nb::arg("limit"))
      .def("__len__", &CallLog::size)
      .def(
          "run",
          [](CallLog& log) {
            auto [launches, calls] = log.run();
            return nb::make_tuple(launches, calls);
          },
          "Runs all calls that wait: (launches that were several calls, calls in them).");
  nb::class_<Recorder>(m, "Recorder", "Records calls of one function.")
      .def(nb::init<nb::object>(), nb::arg("log"))
      .def("add", &Recorder::add, nb::arg("arguments"), nb::arg("axes"), nb::arg("outputs"), nb::arg("stackable"),
           nb::arg("single"), nb::arg("run"),
           "What calls on arguments (dtype code, shape) give: rows (dtype code, shape, axis, DType, attributes of a "
           "leaf). Axis -1: shared.")
      .def("__call__", &Recorder::call, nb::arg("args"),
           "Arrays, or None: shapes that it was not told of, or what is not an array of a known state.");
}
