// The client's side of the machine: all state of plans, operator instances, launches and tensors.
//
// A stream is a sequence of launches, numbered from 1, that run in order. Inline, a launch runs inside call(). With
// processes, call() pushes it into a ring and the device commits it by the word `done` of the control page; program and
// launch are all that travels. The same object, plans and programs serve both, so the bytes are the same.
//
// Rules.
// - One lock. Whoever holds it never waits for anything: no room in a ring leaves the launch in the log, and flush()
//   pushes it later. Waiting (credit, results) happens outside. In Python's terms: nobody waits for the GIL with the lock.
// - The log holds every launch that is not committed, as the bytes that were pushed. A device that dies is followed by
//   another that gets the same bytes in the same order (device_lost()), and nothing is lost: outputs never overwrite
//   inputs, and the host never writes where an uncommitted launch reads or writes.
// - A program is known by a number that stands for (plan, symbols). Who encodes it is decided when it is first needed
//   (Where); encoding is pure, so anybody may do it again at any time, and a program may arrive twice.
// - Memory that grows (`grown`): an output that continues a parameter lies in the parameter's memory, behind its bytes, if
//   there is room and nobody has continued it before; else in new memory with room. A launch writes only behind what was
//   there, so that running it again gives the same bytes; the records of both (Buffer) are apart.
// - A launch that traps poisons its outputs and all that is computed from them: reading any of them throws the error of
//   the origin. Failure is settled when a launch retires, in stream order.
#pragma once
#include <deque>
#include <functional>
#include <memory_resource>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include "ahead.h"
#include "blocks.h"
#include "control.h"
#include "id_map.h"
#include "machine.h"
#include "plan.h"
#include "ring.h"
#include "tensor.h"
#include "trace.h"

namespace dvm {

enum class Where : uint8_t { CALLER, WORKERS, AUTO };
enum class ProgramState : uint8_t { ABSENT, ENCODING, READY, FAILED };

struct StreamOptions {
  bool inline_mode = true;
  uint64_t arena_bytes_max = 4ull << 30;
  uint64_t program_cache_bytes = 64ull << 20;
  uint64_t ring_bytes = 16ull << 20;
  uint64_t launches_max = 1024;  // uncommitted
  int workers = 0;
  double spin_us = 200;
  double credit_timeout_s = 60;
  std::string target;  // "": the best
  int threads = 1;     // that run kernels, inline
  int ahead_depth = 4;     // calls ahead of the last one whose programs are made while the caller waits; 0: none
  int ahead_branches = 4;  // of those that may come next
  size_t ahead_max = 64;   // programs that were guessed and not called yet
  double loop_s = 1e6;  // that loops of a launch may take, inline
  bool tune = false;    // inline: programs that run often try other choices (tuning.h)
};

struct PlanState;

struct Instance {  // an operator instance: a plan for one set of dimensions, and where its program is
  uint64_t id = 0;  // 0: spare; its vectors keep their room for the next one
  PlanState* plan = nullptr;
  uint64_t hash = 0;
  std::vector<int64_t> symbols;
  std::vector<int64_t> dims;  // that every parameter must have, one after another
  struct Output {
    uint8_t dtype, rank;
    uint16_t buffer;
    std::array<int64_t, MAX_RANK> dims;
    uint64_t bytes;
    bool last;  // no other output is in the same buffer
  };
  std::vector<Output> outputs;
  std::vector<uint64_t> buffer_bytes;  // of every plan buffer
  std::vector<PackKey> packs;
  uint64_t workspace_bytes = 0;
  bool empty = false;  // nothing to run
  bool guessed = false;  // by run_ahead(), and not called yet
  bool ahead = false;    // asked for before any launch, and no commit has shown that it came
  std::unique_ptr<VerifiedProgram> program;  // inline
  ProgramState state = ProgramState::ABSENT;
  bool failure_pushed = false;  // the device knows that this program fails
  uint32_t shipped = 0, pushed = 0;  // how often: to workers, by us
  Failure failure;
  uint64_t last_seq = 0, uses = 0, program_bytes = 0, bytes = 0;
  Instance *next = nullptr, *newer = nullptr, *older = nullptr;  // in its bucket, in the order of use
};

struct PlanState {
  uint32_t number = 0;
  std::unique_ptr<Plan> plan;   // none: number 0, the pack program; symbols = PackKey
  std::vector<uint8_t> bytes;
  std::vector<Tensor> captured;  // the last parameters
  std::vector<uint16_t> arguments;  // plan buffers that are arguments of the program, in order
  std::vector<Instance*> buckets;
  size_t instances = 0;
  Where where = Where::AUTO;
  bool forgotten = false;
};

struct Argument {
  Buffer* buffer;
  uint64_t offset, bytes;  // offset from the start of the arena
  bool writable;
};

struct StreamCounters {
  uint64_t calls = 0, cached_calls = 0, encoded = 0, encode_ns = 0, load_ns = 0, packs = 0, evicted = 0, refused = 0,
           traps = 0, devices_lost = 0, appended_in_place = 0, busy_ns = 0, program_cache_bytes = 0, instances = 0,
           host_calls = 0, host_ns = 0, guessed = 0, guessed_right = 0, guessed_wrong = 0;
};

inline uint64_t hash_of(std::span<const int64_t> values) {
  uint64_t h = 0x9E3779B97F4A7C15ull * (values.size() + 1);
  for (int64_t v : values) h = (h ^ uint64_t(v)) * 0xD6E8FEB86659FD93ull, h ^= h >> 32;
  return h;
}

// Of a few elements, without the call that std::equal is.
template <class T> bool are_equal(const T* a, const T* b, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (a[i] != b[i]) return false;
  return true;
}

class Stream {
 public:
  explicit Stream(const StreamOptions& options);
  ~Stream();
  Stream(const Stream&) = delete;

