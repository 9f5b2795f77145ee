// The loops of the passes in known_passes.h, over whole strips: a few vectors at a time go through all of a pass's
// words, slots and lanes in registers. Part of vector.cpp.
//
// Why the bits are the same. Every element sees the operations of the words, and every lane its elements in their
// order. Only the largest element is found in another way: whether there is a NaN is asked once a pass, which is then
// the total, as it is in the end. What is left of a row, less than a strip, is left to the words. Lanes have to be as
// many as a strip has elements, and a row that they reduce not longer than a block.
#pragma once
#include "known_passes.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
template <int OP> struct Meant;  // the operation of an opcode
#define X(n) \
  template <> struct Meant<OP_##n##_s> { using O = meaning::n; }; \
  template <> struct Meant<OP_##n##_i> { using O = meaning::n; }; \
  template <> struct Meant<OP_##n##_k> { using O = meaning::n; }; \
  template <> struct Meant<OP_##n##_r> { using O = meaning::n; };
DVM_ROWS_OF(BINARY)(X)
#undef X
#define X(n) template <> struct Meant<OP_##n> { using O = meaning::n; };
DVM_ROWS_OF(UNARY)(X)
#undef X
template <> struct Meant<OP_acc_sum> { using O = meaning::add; };
template <> struct Meant<OP_acc_max> { using O = meaning::max; };

template <int OP> constexpr bool in_registers() {  // may a word be a step of a loop?
  if constexpr (OPS[OP].group == Group::BINARY)
    return requires { typename Meant<OP>::O; } && !binary_strip<typename Meant<OP>::O>;
  else if constexpr (OPS[OP].group == Group::UNARY)
    return requires { typename Meant<OP>::O; } && !unary_strip<typename Meant<OP>::O>;
  else return OPS[OP].group != Group::REDUCE || LANE_COUNT == FULL * W;
}

constexpr int HINTS_MAX = 4;
constexpr int AT_ONCE = sizeof(V) == 64 ? 4 : sizeof(V) == 32 ? 2 : 1;  // vectors
#define EACH_AT_ONCE _Pragma("GCC unroll 4") for (int j = 0; j < AT_ONCE; j++)

