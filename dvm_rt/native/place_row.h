// Where a row of a vector section lies: for those who walk rows in their own way. Part of what is built once per target.
#pragma once
#include "target.h"

namespace dvm::DVM_TARGET {
namespace {

// Sets ptr[i] to operand i of `row`. Returns how many rows of run, from there on, lie in the innermost outer dimension.
[[gnu::always_inline]] inline int64_t place_row(const SectionRun& run, int64_t row, uint8_t** ptr) {
  const SectionView& s = run.section;
  const int64_t left = run.end - row;
  int64_t rest = row, in_line = 0;
  for (int i = 0; i < s.head->operand_count; i++) ptr[i] = run.address[i];
  for (int d = 1; d < s.head->rank; d++) {
    const int64_t count = s.head->dims[d];
    if (count == 1) continue;
    const int64_t at = rest % count;
    rest /= count;
    if (!in_line) in_line = count - at;
    for (int i = 0; at && i < s.head->operand_count; i++) ptr[i] += at * s.operands[i].stride[d];
  }
  return in_line && in_line < left ? in_line : left;  // 0: there is but one row
}

}  // namespace
}  // namespace dvm::DVM_TARGET
