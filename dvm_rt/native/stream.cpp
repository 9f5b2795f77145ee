#include "stream.h"
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include "pack.h"

namespace dvm {

constexpr uint64_t FUEL_SHORT = 4096;   // about 20 us: shorter programs run without giving up the GIL
constexpr size_t EVENTS_KEPT = 1 << 16;
constexpr uint64_t LOG = LOG_CAPACITY;
constexpr size_t RING_BYTES_MIN = 256 << 10;  // two of the largest launch records, and some

static uint64_t fork_generation = 0;
static void watch_forks() {
  static const int once = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });
  (void)once;
}

static std::string text(std::span<const int64_t> shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

uint64_t shape_bytes(uint8_t dtype, std::span<const int64_t> shape) {
  uint64_t bytes = DTYPE_BYTES[dtype];
  bool fits = shape.size() <= size_t(MAX_RANK), empty = false;
  for (int64_t dim : shape) {
    fits = fits && dim >= 0;
    empty = empty || dim == 0;
  }
  for (int64_t dim : shape) fits = fits && !__builtin_mul_overflow(bytes, uint64_t(empty ? 0 : dim), &bytes);
  if (fits && bytes < 1ull << 48) return bytes;
  throw Error("ShapeError", "stream: tensor: shape, got " + text(shape) + ", allowed rank " + std::to_string(MAX_RANK) +
                                " and less than 2^48 bytes");
}

static uint64_t hash_of(std::span<const int64_t> values) {
  uint64_t h = 0x9E3779B97F4A7C15ull * (values.size() + 1);
  for (int64_t v : values) h = (h ^ uint64_t(v)) * 0xD6E8FEB86659FD93ull, h ^= h >> 32;
  return h;
}

static void check_limit(const char* name, uint64_t got, uint64_t least, uint64_t most) {
  if (got < least || got > most)
    throw Error("ShapeError", std::string("stream: options: ") + name + ", got " + std::to_string(got) + ", allowed " + std::to_string(least) +
                                  " to " + std::to_string(most));
}

Stream::Stream(const StreamOptions& options)
    : options_(options),
      inline_mode_(options.inline_mode),
      arena_(new Arena(options.arena_bytes_max)),
      machine_(options.target.empty() ? best_target() : [&]() -> const Target& {
        const Target* found = find_target(options.target.c_str());
        if (!found) throw Error("EncodeError", "stream: target: unknown here, got " + options.target + ", allowed those of targets()");
        return *found;
      }()) {
  watch_forks();
  fork_generation_ = fork_generation;
  plans_.push_back(std::make_unique<PlanState>());  // number 0: packing
  plans_[0]->arguments = {0, 1};
  plans_[0]->buckets.resize(16);
  plans_[0]->where = Where::CALLER;
  descriptors_.arena = arena_->fd();
  auto trace = [] { return make_memory("dvm_rt trace", Trace::MAP_BYTES); };
  int own = trace();
  trace_ = Trace(own);
  ::close(own);
  if (inline_mode_) return;
  check_limit("launches_max", options_.launches_max, 1, LOG / 2);
  check_limit("workers", uint64_t(options_.workers), 0, MAX_WORKERS);
  check_limit("ring_bytes", options_.ring_bytes, RING_BYTES_MIN, 1ull << 32);
  log_.resize(LOG);
  descriptors_.control = make_memory("dvm_rt control", CONTROL_MAP_BYTES);
  control_ = Control(descriptors_.control);
  control_.start();
  descriptors_.eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  for (int i = 0; i <= options_.workers; ++i) {
    descriptors_.rings.push_back(make_memory("dvm_rt ring", options_.ring_bytes));
    descriptors_.traces.push_back(trace());
    traces_.emplace_back(descriptors_.traces.back());
  }
  ring_ = Ring(descriptors_.rings[0]);
}

Stream::~Stream() {
  if (!closed_) close();
  for (auto* fds : {&descriptors_.rings, &descriptors_.traces})
    for (int fd : *fds) ::close(fd);
  if (descriptors_.control >= 0) ::close(descriptors_.control);
  if (descriptors_.eventfd >= 0) ::close(descriptors_.eventfd);
}

void Stream::enter() const {
  if (fork_generation_ != fork_generation)
    throw Error("ForkedClientError", "stream: fork: made by another process, got a call in its child, allowed calls of the process that made it");
  if (closed_.load(std::memory_order_acquire)) throw Error("ClosedError", "stream: call: closed, got a call, allowed none after close()");
  if (stopped_.load(std::memory_order_acquire)) throw *stop_;
}

bool Stream::began(uint64_t now) const {
  if (inline_mode_ || control_.get(CONTROL_CLIENT_CALL_BEGAN)) return false;
  control_.set(CONTROL_CLIENT_CALL_BEGAN, now);
  return true;
}

void Stream::ended(uint64_t now) const {
  control_.add(CONTROL_CLIENT_NS, now - control_.get(CONTROL_CLIENT_CALL_BEGAN));
  control_.set(CONTROL_CLIENT_CALL_BEGAN, 0);
}

void Stream::fail(Error error) {
  if (stopped_) return;
  stop_ = std::make_shared<Error>(std::move(error));
  stopped_.store(true, std::memory_order_release);
  wake_all();
}

void Stream::wake_all() {
  if (inline_mode_) return;
  control_.wake_waiters();
  control_.wake_loop(descriptors_.eventfd);
}

void Stream::close() {
  if (closed_.exchange(true)) return;
  wake_all();
  for (auto& launched : log_)
    for (auto* buffers : {&launched.reads, &launched.writes}) buffers->clear();
  plans_.clear();
  instances_.clear();
  instance_store_.clear();
  spare_instances_.clear();
  newest_ = oldest_ = nullptr;
  workspace_ = {};
  made_.clear();
  outputs_.clear();
  arena_->close();
}

// ---- waiting -----------------------------------------------------------------------------------------------------

bool Stream::wait(uint64_t seq, uint64_t timeout_ns) {
  if (done() >= seq) return true;
  if (inline_mode_) {  // another thread is inside the launch, and holds the lock
    std::lock_guard held(lock_);
    return done() >= seq;
  }
  uint64_t start = now_ns(), now = start;
  uint64_t spin = start + uint64_t(options_.spin_us * 1e3), end = timeout_ns > NEVER - start ? NEVER : start + timeout_ns;
  for (uint32_t round = 0; done() < seq; ++round) {
    enter();
    if (control_.events_waiting() || pushed_ < launched())
      if (std::unique_lock held(lock_, std::try_to_lock); held) retire(), flush();
    // Spinning beside the device would keep it from running.
    if (now < spin && (round & 15) == 0 && cpu_now() == control_.get(CONTROL_DEVICE_CPU)) spin = 0;
    if (now < spin) {
      for (int i = 0; i < 8 && done() < seq; ++i) pause_cpu();
    } else {
      if (now >= end) return false;
      control_.sleep(seq, end - now);
    }
    now = now_ns();
  }
  return true;
}

void Stream::check_value(const Tensor& tensor) const {
  if (tensor.buffer->failure) throw *tensor.buffer->failure;
}

// ---- plans and instances ------------------------------------------------------------------------------------------

PlanState& Stream::plan_state(uint32_t number) {
  if (number > 0 && number < plans_.size() && !plans_[number]->forgotten) return *plans_[number];
  throw Error("GraphError", "stream: plan: unknown number, got " + std::to_string(number) + ", allowed those of register()");
}

uint32_t Stream::register_plan(std::span<const uint8_t> bytes, std::vector<Tensor> captured) {
  std::string error;
  auto state = std::make_unique<PlanState>();
  state->plan = Plan::load(bytes.data(), bytes.size(), error);
  if (!state->plan) throw Error("GraphError", error);
  if (captured.size() > state->plan->parameters().size())
    throw Error("ShapeError", "stream: register: captured tensors, got " + std::to_string(captured.size()) + ", allowed " +
                                  std::to_string(state->plan->parameters().size()));
  state->number = uint32_t(plans_.size());
  state->bytes.assign(bytes.begin(), bytes.end());
  state->captured = std::move(captured);
  auto buffers = state->plan->buffers();
  for (size_t i = 0; i < buffers.size(); ++i)
    if (BufferRole(buffers[i].role) != BufferRole::TEMPORARY) state->arguments.push_back(uint16_t(i));
  state->buckets.resize(16);
  plans_.push_back(std::move(state));
  return plans_.back()->number;
}

std::vector<Tensor> Stream::forget_plan(uint32_t number) {
  PlanState& plan = plan_state(number);
  retire();
  std::vector<Tensor> captured = std::move(plan.captured);
  plan.forgotten = true;
  for (Instance* instance = oldest_; instance;) {
    Instance* newer = instance->newer;
    if (instance->plan == &plan && instance->last_seq <= retired_) forget(instance);  // the others when they are evicted
    instance = newer;
  }
  release_plan(plan);
  return captured;
}

void Stream::release_plan(PlanState& plan) {
  if (!plan.forgotten || plan.instances) return;
  plan.plan.reset();
  std::vector<uint8_t>().swap(plan.bytes);
  std::vector<Instance*>().swap(plan.buckets);
}

std::vector<std::pair<uint64_t, std::vector<int64_t>>> Stream::programs(uint32_t number) {
  PlanState& plan = plan_state(number);
  std::vector<std::pair<uint64_t, std::vector<int64_t>>> out;
  for (Instance* instance = oldest_; instance; instance = instance->newer)
    if (instance->plan == &plan) out.emplace_back(instance->id, instance->symbols);
  return out;
}

Instance* Stream::find(PlanState& plan, std::span<const int64_t> symbols, uint64_t hash) {
  for (Instance* i = plan.buckets[hash & (plan.buckets.size() - 1)]; i; i = i->next)
    if (i->hash == hash && std::equal(symbols.begin(), symbols.end(), i->symbols.begin())) return i;
  return nullptr;
}

Instance* Stream::instance_of(uint64_t id) const {
  auto found = instances_.find(id);
  return found == instances_.end() ? nullptr : found->second;
}

bool Stream::evaluate(const PlanState& state, std::span<const int64_t> symbols) {
  values_.resize(state.plan->exprs().size());
  return state.plan->evaluate(symbols.data(), values_.data());
}

// values_ hold the plan's expressions for these symbols.
Instance& Stream::make_instance(PlanState& plan, std::span<const int64_t> symbols, uint64_t hash) {
  if (spare_instances_.empty()) spare_instances_.push_back(&instance_store_.emplace_back());
  Instance& instance = *spare_instances_.back();
  instance.plan = &plan;
  instance.hash = hash;
  instance.symbols.assign(symbols.begin(), symbols.end());
  instance.dims.clear(), instance.outputs.clear(), instance.buffer_bytes.clear(), instance.packs.clear();
  instance.workspace_bytes = instance.last_seq = instance.uses = instance.program_bytes = 0;
  instance.shipped = instance.pushed = 0;
  instance.empty = instance.failure_pushed = false;
  instance.state = ProgramState::ABSENT;
  instance.newer = nullptr;
  instance.id = next_id_++;
  describe(instance);
  check_encoded(instance);
  spare_instances_.pop_back();
  if (plan.instances >= plan.buckets.size() * 2) {
    std::vector<Instance*> old(plan.buckets.size() * 4);
    old.swap(plan.buckets);
    for (Instance* chain : old)
      while (chain) {
        Instance* rest = chain->next;
        Instance*& bucket = plan.buckets[chain->hash & (plan.buckets.size() - 1)];
        chain->next = bucket;
        bucket = chain;
        chain = rest;
      }
  }
  Instance*& bucket = plan.buckets[hash & (plan.buckets.size() - 1)];
  instance.next = bucket;
  bucket = &instance;
  ++plan.instances;
  instance.older = newest_;
  (newest_ ? newest_->newer : oldest_) = &instance;
  newest_ = &instance;
  instance.bytes = sizeof(Instance) + 8 * (instance.symbols.size() + instance.dims.size() + instance.buffer_bytes.size()) +
                   sizeof(Instance::Output) * instance.outputs.size() + (inline_mode_ ? 2 : 1) * instance.program_bytes;
  counters_.program_cache_bytes += instance.bytes;
  ++counters_.instances;
  instances_.emplace(instance.id, &instance);
  evict();
  return instance;
}

static Error no_sizes(const PlanState& state, std::span<const int64_t> symbols) {
  return Error("ShapeError", "stream: plan " + std::to_string(state.number) + ": dimensions " + text(symbols) +
                                 ": sizes, got an overflow or a division by zero, allowed 64 bits");
}

// What follows from the dimensions alone: shapes and bytes of everything, without the program.
void Stream::describe(Instance& instance) {
  PlanState& state = *instance.plan;
  if (!state.plan) {
    const int64_t* s = instance.symbols.data();
    PackKey key{s[0], s[1], s[2], s[3], s[4]};
    instance.buffer_bytes = {pack_source_bytes(key), packed_bytes(key)};
    return;
  }
  const Plan& plan = *state.plan;
  auto bad = [&](const std::string& what, const std::string& got, const char* allowed) {
    return Error("ShapeError", "stream: plan " + std::to_string(state.number) + ": dimensions " + text(instance.symbols) + ": " +
                                   what + ", got " + got + ", allowed " + allowed);
  };
  auto value = [&](uint16_t expr) { return expr == NONE ? 0 : values_[expr]; };
  for (auto& p : plan.parameters())
    for (int d = 0; d < p.rank; ++d) instance.dims.push_back(value(p.dims[d]));
  instance.empty = !plan.outputs().empty();
  for (auto& o : plan.outputs()) {
    Instance::Output out{o.dtype, o.rank, o.buffer, {}, 0, true};
    for (auto& earlier : instance.outputs) earlier.last = earlier.last && earlier.buffer != o.buffer;
    for (int d = 0; d < o.rank; ++d) out.dims[d] = value(o.dims[d]);
    out.bytes = shape_bytes(o.dtype, {out.dims.data(), o.rank});
    instance.empty = instance.empty && out.bytes == 0;
    instance.outputs.push_back(out);
  }
  slots_.assign(size_t(plan.slots()), 0);
  for (auto& b : plan.buffers()) {
    int64_t bytes = value(b.bytes);
    if (bytes < 0 || bytes >= int64_t(1) << 48) throw bad("bytes of a buffer", std::to_string(bytes), "0 to 2^48");
    instance.buffer_bytes.push_back(uint64_t(bytes));
    if (BufferRole(b.role) == BufferRole::TEMPORARY) slots_[b.index] = std::max(slots_[b.index], uint64_t(bytes));
  }
  for (auto& out : instance.outputs)
    if (instance.buffer_bytes[out.buffer] < out.bytes)
      throw bad("bytes of an output's buffer", std::to_string(instance.buffer_bytes[out.buffer]), std::to_string(out.bytes).c_str());
  for (uint64_t slot : slots_) instance.workspace_bytes += (slot + ARENA_ALIGN - 1) & ~uint64_t(ARENA_ALIGN - 1);
  for (auto& p : plan.packs())
    instance.packs.push_back({value(p.k), value(p.n), value(p.stride_k), value(p.stride_n), value(p.offset)});
}

void Stream::touch(Instance& instance) {
  ++instance.uses;
  if (&instance == newest_) return;
  instance.newer->older = instance.older;
  (instance.older ? instance.older->newer : oldest_) = instance.newer;
  instance.older = newest_;
  instance.newer = nullptr;
  newest_ = newest_->newer = &instance;
}

void Stream::evict() {
  for (Instance* instance = oldest_; instance && instance != newest_ && counters_.program_cache_bytes > options_.program_cache_bytes;) {
    Instance* newer = instance->newer;
    if (instance->last_seq <= retired_ && instance != prepared_) {
      forget(instance);
      ++counters_.evicted;
    }
    instance = newer;
  }
}

void Stream::forget(Instance* instance) {
  PlanState& plan = *instance->plan;
  Instance** at = &plan.buckets[instance->hash & (plan.buckets.size() - 1)];
  while (*at != instance) at = &(*at)->next;
  *at = instance->next;
  --plan.instances;
  (instance->newer ? instance->newer->older : newest_) = instance->older;
  (instance->older ? instance->older->newer : oldest_) = instance->newer;
  counters_.program_cache_bytes -= instance->bytes;
  --counters_.instances;
  if (!inline_mode_ && instance->state != ProgramState::ABSENT) {
    uint32_t arrived = instance->last_seq ? 1 : 0, sent = instance->shipped + instance->pushed;
    drops_.push_back({uint32_t(RingKind::DROP), sent > arrived ? uint32_t(RING_MAY_ARRIVE) : 0, instance->id});
  }
  instances_.erase(instance->id);
  instance->id = 0;
  instance->program.reset();
  instance->failure.reset();
  spare_instances_.push_back(instance);
  release_plan(plan);
}

// ---- programs -----------------------------------------------------------------------------------------------------

static void spin_for(uint64_t ns) {
  if (ns)
    for (uint64_t end = now_ns() + ns; now_ns() < end;) pause_cpu();
}

// Valid until the next encode. Empty: `failure` says why, or there is nothing to run.
std::span<const uint8_t> Stream::encode(Instance& instance, Failure& failure, bool evaluated) {
  uint64_t begin = now_ns();
  PlanState& state = *instance.plan;
  size_t bytes = 0;
  if (!state.plan) {
    const int64_t* s = instance.symbols.data();
    scratch_ = pack_program({s[0], s[1], s[2], s[3], s[4]});
    bytes = scratch_.size();
  } else {
    if (!evaluated) evaluate(state, instance.symbols);
    if (scratch_.size() < state.plan->program_bytes_max()) scratch_.resize(state.plan->program_bytes_max());
    EncodeResult result = dvm::encode(*state.plan, values_.data(), scratch_.data(), scratch_.size());
    bytes = size_t(result.bytes);
    if (result.error)
      failure = std::make_shared<Error>("EncodeError", "encoder: plan " + std::to_string(state.number) + " kernel " +
                                                           std::to_string(result.kernel) + " for dimensions " + text(instance.symbols) +
                                                           ": " + result.error + ", got a plan beyond it, allowed what a program can hold");
  }
  if (!failure && !inline_mode_ && bytes > program_bytes_max())
    failure = std::make_shared<Error>("EncodeError", "encoder: plan " + std::to_string(state.number) + ": program for the ring, got " +
                                                         std::to_string(bytes) + " bytes, allowed " + std::to_string(program_bytes_max()));
  spin_for(encode_work_ns_);
  uint64_t end = encoded_at_ns_ = now_ns();
  ++counters_.encoded;
  counters_.encode_ns += end - begin;
  instance.program_bytes = bytes;
  trace_.add(TraceKind::ENCODE, begin, end, instance.id, state.number);
  return {scratch_.data(), failure ? 0 : bytes};
}

static Failure invalid(const Instance& instance, uint32_t code, uint32_t section, uint32_t word) {
  const char* name = code < std::size(VerifyCode_NAMES) ? VerifyCode_NAMES[code] : "unknown";
  return std::make_shared<Error>("InvalidBytecodeError",
                                 "verifier: program " + std::to_string(instance.id) + " of plan " + std::to_string(instance.plan->number) +
                                     ", section " + std::to_string(section) + ", word " + std::to_string(word) + ": refused, got " + name +
                                     ", allowed what verify() accepts",
                                 std::vector<std::pair<const char*, int64_t>>{{"code", code}, {"section", section}, {"word", word}});
}

// A new instance whose program is made here: errors belong to the call that asked for it.
void Stream::check_encoded(Instance& instance) {
  if (instance.empty || (!inline_mode_ && where(*instance.plan) == Where::WORKERS)) return;
  Failure failure;
  auto bytes = encode(instance, failure, true);
  if (failure) throw *failure;
  if (bytes.empty()) {
    instance.empty = true;
    return;
  }
  auto* head = reinterpret_cast<const ProgramHead*>(bytes.data());
  instance.workspace_bytes = std::max(instance.workspace_bytes, head->workspace_bytes);
  if (!inline_mode_) {
    if (push_record(0, instance.id, bytes)) instance.state = ProgramState::READY, ++instance.pushed;
    return;  // else flush() does it again
  }
  uint64_t begin = encoded_at_ns_;
  VerifyError error;
  instance.program = VerifiedProgram::load(bytes.data(), bytes.size(), error);
  if (!instance.program) throw *invalid(instance, uint32_t(error.code), error.section, error.word);
  machine_.reserve(*instance.program);
  instance.state = ProgramState::READY;
  trace_.add(TraceKind::LOAD, begin, now_ns(), instance.id, instance.plan->number);
}

bool Stream::push_record(uint32_t flags, uint64_t id, std::span<const uint8_t> program) {
  RingHead record{uint32_t(RingKind::PROGRAM), flags, id};
  return ring_.push({reinterpret_cast<const uint8_t*>(&record), sizeof record}, program);
}

// False: no room in the ring.
bool Stream::push_program(Instance& instance) {
  Failure failure;
  auto bytes = encode(instance, failure);
  if (failure) {
    instance.failure = failure;
    instance.state = ProgramState::FAILED;
    return provide(instance, true);
  }
  if (!push_record(0, instance.id, bytes)) return false;
  instance.state = ProgramState::READY;
  ++instance.pushed;
  return true;
}

// Sees to it that the device has, or will get, the program. False: no room in the ring.
bool Stream::provide(Instance& instance, bool here) {
  switch (instance.state) {
    case ProgramState::READY: return true;
    case ProgramState::ENCODING: return !here || push_program(instance);
    case ProgramState::ABSENT:
      if (here || where(*instance.plan) != Where::WORKERS) return push_program(instance);
      instance.state = ProgramState::ENCODING;
      outbox_.push_back(instance.id);
      return true;
    case ProgramState::FAILED:
      if (!instance.failure_pushed) instance.failure_pushed = push_record(RING_FAILS, instance.id, {});
      return instance.failure_pushed;
  }
  return true;
}

// The device's verifier refused what came from ring `got`: foreign bytes are encoded again here, our own are the end.
void Stream::refuse(const Event& event) {
  ++counters_.refused;
  Instance* found = instance_of(event.program);
  if (!found || found->state == ProgramState::FAILED) return;
  Instance& instance = *found;
  if (event.got != 0) {
    if (instance.state == ProgramState::ENCODING) owe(instance);
    return;
  }
  instance.failure = invalid(instance, event.code, event.section, event.word);
  instance.state = ProgramState::FAILED;
  owe(instance);
}

// Launches that the device already has wait for this program, or for the word that there is none.
void Stream::owe(Instance& instance) {
  if (!provide(instance, true)) owed_.push_back(instance.id);
}

// ---- launches -----------------------------------------------------------------------------------------------------

static std::string parameter_text(const PlanState& plan, size_t i) {
  return "stream: plan " + std::to_string(plan.number) + ": parameter " + std::to_string(i);
}

static void check_dims(const PlanState& plan, std::span<const Tensor* const> parameters, auto wanted) {
  for (size_t i = 0, at = 0; i < parameters.size(); ++i) {
    const Tensor& t = *parameters[i];
    for (int d = 0; d < t.rank; ++d)
      if (int64_t dim = wanted(i, d, at++); t.dims[d] != dim)
        throw Error("ShapeError", parameter_text(plan, i) + ": dimension " + std::to_string(d) + " of shape " + text(t.shape()) + ", got " +
                                      std::to_string(t.dims[d]) + ", allowed " + std::to_string(dim));
  }
}

Instance& Stream::instance_for(PlanState& state, std::span<const Tensor* const> parameters) {
  const Plan& plan = *state.plan;
  auto wanted = plan.parameters();
  if (parameters.size() != wanted.size())
    throw Error("ShapeError", "stream: plan " + std::to_string(state.number) + ": arguments, got " +
                                  std::to_string(parameters.size() - state.captured.size()) + ", allowed " +
                                  std::to_string(wanted.size() - state.captured.size()));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& t = *parameters[i];
    if (t.dtype != wanted[i].dtype)
      throw Error("DTypeError", parameter_text(state, i) + ": dtype, got " + DTYPE_NAMES[t.dtype] + ", allowed " + DTYPE_NAMES[wanted[i].dtype]);
    if (t.rank != wanted[i].rank)
      throw Error("ShapeError", parameter_text(state, i) + ": rank of shape " + text(t.shape()) + ", got " + std::to_string(t.rank) +
                                    ", allowed " + std::to_string(wanted[i].rank));
    if (t.buffer->arena != arena_)
      throw Error("ClosedError", parameter_text(state, i) + ": a tensor of another runtime, got one, allowed those of this runtime");
  }
  int64_t symbols[MAX_SYMBOLS];
  size_t count = plan.symbols().size();
  for (size_t i = 0; i < count; ++i) symbols[i] = parameters[plan.symbols()[i].parameter]->dims[plan.symbols()[i].dim];
  uint64_t hash = hash_of({symbols, count});
  if (Instance* found = find(state, {symbols, count}, hash)) {
    check_dims(state, parameters, [&](size_t, int, size_t at) { return found->dims[at]; });
    ++counters_.cached_calls;
    return *found;
  }
  if (!evaluate(state, {symbols, count})) throw no_sizes(state, {symbols, count});
  // Before anything is encoded for them: a wrong call must not fill the cache.
  check_dims(state, parameters, [&](size_t i, int d, size_t) {
    uint16_t expression = wanted[i].dims[d];
    return expression == NONE ? 0 : values_[expression];
  });
  return make_instance(state, {symbols, count}, hash);
}