  // ---- what works without the lock ----
  void enter() const;  // throws ForkedClientError, ClosedError, or what fail() was given
  uint64_t done() const { return inline_mode_ ? done_.load(std::memory_order_acquire) : control_.get(CONTROL_DONE); }
  uint64_t launched() const { return launched_.load(std::memory_order_acquire); }
  bool has_credit() const { return launched() - done() < options_.launches_max; }
  bool wait(uint64_t seq, uint64_t timeout_ns);  // false: the time is over
  // Until there is credit for several launches: who waits for one at a time is woken for each of them.
  bool wait_credit(uint64_t timeout_ns) {
    return wait(launched() - std::min(launched(), options_.launches_max - 1 - options_.launches_max / 4), timeout_ns);
  }
  bool settled(const Tensor& tensor) const { return tensor.seq() <= retired_.load(std::memory_order_acquire); }
  void check_value(const Tensor& tensor) const;  // settled; throws what poisoned it
  bool arm(uint64_t seq) const { return inline_mode_ || control_.arm(CONTROL_WANT_EVENTFD, seq); }
  void rouse() const {  // who is about to launch something does not wait for the device to wake up
    if (!inline_mode_) control_.rouse_device();
  }
  bool began(uint64_t now) const;  // our code is entered; true: from outside, so ended() must follow
  void ended(uint64_t now) const;
  // Before a launch: a thread that works for long between its launches leaves the device's CPU for another one where it may run.
  // A device that wakes up there keeps it from going on until its kernels are done, and nothing moves it away as long as both
  // take turns. Who only waits for the device is well where it is, as it is woken soonest there, unless it waits for some
  // microseconds: from another CPU, where it need not sleep for that, these are half as many.
  void step_aside() const;
  std::mutex& lock() { return lock_; }

  // ---- under the lock ----
  // Memory that the host may write, shaped; nullopt: only after the launches pushed so far (wait for launched(), retry).
  std::optional<Tensor> host_tensor(uint8_t dtype, std::span<const int64_t> shape);
  uint32_t register_plan(std::span<const uint8_t> bytes, std::vector<Tensor> captured);
  std::vector<Tensor> forget_plan(uint32_t plan);  // its launches go on; its programs are given up; what it had captured
  // Checks the arguments, finds or encodes the program, packs, allocates. Then execute() once, without another prepare()
  // between; it may run for long (long_running()). outputs() are valid after execute().
  void prepare(uint32_t plan, std::span<const Tensor* const> args);
  void set_deadline(uint64_t at_ns) { deadline_ns_ = at_ns; }  // of the launches that come; 0: none
  bool long_running() const;
  // Its first and last look at the clock (now_ns), as it encoded, packed or ran; 0: it did none of that here.
  struct Looks { uint64_t first = 0, last = 0; };
  Looks execute();
  std::vector<Tensor>& outputs() { return outputs_; }
  void retire();  // takes events and commits into account
  void flush();   // pushes what found no room before
  // Gives up the memory of matrices that are packed for the matrix unit, now and as soon as they are from now on; returns
  // the bytes. Who needs one of them as it was gets it unpacked again (restore).
  uint64_t release_sources();
  void restore(Buffer& buffer);  // its memory is there again, once the launch that writes it is done
  void fail(Error error);  // everybody who waits or comes gets this
  void close();

