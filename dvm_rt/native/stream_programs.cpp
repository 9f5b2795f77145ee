// The stream's plans, operator instances and programs: found or made, encoded here or asked for, given up.
#include <algorithm>
#include "near_code.h"
#include "pack.h"
#include "stream.h"
#include "verify.h"

namespace dvm {

constexpr size_t SPARES_TOGETHER = 16;

// ---- plans and instances ------------------------------------------------------------------------------------------

PlanState& Stream::plan_state(uint32_t number) {
  if (number > 0 && number < plans_.size() && !plans_[number]->forgotten) return *plans_[number];
  throw Error("GraphError", say("stream: plan: unknown number, got ", number,
      ", allowed those of register()"));
}

uint32_t Stream::register_plan(std::span<const uint8_t> bytes, std::vector<Tensor> captured) {
  std::string error;
  auto state = std::make_unique<PlanState>();
  state->plan = Plan::load(bytes.data(), bytes.size(), error);
  if (!state->plan) throw Error("GraphError", error);
  if (captured.size() > state->plan->parameters().size())
    throw Error("ShapeError", say("stream: register: captured tensors, got ", captured.size(), ", allowed ",
        state->plan->parameters().size()));
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
  ahead_.forget(number);
  for (Instance* instance = oldest_; instance;) {
    Instance* newer = instance->newer;
    if (instance->plan == &plan && instance->last_seq <= retired_) forget(instance);  // the others when they are evicted
    instance = newer;
  }
  release_plan(plan);
  flush();  // the device hears of it while nobody waits
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
    if (i->hash == hash && are_equal(symbols.data(), i->symbols.data(), symbols.size())) return i;
  return nullptr;
}

Instance* Stream::instance_of(uint64_t id) const {
  Instance* const* found = instances_.find(id);
  return found ? *found : nullptr;
}

bool Stream::evaluate(const PlanState& state, std::span<const int64_t> symbols) {
  values_.resize(state.plan->exprs().size());
  return state.plan->evaluate(symbols.data(), values_.data());
}

// Several at once, with room for what this plan's need: their memory is new, and the first touch of a page takes longer than
// all the rest.
void Stream::make_spares(const Plan* plan) {
  for (size_t i = 0; i < SPARES_TOGETHER; ++i) {
    Instance& spare = instance_store_.emplace_back();
    if (plan) {
      spare.symbols.reserve(plan->symbols().size());
      spare.outputs.reserve(plan->outputs().size());
      spare.packs.reserve(plan->packs().size());
      spare.buffer_bytes.reserve(plan->buffers().size());
      size_t dims = 0;
      for (auto& parameter : plan->parameters()) dims += parameter.rank;
      spare.dims.reserve(dims);
    }
    spare_instances_.push_back(&spare);
  }
}

// Who makes many does not wait for the memory of each: the next spare's vectors, and the one after it, are on their way.
void Stream::fetch_spares() const {
  const size_t count = spare_instances_.size();
  if (count >= 1) {
    const Instance& next = *spare_instances_[count - 1];
    for (const void* data : {static_cast<const void*>(next.symbols.data()), static_cast<const void*>(next.dims.data()),
                             static_cast<const void*>(next.outputs.data()), static_cast<const void*>(next.buffer_bytes.data()),
                             static_cast<const void*>(next.packs.data())})
      __builtin_prefetch(data, 1);
  }
  if (count >= 2) fetch_lines(spare_instances_[count - 2], spare_instances_[count - 2] + 1);
}

// values_ hold the plan's expressions for these symbols.
Instance& Stream::make_instance(PlanState& plan, std::span<const int64_t> symbols, uint64_t hash) {
  if (spare_instances_.empty()) make_spares(plan.plan.get());
  Instance& instance = *spare_instances_.back();
  instance.plan = &plan;
  instance.hash = hash;
  instance.symbols.assign(symbols.begin(), symbols.end());
  instance.dims.clear(), instance.outputs.clear(), instance.buffer_bytes.clear(), instance.packs.clear();
  instance.workspace_bytes = instance.last_seq = instance.uses = instance.program_bytes = 0;
  instance.shipped = instance.pushed = 0;
  instance.empty = instance.failure_pushed = instance.guessed = instance.ahead = false;
  instance.state = ProgramState::ABSENT;
  instance.newer = nullptr;
  instance.id = next_id_++;
  describe(instance);
  check_encoded(instance);
  spare_instances_.pop_back();
  fetch_spares();
  if (plan.instances * 2 >= plan.buckets.size()) {  // most lookups find nothing, and follow no chain to know it
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
  instances_[instance.id] = &instance;
  evict();
  return instance;
}

static Error no_sizes(const PlanState& state, std::span<const int64_t> symbols) {
  return Error("ShapeError", say("stream: plan ", state.number, ": dimensions ", shape_text(symbols),
      ": sizes, got an overflow or a division by zero, allowed 64 bits"));
}

// What follows from the dimensions alone: shapes and bytes of everything, without the program.
void Stream::describe(Instance& instance) {
  PlanState& state = *instance.plan;
  if (!state.plan) {
    const int64_t* s = instance.symbols.data();
    PackKey key{s[0], s[1], s[2], s[3], s[4], s[5]};
    instance.buffer_bytes = {pack_source_bytes(key), packed_bytes(key)};
    if (s[6]) std::swap(instance.buffer_bytes[0], instance.buffer_bytes[1]);
    return;
  }
  const Plan& plan = *state.plan;
  auto bad = [&](const std::string& what, const std::string& got, const char* allowed) {
    return Error("ShapeError", say("stream: plan ", state.number, ": dimensions ", shape_text(instance.symbols),
        ": ", what, ", got ", got, ", allowed ", allowed));
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
      throw bad("bytes of an output's buffer", std::to_string(instance.buffer_bytes[out.buffer]),
                std::to_string(out.bytes).c_str());
  for (uint64_t slot : slots_) instance.workspace_bytes += (slot + ARENA_ALIGN - 1) & ~uint64_t(ARENA_ALIGN - 1);
  for (auto& p : plan.packs())
    instance.packs.push_back({value(p.k), value(p.n), value(p.stride_k), value(p.stride_n), value(p.offset),
                              plan.parameters()[p.parameter].dtype});
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
  for (Instance* instance = oldest_;
       instance && instance != newest_ && counters_.program_cache_bytes > options_.program_cache_bytes;) {
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

// Asks for what making a program needs, code, tables, plan and room, all at once: after other work it is in no cache.
void Stream::fetch(const PlanState& state) const {
  constexpr size_t PLAN_BYTES = 8192, PROGRAM_BYTES = 1024;  // of some kernels
  fetch_lines(__start_dvm_encodes, __stop_dvm_encodes);
  if (state.plan) {
    const std::span<const std::byte> plan = state.plan->memory();
    fetch_lines(plan.data(), plan.data() + std::min(plan.size(), PLAN_BYTES));
    if (state.plan->has_products()) fetch_lines(__start_dvm_products, __stop_dvm_products);
    for (size_t at = 0; at < std::min(scratch_.size(), PROGRAM_BYTES); at += 64) __builtin_prefetch(scratch_.data() + at, 1);
  }
  fetch_lines(__start_dvm_proves, __stop_dvm_proves);
  programs_.fetch(PROGRAM_BYTES);
}

// Valid until the next encode. Empty: `failure` says why, or there is nothing to run.
std::span<const uint8_t> Stream::encode(Instance& instance, Failure& failure, bool evaluated) {
  const uint64_t begin = look();
  PlanState& state = *instance.plan;
  if (inline_mode_) fetch(state);
  size_t bytes = 0;
  if (!state.plan) {
    const int64_t* s = instance.symbols.data();
    const PackKey key{s[0], s[1], s[2], s[3], s[4], s[5]};
    scratch_ = s[6] ? unpack_program(key) : pack_program(key);
    bytes = scratch_.size();
  } else {
    if (!evaluated) evaluate(state, instance.symbols);
    if (scratch_.size() < state.plan->program_bytes_max()) scratch_.resize(state.plan->program_bytes_max());
    EncodeResult result = dvm::encode(*state.plan, values_.data(), scratch_.data(), scratch_.size());
    bytes = size_t(result.bytes);
    if (result.error)
      failure = failure_of({"EncodeError", say("encoder: plan ", state.number, " kernel ",
          result.kernel, " for dimensions ", shape_text(instance.symbols), ": ", result.error,
          ", got a plan beyond it, allowed what a program can hold")});
  }
  if (!failure && !inline_mode_ && bytes > program_bytes_max())
    failure = failure_of({"EncodeError", say("encoder: plan ", state.number,
        ": program for the ring, got ", bytes, " bytes, allowed ", program_bytes_max())});
  work_for(encode_work_ns_);
  uint64_t end = encoded_at_ns_ = now_ns();
  ++counters_.encoded;
  counters_.encode_ns += end - begin;
  instance.program_bytes = bytes;
  trace_.add(TraceKind::ENCODE, begin, end, instance.id, state.number);
  return {scratch_.data(), failure ? 0 : bytes};
}

static Failure invalid(const Instance& instance, uint32_t code, uint32_t section, uint32_t word) {
  const char* name = code < std::size(VerifyCode_NAMES) ? VerifyCode_NAMES[code] : "unknown";
  return failure_of({"InvalidBytecodeError", say("verifier: program ", instance.id, " of plan ",
      instance.plan->number, ", section ", section, ", word ", word, ": refused, got ", name,
      ", allowed what verify() accepts"), {{"code", code}, {"section", section}, {"word", word}}});
}

// Whether a program takes what launches of this instance give it.
bool Stream::is_for(const Instance& instance, const VerifiedProgram& program) const {
  const std::vector<uint16_t>& buffers = instance.plan->arguments;
  if (program.head().arg_count != buffers.size()) return false;
  for (size_t i = 0; i < buffers.size(); ++i)
    if (program.args()[i].bytes > instance.buffer_bytes[buffers[i]]) return false;
  return true;
}

// A new instance whose program is made here, or given: errors belong to the call that asked for it.
void Stream::check_encoded(Instance& instance) {
  if (instance.empty || (given_.empty() && !inline_mode_ && where(*instance.plan) == Where::WORKERS)) return;
  Failure failure;
  auto bytes = given_.empty() ? encode(instance, failure, true) : given_;
  if (failure) throw *failure;
  if (bytes.empty()) {
    instance.empty = true;
    return;
  }
  if (!given_.empty()) {  // who reads it back from somewhere has not proved anything
    encoded_at_ns_ = now_ns();
    VerifyError error;
    auto program = VerifiedProgram::load(bytes.data(), bytes.size(), error);
    if (!program) throw *invalid(instance, uint32_t(error.code), error.section, error.word);
    if (!is_for(instance, *program)) throw *invalid(instance, uint32_t(VerifyCode::ARGUMENT), 0, 0);
    instance.program_bytes = bytes.size();
  }
  auto* head = reinterpret_cast<const ProgramHead*>(bytes.data());
  instance.workspace_bytes = std::max(instance.workspace_bytes, head->workspace_bytes);
  if (!inline_mode_) {
    if (push_record(0, instance.id, bytes)) instance.state = ProgramState::READY, ++instance.pushed;
    return;  // else flush() does it again
  }
  uint64_t begin = encoded_at_ns_;
  VerifyError error;
  instance.program = VerifiedProgram::load(bytes.data(), bytes.size(), error, &programs_);
  if (!instance.program) throw *invalid(instance, uint32_t(error.code), error.section, error.word);
  machine_.reserve(*instance.program);
  instance.state = ProgramState::READY;
  uint64_t end = now_ns();
  counters_.load_ns += end - begin;
  trace_.add(TraceKind::LOAD, begin, end, instance.id, instance.plan->number);
  programs_.prepare();
}

bool Stream::push_record(uint32_t flags, uint64_t id, std::span<const uint8_t> program) {
  RingHead record{uint32_t(RingKind::PROGRAM), flags, id};
  return ring_.append({reinterpret_cast<const uint8_t*>(&record), sizeof record}, program);
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
      if (outbox_.empty()) outbox_since_ns_ = now_ns();
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

// ---- from arguments to an instance --------------------------------------------------------------------------------

static std::string parameter_text(const PlanState& plan, size_t i) {
  return "stream: plan " + std::to_string(plan.number) + ": parameter " + std::to_string(i);
}

static void check_dims(const PlanState& plan, std::span<const Tensor* const> parameters, auto wanted) {
  for (size_t i = 0, at = 0; i < parameters.size(); ++i) {
    const Tensor& t = *parameters[i];
    for (int d = 0; d < t.rank; ++d)
      if (int64_t dim = wanted(i, d, at++); t.dims[d] != dim)
        throw Error("ShapeError", say(parameter_text(plan, i), ": dimension ", d, " of shape ",
            shape_text(t.shape()), ", got ", t.dims[d], ", allowed ", dim));
  }
}

Instance& Stream::instance_for(PlanState& state, std::span<const Tensor* const> parameters) {
  const Plan& plan = *state.plan;
  auto wanted = plan.parameters();
  if (parameters.size() != wanted.size())
    throw Error("ShapeError", say("stream: plan ", state.number, ": arguments, got ",
        parameters.size() - state.captured.size(), ", allowed ", wanted.size() - state.captured.size()));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& t = *parameters[i];
    if (t.dtype != wanted[i].dtype)
      throw Error("DTypeError", say(parameter_text(state, i), ": dtype, got ", DTYPE_NAMES[t.dtype],
          ", allowed ", DTYPE_NAMES[wanted[i].dtype]));
    if (t.rank != wanted[i].rank)
      throw Error("ShapeError", say(parameter_text(state, i), ": rank of shape ", shape_text(t.shape()), ", got ",
          t.rank, ", allowed ", wanted[i].rank));
    if (t.buffer->arena != arena_)
      throw Error("GraphError", say(parameter_text(state, i),
                                    ": runtime, got an array of another one, allowed arrays of one runtime"));
  }
  int64_t symbols[MAX_SYMBOLS];
  size_t count = plan.symbols().size();
  for (size_t i = 0; i < count; ++i) symbols[i] = parameters[plan.symbols()[i].parameter]->dims[plan.symbols()[i].dim];
  uint64_t hash = hash_of({symbols, count});
  if (Instance* found = find(state, {symbols, count}, hash)) {
    check_dims(state, parameters, [&](size_t, int, size_t at) { return found->dims[at]; });
    if (found->state != ProgramState::FAILED || found->last_seq > retired_) {
      ++counters_.cached_calls;
      return *found;
    }
    forget(found);  // who asks again gets a new attempt
  }
  if (!evaluate(state, {symbols, count})) throw no_sizes(state, {symbols, count});
  // Before anything is encoded for them: a wrong call must not fill the cache.
  check_dims(state, parameters, [&](size_t i, int d, size_t) {
    uint16_t expression = wanted[i].dims[d];
    return expression == NONE ? 0 : values_[expression];
  });
  return make_instance(state, {symbols, count}, hash);
}

uint64_t Stream::adopt(uint32_t number, std::span<const int64_t> symbols, std::span<const uint8_t> program) {
  given_ = program;
  struct Ends {
    std::span<const uint8_t>& given;
    ~Ends() { given = {}; }
  } ends{given_};
  return prefetch(number, symbols);
}

std::vector<uint8_t> Stream::encoded(uint32_t number, std::span<const int64_t> symbols) {
  PlanState& plan = plan_state(number);
  Instance* instance = find(plan, symbols, hash_of(symbols));
  if (!instance || instance->empty) return {};
  Failure failure;
  auto bytes = encode(*instance, failure);
  return {bytes.begin(), bytes.end()};
}

uint64_t Stream::prefetch(uint32_t number, std::span<const int64_t> symbols) {
  PlanState& plan = plan_state(number);
  if (!plan.plan || symbols.size() != plan.plan->symbols().size())
    throw Error("ShapeError", say("stream: prefetch: symbols of plan ", number, ", got ", symbols.size(),
        ", allowed ", plan.plan ? plan.plan->symbols().size() : 0));
  uint64_t hash = hash_of(symbols);
  Instance* instance = find(plan, symbols, hash);
  if (!instance && !evaluate(plan, symbols)) throw no_sizes(plan, symbols);
  if (!instance) instance = &make_instance(plan, symbols, hash), instance->ahead = true;
  if (!inline_mode_ && !instance->empty) provide(*instance, false);
  if (!inline_mode_ && instance->state != ProgramState::ENCODING) wake_device();  // else there is nothing for it yet
  return instance->id;
}

// ---- programs before they are wanted ------------------------------------------------------------------------------

void Stream::run_ahead(uint64_t until) {
  if (inline_mode_ || !options_.ahead_depth) return;
  for (const RunAhead::Call& call : ahead_.guesses(options_.ahead_depth, options_.ahead_branches, options_.ahead_max)) {
    if (done() >= until) break;
    guess(call);
  }
  drop_guesses(options_.ahead_max);
  wake_device();
}

void Stream::guess(const RunAhead::Call& call) {
  if (call.plan >= plans_.size() || plans_[call.plan]->forgotten) return;
  PlanState& plan = *plans_[call.plan];
  const uint64_t hash = hash_of(call.symbols);
  if (call.symbols.size() != plan.plan->symbols().size() || find(plan, call.symbols, hash)) return;
  try {
    if (!evaluate(plan, call.symbols)) return;
    Instance& instance = make_instance(plan, call.symbols, hash);
    instance.guessed = instance.ahead = true;
    guesses_.push_back(instance.id);
    ++counters_.guessed;
    if (!instance.empty) provide(instance, false);
  } catch (const Error&) {  // no such sizes, or more than a program can hold: whoever calls it is told
  }
}

// The oldest guesses that nobody called are wrong: their programs are given up.
void Stream::drop_guesses(size_t keep) {
  while (guesses_.size() > keep) {
    Instance* instance = instance_of(guesses_.front());
    guesses_.pop_front();
    if (!instance || !instance->guessed) continue;
    ++counters_.guessed_wrong;
    if (instance->state != ProgramState::ENCODING) forget(instance);
    else instance->guessed = false;  // a worker has it in hand: it goes when there is no room
  }
}

}  // namespace dvm
