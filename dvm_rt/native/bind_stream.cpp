// Python over the stream: calls, reports, and the way from a call's signature to its plan.
#include "bind_stream.h"
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>
#include <structmember.h>
#include <unordered_map>

thread_local uint64_t deadline_ns = 0;

namespace {
void collect(nb::handle sequence, Arguments& out) {
  out.owner = adopt(PySequence_Fast(sequence.ptr(), "stream: call: arguments: not a sequence of tensors"));
  PyObject* fast = out.owner.ptr();
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); ++i) out.add(tensor_of(PySequence_Fast_GET_ITEM(fast, i)));
}

// `make(outputs)` gives the Python object of the call, `place(object, i, tensor)` puts an output into it.
template <class Make, class Place>
nb::object launch(Stream& stream, uint32_t plan, const Arguments& args, Make make, Place place) {
  stream.enter();
  check_deadline("launch");
  InsideClient inside(stream, InsideClient::LATER);
  take_credit(stream);
  stream.step_aside();
  stream.rouse();
  const size_t count = stream.output_count(plan);
  nb::object out = make(count);  // before the lock: it may start a collection
  {
    StreamLock lock(stream);
    stream.set_deadline(deadline_ns);
    stream.prepare(plan, args.span());
    for (size_t i = 0; i < count; ++i) place(out.ptr(), i, wrap(std::move(stream.outputs()[i])));
    std::optional<nb::gil_scoped_release> released;
    if (stream.long_running()) released.emplace();
    const Stream::Looks looks = stream.execute();
    if (!inside.begin_ns) inside.begin_ns = looks.first;
    inside.end_ns = looks.last;
    inside.is(TraceKind::CALL, stream.launched(), plan);
    lock.unlock();  // never with the GIL waited for
  }
  pump(stream, false);
  return out;
}

nb::object call(Stream& stream, uint32_t plan, const Arguments& args) {
  return launch(stream, plan, args, [](size_t count) { return adopt(PyTuple_New(Py_ssize_t(count))); },
                [](PyObject* out, size_t i, nb::object tensor) { PyTuple_SET_ITEM(out, Py_ssize_t(i), tensor.release().ptr()); });
}

// Programs for many sets of symbols; what was asked for leaves while the rest is still being read.
nb::list prefetch(Stream& stream, uint32_t plan, nb::handle rows) {
  constexpr size_t TOGETHER = 256;
  stream.enter();
  nb::object all = adopt(PySequence_Fast(rows.ptr(), "stream: prefetch: symbols: not a sequence of rows"));
  std::vector<int64_t> symbols;
  std::vector<size_t> ends;
  std::vector<uint64_t> ids;
  nb::list out;
  for (Py_ssize_t next = 0; next < PySequence_Fast_GET_SIZE(all.ptr());) {
    symbols.clear(), ends.clear(), ids.clear();
    for (; next < PySequence_Fast_GET_SIZE(all.ptr()) && ends.size() < TOGETHER; ++next) {  // without the lock: it may run Python
      nb::object row = adopt(PySequence_Fast(PySequence_Fast_GET_ITEM(all.ptr(), next), "stream: prefetch: symbols: no row"));
      for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(row.ptr()); ++i)
        symbols.push_back(nb::cast<int64_t>(nb::handle(PySequence_Fast_GET_ITEM(row.ptr(), i))));
      ends.push_back(symbols.size());
    }
    {
      StreamLock lock(stream);
      for (size_t i = 0, begin = 0; i < ends.size(); begin = ends[i++])
        ids.push_back(stream.prefetch(plan, std::span(symbols).subspan(begin, ends[i] - begin)));
    }
    pump(stream, false);
    for (uint64_t id : ids) out.append(id);
  }
  return out;
}

