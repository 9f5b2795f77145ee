// The builds of the vector machine for one target, and what a matmul epilogue needs of them: to run words over part of a row.
#pragma once
#include "target.h"

namespace dvm::DVM_TARGET {

// run_strip runs `words` (up to the word `end`) over `columns` elements of the compute dtype. context.ptr[i] is operand i's
// first element there, context.operands its description, context.constants those of the section. run_strips does so in `rows` short
// rows, as many at once as a strip holds, and returns how many of them it has run: 0 where rows have to go one by one; who calls
// it sets context.ptr anew. run_vector runs a vector section. Defined in vector.cpp, which is built once per compute dtype.
#define DVM_EACH_DTYPE(X) X(float32) X(float64) X(int32) X(uint32) X(int64) X(uint64)
#define X(dtype) \
  namespace dtype { \
  void run_vector(Context& context, const SectionRun& run); \
  void run_strip(Context& context, const Word* words, int64_t columns); \
  int64_t run_strips(Context& context, const Word* words, int operands, int64_t columns, int64_t rows); \
  }
DVM_EACH_DTYPE(X)
#undef X

// Defined in matmul.cpp.
void run_matmul(Context& context, const SectionRun& run);
void run_pack(Context& context, const SectionRun& run);

// Defined in attention.cpp.
void run_attention(Context& context, const SectionRun& run);

}  // namespace dvm::DVM_TARGET