// Memory for something that a launch writes: any free block will do.
Buffer* Stream::output_buffer(uint64_t bytes, Use use) {
  if (Buffer* buffer = arena_->allocate(bytes, Arena::ANY, use)) return buffer;
  throw out_of_memory(bytes);
}

Error Stream::out_of_memory(uint64_t bytes) {
  MemoryReport report = arena_->report();
  return Error("DeviceOutOfMemoryError", "arena: allocate: bytes, got " + std::to_string(bytes) + ", allowed " + std::to_string(report.free) +
                                            " (arena_bytes_max " + std::to_string(arena_->bytes_max()) + ")",
              {{"requested", int64_t(bytes)}, {"free", int64_t(report.free)}});
}

std::optional<Tensor> Stream::host_tensor(uint8_t dtype, std::span<const int64_t> shape) {
  Tensor tensor;
  tensor.bytes = shape_bytes(dtype, shape);
  Buffer* buffer = arena_->allocate(tensor.bytes, done());
  if (!buffer && done() < launched()) return {};
  if (!buffer) throw out_of_memory(tensor.bytes);
  tensor.buffer = BufferRef(buffer);
  tensor.dtype = dtype;
  tensor.rank = uint8_t(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.dims.begin());
  return tensor;
}

void Stream::reserve_workspace(uint64_t bytes) {
  if (!bytes || (workspace_ && workspace_->bytes >= bytes)) return;
  uint64_t grown = std::max(bytes, workspace_ ? workspace_->bytes * 2 : 1 << 16);
  workspace_ = {};  // launches in flight go on using it; the stream's order makes that safe
  Buffer* buffer = arena_->allocate(grown, Arena::ANY, Use::WORKSPACE);
  workspace_ = BufferRef(buffer ? buffer : output_buffer(bytes, Use::WORKSPACE));
}