// ---- reports ----
nb::dict stats(Stream& stream) {
  nb::dict out;
  StreamCounters c;
  MemoryReport memory;
  uint64_t split;
  Machine::Tuned tuned;
  size_t outbox, plans;
  {
    StreamLock lock(stream);
    stream.retire();
    c = stream.counters();
    split = stream.sections_split();
    tuned = stream.tuned();
    memory = stream.memory();
    outbox = stream.outbox_count();
    plans = stream.plan_count();
  }
  out["launched"] = stream.launched(), out["done"] = stream.done();
  out["calls"] = c.calls, out["cached_calls"] = c.cached_calls, out["plans"] = plans, out["programs"] = c.instances;
  out["encoded"] = c.encoded, out["encode_ns"] = c.encode_ns, out["load_ns"] = c.load_ns, out["packs"] = c.packs,
  out["evicted"] = c.evicted;
  out["refused"] = c.refused, out["traps"] = c.traps, out["devices_lost"] = c.devices_lost, out["outbox"] = outbox;
  out["guessed"] = c.guessed, out["guessed_right"] = c.guessed_right, out["guessed_wrong"] = c.guessed_wrong;
  out["appended_in_place"] = c.appended_in_place;
  out["program_cache_bytes"] = c.program_cache_bytes, out["sections_split"] = split;
  out["choices_tried"] = tuned.tried, out["choices_kept"] = tuned.kept, out["choices_gained_ns"] = tuned.gained_ns;
  nb::dict bytes;
  bytes["tensors"] = memory.tensors, bytes["workspace"] = memory.workspace, bytes["packed"] = memory.packed;
  bytes["free"] = memory.free, bytes["arena"] = memory.arena;
  out["memory"] = bytes;
  const Control& control = stream.control();
  const bool here = stream.options().inline_mode;
  out["busy_ns"] = here ? c.busy_ns : control.get(CONTROL_BUSY_NS);
  out["host_calls"] = here ? c.host_calls : control.get(CONTROL_HOST_CALLS);
  out["host_ns"] = here ? c.host_ns : control.get(CONTROL_HOST_NS);
  for (auto [name, word] : {std::pair{"exposed_ns", CONTROL_EXPOSED_NS}, {"exposed_count", CONTROL_EXPOSED_COUNT},
                            {"starved_client_ns", CONTROL_STARVED_CLIENT_NS}, {"starved_user_ns", CONTROL_STARVED_USER_NS},
                            {"waiting_program", CONTROL_WAITING_PROGRAM}, {"device_wakes", CONTROL_DEVICE_WAKES},
                            {"client_ns", CONTROL_CLIENT_NS}})
    out[name] = here ? 0 : control.get(word);
  nb::list workers;
  for (int i = 0; i < stream.options().workers; ++i) {
    nb::dict worker;
    worker["encoded"] = control.worker(i, WORKER_ENCODED).load(),
    worker["encode_ns"] = control.worker(i, WORKER_ENCODE_NS).load();
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
// An Array of dvm_rt.array.array seen from here: a Python object of three slots, read and made without the interpreter.
class ArrayType {
 public:
  explicit ArrayType(nb::handle type)
      : type_(nb::borrow(type)), tensor_(slot("_tensor")), node_(slot("_node")), session_(slot("_session")) {}
  // The tensor of an Array, borrowed; null: another type of object, or one that is not computed.
  PyObject* tensor(PyObject* array) const {
    if (!is(array)) return nullptr;
    PyObject* held = at(array, tensor_);
    return held == Py_None ? nullptr : held;
  }
  nb::object make(PyObject* session) const {  // without its tensor
    auto* type = reinterpret_cast<PyTypeObject*>(type_.ptr());
    nb::object array = adopt(type->tp_alloc(type, 0));
    at(array.ptr(), node_) = Py_NewRef(Py_None);
    at(array.ptr(), session_) = Py_NewRef(session);
    return array;
  }
  void fill(PyObject* made, nb::object tensor) const { at(made, tensor_) = tensor.release().ptr(); }
  bool is(PyObject* object) const { return reinterpret_cast<PyObject*>(Py_TYPE(object)) == type_.ptr(); }
  PyObject* session(PyObject* array) const { return at(array, session_); }

 private:
  static PyObject*& at(PyObject* array, Py_ssize_t offset) {
    return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(array) + offset);
  }
  Py_ssize_t slot(const char* name) const {
    nb::object member = type_.attr(name);
    if (Py_TYPE(member.ptr()) != &PyMemberDescr_Type)
      throw nb::type_error("stream: dispatcher: type of arrays, got no slot of a known name, allowed Array");
    return reinterpret_cast<PyMemberDescrObject*>(member.ptr())->d_member->offset;
  }
  nb::object type_;
  Py_ssize_t tensor_, node_, session_;
};

class Dispatcher {
 public:
  Dispatcher(nb::object stream, nb::handle array_type)
      : owner_(stream), stream_(nb::cast<Stream*>(stream)), arrays_(array_type) {}

  // `sizes`: of all arguments, one after another, if the plan is for these alone.
  void add(nb::sequence signature, uint32_t plan, bool single, std::optional<std::vector<int64_t>> sizes) {
    std::vector<uint32_t> key;
    for (nb::handle row : signature) {
      auto [dtype, rank, ones] = nb::cast<std::tuple<uint32_t, uint32_t, uint32_t>>(row);
      key.push_back(packed(dtype, rank, ones));
    }
    if (sizes && sized_count_ >= SIZED_MAX) sized_.clear(), sized_count_ = 0;
    last_ = nullptr;
    auto& found = sizes ? sized_[hash(key) ^ hash_of(*sizes)] : plans_[hash(key)];
    Entry added{std::move(key), sizes ? std::move(*sizes) : std::vector<int64_t>(), plan, single};
    for (auto& entry : found)
      if (entry.key == added.key && entry.sizes == added.sizes) return void(entry.plan = plan);
    sized_count_ += bool(sizes);
    found.push_back(std::move(added));
  }

  const ArrayType& array_type() const { return arrays_; }

  nb::object call_tuple(nb::tuple args) {
    Arguments arguments;
    uint32_t key[ARGUMENTS_MAX];
    struct Held {  // another thread may compute or change an array meanwhile
      PyObject* of[ARGUMENTS_MAX];
      size_t count = 0;
      ~Held() {
        while (count) Py_DECREF(of[--count]);
      }
    } held;
    PyObject* session = nullptr;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args.ptr()); ++i) {
      PyObject* array = PyTuple_GET_ITEM(args.ptr(), i);
      const bool is_number = PyFloat_CheckExact(array);
      PyObject* tensor = is_number ? number(float(PyFloat_AS_DOUBLE(array))) : arrays_.tensor(array);
      if (!tensor) return nb::none();
      if (!session && !is_number) session = arrays_.session(array);
      const Tensor& t = tensor_of(tensor);
      arguments.add(t);
      uint32_t ones = 0;
      for (int d = 0; d < t.rank; ++d) ones |= uint32_t(t.dims[d] == 1) << d;
      key[i] = packed(t.dtype, t.rank, ones);
      held.of[held.count++] = Py_NewRef(tensor);
    }
    if (!session) return nb::none();
    std::span<const uint32_t> wanted(key, arguments.count);
    std::vector<int64_t> sizes;
    const Entry* found = nullptr;
    if (sized_count_) {  // first: what is traced for all sizes may not hold for these
      for (const Tensor* t : arguments.span()) sizes.insert(sizes.end(), t->dims.begin(), t->dims.begin() + t->rank);
      found = find(sized_, hash(wanted) ^ hash_of(sizes), wanted, sizes);
    }
    if (!found && last_ && is_of(*last_, wanted)) found = last_;
    if (!found) found = last_ = find(plans_, hash(wanted), wanted, {});
    return found ? arrays(*found, arguments, nb::borrow(session)) : nb::none();
  }

 private:
  struct Entry {
    std::vector<uint32_t> key;
    std::vector<int64_t> sizes;  // none: for all
    uint32_t plan;
    bool single;
  };
  using Entries = std::unordered_map<uint64_t, std::vector<Entry>>;

  static const Entry* find(const Entries& entries, uint64_t hash, std::span<const uint32_t> key,
                           const std::vector<int64_t>& sizes) {
    auto found = entries.find(hash);
    if (found == entries.end()) return nullptr;
    for (const Entry& entry : found->second)
      if (is_of(entry, key) && entry.sizes == sizes) return &entry;
    return nullptr;
  }
  static bool is_of(const Entry& entry, std::span<const uint32_t> key) {
    return entry.key.size() == key.size() && are_equal(entry.key.data(), key.data(), key.size());
  }

  nb::object arrays(const Entry& entry, const Arguments& arguments, nb::object session) {
    const bool single = entry.single;  // the call may run Python code that adds entries
    auto make = [&](size_t count) {
      if (single) return arrays_.make(session.ptr());
      nb::object made = adopt(PyTuple_New(Py_ssize_t(count)));
      for (size_t i = 0; i < count; ++i) PyTuple_SET_ITEM(made.ptr(), Py_ssize_t(i), arrays_.make(session.ptr()).release().ptr());
      return made;
    };
    return launch(*stream_, entry.plan, arguments, make, [&](PyObject* made, size_t i, nb::object tensor) {
      arrays_.fill(single ? made : PyTuple_GET_ITEM(made, Py_ssize_t(i)), std::move(tensor));
    });
  }
  // The tensor of a number, borrowed; null: there is no memory that the host may write now. Numbers come again.
  PyObject* number(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    if (auto found = numbers_.find(bits); found != numbers_.end()) return found->second.ptr();
    std::optional<Tensor> tensor;
    {
      StreamLock lock(*stream_);  // may let another thread in here
      tensor = stream_->host_tensor(uint8_t(DType::FLOAT32), {});
    }
    if (!tensor) return nullptr;
    memcpy(tensor->data(), &value, sizeof value);
    nb::object made = wrap(std::move(*tensor));
    if (numbers_.size() >= NUMBERS_MAX) numbers_.clear();
    return (numbers_[bits] = made).ptr();
  }
  static uint32_t packed(uint32_t dtype, uint32_t rank, uint32_t ones) { return dtype << 16 | rank << 8 | ones; }
  static uint64_t hash(std::span<const uint32_t> key) {
    uint64_t h = key.size();
    for (uint32_t k : key) h = (h ^ k) * 0x9E3779B97F4A7C15ull, h ^= h >> 29;
    return h;
  }
  nb::object owner_;
  Stream* stream_;
  ArrayType arrays_;
  Entries plans_, sized_;
  const Entry* last_ = nullptr;  // of plans_, that was called
  size_t sized_count_ = 0;
  static constexpr size_t SIZED_MAX = 1 << 14;
  static constexpr size_t NUMBERS_MAX = 256;
  std::unordered_map<uint32_t, nb::object> numbers_;  // by their bits
};

