// What a matmul section means before any instruction set enters: K slices, the packed form of B, the scratch it needs.
//
// Owns the facts that encoder, verifier, machine and reference interpreter must agree on. A section computes, for each
// step of its batch dimensions, C[m, n] = sum over k of A[m, k] * B[k, n]: per element one fma chain in rising k for
// each slice, starting from 0; slices are added in order. So the bits of an element depend on its row of A, its column
// of B and K, and on nothing else: not on M, N, batch, tiles, packing or instruction set.
//
// Dimensions are >= 1 and below 2^48 wherever these functions are called; the verifier sees to it. All of them are
// inlined by force: a copy that the linker shared could be that of an instruction set which the CPU lacks.
#pragma once
#include <algorithm>
#include "layout.h"

namespace dvm {
#define MATMUL_FACT [[gnu::always_inline]] inline

MATMUL_FACT int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Length of every slice of K but the last, which takes the rest: one slice up to SLICE_K, else slices of equal length
// (a multiple of 8, at most SLICE_K).
MATMUL_FACT int64_t slice_k(int64_t k) { return k <= SLICE_K ? k : ceil_div(ceil_div(k, ceil_div(k, SLICE_K)), 8) * 8; }

// Packed B: elements (float32; float16 and bfloat16, widened when they are read) [K slice][panel][k][PANEL], columns beyond N zero. Slice s starts at float k0 * PANEL * panels(n).
MATMUL_FACT int64_t panels(int64_t n) { return ceil_div(n, PANEL); }
MATMUL_FACT int64_t packed_bytes(int64_t n, int64_t k, int64_t element = 4) { return k * panels(n) * PANEL * element; }

// How a matmul section reads B.
enum class MatmulB : uint8_t {
  PACKED,    // packed by a pack section
  IN_PLACE,  // columns contiguous; a last panel that is not full is copied to scratch
  COPIED,    // packed into scratch, GROUP_PANELS at a time: k contiguous, windows (windows.h reads some where they are, and keeps
             // distances in scratch); or more than one block of rows reads it
};

constexpr int64_t GROUP_PANELS = 32;  // panels of one slice that scratch holds when B is copied: at most 4 MiB

// B as windows that slide over an array: k counts columns of the kernel, its rows, then `depth` (channels); n counts places in a
// row of `limit`, then rows of them. Steps of these lie behind those of the section's dimensions.
enum WindowStride : int { KERNEL_COLUMN = 5, KERNEL_ROW = 6, PLACE_ROW = 7 };
constexpr int WINDOWS_RANK_MAX = KERNEL_COLUMN;
MATMUL_FACT bool is_windows(const Operand& b) { return b.mode & WINDOWS; }
MATMUL_FACT int64_t kernel_width(const Operand& b) { return b.index & 255; }
MATMUL_FACT int64_t kernel_height(const Operand& b) { return b.index >> 8; }

constexpr int64_t IN_PLACE_ROWS = 14;  // rows of the tallest tile: all others read a copy that the first block of rows makes
MATMUL_FACT MatmulB matmul_b(const Section& section, const Operand& b) {
  if (b.mode & PACKED) return MatmulB::PACKED;
  if (section.dtype != uint8_t(DType::FLOAT32)) return MatmulB::COPIED;
  if (b.stride[0] != 4 || is_windows(b)) return MatmulB::COPIED;
  return section.dims[1] > IN_PLACE_ROWS ? MatmulB::COPIED : MatmulB::IN_PLACE;
}

// Section.scratch_bytes of a MATMUL section with this head (dims, depth) and B = operand 1. The same for every
// instruction set; ARENA_ALIGN aligned at run time.
MATMUL_FACT int64_t matmul_scratch_bytes(const Section& section, const Operand& b) {
  const int64_t n = section.dims[0], panel_bytes = slice_k(section.depth) * PANEL * DTYPE_BYTES[section.dtype];
  if (section.dtype != uint8_t(DType::FLOAT32)) return panel_bytes;
  switch (matmul_b(section, b)) {
    case MatmulB::PACKED: return 0;
    case MatmulB::IN_PLACE: return n % PANEL ? panel_bytes : 0;
    case MatmulB::COPIED: return std::min(panels(n), GROUP_PANELS) * panel_bytes;
  }
  return 0;
}

// How a product is cut (split.h): unit u is piece u % pieces of step u / pieces of the batch. Pieces are rows of C, panels
// of columns, or the whole; a range of pieces reads all of the other operand again.
struct MatmulCut {
  enum Along : uint8_t { BATCH, ROWS, PANELS } along;
  int64_t pieces, steps;
};
constexpr int64_t MATMUL_PARTS_MAX = 16;
constexpr int64_t PART_A_FLOATS = 1 << 17;

// Rows in groups, each with a B of its own (A's index names operand 3, their numbers of rows).
MATMUL_FACT bool is_grouped(const Operand& a) { return a.index != NONE; }

MATMUL_FACT MatmulCut matmul_cut(const Section& section, const Operand* operands) {
  const Operand& b = operands[1];
  if (is_grouped(operands[0])) return {MatmulCut::PANELS, panels(section.dims[0]), 1};
  int64_t steps = 1;
  for (int d = 2; d < section.rank; d++) steps *= section.dims[d];
  if (steps >= MATMUL_PARTS_MAX) return {MatmulCut::BATCH, 1, steps};
  const int64_t n = section.dims[0], m = section.dims[1];
  // Parts of rows would each copy or read all of B; parts of columns read all of A: from L2, where it is small.
  const bool large = m >= 56 && m * section.depth > PART_A_FLOATS;
  const bool rows = matmul_b(section, b) == MatmulB::COPIED ? m >= 16 * n : m >= n || (b.mode & PACKED && large);
  return {rows ? MatmulCut::ROWS : MatmulCut::PANELS, rows ? m : panels(n), steps};
}

#undef MATMUL_FACT
}  // namespace dvm
