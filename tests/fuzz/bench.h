// What an accepted mutant must stand: the shadow machine's walk, then runs of the real machine between canaries, poison and
// guard pages, with different old bytes in outputs, workspace, scratch and registers. Nothing here allocates once it is warm.
#pragma once
#include <algorithm>
#include <array>
#include <memory>
#include <memory_resource>
#include <string>
#include <sys/mman.h>
#include <vector>
#define private public  // the machine's own scratch and registers get old bytes too
#include "machine.h"
#undef private
#include "shadow.h"
#include "verify.h"

#if defined(FUZZ_SANITIZED)  // the harness itself is not: it is fast, and what it calls is
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace fuzz {

using Bytes = std::vector<uint8_t>;
constexpr size_t PAGE = 4096, MARGIN = 256;
constexpr uint64_t WORK_MAX = 1 << 11, ELEMENTS_MAX = 1 << 15, BYTES_MAX = 1 << 16;

struct Seed {
  std::string name;
  Bytes program;
  std::vector<Bytes> content, expected;  // expected: empty if only promised to some ulp
};

// Memory that ends at a guard page, or a little before one; what lies around the buffer is a canary, and poisoned.
class Guarded {
 public:
  explicit Guarded(size_t most = BYTES_MAX) : room_((most + MARGIN + PAGE - 1) / PAGE * PAGE) {
    base_ = static_cast<uint8_t*>(mmap(nullptr, room_ + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) abort();
    mprotect(base_, PAGE, PROT_NONE), mprotect(base_ + PAGE + room_, PAGE, PROT_NONE);
    end_ = base_ + PAGE + room_;
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    open();
    munmap(base_, room_ + 2 * PAGE);
  }
  uint8_t* place(size_t bytes, size_t align, uint8_t old) {
    open();
    at_ = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(end_ - bytes) & ~uintptr_t(align - 1));
    bytes_ = bytes, canary_ = uint8_t(old ^ 0x3c);
    memset(at_, old, bytes);
    memset(at_ - MARGIN, canary_, MARGIN), memset(at_ + bytes, canary_, size_t(end_ - at_) - bytes);
    ASAN_POISON_MEMORY_REGION(at_ - MARGIN, MARGIN);
    ASAN_POISON_MEMORY_REGION(at_ + bytes, size_t(end_ - at_) - bytes);
    return at_;
  }
  bool intact() const {
    const uint8_t* p = at_ - MARGIN;
    for (; p < at_; p += 8) {
      uint64_t word;
      __builtin_memcpy(&word, p, 8);
      if (word != canary_ * 0x0101010101010101ull) return false;
    }
    return std::all_of(at_ + bytes_, end_, [&](uint8_t x) { return x == canary_; });
  }
  void open() {
    if (at_) ASAN_UNPOISON_MEMORY_REGION(at_ - MARGIN, size_t(end_ - at_) + MARGIN);
  }
  size_t room() const { return room_ - MARGIN; }
  uint8_t *at_ = nullptr, *end_;
  size_t bytes_ = 0;

 private:
  size_t room_;
  uint8_t *base_, canary_ = 0;
};

// Memory of one verified program at a time, exactly as long as it asks.
class ProgramMemory : public std::pmr::memory_resource {
 private:
  Guarded memory_{size_t(1) << 24};
  void* do_allocate(size_t bytes, size_t align) override { return memory_.place(bytes, std::max<size_t>(align, 8), 0xcd); }
  void do_deallocate(void*, size_t, size_t) override {}
  bool do_is_equal(const memory_resource& other) const noexcept override { return this == &other; }
};

// Stands in for all host functions: reads every input, and makes bytes of them. Like those it knows shapes, not strides.
inline Trap host_stand_in(const SectionRun& run) {
  uint64_t sum = uint64_t(run.section.head->depth);
  for (int i = 0; i < run.section.head->operand_count; i++) {
    const Operand& x = run.section.operands[i];
    uint64_t bytes = DTYPE_BYTES[x.dtype];
    for (int d = 0; d < x.depth; d++) bytes *= uint64_t(x.stride[d]);
    for (uint64_t b = 0; b < bytes; b++) {
      sum = (sum ^ (x.mode & READ ? run.address[i][b] : b)) * 0x9E3779B97F4A7C15;
      if (!(x.mode & READ)) run.address[i][b] = uint8_t(sum >> 56);
    }
  }
  return {};
}

// Every lane of a reduction holds the same value, in one section's dtype or another: what a fold puts back.
inline bool lanes_at_identity(const Context& c) {
  if (c.lanes_dtype == 255) return true;  // no vector section yet
  const size_t size = DTYPE_BYTES[c.lanes_dtype], rest = sizeof c.lanes[0] - size;
  for (int r = 0; r < MAX_REDUCTIONS; r++)
    if (memcmp(c.lanes[r] + size, c.lanes[r], rest) || memcmp(c.blocks[r] + size, c.blocks[r], rest) ||
        memcmp(c.blocks[r], c.lanes[r], size) || memcmp(c.lanes[r], c.lanes[r / REDUCTIONS_EACH * REDUCTIONS_EACH], size))
      return false;
  return true;
}

// Small enough to be walked element by element.
inline bool small(const VerifiedProgram& program) {
  const ProgramHead& head = program.head();
  if (head.fuel > WORK_MAX || head.workspace_bytes > BYTES_MAX || head.scratch_bytes > BYTES_MAX || head.arg_count > 40) return false;
  for (int i = 0; i < head.arg_count; i++)
    if (program.args()[i].bytes > BYTES_MAX) return false;
  uint64_t elements = 0;
  for (const SectionView& s : program.sections()) {
    uint64_t n = std::max<uint64_t>(1, uint64_t(s.head->depth)) * std::max<uint64_t>(1, s.head->word_count);
    for (int d = 0; d < s.head->rank && n <= ELEMENTS_MAX; d++) n *= uint64_t(s.head->dims[d]);
    if ((elements += n) > ELEMENTS_MAX) return false;
  }
  return true;
}

class Bench {
 public:
  Bench() {
    host_runner = host_stand_in;
    cut_.cut_always(3);
    for (const Target* target : targets()) machines_.insert(machines_.begin(), std::make_unique<Machine>(*target));
  }
  size_t machines() const { return machines_.size(); }

  // On the first machine, the baseline, and with other old bytes on one of `others`: all, one (by number), or in parts on two
  // threads as well. "" or what went wrong.
  const std::string& run(const VerifiedProgram& program, const Seed& seed, bool golden, uint64_t turn) {
    why_.clear();
    const bool fine = fill(program, seed) && walk(program) && run_all(program, seed, golden, turn);
    if (fine || !why_.empty()) return why_;
    return why_ = "bench: failed and does not say why";
  }

 private:
  bool wrong(std::string what) {
    why_ = std::move(what);
    return false;
  }
  bool fill(const VerifiedProgram& program, const Seed& seed) {
    const size_t count = program.head().arg_count;
    while (buffers_.size() < count) buffers_.push_back(std::make_unique<Guarded>()), first_.emplace_back();
    content_.resize(std::max(content_.size(), count));
    for (size_t i = 0; i < count; i++) {
      const size_t bytes = program.args()[i].bytes, known = i < seed.content.size() ? seed.content[i].size() : 0;
      Bytes& to = content_[i];
      to.resize(bytes);
      if (known) memcpy(to.data(), seed.content[i].data(), std::min(known, bytes));
      for (size_t b = std::min(known, bytes); b < bytes; b++) to[b] = known ? to[b - known] : uint8_t(b);
    }
    return true;
  }
  // Programs that branch are walked on several ways, first on the one that the machine will take, as far as that is known.
  bool walk(const VerifiedProgram& program) {
    bool branches = false;
    for (const SectionView& s : program.sections()) branches |= is_control(SectionKind(s.head->kind));
    for (int way = 0; way < (branches ? 4 : 1); way++) {
      shadow_.load(program, content_, uint64_t(way));
      if (const std::string& why = shadow_.run(); !why.empty()) return wrong("shadow: " + why);
      if (!way) values_known_ = shadow_.values_known, trapped_ = shadow_.trapped;
    }
    return true;
  }
  bool run_all(const VerifiedProgram& program, const Seed& seed, bool golden, uint64_t turn) {
    const size_t n = machines_.size(), count = program.head().arg_count;
    if (!check(machine_run(*machines_[0], program, 0xff), *machines_[0], program)) return false;
    first_trap_ = trap_;
    for (size_t i = 0; i < count; i++) {
      first_[i].assign(buffers_[i]->at_, buffers_[i]->at_ + buffers_[i]->bytes_);
      if (!(program.args()[i].mode & WRITE) && memcmp(first_[i].data(), content_[i].data(), content_[i].size()))
        return wrong("machine: writes an input");
    }
    for (size_t i = 0; golden && i < seed.expected.size(); i++)
      if (first_[i] != seed.expected[i]) return wrong("machine: not what the reference gives, argument " + std::to_string(i));
    if (golden) {
      for (size_t m = 0; m < std::max<size_t>(2, n) - 1; m++)
        if (!again(*machines_[(m + 1) % n], program)) return false;
      return again(cut_, program);
    }
    return again(*machines_[n > 1 ? 1 + turn % (n - 1) : 0], program) && (turn % 16 || again(cut_, program));
  }
  bool again(Machine& machine, const VerifiedProgram& program) {
    if (!check(machine_run(machine, program, 0x40), machine, program)) return false;
    if (trap_.code != first_trap_.code || trap_.word != first_trap_.word || trap_.section != first_trap_.section) return wrong("machine: traps differ");
    for (size_t i = 0; trap_.code == TrapCode::NONE && i < program.head().arg_count; i++)
      if (memcmp(first_[i].data(), buffers_[i]->at_, first_[i].size())) return wrong("machine: runs differ in argument " + std::to_string(i));
    return true;
  }
  bool check(const Trap& trap, const Machine& machine, const VerifiedProgram& program) {
    trap_ = trap;
    if (trap.code == TrapCode::BINDING) return wrong("machine: refuses its arguments");
    if (values_known_ && (trap.code != TrapCode::NONE) != trapped_) return wrong("machine: trap");
    for (size_t i = 0; i < program.head().arg_count; i++)
      if (!buffers_[i]->intact()) return wrong("machine: canary of argument " + std::to_string(i));
    if (!workspace_.intact() || (machine.threads() == 1 && !scratch_.intact())) return wrong("machine: canary of workspace or scratch");
    for (const auto& thread : machine.threads_)
      if (!lanes_at_identity(*thread.context)) return wrong("machine: lanes are not at their identity");
    return true;
  }
  Trap machine_run(Machine& machine, const VerifiedProgram& program, uint8_t old) {
    const ProgramHead& head = program.head();
    bindings_.clear();
    for (size_t i = 0; i < head.arg_count; i++) {
      const ProgramArg& a = program.args()[i];
      uint8_t* at = buffers_[i]->place(a.bytes, a.align, old);
      if (!(a.mode & WRITE) && a.bytes) memcpy(at, content_[i].data(), a.bytes);
      bindings_.push_back({at, a.bytes, bool(a.mode & WRITE)});
    }
    uint8_t* workspace = workspace_.place(head.workspace_bytes, ARENA_ALIGN, old);
    for (const auto& thread : machine.threads_) {
      Context& c = *thread.context;
      memset(static_cast<void*>(c.slot), old, sizeof c.slot), memset(static_cast<void*>(c.convert), old, sizeof c.convert);
      memset(static_cast<void*>(c.row_scalar), old, sizeof c.row_scalar);
    }
    if (machine.threads() > 1) return machine.run(program, bindings_, workspace);  // each thread has scratch of its own
    (void)machine.scratch_.release();
    machine.scratch_.reset(scratch_.place(head.scratch_bytes, ARENA_ALIGN, old));
    machine.scratch_bytes_ = head.scratch_bytes;
    const Trap trap = machine.run(program, bindings_, workspace);
    if (machine.scratch_.get() == scratch_.at_) (void)machine.scratch_.release();
    machine.scratch_bytes_ = 0;
    return trap;
  }

  std::vector<std::unique_ptr<Machine>> machines_;  // the baseline first
  Machine cut_{best_target(), 2};                   // takes every section in parts
  std::vector<std::unique_ptr<Guarded>> buffers_;
  Guarded workspace_, scratch_;
  std::vector<Bytes> content_, first_;  // of the arguments: before, and after the first run
  std::vector<Binding> bindings_;
  Shadow shadow_;
  Trap trap_, first_trap_;
  bool values_known_ = true, trapped_ = false;
  std::string why_;
};

}  // namespace fuzz
