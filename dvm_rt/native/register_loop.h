// The loop of the passes whose words are register words (register_passes.h): one function, in which the accumulator and two held
// strips stay in registers from word to word, and each word is a label. Part of vector.cpp where there are 32 vector registers.
//
// A function of labels, since the calling convention passes eight vectors and no more. The compiler finds a register for each of
// the 24 by itself, as long as no word needs more than the eight that are left.
#pragma once
#include "register_passes.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
#define STRIP_ARGS V &a0, V &a1, V &a2, V &a3, V &a4, V &a5, V &a6, V &a7
// Of numbers min and max are one instruction: whether there is a NaN is asked once a strip.
FN bool are_all(NaNs numbers) { return __builtin_expect(_kortestc_mask16_u8(numbers, numbers), 1); }
FN NaNs numbers_of(STRIP_ARGS) { return numbers(numbers(numbers(numbers(a0, a1), a2, a3), a4, a5), a6, a7); }

template <class O> FN void on_strip_of(V x, STRIP_ARGS) {
  if constexpr (quick_binary<O>)
    if (are_all(numbers(numbers_of(ACC), x, x))) return each<FULL>(EACH { a = meaning::Numbers<O>::of(a, x); }, ACC);
  each<FULL>(EACH { a = O::of(a, x); }, ACC);
}
template <class O, class Other> FN void on_held(Other x, STRIP_ARGS) {
  if constexpr (quick_binary<O>) {
    const NaNs half = numbers(numbers(numbers(numbers(a0, x(0)), a1, x(1)), a2, x(2)), a3, x(3));
    const NaNs all = numbers(numbers(numbers(numbers(half, a4, x(4)), a5, x(5)), a6, x(6)), a7, x(7));
    if (are_all(all)) return each<FULL>(EACH { a = meaning::Numbers<O>::of(a, x(j)); }, ACC);
  }
  each<FULL>(EACH { a = O::of(a, x(j)); }, ACC);
}
template <class O> FN void on_memory(const E* m, STRIP_ARGS) {  // no register is left that would keep what is there
  each<FULL>(EACH { a = O::of(a, load(m + j * W)); }, ACC);
}
template <class O> FN void on_strip_alone(STRIP_ARGS) {
  if constexpr (quick_unary<O>)
    if (are_all(numbers_of(ACC))) return each<FULL>(EACH { a = meaning::Numbers<O>::of(a); }, ACC);
  each<FULL>(EACH { a = O::of(a); }, ACC);
}

// Over `bytes` of the row, whole strips. What the optimiser would share between labels, jumps and loads, is what they are for.
[[gnu::noinline, gnu::optimize("no-gcse", "no-crossjumping", "no-tree-tail-merge")]]
void run_register_words(Context* c, const Word* start, long bytes) {
  static const void* const LABELS[] = {
      nullptr,
#define ENTRY(n) &&n,
#define FORMS(n) DVM_REGISTER_FORMS(ENTRY, n)
      DVM_REGISTER_BINARY(FORMS) DVM_REGISTER_UNARY(ENTRY) DVM_REGISTER_OTHERS(ENTRY)
#undef FORMS
#undef ENTRY
  };
  V a0{}, a1{}, a2{}, a3{}, a4{}, a5{}, a6{}, a7{};                  // the accumulator
  V s0{}, s1{}, s2{}, s3{}, s4{}, s5{}, s6{}, s7{};                  // held strip 0
  V t0{}, t1{}, t2{}, t3{}, t4{}, t5{}, t6{}, t7{};                  // held strip 1
  long off = 0;
  const Word* p = start;
  const void* const* labels = LABELS;
  asm("" : "+r"(labels));  // in a register: else each word computes where the table is
#define HELD0 s0, s1, s2, s3, s4, s5, s6, s7
#define HELD1 t0, t1, t2, t3, t4, t5, t6, t7
#define PICK(x) \
  j == 0 ? x##0 : j == 1 ? x##1 : j == 2 ? x##2 : j == 3 ? x##3 : j == 4 ? x##4 : j == 5 ? x##5 : j == 6 ? x##6 : x##7
  const auto held0 = [&](int j) __attribute__((always_inline)) { return PICK(s); };
  const auto held1 = [&](int j) __attribute__((always_inline)) { return PICK(t); };
#undef PICK
#define GO goto *labels[p->op]
#define NEXT_WORD p++; GO
#define STRIP const E* m = (const E*)(c->ptr[p->a] + off)
#define SLOT E* m = (E*)c->slot[p->k]
  GO;
#define FORMS(n) \
  n##_k: on_strip_of<meaning::n>(all(one_element<FORM_K>(c, p)), ACC); NEXT_WORD; \
  n##_r: on_strip_of<meaning::n>(all(one_element<FORM_R>(c, p)), ACC); NEXT_WORD; \
  n##_b: on_strip_of<meaning::n>(all(one_element<FORM_B>(c, p)), ACC); NEXT_WORD; \
  n##_s: { SLOT; on_memory<meaning::n>(m, ACC); } NEXT_WORD; \
  n##_s0: on_held<meaning::n>(held0, ACC); NEXT_WORD; \
  n##_s1: on_held<meaning::n>(held1, ACC); NEXT_WORD; \
  n##_i: { STRIP; on_memory<meaning::n>(m, ACC); } NEXT_WORD; \
  n##_i0: { STRIP; each<FULL>(EACH { a = load(m + j * W); }, HELD0); on_held<meaning::n>(held0, ACC); } NEXT_WORD; \
  n##_i1: { STRIP; each<FULL>(EACH { a = load(m + j * W); }, HELD1); on_held<meaning::n>(held1, ACC); } NEXT_WORD;
  DVM_REGISTER_BINARY(FORMS)
#undef FORMS
#define ENTRY(n) n: on_strip_alone<meaning::n>(ACC); NEXT_WORD;
  DVM_REGISTER_UNARY(ENTRY)
#undef ENTRY
to_bf16_clean: each<FULL>(EACH { a = number_rounded_to_brain_float(a); }, ACC); NEXT_WORD;
store_slot: { SLOT; each<FULL>(EACH { store(m + j * W, a); }, ACC); } NEXT_WORD;
store_slot0: s0 = a0, s1 = a1, s2 = a2, s3 = a3, s4 = a4, s5 = a5, s6 = a6, s7 = a7; NEXT_WORD;
store_slot1: t0 = a0, t1 = a1, t2 = a2, t3 = a3, t4 = a4, t5 = a5, t6 = a6, t7 = a7; NEXT_WORD;
#define LOAD(T) { \
  const uint8_t* m = dense_place<T>(c, p, off); \
  each<FULL>(EACH { a = from<T>(m + j * sizeof(StoredVector<T>)); }, ACC); } NEXT_WORD;
