// The vector machine: one handler per opcode, tail-called through a dispatch table; built once per instruction set.
//
// The accumulator is the 8 vectors that the calling convention passes in registers. A handler does its work on them and
// ends in a jump to the handler of the next word, so a program of any length runs in one stack frame. The dispatch table
// is an argument: whole strip, masked last strip (of 8, 4 or 1 vectors) and row section are different tables over the
// same words; `pass` and `loop` exchange them, and words never know about tails. Rows longer than BLOCK have a second set
// of tables, in which `loop` and the folds do the block step.
//
// Knows nothing of programs, bounds or dtypes of sections: the verifier has seen to all that. Nothing here may call an
// inline function of another header out of line: the linker could pick this instruction set's copy for everybody.
#include "functions.h"
#include "strip.h"

#if defined(__has_cpp_attribute) && __has_cpp_attribute(clang::musttail)
#define MUSTTAIL [[clang::musttail]]
#elif defined(__has_cpp_attribute) && __has_cpp_attribute(gnu::musttail)
#define MUSTTAIL [[gnu::musttail]]
#else
#define MUSTTAIL  // gcc 12 makes the calls tail calls at -O2; tests/native/test_machine.py runs a program that proves it
#endif

namespace dvm::DVM_TARGET {
namespace {

struct Table;
#define ARGS V a0, V a1, V a2, V a3, V a4, V a5, V a6, V a7, const Word *p, Context *c, long off, const Table *t
#define ACC a0, a1, a2, a3, a4, a5, a6, a7
#define CONTINUE(handler) MUSTTAIL return (handler)(ACC, p, c, off, t)
#define NEXT MUSTTAIL return t->handler[p[1].op](ACC, p + 1, c, off, t)
#define EACH [&](V & a, int j) __attribute__((always_inline))
using Handler = void (*)(ARGS);
struct Table { Handler handler[OP_COUNT]; };

constexpr int FULL = 8;  // vectors of a whole strip
constexpr long STRIP_BYTES = FULL * sizeof(V), BLOCK_BYTES = 4 * BLOCK;
static_assert(LANES % (FULL * W) == 0 && BLOCK % LANES == 0);

template <int N, class F> FN void each(F f, V& a0, V& a1, V& a2, V& a3, V& a4, V& a5, V& a6, V& a7) {
  f(a0, 0);
  if constexpr (N > 1) f(a1, 1);
  if constexpr (N > 2) f(a2, 2), f(a3, 3);
  if constexpr (N > 4) f(a4, 4), f(a5, 5), f(a6, 6), f(a7, 7);
}
FN long rest(const Context* c, long off, int j) { return (c->row_bytes - off) / 4 - j * W; }
FN float number(const Word* p) { return __builtin_bit_cast(float, p->k); }
FN float per_row(const Context* c, const Word* p) { float x; memcpy(&x, c->ptr[p->a], 4); return x; }

// ---- what the rows of the instruction table mean ----------------------------------------------------------------------
namespace meaning {
#define BINARY(name, result) struct name { FN static V of(V a, V x) { return result; } };
BINARY(mov, x)
BINARY(add, a + x)
BINARY(sub, a - x)
BINARY(rsub, x - a)
BINARY(mul, a * x)
BINARY(div, a / x)
BINARY(rdiv, x / a)
BINARY(max, maxv(a, x))
BINARY(min, minv(a, x))
BINARY(eq, truth(a == x))
BINARY(ne, truth(a != x))
BINARY(lt, truth(a < x))
BINARY(le, truth(a <= x))
BINARY(gt, truth(a > x))
BINARY(ge, truth(a >= x))
BINARY(keep, bits(bits(a) & (x != 0.f)))
BINARY(drop, bits(bits(a) & (x == 0.f)))
BINARY(merge, bits(bits(a) | bits(x)))
BINARY(copysign, x == x ? signOf(x, absv(a)) : absv(a))
BINARY(nextafter, nextafterv(a, x))
#undef BINARY
#define UNARY(name, result) struct name { FN static V of(V a) { return result; } };
UNARY(neg, -a)
UNARY(abs, absv(a))
UNARY(square, a * a)
UNARY(relu, max2(V{}, a))
UNARY(exp, expv(a))
UNARY(log, logv(a))
UNARY(tanh, tanhv(a))
UNARY(erf, erfv(a))
UNARY(sigmoid, sigmoidv(a))
UNARY(sqrt, sqrtv(a))
UNARY(rsqrt, 1.f / sqrtv(a))
UNARY(recip, 1.f / a)
UNARY(floor, roundv<ROUND_DOWN>(a))
UNARY(ceil, roundv<ROUND_UP>(a))
UNARY(trunc, roundv<ROUND_ZERO>(a))
UNARY(round, roundv<ROUND_EVEN>(a))
UNARY(isnan, truth(a != a))
UNARY(isinf, truth(absv(a) == Inf))
UNARY(isfinite, truth(absv(a) < Inf))
UNARY(signbit, truth((bits(a) < 0) & (a == a)))
UNARY(sign, a == 0.f ? V{} : a == a ? signOf(a, all(1.f)) : a)
#undef UNARY
// Computed on vectors of doubles, a strip at a time: see functions.h.
#define WIDE_UNARY(name) struct name { template <Precision P> FN static D wide(D a) { return name##d<P>(a); } };
WIDE_UNARY(sin) WIDE_UNARY(cos) WIDE_UNARY(tan) WIDE_UNARY(asin) WIDE_UNARY(acos) WIDE_UNARY(atan)
WIDE_UNARY(sinh) WIDE_UNARY(cosh) WIDE_UNARY(asinh) WIDE_UNARY(acosh) WIDE_UNARY(atanh)
WIDE_UNARY(exp2) WIDE_UNARY(expm1) WIDE_UNARY(log2) WIDE_UNARY(log10) WIDE_UNARY(log1p)
WIDE_UNARY(cbrt) WIDE_UNARY(erfc) WIDE_UNARY(lgamma) WIDE_UNARY(digamma)
#undef WIDE_UNARY
#define WIDE_BINARY(name) struct name { template <Precision P> FN static D wide(D a, D x) { return name##d<P>(a, x); } };
WIDE_BINARY(pow) WIDE_BINARY(atan2) WIDE_BINARY(fmod) WIDE_BINARY(remainder) WIDE_BINARY(hypot) WIDE_BINARY(logaddexp)
WIDE_BINARY(floor_divide)
#undef WIDE_BINARY
template <class O> concept wide_unary = requires(D a) { O::template wide<SINGLE>(a); };
template <class O> concept wide_binary = requires(D a) { O::template wide<SINGLE>(a, a); };
template <class O> constexpr float identity = 0;
template <> constexpr float identity<max> = -Inf;
}  // namespace meaning
using meaning::identity, meaning::wide_unary, meaning::wide_binary;

// ---- functions on doubles: the strip lies in memory, n elements of it -------------------------------------------------
template <class O> [[gnu::noinline]] void apply(float* m, int n) {
  for (int i = 0; i < n; i += WD) store(m + i, O::template wide<SINGLE>(loadD(m + i)));
}
template <class O> [[gnu::noinline]] void apply(float* m, const float* x, int n) {
  for (int i = 0; i < n; i += WD) store(m + i, O::template wide<SINGLE>(loadD(m + i), loadD(x + i)));
}
template <class O> [[gnu::noinline]] void apply_to_all(float* m, float x, int n) {
  for (int i = 0; i < n; i += WD) store(m + i, O::template wide<SINGLE>(loadD(m + i), all(double(x))));
}
template <class O> [[gnu::noinline]] void apply_part(float* m, const float* x, int n) {
  alignas(64) float copy[FULL * W] = {};
  memcpy(copy, x, sizeof(float) * n);
  apply<O>(m, copy, n);
}

// ---- arithmetic; N vectors hold the strip, PART: the last of them may not be full ------------------------------------
template <class O, Form FORM, int N, bool PART> void binary(ARGS) {
  if constexpr (wide_binary<O>) {
    each<N>(EACH { store(c->convert + j * W, a); }, ACC);
    if constexpr (FORM == FORM_S) {
      apply<O>(c->convert, c->slot[p->k], N * W);
    } else if constexpr (FORM == FORM_I) {
      const float* m = (const float*)(c->ptr[p->a] + off);
      PART ? apply_part<O>(c->convert, m, int(rest(c, off, 0))) : apply<O>(c->convert, m, N * W);
    } else {
      apply_to_all<O>(c->convert, FORM == FORM_K ? number(p) : FORM == FORM_R ? c->row_scalar[p->k] : per_row(c, p), N * W);
    }
    each<N>(EACH { a = load(c->convert + j * W); }, ACC);
  } else if constexpr (FORM == FORM_S) {
    const float* m = c->slot[p->k];
    each<N>(EACH { a = O::of(a, load(m + j * W)); }, ACC);
  } else if constexpr (FORM == FORM_I) {
    const float* m = (const float*)(c->ptr[p->a] + off);
    each<N>(EACH { a = O::of(a, PART ? loadPart(m + j * W, rest(c, off, j)) : load(m + j * W)); }, ACC);
  } else {
    const V x = all(FORM == FORM_K ? number(p) : FORM == FORM_R ? c->row_scalar[p->k] : per_row(c, p));
    each<N>(EACH { a = O::of(a, x); }, ACC);
  }
  NEXT;
}
template <class O, int N> void unary(ARGS) {
  if constexpr (wide_unary<O>) {
    each<N>(EACH { store(c->convert + j * W, a); }, ACC);
    apply<O>(c->convert, N * W);
    each<N>(EACH { a = load(c->convert + j * W); }, ACC);
  } else {
    each<N>(EACH { a = O::of(a); }, ACC);
  }
  NEXT;
}

// ---- loads and stores -------------------------------------------------------------------------------------------------
template <class T> FN void convert_from(const uint8_t* m, int64_t stride, float* out, int n) {
  auto element = [&](int64_t at) __attribute__((always_inline)) {
    T x;
    memcpy(&x, m + at, sizeof x);
    return float(x);
  };
  if (stride == sizeof(T))  // known stride: the compiler makes vectors of it
    for (int j = 0; j < n; j++) out[j] = element(int64_t(j * sizeof(T)));
  else
    for (int j = 0; j < n; j++) out[j] = element(j * stride);
}
// Integers: truncated, saturated, NaN is 0. Both limits are exact in float32 (the upper one is the first that does not fit).
template <class T> FN T stored(float x) {
  constexpr bool SIGNED = T(-1) < T(0);
  constexpr int BITS = 8 * sizeof(T) - SIGNED;
  constexpr float UPPER = float(1ull << (BITS - 1)) * 2, LOWER = SIGNED ? -UPPER : 0;
  constexpr T LARGEST = T(((1ull << (BITS - 1)) - 1) * 2 + 1);
  return x != x ? T(0) : x >= UPPER ? LARGEST : x < LOWER ? T(SIGNED ? -LARGEST - 1 : 0) : T(x);
}
struct Bool {  // a stored bool: any byte that is not 0 counts as 1
  uint8_t byte;
  explicit operator float() const { return byte != 0; }
};
template <> FN Bool stored<Bool>(float x) { return {x != 0}; }
template <> FN float stored<float>(float x) { return x == x ? x : NaN; }
template <class T> FN void convert_to(const float* in, int n, uint8_t* m, int64_t stride) {
  auto element = [&](int64_t at, T x) __attribute__((always_inline)) { memcpy(m + at, &x, sizeof x); };
  if (stride == sizeof(T))
    for (int j = 0; j < n; j++) element(int64_t(j * sizeof(T)), stored<T>(in[j]));
  else
    for (int j = 0; j < n; j++) element(j * stride, stored<T>(in[j]));
}
// Elements first .. first + n - 1 of operand i of this row, in c->convert.
[[gnu::noinline, gnu::optimize("O3")]] void load_converted(Context* c, int i, long first, int n) {
  const int64_t stride = c->operands[i].stride[0];
  const uint8_t* m = c->ptr[i] + first * stride;
  switch (DType(c->operands[i].dtype)) {
    case DType::BOOL: return convert_from<Bool>(m, stride, c->convert, n);
    case DType::INT8: return convert_from<int8_t>(m, stride, c->convert, n);
    case DType::INT16: return convert_from<int16_t>(m, stride, c->convert, n);
    case DType::INT32: return convert_from<int32_t>(m, stride, c->convert, n);
    case DType::INT64: return convert_from<int64_t>(m, stride, c->convert, n);
    case DType::UINT8: return convert_from<uint8_t>(m, stride, c->convert, n);
    case DType::UINT16: return convert_from<uint16_t>(m, stride, c->convert, n);
    case DType::UINT32: return convert_from<uint32_t>(m, stride, c->convert, n);
    case DType::UINT64: return convert_from<uint64_t>(m, stride, c->convert, n);
    default: return convert_from<float>(m, stride, c->convert, n);
  }
}
[[gnu::noinline, gnu::optimize("O3")]] void store_converted(Context* c, int i, long first, int n) {
  const int64_t stride = c->operands[i].stride[0];
  uint8_t* m = c->ptr[i] + first * stride;
  switch (DType(c->operands[i].dtype)) {
    case DType::BOOL: return convert_to<Bool>(c->convert, n, m, stride);
    case DType::INT8: return convert_to<int8_t>(c->convert, n, m, stride);
    case DType::INT16: return convert_to<int16_t>(c->convert, n, m, stride);
    case DType::INT32: return convert_to<int32_t>(c->convert, n, m, stride);
    case DType::INT64: return convert_to<int64_t>(c->convert, n, m, stride);
    case DType::UINT8: return convert_to<uint8_t>(c->convert, n, m, stride);
    case DType::UINT16: return convert_to<uint16_t>(c->convert, n, m, stride);
    case DType::UINT32: return convert_to<uint32_t>(c->convert, n, m, stride);
    case DType::UINT64: return convert_to<uint64_t>(c->convert, n, m, stride);
    default: return convert_to<float>(c->convert, n, m, stride);
  }
}
template <int N, bool PART> FN int elements(const Context* c, long off) {
  return PART ? int(rest(c, off, 0)) : N * W;
}
template <int N, bool PART> void load_any(ARGS) {
  load_converted(c, p->a, off / 4, elements<N, PART>(c, off));
  each<N>(EACH { a = load(c->convert + j * W); }, ACC);
  NEXT;
}
template <int N, bool PART> void store_any(ARGS) {
  each<N>(EACH { store(c->convert + j * W, a); }, ACC);
  store_converted(c, p->a, off / 4, elements<N, PART>(c, off));
  each<N>(EACH { a = load(c->convert + j * W); }, ACC);  // the call has taken the registers
  NEXT;
}
template <int N> void store_slot(ARGS) {
  float* m = c->slot[p->k];
  each<N>(EACH { store(m + j * W, a); }, ACC);
  NEXT;
}
template <int N, bool PART, bool STREAM> void store_strip(ARGS) {
  float* m = (float*)(c->ptr[p->a] + off);
  if (STREAM && !PART && !((uintptr_t)m & (sizeof(V) - 1)))
    each<N>(EACH { stream(m + j * W, canonicalNaN(a)); }, ACC);
  else
    each<N>(EACH { PART ? storePart(m + j * W, canonicalNaN(a), rest(c, off, j)) : store(m + j * W, canonicalNaN(a)); }, ACC);
  NEXT;
}

// ---- reductions: element j of a row goes to lane j % LANES, whatever the strip ----------------------------------------
template <class O, int N, bool PART> void accumulate(ARGS) {
  float* m = c->lanes[p->a] + off / 4 % LANES;
  each<N>(EACH { store(m + j * W, O::of(load(m + j * W), PART ? keepPart(a, all(identity<O>), rest(c, off, j)) : a)); }, ACC);
  NEXT;
}
// The lanes folded 64, 32, .. 1 apart, in every element; they go back to the identity.
template <class O> FN V folded(float* m) {
  constexpr int N = LANES / W;
  constexpr bool MAX = identity<O> != 0;  // NaN is looked for beside the tree, not in each step: half the latency
  auto step = [](V a, V b) __attribute__((always_inline)) { return MAX ? maxNumber(a, b) : O::of(a, b); };
  V v[N / 2];
  NaNs nans{};
#pragma GCC unroll 16
  for (int j = 0; j < N / 2; j++) {
    const V a = load(m + j * W), b = load(m + (j + N / 2) * W);
    if (MAX) nans |= unordered(a, b);
    v[j] = step(a, b);
  }
#pragma GCC unroll 32
  for (int j = 0; j < N; j++) store(m + j * W, all(identity<O>));
#pragma GCC unroll 8
  for (int h = N / 4; h; h /= 2)
#pragma GCC unroll 16
    for (int j = 0; j < h; j++) v[j] = step(v[j], v[j + h]);
#pragma GCC unroll 8
  for (int h = W / 2; h; h /= 2) v[0] = step(v[0], __builtin_shuffle(v[0], iota() ^ h));
  return MAX && any(nans) ? all(NaN) : v[0];
}
template <class O, bool LONG> void fold(ARGS) {
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = folded<O>(LONG ? c->blocks[p->a] : c->lanes[p->a]);
  NEXT;
}
// The reductions named in `mask` have seen the whole block: their lanes go to one lane of `blocks`.
[[gnu::noinline]] void end_block(Context* c, uint32_t mask, long block) {
  for (int r = 0; r < MAX_REDUCTIONS; r++) {
    if (!(mask >> r & 1)) continue;
    float* total = c->blocks[r] + block % LANES;
    const bool sum = r < MAX_REDUCTIONS / 2;
    const V all_of_it = sum ? folded<meaning::add>(c->lanes[r]) : folded<meaning::max>(c->lanes[r]);
    *total = (sum ? meaning::add::of(all(*total), all_of_it) : meaning::max::of(all(*total), all_of_it))[0];
  }
}

// ---- control ----------------------------------------------------------------------------------------------------------
void pass(ARGS) {
  off = 0;
  t = (const Table*)(c->row_bytes >= STRIP_BYTES ? c->full : c->tail);
  NEXT;
}
void next_strip(ARGS) {
  if (const long n = c->row_bytes - off; n > 0) {
    if (n < STRIP_BYTES) t = (const Table*)c->tail;
    p -= p->k;
  } else {
    t = (const Table*)c->row;
  }
  NEXT;
}
template <bool LONG> void loop(ARGS) {
  off += STRIP_BYTES;
  if constexpr (LONG) {
    const long end = off < c->row_bytes ? off : c->row_bytes;
    if (p->a && (end == c->row_bytes || !(off & (BLOCK_BYTES - 1)))) {
      end_block(c, p->a, (end - 1) / BLOCK_BYTES);
      a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};  // nothing to keep over the call: undefined after `loop`
    }
  }
  CONTINUE(next_strip);
}
// Prefetch while computing: the same strip k bytes ahead, or of the next row.
template <int N> void fetch(ARGS) {
  const uint8_t* m = c->ptr[p->a] + (p->k ? p->k : c->outer[0].gain[p->a]) + off;
  for (int j = 0; j < int(N * sizeof(V)); j += 64) __builtin_prefetch(m + j);
  NEXT;
}
void gather(ARGS) {
  const Operand& x = c->operands[p->a];
  const uint8_t* m = c->ptr[x.index];
  int64_t i;
  if (DType(c->operands[x.index].dtype) == DType::INT64) {
    memcpy(&i, m, 8);
  } else {
    int32_t narrow;
    memcpy(&narrow, m, 4);
    i = narrow;
  }
  if (i < -x.limit || i >= x.limit) {
    c->trap = {TrapCode::GATHER_RANGE, 0, uint32_t(p - c->start), i, x.limit};
    return;
  }
  const int64_t shift = (i < 0 ? i + x.limit : i) * x.depth;
  c->ptr[p->a] += shift - c->shift[p->a];
  c->shift[p->a] = shift;
  NEXT;
}
void end_row(ARGS) {
  for (int64_t d = 0; d < c->outers; d++) {
    if (--c->left[d]) {
      for (int i = 0; i < MAX_OPERANDS; i++) c->ptr[i] += c->outer[d].gain[i];
      p = c->start - 1;
      NEXT;
    }
    c->left[d] = c->outer[d].count;
  }
}
void end(ARGS) {  // of an epilogue's words over one strip
  off += STRIP_BYTES;
  const long n = c->row_bytes - off;
  if (n <= 0) return;
  if (n < STRIP_BYTES) t = (const Table*)c->tail;
  p = c->start - 1;
  NEXT;
}

// ---- row section: element 0 is enough, and a scalar root or division has half the latency of a vector one -----------
template <Form FORM> FN float row_operand(const Context* c, const Word* p) {
  return FORM == FORM_K ? number(p) : FORM == FORM_R ? c->row_scalar[p->k] : per_row(c, p);
}
#define ROW_BINARY(name, result) template <Form FORM> void row_##name(ARGS) { \
  const float a = a0[0], x = row_operand<FORM>(c, p); a0 = all(result); NEXT; }
