// Arrays in and out of the arena: asarray, read, item, and the Tensor that Python holds.
#include "bind_stream.h"
#include <nanobind/stl/optional.h>
#include <cstring>
#include <vector>

namespace {
int dtype_code(const char* format, Py_ssize_t bytes) {
  if (*format == '@' || *format == '=' || (*format == '<' && format[1])) ++format;
  if (!*format || format[1]) return -1;
  const char* found = strchr("?bhilqBHILQefd", *format);
  if (!found) return -1;
  const char kind = *format == '?' ? 'b' : strchr("bhilq", *format) ? 'i' : strchr("BHILQ", *format) ? 'u' : 'f';
  for (DType code : {DType::BOOL, DType::INT8, DType::INT16, DType::INT32, DType::INT64, DType::UINT8, DType::UINT16,
                     DType::UINT32, DType::UINT64, DType::FLOAT16, DType::FLOAT32, DType::FLOAT64}) {
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
    throw Error("DTypeError", "stream: asarray: dtype, got " +
                                  nb::cast<std::string>(copy.attr("dtype").attr("__str__")()) +
                                  ", allowed those of dvm_rt.dtypes");
  }
  ~ArrayView() { PyBuffer_Release(&view); }
  ArrayView(const ArrayView&) = delete;
};

}  // namespace

nb::object as_tensor(Stream& stream, nb::handle array, std::optional<int> dtype) {
  stream.enter();
  InsideClient inside(stream);
  stream.rouse();
  ArrayView array_view(array);
  const Py_buffer& view = array_view.view;
  int code = dtype_code(view.format ? view.format : "B", view.itemsize);
  if (dtype && code >= 0 && *dtype >= 0 && size_t(*dtype) < std::size(DTYPE_BYTES) &&
      DTYPE_BYTES[*dtype] == view.itemsize)
    code = *dtype;
  else if (dtype && *dtype != code) code = -1;
  if (code < 0)
    throw Error("DTypeError", std::string("stream: asarray: dtype, got buffer format ") +
                                  (view.format ? view.format : "B") + ", allowed those of dvm_rt.dtypes");
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

namespace {
int tensor_buffer(PyObject* self, Py_buffer* view, int flags) {
  const Tensor& tensor = *nb::inst_ptr<Tensor>(self);
  if (tensor.buffer->gone) {
    PyErr_SetString(
        PyExc_BufferError,
        "stream: tensor: memory, got a matrix of which only the packed form is there, allowed what Stream.read() gave");
    return -1;
  }
  tensor.buffer->viewed = true;
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
    throw Error("GraphError", "stream: read: runtime, got an array of another one, allowed arrays of this runtime");
  if (tensor.buffer->gone) {
    StreamLock lock(stream);
    if (tensor.buffer->gone) stream.restore(*tensor.buffer.get());
  }
  if (!stream.settled(tensor)) {
    if (!wait_for(stream, tensor.seq(), timeout_s))
      throw Error("DeviceTimeoutError", "stream: read: seconds for launch " + std::to_string(tensor.seq()) + ", got " +
                                            std::to_string(timeout_s) + " (" + std::to_string(stream.done()) +
                                            " are done), allowed more or a faster device");
    StreamLock lock(stream);
    stream.retire();
  }
  stream.check_value(tensor);
  return tensor;
}

nb::object numpy_dtype(uint8_t code) {  // never given back: they live as long as the interpreter
  static const std::vector<PyObject*> dtypes = [] {
    std::vector<PyObject*> out;
    for (nb::handle row : nb::module_::import_("dvm_rt.dtypes").attr("DTYPES"))
      out.push_back(nb::object(row.attr("numpy")).release().ptr());
    return out;
  }();
  return nb::borrow(dtypes[code]);
}

}  // namespace

nb::object read_array(Stream& stream, nb::handle object, double timeout_s) {
  const Tensor& tensor = await_value(stream, object, timeout_s);
  static PyObject* const ndarray = nb::object(nb::module_::import_("numpy").attr("ndarray")).release().ptr();
  nb::object shape = shape_tuple(tensor), dtype = numpy_dtype(tensor.dtype);
  PyObject* args[] = {nullptr, shape.ptr(), dtype.ptr(), object.ptr()};
  return adopt(PyObject_Vectorcall(ndarray, args + 1, 3 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
}

namespace {
}  // namespace

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

namespace {
Tensor prefix(const Tensor& tensor, int64_t rows) {
  if (!tensor.rank || rows < 0 || rows > tensor.dims[0])
    throw Error("ShapeError", "stream: prefix: rows, got " + std::to_string(rows) +
                                  ", allowed 0 to the first dimension of " + shape_text(tensor.shape()));
  Tensor out = tensor;
  out.dims[0] = rows;
  out.bytes = shape_bytes(tensor.dtype, out.shape());
  return out;
}
Tensor reshaped(const Tensor& tensor, nb::sequence shape) {
  Tensor out = tensor;
  std::vector<int64_t> dims;
  for (nb::handle dim : shape) dims.push_back(nb::cast<int64_t>(dim));
  if (shape_bytes(tensor.dtype, dims) != tensor.bytes)
    throw Error("ShapeError", "stream: reshape: bytes, got " + std::to_string(shape_bytes(tensor.dtype, dims)) +
                                  ", allowed " + std::to_string(tensor.bytes));
  out.rank = uint8_t(dims.size());
  std::copy(dims.begin(), dims.end(), out.dims.begin());
  return out;
}
}  // namespace

void bind_tensor(nb::module_& m) {
  static PyType_Slot slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(tensor_buffer)}, {0, nullptr}};
  nb::class_<Tensor>(m, "Tensor", nb::type_slots(slots),
                     "Immutable, contiguous, in the arena. Its bytes mean something once Stream.read() gave it.")
      .def_prop_ro("shape", &shape_tuple)
      .def_prop_ro(
          "dtype", [](const Tensor& t) { return int(t.dtype); }, "Code of dvm_rt.dtypes.")
      .def_prop_ro("rank", [](const Tensor& t) { return int(t.rank); })
      .def_prop_ro(
          "signature",
          [](const Tensor& t) {
            uint32_t ones = 0;
            for (int d = 0; d < t.rank; ++d) ones |= uint32_t(t.dims[d] == 1) << d;
            return uint32_t(t.dtype) << 16 | uint32_t(t.rank) << 8 | ones;
          },
          "What a plan for all sizes depends on: dtype, rank, and which sizes are 1.")
      .def_prop_ro("nbytes", [](const Tensor& t) { return t.bytes; })
      .def_prop_ro(
          "seq", [](const Tensor& t) { return t.seq(); }, "The launch that makes it; 0: it was copied in.")
      .def_prop_ro("arena_offset", [](const Tensor& t) { return t.arena_offset(); })
      .def("prefix", &prefix, nb::arg("rows"), "The first rows along the first dimension, in the same memory.")
      .def("reshape", &reshaped, nb::arg("shape"), "The same memory in another shape of as many elements.");
}