  // ---- under the lock: for the policy ----
  void set_where(uint32_t plan, Where where) { plan_state(plan).where = where; }
  void set_default_where(Where where) { default_where_ = where; }
  void set_encode_work_ns(uint64_t ns) { encode_work_ns_ = ns; }
  size_t outbox_count() const { return outbox_.size(); }
  bool outbox_is_late() const;  // the device waits for what lies in it, and for longer than sending it takes
  std::vector<uint8_t> take_outbox(size_t limit);                  // InstanceHead + symbols, each once
  std::vector<uint8_t> instance_bytes(std::span<const uint64_t> ids);  // the same again; unknown ones are left out
  size_t encode_here(std::span<const uint64_t> ids);               // how many were pushed
  bool deliver(uint64_t id, std::span<const uint8_t> program);     // false: no room now, or not wanted any more
  std::optional<ProgramState> program_state(uint64_t id) const;
  uint64_t prefetch(uint32_t plan, std::span<const int64_t> symbols);  // its program, before any launch wants it
  void run_ahead(uint64_t until);  // makes programs that are likely to be called next, until launch `until` is done
  // The same with a program that was encoded before. Throws InvalidBytecodeError if it is none, or not one for these sizes.
  uint64_t adopt(uint32_t plan, std::span<const int64_t> symbols, std::span<const uint8_t> program);
  std::vector<uint8_t> encoded(uint32_t plan, std::span<const int64_t> symbols);  // what adopt() takes
  void device_lost(bool encode_all = true);  // false: programs that workers have in hand stay with them
  void wake_all();
  void fail_program(uint64_t id, Error error);  // its launches, committed or not yet, give this
  void fail_launch(uint64_t seq, Error error);  // it is not run by the device that comes after device_lost(); it gives this
  // Somebody should take the outbox: it has grown to `outbox_limit`, or (true) a thread is about to wait. Called without the
  // lock, on the thread that called or waits.
  std::function<void(bool)> on_outbox;
  size_t outbox_limit = 1;
  std::vector<Event> take_events() { return std::exchange(events_, {}); }

  // ---- under the lock: for those who look ----
  const StreamCounters& counters() const { return counters_; }
  Machine::Tuned tuned() const {
    if (inline_mode_) return machine_.tuned();
    return {control_.get(CONTROL_CHOICES_TRIED), control_.get(CONTROL_CHOICES_KEPT), control_.get(CONTROL_CHOICES_GAINED_NS)};
  }
  uint64_t sections_split() const { return inline_mode_ ? machine_.sections_split() : control_.get(CONTROL_SECTIONS_SPLIT); }
  MemoryReport memory() const { return arena_->report(); }
  const PlanState& plan(uint32_t number) { return plan_state(number); }
  size_t plan_count() const { return plans_.size() - 1; }
  size_t output_count(uint32_t number) { return plan_state(number).plan->outputs().size(); }
  std::vector<std::pair<uint64_t, std::vector<int64_t>>> programs(uint32_t plan);
  std::vector<uint8_t> program_bytes(uint32_t plan, std::span<const Tensor* const> args);
  std::vector<TraceRecord> trace_records(size_t process) const;  // 0 this one, 1 device, 2.. workers
  void add_trace(TraceKind kind, uint64_t begin_ns, uint64_t end_ns, uint64_t id, uint64_t extra) {
    trace_.add(kind, begin_ns, end_ns, id, extra);
  }
  Arena& arena() { return *arena_; }
  const Control& control() const { return control_; }
  const StreamOptions& options() const { return options_; }
  struct Descriptors {
    int control = -1, arena = -1, eventfd = -1;
    std::vector<int> rings, traces;  // rings: client, workers; traces: device, workers
  };
  const Descriptors& descriptors() const { return descriptors_; }

 private:
  struct Launched {  // one entry of the log
    Instance* instance = nullptr;
    std::vector<uint8_t> record;
    std::vector<Buffer*> reads, writes;
    Failure failure, poison;  // poison: it is not to be run any more
  };

  PlanState& plan_state(uint32_t number);
  void prepare_parts(PlanState& state, std::span<const Tensor* const> args);
  Instance& instance_for(PlanState& plan, std::span<const Tensor* const> parameters);
  Instance* find(PlanState& plan, std::span<const int64_t> symbols, uint64_t hash);
  Instance& make_instance(PlanState& plan, std::span<const int64_t> symbols, uint64_t hash);
  void make_spares(const Plan* plan);
  void fetch(const PlanState& state) const;
  void fetch_spares() const;
  void describe(Instance& instance);
  bool evaluate(const PlanState& plan, std::span<const int64_t> symbols);
  Instance* instance_of(uint64_t id) const;
  void touch(Instance& instance);
  void evict();
  void forget(Instance* instance);
  void release_plan(PlanState& plan);

