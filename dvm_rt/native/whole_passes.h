// The loops of the passes in known_passes.h, over whole strips: a few vectors at a time go through all of a pass's
// words, slots and lanes in registers. Part of vector.cpp.
//
// Rows that go together (many_rows.h) have loops of their own for passes with reductions or row scalars, where they are whole
// vectors: a few rows at a time, a group of them in all, of whose reductions one vector a row is kept, which the fold then folds.
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

template <int OP, bool OF_ROWS> constexpr bool in_registers() {  // may a word be a step of a loop?
  if constexpr (OPS[OP].group == Group::BINARY)
    return requires { typename Meant<OP>::O; } && !binary_strip<typename Meant<OP>::O>;
  else if constexpr (OPS[OP].group == Group::UNARY)
    return requires { typename Meant<OP>::O; } && !unary_strip<typename Meant<OP>::O>;
  else return OPS[OP].group != Group::REDUCE || OF_ROWS || LANE_COUNT == FULL * W;
}

#if defined(__AVX512F__) && (defined(DVM_IS_float32) || defined(DVM_IS_float64))
#define DVM_HOLDS_LANES  // floats, of which a strip has as many as there are lanes
#endif
constexpr int HINTS_MAX = 4;
constexpr int AT_ONCE = sizeof(V) == 64 ? 4 : sizeof(V) == 32 ? 2 : 1;  // vectors
#define EACH_AT_ONCE _Pragma("GCC unroll 4") for (int j = 0; j < AT_ONCE; j++)

FN bool streams_rows(const Context* c, const Word* p) {  // of whole vectors
  while (p->op != OP_loop && p->op != OP_store_nt) p++;
  return p->op == OP_store_nt && !(((uintptr_t)c->ptr[p->a] | (uintptr_t)c->many.gain[p->a]) & (sizeof(V) - 1));
}

// Whether there is a NaN among elements: of each two vectors of a strip, where all were numbers so far.
#if defined(DVM_HOLDS_LANES)
struct Seen {
  NaNs pair[FULL / 2] = {NaNs(-1), NaNs(-1), NaNs(-1), NaNs(-1)};
  FN void look(int at, V a, V b) { pair[at] = numbers(pair[at], a, b); }
  FN bool nan() const { return NaNs(pair[0] & pair[1] & pair[2] & pair[3]) != NaNs(-1); }
};
FN bool are_numbers(const V (&x)[AT_ONCE]) { return __builtin_expect(numbers(numbers(x[0], x[1]), x[2], x[3]) == NaNs(-1), 1); }
#else
struct Seen {
  FN void look(int, V, V) {}
  FN bool nan() const { return false; }
};
FN bool are_numbers(const V (&)[AT_ONCE]) { return false; }  // nobody has asked
#endif
// The lanes of a row, as rows of a group keep what they have reduced. `nan`: a maximum has seen one.
template <class O> FN V total_of_strip(const V (&lanes)[FULL], bool nan) {
  constexpr bool MAX = FLOATING && std::is_same_v<O, meaning::max>;
  V v[FULL];
#pragma GCC unroll 8
  for (int j = 0; j < FULL; j++) v[j] = lanes[j];
#pragma GCC unroll 4
  for (int h = FULL / 2; h; h /= 2)
#pragma GCC unroll 4
    for (int j = 0; j < h; j++) v[j] = MAX ? maxNumber(v[j], v[j + h]) : O::of(v[j], v[j + h]);
  if constexpr (MAX) return FoldOf<O>::in(nan ? all(NaN) : v[0]);
  else return v[0];
}

// How a pass stores: past the caches, or in a row buffer, where a NaN may be any, as it may in a slot.
enum Way { USUAL, PAST, BUFFERED, WAYS };