// What dvm_rt.array.function.Function is besides its Python part: a call whose signature a dispatcher knows never enters the
// interpreter; every other one, and one that the fast way finds no plan or program for, is the method `_call(args, kwargs)`.
class Dispatched {
 public:
  static nb::object dispatcher(nb::handle self, nb::object session, nb::handle stream,
                               nb::handle array_type) {  // made on first use
    auto& own = *nb::inst_ptr<Dispatched>(self);
    for (Found& found : own.found_)
      if (found.session == session.ptr() && found.alive()) return found.dispatcher;
    nb::object made = nb::type<Dispatcher>()(stream, array_type), weak_self = adopt(PyWeakref_NewRef(self.ptr(), nullptr));
    nb::object gone = nb::cpp_function([weak_self](nb::handle) {  // nothing of a session that is no more is kept
      PyObject* self = PyWeakref_GetObject(weak_self.ptr());
      if (self != Py_None)
        std::erase_if(nb::inst_ptr<Dispatched>(self)->found_, [](const Found& found) { return !found.alive(); });
    });
    own.found_.push_back({session.ptr(), adopt(PyWeakref_NewRef(session.ptr(), gone.ptr())), made});
    return made;
  }
  void forget(nb::handle session) {
    std::erase_if(found_, [&](const Found& found) { return found.session == session.ptr(); });
  }

