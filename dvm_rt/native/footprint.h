// Which bytes operands touch, and which bytes are known to be written: the set arithmetic of the verifier.
//
// A footprint is a set of blocks of `width` bytes; each block starts a multiple of `pitch` after the first one (columns of
// a wider matrix, for example), or there is only one block. Where blocks lie exactly `pitch` apart they may do so several times
// over (the inner part of each of many images). Answers are safe approximations: "apart" and "covers" are
// only said when they are certain. No heap; values come from programs, so arithmetic is checked or unsigned.
#pragma once
#include <cstdint>
#include <cstring>
#include <numeric>
#include "layout.h"
#include "near_code.h"

namespace dvm {

// The verifier has arrays of these. Nothing in them is initialised: to touch what a program does not use costs more than all
// its checks where the caches are cold.

// The places of an operand: its base + any sum of index * stride, `element` bytes each.
struct Walk {
  int64_t element;
  int n;
  int64_t count[MAX_RANK + 2], stride[MAX_RANK + 2];
  void step(int64_t times, int64_t bytes) {
    if (times > 1) count[n] = times, stride[n++] = bytes;
  }
};

struct Footprint {
  int64_t low, high;  // first byte, and one past the last
  uint64_t width;     // of a block; 0: not known yet
  uint64_t pitch;     // 0: one block, every byte of which is touched
  uint64_t blocks;    // if they lie exactly `pitch` apart, else 0
  uint64_t over, times;  // and all of them so many times, exactly `over` apart
};

inline uint64_t magnitude(int64_t x) { return x < 0 ? 0 - uint64_t(x) : uint64_t(x); }

// False on 64-bit overflow.
inline bool find_ends(const Walk& walk, int64_t base, Footprint& out) {
  out.low = out.high = base;
  bool overflow = false;
  for (int d = 0; d < walk.n; d++) {
    int64_t reach;
    overflow |= __builtin_mul_overflow(walk.stride[d], walk.count[d] - 1, &reach);
    int64_t& end = reach < 0 ? out.low : out.high;
    overflow |= __builtin_add_overflow(end, reach, &end);
  }
  overflow |= __builtin_add_overflow(out.high, walk.element, &out.high);
  return !overflow;
}

// Takes the strides in rising order (and sorts the walk): those that continue what lies below make the block, the others
// the pitch. False if two places share a byte, as far as can be told: each stride must reach beyond all below it. The
// ends must be found, and inside an argument, before.
DVM_PROVES static bool find_blocks(Walk& walk, Footprint& out) {
  uint64_t below = uint64_t(walk.element), first = 0;
  bool separate = true;
  out.width = 0, out.pitch = 0, out.blocks = 1, out.over = 0, out.times = 1;
  for (int from = 0; from < walk.n; from++) {
    int least = from;
    for (int d = from + 1; d < walk.n; d++)
      if (magnitude(walk.stride[d]) < magnitude(walk.stride[least])) least = d;
    const uint64_t stride = magnitude(walk.stride[least]), count = uint64_t(walk.count[least]);
    std::swap(walk.stride[least], walk.stride[from]), std::swap(walk.count[least], walk.count[from]);
    separate &= stride >= below;
    if (stride != below && !first) out.width = below, first = stride;
    if (first) {
      if (stride == first * out.blocks && out.times == 1) out.blocks *= count;
      else if (out.times == 1 && stride % first == 0) out.over = stride, out.times = count;
      else if (stride == out.over * out.times) out.times *= count;
      else out.blocks = 0;
      out.pitch = std::gcd(out.pitch, stride);
    }
    below += stride * (count - 1);
  }
  if (!first || !separate) out.width = uint64_t(out.high - out.low), out.pitch = 0;
  return separate;
}

// Certain that no byte is in both. Blocks of both must be found.
inline bool apart(const Footprint& a, const Footprint& b) {
  if (a.high <= b.low || b.high <= a.low) return true;
  const uint64_t pitch = std::gcd(a.pitch, b.pitch);
  if (!pitch) return false;
  const uint64_t from_a = uint64_t(a.low) % pitch, from_b = uint64_t(b.low) % pitch;  // inside arguments: not negative
  if (a.width > pitch - from_a || b.width > pitch - from_b) return false;
  return from_a + a.width <= from_b || from_b + b.width <= from_a;
}

// Bytes of arguments and of the workspace that are known to be written: disjoint ranges in order, and columns that wait
// for their neighbours. Has room for a few; what finds none is forgotten, which only costs a zero fill.
class Written {
 public:
  void clear() { range_count_ = column_count_ = 0; }  // first of all