// The packed form of a parameter, made on first use and kept as long as its source.
Buffer* Stream::packed(const Tensor& source, const PackKey& plan_key) {
  PackKey key = plan_key;
  key.offset += int64_t(source.offset / 4);
  for (Packed& form : source.buffer->packed)
    if (form.key == key) return form.buffer.get();
  int64_t symbols[] = {plan_key.k, plan_key.n, plan_key.stride_k, plan_key.stride_n, plan_key.offset};
  uint64_t hash = hash_of(symbols);
  PlanState& plan = *plans_[0];
  Instance* instance = find(plan, symbols, hash);
  if (!instance) instance = &make_instance(plan, symbols, hash);
  BufferRef destination(output_buffer(instance->buffer_bytes[1], Use::PACKED));
  if (instance->buffer_bytes[0] > source.bytes)
    throw Error("ShapeError", "stream: pack: bytes of the source, got " + std::to_string(source.bytes) + ", allowed at least " +
                                  std::to_string(instance->buffer_bytes[0]));
  touch(*instance);
  ++counters_.packs;
  Argument arguments[] = {{source.buffer.get(), source.arena_offset(), source.bytes, false},
                          {destination.get(), destination->offset, destination->bytes, true}};
  submit(*instance, arguments);
  source.buffer->packed.push_back({key, std::move(destination)});
  return source.buffer->packed.back().buffer.get();
}

