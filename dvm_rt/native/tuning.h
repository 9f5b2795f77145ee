// Choices of a program that change no bits, tried on the runs that its user asks for.
//
// What the encoder has chosen by rule (encode.cpp), and the matrix unit (matmul.cpp), is what most programs keep. Some choices
// depend on more than a rule sees, on the CPU above all: whether stores go past the caches or through them, how far ahead of its
// use an input is fetched, and in a product the tiles that a strip of columns is cut into and how many rows stay in L2. A program
// that has run RUNS_FIRST times tries the other one of each, one after the other, in blocks of BLOCK_RUNS runs with and without
// it in turns. The first runs of a block do not count: what the other choice has left in the caches is gone after two.
//
// Rules. Nothing runs that nobody asked for. A choice that is not faster in a pair of blocks is dropped there and then (so
// most cost four runs), one that is kept was faster in all PAIRS, by GAIN_LEAST in all but one. Then it is over. Stores that the
// encoder sends through the caches are never sent past them: who reads the result next would pay for it, and is not timed here.
// Knows no clock and no program: its user tells what a run took.
#pragma once
#include <algorithm>
#include <cstdint>

namespace dvm {

// Bits; each says that a program is not run as it was encoded. The last two are of products.
enum Choice : uint8_t { THROUGH_CACHES = 1, OTHER_DISTANCE = 2, OTHER_TILES = 4, OTHER_BLOCKS = 8 };

class Tuning {
 public:
  static constexpr int RUNS_FIRST = 32, BLOCK_RUNS = 4, SETTLING_RUNS = 2, PAIRS = 4;
  static constexpr float GAIN_LEAST = 0.03f;

  // A run comes: is it time to begin? Then offer() what there is to choose.
  bool begins() { return runs_ < RUNS_FIRST && ++runs_ == RUNS_FIRST; }
  bool under_way() const { return runs_ == RUNS_FIRST && !over_; }
  void offer(uint8_t choices) { left_ = choices, next_choice(); }
  uint8_t choice() const { return uint8_t(block_ & 1 ? kept_ ^ tried_ : kept_); }  // of the run that comes
  // The run took so long. True: a choice has been tried to its end.
  bool took(uint64_t ns) {
    if (run_ >= SETTLING_RUNS) least_ns_ = std::min(least_ns_, ns);
    if (++run_ < BLOCK_RUNS) return false;
    const uint64_t block_ns = least_ns_;
    run_ = 0, least_ns_ = ~0ull;
    if (!(block_++ & 1)) return usual_ns_ = block_ns, false;
    if (block_ns >= usual_ns_) return decided(false);
    const int pair = block_ / 2 - 1;
    gain_[pair] = float(usual_ns_ - block_ns) / float(usual_ns_);
    if (pair + 1 < PAIRS) return false;
    std::sort(gain_, gain_ + PAIRS);
    return decided(gain_[1] >= GAIN_LEAST);
  }
  uint64_t gained_ns() const { return gained_ns_; }  // a run, by the choice that was decided last; 0: it was dropped

 private:
  bool decided(bool keep) {
    if (keep) kept_ ^= tried_;
    gained_ns_ = keep ? uint64_t(gain_[1] * float(usual_ns_)) : 0;
    next_choice();
    return true;
  }
  void next_choice() {
    tried_ = uint8_t(left_ & -left_), left_ ^= tried_, block_ = run_ = 0;
    over_ = !tried_;
  }

  bool over_ = false;
  uint8_t runs_ = 0, left_ = 0, kept_ = 0, tried_ = 0, block_ = 0, run_ = 0;
  uint64_t least_ns_ = ~0ull, usual_ns_ = 0, gained_ns_ = 0;
  float gain_[PAIRS] = {};
};

}  // namespace dvm
