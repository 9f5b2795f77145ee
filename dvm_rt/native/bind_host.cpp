// Host functions: the machine hands a HOST section over to dvm_rt.npu_device.host, which runs it with NumPy.
//
// The thread that runs the program takes the GIL and calls; it may hold the lock of an inline stream. So nothing of ours may
// be called from inside: collections are off, and StreamLock refuses (a signal handler, a finalizer). A KeyboardInterrupt
// that falls into the call is put off until after it: the function runs again, and gives the same.
#include "bind.h"
#include "bind_stream.h"
#include "machine.h"

thread_local bool inside_host_function = false;

namespace {
PyObject* call_function = nullptr;  // set once, with the GIL held; lives as long as the interpreter

nb::object operand_tuple(const SectionRun& run, int i) {
  const Operand& x = run.section.operands[i];
  nb::object shape = adopt(PyTuple_New(Py_ssize_t(x.depth)));
  int64_t bytes = DTYPE_BYTES[x.dtype];
  for (int64_t d = 0; d < x.depth; d++) {
    PyTuple_SET_ITEM(shape.ptr(), x.depth - 1 - d, PyLong_FromLongLong(x.stride[d]));
    bytes *= x.stride[d];
  }
  nb::object memory = bytes ? adopt(PyMemoryView_FromMemory(reinterpret_cast<char*>(run.address[i]), bytes,
                                                            x.mode & WRITE ? PyBUF_WRITE : PyBUF_READ))
                            : nb::none();
  return nb::make_tuple(int(x.dtype), shape, memory);
}

Trap call(const SectionRun& run) {
  const Section& s = *run.section.head;
  const auto function = uint32_t(s.depth - 1);
  if (!call_function) {
    nb::object found = nb::module_::import_("dvm_rt.npu_device.host").attr("call");
    if (!call_function) call_function = found.release().ptr();
  }
  nb::object attributes = adopt(PyTuple_New(s.word_count));
  for (int i = 0; i < s.word_count; i++) {
    int64_t value;
    memcpy(&value, &run.section.words[i], sizeof value);
    PyTuple_SET_ITEM(attributes.ptr(), i, PyLong_FromLongLong(value));
  }
  nb::list operands;
  for (int i = 0; i < s.operand_count; i++) operands.append(operand_tuple(run, i));
  nb::object result = nb::borrow(call_function)(function, attributes, operands);
  auto [code, got, allowed] = std::tuple(nb::cast<int>(result[0]), nb::cast<int64_t>(result[1]), nb::cast<int64_t>(result[2]));
  const TrapCode codes[] = {TrapCode::NONE, TrapCode::HOST_RANGE, TrapCode::HOST_FAILED};
  return {codes[code], 0, function, got, allowed};
}

Trap run_host(const SectionRun& run) {
  nb::gil_scoped_acquire gil;
  const bool collects = PyGC_Disable();
  inside_host_function = true;
  Trap trap{TrapCode::HOST_FAILED, 0, uint32_t(run.section.head->depth - 1), 0, 0};
  bool interrupted = false;
  for (bool again = true; again;) {
    again = false;
    try {
      trap = call(run);
    } catch (nb::python_error& error) {
      again = error.matches(PyExc_KeyboardInterrupt);
      interrupted |= again;
    } catch (const std::exception&) {  // the trap says it
    }
  }
  inside_host_function = false;
  if (collects) PyGC_Enable();
  if (interrupted) PyErr_SetInterrupt();
  return trap;
}
}  // namespace

void bind_host() { host_runner = run_host; }