void Stream::prepare(uint32_t number, std::span<const Tensor* const> args) {
  ++counters_.calls;
  outputs_.clear();
  arguments_.clear();
  made_.clear();
  try {
    prepare_parts(plan_state(number), args);
  } catch (...) {  // what was allocated for it so far is free again
    outputs_.clear();
    made_.clear();
    prepared_ = nullptr;
    throw;
  }
}

void Stream::prepare_parts(PlanState& state, std::span<const Tensor* const> args) {
  parameters_.assign(args.begin(), args.end());
  for (const Tensor& t : state.captured) parameters_.push_back(&t);
  if (launched() - retired_ >= LOG / 4) retire();
  Instance& instance = instance_for(state, parameters_);
  prepared_ = &instance;
  touch(instance);
  reserve_workspace(instance.workspace_bytes);
  auto buffers = state.plan->buffers();
  made_.resize(buffers.size());
  for (uint16_t b : state.arguments) {
    uint64_t bytes = instance.buffer_bytes[b];
    if (BufferRole(buffers[b].role) == BufferRole::PARAMETER) {
      const Tensor& t = *parameters_[buffers[b].index];
      arguments_.push_back({t.buffer.get(), t.arena_offset(), t.bytes, false});
    } else if (BufferRole(buffers[b].role) == BufferRole::PACKED) {
      const PackKey& key = instance.packs[buffers[b].pack];
      Buffer* form = key.k > 0 && key.n > 0 && !instance.empty ? packed(*parameters_[buffers[b].index], key) : nullptr;
      arguments_.push_back({form, form ? form->offset : 0, form ? form->bytes : 0, false});
    } else {
      made_[b] = BufferRef(output_buffer(bytes, Use::TENSOR));
      arguments_.push_back({made_[b].get(), made_[b]->offset, bytes, true});
    }
  }
  for (auto& o : instance.outputs) {
    if (BufferRole(buffers[o.buffer].role) == BufferRole::PARAMETER) {
      const Tensor& t = *parameters_[buffers[o.buffer].index];
      outputs_.push_back({t.buffer, t.offset, o.bytes, o.dtype, o.rank, o.dims});
    } else {
      outputs_.push_back({o.last ? std::move(made_[o.buffer]) : made_[o.buffer], 0, o.bytes, o.dtype, o.rank, o.dims});
    }
  }
}