ROW_BINARY(div, a / x)
ROW_BINARY(rdiv, x / a)
#undef ROW_BINARY
#define ROW_UNARY(name, result) void row_##name(ARGS) { const float a = a0[0]; a0 = all(result); NEXT; }
ROW_UNARY(sqrt, __builtin_sqrtf(a))
ROW_UNARY(rsqrt, 1.f / __builtin_sqrtf(a))
ROW_UNARY(recip, 1.f / a)
#undef ROW_UNARY
void store_row(ARGS) {
  c->row_scalar[p->k] = a0[0];
  NEXT;
}
void store_per_row(ARGS) {
  const float x = a0[0] == a0[0] ? a0[0] : NaN;
  memcpy(c->ptr[p->a], &x, 4);
  NEXT;
}

// ---- dispatch tables --------------------------------------------------------------------------------------------------
[[noreturn]] void illegal(ARGS) { __builtin_trap(); }  // a word that the verifier never lets stand where this table serves

constexpr Table nothing() {
  Table t{};
  for (Handler& h : t.handler) h = illegal;
  return t;
}
template <int N, bool PART, bool LONG> constexpr Table strip_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  h[OP_##n##_s] = binary<meaning::n, FORM_S, N, PART>, h[OP_##n##_i] = binary<meaning::n, FORM_I, N, PART>; \
  h[OP_##n##_k] = binary<meaning::n, FORM_K, N, PART>, h[OP_##n##_r] = binary<meaning::n, FORM_R, N, PART>; \
  h[OP_##n##_b] = binary<meaning::n, FORM_B, N, PART>;
  DVM_BINARY(X)
#undef X
#define X(n) h[OP_##n] = unary<meaning::n, N>;
  DVM_UNARY(X)
#undef X
  h[OP_load] = load_any<N, PART>, h[OP_store_slot] = store_slot<N>, h[OP_store_any] = store_any<N, PART>;
  h[OP_store] = store_strip<N, PART, false>, h[OP_store_nt] = store_strip<N, PART, true>;
  h[OP_acc_sum] = accumulate<meaning::add, N, PART>, h[OP_acc_max] = accumulate<meaning::max, N, PART>;
  h[OP_fetch] = fetch<N>, h[OP_loop] = loop<LONG>, h[OP_end] = end;
  return t;
}
template <bool LONG> constexpr Table row_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  h[OP_##n##_k] = binary<meaning::n, FORM_K, 1, false>, h[OP_##n##_r] = binary<meaning::n, FORM_R, 1, false>; \
  h[OP_##n##_b] = binary<meaning::n, FORM_B, 1, false>;
  DVM_BINARY(X)
#undef X
#define X(n) h[OP_##n] = unary<meaning::n, 1>;
  DVM_UNARY(X)
#undef X
  h[OP_div_k] = row_div<FORM_K>, h[OP_div_r] = row_div<FORM_R>, h[OP_div_b] = row_div<FORM_B>;
  h[OP_rdiv_k] = row_rdiv<FORM_K>, h[OP_rdiv_r] = row_rdiv<FORM_R>, h[OP_rdiv_b] = row_rdiv<FORM_B>;
  h[OP_sqrt] = row_sqrt, h[OP_rsqrt] = row_rsqrt, h[OP_recip] = row_recip;
  h[OP_store_row] = store_row, h[OP_store_per_row] = store_per_row;
  h[OP_fold_sum] = fold<meaning::add, LONG>, h[OP_fold_max] = fold<meaning::max, LONG>;
  h[OP_gather] = gather, h[OP_fetch] = fetch<1>, h[OP_pass] = pass, h[OP_end_row] = end_row;
  return t;
}
template <bool LONG> struct Tables {
  static constexpr Table full = strip_table<FULL, false, LONG>(), half = strip_table<4, false, LONG>(),
                         part8 = strip_table<FULL, true, LONG>(), part4 = strip_table<4, true, LONG>(),
                         part1 = strip_table<1, true, LONG>(), row = row_table<LONG>();
};
constexpr bool every_opcode_has_a_handler() {
  for (int op = 0; op < OP_COUNT; op++)
    if (Tables<false>::full.handler[op] == illegal && Tables<false>::row.handler[op] == illegal) return false;
  return true;
}
static_assert(every_opcode_has_a_handler());

template <bool LONG> FN void choose_tables(Context& c) {
  using T = Tables<LONG>;
  const long rest = c.row_bytes % STRIP_BYTES / 4;
  c.full = &T::full, c.row = &T::row;
  c.tail = rest <= W ? &T::part1 : rest == 4 * W ? &T::half : rest < 4 * W ? &T::part4 : &T::part8;
}
FN void enter(Context& c, const void* table, const Word* p) {
  const V z{};
  auto* t = (const Table*)table;
  t->handler[p->op](z, z, z, z, z, z, z, z, p, &c, 0, t);
}

void run_vector(Context& c, const SectionRun& run) {
  const SectionView& s = run.section;
  const int operands = s.head->operand_count;
  for (int i = 0; i < operands; i++) c.ptr[i] = run.address[i];
  for (int64_t& shift : c.shift) shift = 0;
  for (int64_t d = 0; d < s.outers; d++) c.left[d] = s.outer[d].count;
  c.outer = s.outer, c.outers = s.outers;
  c.row_bytes = 4 * s.head->dims[0];
  c.operands = s.operands, c.start = s.words;
  c.row_bytes > BLOCK_BYTES ? choose_tables<true>(c) : choose_tables<false>(c);
  enter(c, c.row, c.start);
  leave();
}
void run_matmul_and_leave(Context& c, const SectionRun& run) { run_matmul(c, run), leave(); }
void run_pack_and_leave(Context& c, const SectionRun& run) { run_pack(c, run), leave(); }
}  // namespace

void run_strip(Context& c, const Word* words, int64_t columns) {
  c.row_bytes = 4 * columns, c.start = words;
  choose_tables<false>(c);
  enter(c, c.row_bytes >= STRIP_BYTES ? c.full : c.tail, words);
}

#define NAME_OF(target) #target
#define NAME(target) NAME_OF(target)
extern const Target target;
const Target target{NAME(DVM_TARGET), FULL * W, run_vector, run_matmul_and_leave, run_pack_and_leave};
}  // namespace dvm::DVM_TARGET