  static PyObject* tp_call(PyObject* self, PyObject* args, PyObject* kwargs) noexcept {
    try {
      if (!kwargs && nb::inst_ready(self)) {
        nb::object result = nb::inst_ptr<Dispatched>(self)->call(args);
        if (result.is_valid()) return result.release().ptr();
      }
      static PyObject* const slow = PyUnicode_InternFromString("_call");
      nb::object none = kwargs ? nb::borrow(kwargs) : adopt(PyDict_New());
      return PyObject_CallMethodObjArgs(self, slow, args, none.ptr(), nullptr);
    } catch (const Error& error) {
      try {
        set_python_error(error);
      } catch (nb::python_error& other) {
        other.restore();
      }
    } catch (nb::python_error& error) {
      error.restore();
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
  }

 private:
  struct Found {
    PyObject* session;  // compared, never followed
    nb::object weak, dispatcher;
    bool alive() const { return PyWeakref_GetObject(weak.ptr()) == session; }
  };

  // No object: nothing is known of such a call.
  nb::object call(PyObject* args) {
    if (found_.empty()) return {};
    const ArrayType& arrays = nb::inst_ptr<Dispatcher>(found_[0].dispatcher)->array_type();
    PyObject* session = nullptr;
    for (Py_ssize_t i = 0; !session && i < PyTuple_GET_SIZE(args); ++i)
      if (PyObject* x = PyTuple_GET_ITEM(args, i); arrays.is(x)) session = arrays.session(x);
    for (Found& found : found_) {
      if (found.session != session || !found.alive()) continue;
      nb::object dispatcher = found.dispatcher;  // the call may let another thread in that forgets it
      try {
        nb::object result = nb::inst_ptr<Dispatcher>(dispatcher)->call_tuple(nb::borrow<nb::tuple>(args));
        return result.is_none() ? nb::object() : result;
      } catch (const Error& error) {  // the slow way says more of these
        for (const char* known : {"ShapeError", "EncodeError", "InvalidBytecodeError"})
          if (!strcmp(error.type, known)) return {};
        throw;
      }
    }
    return {};
  }
  std::vector<Found> found_;
};
PyType_Slot dispatched_slots[] = {{Py_tp_call, reinterpret_cast<void*>(Dispatched::tp_call)}, {0, nullptr}};
}  // namespace

