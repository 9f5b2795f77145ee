// Python over plans and the encoder.
#include "bind.h"
#include <memory>
#include "plan.h"

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
    if (!plan_->evaluate(given.value, values_.data()))
      raise_error("EncodeError", std::string("encode: ") + EVALUATION + ", got symbols " + given.text());
    nb::list list;
    for (size_t i = 0; i < plan_->exprs().size(); i++) list.append(values_[i]);
    return list;
  }
  // Nanoseconds per encode; symbol `vary` grows by 0 to 63 from one encode to the next, if it is not negative.
  double time_encode(nb::handle symbols, int64_t reps, int vary) {
    Symbols given(*plan_, symbols);
    if (vary >= int(plan_->symbols().size()))
      raise_error("EncodeError", "encode: vary: no such symbol, got " + std::to_string(vary) + ", allowed below " +
                                     std::to_string(plan_->symbols().size()));
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

void bind_encode(nb::module_& m) {
  nb::class_<PyPlan>(m, "Plan", "A loaded plan. Raises GraphError if the bytes are damaged or name what does not exist.")
      .def(nb::init<nb::bytes>(), nb::arg("plan"))
      .def("encode", &PyPlan::encode, nb::arg("symbols"),
           "Program bytes for these symbol values; empty if there is nothing to run. Raises EncodeError.")
      .def("evaluate", &PyPlan::evaluate, nb::arg("symbols"), "The value of every expression. Raises EncodeError.")
      .def("time_encode", &PyPlan::time_encode, nb::arg("symbols"), nb::arg("reps"), nb::arg("vary") = -1,
           "Nanoseconds per encode (evaluation included), the mean of `reps`; symbol `vary` changes each time.")
      .def_prop_ro("info", &PyPlan::info, "Number of records of each kind.");
}
