// What a matmul epilogue needs from the vector machine of the same target: run words over part of a row.
#pragma once
#include "target.h"

namespace dvm::DVM_TARGET {

// Runs `words` (up to the word `end`) over `columns` elements. context.ptr[i] is operand i's first element there,
// context.operands its description. Defined in vector.cpp.
void run_strip(Context& context, const Word* words, int64_t columns);

// Defined in matmul.cpp.
void run_matmul(Context& context, const SectionRun& run);
void run_pack(Context& context, const SectionRun& run);

// Defined in attention.cpp.
void run_attention(Context& context, const SectionRun& run);

}  // namespace dvm::DVM_TARGET