static const char* failure_class(const std::string& name) {
  for (const char* known : {"PoolUnhealthyError", "DeviceLostError", "WorkerLostError", "PoisonRequestError"})
    if (name == known) return known;
  throw Error("GraphError", "stream: fail: class of error, got " + name + ", allowed PoolUnhealthyError, DeviceLostError, ...");
}

static void bind_stream_policy(nb::class_<Stream>& c) {
  using Ids = std::vector<uint64_t>;
  c.def_prop_ro(
       "fds",
       [](Stream& s) {
         const Stream::Descriptors& d = s.descriptors();
         nb::dict out;
         out["control"] = d.control, out["arena"] = d.arena, out["eventfd"] = d.eventfd,
         out["rings"] = nb::cast(d.rings), out["traces"] = nb::cast(d.traces);
         return out;
       },
       "Descriptors for the children. rings: client, worker 0, ...; traces: device, worker 0, ... The stream owns "
       "them.")
      .def(
          "set_where",
          [](Stream& s, uint32_t plan, const std::string& where) {
            StreamLock l(s);
            s.set_where(plan, where_named(where));
          },
          nb::arg("plan"), nb::arg("where"), "Who encodes this plan: 'caller', 'workers', or 'auto' (as encode_mode).")
      .def(
          "set_encode_mode",
          [](Stream& s, const std::string& where) {
            StreamLock l(s);
            s.set_default_where(where_named(where));
          },
          nb::arg("where"))
      .def(
          "set_encode_work_ns",
          [](Stream& s, uint64_t ns) {
            StreamLock l(s);
            s.set_encode_work_ns(ns);
          },
          nb::arg("ns"))
      .def_prop_ro("outbox_count", [](Stream& s) { return s.outbox_count(); })
      .def(
          "take_outbox",
          [](Stream& s, size_t limit) {
            std::vector<uint8_t> out;
            {
              StreamLock l(s);
              out = s.take_outbox(limit);
            }
            return bytes_of(out);
          },
          nb::arg("limit"), "Instances that a worker should encode: InstanceHead and symbols, one after another.")
      .def(
          "take_outbox_batch",
          [](Stream& s, size_t limit) {
            std::vector<uint8_t> out;
            {
              StreamLock l(s);
              out = s.take_outbox(limit);
            }
            std::vector<InstanceHead> heads;
            for (size_t at = 0; at < out.size(); at += sizeof(InstanceHead) + 8 * heads.back().symbols)
              memcpy(&heads.emplace_back(), out.data() + at, sizeof(InstanceHead));
            nb::object plans = adopt(PyTuple_New(Py_ssize_t(heads.size())));
            bool run = !heads.empty();
            for (size_t i = 0; i < heads.size(); ++i) {
              const bool same = i && heads[i].plan == heads[i - 1].plan;
              PyTuple_SET_ITEM(plans.ptr(), i, same ? Py_NewRef(PyTuple_GET_ITEM(plans.ptr(), i - 1))
                                                    : PyLong_FromUnsignedLong(heads[i].plan));
              run = run && heads[i].program == heads[0].program + i;
            }
            if (run) {
              nb::object type = nb::borrow(reinterpret_cast<PyObject*>(&PyRange_Type));
              return nb::make_tuple(bytes_of(out), type(heads[0].program, heads[0].program + heads.size()), plans);
            }
            nb::object programs = adopt(PyTuple_New(Py_ssize_t(heads.size())));
            for (size_t i = 0; i < heads.size(); ++i)
              PyTuple_SET_ITEM(programs.ptr(), i, PyLong_FromUnsignedLongLong(heads[i].program));
            return nb::make_tuple(bytes_of(out), programs, plans);
          },
          nb::arg("limit"),
          "The same, with the programs (a range if they are one run) and the plan of each: (bytes, programs, plans).")
      .def(
          "instances",
          [](Stream& s, const Ids& ids) {
            std::vector<uint8_t> out;
            {
              StreamLock l(s);
              out = s.instance_bytes(ids);
            }
            return bytes_of(out);
          },
          nb::arg("ids"), "The same bytes again, for another lease. Programs that are gone are left out.")
      .def(
          "encode_here",
          [](Stream& s, const Ids& ids) {
            StreamLock l(s);
            return s.encode_here(ids);
          },
          nb::arg("ids"), "Encodes and pushes those that the device does not have for certain. Returns how many.")
      .def(
          "deliver",
          [](Stream& s, uint64_t id, nb::bytes program) {
            StreamLock l(s);
            return s.deliver(id, span_of(program));
          },
          nb::arg("program_id"), nb::arg("program"),
          "A program from outside. False: not wanted any more, or no room now.")
      .def(
          "program_state",
          [](Stream& s, uint64_t id) -> const char* {
            StreamLock l(s);
            static const char* const names[] = {"absent", "encoding", "ready", "failed"};
            auto state = s.program_state(id);
            return state ? names[int(*state)] : "unknown";
          },
          nb::arg("program_id"))
      .def(
          "prefetch", &prefetch, nb::arg("plan"), nb::arg("symbols"),
          "Has programs made before launches want them, one for each row of symbols; returns their numbers.")
      .def(
          "adopt",
          [](Stream& s, uint32_t plan, const std::vector<int64_t>& symbols, nb::bytes program) {
            StreamLock l(s);
            return s.adopt(plan, symbols, span_of(program));
          },
          nb::arg("plan"), nb::arg("symbols"), nb::arg("program"),
          "The same with a program of `encoded`, verified here. Raises InvalidBytecodeError if it is none for these "
          "sizes.")
      .def(
          "encoded",
          [](Stream& s, uint32_t plan, const std::vector<int64_t>& symbols) {
            std::vector<uint8_t> out;
            {
              StreamLock l(s);
              out = s.encoded(plan, symbols);
            }
            return bytes_of(out);
          },
          nb::arg("plan"), nb::arg("symbols"),
          "The program of an instance that there is; empty: there is nothing to run.")
      .def(
          "plan_bytes",
          [](Stream& s, uint32_t plan) {
            StreamLock l(s);
            auto& bytes = s.plan(plan).bytes;
            l.unlock();
            return bytes_of(bytes);
          },
          nb::arg("plan"))
      .def(
          "set_outbox_pump",
          [](Stream& s, nb::object pump) {
            s.on_outbox = pump.is_none() ? nullptr : std::function<void(bool)>([pump](bool waits) { pump(waits); });
          },
          nb::arg("pump").none(),
          "pump(waits: bool) is called when the outbox has outbox_limit instances, or somebody is about to wait.")
      .def_prop_rw(
          "outbox_limit", [](Stream& s) { return s.outbox_limit; },
          [](Stream& s, size_t limit) { s.outbox_limit = limit; })
      .def(
          "fail_program",
          [](Stream& s, uint64_t id, const std::string& type, const std::string& message) {
            const char* known = failure_class(type);
            StreamLock l(s);
            s.fail_program(id, Error(known, message));
          },
          nb::arg("program_id"), nb::arg("type"), nb::arg("message"),
          "Its launches, and all that is computed from them, give this error.")
      .def(
          "fail_launch",
          [](Stream& s, uint64_t seq, const std::string& type, const std::string& message) {
            const char* known = failure_class(type);
            StreamLock l(s);
            s.fail_launch(seq, Error(known, message));
          },
          nb::arg("seq"), nb::arg("type"), nb::arg("message"),
          "Before device_lost(): the next device does not run it; it, and all that is computed from it, give this "
          "error.")
      .def("retire", &events_of, "Takes commits and events into account; returns the events since the last call.")
      .def(
          "device_lost",
          [](Stream& s, bool encode_all) {
            StreamLock l(s);
            s.device_lost(encode_all);
          },
          nb::arg("encode_all") = true,
          "The device is dead and no other is started yet: everything that is not committed is pushed again for the "
          "next. "
          "encode_all=False: but not the programs that workers were asked for and that no commit has shown to be "
          "there.")
      .def(
          "run_ahead",
          [](Stream& s, uint64_t until) {
            s.enter();
            InsideClient inside(s);
            run_ahead(s, until);
            pump(s, true);
          },
          nb::arg("until"),
          "Makes programs that are likely to be called next, until launch `until` is done: for who is about to wait "
          "for it.")
      .def(
          "wake_all",
          [](Stream& s) {
            StreamLock l(s);
            s.wake_all();
          },
          "Wakes everybody who waits, to look again.")
      .def(
          "fail",
          [](Stream& s, const std::string& type, const std::string& message) {
            const char* known = failure_class(type);
            StreamLock l(s);
            s.fail(Error(known, message));
          },
          nb::arg("type"), nb::arg("message"), "Whoever waits or calls from now on gets this error.")
      .def("arm", &Stream::arm, nb::arg("seq"), "Has the eventfd written when `seq` is done. True: it is done already.")
      .def(
          "counters",
          [](Stream& s) {
            const Control& control = s.control();
            nb::list workers;
            const uint64_t launched = s.launched();  // before `done`: never less
            for (int i = 0; i < s.options().workers; ++i)
              workers.append(
                  nb::make_tuple(control.worker(i, WORKER_RECEIVED).load(), control.worker(i, WORKER_ENCODED).load()));
            const uint64_t done = control.get(CONTROL_DONE);
            return nb::make_tuple(std::min(done, launched), launched, control.get(CONTROL_WAITING_PROGRAM),
                                  control.get(CONTROL_DEVICE_CPU) != NEVER, nb::tuple(workers));
          },
          "(done, launched, program that the device misses or 0, device is in its loop, ((received, encoded) of each "
          "worker)).")
      .def(
          "control",
          [](Stream& s, int word) {
            if (s.options().inline_mode || word < 0 || word >= CONTROL_BYTES / 8)
              throw nb::index_error("stream: control: no such word");
            return s.control().get(word);
          },
          nb::arg("word"), "One word of the control page.");
}

