// The structure of a lazy graph: what finds the plan of operators that were seen before. Called once a flush, so it reads
// the nodes (dvm_rt.graph.graph.Node) where they are, in one pass, and makes one number of what it finds: the same for what
// differs in sizes and numbers alone.
#include "bind.h"
#include <structmember.h>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

// Where the fields of a class with __slots__ lie in its objects.
class Slots {
 public:
  Slots(nb::handle type, std::initializer_list<const char*> names) : type_(type.ptr()) {
    for (const char* name : names) {
      nb::object member = nb::getattr(type, name);
      if (Py_TYPE(member.ptr()) != &PyMemberDescr_Type)
        throw nb::type_error("lazy: fields, got no slot, allowed classes with __slots__");
      offsets_.push_back(reinterpret_cast<PyMemberDescrObject*>(member.ptr())->d_member->offset);
    }
  }
  // Borrowed. Raises TypeError for an object of another class, AttributeError for a field that has no value.
  PyObject* get(PyObject* from, int field) const {
    if (reinterpret_cast<PyObject*>(Py_TYPE(from)) != type_) throw nb::type_error("lazy: node, got an object of another class");
    PyObject* value = *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(from) + offsets_[size_t(field)]);
    if (!value) throw nb::attribute_error("lazy: node: a field without a value");
    return value;
  }

 private:
  PyObject* type_;  // lives as long as its objects
  std::vector<Py_ssize_t> offsets_;
};
enum { OPERATOR, INPUTS, ATTRIBUTES, SHAPE, DTYPE, DATA };  // of a node
enum { ARRAY };                                            // of what a node waits with
enum { CODE };                                             // of a dtype