  bool covers(uint16_t arg, int64_t low, int64_t high) const {
    const int i = after(arg, low);
    return i > 0 && ranges_[i - 1].arg == arg && ranges_[i - 1].high >= high;
  }

  // What is known on each of two ways here: this one, and the other.
  void meet(const Written& other) {
    Written both;
    both.clear();
    for (int i = 0; i < range_count_; i++) {
      const Range& r = ranges_[i];
      for (int j = 0; j < other.range_count_; j++) {
        const Range& o = other.ranges_[j];
        const int64_t low = r.low > o.low ? r.low : o.low, high = r.high < o.high ? r.high : o.high;
        if (r.arg == o.arg && low < high) both.add_range(r.arg, low, high);
      }
    }
    *this = both;
  }

  void add(uint16_t arg, const Footprint& print) {
    if (!print.pitch) add_range(arg, print.low, print.high);
    else if (print.blocks) add_columns({arg, print.low, print.width, print.pitch, print.blocks, print.over, print.times});
  }

 private:
  static constexpr int RANGES_MAX = 128, COLUMNS_MAX = 16;
  struct Range {
    uint16_t arg;
    int64_t low, high;
  };
  struct Columns {  // `blocks` blocks of `width` bytes, `pitch` apart, and all of that `times` times, `over` apart
    uint16_t arg;
    int64_t low;
    uint64_t width, pitch, blocks, over, times;
    bool beside(const Columns& o) const {
      return arg == o.arg && pitch == o.pitch && blocks == o.blocks && over == o.over && times == o.times;
    }
  };

  int after(uint16_t arg, int64_t low) const {  // number of ranges that start at or before this byte
    int from = 0, to = range_count_;
    while (from < to) {
      const int middle = (from + to) / 2;
      const Range& r = ranges_[middle];
      if (r.arg < arg || (r.arg == arg && r.low <= low)) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  void add_range(uint16_t arg, int64_t low, int64_t high) {
    int begin = after(arg, low), end;
    if (begin > 0 && ranges_[begin - 1].arg == arg && ranges_[begin - 1].high >= low) {
      low = ranges_[--begin].low;
      if (ranges_[begin].high > high) high = ranges_[begin].high;
    }
    for (end = begin; end < range_count_ && ranges_[end].arg == arg && ranges_[end].low <= high; end++)
      if (ranges_[end].high > high) high = ranges_[end].high;
    if (end == begin && range_count_ == RANGES_MAX) return;
    memmove(ranges_ + begin + 1, ranges_ + end, size_t(range_count_ - end) * sizeof(Range));
    ranges_[begin] = {arg, low, high};
    range_count_ += 1 - (end - begin);
  }

  void add_columns(Columns added) {
    for (int i = 0; i < column_count_; i++) {
      const Columns& c = columns_[i];
      if (!c.beside(added)) continue;
      const bool left = c.low + int64_t(c.width) == added.low, right = added.low + int64_t(added.width) == c.low;
      if (!left && !right) continue;
      added.width += c.width;
      if (left) added.low = c.low;
      columns_[i] = columns_[--column_count_];
      i = -1;  // what has grown may now touch another one
    }
    const uint64_t together = added.pitch * (added.blocks - 1) + added.width;
    if (added.width >= added.pitch && added.times > 1)
      add_columns({added.arg, added.low, together, added.over, added.times, 0, 1});
    else if (added.width >= added.pitch)
      add_range(added.arg, added.low, added.low + int64_t(together));
    else if (column_count_ < COLUMNS_MAX)
      columns_[column_count_++] = added;
  }

  int range_count_, column_count_;
  Range ranges_[RANGES_MAX];
  Columns columns_[COLUMNS_MAX];
};

}  // namespace dvm
