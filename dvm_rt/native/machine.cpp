// Runs verified programs: binds arguments, clears what must not show old bytes, runs section after section.
#include "machine.h"
#include "shared.h"
#include "together.h"
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#if defined(DVM_X86)
#include <immintrin.h>
#endif

namespace dvm {

// One build of the kernels each; see CMakeLists.txt.
#if defined(DVM_AVX512)
namespace avx512 { extern const Target target; }
#endif
#if defined(DVM_AVX2)
namespace avx2 { extern const Target target; }
#endif
namespace baseline { extern const Target target; }

HostRunner host_runner = nullptr;

namespace {

// The arithmetic of programs is defined with round to nearest and subnormals; a host may have changed that.
class FloatMode {
#if defined(DVM_X86)
 public:
  FloatMode() : before_(_mm_getcsr()) {
    if ((before_ | STICKY) != DEFAULT) _mm_setcsr(DEFAULT);
  }
  ~FloatMode() {
    if ((before_ | STICKY) != DEFAULT) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned STICKY = 0x3f, DEFAULT = 0x1f80 | STICKY;
  unsigned before_;
#endif
};

constexpr int64_t FAR_BYTES = 2 << 20, PART_BYTES = 256 << 10;  // of sections, and of their parts, that one thread runs
// Few parts: memory takes a microsecond to be at its speed again. In 768 of them swiglu of 4096x4096 took 12 % longer.
constexpr int64_t PARTS_ALONE = 16;
constexpr int64_t TOGETHER_NS = 10'000;  // as for one section (split.cpp), of two halves
constexpr int64_t WAKE_NS = 100'000;  // modelled work from which on threads that sleep are woken: a wake-up takes 30 to 50 us

uint8_t* allocate(size_t bytes) { return static_cast<uint8_t*>(::operator new(bytes, std::align_val_t(ARENA_ALIGN))); }
void release(uint8_t* p) { ::operator delete(p, std::align_val_t(ARENA_ALIGN)); }

bool fits(const ProgramArg& want, const Binding& got) {
  return got.bytes >= want.bytes && !(reinterpret_cast<uintptr_t>(got.address) & (want.align - 1)) &&
         (got.writable || !is_write(want.mode));
}

}  // namespace

Context::Context() {
  memset(static_cast<void*>(this), 0, offsetof(Context, many));
  lanes_dtype = 255;
}

std::span<const Target* const> targets() {
  static const struct Found {
    const Target* list[3];
    size_t count = 0;
    Found() {
#if defined(DVM_X86)
      __builtin_cpu_init();
      [[maybe_unused]] const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
#if defined(DVM_AVX512)
      if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        list[count++] = &avx512::target;
#endif
#if defined(DVM_AVX2)
      if (has_avx2) list[count++] = &avx2::target;
#endif
#endif
      list[count++] = &baseline::target;
    }
  } found;
  return {found.list, found.count};
}

const Target* find_target(const char* name) {
  for (const Target* target : targets())
    if (!strcmp(target->name, name)) return target;
  return nullptr;
}

const Target& best_target() {
  const char* name = getenv("DVM_RT_TARGET");
  if (!name || !*name) return *targets()[0];
  const Target* named = find_target(name);
  if (!named)
    throw std::invalid_argument("machine: DVM_RT_TARGET: not on this CPU, got " + std::string(name) + ", allowed those of targets()");
  return *named;
}

Machine::Machine(const Target& target, int threads) : target_(&target), threads_(size_t(threads)), scratch_(nullptr, release), results_(nullptr, release), times_(MAX_SECTIONS) {
  for (Thread& thread : threads_) thread.context.reset(new Context);
  if (threads > 1) pool_.reset(new ThreadPool(threads));
}

void Machine::reserve(const VerifiedProgram& program) {
  if (const size_t bytes = program.result_bytes(); bytes > result_bytes_) {
    results_.reset();
    result_bytes_ = 0;
    results_.reset(allocate(bytes));
    result_bytes_ = bytes;
  }
  const size_t need = program.head().scratch_bytes;
  if (need <= scratch_bytes_) return;
  const size_t room = (need + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
  scratch_.reset();
  scratch_bytes_ = 0;
  scratch_.reset(allocate(room * threads_.size()));
  for (size_t i = 0; i < threads_.size(); i++) threads_[i].scratch = scratch_.get() + i * room;
  scratch_bytes_ = room;
}

// ---- one section in parts -------------------------------------------------------------------------------------------

// On all threads; or one after the other, to and fro as threads do: what a section met last is still in L2, and the next one, or
// the next run, begins with it. (With 2 MiB of L2 a chain of 8 of 512x768 takes 120 us instead of 160, rms norm 67 instead of 93.)
void Machine::each_part(int64_t count, ThreadPool::Work work, void* job, bool wake) {
  if (pool_) return pool_->run(count, work, job, wake);
  back_ = !back_;
  for (int64_t i = 0; i < count; i++) work(job, 0, back_ ? count - 1 - i : i);
}

struct Machine::Cut {
  Machine& machine;
  const Run run;
  const SectionRun& whole;
  const Split split;
  const bool streams;
  std::atomic<int64_t> trapped;  // the first part that trapped so far: later ones need not run
};

void Machine::run_part(void* job, int number, int64_t part) {
  Cut& cut = *static_cast<Cut*>(job);
  if (part > cut.trapped.load(std::memory_order_relaxed)) return;
  const FloatMode float_mode;
  Thread& thread = cut.machine.threads_[size_t(number)];
  const SectionView& section = cut.whole.section;
  uint8_t* address[MAX_OPERANDS];
  for (int i = 0; i < section.head->operand_count; i++)
    address[i] = section.operands[i].arg == SCRATCH ? thread.scratch + section.operands[i].base : cut.whole.address[i];
  thread.context->trap = {};
  cut.run(*thread.context, {section, address, thread.scratch, part_begin(cut.split, part), part_begin(cut.split, part + 1)});
#if defined(DVM_X86)
  if (cut.streams) _mm_sfence();  // before anybody hears that this part is done
#endif
  if (thread.context->trap.code == TrapCode::NONE) return;
  if (part < thread.trapped_part) thread.trapped_part = part, thread.trap = thread.context->trap;
  for (int64_t first = cut.trapped; part < first && !cut.trapped.compare_exchange_weak(first, part);) {
  }
}

void Machine::run_cut(const SectionRun& whole, const Split& split, bool streams) {
  Cut cut{*this, run_of(*whole.section.head), whole, split, streams, {split.parts}};
  for (Thread& thread : threads_) thread.trapped_part = split.parts;
  each_part(split.parts, run_part, &cut, split.ns >= WAKE_NS);
  Trap& trap = threads_[0].context->trap;
  trap = {};
  for (Thread& thread : threads_)
    if (thread.trapped_part < split.parts && thread.trapped_part == cut.trapped) trap = thread.trap;
}

struct Machine::Bound {
  std::span<const Binding> args;
  uint8_t *workspace, *scratch;
  void find(const SectionView& section, uint8_t** address) const {
    for (int i = 0; i < section.head->operand_count; i++) {
      const Operand& x = section.operands[i];
      uint8_t* start = x.arg == WORKSPACE ? workspace : x.arg == INDEX ? INDEX_ORIGIN : x.arg == SCRATCH ? scratch : args[x.arg].address;
      address[i] = start + x.base;
    }
  }
};

// Sections that have nothing to do with each other: the parts of all of them are one job, so that the threads share it by
// the work that it is, and sections too small to be cut run beside each other. At most TOGETHER_MAX at a time.
struct Machine::Together {
  Machine& machine;
  std::span<const SectionView> sections;
  uint8_t* address[TOGETHER_MAX][MAX_OPERANDS];
  Split split[TOGETHER_MAX];
  int64_t first[TOGETHER_MAX + 1];  // part of the job that each section begins with
  bool streams;
  std::atomic<int64_t> trapped;
};

void Machine::run_piece(void* job, int number, int64_t part) {
  Together& all = *static_cast<Together*>(job);
  if (part > all.trapped.load(std::memory_order_relaxed)) return;
  const FloatMode float_mode;
  Thread& thread = all.machine.threads_[size_t(number)];
  size_t at = 0;
  while (part >= all.first[at + 1]) at++;
  const SectionView& section = all.sections[at];
  uint8_t* address[MAX_OPERANDS];
  for (int i = 0; i < section.head->operand_count; i++)
    address[i] = section.operands[i].arg == SCRATCH ? thread.scratch + section.operands[i].base : all.address[at][i];
  thread.context->trap = {};
  const int64_t own = part - all.first[at];
  all.machine.run_of(*section.head)(*thread.context, {section, address, thread.scratch, part_begin(all.split[at], own), part_begin(all.split[at], own + 1)});
#if defined(DVM_X86)
  if (all.streams) _mm_sfence();
#endif
  if (thread.context->trap.code == TrapCode::NONE) return;
  if (part < thread.trapped_part) thread.trapped_part = part, thread.trap = thread.context->trap;
  for (int64_t first = all.trapped; part < first && !all.trapped.compare_exchange_weak(first, part);) {
  }
}

// How many of these sections it has run, 0 if one thread is as good; after a trap those up to the one that trapped.
size_t Machine::run_together(const VerifiedProgram& program, size_t first, const Bound& bound) {
  const Beside* beside = beside_of(program) + first;
  const std::span sections = program.sections().subspan(first, std::min<size_t>(beside->count, TOGETHER_MAX));
  int64_t work = 0;
  for (size_t i = 0; i < sections.size(); i++) work += beside[i].ns;
  if (work < TOGETHER_NS && !parts_always_) return 0;
  Together all{*this, sections, {}, {}, {}, program.streams(), {0}};
  int64_t parts = 0;
  for (size_t i = 0; i < sections.size(); i++) {
    bound.find(sections[i], all.address[i]);
    all.split[i] = sections[i].split.wide() ? Split{sections[i].split.units} : split_of_run(sections[i]);
    all.first[i] = parts, parts += all.split[i].parts;
  }
  all.first[sections.size()] = parts, all.trapped = parts;
  for (Thread& thread : threads_) thread.trapped_part = parts;
  pool_->run(parts, run_piece, &all, work >= WAKE_NS);
  sections_split_ += sections.size();
  Trap& trap = threads_[0].context->trap;
  trap = {};
  for (Thread& thread : threads_)
    if (thread.trapped_part < parts && thread.trapped_part == all.trapped) trap = thread.trap;
  size_t done = sections.size();
  if (trap.code != TrapCode::NONE)
    while (all.first[done - 1] > all.trapped) done--;
  return done;
}

class Machine::Crew : public Team {
 public:
  Crew(Machine& machine, const Split& split, bool streams) : machine_(machine), streams_(streams), wake_(split.ns >= WAKE_NS) {
    parts = split.parts, results = machine.results_.get();
  }
  void each(int64_t count, Work work, void* job) override {
    work_ = work, job_ = job;
    machine_.each_part(count, run_one, this, wake_);
  }

 private:
  static void run_one(void* crew, int thread, int64_t part) {
    Crew& own = *static_cast<Crew*>(crew);
    const FloatMode float_mode;
    own.work_(own.job_, *own.machine_.threads_[size_t(thread)].context, part);
#if defined(DVM_X86)
    if (own.streams_) _mm_sfence();
#endif
  }
  Machine& machine_;
  const bool streams_, wake_;
  Work work_ = nullptr;
  void* job_ = nullptr;
};

void Machine::run_wide(const SectionRun& whole, const Split& split, bool streams) {
  Crew crew(*this, split, streams);
  SectionRun run = whole;
  run.team = &crew;
  run_of(*whole.section.head)(*threads_[0].context, run);
}

// The parts in which a section runs: as modelled where there are several threads; a few of 256 KiB or more where there is one,
// if all that a vector section reads and writes does not fit into L2, and a part does.
Split Machine::split_of_run(const SectionView& section) const {
  Split split = section.split;
  if (parts_always_) {
    split.parts = std::min(split.pieces(), parts_always_);
  } else if (!pool_ && split.parts > 1) {
    int64_t bytes = 0;  // of all units
    for (int i = 0; i < section.head->operand_count; i++) {
      const Operand& x = section.operands[i];
      if (x.arg != SCRATCH && x.arg != INDEX && x.stride[0]) bytes += DTYPE_BYTES[x.dtype] * section.head->dims[0] * split.units;
    }
    const bool rows = SectionKind(section.head->kind) == SectionKind::VECTOR && split.beside == 1;
    const bool far = bytes > FAR_BYTES && bytes <= PARTS_ALONE * FAR_BYTES;
    split.parts = rows && far ? std::min({split.pieces(), bytes / PART_BYTES, PARTS_ALONE}) : 1;
  }
  return split;
}

Machine::Run Machine::run_of(const Section& section) const {
  switch (SectionKind(section.kind)) {
    case SectionKind::VECTOR: return target_->vector[section.dtype];
    case SectionKind::MATMUL: return target_->matmul;
    case SectionKind::COPY: return target_->copy;
    case SectionKind::ATTENTION: return target_->attention;
    case SectionKind::PACK: case SectionKind::HOST:  // a host section is never cut
    case SectionKind::BRANCH: case SectionKind::JUMP: case SectionKind::LOOP: break;
  }
  return target_->pack;
}

Trap Machine::run_host(const SectionRun& run) {
  const auto function = uint32_t(run.section.head->depth - 1);
  if (!host_runner) return {TrapCode::HOST_FAILED, 0, function, 0, 0};
  const uint64_t begin = now_ns();
  const Trap trap = host_runner(run);
  host_calls_.push_back({begin, now_ns(), function});
  return trap;
}

// The section that runs after a control section. `flag`: where its operand lies; null: it has none. A loop that may not go on
// traps.
size_t Machine::following(const SectionView& section, size_t number, const uint8_t* flag) {
  const Section& head = *section.head;
  const bool set = flag && *flag;
  if (SectionKind(head.kind) != SectionKind::LOOP) return number + 1 + (set ? 0 : size_t(head.depth));
  int64_t& times = times_[number];
  const bool more = ++times < head.dims[0];
  if (more && (set || !flag)) return --until_look_ || !late(number) ? number - size_t(head.depth) : number;
  times = 0;
  if (set) threads_[0].context->trap = {TrapCode::LOOP_LIMIT, uint16_t(number), 0, head.dims[0], head.dims[0]};
  return number + 1;
}

// A look at the clock as a loop goes back, which traps when the time is over. Where bodies take microseconds the next looks are
// rarer, so that they cost nothing; one body that takes long makes each of them a look again.
bool Machine::late(size_t number) {
  constexpr int LOOK_EVERY = 64;
  constexpr uint64_t LONG_NS = 1'000'000, MS = 1'000'000;
  const uint64_t now = now_ns();
  if (!loops_began_ns_) loops_began_ns_ = looked_ns_ = now;
  until_look_ = now - looked_ns_ < LONG_NS ? LOOK_EVERY : 1;
  looked_ns_ = now;
  const uint64_t passed = now - loops_began_ns_, left = deadline_ns_ > loops_began_ns_ ? deadline_ns_ - loops_began_ns_ : 0;
  const uint64_t most = deadline_ns_ ? std::min(left, loop_ns_max_) : loop_ns_max_;
  if (passed <= most) return false;
  threads_[0].context->trap = {TrapCode::STOPPED, uint16_t(number), 0, int64_t(passed / MS), int64_t(most / MS)};
  return true;
}

Trap Machine::run(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace, uint64_t deadline_ns) {
  Tuning& tuning = program.tuning();
  if (tunes_ && tuning.begins()) tuning.offer(program.choices());
  if (!tunes_ || !tuning.under_way()) return run_as_it_is(program, args, workspace, deadline_ns);
  program.choose(tuning.choice());
  const uint64_t begin = now_ns();
  const Trap trap = run_as_it_is(program, args, workspace, deadline_ns);
  if (trap.code != TrapCode::NONE || !tuning.took(now_ns() - begin)) return trap;
  tuned_.tried++, tuned_.kept += tuning.gained_ns() != 0, tuned_.gained_ns += tuning.gained_ns();
  program.choose(tuning.choice());
  return trap;
}

Trap Machine::run_as_it_is(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace,
                           uint64_t deadline_ns) {
  const ProgramHead& head = program.head();
  const ProgramArg* wanted = program.args();
  bool clears = false;
  for (size_t i = 0; i < head.arg_count; clears |= wanted[i++].mode & ZERO_FILL)
    if (i >= args.size() || !fits(wanted[i], args[i]))
      return {TrapCode::BINDING, 0, uint32_t(i), i < args.size() ? int64_t(args[i].bytes) : 0, int64_t(wanted[i].bytes)};
  reserve(program);
  if (clears) {
    for (size_t i = 0; i < head.arg_count; i++)
      for (size_t j = 0; wanted[i].mode & ZERO_FILL && j < head.arg_count; j++)
        if (i != j && args[i].address == args[j].address && wanted[i].bytes && wanted[j].bytes)
          return {TrapCode::BINDING, 0, uint32_t(i), int64_t(j), 0};  // what is cleared would be another one's
    for (size_t i = 0; i < head.arg_count; i++)
      if (wanted[i].mode & ZERO_FILL) memset(args[i].address, 0, wanted[i].bytes);
  }
  if (program.zero_workspace()) memset(workspace, 0, head.workspace_bytes);

  host_calls_.clear();
  until_look_ = 1, loops_began_ns_ = 0, deadline_ns_ = deadline_ns;
  if (pool_ && program.split_ns() >= WAKE_NS) pool_->wake();
  const FloatMode float_mode;
  Context& context = *threads_[0].context;
  context.trap.code = TrapCode::NONE;
  uint8_t* address[MAX_OPERANDS];
  const Bound bound{args, workspace, scratch_.get()};
  const std::span<const SectionView> sections = program.sections();
  for (size_t number = 0; number < sections.size();) {
    const SectionView& section = sections[number];
    bound.find(section, address);
    if (is_control(SectionKind(section.head->kind))) {
      number = following(section, number, section.head->operand_count ? address[0] : nullptr);
      if (context.trap.code != TrapCode::NONE) break;
      continue;
    }
    if (pool_ && beside_of(program)[number].count > 1) {
      const size_t count = run_together(program, number, bound);
      if (context.trap.code != TrapCode::NONE) {
        context.trap.section = uint16_t(number + count - 1);
        break;
      }
      if (count) {
        number += count;
        continue;
      }
    }
    const SectionRun run{section, address, scratch_.get(), 0, section.split.units};
    if (const Split split = split_of_run(section); split.parts > 1) {
      sections_split_ += pool_ != nullptr;
      const bool others_read = pool_ && program.streams();
      if (split.wide()) run_wide(run, split, others_read);
      else run_cut(run, split, others_read);
    } else if (SectionKind(section.head->kind) == SectionKind::HOST) {
      context.trap = run_host(run);
    } else {
      run_of(*section.head)(context, run);
    }
    if (context.trap.code != TrapCode::NONE) {
      context.trap.section = uint16_t(number);
      break;
    }
    number++;
  }
  if (context.trap.code != TrapCode::NONE) std::fill(times_.begin(), times_.end(), 0);  // loops that were under way
#if defined(DVM_X86)
  if (program.streams()) _mm_sfence();  // whoever reads the outputs must not overtake non-temporal stores
#endif
  if (context.trap.code == TrapCode::NONE) return {};
  return context.trap;
}

}  // namespace dvm
