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
constexpr uint64_t LOG = LOG_CAPACITY;
constexpr uint64_t GROWN_BYTES_LEAST = 4096;
constexpr size_t RING_BYTES_MIN = 256 << 10;  // two of the largest launch records, and some

static uint64_t fork_generation = 0;
static void watch_forks() {
  static const int once = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });
  (void)once;
}

static void check_limit(const char* name, uint64_t got, uint64_t least, uint64_t most) {
  if (got < least || got > most)
    throw Error("ShapeError", say("stream: options: ", name, ", got ", got, ", allowed ", least, " to ",
        most));
}

Stream::Stream(const StreamOptions& options)
    : options_(options),
      inline_mode_(options.inline_mode),
      arena_(new Arena(options.arena_bytes_max)),
      machine_(options.target.empty() ? best_target() : [&]() -> const Target& {
        const Target* found = find_target(options.target.c_str());
        if (!found) throw Error("EncodeError", say("stream: target: unknown here, got ", options.target,
            ", allowed those of targets()"));
        return *found;
      }(), options.inline_mode ? options.threads : 1) {
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
  arena_->prepare_ahead();
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
  stop_ = failure_of(std::move(error));
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

// ---- launches -----------------------------------------------------------------------------------------------------

// Memory for something that a launch writes: any free block will do.
Buffer* Stream::output_buffer(uint64_t bytes, Use use) {
  if (Buffer* buffer = arena_->allocate(bytes, done(), Writer::LAUNCH, use)) return buffer;
  throw out_of_memory(bytes);
}

// Memory for an output that continues a tensor: behind it, or new and with room for as much again.
Buffer* Stream::grown(const Tensor& from, uint64_t bytes) {
  Buffer* root = from.buffer->root ? from.buffer->root.get() : from.buffer.get();
  const bool newest = root->extent && root->extent == from.bytes && from.offset == 0;
  if (newest && bytes <= root->bytes) {
    extents_.emplace_back(root, std::exchange(root->extent, bytes));
    ++counters_.appended_in_place;
    return arena_->continued(root);
  }
  Buffer* buffer = arena_->allocate(std::max(2 * bytes, GROWN_BYTES_LEAST), done(), Writer::LAUNCH);
  if (!buffer) buffer = output_buffer(bytes, Use::TENSOR);
  buffer->extent = bytes;
  return buffer;
}

Error Stream::out_of_memory(uint64_t bytes) {
  MemoryReport report = arena_->report();
  return Error("DeviceOutOfMemoryError", say("arena: allocate: bytes, got ", bytes, ", allowed ", report.free,
      " (arena_bytes_max ", arena_->bytes_max(), ")"), {{"requested", int64_t(bytes)}, {"free",
      int64_t(report.free)}});
}

std::optional<Tensor> Stream::host_tensor(uint8_t dtype, std::span<const int64_t> shape) {
  Tensor tensor;
  tensor.bytes = shape_bytes(dtype, shape);
  Buffer* buffer = arena_->allocate(tensor.bytes, done(), Writer::HOST);
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
  Buffer* buffer = arena_->allocate(grown, done(), Writer::LAUNCH, Use::WORKSPACE);
  workspace_ = BufferRef(buffer ? buffer : output_buffer(bytes, Use::WORKSPACE));
}

// The packed form of a parameter, made on first use and kept as long as its source.
Buffer* Stream::packed(const Tensor& source, const PackKey& plan_key) {
  PackKey key = plan_key;
  key.offset += int64_t(source.offset / DTYPE_BYTES[key.dtype]);
  for (Packed& form : source.buffer->packed)
    if (form.key == key) return form.buffer.get();
  int64_t symbols[] = {plan_key.k, plan_key.n, plan_key.stride_k, plan_key.stride_n, plan_key.offset, plan_key.dtype};
  uint64_t hash = hash_of(symbols);
  PlanState& plan = *plans_[0];
  Instance* instance = find(plan, symbols, hash);
  if (!instance) instance = &make_instance(plan, symbols, hash);
  BufferRef destination(output_buffer(instance->buffer_bytes[1], Use::PACKED));
  if (instance->buffer_bytes[0] > source.bytes)
    throw Error("ShapeError", say("stream: pack: bytes of the source, got ", source.bytes,
        ", allowed at least ", instance->buffer_bytes[0]));
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
  extents_.clear();
  try {
    prepare_parts(plan_state(number), args);
  } catch (...) {  // what was allocated for it so far is free again
    for (auto [root, extent] : extents_) root->extent = extent;
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
  if (!inline_mode_) ahead_.observe(state.number, instance.symbols);
  if (instance.guessed) instance.guessed = false, ++counters_.guessed_right;
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
      const uint16_t continues = buffers[b].pack;
      made_[b] = BufferRef(continues == NONE ? output_buffer(bytes, Use::TENSOR) : grown(*parameters_[continues], bytes));
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
      throw Error("BackpressureTimeout", say("stream: log: uncommitted launches, got ", seq - retired_,
          ", allowed ", LOG));
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

// ---- for those who look -------------------------------------------------------------------------------------------

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
    throw Error("ShapeError", say("stream: trace: process, got ", process, ", allowed 0 to ",
        traces_.size()));
  return process == 0 ? trace_.read() : traces_[process - 1].read();
}

}  // namespace dvm