bool Stream::long_running() const { return inline_mode_ && prepared_->program && prepared_->program->head().fuel > FUEL_SHORT; }

void Stream::execute() {
  Instance& instance = *std::exchange(prepared_, nullptr);
  if (!instance.empty) submit(instance, arguments_);
  made_.clear();
}

void Stream::submit(Instance& instance, std::span<const Argument> arguments) {
  uint64_t seq = launched_.load(std::memory_order_relaxed) + 1;
  if (!inline_mode_ && seq - retired_ > LOG) {
    retire();
    if (seq - retired_ > LOG)
      throw Error("BackpressureTimeout", "stream: log: uncommitted launches, got " + std::to_string(seq - retired_) + ", allowed " + std::to_string(LOG));
  }
  instance.last_seq = seq;
  for (auto& a : arguments)
    if (a.writable) a.buffer->seq = seq;
  arena_->launched.store(seq, std::memory_order_relaxed);
  launched_.store(seq, std::memory_order_release);
  if (inline_mode_) return run(instance, arguments, seq);
  control_.set(CONTROL_LAUNCHED, seq);
  control_.set(CONTROL_CLIENT_CPU, cpu_now());
  log(instance, arguments, seq);
  flush();
}

static Failure trapped(uint64_t seq, const Instance& instance, uint32_t code, uint32_t section, uint32_t word, int64_t got, int64_t allowed) {
  std::string where = "device: launch " + std::to_string(seq) + " of plan " + std::to_string(instance.plan->number) + ", section " +
                      std::to_string(section) + ", word " + std::to_string(word) + ": ";
  std::string what = TrapCode(code) == TrapCode::GATHER_RANGE
                         ? "gather index out of range, got " + std::to_string(got) + ", allowed -" + std::to_string(allowed) + " to " + std::to_string(allowed - 1)
                         : std::string(TrapCode_NAMES[code < std::size(TrapCode_NAMES) ? code : 0]) + ", got " + std::to_string(got) + ", allowed " + std::to_string(allowed);
  return std::make_shared<Error>("DeviceTrap", where + what, std::vector<std::pair<const char*, int64_t>>{{"code", code}, {"got", got}, {"allowed", allowed}});
}

