// Passes that models are full of, by their words: reductions of what is read, softmax, norms, activations. The vector machine has
// a loop for each of them (whole_passes.h), in which values stay in registers and nothing is dispatched.
//
// The words stay what they are: the end of a row, a row of one strip alone and other instruction sets run them, with the
// same bits. When a program is loaded `pass` gets the number of its loop, in the field `a` that is empty in its bytes. A pass
// that deserves a loop: one line here, and nothing else.
#pragma once
#include "layout.h"

namespace dvm {

// A step is an opcode and, where the word names a slot, that slot.
constexpr uint32_t step(int op, uint32_t slot = 0) { return uint32_t(op) | slot << 16; }
constexpr int op_of(uint32_t step) { return int(step & 0xffff); }
constexpr uint32_t slot_of(uint32_t step) { return step >> 16; }

template <uint32_t... STEP> struct KnownPass {
  static constexpr int COUNT = sizeof...(STEP);
  static constexpr uint32_t STEPS[COUNT] = {STEP...};
};
template <class... PASS> struct PassList {
  static constexpr int COUNT = sizeof...(PASS);
};

#define S(op) step(OP_##op)
#define S0(op) step(OP_##op, 0)
#define S1(op) step(OP_##op, 1)
using KnownPasses = PassList<
    // reductions
    KnownPass<S(mov_i), S(acc_sum)>, KnownPass<S(mov_i), S(acc_max)>, KnownPass<S(mov_i), S(square), S(acc_sum)>,
    KnownPass<S(mov_i), S(sub_r), S(square), S(acc_sum)>, KnownPass<S(mov_i), S(add_i), S(acc_sum)>,
    KnownPass<S(mov_i), S(add_i), S(sub_r), S(square), S(acc_sum)>,
    // softmax, cross entropy
    KnownPass<S(mov_i), S(sub_r), S(exp), S(store), S(acc_sum)>, KnownPass<S(mov_i), S(mul_r), S(store)>,
    KnownPass<S(mov_i), S(sub_r), S(exp), S(acc_sum)>,
    KnownPass<S(mov_i), S(sub_r), S0(store_slot), S(exp), S(acc_sum), S0(mov_s), S(mul_i), S(acc_sum)>,
    // norms
    KnownPass<S(mov_i), S(mul_r), S(mul_i), S(store)>,
    KnownPass<S(mov_i), S(sub_r), S(mul_r), S(mul_i), S(add_i), S(store)>,
    KnownPass<S(mov_i), S(add_i), S(sub_r), S(mul_r), S(mul_i), S(add_i), S(store)>,
    // gelu, also of a sum; silu, also times another; the cell of an LSTM
    KnownPass<S(mov_i), S(mul_k), S0(store_slot), S(mov_i), S(mul_k), S(erf), S(add_k), S0(mul_s), S(store)>,
    KnownPass<S(mov_i), S(add_i), S0(store_slot), S(mul_k), S1(store_slot), S0(mov_s), S(mul_k), S(erf), S(add_k),
              S1(mul_s), S(store)>,
    KnownPass<S(mov_i), S(sigmoid), S(mul_i), S(store)>, KnownPass<S(mov_i), S(sigmoid), S(mul_i), S(mul_i), S(store)>,
    KnownPass<S(mov_i), S(sigmoid), S0(store_slot), S(mov_i), S(tanh), S0(mul_s), S0(store_slot), S(mov_i), S(sigmoid),
              S(mul_i), S0(add_s), S(tanh), S0(store_slot), S(mov_i), S(sigmoid), S0(mul_s), S(store)>>;
#undef S
#undef S0
#undef S1
constexpr int KNOWN_STEPS_MAX = 17;

// The number of the pass whose `pass` this is, from 1; 0: none of them. Hints may stand anywhere in it.
inline uint16_t number_of_pass(const Word* pass) {
  uint32_t steps[KNOWN_STEPS_MAX];
  int count = 0;
  for (const Word* p = pass + 1; p->op != OP_loop; p++) {
    if (p->op == OP_fetch) continue;
    if (count == KNOWN_STEPS_MAX) return 0;
    const bool names_slot = OPS[p->op].k == Field::SLOT;
    steps[count++] = step(p->op == OP_store_nt ? uint16_t(OP_store) : p->op, names_slot ? p->k : 0);
  }
  uint16_t number = 0, found = 0;
  auto compare = [&]<uint32_t... STEP>(KnownPass<STEP...>) {
    number++;
    if (found || count != int(sizeof...(STEP))) return;
    int i = 0;
    if (((steps[i++] == STEP) && ...)) found = number;
  };
  [&]<class... PASS>(PassList<PASS...>) { (compare(PASS{}), ...); }(KnownPasses{});
  return found;
}

}  // namespace dvm