load_float16: LOAD(Half)
load_bfloat16: LOAD(BrainFloat)
#undef LOAD
store: {
  E* m = (E*)(c->ptr[p->a] + off);
  if (!are_all(numbers_of(ACC))) goto store_clean;
  each<FULL>(EACH { store(m + j * W, a); }, ACC);
} NEXT_WORD;
store_clean: { E* m = (E*)(c->ptr[p->a] + off); each<FULL>(EACH { store(m + j * W, canonicalNaN(a)); }, ACC); } NEXT_WORD;
store_nt: {
  E* m = (E*)(c->ptr[p->a] + off);
  if ((uintptr_t)m & (sizeof(V) - 1)) goto store;
  each<FULL>(EACH { stream(m + j * W, canonicalNaN(a)); }, ACC);
} NEXT_WORD;
#define STORE(T) put_strip<T, FULL, false>(dense_place<T>(c, p, off), ACC, p, c, off, nullptr); NEXT_WORD;
#define STORE_PAST(T, otherwise) { \
  uint8_t* m = dense_place<T>(c, p, off); \
  if ((uintptr_t)m & (sizeof(V) - 1)) goto otherwise; \
  put_strip<T, FULL, true>(m, ACC, p, c, off, nullptr); } NEXT_WORD;
store_float16: STORE(Half)
store_float16_nt: STORE_PAST(Half, store_float16)
store_bfloat16: STORE(BrainFloat)
store_bfloat16_nt: STORE_PAST(BrainFloat, store_bfloat16)
#undef STORE
#undef STORE_PAST
fetch: prefetch_strip<FULL>(c, p, off); NEXT_WORD;
loop:
  if ((off += STRIP_BYTES) < bytes) {
    p = start;
    GO;
  }
#undef HELD0
#undef HELD1
#undef GO
#undef NEXT_WORD
#undef STRIP
#undef SLOT
#undef STRIP_ARGS
}
FN const Word* register_words(const Context* c, const Word* p) { return c->register_words + (p - c->start); }
FN bool has_registers(const Context* c, const Word* p) { return c->register_words && register_words(c, p)->op; }
void run_in_registers(ARGS) {
  const long whole = c->row_bytes / STRIP_BYTES * STRIP_BYTES;
  run_register_words(c, register_words(c, p) + 1, whole);
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};
  off = whole;
  if (whole < c->row_bytes) {
    t = (const Table*)c->tail;
  } else {  // the table is still that of the row section
    while (p->op != OP_loop) p++;
  }
  NEXT;
}
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
