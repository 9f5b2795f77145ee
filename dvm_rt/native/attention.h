// What an attention section means before any instruction set enters: its words, and the scratch that it needs.
//
// dims = keys, queries, batch... Operands: Q, K, V, O and perhaps a mask. K.limit is the width D of Q and K (at most SLICE_K
// where K lies in panels), V.limit that of V and O; depth is the larger one. Query i sees keys
// 0 .. Q.limit + i - 1. Words: mul.k scale, mov.k masked, mov.k empty, end. For each query
//
//   s[j] = chain over d of (q[d] * (scale * log2 e)) * k[j, d]              one fma chain from 0, rising d
//   s[j] = fma(mask[j], log2 e, s[j]), or masked * log2 e where a bool mask is 0
//
// and for each block of KEY_BLOCK keys in which it sees one: m' = larger of m and its s (NaN left out), p = 2^(s - m'),
// back = 2^(m - m'); 16 lanes l[j mod 16] = l * back + sum of p in rising j; o = o * back, and then one fma chain over
// p[j] * v[j]. Where every s so far is -inf, m' counts as 0. The chain takes the keys up to the next multiple of PANEL
// behind those that the query sees (p = 0 there), but not beyond the section's keys. At the end: o * (1 / sum of lanes, folded
// 8, 4, 2, 1 apart), or the constant `empty` where that sum is 0. So a query's bits depend on neither its neighbours, nor
// threads, tiles or instruction set. p is 0 below 2^-126.
//
// Inlined by force, as all of matmul.h.
#pragma once
#include "matmul.h"

namespace dvm {
#define ATTENTION_FACT [[gnu::always_inline]] inline

constexpr int ATTENTION_WORDS = 4;           // mul.k scale, mov.k masked, mov.k empty, end
constexpr int64_t ATTENTION_ROWS = 64;         // queries that go through the keys together, at most
constexpr int64_t ATTENTION_BLOCK_ROWS = 16;   // queries whose scores exist at once, at most
constexpr int64_t ATTENTION_FEW_ROWS = 48;     // queries that every target takes together: no block of keys is met twice
constexpr int64_t ATTENTION_PANEL_FLOATS_MAX = 1 << 24;  // of packed keys that scratch holds; beyond them they are packed anew

ATTENTION_FACT int64_t padded_width(int64_t depth) { return ceil_div(depth, PANEL) * PANEL; }
// Units of a head for threads: runs of ATTENTION_FEW_ROWS queries.
ATTENTION_FACT int64_t attention_pieces(const Section& section) { return ceil_div(section.dims[1], ATTENTION_FEW_ROWS); }
// Blocks of keys whose panels are kept.
ATTENTION_FACT int64_t key_slots(const Section& section, const Operand& k) {
  if (k.mode & PACKED) return 0;
  const int64_t blocks = ceil_div(section.dims[0], KEY_BLOCK);
  return section.dims[1] <= ATTENTION_FEW_ROWS || blocks * KEY_BLOCK * section.depth > ATTENTION_PANEL_FLOATS_MAX
             ? 1
             : blocks;
}
ATTENTION_FACT int64_t attention_scratch_bytes(const Section& section, const Operand& k) {
  const int64_t depth = section.depth, width = padded_width(depth);
  const int64_t rows = ATTENTION_ROWS * (depth + width + 16) + ATTENTION_BLOCK_ROWS * KEY_BLOCK;  // Q, O, lanes; scores
  return 4 * (rows + KEY_BLOCK * width + key_slots(section, k) * KEY_BLOCK * depth);
}

#undef ATTENTION_FACT
}  // namespace dvm
