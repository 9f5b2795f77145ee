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

constexpr int STRIP_BYTES_MAX = 4 * LANES;

// What the other ways to walk rows need (many_rows.h); nothing in it outlives a section. Not cleared: large, and written before
// it is read.
struct alignas(64) ManyRows {
  int64_t rows;                        // at a time
  int64_t group, group_most;           // rows whose scalars go together; of the next ones, at most
  int64_t scalars;                     // row scalars that there may be
  int64_t rest;                        // elements of a row's last vector
  int64_t gain[MAX_OPERANDS];          // from row to row
  int64_t step[MAX_OPERANDS];          // from these rows to the next; those beyond the section's operands move nothing
  const void* loops;                   // of known passes over rows of this length
  bool whole;                          // no element of the strip is unused
  alignas(64) uint8_t total[MAX_REDUCTIONS][64];
  alignas(64) uint8_t scalar[MAX_ROW_SCALARS][STRIP_BYTES_MAX];
  alignas(64) uint8_t folded[MAX_REDUCTIONS][16 * 64];  // a vector for each row of a group
  alignas(64) uint8_t buffer[MAX_OPERANDS][8 * STRIP_BYTES_MAX];
  alignas(64) uint8_t lanes[MAX_REDUCTIONS][LANES][STRIP_BYTES_MAX];
  alignas(64) uint8_t running[MAX_RUNNING][STRIP_BYTES_MAX];  // totals so far; of one row the first element
};

// All state of the vector machine beyond the accumulator; one per thread. Words name slots, row scalars and lanes by
// index, so programs do not depend on this layout. Lanes hold the identity of their reduction in `lanes_dtype` whenever no
// pass runs.
struct alignas(64) Context {
  uint8_t* ptr[MAX_OPERANDS];                // operand address at the start of the current row
  alignas(64) int64_t shift[MAX_OPERANDS];   // what the last `gather` of an operand added to its ptr
  const Outer* outer;                        // outer dimensions (odometer), `outers` of them
  int64_t outers, left[MAX_RANK];
  int64_t row_bytes;                         // row length in bytes of the compute dtype
  const Operand* operands;
  const Word *start, *register_words;        // of the section; the latter null, or one for each word
  const uint64_t* constants;                 // of the section, where elements have 8 bytes
  const void *full, *tail, *row;             // dispatch tables: whole strip, last strip, one-vector row section
  Trap trap;
  const Word* stopped;                       // where a table with stops has stopped
  uint8_t* results;                          // of the blocks of a part of a row ([block][reduction], 4 bytes); null: to `blocks`
  int64_t first;                             // element of the row that offset 0 is: not 0 in a later part of a row
  uint8_t lanes_dtype;                       // whose identities the lanes hold; 255: none yet
  // Elements of the section's compute dtype, of 4 or 8 bytes.
  alignas(64) uint8_t row_scalar[MAX_ROW_SCALARS][8];
  alignas(64) uint8_t lanes[MAX_REDUCTIONS][STRIP_BYTES_MAX];   // of the current block of the row
  alignas(64) uint8_t blocks[MAX_REDUCTIONS][STRIP_BYTES_MAX];  // of block results, for rows beyond BLOCK
  alignas(64) uint8_t slot[MAX_SLOTS][STRIP_BYTES_MAX];
  alignas(64) uint8_t convert[STRIP_BYTES_MAX];                 // a strip on its way from or to another dtype
  ManyRows many;
  Context();
};

// Where INDEX operands start, so that an address tells how far one has moved; nothing is ever read there.
inline uint8_t* const INDEX_ORIGIN = reinterpret_cast<uint8_t*>(uintptr_t{1} << 62);

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
  uint8_t* results;  // room for MAX_REDUCTIONS elements of 4 bytes of each block of the longest row
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
  void (*vector[sizeof DTYPE_BYTES])(Context&, const SectionRun&);  // by compute dtype; sets Context.trap on a trap
  void (*matmul)(Context&, const SectionRun&);
  void (*pack)(Context&, const SectionRun&);
  void (*copy)(Context&, const SectionRun&);
  void (*attention)(Context&, const SectionRun&);
};

std::span<const Target* const> targets();  // those this CPU can run, best first
const Target& best_target();               // DVM_RT_TARGET names another one; throws invalid_argument if it is not there
const Target* find_target(const char* name);

}  // namespace dvm