void bind_stream(nb::module_& m) {
  nb::class_<RunAhead>(m, "RunAhead",
                       "Learns from the order of calls which come next; for tests: the stream has its own.")
      .def(nb::init<>())
      .def(
          "observe", [](RunAhead& a, uint32_t plan, const std::vector<int64_t>& symbols) { a.observe(plan, symbols); },
          nb::arg("plan"), nb::arg("symbols"))
      .def("forget", &RunAhead::forget, nb::arg("plan"))
      .def(
          "guesses",
          [](const RunAhead& a, int depth, int branches, size_t limit) {
            nb::list out;
            for (auto& call : a.guesses(depth, branches, limit))
              out.append(nb::make_tuple(call.plan, nb::tuple(nb::cast(call.symbols))));
            return out;
          },
          nb::arg("depth"), nb::arg("branches"), nb::arg("limit"), "[(plan, symbols)], the nearest first.");
  m.def("set_deadline", [](uint64_t at) { return std::exchange(deadline_ns, at); }, nb::arg("at_ns"),
        "The request of this thread has to be done by then (now_ns); 0: whenever. Returns what was set before.");
  m.def("now_ns", &now_ns, "The clock of traces and counters.");
  nb::class_<Stream> c(m, "Stream");
  c.def(
       "__init__",
       [](Stream* s, bool inline_mode, uint64_t arena_bytes_max, uint64_t program_cache_bytes, uint64_t ring_bytes,
          uint64_t launches_max, int workers, double spin_us, double credit_timeout_s, const std::string& encode_mode,
          const std::string& target, int threads, int ahead_depth, int ahead_branches, size_t ahead_max,
          double loop_s, bool tune) {
         new (s) Stream({inline_mode, arena_bytes_max, program_cache_bytes, ring_bytes, launches_max, workers, spin_us,
                         credit_timeout_s, target, threads_checked(threads), ahead_depth, ahead_branches, ahead_max,
                         loop_s, tune});
         s->set_default_where(where_named(encode_mode));
       },
       nb::arg("inline") = true, nb::arg("arena_bytes_max") = 4ull << 30, nb::arg("program_cache_bytes") = 64ull << 20,
       nb::arg("ring_bytes") = 16ull << 20, nb::arg("launches_max") = 1024, nb::arg("workers") = 0,
       nb::arg("spin_us") = 200.0, nb::arg("credit_timeout_s") = 60.0, nb::arg("encode_mode") = "auto",
       nb::arg("target") = "", nb::arg("threads") = 1, nb::arg("ahead_depth") = 4, nb::arg("ahead_branches") = 4,
       nb::arg("ahead_max") = 64, nb::arg("loop_s") = 1e6, nb::arg("tune") = false)
      .def("asarray", &as_tensor, nb::arg("array"), nb::arg("dtype") = nb::none(),
           "Copies an array in, C order. `dtype`: code, for bfloat16 bits.")
      .def(
          "register",
          [](Stream& s, nb::bytes plan, nb::sequence captured) {
            std::vector<Tensor> tensors;
            for (nb::handle t : captured) tensors.push_back(tensor_of(t.ptr()));
            StreamLock lock(s);
            return s.register_plan(span_of(plan), std::move(tensors));
          },
          nb::arg("plan"), nb::arg("captured") = nb::list(),
          "Loads a plan; `captured` tensors are its last parameters. Returns its number.")
      .def(
          "forget",
          [](Stream& s, uint32_t plan) {
            std::vector<Tensor> captured;
            StreamLock lock(s);
            captured = s.forget_plan(plan);
          },
          nb::arg("plan"), "Gives up a plan, its programs and its hold on captured tensors; launches in flight go on.")
      .def(
          "call",
          [](Stream& s, uint32_t plan, nb::handle args) {
            Arguments arguments;
            collect(args, arguments);
            return call(s, plan, arguments);
          },
          nb::arg("plan"), nb::arg("args"), "Launches a plan; returns its outputs as a tuple, at once.")
      .def("read", &read_array, nb::arg("tensor"), nb::arg("timeout_s") = 60.0,
           "Waits; a read-only array over the tensor's memory, which it keeps.")
      .def("item", &item, nb::arg("tensor"), nb::arg("timeout_s") = 60.0, "Waits; the one element as a Python scalar.")
      .def("wait", &wait_for, nb::arg("seq"), nb::arg("timeout_s") = 60.0,
           "Waits until launch `seq` is done. False: the time is over.")
      .def_prop_ro("launched", &Stream::launched)
      .def_prop_ro("done", &Stream::done)
      .def_prop_ro("inline", [](Stream& s) { return s.options().inline_mode; })
      .def("stats", &stats)
      .def(
          "trace_records", [](Stream& s, size_t process) { return trace_bytes(s.trace_records(process)); },
          nb::arg("process") = 0, "TraceRecords, oldest first, of process 0 (this one), 1 (device), 2.. (workers).")
      .def(
          "programs",
          [](Stream& s, uint32_t plan) {
            std::vector<std::pair<uint64_t, std::vector<int64_t>>> out;
            {
              StreamLock l(s);
              out = s.programs(plan);
            }
            return nb::cast(out);
          },
          nb::arg("plan"), "(program number, symbols) of every program of a plan that is in the cache.")
      .def(
          "program_bytes",
          [](Stream& s, uint32_t plan, nb::handle args) {
            Arguments arguments;
            collect(args, arguments);
            std::vector<uint8_t> out;
            {
              StreamLock l(s);
              out = s.program_bytes(plan, arguments.span());
            }
            return bytes_of(out);
          },
          nb::arg("plan"), nb::arg("args"),
          "The program that call() runs for these arguments; empty if there is nothing to run.")
      .def(
          "planning_began", [](Stream& s) { return s.began(now_ns()); },
          "The client plans now: device idle time is ours, not the user's. True: from outside, which planning_ended() "
          "is told.")
      .def(
          "planning_ended",
          [](Stream& s, bool outermost, uint64_t begin_ns, uint32_t plan, uint64_t kernels) {
            const uint64_t end_ns = now_ns();
            if (outermost) s.ended(end_ns);
            s.add_trace(TraceKind::PLAN, begin_ns, end_ns, plan, kernels);
          },
          nb::arg("outermost"), nb::arg("begin_ns"), nb::arg("plan"), nb::arg("kernels"),
          "begin_ns: of time.monotonic_ns().")
      .def(
          "release_sources",
          [](Stream& s) {
            StreamLock l(s);
            return s.release_sources();
          },
          "Gives up the memory of matrices that are packed, now and later; returns the bytes given up now.")
      .def("close",
           [](Stream& s) {
             std::unique_lock lock(s.lock());
             s.close();
           })
      .def(
          "fail_allocation",
          [](Stream& s, uint64_t after) {
            StreamLock l(s);
            s.arena().fail_after = after;
          },
          nb::arg("after"), "Fault injection: the allocation after `after` others fails.");
  bind_stream_policy(c);

  nb::class_<Dispatcher>(
      m, "Dispatcher", "From the types of a call's arguments to a plan, and through it to arrays, in one native call.")
      .def(nb::init<nb::object, nb::handle>(), nb::arg("stream"), nb::arg("array_type"))
      .def("add", &Dispatcher::add, nb::arg("signature"), nb::arg("plan"), nb::arg("single"), nb::arg("sizes") = nb::none(),
           "signature: (dtype code, rank, bit mask of dims that are 1) per argument. single: one array comes back, "
           "else a tuple. sizes: those of all arguments, where the plan is for no others.")
      .def("__call__", &Dispatcher::call_tuple, nb::arg("args"),
           "An array or a tuple of them. None: no plan, another type, or not computed yet.");
  nb::class_<Dispatched>(
      m, "Dispatched", nb::type_slots(dispatched_slots),
      "A function whose calls go through dispatchers, one a session, and else to its method _call(args, kwargs).")
      .def(nb::init<>())
      .def("_dispatcher", &Dispatched::dispatcher, nb::arg("session"), nb::arg("stream"), nb::arg("array_type"),
           "That of a session, made on first use.")
      .def("_forget_dispatcher", &Dispatched::forget, nb::arg("session"));
}