void Stream::run(Instance& instance, std::span<const Argument> arguments, uint64_t seq) {
  uint64_t begin = now_ns();
  bindings_.clear();
  Failure failure;
  for (auto& a : arguments) {
    bindings_.push_back({arena_->data() + a.offset, a.bytes, a.writable});
    if (!a.writable && a.buffer && a.buffer->failure && !failure) failure = a.buffer->failure;
  }
  Trap trap = machine_.run(*instance.program, bindings_, workspace_ ? workspace_->data() : nullptr);
  if (trap.code != TrapCode::NONE) {
    ++counters_.traps;
    if (!failure) failure = trapped(seq, instance, uint32_t(trap.code), trap.section, trap.word, trap.got, trap.allowed);
  }
  if (failure)
    for (auto& a : arguments)
      if (a.writable) a.buffer->failure = failure;
  uint64_t end = now_ns();
  counters_.busy_ns += end - begin;
  trace_.add(TraceKind::LAUNCH, begin, end, seq, instance.id);
  retired_.store(seq, std::memory_order_release);
  done_.store(seq, std::memory_order_release);
}

void Stream::log(Instance& instance, std::span<const Argument> arguments, uint64_t seq) {
  Launched& e = entry(seq);
  e.instance = &instance;
  e.failure.reset();
  e.reads.clear(), e.writes.clear();
  e.record.resize(sizeof(LaunchHead) + arguments.size() * sizeof(LaunchArg));
  LaunchHead head{{uint32_t(RingKind::LAUNCH), uint32_t(arguments.size()), instance.id}, seq,
                  workspace_ ? workspace_->offset : 0, workspace_ ? workspace_->bytes : 0};
  memcpy(e.record.data(), &head, sizeof head);
  auto* out = reinterpret_cast<LaunchArg*>(e.record.data() + sizeof head);
  for (auto& a : arguments) {
    *out++ = {a.offset, a.bytes, a.writable};
    if (!a.buffer) continue;
    ++a.buffer->launches;
    (a.writable ? e.writes : e.reads).push_back(a.buffer);
  }
}

