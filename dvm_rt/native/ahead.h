// What is likely to be called next: learned from the order of calls alone, so that programs are there before they are wanted.
//
// After each plan come few others, and their sizes follow from its own: a symbol is a symbol of the call before plus a number
// (t, t + 1, ... of a cache that grows), or a number. Two calls in the same order give such a rule, the third must confirm
// it before it is trusted; one that fails is learned again. Several plans may follow one (the branches of a program): all
// that are trusted are guessed, the one that came last first. Knows nothing of programs, queues and budgets.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace dvm {

class RunAhead {
 public:
  struct Call {
    uint32_t plan = 0;  // 0: none
    std::vector<int64_t> symbols;
  };

  void observe(uint32_t plan, std::span<const int64_t> symbols);
  void forget(uint32_t plan);
  // What may follow the last call, up to `depth` calls ahead, the nearest first; at most `branches` after each, `limit` in all.
  std::vector<Call> guesses(int depth, int branches, size_t limit) const;

 private:
  struct Successor {
    uint32_t plan = 0, trust = 0;
    uint64_t used_at = 0;
    std::vector<int64_t> from, to;  // symbols, when it was seen last
    std::vector<int16_t> sources;   // of each symbol of `to`: a symbol of `from`, or NUMBER; empty: no rule
  };
  static constexpr int16_t NUMBER = -1;
  static constexpr size_t SUCCESSORS_MAX = 8, SYMBOLS_MAX = 32;

  void add_followers(const Call& call, int branches, size_t limit, std::vector<Call>& found) const;
  Successor& successor(uint32_t before, uint32_t plan);
  static void learn(Successor& known, std::span<const int64_t> from, std::span<const int64_t> to);
  static bool apply(const Successor& rule, std::span<const int64_t> from, std::vector<int64_t>& to);

  std::vector<std::vector<Successor>> after_;  // by plan
  Call last_;
  uint64_t clock_ = 0;
  std::vector<int64_t> expected_;
};

}  // namespace dvm
