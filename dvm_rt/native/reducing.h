// Passes that read a dense operand and reduce it, and do nothing else: one loop, with the lanes in registers.
//
// As words they load, store and wait for the lanes at every strip. The order of additions is the same: bits do not depend on it.
// Only where a strip is as long as the lanes are; the part of a strip at the end of a row is left to the words. Serves vector.cpp.
#pragma once

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
enum class Reduced { AS_IT_IS, SQUARED, CENTRED_AND_SQUARED };

template <class O, Reduced HOW> FN void reduce_strips(Context* c, const Word* load_word, const Word* reduce_word, long bytes, long ahead) {
  const uint8_t* m = c->ptr[load_word->a];
  E* lanes = (E*)c->lanes[reduce_word->a];
  const V centre = HOW == Reduced::CENTRED_AND_SQUARED ? all(element(c->row_scalar[load_word[1].k])) : V{};
  V total[FULL];
#pragma GCC unroll 8
  for (int j = 0; j < FULL; j++) total[j] = load(lanes + j * W);
  for (const uint8_t* end = m + bytes; m < end; m += STRIP_BYTES) {
    if (ahead)
      for (long j = 0; j < STRIP_BYTES; j += 64) __builtin_prefetch(m + ahead + j);
#pragma GCC unroll 8
    for (int j = 0; j < FULL; j++) {
      V x = load(m + j * sizeof(V));
      if (HOW == Reduced::CENTRED_AND_SQUARED) x = meaning::sub::of(x, centre);
      if (HOW != Reduced::AS_IT_IS) x = meaning::square::of(x);
      total[j] = O::of(total[j], x);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < FULL; j++) store(lanes + j * W, total[j]);
}

// `pass` of rows that are longer than a strip and not longer than a block.
void pass_or_reduce(ARGS) {
  const Word *hint = p[1].op == OP_fetch ? p + 1 : nullptr, *x = hint ? p + 2 : p + 1;
  if (LANE_COUNT != FULL * W || x->op != OP_mov_i || c->row_bytes < STRIP_BYTES || (hint && hint->a != x->a)) CONTINUE(pass);
  const Reduced how = x[1].op == OP_square                           ? Reduced::SQUARED
                      : x[1].op == OP_sub_r && x[2].op == OP_square ? Reduced::CENTRED_AND_SQUARED
                                                                    : Reduced::AS_IT_IS;
  const Word* r = x + 1 + int(how);
  if (r[1].op != OP_loop || !(r->op == OP_acc_sum || (r->op == OP_acc_max && how == Reduced::AS_IT_IS))) CONTINUE(pass);
  const long whole = c->row_bytes / STRIP_BYTES * STRIP_BYTES;
  const long ahead = !hint ? 0 : hint->k ? hint->k : c->outer[0].gain[x->a];
  if (r->op == OP_acc_max) reduce_strips<meaning::max, Reduced::AS_IT_IS>(c, x, r, whole, ahead);
  else if (how == Reduced::AS_IT_IS) reduce_strips<meaning::add, Reduced::AS_IT_IS>(c, x, r, whole, ahead);
  else if (how == Reduced::SQUARED) reduce_strips<meaning::add, Reduced::SQUARED>(c, x, r, whole, ahead);
  else reduce_strips<meaning::add, Reduced::CENTRED_AND_SQUARED>(c, x, r, whole, ahead);
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};
  off = whole;
  if (whole == c->row_bytes) p = r + 1;  // behind the loop: the table is still that of the row section
  else t = (const Table*)c->tail;
  NEXT;
}
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