template <class PASS> struct WholePass;
template <uint32_t... STEP> struct WholePass<KnownPass<STEP...>> {
  static constexpr int COUNT = sizeof...(STEP), SLOTS = 2;
  static constexpr uint32_t STEPS[COUNT] = {STEP...};
  static constexpr Group group_of(int i) { return OPS[op_of(STEPS[i])].group; }
  static constexpr int reductions_before(int i) { return i ? reductions_before(i - 1) + (group_of(i - 1) == Group::REDUCE) : 0; }
  static constexpr int REDUCTIONS = reductions_before(COUNT);
  template <int R, int I = 0> static constexpr int reduction() {
    if constexpr (group_of(I) == Group::REDUCE && reductions_before(I) == R) return op_of(STEPS[I]);
    else return reduction<R, I + 1>();
  }
  template <int R> using Reduced = Meant<reduction<R>()>;
  static constexpr bool MAXIMUM = FLOATING && ((op_of(STEP) == OP_acc_max) || ...);
  static constexpr bool STORES = ((op_of(STEP) == OP_store) || ...);
  template <bool OF_ROWS> static constexpr bool is_loop() {  // in this dtype, for this instruction set
    if constexpr (((OPS[op_of(STEP)].dtypes >> DTYPE & 1) && ...)) return (in_registers<op_of(STEP), OF_ROWS>() && ...);
    else return false;
  }
  static constexpr bool HAS_ROWS = REDUCTIONS || ((OPS[op_of(STEP)].form == FORM_R) || ...);  // others are one long row, or compute
  static_assert(((slot_of(STEP) < SLOTS) && ...) && (REDUCTIONS <= 1 || ((op_of(STEP) != OP_acc_max) && ...)));

  template <Way WAY> struct Strip {  // of a long row
    const uint8_t* m[COUNT];  // of each step: its operand in memory
    V k[COUNT];               // or its constant
    V slot[SLOTS][AT_ONCE];
    V total[REDUCTIONS + 1][FULL];
    Seen seen;  // by a maximum
    long at;    // bytes into the row
    FN static bool stays(const V (&x)[AT_ONCE]) { return WAY == BUFFERED || are_numbers(x); }  // no NaN is made canonical
    FN void put(E* m, V x) const { WAY == PAST ? stream(m, x) : store(m, x); }
    template <int I> FN const uint8_t* place(int j) const { return m[I] + at + j * long(sizeof(V)); }
    template <int I> FN V one(int) const { return k[I]; }
    template <class O, int R> FN void reduce(int first, V (&x)[AT_ONCE]) {
      V(&sum)[FULL] = total[R];
      if constexpr (FLOATING && std::is_same_v<O, meaning::max>) {
        EACH_AT_ONCE {
          sum[first + j] = maxNumber(sum[first + j], x[j]);
          if (j % 2) seen.look((first + j) / 2, x[j - 1], x[j]);
        }
      } else {
        EACH_AT_ONCE sum[first + j] = O::of(sum[first + j], x[j]);
      }
    }
  };
  template <int SHARE> struct Rows {  // of SHARE vectors each
    static constexpr int VECTORS = SHARE > AT_ONCE ? SHARE : AT_ONCE, ROWS = VECTORS / SHARE;
    const uint8_t* m[COUNT];
    int64_t gain[COUNT];  // from row to row
    V k[COUNT];
    V slot[SLOTS][AT_ONCE];
    V total[REDUCTIONS + 1][VECTORS];
    bool streams;
    FN static bool stays(const V (&)[AT_ONCE]) { return false; }  // to ask costs as much here
    FN void put(E* m, V x) const { streams ? stream(m, x) : store(m, x); }
    template <int I> FN const uint8_t* place(int j) const { return m[I] + j / SHARE * gain[I] + j % SHARE * long(sizeof(V)); }
    template <int I> FN V one(int j) const {
      if constexpr (OPS[op_of(STEPS[I])].form == FORM_R) return all(element(m[I] + j / SHARE * sizeof(E)));
      else return k[I];
    }
    template <class O, int R> FN void reduce(int first, V (&x)[AT_ONCE]) { EACH_AT_ONCE total[R][first + j] = FoldOf<O>::in(x[j]); }
  };
  // A step for AT_ONCE vectors, the first of them number FIRST of the strip, or of the rows.
  template <int I, int FIRST, class S> FN static void take(S& s, V (&x)[AT_ONCE]) {
    constexpr int OP = op_of(STEPS[I]), SLOT = int(slot_of(STEPS[I]));
    constexpr Form FORM = OPS[OP].form;
    if constexpr (group_of(I) == Group::BINARY) {
      using O = typename Meant<OP>::O;
      EACH_AT_ONCE {
        if constexpr (FORM == FORM_I) x[j] = O::of(x[j], load(s.template place<I>(FIRST + j)));
        else if constexpr (FORM == FORM_S) x[j] = O::of(x[j], s.slot[SLOT][j]);
        else x[j] = O::of(x[j], s.template one<I>(FIRST + j));
      }
    } else if constexpr (group_of(I) == Group::UNARY) {
      using O = typename Meant<OP>::O;
      if constexpr (sideways<O>) on_pack<O>(x);
      else EACH_AT_ONCE x[j] = O::of(x[j]);
    } else if constexpr (OP == OP_store_slot) {
      EACH_AT_ONCE s.slot[SLOT][j] = x[j];
    } else if constexpr (OP == OP_store) {
      if (S::stays(x)) EACH_AT_ONCE s.put((E*)s.template place<I>(FIRST + j), x[j]);
      else EACH_AT_ONCE s.put((E*)s.template place<I>(FIRST + j), canonicalNaN(x[j]));
    } else {
      s.template reduce<typename Meant<OP>::O, reductions_before(I)>(FIRST, x);
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
  template <int VECTORS, int FIRST = 0, class S, int... I> FN static void take_all(S& s, std::integer_sequence<int, I...> steps) {
    V x[AT_ONCE];
    EACH_AT_ONCE x[j] = V{};
    (take<I, FIRST>(s, x), ...);
    if constexpr (FIRST + AT_ONCE < VECTORS) take_all<VECTORS, FIRST + AT_ONCE>(s, steps);
  }

  // Over `bytes` of a row, whole strips: of this one, or of each row of the group. Returns the word `loop`.
  template <Way WAY, bool GROUP> [[gnu::noinline]] static const Word* run(Context* c, const Word* pass, long bytes) {
    Strip<WAY> s;
    const uint8_t* ahead[HINTS_MAX];
    int64_t gain[COUNT];  // from row to row
    const Word* reduce[REDUCTIONS + 1];
    int hints = 0;
    const Word* p = pass + 1;
    auto prepare = [&]<int I>() __attribute__((always_inline)) {
      for (; !GROUP && p->op == OP_fetch; p++)
        if (hints < HINTS_MAX) ahead[hints++] = c->ptr[p->a] + (p->k ? p->k : c->outer[0].gain[p->a]);
      constexpr Form FORM = OPS[op_of(STEPS[I])].form;
      if constexpr (FORM == FORM_I || op_of(STEPS[I]) == OP_store) s.m[I] = c->ptr[p->a], gain[I] = GROUP ? c->many.gain[p->a] : 0;
      if constexpr (GROUP && FORM == FORM_R) s.m[I] = c->many.scalar[p->k], gain[I] = sizeof(E);
      else if constexpr (FORM == FORM_K || FORM == FORM_R) s.k[I] = all(one_element<FORM>(c, p));
      if constexpr (group_of(I) == Group::REDUCE) reduce[reductions_before(I)] = p;
      p++;
    };
    auto begin_row = [&]<int I>() __attribute__((always_inline)) {
      if constexpr (GROUP && OPS[op_of(STEPS[I])].form == FORM_R) s.k[I] = all(element(s.m[I]));
      if constexpr (group_of(I) == Group::REDUCE) {
        constexpr int R = reductions_before(I);
        s.seen = {};
#pragma GCC unroll 8
        for (int j = 0; j < FULL; j++)
          s.total[R][j] = GROUP ? all(identity<typename Reduced<R>::O>) : load(c->lanes[reduce[R]->a] + j * sizeof(V));
      }
    };
    auto next_row = [&]<int I>() __attribute__((always_inline)) {
      constexpr Form FORM = OPS[op_of(STEPS[I])].form;
      if constexpr (FORM == FORM_I || FORM == FORM_R || op_of(STEPS[I]) == OP_store) s.m[I] += gain[I];
    };
    auto fold = [&]<int R>(int64_t row) __attribute__((always_inline)) {
      const bool nan = MAXIMUM && s.seen.nan();
      store(c->many.folded[reduce[R]->a] + row * sizeof(V), total_of_strip<typename Reduced<R>::O>(s.total[R], nan));
    };
    constexpr auto REDUCTION_NUMBERS = std::make_integer_sequence<int, REDUCTIONS>{};
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
      (prepare.template operator()<I>(), ...);
    }(STEP_NUMBERS);
    while (!GROUP && p->op == OP_fetch) p++;
    for (int64_t row = 0;;) {
      [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (begin_row.template operator()<I>(), ...);
      }(STEP_NUMBERS);
      for (s.at = 0; s.at < bytes; s.at += STRIP_BYTES) {
        for (int i = 0; i < hints; i++)
          for (long j = 0; j < STRIP_BYTES; j += 64) __builtin_prefetch(ahead[i] + s.at + j);
        take_all<FULL>(s, STEP_NUMBERS);
      }
      if constexpr (!GROUP) break;
      [&]<int... R>(std::integer_sequence<int, R...>) __attribute__((always_inline)) {
        (fold.template operator()<R>(row), ...);
      }(REDUCTION_NUMBERS);
      if (++row == c->many.group) return p;
      [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (next_row.template operator()<I>(), ...);
      }(STEP_NUMBERS);
    }
    if (MAXIMUM && s.seen.nan()) s.total[0][0] = all(NaN);
#pragma GCC unroll 2
    for (int r = 0; r < REDUCTIONS; r++)
#pragma GCC unroll 8
      for (int j = 0; j < FULL; j++) store(c->lanes[reduce[r]->a] + j * sizeof(V), s.total[r][j]);
    return p;
  }

  // Over the rows of a group. Returns the word `loop`.
  template <int SHARE> [[gnu::noinline]] static const Word* run_rows(Context* c, const Word* pass) {
    using State = Rows<SHARE>;
    State s;
    s.streams = STORES && streams_rows(c, pass);
    V* folded[REDUCTIONS + 1];
    const uint8_t* ahead[HINTS_MAX];
    int64_t ahead_gain[HINTS_MAX];
    int hints = 0;
    const Word* p = pass + 1;
    auto prepare = [&]<int I>() __attribute__((always_inline)) {
      for (; p->op == OP_fetch; p++) {
        if (hints == HINTS_MAX) continue;
        const int64_t gain = ahead_gain[hints] = c->many.gain[p->a];
        ahead[hints++] = c->ptr[p->a] + c->many.group * gain;
      }
      constexpr Form FORM = OPS[op_of(STEPS[I])].form;
      if constexpr (FORM == FORM_I || op_of(STEPS[I]) == OP_store) s.m[I] = c->ptr[p->a], s.gain[I] = c->many.gain[p->a];
      if constexpr (FORM == FORM_R) s.m[I] = c->many.scalar[p->k], s.gain[I] = sizeof(E);
      if constexpr (FORM == FORM_K) s.k[I] = all(one_element<FORM>(c, p));
      if constexpr (group_of(I) == Group::REDUCE) folded[reductions_before(I)] = (V*)c->many.folded[p->a];
      p++;
    };
    auto next = [&]<int I>() __attribute__((always_inline)) {
      constexpr Form FORM = OPS[op_of(STEPS[I])].form;
      if constexpr (FORM == FORM_I || FORM == FORM_R || op_of(STEPS[I]) == OP_store) s.m[I] += State::ROWS * s.gain[I];
    };
    auto fold = [&]<int R>(int64_t row) __attribute__((always_inline)) {
      using F = FoldOf<typename Reduced<R>::O>;
#pragma GCC unroll 4
      for (int r = 0; r < State::ROWS; r++) folded[R][row + r] = total_of_vectors<F, SHARE>(s.total[R] + r * SHARE);
    };
    [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
      (prepare.template operator()<I>(), ...);
    }(STEP_NUMBERS);
    while (p->op == OP_fetch) p++;
    for (int64_t row = 0; row < c->many.group; row += State::ROWS) {
      for (int i = 0; i < hints; i++)
        for (int r = 0; r < State::ROWS; r++, ahead[i] += ahead_gain[i])
          for (long j = 0; j < SHARE * long(sizeof(V)); j += 64) __builtin_prefetch(ahead[i] + j);
      take_all<State::VECTORS>(s, STEP_NUMBERS);
      [&]<int... R>(std::integer_sequence<int, R...>) __attribute__((always_inline)) {
        (fold.template operator()<R>(row), ...);
      }(std::make_integer_sequence<int, REDUCTIONS>{});
      [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
        (next.template operator()<I>(), ...);
      }(STEP_NUMBERS);
    }
    return p;
  }
  static constexpr auto STEP_NUMBERS = std::make_integer_sequence<int, COUNT>{};
};

using PassLoop = const Word* (*)(Context* c, const Word* pass, long bytes);
struct PassLoops { PassLoop of[1 + KnownPasses::COUNT][WAYS]; };  // [number of the pass]; null: the words are run
enum class Over { ROW, LONG_ROW, GROUP };
template <Over OVER, class... PASS> constexpr PassLoops loops_of(PassList<PASS...>) {
  PassLoops loops{};
  int number = 0;
  auto add = [&]<class P>() {
    number++;
    constexpr bool HAS = OVER == Over::ROW || (OVER == Over::LONG_ROW ? !P::REDUCTIONS : P::HAS_ROWS);
    if constexpr (P::template is_loop<false>() && HAS) {
      auto& loop = loops.of[number];
      loop[USUAL] = loop[PAST] = loop[BUFFERED] = P::template run<USUAL, OVER == Over::GROUP>;
      if constexpr (P::STORES) loop[PAST] = P::template run<PAST, OVER == Over::GROUP>;
      if constexpr (P::STORES && P::REDUCTIONS) loop[BUFFERED] = P::template run<BUFFERED, OVER == Over::GROUP>;
    }
  };
  (add.template operator()<WholePass<PASS>>(), ...);
  return loops;
}
template <Over OVER> constexpr PassLoops LOOPS = loops_of<OVER>(KnownPasses{});
// `gain`: of all operands, from row to row; null: of one row.
FN Way way_of_pass(const Context* c, const Word* p, const int64_t* gain) {
  while (p->op != OP_loop && p->op != OP_store && p->op != OP_store_nt) p++;
  if (p->op == OP_loop) return USUAL;
  if (p->op == OP_store) return c->operands[p->a].arg == SCRATCH ? BUFFERED : USUAL;
  return ((uintptr_t)c->ptr[p->a] | (gain ? (uintptr_t)gain[p->a] : 0)) & (sizeof(V) - 1) ? USUAL : PAST;
}

template <bool LONG> void run_known_pass(ARGS) {
  const long whole = c->row_bytes / STRIP_BYTES * STRIP_BYTES;
  const Word* end = LOOPS<LONG ? Over::LONG_ROW : Over::ROW>.of[p->a][way_of_pass(c, p, nullptr)](c, p, whole);
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};
  off = whole;
  if (whole == c->row_bytes) p = end;  // the table is still that of the row section
  else t = (const Table*)c->tail;
  NEXT;
}
// `pass` of rows that are longer than a strip; LONG: than a block.
template <bool LONG> void known_pass(ARGS) {
  if (c->row_bytes < STRIP_BYTES) CONTINUE(pass);
  if (LOOPS<LONG ? Over::LONG_ROW : Over::ROW>.of[p->a][USUAL]) CONTINUE((run_known_pass<LONG>));
#ifdef DVM_HOLDS_STRIPS
  if (has_registers(c, p)) CONTINUE(run_in_registers);
#endif
  CONTINUE(pass);
}

using RowsLoop = const Word* (*)(Context* c, const Word* pass);
struct RowLoops { RowsLoop of[1 + KnownPasses::COUNT]; };  // [number of the pass]; null: the words are run
template <int SHARE, class... PASS> constexpr RowLoops row_loops_of(PassList<PASS...>) {
  RowLoops loops{};
  int number = 0;
  auto add = [&]<class P>() {
    number++;
    if constexpr (P::HAS_ROWS && P::template is_loop<true>()) loops.of[number] = P::template run_rows<SHARE>;
  };
  (add.template operator()<WholePass<PASS>>(), ...);
  return loops;
}
constexpr RowLoops ROW_LOOPS[] = {{}, row_loops_of<1>(KnownPasses{}), row_loops_of<2>(KnownPasses{}), {}, row_loops_of<4>(KnownPasses{})};
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
