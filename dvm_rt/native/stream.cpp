#include "stream.h"
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include <algorithm>
#include <cstring>
#include "matmul.h"
#include "pack.h"

namespace dvm {

constexpr uint64_t FUEL_SHORT = 4096;   // about 20 us: shorter programs run without giving up the GIL
constexpr uint64_t LOG = LOG_CAPACITY;
constexpr uint64_t GROWN_BYTES_LEAST = 4096;
constexpr uint64_t OWN_WORK_NS = 250'000;  // several times what it costs to leave a CPU
constexpr uint64_t SHORT_WAIT_NS = 25'000;  // a tenth of it goes into sleeping and waking up on the device's CPU
constexpr int SHORT_WAITS = 64;
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
      arena_(new Arena(options.arena_bytes_max, !options.inline_mode)),
      machine_(options.target.empty() ? best_target() : [&]() -> const Target& {
        const Target* found = find_target(options.target.c_str());
        if (!found) throw Error("EncodeError", say("stream: target: unknown here, got ", options.target,
            ", allowed those of targets()"));
        return *found;
      }(), options.inline_mode ? options.threads : 1) {
  machine_.limit_loops(uint64_t(options.loop_s * 1e9));
  if (options.tune) machine_.tune();
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

Stream::~Stream() { close(); }

void Stream::enter() const {
  if (fork_generation_ != fork_generation)
    throw Error(
        "ForkedClientError",
        "stream: fork: made by another process, got a call in its child, allowed calls of the process that made it");
  if (closed_.load(std::memory_order_acquire))
    throw Error("ClosedError", "stream: call: closed, got a call, allowed none after close()");
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

void Stream::step_aside() const {
  if (inline_mode_) return;
  static thread_local uint64_t used_ns = 0;  // CPU time of this thread at its last launch, if that came from the device's CPU
  static thread_local int short_waits = 0;   // launches from there since then, while waits were so short
  const uint64_t device = control_.get(CONTROL_DEVICE_CPU);
  const uint64_t now = device < CPU_SETSIZE && device == cpu_now() ? cpu_time_ns() : 0, before = std::exchange(used_ns, now);
  if (!now || !before) return void(short_waits = 0);
  if (const uint64_t wait = expected_wait_ns_; wait && wait < SHORT_WAIT_NS) ++short_waits;
  if (now - before < OWN_WORK_NS && short_waits < SHORT_WAITS) return;
  short_waits = 0;
  cpu_set_t allowed, others;
  if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
  others = allowed;
  CPU_CLR(device, &others);
  if (CPU_COUNT(&others) && !sched_setaffinity(0, sizeof others, &others)) sched_setaffinity(0, sizeof allowed, &allowed);
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
  for (auto* fds : {&descriptors_.rings, &descriptors_.traces})
    for (int fd : *fds) ::close(fd);
  for (int fd : {descriptors_.control, descriptors_.eventfd})
    if (fd >= 0) ::close(fd);
  descriptors_ = {};  // the memory stays mapped: who waits without the lock still looks at it
}

// ---- waiting -----------------------------------------------------------------------------------------------------

bool Stream::wait(uint64_t seq, uint64_t timeout_ns) {
  if (done() >= seq) return true;
  if (inline_mode_) {  // another thread is inside the launch, and holds the lock
    std::lock_guard held(lock_);
    return done() >= seq;
  }
  // A wake-up takes as long as a small launch, so the waiter is awake when the end is near: it spins at once where
  // waits have been short lately, else it sleeps until shortly before the end of one that is as long as they were, and
  // spins then. An end while it sleeps says only that it slept too long: the time of the wake-up is in what it sees,
  // and must not make the next one sleep too.
  const uint64_t start = now_ns(), spin_ns = uint64_t(options_.spin_us * 1e3),
                 end = timeout_ns > NEVER - start ? NEVER : start + timeout_ns;
  const uint64_t expected = expected_wait_ns_, early = expected > spin_ns ? start + expected - 3 * spin_ns / 4 : start;
  uint64_t spin = early + 2 * spin_ns, now = start;
  bool overslept = false;
  for (uint32_t round = 0; done() < seq; ++round) {
    enter();
    if (control_.events_waiting() || pushed_ < launched())
      if (std::unique_lock held(lock_, std::try_to_lock); held) retire(), flush();
    // Spinning beside the device would keep it from running.
    if (now < spin && (round & 15) == 0 && cpu_now() == control_.get(CONTROL_DEVICE_CPU)) spin = 0;
    if (now >= early && now < spin) {
      overslept = false;
      for (int i = 0; i < 8 && done() < seq; ++i) pause_cpu();
    } else {
      if (now >= end) return false;
      overslept = now < early;
      control_.sleep(seq, (now < early && spin ? std::min(early, end) : end) - now);
    }
    now = now_ns();
  }
  const uint64_t waited = now - start, most = std::min(waited, expected);
  if (overslept) expected_wait_ns_ = most > spin_ns ? most - spin_ns / 2 : most / 2;
  else expected_wait_ns_ = waited < expected ? waited : expected + (waited - expected) / 4;
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
  uint64_t grown = std::max<uint64_t>(bytes + bytes / 16, 1 << 16);
  workspace_ = {};  // launches in flight go on using it; the stream's order makes that safe
  Buffer* buffer = arena_->allocate(grown, done(), Writer::LAUNCH, Use::WORKSPACE);
  workspace_ = BufferRef(buffer ? buffer : output_buffer(bytes, Use::WORKSPACE));
}

// The packed form of a parameter, or of several side by side, made on first use and kept as long as its (first) source.
Buffer* Stream::packed(std::span<const PlanPack> packs, std::span<const PackKey> keys) {
  const Tensor& first = *parameters_[packs[0].parameter];
  auto placed = [](const Tensor& source, PackKey key) {
    return key.offset += int64_t(source.offset / DTYPE_BYTES[key.dtype]), key;
  };
  const PackKey key = placed(first, keys[0]);
  parts_.clear();
  for (size_t i = 1; i < packs.size(); ++i) {
    const Tensor& source = *parameters_[packs[i].parameter];
    parts_.push_back({source.buffer.get(), source.buffer->serial, placed(source, keys[i])});
  }
  for (Packed& form : first.buffer->packed)
    if (form.key == key && form.more == parts_) return form.buffer.get();
  uint64_t bytes = 0;
  for (size_t i = 0; i < packs.size(); ++i) {
    const Tensor& source = *parameters_[packs[i].parameter];
    const bool beside = i + 1 < packs.size();  // others follow: they begin at a panel
    if (keys[i].k != keys[0].k || keys[i].dtype != keys[0].dtype || (beside && keys[i].n % PANEL) || keys[i].n <= 0)
      throw Error("ShapeError",
                  say("stream: pack: matrix ", i, " of ", packs.size(), " side by side, got ", keys[i].k, " by ",
                      keys[i].n, ", allowed ", keys[0].k, " rows, columns that fill panels, and one dtype"));
    if (pack_source_bytes(keys[i]) > source.bytes)
      throw Error("ShapeError", say("stream: pack: bytes of the source, got ", source.bytes,
          ", allowed at least ", pack_source_bytes(keys[i])));
    bytes += packed_bytes(keys[i]);
  }
  const uint64_t begin_ns = look();
  BufferRef form(output_buffer(bytes, Use::PACKED));
  ++counters_.packs;
  if (packs.size() == 1) {
    pack(first, keys[0], *form.get(), 0);
  } else {
    const int64_t slice = slice_k(key.k), element = DTYPE_BYTES[key.dtype], columns = int64_t(bytes) / element / key.k;
    for (int64_t k = 0; k < key.k; k += slice) {
      uint64_t at = uint64_t(k * columns * element);
      for (size_t i = 0; i < packs.size(); ++i) {
        PackKey part = keys[i];
        part.k = std::min(slice, key.k - k), part.offset += k * part.stride_k;
        pack(*parameters_[packs[i].parameter], part, *form.get(), at);
        at += packed_bytes(part);
      }
    }
  }
  trace_.add(TraceKind::PACK, begin_ns, now_ns(), launched_, bytes >> 10);  // the launches that it gave, up to this one
  auto& forms = first.buffer->packed;
  std::erase_if(forms, [&](const Packed& old) {  // beside matrices that are no more
    return std::any_of(old.more.begin(), old.more.end(),
                       [](const PackPart& p) { return p.source->serial != p.serial || p.source->dead; });
  });
  forms.push_back({key, parts_, std::move(form)});
  return forms.back().buffer.get();
}

void Stream::pack(const Tensor& source, const PackKey& key, Buffer& form, uint64_t at) {
  if (source.buffer->gone) restore(*source.buffer.get());
  Instance& instance = packing(key, false);
  const Argument arguments[] = {{source.buffer.get(), source.arena_offset(), source.bytes, false},
                                {&form, form.offset + at, packed_bytes(key), true}};
  submit(instance, arguments);
}

// The program that packs, or (`back`) unpacks.
Instance& Stream::packing(const PackKey& key, bool back) {
  const int64_t symbols[] = {key.k, key.n, key.stride_k, key.stride_n, key.offset, key.dtype, back};
  const uint64_t hash = hash_of(symbols);
  PlanState& plan = *plans_[0];
  Instance* found = find(plan, symbols, hash);
  Instance& instance = found ? *found : make_instance(plan, symbols, hash);
  touch(instance);
  return instance;
}

// ---- sources of packed forms --------------------------------------------------------------------------------------

static bool unpacks(const Packed& form, const Buffer& source) { return form.more.empty() && packs_all(form.key, source.bytes); }

bool Stream::may_give_up(const Buffer& buffer) const {
  if (buffer.use != Use::TENSOR || buffer.viewed || buffer.gone || buffer.failure) return false;
  if (!buffer.block || buffer.extent) return false;  // others share its memory
  return std::any_of(buffer.packed.begin(), buffer.packed.end(), [&](const Packed& form) { return unpacks(form, buffer); });
}

// Whether a plan also reads the matrix itself.
bool Stream::wanted_as_it_is(const PlanState& state, const Buffer* buffer) const {
  for (auto& b : state.plan->buffers())
    if (BufferRole(b.role) == BufferRole::PARAMETER && parameters_[b.index]->buffer.get() == buffer) return true;
  return false;
}

uint64_t Stream::release_sources() {
  release_sources_ = true;
  uint64_t bytes = 0;
  arena_->for_each([&](Buffer& buffer) {
    if (may_give_up(buffer)) bytes += buffer.bytes, arena_->give_up(&buffer);
  });
  return bytes;
}

void Stream::restore(Buffer& buffer) {
  for (Packed& form : buffer.packed) {
    if (!unpacks(form, buffer)) continue;
    Instance& instance = packing(form.key, true);
    arena_->take(&buffer, output_buffer(buffer.bytes, Use::TENSOR));
    const Argument arguments[] = {{form.buffer.get(), form.buffer->offset, form.buffer->bytes, false},
                                  {&buffer, buffer.offset, buffer.bytes, true}};
    try {
      return submit(instance, arguments);
    } catch (...) {  // no room in the log: it stays gone
      arena_->give_up(&buffer);
      throw;
    }
  }
}

void Stream::prepare(uint32_t number, std::span<const Tensor* const> args) {
  ++counters_.calls;
  looks_ = {};
  outputs_.clear();
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
  arguments_.resize(state.arguments.size());
  Argument* argument = arguments_.data();
  for (uint16_t b : state.arguments) {
    uint64_t bytes = instance.buffer_bytes[b];
    Argument& a = *argument++;  // filled where it is: a copy of what was just written waits for it to leave the store buffer
    if (BufferRole(buffers[b].role) == BufferRole::PARAMETER) {
      const Tensor& t = *parameters_[buffers[b].index];
      if (t.buffer->gone) restore(*t.buffer.get());
      a.buffer = t.buffer.get(), a.offset = t.arena_offset(), a.bytes = t.bytes, a.writable = false;
    } else if (BufferRole(buffers[b].role) == BufferRole::PACKED) {
      const size_t pack = buffers[b].pack, count = 1 + state.plan->packs()[pack].reserved;
      const std::span keys(&instance.packs[pack], count);
      const Tensor& source = *parameters_[buffers[b].index];
      Buffer* form = keys[0].k > 0 && keys[0].n > 0 && !instance.empty
                         ? packed(state.plan->packs().subspan(pack, count), keys)
                         : nullptr;
      if (release_sources_ && may_give_up(*source.buffer.get()) && !wanted_as_it_is(state, source.buffer.get()))
        arena_->give_up(source.buffer.get());
      a.buffer = form, a.offset = form ? form->offset : 0, a.bytes = form ? form->bytes : 0, a.writable = false;
    } else {
      const uint16_t continues = buffers[b].pack;
      made_[b] = BufferRef(continues == NONE ? output_buffer(bytes, Use::TENSOR) : grown(*parameters_[continues], bytes));
      a.buffer = made_[b].get(), a.offset = a.buffer->offset, a.bytes = bytes, a.writable = true;
    }
  }
  outputs_.resize(instance.outputs.size());
  Tensor* output = outputs_.data();
  for (auto& o : instance.outputs) {
    Tensor& made = *output++;
    made.bytes = o.bytes, made.dtype = o.dtype, made.rank = o.rank, made.dims = o.dims;
    if (BufferRole(buffers[o.buffer].role) == BufferRole::PARAMETER) {
      const Tensor& t = *parameters_[buffers[o.buffer].index];
      made.buffer = t.buffer, made.offset = t.offset;
    } else {
      made.buffer = o.last ? std::move(made_[o.buffer]) : made_[o.buffer];
    }
  }
}

bool Stream::long_running() const { return inline_mode_ && prepared_->program && prepared_->program->head().fuel > FUEL_SHORT; }

Stream::Looks Stream::execute() {
  Instance& instance = *std::exchange(prepared_, nullptr);
  if (!instance.empty) submit(instance, arguments_);
  made_.clear();
  return inline_mode_ ? looks_ : Looks{};
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
