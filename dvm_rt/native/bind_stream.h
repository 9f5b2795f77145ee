// What the stream's binding files share: its lock, its account of time, waiting without the GIL, arguments of a call.
#pragma once
#include <algorithm>
#include <mutex>
#include <optional>
#include "bind.h"
#include "stream.h"

// The stream's lock, without ever waiting for it with the GIL: who holds it may be inside a long kernel. Nothing that can
// run Python code (collections included) may happen while it is held.
extern thread_local bool inside_host_function;  // this thread runs one, and may hold the lock of its stream

class StreamLock {
 public:
  explicit StreamLock(Stream& stream) : held_(stream.lock(), std::defer_lock) {
    if (inside_host_function)
      throw Error("GraphError",
                  "stream: call: from a host function that runs, got a call, allowed calls outside of it");
    held_.try_lock();
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
  uint64_t begin_ns, end_ns = 0;  // 0: nobody has looked at the clock
  const bool outermost;
  TraceKind kind = TraceKind::NONE;
  uint64_t id = 0, extra = 0;
  // Inline a launch looks at the clock itself, first as it encodes, packs or runs: what a call does before that takes .1 us.
  enum Looks { NOW, LATER };
  explicit InsideClient(Stream& stream, Looks looks = NOW)
      : stream(stream), begin_ns(looks == NOW || !stream.options().inline_mode ? now_ns() : 0),
        outermost(stream.began(begin_ns)) {}
  void is(TraceKind what, uint64_t of, uint64_t more) { kind = what, id = of, extra = more; }
  ~InsideClient() {
    if (!end_ns) end_ns = now_ns();
    if (outermost) stream.ended(end_ns);
    if (kind != TraceKind::NONE) stream.add_trace(kind, begin_ns ? begin_ns : end_ns, end_ns, id, extra);
  }
};

// The request that this thread works on has to be done by then (now_ns); 0: whenever. It ends at its next launch, or while it
// waits.
extern thread_local uint64_t deadline_ns;
inline void check_deadline(const char* what) {
  if (deadline_ns && now_ns() >= deadline_ns)
    throw Error("DeviceTimeoutError",
                std::string("request: ") + what + ": got one behind the deadline of the request, allowed none");
}

// Waits without the GIL, in slices short enough for Ctrl-C. False: the time is over.
template <class Wait> bool wait_in_slices(double timeout_s, Wait wait) {
  const uint64_t begin = now_ns(), left = nanoseconds(timeout_s), end = left > NEVER - begin ? NEVER : begin + left;
  for (uint64_t now = begin;; now = now_ns()) {
    bool there;
    {
      nb::gil_scoped_release released;
      const uint64_t left = deadline_ns ? (deadline_ns > now ? deadline_ns - now : 0) : 50'000'000;
      there = wait(std::min<uint64_t>({end - now, 50'000'000, left}));
    }
    if (there) return true;
    if (PyErr_CheckSignals()) throw nb::python_error();
    check_deadline("wait");
    if (now_ns() >= end) return false;
  }
}

// Instances that wait for company leave when there are enough, when the device has waited for one of them for a while, or when
// somebody is about to wait for what they make.
inline void pump(Stream& stream, bool waits) {
  const size_t count = stream.outbox_count();
  if (count && stream.on_outbox && (waits || count >= stream.outbox_limit || stream.outbox_is_late())) stream.on_outbox(waits);
}

inline void run_ahead(Stream& stream, uint64_t until) {
  if (std::unique_lock held(stream.lock(), std::try_to_lock); held) stream.run_ahead(until);
}

inline bool wait_for(Stream& stream, uint64_t seq, double timeout_s) {
  stream.enter();
  if (stream.done() >= seq) return true;
  InsideClient inside(stream);
  run_ahead(stream, seq);
  pump(stream, true);
  const bool there = wait_in_slices(timeout_s, [&](uint64_t ns) { return stream.wait(seq, ns); });
  inside.is(TraceKind::WAIT, seq, there);
  return there;
}

inline void take_credit(Stream& stream) {
  if (stream.has_credit()) return;
  if (stream.outbox_count() && stream.on_outbox) stream.on_outbox(false);  // the device has enough to do: nobody waits for these
  const double timeout_s = stream.options().credit_timeout_s;
  if (!wait_in_slices(timeout_s, [&](uint64_t ns) { return stream.wait_credit(ns); }))
    throw Error("BackpressureTimeout", "stream: launch: seconds without a commit, got " + std::to_string(timeout_s) + " with " +
                                           std::to_string(stream.launched() - stream.done()) + " launches out, allowed " +
                                           std::to_string(stream.options().launches_max));
}

inline PyTypeObject* tensor_type() {
  static PyTypeObject* type = reinterpret_cast<PyTypeObject*>(nb::type<Tensor>().ptr());
  return type;
}
inline const Tensor& tensor_of(PyObject* object) {
  if (Py_TYPE(object) != tensor_type())
    throw nb::type_error("stream: argument: not a tensor, got another type, allowed dvm_rt._native.Tensor");
  return *nb::inst_ptr<Tensor>(object);
}
inline nb::object wrap(Tensor&& tensor) {
  nb::object made = nb::inst_alloc(reinterpret_cast<PyObject*>(tensor_type()));
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

nb::object as_tensor(Stream& stream, nb::handle array, std::optional<int> dtype);
nb::object read_array(Stream& stream, nb::handle object, double timeout_s);
nb::object item(Stream& stream, nb::handle object, double timeout_s);