void Stream::flush() {
  if (inline_mode_ || closed_) return;
  auto push = [&](const void* record, size_t bytes) { return ring_.push({static_cast<const uint8_t*>(record), bytes}); };
  while (!drops_.empty() && push(&drops_.back(), sizeof(RingHead))) drops_.pop_back();
  while (!owed_.empty()) {
    Instance* instance = instance_of(owed_.back());
    if (instance && !provide(*instance, true)) break;
    owed_.pop_back();
  }
  for (uint64_t launched = launched_; pushed_ < launched; ++pushed_) {
    Launched& e = entry(pushed_ + 1);
    if (!provide(*e.instance, false) || !push(e.record.data(), e.record.size())) break;
  }
  control_.wake_device();
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
      e.failure = e.instance->failure ? e.instance->failure
                                      : trapped(event.seq, *e.instance, event.code, event.section, event.word, event.got, event.allowed);
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
  control_.wake_device();
  return count;
}

bool Stream::deliver(uint64_t id, std::span<const uint8_t> program) {
  Instance* instance = instance_of(id);
  if (!instance || instance->state != ProgramState::ENCODING) return false;
  if (program.size() > program_bytes_max() || !push_record(RING_FOREIGN, id, program)) return false;
  control_.wake_device();
  return true;
}

