// The verifier: proves in one forward pass that a program can do no harm. Only VerifiedProgram::load calls it (and the
// tests, through the binding).
//
// Proven: lengths and reserved fields are exact; every byte that a section touches lies inside the declared extent of
// its argument, aligned and with permission; passes nest; accumulator, slots, row scalars, row buffers and reductions are
// written before they are read; what a section writes does not move under its own reads; work and scratch stay within
// what the head claims. Not proven: that the program means anything. Gathered rows are checked while it runs.
#pragma once
#include <bitset>
#include "program.h"

namespace dvm {

// Of a program; and of one section, which nothing stops before its end: half a minute to some minutes of one thread.
constexpr uint64_t FUEL_MAX = 1ull << 40, SECTION_FUEL_MAX = 1ull << 33;
constexpr uint64_t WORKSPACE_BYTES_MAX = 1ull << 40, SCRATCH_BYTES_MAX = 1ull << 32;
constexpr int64_t DIMENSION_MAX = 1ll << 40;  // of one dimension, and of the product of all

struct VerifyFacts {  // what the machine wants to know about a program that passed
  bool zero_workspace = false, streams = false;
  size_t outer_rows = 0;  // Outer records that its vector sections need
  // Sections that may run at the same time as the one before them, and all those that this may be said of in a row with it: none
  // of them touches what another one writes.
  std::bitset<MAX_SECTIONS> beside;
  // By section: an earlier one that differs from it in places alone, or itself. Not set where `repeats` is false.
  bool repeats = false;
  uint16_t like[MAX_SECTIONS];
};

// `bytes` is private to the caller and 8-aligned. A program that passes may get ZERO_FILL into the modes of arguments
// that it does not provably write as a whole.
VerifyError verify(uint8_t* bytes, size_t n, VerifyFacts& facts);

}  // namespace dvm