// Attributes that are the same: equal, and of the same types; floats by their bits.
bool same(PyObject* a, PyObject* b) {
  if (a == b) return true;
  if (Py_TYPE(a) != Py_TYPE(b)) return false;
  if (PyFloat_CheckExact(a)) {
    const double x = PyFloat_AS_DOUBLE(a), y = PyFloat_AS_DOUBLE(b);
    return memcmp(&x, &y, sizeof x) == 0;
  }
  if (!PyTuple_CheckExact(a)) {
    const int equal = PyObject_RichCompareBool(a, b, Py_EQ);
    if (equal < 0) throw nb::python_error();
    return equal;
  }
  if (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); i++)
    if (!same(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
  return true;
}

struct Structure {
  std::vector<uint32_t> words;
  std::vector<nb::object> attributes;
  int64_t number;
};

constexpr uint32_t CONSTANT_READ = 1u << 31;  // | dtype code: an input that is a number

// One flush: nodes in an order in which each comes after its inputs, the words of the structure, the numbers.
class Scan {
 public:
  Scan(const Slots& node, const Slots& waiting, const Slots& dtype, PyObject* parameter, PyObject* constant, PyObject* pending)
      : node_(node), waiting_(waiting), dtype_(dtype), parameter_(parameter), constant_(constant), pending_(pending) {
    number_.reserve(32), words_.reserve(256), stack_.reserve(32), pending_nodes_.reserve(32), attributes_.reserve(32);
  }

  void root(PyObject* node) {
    if (number_.count(node)) return;
    push(node);
    while (!stack_.empty()) {
      Frame& top = stack_.back();
      if (top.next < PyTuple_GET_SIZE(top.inputs)) {
        PyObject* input = PyTuple_GET_ITEM(top.inputs, top.next++);
        if (!number_.count(input) && node_.get(input, OPERATOR) != constant_) push(input);  // may move the stack
      } else {
        const Frame done = top;
        stack_.pop_back();
        finish(done);
      }
    }
  }

  // Outputs are the roots and what somebody holds. Call it once, last.
  nb::list outputs(nb::list roots) {
    nb::list found;
    for (auto& [node, data] : pending_nodes_) {
      bool wanted = PyWeakref_GetObject(waiting_.get(data, ARRAY)) != Py_None;
      for (nb::handle root : roots) wanted |= root.ptr() == node;
      if (!wanted) continue;
      found.append(nb::handle(node));
      words_.push_back(number_[node]);
    }
    return found;
  }
  nb::bytes numbers() const {
    return nb::bytes(reinterpret_cast<const char*>(values_.data()), values_.size() * sizeof(uint64_t));
  }
  const std::vector<uint32_t>& words() const { return words_; }
  const std::vector<PyObject*>& attributes() const { return attributes_; }
  nb::list order, leaves, constants;

 private:
  struct Frame {  // borrowed: the roots hold all that is read
    PyObject *node, *inputs;
    Py_ssize_t next;
  };

  void push(PyObject* node) { stack_.push_back({node, node_.get(node, INPUTS), 0}); }

  void finish(const Frame& frame) {
    if (!number_.emplace(frame.node, uint32_t(number_.size())).second) return;
    order.append(nb::handle(frame.node));
    PyObject *op = node_.get(frame.node, OPERATOR), *data = node_.get(frame.node, DATA);
    const uint64_t row = reinterpret_cast<uint64_t>(op);
    words_.push_back(uint32_t(row));
    words_.push_back(uint32_t(row >> 32));
    if (op == parameter_) return leaf(frame.node);
    if (reinterpret_cast<PyObject*>(Py_TYPE(data)) == pending_) pending_nodes_.emplace_back(frame.node, data);
    const Py_ssize_t count = PyTuple_GET_SIZE(frame.inputs);
    words_.push_back(uint32_t(count));
    for (Py_ssize_t i = 0; i < count; i++) {
      PyObject* input = PyTuple_GET_ITEM(frame.inputs, i);
      auto known = number_.find(input);
      if (known != number_.end()) words_.push_back(known->second);
      else number(input);
    }
    attributes_.push_back(node_.get(frame.node, ATTRIBUTES));
  }

  void leaf(PyObject* node) {
    PyObject* shape = node_.get(node, SHAPE);
    uint32_t ones = 0, axis = 0;
    for (; axis < PyTuple_GET_SIZE(shape); axis++)
      ones |= uint32_t(PyLong_AsLongLong(PyTuple_GET_ITEM(shape, axis)) == 1) << axis;
    words_.push_back(dtype(node) << 8 | axis);
    words_.push_back(ones);
    leaves.append(nb::handle(node));
  }

  void number(PyObject* node) {
    words_.push_back(CONSTANT_READ | dtype(node));
    PyObject* value = PyTuple_GET_ITEM(node_.get(node, ATTRIBUTES), 0);
    if (PyFloat_CheckExact(value)) {
      const double exact = PyFloat_AS_DOUBLE(value);
      values_.push_back(0);
      memcpy(&values_.emplace_back(), &exact, sizeof exact);
    } else {  // whole numbers of up to 64 bits, exactly
      int overflow;
      const long long whole = PyLong_AsLongLongAndOverflow(value, &overflow);
      values_.push_back(overflow ? 2 : 1);
      values_.push_back(overflow ? PyLong_AsUnsignedLongLong(value) : uint64_t(whole));
      if (PyErr_Occurred()) throw nb::python_error();
    }
    constants.append(nb::handle(node));
  }

  uint32_t dtype(PyObject* node) { return uint32_t(PyLong_AsUnsignedLong(dtype_.get(node_.get(node, DTYPE), CODE))); }

  const Slots &node_, &waiting_, &dtype_;
  PyObject *parameter_, *constant_, *pending_;
  std::vector<Frame> stack_;
  std::unordered_map<PyObject*, uint32_t> number_;
  std::vector<std::pair<PyObject*, PyObject*>> pending_nodes_;
  std::vector<uint32_t> words_;
  std::vector<PyObject*> attributes_;
  std::vector<uint64_t> values_;  // pairs: how the number is written, its bits
};

// The structures that were met, by number; a number never means another one.
class LazyStructures {
 public:
  LazyStructures(nb::handle node, nb::handle dtype, nb::handle pending, nb::object parameter, nb::object constant)
      : node_(node, {"operator", "inputs", "attributes", "shape", "dtype", "data"}), waiting_(pending, {"array"}),
        dtype_(dtype, {"code"}), pending_(nb::borrow(pending)), parameter_(std::move(parameter)),
        constant_(std::move(constant)) {}

  nb::tuple find(nb::list roots) {
    Scan scan(node_, waiting_, dtype_, parameter_.ptr(), constant_.ptr(), pending_.ptr());
    for (nb::handle root : roots) scan.root(root.ptr());
    nb::list outputs = scan.outputs(roots);
    return nb::make_tuple(scan.order, outputs, scan.leaves, scan.constants, number_of(scan.words(), scan.attributes()),
                          scan.numbers());
  }

 private:
  static constexpr size_t MET_MAX = 1 << 14;  // then all are forgotten, and met again under other numbers

  int64_t number_of(const std::vector<uint32_t>& words, const std::vector<PyObject*>& attributes) {
    size_t hash = std::hash<std::string_view>()({reinterpret_cast<const char*>(words.data()), words.size() * sizeof(uint32_t)});
    for (PyObject* one : attributes) {
      if (!PyTuple_GET_SIZE(one)) continue;
      const Py_hash_t own = PyObject_Hash(one);
      if (own == -1) throw nb::python_error();
      hash = hash * 31 + size_t(own);
    }
    auto [from, to] = met_.equal_range(hash);
    for (; from != to; ++from)
      if (from->second.words == words && std::equal(attributes.begin(), attributes.end(), from->second.attributes.begin(),
              from->second.attributes.end(), [](PyObject* a, const nb::object& b) { return same(a, b.ptr()); }))
        return from->second.number;
    if (met_.size() == MET_MAX) met_.clear();
    Structure structure{words, {}, count_++};
    for (PyObject* one : attributes) structure.attributes.push_back(nb::borrow(one));
    return met_.emplace(hash, std::move(structure))->second.number;
  }

  Slots node_, waiting_, dtype_;
  nb::object pending_, parameter_, constant_;
  std::unordered_multimap<size_t, Structure> met_;
  int64_t count_ = 0;
};

}  // namespace

void bind_lazy(nb::module_& m) {
  nb::class_<LazyStructures>(m, "LazyStructures", "Numbers for the structures of lazy graphs.")
      .def(nb::init<nb::handle, nb::handle, nb::handle, nb::object, nb::object>(), nb::arg("node"), nb::arg("dtype"),
           nb::arg("pending"), nb::arg("parameter"), nb::arg("constant"))
      .def("find", &LazyStructures::find, nb::arg("roots"),
           "(order, outputs, leaves, constants, number of the structure, numbers) of what these nodes need.");
}
