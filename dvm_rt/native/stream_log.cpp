// What becomes of a launch: run here, or logged, pushed, retired, pushed again to another device; and what the policy may do.
#include <algorithm>
#include <cstring>
#include "stream.h"

namespace dvm {

constexpr size_t EVENTS_KEPT = 1 << 16;
constexpr uint64_t SENDING_NS = 200'000;  // about what one message to a worker costs its sender and its receiver
constexpr uint64_t POISON = ~0ull;  // a program that there never is: what launches it traps

static Failure trapped(uint64_t seq, const Instance& instance, const Trap& trap) {
  std::string what = TrapCode_NAMES[size_t(trap.code) < std::size(TrapCode_NAMES) ? size_t(trap.code) : 0];
  std::string allowed = std::to_string(trap.allowed);
  if (trap.code == TrapCode::GATHER_RANGE) {
    what = "gather index out of range";
    allowed = say(-trap.allowed, " to ", trap.allowed - 1);
  }
  if (trap.code == TrapCode::HOST_RANGE || trap.code == TrapCode::HOST_FAILED) {
    const std::string function = trap.word < std::size(HostFunction_NAMES) ? HostFunction_NAMES[trap.word] : "unknown";
    const bool range = trap.code == TrapCode::HOST_RANGE;
    what = "host function " + function + (range ? ": index out of range" : " failed");
    allowed = range ? say(-trap.allowed, " to ", trap.allowed - 1)
                    : "inputs and attributes that fit each other, and memory for them";
  }
  if (trap.code == TrapCode::LOOP_LIMIT) what = "a loop that would go on", allowed = say(trap.allowed, " iterations");
  const bool late = trap.code == TrapCode::STOPPED;
  if (late) what = "a loop that goes on", allowed = say(trap.allowed, " ms");
  return failure_of({late ? "DeviceTimeoutError" : "DeviceTrap",
                     say("device: launch ", seq, " of plan ", instance.plan->number, ", section ", trap.section,
                         ", word ", trap.word, ": ", what, ", got ", trap.got, ", allowed ", allowed),
                     {{"code", int64_t(trap.code)}, {"got", trap.got}, {"allowed", trap.allowed}}});
}

void Stream::run(Instance& instance, std::span<const Argument> arguments, uint64_t seq) {
  const uint64_t begin = look();
  bindings_.resize(arguments.size());
  Binding* binding = bindings_.data();
  Failure failure;
  for (auto& a : arguments) {
    *binding++ = {arena_->data() + a.offset, a.bytes, a.writable};
    if (!a.writable && a.buffer && a.buffer->failure && !failure) failure = a.buffer->failure;
  }
  Trap trap = machine_.run(*instance.program, bindings_, workspace_ ? workspace_->data() : nullptr, deadline_ns_);
  if (trap.code != TrapCode::NONE) {
    ++counters_.traps;
    if (!failure) failure = trapped(seq, instance, trap);
  }
  if (failure)
    for (auto& a : arguments)
      if (a.writable) a.buffer->failure = failure;
  const uint64_t end = look();
  counters_.busy_ns += end - begin;
  for (const HostSpan& call : machine_.host_calls()) {
    ++counters_.host_calls;
    counters_.host_ns += call.end_ns - call.begin_ns;
    trace_.add(TraceKind::HOST, call.begin_ns, call.end_ns, seq, call.function);
  }
  trace_.add(TraceKind::LAUNCH, begin, end, seq, instance.id);
  retired_.store(seq, std::memory_order_release);
  done_.store(seq, std::memory_order_release);
}

void Stream::log(Instance& instance, std::span<const Argument> arguments, uint64_t seq) {
  Launched& e = entry(seq);
  e.instance = &instance;
  e.failure.reset(), e.poison.reset();
  e.reads.clear(), e.writes.clear();
  e.record.resize(sizeof(LaunchHead) + arguments.size() * sizeof(LaunchArg));
  LaunchHead head{{uint32_t(RingKind::LAUNCH), uint32_t(arguments.size()), instance.id}, seq,
                  workspace_ ? workspace_->offset : 0, workspace_ ? workspace_->bytes : 0, deadline_ns_};
  memcpy(e.record.data(), &head, sizeof head);
  auto* out = reinterpret_cast<LaunchArg*>(e.record.data() + sizeof head);
  for (auto& a : arguments) {
    *out++ = {a.offset, a.bytes, a.writable};
    if (!a.buffer) continue;
    ++a.buffer->launches;
    (a.writable ? e.writes : e.reads).push_back(a.buffer);
  }
}

void Stream::wake_device() {
  ring_.publish();
  control_.wake_device();
}

void Stream::flush() {
  if (inline_mode_ || closed_) return;
  auto push = [&](const void* record, size_t bytes) { return ring_.append({static_cast<const uint8_t*>(record), bytes}); };
  while (!drops_.empty() && push(&drops_.back(), sizeof(RingHead))) drops_.pop_back();
  while (!owed_.empty()) {
    Instance* instance = instance_of(owed_.back());
    if (instance && !provide(*instance, true)) break;
    owed_.pop_back();
  }
  for (uint64_t launched = launched_; pushed_ < launched; ++pushed_) {
    Launched& e = entry(pushed_ + 1);
    if (e.poison && !poison_pushed_ && !(poison_pushed_ = push_record(RING_FAILS, POISON, {}))) break;
    if (!provide(*e.instance, false) || !push(e.record.data(), e.record.size())) break;
  }
  wake_device();
}

void Stream::retire() {
  if (inline_mode_ || closed_) return;
  uint64_t done = control_.get(CONTROL_DONE);  // before the events: a trap is posted before its commit
  for (Event event; control_.take(event);) {
    if (events_.size() < EVENTS_KEPT) events_.push_back(event);
    if (EventKind(event.kind) == EventKind::PROGRAM_REFUSED) refuse(event);
    else if (event.seq > retired_ && event.seq <= launched_) {
      Launched& e = entry(event.seq);
      ++counters_.traps;
      e.failure = e.poison ? e.poison
                  : e.instance->failure
                      ? e.instance->failure
                      : trapped(event.seq, *e.instance,
                                {TrapCode(event.code), uint16_t(event.section), event.word, event.got, event.allowed});
    }
  }
  for (uint64_t seq = retired_ + 1; seq <= done; ++seq) {
    Launched& e = entry(seq);
    Failure failure = std::move(e.failure);
    for (Buffer* b : e.reads)
      if (b->failure) {
        failure = b->failure;  // the origin, not what it caused here
        break;
      }
    for (Buffer* b : e.writes) {
      if (failure) b->failure = failure;
      arena_->forget_launch(b);
    }
    for (Buffer* b : e.reads) arena_->forget_launch(b);
    e.reads.clear(), e.writes.clear();
    if (e.instance->state == ProgramState::ENCODING) e.instance->state = ProgramState::READY;
    e.instance->ahead = false;
    retired_.store(seq, std::memory_order_release);
  }
}

// ---- for the policy -----------------------------------------------------------------------------------------------

static void append_instance(std::vector<uint8_t>& out, const Instance& instance) {
  InstanceHead head{instance.id, instance.plan->number, uint32_t(instance.symbols.size())};
  auto* at = reinterpret_cast<const uint8_t*>(&head);
  out.insert(out.end(), at, at + sizeof head);
  at = reinterpret_cast<const uint8_t*>(instance.symbols.data());
  out.insert(out.end(), at, at + 8 * instance.symbols.size());
}

// Numbers of programs rise: what the device waits for lies behind the oldest of the outbox, or has left.
bool Stream::outbox_is_late() const {
  const uint64_t missing = inline_mode_ ? 0 : control_.get(CONTROL_WAITING_PROGRAM);
  return missing && !outbox_.empty() && missing >= outbox_.front() && now_ns() - outbox_since_ns_ > SENDING_NS;
}

std::vector<uint8_t> Stream::take_outbox(size_t limit) {
  std::vector<uint8_t> out;
  while (!outbox_.empty() && limit) {
    Instance* instance = instance_of(outbox_.front());
    outbox_.pop_front();
    if (!instance || instance->state != ProgramState::ENCODING) continue;
    append_instance(out, *instance);
    ++instance->shipped;
    --limit;
  }
  return out;
}

std::vector<uint8_t> Stream::instance_bytes(std::span<const uint64_t> ids) {
  std::vector<uint8_t> out;
  for (uint64_t id : ids)
    if (Instance* instance = instance_of(id)) append_instance(out, *instance), ++instance->shipped;
  return out;
}

size_t Stream::encode_here(std::span<const uint64_t> ids) {
  size_t count = 0;
  for (uint64_t id : ids) {
    Instance* instance = instance_of(id);
    if (!instance || instance->state == ProgramState::READY) continue;
    if (!provide(*instance, true)) break;
    ++count;
  }
  wake_device();
  return count;
}

bool Stream::deliver(uint64_t id, std::span<const uint8_t> program) {
  Instance* instance = instance_of(id);
  if (!instance || instance->state != ProgramState::ENCODING) return false;
  if (program.size() > program_bytes_max() || !push_record(RING_FOREIGN, id, program)) return false;
  wake_device();
  return true;
}

void Stream::fail_program(uint64_t id, Error error) {
  Instance* found = instance_of(id);
  if (!found || found->state == ProgramState::FAILED) return;
  Instance& instance = *found;
  instance.failure = failure_of(std::move(error));
  instance.state = ProgramState::FAILED;
  owe(instance);
  wake_device();
}

void Stream::fail_launch(uint64_t seq, Error error) {
  if (inline_mode_ || closed_ || seq <= retired_ || seq > launched_) return;
  Launched& e = entry(seq);
  e.poison = failure_of(std::move(error));
  memcpy(e.record.data() + offsetof(RingHead, program), &POISON, sizeof POISON);
}

std::optional<ProgramState> Stream::program_state(uint64_t id) const {
  Instance* instance = instance_of(id);
  return instance ? std::optional(instance->state) : std::nullopt;
}

// The device is dead and its successor is not there yet: nobody else is at the client's ring or at the device's words.
void Stream::device_lost(bool encode_all) {
  if (inline_mode_ || closed_) return;
  uint64_t begin = now_ns();
  retire();
  ring_.reset();
  std::erase_if(drops_, [](const RingHead& drop) { return !(drop.count & RING_MAY_ARRIVE); });
  owed_.clear();
  ++counters_.devices_lost;
  pushed_ = retired_.load();
  poison_pushed_ = false;
  for (int word : {int(CONTROL_ASLEEP), int(CONTROL_WAITING_PROGRAM)}) control_.set(word, 0);
  control_.set(CONTROL_DEVICE_CPU, NEVER);
  for (Instance* instance = oldest_; instance; instance = instance->newer) {
    // A program that was made ahead of its launch counts as done for those who ship: nobody would send it again.
    const bool unproven = instance->state == ProgramState::ENCODING && instance->ahead && instance->shipped;
    if (unproven) std::erase(outbox_, instance->id);
    if (instance->state == ProgramState::READY || unproven) instance->state = ProgramState::ABSENT;
    instance->failure_pushed = false;
  }
  for (uint64_t seq = pushed_ + 1; seq <= launched_; ++seq) {
    Instance& instance = *entry(seq).instance;
    if (!provide(instance, encode_all || instance.state != ProgramState::ENCODING)) break;
  }
  flush();
  wake_all();  // a wake-up may have died with the device
  trace_.add(TraceKind::RECOVERY, begin, now_ns(), retired_, launched_ - retired_);
}

}  // namespace dvm