  void check_encoded(Instance& instance);
  bool is_for(const Instance& instance, const VerifiedProgram& program) const;
  std::span<const uint8_t> encode(Instance& instance, Failure& failure, bool evaluated = false);
  bool provide(Instance& instance, bool here);
  bool push_program(Instance& instance);
  void wake_device();
  bool push_record(uint32_t flags, uint64_t id, std::span<const uint8_t> program);
  size_t program_bytes_max() const { return ring_.message_bytes_max() - sizeof(RingHead); }
  void refuse(const Event& event);
  void owe(Instance& instance);
  Where where(const PlanState& plan) const { return plan.where == Where::AUTO ? default_where_ : plan.where; }

  void guess(const RunAhead::Call& call);
  void drop_guesses(size_t keep);

  Buffer* packed(std::span<const PlanPack> packs, std::span<const PackKey> keys);
  void pack(const Tensor& source, const PackKey& key, Buffer& form, uint64_t at);
  Instance& packing(const PackKey& key, bool back);
  bool may_give_up(const Buffer& buffer) const;
  bool wanted_as_it_is(const PlanState& state, const Buffer* buffer) const;
  Buffer* output_buffer(uint64_t bytes, Use use);
  Buffer* grown(const Tensor& from, uint64_t bytes);
  Error out_of_memory(uint64_t bytes);
  void reserve_workspace(uint64_t bytes);
  void submit(Instance& instance, std::span<const Argument> arguments);
  void run(Instance& instance, std::span<const Argument> arguments, uint64_t seq);
  void log(Instance& instance, std::span<const Argument> arguments, uint64_t seq);
  Launched& entry(uint64_t seq) { return log_[seq % LOG_CAPACITY]; }

  StreamOptions options_;
  bool inline_mode_;
  uint64_t fork_generation_;
  std::mutex lock_;
  Arena* arena_;
  Machine machine_;
  Control control_;
  Ring ring_;
  Trace trace_;
  Descriptors descriptors_;
  std::vector<Trace> traces_;

  std::atomic<uint64_t> launched_{0}, done_{0}, retired_{0};
  std::atomic<uint64_t> pushed_{0};
  std::atomic<uint64_t> expected_wait_ns_{0};  // as long as the waits before, but a short one counts at once
  std::vector<Launched> log_;
  std::atomic<bool> stopped_{false}, closed_{false};
  Failure stop_;  // set once, before stopped_

  std::vector<std::unique_ptr<PlanState>> plans_;
  Blocks programs_;
  std::deque<Instance> instance_store_;
  std::vector<Instance*> spare_instances_;
  IdMap<Instance*> instances_;
  Instance *newest_ = nullptr, *oldest_ = nullptr;
  uint64_t next_id_ = 1;
  std::deque<uint64_t> outbox_;
  uint64_t outbox_since_ns_ = 0;
  std::vector<RingHead> drops_;
  std::vector<uint64_t> owed_;
  RunAhead ahead_;
  std::deque<uint64_t> guesses_;  // programs, in the order in which they were guessed
  std::vector<Event> events_;
  Where default_where_ = Where::CALLER;
  uint64_t encode_work_ns_ = 0;
  StreamCounters counters_;

  BufferRef workspace_;
  bool release_sources_ = false;
  std::vector<uint8_t> scratch_;
  std::span<const uint8_t> given_;  // the program of the instance that is being made; empty: it is encoded
  std::vector<std::pair<Buffer*, uint64_t>> extents_;  // what this call has grown, and how far it reached before
  uint64_t deadline_ns_ = 0;
  bool poison_pushed_ = false;  // the device knows POISON
  std::vector<int64_t> values_;
  std::vector<uint64_t> slots_;
  uint64_t encoded_at_ns_ = 0;
  Looks looks_;  // of this call
  uint64_t look() {
    looks_.last = now_ns();
    if (!looks_.first) looks_.first = looks_.last;
    return looks_.last;
  }
  std::vector<Binding> bindings_;
  std::vector<Argument> arguments_;
  std::vector<BufferRef> made_;
  std::vector<Tensor> outputs_;
  std::vector<const Tensor*> parameters_;
  std::vector<PackPart> parts_;
  Instance* prepared_ = nullptr;
};

}  // namespace dvm
