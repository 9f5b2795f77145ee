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
  const Word* start;
  const uint64_t* constants;                 // of the section, where elements have 8 bytes
  const void *full, *tail, *row;             // dispatch tables: whole strip, last strip, one-vector row section
  Trap trap;
  uint8_t lanes_dtype;                       // whose identities the lanes hold; 255: none yet
  // Elements of the section's compute dtype, of 4 or 8 bytes.
  alignas(64) uint8_t row_scalar[MAX_ROW_SCALARS][8];
  alignas(64) uint8_t lanes[MAX_REDUCTIONS][STRIP_BYTES_MAX];   // of the current block of the row
  alignas(64) uint8_t blocks[MAX_REDUCTIONS][STRIP_BYTES_MAX];  // of block results, for rows beyond BLOCK
  alignas(64) uint8_t slot[MAX_SLOTS][STRIP_BYTES_MAX];
  alignas(64) uint8_t convert[STRIP_BYTES_MAX];                 // a strip on its way from or to another dtype
  Context();
};

// Where INDEX operands start, so that an address tells how far one has moved; nothing is ever read there.
inline uint8_t* const INDEX_ORIGIN = reinterpret_cast<uint8_t*>(uintptr_t{1} << 62);

// A section with every address resolved. `address[i]` is where operand i starts; `scratch` is the thread's own.
struct SectionRun {
  SectionView section;
  uint8_t* const* address;
  uint8_t* scratch;
};

struct Target {
  const char* name;                                     // "avx512", "avx2", "baseline"
  int strip;                                            // float32 elements of a strip
  void (*vector[sizeof DTYPE_BYTES])(Context&, const SectionRun&);  // by compute dtype; sets Context.trap on a trap
  void (*matmul)(Context&, const SectionRun&);
  void (*pack)(Context&, const SectionRun&);
};

std::span<const Target* const> targets();  // those this CPU can run, best first
const Target& best_target();               // DVM_RT_TARGET names another one; throws invalid_argument if it is not there
const Target* find_target(const char* name);

}  // namespace dvm