void Stream::fail_program(uint64_t id, Error error) {
  Instance* found = instance_of(id);
  if (!found || found->state == ProgramState::FAILED) return;
  Instance& instance = *found;
  instance.failure = std::make_shared<Error>(std::move(error));
  instance.state = ProgramState::FAILED;
  owe(instance);
  control_.wake_device();
}

std::optional<ProgramState> Stream::program_state(uint64_t id) const {
  Instance* instance = instance_of(id);
  return instance ? std::optional(instance->state) : std::nullopt;
}

uint64_t Stream::prefetch(uint32_t number, std::span<const int64_t> symbols) {
  PlanState& plan = plan_state(number);
  if (!plan.plan || symbols.size() != plan.plan->symbols().size())
    throw Error("ShapeError", "stream: prefetch: symbols of plan " + std::to_string(number) + ", got " + std::to_string(symbols.size()) +
                                  ", allowed " + std::to_string(plan.plan ? plan.plan->symbols().size() : 0));
  uint64_t hash = hash_of(symbols);
  Instance* instance = find(plan, symbols, hash);
  if (!instance && !evaluate(plan, symbols)) throw no_sizes(plan, symbols);
  if (!instance) instance = &make_instance(plan, symbols, hash);
  if (!inline_mode_ && !instance->empty) provide(*instance, false), control_.wake_device();
  return instance->id;
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
  for (int word : {int(CONTROL_ASLEEP), int(CONTROL_WAITING_PROGRAM)}) control_.set(word, 0);
  control_.set(CONTROL_DEVICE_CPU, NEVER);
  for (auto& [id, instance] : instances_) {
    if (instance->state == ProgramState::READY) instance->state = ProgramState::ABSENT;
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

std::vector<uint8_t> Stream::program_bytes(uint32_t number, std::span<const Tensor* const> args) {
  PlanState& state = plan_state(number);
  parameters_.assign(args.begin(), args.end());
  for (const Tensor& t : state.captured) parameters_.push_back(&t);
  Failure failure;
  auto bytes = encode(instance_for(state, parameters_), failure);
  if (failure) throw *failure;
  return {bytes.begin(), bytes.end()};
}

std::vector<TraceRecord> Stream::trace_records(size_t process) const {
  if (process > traces_.size())
    throw Error("ShapeError", "stream: trace: process, got " + std::to_string(process) + ", allowed 0 to " + std::to_string(traces_.size()));
  return process == 0 ? trace_.read() : traces_[process - 1].read();
}

}  // namespace dvm
