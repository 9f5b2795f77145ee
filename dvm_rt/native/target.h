// What one build of the kernels (one instruction set) offers to the machine.
#pragma once
#include "program.h"

namespace dvm {

struct Trap {
  TrapCode code = TrapCode::NONE;
  uint16_t section = 0;
  uint32_t word = 0;
  int64_t got = 0, allowed = 0;
};

// All state of the vector machine beyond the accumulator; one per thread. Words name slots, row scalars and lanes by
// index, so programs do not depend on this layout. Lanes hold the identity of their reduction whenever no pass runs.
struct alignas(64) Context {
  uint8_t* ptr[MAX_OPERANDS];                // operand address at the start of the current row
  alignas(64) int64_t shift[MAX_OPERANDS];   // what the last `gather` of an operand added to its ptr
  const Outer* outer;                        // outer dimensions (odometer), `outers` of them
  int64_t outers, left[MAX_RANK];
  int64_t row_bytes;                         // row length in bytes of the compute dtype
  const Operand* operands;
  const Word* start;
  const void *full, *tail, *row;             // dispatch tables: whole strip, last strip, one-vector row section
  Trap trap;
  const Word* stopped;                       // where a table with stops has stopped
  float* results;                            // of the blocks of a part of a row ([block][reduction]); null: to `blocks`
  int64_t first;                             // element of the row that offset 0 is: not 0 in a later part of a row
  alignas(64) float row_scalar[MAX_ROW_SCALARS];
  alignas(64) float lanes[MAX_REDUCTIONS][LANES];   // of the current block of the row
  alignas(64) float blocks[MAX_REDUCTIONS][LANES];  // of block results, for rows beyond BLOCK
  alignas(64) float slot[MAX_SLOTS][LANES];
  alignas(64) float convert[LANES];          // a strip on its way from or to another dtype
  Context();
};

// A part of a section with every address resolved. `address[i]` is where operand i of the whole section starts; `scratch`
// and the Context are the running thread's own. Only units [begin, end) of section.split.units are to be run (split.h says
// what they are and how to add a kind of section); a section that is not cut runs as {0, section.split.units}. Parts of a
// section run at once, so nothing may pass from one unit to another: no carried state, no scratch, no order.
//
// A wide section (Split.wide: few rows, very long) gets a Team instead and is whole: it takes its rows in phases, each of
// which the threads of the team share, by ranges of blocks.
class Team {
 public:
  using Work = void (*)(void* job, Context& context, int64_t part);
  virtual void each(int64_t parts, Work work, void* job) = 0;  // on any thread, with that thread's Context; until all are done
  int64_t parts;
  float* results;  // room for MAX_REDUCTIONS of each block of the longest row
};

struct SectionRun {
  const SectionView& section;
  uint8_t* const* address;
  uint8_t* scratch;
  int64_t begin, end;
  Team* team = nullptr;
};

struct Target {
  const char* name;                                     // "avx512", "avx2", "baseline"
  int strip;                                            // float32 elements of a strip
  void (*vector)(Context&, const SectionRun&);          // sets Context.trap on a trap
  void (*matmul)(Context&, const SectionRun&);
  void (*pack)(Context&, const SectionRun&);
};

std::span<const Target* const> targets();  // those this CPU can run, best first
const Target& best_target();               // DVM_RT_TARGET names another one; throws invalid_argument if it is not there
const Target* find_target(const char* name);

}  // namespace dvm
