// The structure of a lazy graph: what finds the plan of operators that were seen before. Called once a flush, so it reads
// the nodes (dvm_rt.graph.graph.Node) where they are, in one pass, and makes one key of bytes.
#include "bind.h"
#include <cstring>
#include <unordered_map>
#include <vector>

namespace {

struct Names {  // of the attributes that are read
  PyObject *op, *inputs, *attributes, *shape, *dtype, *data, *code, *array;
  Names()
      : op(intern("operator")), inputs(intern("inputs")), attributes(intern("attributes")), shape(intern("shape")),
        dtype(intern("dtype")), data(intern("data")), code(intern("code")), array(intern("array")) {}
  static PyObject* intern(const char* name) { return PyUnicode_InternFromString(name); }
};

nb::object get(PyObject* from, PyObject* name) { return adopt(PyObject_GetAttr(from, name)); }

constexpr uint32_t CONSTANT_READ = 1u << 31;  // | dtype code: an input that is a number

// One flush: nodes in an order in which each comes after its inputs, the words of the key, the numbers.
class Scan {
 public:
  Scan(PyObject* parameter, PyObject* constant, PyObject* pending) : parameter_(parameter), constant_(constant), pending_(pending) {
    number_.reserve(64), words_.reserve(256), stack_.reserve(64), pending_nodes_.reserve(64), values_.reserve(32);
  }

  void root(PyObject* node) {
    if (number_.count(node)) return;
    push(node);
    while (!stack_.empty()) {
      Frame& top = stack_.back();
      if (top.next < PyTuple_GET_SIZE(top.inputs.ptr())) {
        PyObject* input = PyTuple_GET_ITEM(top.inputs.ptr(), top.next++);
        if (!number_.count(input) && get(input, names().op).ptr() != constant_) push(input);  // may move the stack
      } else {
        Frame done = std::move(top);
        stack_.pop_back();
        finish(done);
      }
    }
  }

  // (order, outputs, leaves, constants, (structure, attributes), numbers): outputs are the roots and what somebody holds.
  nb::tuple result(nb::list roots) {
    nb::list outputs;
    for (auto& [node, data] : pending_nodes_) {
      bool wanted = PyWeakref_GetObject(get(data.ptr(), names().array).ptr()) != Py_None;
      for (nb::handle root : roots) wanted |= root.ptr() == node;
      if (!wanted) continue;
      outputs.append(nb::handle(node));
      words_.push_back(number_[node]);
    }
    nb::bytes structure(reinterpret_cast<const char*>(words_.data()), words_.size() * sizeof(uint32_t));
    nb::bytes numbers(reinterpret_cast<const char*>(values_.data()), values_.size() * sizeof(uint64_t));
    return nb::make_tuple(order_, outputs, leaves_, constants_, nb::make_tuple(structure, nb::tuple(attributes_)), numbers);
  }

 private:
  struct Frame {
    PyObject* node;
    nb::object inputs;
    Py_ssize_t next;
  };

  static const Names& names() {
    static const Names* names = new Names();  // lives as long as the interpreter
    return *names;
  }

  void push(PyObject* node) { stack_.push_back({node, get(node, names().inputs), 0}); }

  void finish(const Frame& frame) {
    if (!number_.emplace(frame.node, uint32_t(number_.size())).second) return;
    order_.append(nb::handle(frame.node));
    nb::object op = get(frame.node, names().op), data = get(frame.node, names().data);
    const uint64_t row = reinterpret_cast<uint64_t>(op.ptr());
    words_.push_back(uint32_t(row));
    words_.push_back(uint32_t(row >> 32));
    if (op.ptr() == parameter_) return leaf(frame.node);
    if (reinterpret_cast<PyObject*>(Py_TYPE(data.ptr())) == pending_) pending_nodes_.emplace_back(frame.node, data);
    words_.push_back(uint32_t(PyTuple_GET_SIZE(frame.inputs.ptr())));
    for (nb::handle input : nb::borrow<nb::tuple>(frame.inputs)) {
      auto known = number_.find(input.ptr());
      if (known != number_.end()) words_.push_back(known->second);
      else number(input);
    }
    attributes_.append(get(frame.node, names().attributes));
  }

  void leaf(PyObject* node) {
    nb::object shape = get(node, names().shape);
    uint32_t ones = 0, axis = 0;
    for (nb::handle size : nb::borrow<nb::tuple>(shape)) ones |= uint32_t(PyLong_AsLongLong(size.ptr()) == 1) << axis++;
    words_.push_back(dtype(node) << 8 | axis);
    words_.push_back(ones);
    leaves_.append(nb::handle(node));
  }

  void number(nb::handle node) {
    words_.push_back(CONSTANT_READ | dtype(node.ptr()));
    nb::object attributes = get(node.ptr(), names().attributes);
    PyObject* value = PyTuple_GET_ITEM(attributes.ptr(), 0);
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
    constants_.append(node);
  }

  uint32_t dtype(PyObject* node) {
    nb::object code = get(get(node, names().dtype).ptr(), names().code);
    return uint32_t(PyLong_AsUnsignedLong(code.ptr()));
  }

  PyObject *parameter_, *constant_, *pending_;
  std::vector<Frame> stack_;
  std::unordered_map<PyObject*, uint32_t> number_;
  std::vector<std::pair<PyObject*, nb::object>> pending_nodes_;
  std::vector<uint32_t> words_;
  std::vector<uint64_t> values_;  // pairs: how the number is written, its bits
  nb::list order_, leaves_, constants_, attributes_;
};

nb::tuple lazy_structure(nb::list roots, nb::handle parameter, nb::handle constant, nb::handle pending) {
  Scan scan(parameter.ptr(), constant.ptr(), pending.ptr());
  for (nb::handle root : roots) scan.root(root.ptr());
  return scan.result(roots);
}

}  // namespace

void bind_lazy(nb::module_& m) { m.def("lazy_structure", &lazy_structure); }
