// The Python module. Each part of the core has its own binding file; errors of the core become classes of dvm_rt.errors.
#include "bind.h"

void set_python_error(const Error& error) {
  nb::object made = nb::module_::import_("dvm_rt.errors").attr(error.type)(error.message);
  for (auto& [name, value] : error.numbers) made.attr(name) = value;
  if (std::string_view(error.type) == "InvalidBytecodeError")
    made.attr("code") = VerifyCode_NAMES[nb::cast<size_t>(made.attr("code"))];
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(made.ptr())), made.ptr());
}

static void translate_error(const std::exception_ptr& thrown, void*) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    set_python_error(error);
  }
}

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // arrays that live until the interpreter ends are no leak
  m.attr("TABLE_HASH") = TABLE_HASH;
  nb::register_exception_translator(translate_error);
  bind_machine(m);
  bind_encode(m);
  bind_tensor(m);
  bind_stream(m);
  bind_arena(m);
  bind_processes(m);
  bind_host();
  bind_lazy(m);
  bind_calls(m);
  bind_dlpack(m);
}
