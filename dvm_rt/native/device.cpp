#include "device.h"
#include <sys/mman.h>
#include <algorithm>
#include <cstring>
#include "errors.h"
#include "near_code.h"

namespace dvm {

static RingHead head_of(std::span<const uint8_t> message) {
  RingHead head{uint32_t(RingKind::DROP), 0, 0};
  if (message.size() >= sizeof head) memcpy(&head, message.data(), sizeof head);
  return head;
}
static bool is_program(const RingHead& head) { return RingKind(head.kind) == RingKind::PROGRAM; }

constexpr uint64_t SPIN_MORE = 4;  // so many times as long where it has been idle for less than that lately
constexpr uint64_t COMING_NS = 2'000'000;  // it stays awake for a client that is busy in our code, copying tensors for example
constexpr size_t DROPPED_MAX = 1 << 16;  // beyond: forget; a program nobody drops again only wastes its bytes

Device::Device(const DeviceOptions& options)
    : options_(options), control_(options.control), machine_(options.target.empty() ? best_target() : [&]() -> const Target& {
        const Target* found = find_target(options.target.c_str());
        if (!found) throw Error("EncodeError", say("device: target: unknown here, got ", options.target,
            ", allowed those of targets()"));
        return *found;
      }(), options.threads) {
  machine_.limit_loops(uint64_t(options.loop_s * 1e9));
  if (options.tune) machine_.tune();
  for (int fd : options.rings) rings_.emplace_back(fd);
  if (options.trace >= 0) trace_ = Trace(options.trace);
  queue_.resize(LOG_CAPACITY);
  bindings_.reserve(MAX_ARGS);
  queued_seq_ = control_.get(CONTROL_DONE);
  control_.set(CONTROL_WAITING_PROGRAM, 0);
  if (!options.beside_cpus.empty())
    beside_ = std::make_unique<EarlyVerifier>(control_, rings_, trace_, options.beside_cpus, options.beside_gate);
}

// ---- what arrives -------------------------------------------------------------------------------------------------

bool Device::take_one(Taking taking) {
  if (!unposted_.empty() && !post_refused()) return false;  // the client is slow to hear: let it catch up
  for (size_t i = 0; i < (taking == Taking::NO_WORK ? 1 : rings_.size()); ++i) {
    if (i == 0 && last_ - first_ == queue_.size()) continue;
    auto message = rings_[i].peek();
    if (!message) continue;
    const RingHead head = head_of(*message);
    if (taking == Taking::NO_WORK && is_program(head) && !(beside_ && beside_->has(i, rings_[i].position()))) continue;
    take(i, *message);
    rings_[i].consume();
    return true;
  }
  return false;
}

// What there is, up to programs that a launch which can run would have to wait for.
bool Device::take_all() {
  bool any = false, ready = head_can_run();
  while (take_one(ready ? Taking::NO_WORK : Taking::ALL)) any = true, ready = ready || head_can_run();
  return any;
}

bool Device::head_can_run() const {
  if (!head_waits()) return false;
  LaunchHead launch;
  memcpy(&launch, queue_[first_ % queue_.size()].data(), sizeof launch);
  return programs_.contains(launch.head.program);
}

bool Device::take(size_t ring, std::span<const uint8_t> message) {
  RingHead head;
  if (message.size() < sizeof head) return false;
  memcpy(&head, message.data(), sizeof head);
  if (RingKind(head.kind) == RingKind::PROGRAM) take_program(ring, head, message.subspan(sizeof head));
  else if (ring == 0 && RingKind(head.kind) == RingKind::LAUNCH) take_launch(message);
  else if (ring == 0 && RingKind(head.kind) == RingKind::DROP) drop(head);
  return true;
}

void Device::take_program(size_t ring, const RingHead& head, std::span<const uint8_t> bytes) {
  if (ring == 0 && (head.count & RING_FAILS)) {
    program_bytes_ -= std::exchange(programs_[head.program], {}).bytes;
    return;
  }
  if (programs_.contains(head.program) || dropped_.erase(head.program)) return;  // the same bytes again
  VerifyError error;
  error.code = VerifyCode::LIMIT;
  Entry entry{nullptr, bytes.size()};
  if (program_bytes_ + bytes.size() <= options_.program_bytes_max) entry.program = verified(ring, head, bytes, error);
  if (!entry.program) return refuse(ring, head, error);
  program_bytes_ += bytes.size();
  programs_[head.program] = std::move(entry);
}

std::unique_ptr<VerifiedProgram> Device::verified(size_t ring, const RingHead& head, std::span<const uint8_t> bytes,
                                                  VerifyError& error) {
  if (auto verdict = beside_ ? beside_->take(ring, rings_[ring].position()) : std::nullopt) {
    error = verdict->error;
    return std::move(verdict->program);
  }
  const uint64_t begin = end_ns_ ? end_ns_ : now_ns();
  feed(begin);  // until now it was idle; from here on it works, although it runs nothing
  auto program = VerifiedProgram::load(bytes.data(), bytes.size(), error, &memory_);
  end_ns_ = now_ns();
  trace_.add(TraceKind::LOAD, begin, end_ns_, head.program, uint64_t(error.code));
  return program;
}

void Device::refuse(size_t ring, const RingHead& head, const VerifyError& error) {
  ++refused_;
  bool own = ring == 0 && !(head.count & RING_FOREIGN);
  unposted_.push_back({uint32_t(EventKind::PROGRAM_REFUSED), uint32_t(error.code), head.program, 0, error.section, error.word,
                       own ? 0 : int64_t(ring) + 1, 0});
  post_refused();
}

bool Device::post_refused() {
  while (!unposted_.empty() && control_.event_room(LOG_CAPACITY)) {
    control_.post(unposted_.back(), options_.eventfd);
    unposted_.pop_back();
  }
  return unposted_.empty();
}

void Device::take_launch(std::span<const uint8_t> message) {
  LaunchHead head;
  if (message.size() < sizeof head) return;
  memcpy(&head, message.data(), sizeof head);
  if (head.head.count > MAX_ARGS || message.size() != sizeof head + head.head.count * sizeof(LaunchArg)) return;
  if (head.seq != queued_seq_ + 1) return;  // a repetition
  queued_seq_ = head.seq;
  queue_[last_++ % queue_.size()].assign(message.begin(), message.end());
}

void Device::drop(const RingHead& head) {
  if (Entry* found = programs_.find(head.program)) {
    program_bytes_ -= found->bytes;
    programs_.erase(head.program);
  }
  if (!(head.count & RING_MAY_ARRIVE)) return;
  if (dropped_.size() >= DROPPED_MAX) dropped_.clear();
  dropped_.insert(head.program);
}

// ---- launches -----------------------------------------------------------------------------------------------------

bool Device::in_arena(uint64_t offset, uint64_t bytes) {
  auto inside = [&] { return offset <= arena_.bytes() && bytes <= arena_.bytes() - offset; };
  if (inside()) return true;
  const size_t before = arena_.bytes();
  if (!arena_.grow(options_.arena)) return false;
#ifdef MADV_POPULATE_WRITE
  madvise(arena_.data() + before, arena_.bytes() - before, MADV_POPULATE_WRITE);  // the pages are there: map them together
#endif
  return inside();
}

Trap Device::bind_and_run(const VerifiedProgram& program, const LaunchHead& launch, const LaunchArg* args) {
  auto refuse = [&](uint32_t argument, uint64_t got, uint64_t allowed) {
    return Trap{TrapCode::BINDING, 0, argument, int64_t(got), int64_t(allowed)};
  };
  const ProgramHead& head = program.head();
  if (launch.head.count != head.arg_count) return refuse(launch.head.count, launch.head.count, head.arg_count);
  if (launch.workspace_bytes < head.workspace_bytes) return refuse(head.arg_count, launch.workspace_bytes, head.workspace_bytes);
  for (uint32_t i = 0; i < launch.head.count; ++i)  // first, because a larger arena may move
    if (!in_arena(args[i].offset, args[i].bytes)) return refuse(i, args[i].offset, arena_.bytes());
  if (!in_arena(launch.workspace, launch.workspace_bytes)) return refuse(head.arg_count, launch.workspace, arena_.bytes());
  bindings_.clear();
  for (uint32_t i = 0; i < launch.head.count; ++i)
    bindings_.push_back({arena_.data() + args[i].offset, args[i].bytes, args[i].writable == 1});
  const Trap trap = machine_.run(program, bindings_, arena_.data() + launch.workspace, launch.deadline_ns);
  host_calls_ = machine_.host_calls();
  return trap;
}

// False: its program is missing.
bool Device::run_head() {
  const std::vector<uint8_t>& record = queue_[first_ % queue_.size()];
  LaunchHead& launch = running_;
  memcpy(&launch, record.data(), sizeof launch);
  Entry* found = programs_.find(launch.head.program);
  if (!found) {
    if (!exposed_from_) {
      feed(exposed_from_ = now_ns());
      control_.add(CONTROL_EXPOSED_COUNT, 1);
      control_.set(CONTROL_WAITING_PROGRAM, launch.head.program);
    }
    return false;
  }
  begin_ns_ = end_ns_ ? end_ns_ : now_ns();  // launches that follow each other share one look at the clock
  feed(begin_ns_);
  if (exposed_from_) {
    control_.add(CONTROL_EXPOSED_NS, begin_ns_ - exposed_from_);
    control_.set(CONTROL_WAITING_PROGRAM, 0);
    trace_.add(TraceKind::EXPOSED, exposed_from_, begin_ns_, launch.seq, launch.head.program);
    exposed_from_ = 0;
  }
  const VerifiedProgram* program = found->program.get();
  if (beside_ && program && program->split_ns() >= options_.beside_ns) {
    beside_->begin();
    beside_runs_ = true;
  }
  trap_ = program ? bind_and_run(*program, launch, reinterpret_cast<const LaunchArg*>(record.data() + sizeof launch))
                  : Trap{TrapCode::STOPPED, 0, 0, 0, 0};
  return ran_ = true;
}

bool Device::anything_waits() {
  return std::any_of(rings_.begin(), rings_.end(), [](Ring& ring) { return !ring.empty(); });
}

void Device::commit_head() {
  const LaunchHead& launch = running_;
  if (trap_.code != TrapCode::NONE)
    control_.post({uint32_t(EventKind::TRAPPED), uint32_t(trap_.code), launch.head.program, launch.seq, trap_.section,
                   trap_.word, trap_.got, trap_.allowed},
                  options_.eventfd);
  ran_ = false;
  end_ns_ = now_ns();
  control_.add(CONTROL_BUSY_NS, end_ns_ - begin_ns_);
  if (const uint64_t split = machine_.sections_split(); split != sections_split_) {
    control_.add(CONTROL_SECTIONS_SPLIT, split - sections_split_);
    sections_split_ = split;
  }
  if (const Machine::Tuned& now = machine_.tuned(); now.tried != tuned_.tried) {
    control_.add(CONTROL_CHOICES_TRIED, now.tried - tuned_.tried);
    control_.add(CONTROL_CHOICES_KEPT, now.kept - tuned_.kept);
    control_.add(CONTROL_CHOICES_GAINED_NS, now.gained_ns - tuned_.gained_ns);
    tuned_ = now;
  }
  control_.commit(launch.seq, options_.eventfd);
  trace_.add(TraceKind::LAUNCH, begin_ns_, end_ns_, launch.seq, launch.head.program);
  for (const HostSpan& call : host_calls_) {
    control_.add(CONTROL_HOST_CALLS, 1);
    control_.add(CONTROL_HOST_NS, call.end_ns - call.begin_ns);
    trace_.add(TraceKind::HOST, call.begin_ns, call.end_ns, launch.seq, call.function);
  }
  host_calls_.clear();
  if (std::exchange(beside_runs_, false)) beside_->end();
  ++first_;
  if (!head_waits()) rest();  // from now on it is idle, also where the client, woken on this CPU, keeps us from seeing that
}

Device::Step Device::step() {
  if (ran_) return commit_head(), Step::COMMITTED;
  if (take_one()) return Step::TOOK;
  rest();
  return head_waits() && run_head() ? Step::RAN : Step::IDLE;
}

// ---- idle time ----------------------------------------------------------------------------------------------------

uint64_t Device::client_time(uint64_t now) const {
  uint64_t began = control_.get(CONTROL_CLIENT_CALL_BEGAN);
  return control_.get(CONTROL_CLIENT_NS) + (began && now > began ? now - began : 0);
}

// Nothing is left to do: without a launch it is idle since its last work, checking programs included.
void Device::rest() {
  const uint64_t now = std::exchange(end_ns_, 0);
  if (now) rested_ns_ = now;
  if (!now || !first_ || head_waits()) return;
  starved_from_ = now;
  client_at_ = client_time(now);
}

void Device::feed(uint64_t now) {
  if (!starved_from_) return;
  uint64_t idle = now - starved_from_, at = client_time(now), client = std::min(idle, at > client_at_ ? at - client_at_ : 0);
  control_.add(CONTROL_STARVED_CLIENT_NS, client);
  control_.add(CONTROL_STARVED_USER_NS, idle - client);
  trace_.add(TraceKind::STARVED, starved_from_, now, queued_seq_, client);
  starved_from_ = 0;
}

// ---- the loop -----------------------------------------------------------------------------------------------------

void Device::serve(uint64_t timeout_ns) {
  uint64_t last = now_ns(), stop = last + timeout_ns, cpu = cpu_now();
  const uint64_t spin_least = uint64_t(options_.spin_us * 1e3), spin_most = SPIN_MORE * spin_least;
  control_.set(CONTROL_DEVICE_CPU, cpu);
  bool idle = false, ran = false;  // ran: launches are what came last; who only sends programs has use for the CPU
  uint64_t awake = last, client = client_time(last);  // since when it is, or has had something to do; the client's time then
  for (uint64_t now = last; now < stop; now = now_ns()) {
    bool any = take_all();
    if (any) ran = false;
    for (; head_waits() && run_head(); any = ran = true) {
      commit_head();
      take_all();
    }
    rest();
    if (any) {
      control_.add(CONTROL_DEVICE_LOOPS, 1);
      if (uint64_t here = cpu_now(); here != cpu) control_.set(CONTROL_DEVICE_CPU, cpu = here);
      if (const uint64_t waited = now - last; std::exchange(idle, false))  // a short time counts at once, a long one a little
        expected_idle_ns_ = waited < expected_idle_ns_ ? waited : expected_idle_ns_ + (waited - expected_idle_ns_) / 4;
      last = awake = std::max(now, rested_ns_), client = client_at_;
      continue;
    }
    idle = true;
    memory_.prepare();
    const uint64_t spin = ran && expected_idle_ns_ < spin_most ? spin_most : spin_least;
    if (now - last >= spin && now - awake < COMING_NS) {
      const uint64_t at = client_time(now), before = std::exchange(client, at);
      if (at - before > spin / 4) last = now;
    }
    if (now - last < spin && control_.get(CONTROL_CLIENT_CPU) != cpu) {
      pause_cpu();
      continue;
    }
    control_.word(CONTROL_ASLEEP).store(1);
    if (!anything_waits()) {
      futex_wait(control_.word(CONTROL_ASLEEP), 1, stop - now);
      control_.add(CONTROL_DEVICE_WAKES, 1);
      cpu = cpu_now();
      control_.set(CONTROL_DEVICE_CPU, cpu);
      last = awake = now_ns(), client = client_time(last);  // what it was woken for may still be on its way
      fetch_lines(__start_dvm_proves, __stop_dvm_proves);
    }
    control_.word(CONTROL_ASLEEP).store(0);
  }
}

}  // namespace dvm