template <class PASS> struct WholePass;
template <uint32_t... STEP> struct WholePass<KnownPass<STEP...>> {
  static constexpr int COUNT = sizeof...(STEP), SLOTS = 2;
  static constexpr uint32_t STEPS[COUNT] = {STEP...};
  static constexpr Group group_of(int i) { return OPS[op_of(STEPS[i])].group; }
  static constexpr int reductions_before(int i) { return i ? reductions_before(i - 1) + (group_of(i - 1) == Group::REDUCE) : 0; }
  static constexpr int REDUCTIONS = reductions_before(COUNT);
  static constexpr bool STORES = ((op_of(STEP) == OP_store) || ...);
  static constexpr bool is_loop() {  // in this dtype, for this instruction set
    if constexpr (((OPS[op_of(STEP)].dtypes >> DTYPE & 1) && ...)) return (in_registers<op_of(STEP)>() && ...);
    else return false;
  }
  static_assert(((slot_of(STEP) < SLOTS) && ...) && (REDUCTIONS <= 1 || ((op_of(STEP) != OP_acc_max) && ...)));

  struct State {
    const uint8_t* m[COUNT];  // of each step: its operand in memory
    V k[COUNT];               // or its constant
    V slot[SLOTS][AT_ONCE];
    V total[REDUCTIONS + 1][FULL];
    NaNs nans;  // in what a maximum has seen
  };
  // A step for AT_ONCE vectors, the first of them number FIRST of the strip that starts `at` bytes into the row.
  template <int I, int FIRST, bool STREAM> FN static void take(State& s, long at, V (&x)[AT_ONCE]) {
    constexpr int OP = op_of(STEPS[I]), SLOT = int(slot_of(STEPS[I]));
    constexpr Form FORM = OPS[OP].form;
    if constexpr (group_of(I) == Group::BINARY) {
      using O = typename Meant<OP>::O;
      EACH_AT_ONCE {
        if constexpr (FORM == FORM_I) x[j] = O::of(x[j], load(s.m[I] + at + (FIRST + j) * long(sizeof(V))));
        else if constexpr (FORM == FORM_S) x[j] = O::of(x[j], s.slot[SLOT][j]);
        else x[j] = O::of(x[j], s.k[I]);
      }
    } else if constexpr (group_of(I) == Group::UNARY) {
      using O = typename Meant<OP>::O;
      if constexpr (sideways<O>) on_pack<O>(x);
      else EACH_AT_ONCE x[j] = O::of(x[j]);
    } else if constexpr (OP == OP_store_slot) {
      EACH_AT_ONCE s.slot[SLOT][j] = x[j];
    } else if constexpr (OP == OP_store) {
      EACH_AT_ONCE {
        E* m = (E*)(s.m[I] + at + (FIRST + j) * long(sizeof(V)));
        STREAM ? stream(m, canonicalNaN(x[j])) : store(m, canonicalNaN(x[j]));
      }
    } else {
      using O = typename Meant<OP>::O;
      V(&total)[FULL] = s.total[reductions_before(I)];
      if constexpr (FLOATING && std::is_same_v<O, meaning::max>) {
        EACH_AT_ONCE {
          total[FIRST + j] = maxNumber(total[FIRST + j], x[j]);
          if (j % 2 == 0) s.nans |= unordered(x[j], x[j + (AT_ONCE > 1)]);
        }
      } else {
        EACH_AT_ONCE total[FIRST + j] = O::of(total[FIRST + j], x[j]);
      }
    }
  }
  template <class O> FN static void on_pack(V (&x)[AT_ONCE]) {
#ifdef DVM_IS_float32
    Pack<AT_ONCE> pack;
    EACH_AT_ONCE pack.v[j] = x[j];
    pack = O::of(pack);
    EACH_AT_ONCE x[j] = pack.v[j];
#endif
  }
  template <int FIRST, bool STREAM, int... I> FN static void take_all(State& s, long at, std::integer_sequence<int, I...> steps) {
    V x[AT_ONCE];
    EACH_AT_ONCE x[j] = V{};
    (take<I, FIRST, STREAM>(s, at, x), ...);
    if constexpr (FIRST + AT_ONCE < FULL) take_all<FIRST + AT_ONCE, STREAM>(s, at, steps);
  }

  // Over `bytes` of the row, whole strips. Returns the word `loop`.
  template <bool STREAM> [[gnu::noinline]] static const Word* run(Context* c, const Word* pass, long bytes) {
    State s;
    const uint8_t* ahead[HINTS_MAX];
    const Word* reduce[REDUCTIONS + 1];
    int hints = 0;
    const Word* p = pass + 1;
    auto prepare = [&]<int I>() __attribute__((always_inline)) {
      for (; p->op == OP_fetch; p++)
        if (hints < HINTS_MAX) ahead[hints++] = c->ptr[p->a] + (p->k ? p->k : c->outer[0].gain[p->a]);
      constexpr Form FORM = OPS[op_of(STEPS[I])].form;
      if constexpr (FORM == FORM_I || op_of(STEPS[I]) == OP_store) s.m[I] = c->ptr[p->a];
      if constexpr (FORM == FORM_K || FORM == FORM_R) s.k[I] = all(one_element<FORM>(c, p));
      if constexpr (group_of(I) == Group::REDUCE) {
        reduce[reductions_before(I)] = p;
#pragma GCC unroll 8
        for (int j = 0; j < FULL; j++) s.total[reductions_before(I)][j] = load(c->lanes[p->a] + j * sizeof(V));
      }
      p++;
    };
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
      (prepare.template operator()<I>(), ...);
    }(STEP_NUMBERS);
    while (p->op == OP_fetch) p++;
    s.nans = NaNs{};
    for (long at = 0; at < bytes; at += STRIP_BYTES) {
      for (int i = 0; i < hints; i++)
        for (long j = 0; j < STRIP_BYTES; j += 64) __builtin_prefetch(ahead[i] + at + j);
      take_all<0, STREAM>(s, at, STEP_NUMBERS);
    }
    if (REDUCTIONS && any(s.nans)) s.total[0][0] = all(NaN);
#pragma GCC unroll 2
    for (int r = 0; r < REDUCTIONS; r++)
#pragma GCC unroll 8
      for (int j = 0; j < FULL; j++) store(c->lanes[reduce[r]->a] + j * sizeof(V), s.total[r][j]);
    return p;
  }
  static constexpr auto STEP_NUMBERS = std::make_integer_sequence<int, COUNT>{};
};

using PassLoop = const Word* (*)(Context* c, const Word* pass, long bytes);
struct PassLoops { PassLoop of[1 + KnownPasses::COUNT][2]; };  // [number of the pass][past the caches]; null: the words are run
template <bool LONG, class... PASS> constexpr PassLoops loops_of(PassList<PASS...>) {
  PassLoops loops{};
  int number = 0;
  auto add = [&]<class P>() {
    number++;
    if constexpr (P::is_loop() && !(LONG && P::REDUCTIONS)) {
      loops.of[number][0] = P::template run<false>;
      if constexpr (P::STORES) loops.of[number][1] = P::template run<true>;
    }
  };
  (add.template operator()<WholePass<PASS>>(), ...);
  return loops;
}
template <bool LONG> constexpr PassLoops LOOPS = loops_of<LONG>(KnownPasses{});

// Do the words of this pass store past the caches, where that can be done?
FN bool streams_pass(const Context* c, const Word* p) {
  while (p->op != OP_loop && p->op != OP_store_nt) p++;
  return p->op == OP_store_nt && !((uintptr_t)c->ptr[p->a] & (sizeof(V) - 1));
}
template <bool LONG> void run_known_pass(ARGS) {
  const PassLoop(&loop)[2] = LOOPS<LONG>.of[p->a];
  const long whole = c->row_bytes / STRIP_BYTES * STRIP_BYTES;
  const Word* end = (loop[1] && streams_pass(c, p) ? loop[1] : loop[0])(c, p, whole);
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};
  off = whole;
  if (whole == c->row_bytes) p = end;  // the table is still that of the row section
  else t = (const Table*)c->tail;
  NEXT;
}
// `pass` of rows that are longer than a strip; LONG: than a block.
template <bool LONG> void known_pass(ARGS) {
  if (!LOOPS<LONG>.of[p->a][0] || c->row_bytes < STRIP_BYTES) CONTINUE(pass);
  CONTINUE((run_known_pass<LONG>));
}
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
