// Passes of plain arithmetic over whole strips: which of their values stay in registers. Beside the accumulator the machine
// has two strips of registers where the instruction set has room for them (register_loop.h): an input that is read again,
// and a slot, are read from there, not from memory, which gives a strip more slowly than arithmetic takes it.
//
// When a program is loaded such a pass gets register words beside its words: the same fields, and an opcode that also says
// where the operand is. The words stay what they are: less than a strip, rows of one strip and other instruction sets run
// them, with the same bits. First come, first served: a value takes a free register from where it is made, or first read, to its
// last use; a slot also takes one from an input, which memory still has. An input is not kept over a store, which may change it.
//
// Another operator: its name in one of the two lists here, if its function is so short that it needs no registers beyond a few.
#pragma once
#include "program.h"

namespace dvm {

constexpr int HELD_STRIPS = 2;
#define DVM_REGISTER_BINARY(X) X(mov) X(add) X(sub) X(rsub) X(mul) X(div) X(rdiv) X(max) X(min) X(eq) X(ne) X(lt) X(le) \
  X(gt) X(ge) X(keep) X(drop) X(merge)
#define DVM_REGISTER_UNARY(X) X(neg) X(abs) X(square) X(relu) X(sqrt) X(rsqrt) X(recip) X(floor) X(ceil) X(trunc) X(round) \
  X(to_f16) X(to_bf16)
// Forms of a binary one: s0, s1: the operand is held strip 0, 1; i0, i1: the input becomes held strip 0, 1 first.
#define DVM_REGISTER_FORMS(X, n) X(n##_k) X(n##_r) X(n##_b) X(n##_s) X(n##_s0) X(n##_s1) X(n##_i) X(n##_i0) X(n##_i1)
#define DVM_REGISTER_OTHERS(X) X(store_slot) X(store_slot0) X(store_slot1) X(load_float16) X(load_bfloat16) X(store) X(store_nt) \
  X(store_float16) X(store_float16_nt) X(store_bfloat16) X(store_bfloat16_nt) \
  X(to_bf16_clean) X(fetch) X(loop)

enum RegisterOp : uint16_t {
  NO_REGISTER_OP,
#define ENTRY(n) REGISTER_##n,
#define FORMS(n) DVM_REGISTER_FORMS(ENTRY, n)
  DVM_REGISTER_BINARY(FORMS) DVM_REGISTER_UNARY(ENTRY) DVM_REGISTER_OTHERS(ENTRY)
#undef FORMS
#undef ENTRY
};
struct RegisterOps { uint16_t of[OP_COUNT]; };  // of an opcode, its operand in memory; NO_REGISTER_OP: none
constexpr RegisterOps register_ops() {
  RegisterOps ops{};
#define FORMS(n) \
  ops.of[OP_##n##_k] = REGISTER_##n##_k, ops.of[OP_##n##_r] = REGISTER_##n##_r, ops.of[OP_##n##_b] = REGISTER_##n##_b; \
  ops.of[OP_##n##_s] = REGISTER_##n##_s, ops.of[OP_##n##_i] = REGISTER_##n##_i;
#define ENTRY(n) ops.of[OP_##n] = REGISTER_##n;
  DVM_REGISTER_BINARY(FORMS) DVM_REGISTER_UNARY(ENTRY)
  ENTRY(store_slot) ENTRY(store) ENTRY(store_nt) ENTRY(fetch) ENTRY(loop)
#undef ENTRY
#undef FORMS
  return ops;
}
constexpr RegisterOps REGISTER_OPS = register_ops();

// The register op of a word, its operand in memory.
inline uint16_t register_op(const SectionView& section, Word w) {
  if (w.op != OP_load && w.op != OP_store_any && w.op != OP_store_any_nt) return REGISTER_OPS.of[w.op];
  const Operand& x = section.operands[w.a];
  const bool half = DType(x.dtype) == DType::FLOAT16;
  if ((!half && DType(x.dtype) != DType::BFLOAT16) || x.stride[0] != 2) return NO_REGISTER_OP;
  if (w.op == OP_load) return half ? REGISTER_load_float16 : REGISTER_load_bfloat16;
  if (w.op == OP_store_any) return half ? REGISTER_store_float16 : REGISTER_store_bfloat16;
  return half ? REGISTER_store_float16_nt : REGISTER_store_bfloat16_nt;
}

// Can a NaN whose low 16 bits are not 0 be where rounding to bfloat16 sees it? Arithmetic hands the bits of a NaN on, and the one
// that it makes has none there; so has what comes from 16 bits of bfloat16.
inline bool all_nans_are_short(const Word* words, const Word* out, int count) {
  for (int i = 1; i < count; i++) {
    const OpInfo& op = OPS[words[i].op];
    if (op.group == Group::LOAD && out[i].op != REGISTER_load_bfloat16) return false;
    if (op.group != Group::BINARY || op.form == FORM_S) continue;
    if (op.form != FORM_K || ((words[i].k & 0x7fffffff) > 0x7f800000 && words[i].k & 0xffff)) return false;
  }
  return true;
}

// Leaves out the roundings to bfloat16 of what is one already: a bfloat16 times a power of two that is not below 1 has no more
// bits, and is infinite where float32 is.
inline void drop_roundings(const Word* words, Word* out, int count) {
  bool rounded = false, slot_rounded[MAX_SLOTS] = {};
  int kept = 1;
  for (int i = 1; i <= count; i++) {
    const Word& w = words[i];
    if (w.op == OP_to_bf16 && rounded) continue;
    switch (w.op) {
      case OP_load: rounded = out[i].op == REGISTER_load_bfloat16; break;
      case OP_to_bf16: rounded = true; break;
      case OP_store_slot: slot_rounded[w.k] = rounded; break;
      case OP_mov_s: rounded = slot_rounded[w.k]; break;
      case OP_max_s: case OP_min_s: rounded &= slot_rounded[w.k]; break;
      case OP_mul_k: rounded &= !(w.k & 0x7fffff) && (w.k >> 23 & 255) >= 127 && (w.k >> 23 & 255) < 255; break;
      case OP_neg: case OP_abs: case OP_relu: case OP_fetch: break;
      default: rounded &= OPS[w.op].group == Group::STORE;
    }
    out[kept++] = out[i];
  }
}

// Writes the register words of the pass at words[0], up to its `loop`. False: there is a word that has none.
inline bool hold_in_registers(const SectionView& section, const Word* words, Word* out) {
  constexpr int WORDS_MAX = 96;
  if (DType(section.head->dtype) != DType::FLOAT32) return false;
  int count = 0;  // of words up to `loop`
  do {
    if (++count == WORDS_MAX) return false;
    out[count] = words[count];
    if (!(out[count].op = register_op(section, words[count]))) return false;
  } while (words[count].op != OP_loop);
  if (words[count].a) return false;  // reduces

  // Of a word that makes a value, or reads an input: the last word that reads it again.
  uint8_t until[WORDS_MAX] = {}, last_of_slot[MAX_SLOTS] = {}, last_of_input[MAX_OPERANDS] = {};
  auto is = [&](int i, Form form) { return OPS[words[i].op].group == Group::BINARY && OPS[words[i].op].form == form; };
  for (int i = count - 1; i; i--) {
    const Word& w = words[i];
    if (w.op == OP_store_slot) {
      until[i] = last_of_slot[w.k], last_of_slot[w.k] = 0;
    } else if (OPS[w.op].group == Group::STORE) {
      for (uint8_t& last : last_of_input) last = 0;
    } else if (is(i, FORM_S)) {
      if (!last_of_slot[w.k]) last_of_slot[w.k] = uint8_t(i);
    } else if (is(i, FORM_I)) {
      until[i] = last_of_input[w.a];
      if (!until[i]) last_of_input[w.a] = uint8_t(i);
    }
  }
  struct { uint32_t value; int until; } held[HELD_STRIPS] = {};
  constexpr uint32_t INPUT = MAX_SLOTS;  // value: a slot, or an input beyond those
  auto holder = [&](uint32_t value, int i) {
    for (int r = 0; r < HELD_STRIPS; r++)
      if (held[r].value == value && held[r].until >= i) return r;
    return -1;
  };
  // In a free strip, a slot also in one that holds an input, which is read from memory again as it is.
  auto hold = [&](uint32_t value, int i) {
    for (const bool taken : {false, true})
      for (int r = 0; r < HELD_STRIPS; r++)
        if (until[i] && (taken ? value < INPUT && held[r].value >= INPUT : held[r].until < i)) {
          held[r] = {value, until[i]}, out[i].op = uint16_t(out[i].op + 1 + r);
          return;
        }
  };
  for (int i = 1; i < count; i++) {
    const Word& w = words[i];
    if (w.op == OP_store_slot) {
      if (const int r = holder(w.k, i); r >= 0) held[r].until = 0;
      hold(w.k, i);
    } else if (is(i, FORM_S)) {
      if (const int r = holder(w.k, i); r >= 0) out[i].op = uint16_t(out[i].op + 1 + r);
    } else if (is(i, FORM_I)) {
      if (const int r = holder(INPUT + w.a, i); r >= 0) out[i].op = uint16_t(REGISTER_OPS.of[w.op - FORM_I + FORM_S] + 1 + r);
      else hold(INPUT + w.a, i);
    }
  }
  if (all_nans_are_short(words, out, count))
    for (int i = 1; i < count; i++)
      if (out[i].op == REGISTER_to_bf16) out[i].op = REGISTER_to_bf16_clean;
  drop_roundings(words, out, count);
  return true;
}

}  // namespace dvm
