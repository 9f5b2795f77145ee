// What an accepted mutant must stand before it runs: the shadow machine's walk on what the seed's arguments hold, and choices that
// change what they may. No machine here.
#pragma once
#include <algorithm>
#include <memory_resource>
#include <string>
#include <sys/mman.h>
#include <vector>
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
constexpr uint64_t WORK_MAX = 1 << 11, ELEMENTS_MAX = 1 << 15, BYTES_MAX = 1 << 16, SCRATCH_MAX = 1 << 17;

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

// Small enough to be walked element by element.
inline bool small(const VerifiedProgram& program) {
  const ProgramHead& head = program.head();
  if (head.fuel > WORK_MAX || head.workspace_bytes > BYTES_MAX || head.scratch_bytes > SCRATCH_MAX || head.arg_count > 40) return false;
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

// Which words a choice (program.h, tuning.h) exchanges: none but these, and all of them back.
class Choices {
 public:
  const std::string& run(const VerifiedProgram& program) {
    why_.clear(), before_.clear();
    each(program, [&](const Word& w, bool) { before_.push_back(w); });
    for (const int choice : {15, 1, 2, 4, 8, 3, 0}) {
      program.choose(uint8_t(choice));
      size_t at = 0;
      each(program, [&](const Word& w, bool vector) {
        const Word& b = before_[at++];
        const bool past = vector && (b.op == OP_store_nt || b.op == OP_store_any_nt), through = past && choice & THROUGH_CACHES;
        const bool farther = vector && b.op == OP_fetch && choice & OTHER_DISTANCE;
        const uint16_t op = !through ? b.op : b.op == OP_store_nt ? uint16_t(OP_store) : uint16_t(OP_store_any);
        if (w.op != op || w.a != b.a || (w.k != b.k && !through && !farther)) why_ = "choices: a word that they may not change";
      });
    }
    return why_;
  }

 private:
  template <class F> static void each(const VerifiedProgram& program, F of) {
    for (const SectionView& s : program.sections())
      for (int i = 0; i < s.head->word_count; i++) of(s.words[i], SectionKind(s.head->kind) == SectionKind::VECTOR);
  }
  std::vector<Word> before_;
  std::string why_;
};

class Walk {
 public:
  // "" or what went wrong. Then content() is what the arguments hold before a run.
  const std::string& run(const VerifiedProgram& program, const Seed& seed) {
    why_.clear();
    fill(program, seed);
    // Programs that branch are walked on several ways, first on the one that the machine will take, as far as that is known.
    bool branches = false;
    for (const SectionView& s : program.sections()) branches |= is_control(SectionKind(s.head->kind));
    for (int way = 0; way < (branches ? 4 : 1) && why_.empty(); way++) {
      shadow_.load(program, content_, uint64_t(way));
      if (const std::string& why = shadow_.run(); !why.empty()) why_ = "shadow: " + why;
      if (!way) values_known = shadow_.values_known, trapped = shadow_.trapped;
    }
    if (why_.empty()) why_ = choices_.run(program);
    return why_;
  }
  const std::vector<Bytes>& content() const { return content_; }
  bool values_known = true, trapped = false;  // on the first way

 private:
  void fill(const VerifiedProgram& program, const Seed& seed) {
    const size_t count = program.head().arg_count;
    content_.resize(std::max(content_.size(), count));
    for (size_t i = 0; i < count; i++) {
      const size_t bytes = program.args()[i].bytes, known = i < seed.content.size() ? seed.content[i].size() : 0;
      Bytes& to = content_[i];
      to.resize(bytes);
      if (known) memcpy(to.data(), seed.content[i].data(), std::min(known, bytes));
      for (size_t b = std::min(known, bytes); b < bytes; b++) to[b] = known ? to[b - known] : uint8_t(b);
    }
  }

  Shadow shadow_;
  Choices choices_;
  std::vector<Bytes> content_;
  std::string why_;
};

}  // namespace fuzz
