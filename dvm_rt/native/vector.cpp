// The vector machine: one handler per opcode, tail-called through a dispatch table; built once per instruction set and
// compute dtype (namespaces DVM_TARGET, DVM_DTYPE; E is an element).
//
// The accumulator is the 8 vectors that the calling convention passes in registers. A handler does its work on them and
// ends in a jump to the handler of the next word, so a program of any length runs in one stack frame. The dispatch table
// is an argument: whole strip, masked last strip (of 8, 4 or 1 vectors) and row section are different tables over the
// same words; `pass` and `loop` exchange them, and words never know about tails. Rows longer than BLOCK have a second set
// of tables, in which `loop` and the folds do the block step.
//
// Knows nothing of programs, bounds or dtypes of sections: the verifier has seen to all that. Nothing here may call an
// inline function of another header out of line: the linker could pick this instruction set's copy for everybody.
#include "strip.h"
#include <string_view>
#include DVM_VEC  // vectors of the compute dtype: vec.h, vec_float64.h, vec_integer.h
#include "convert.h"
#include DVM_ROWS  // what the rows of the instruction table mean: rows_float.h, rows_integer.h

#if defined(__has_cpp_attribute) && __has_cpp_attribute(clang::musttail)
#define MUSTTAIL [[clang::musttail]]
#elif defined(__has_cpp_attribute) && __has_cpp_attribute(gnu::musttail)
#define MUSTTAIL [[gnu::musttail]]
#else
#define MUSTTAIL  // gcc 12 makes the calls tail calls at -O2; tests/native/test_machine.py runs a program that proves it
#endif

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {

#define NAME_OF(name) #name
#define NAME(name) NAME_OF(name)
#define ROWS_OF(group, dtype) DVM_##group##_##dtype
#define ROWS_OF_DTYPE(group, dtype) ROWS_OF(group, dtype)
#define DVM_ROWS_OF(group) ROWS_OF_DTYPE(group, DVM_DTYPE)
constexpr int dtype_named(std::string_view name) {
  int code = 0;
  while (name != DTYPE_NAMES[code]) code++;
  return code;
}

struct Table;
#define ARGS V a0, V a1, V a2, V a3, V a4, V a5, V a6, V a7, const Word *p, Context *c, long off, const Table *t
#define ACC a0, a1, a2, a3, a4, a5, a6, a7
#define CONTINUE(handler) MUSTTAIL return (handler)(ACC, p, c, off, t)
#define NEXT MUSTTAIL return t->handler[p[1].op](ACC, p + 1, c, off, t)
#define EACH [&](V & a, int j) __attribute__((always_inline))
using Handler = void (*)(ARGS);
struct Table { Handler handler[OP_COUNT]; };

constexpr int FULL = 8;  // vectors of a whole strip
constexpr long STRIP_BYTES = FULL * sizeof(V), BLOCK_BYTES = sizeof(E) * BLOCK;
constexpr long LANE_COUNT = STRIP_BYTES_MAX / sizeof(E);
static_assert(LANE_COUNT % (FULL * W) == 0 && BLOCK % LANE_COUNT == 0);
constexpr uint8_t DTYPE = uint8_t(dtype_named(NAME(DVM_DTYPE)));

template <int N, class F> FN void each(F f, V& a0, V& a1, V& a2, V& a3, V& a4, V& a5, V& a6, V& a7) {
  f(a0, 0);
  if constexpr (N > 1) f(a1, 1);
  if constexpr (N > 2) f(a2, 2), f(a3, 3);
  if constexpr (N > 4) f(a4, 4), f(a5, 5), f(a6, 6), f(a7, 7);
}
FN E element(const void* m) { E x; memcpy(&x, m, sizeof x); return x; }
FN long rest(const Context* c, long off, int j) { return (c->row_bytes - off) / long(sizeof(E)) - j * W; }
FN E number(const Context* c, const Word* p) { return sizeof(E) == 4 ? element(&p->k) : element(c->constants + p->k); }
template <Form FORM> FN E one_element(const Context* c, const Word* p) {
  return FORM == FORM_K ? number(c, p) : element(FORM == FORM_R ? c->row_scalar[p->k] : c->ptr[p->a]);
}

using meaning::identity;
template <class O> concept unary_strip = requires(E* m) { O::strip(m, 1); };  // a function too long to stand in a handler
template <class O> concept binary_strip = requires(E* m) { O::strip(m, m, 1); };

// The strip in c->convert, n elements of it, with the other operand: what `binary` does for long functions.
template <class O, Form FORM, bool PART> [[gnu::noinline]] void on_strip(Context* c, const Word* p, long off, int n) {
  E* acc = (E*)c->convert;
  if constexpr (FORM == FORM_S) return O::strip(acc, (const E*)c->slot[p->k], n);
  if constexpr (FORM == FORM_I && !PART) return O::strip(acc, (const E*)(c->ptr[p->a] + off), n);
  alignas(64) E other[FULL * W] = {};
  if constexpr (FORM == FORM_I)
    memcpy(other, c->ptr[p->a] + off, sizeof(E) * rest(c, off, 0));
  else
    for (E& x : other) x = one_element<FORM>(c, p);
  O::strip(acc, other, n);
}

// ---- arithmetic; N vectors hold the strip, PART: the last of them may not be full ------------------------------------
template <class O, Form FORM, int N, bool PART> void binary(ARGS) {
  if constexpr (binary_strip<O>) {
    each<N>(EACH { store(c->convert + j * sizeof(V), a); }, ACC);
    on_strip<O, FORM, PART>(c, p, off, N * W);
    each<N>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  } else if constexpr (FORM == FORM_S) {
    const E* m = (const E*)c->slot[p->k];
    each<N>(EACH { a = O::of(a, load(m + j * W)); }, ACC);
  } else if constexpr (FORM == FORM_I) {
    const E* m = (const E*)(c->ptr[p->a] + off);
    each<N>(EACH { a = O::of(a, PART ? loadPart(m + j * W, rest(c, off, j)) : load(m + j * W)); }, ACC);
  } else {
    const V x = all(one_element<FORM>(c, p));
    each<N>(EACH { a = O::of(a, x); }, ACC);
  }
  NEXT;
}
// Sums of products, a convolution's taps: `mov.i x, mul.b w, add.s s`, and the same again after `store_slot s`, in one go: the sum
// stays in the accumulator. The same operations in the same order. input(i, j): vector j of operand i; factor(i, j): of all of
// its elements, the row's element of operand i.
FN bool is_product_added(const Word* p) { return p[0].op == OP_mov_i && p[1].op == OP_mul_b && p[2].op == OP_add_s; }
template <int N, class Input, class Factor> FN const Word* add_products(const Word* p, Context* c, Input input, Factor factor, V& a0, V& a1,
                                                                        V& a2, V& a3, V& a4, V& a5, V& a6, V& a7) {
  E* sum = (E*)c->slot[p[2].k];
  each<N>(EACH { a = load(sum + j * W); }, ACC);
  for (;;) {
    each<N>(EACH { a = meaning::add::of(meaning::mul::of(input(p[0].a, j), factor(p[1].a, j)), a); }, ACC);
    const bool again = p[3].op == OP_store_slot && p[3].k == p[2].k && is_product_added(p + 4) && p[6].k == p[2].k;
    if (!again) return p + 2;
    each<N>(EACH { store(sum + j * W, a); }, ACC);
    p += 4;
  }
}
template <int N, bool PART> void mov_input(ARGS) {
  if (!is_product_added(p)) CONTINUE((binary<meaning::mov, FORM_I, N, PART>));
  auto input = [&](int i, int j) __attribute__((always_inline)) {
    const E* m = (const E*)(c->ptr[i] + off) + j * W;
    return PART ? loadPart(m, rest(c, off, j)) : load(m);
  };
  p = add_products<N>(p, c, input, [&](int i, int) __attribute__((always_inline)) { return all(element(c->ptr[i])); }, ACC);
  NEXT;
}
template <class O, int N> void unary(ARGS) {
  if constexpr (unary_strip<O>) {
    each<N>(EACH { store(c->convert + j * sizeof(V), a); }, ACC);
    O::strip((E*)c->convert, N * W);
    each<N>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  } else {
    each<N>(EACH { a = O::of(a); }, ACC);
  }
  NEXT;
}
#ifdef DVM_IS_float32
template <class O> concept sideways = SIDE_BY_SIDE > 1 && requires(Pack<SIDE_BY_SIDE> x) { O::of(x); };
template <class O, int N> void unary_sideways(ARGS) {
  constexpr int U = SIDE_BY_SIDE;
  Pack<U> x[N / U];
  each<N>(EACH { x[j / U].v[j % U] = a; }, ACC);
#pragma GCC unroll 4
  for (int i = 0; i < N / U; i++) x[i] = O::of(x[i]);
  each<N>(EACH { a = x[j / U].v[j % U]; }, ACC);
  NEXT;
}
#else
template <class O> concept sideways = false;
template <class O, int N> void unary_sideways(ARGS);
#endif
#if defined(__AVX512F__) && defined(DVM_IS_float32)
template <class O> concept quick_binary = requires(V a) { meaning::Numbers<O>::of(a, a); };
template <class O> concept quick_unary = requires(V a) { meaning::Numbers<O>::of(a); };
template <class O, Form FORM> void binary_of_numbers(ARGS) {  // of a whole strip
  V x[FULL];
  if constexpr (FORM == FORM_S || FORM == FORM_I) {
    const E* m = FORM == FORM_S ? (const E*)c->slot[p->k] : (const E*)(c->ptr[p->a] + off);
#pragma GCC unroll 8
    for (int j = 0; j < FULL; j++) x[j] = load(m + j * W);
  } else {
    const V all_of_them = all(one_element<FORM>(c, p));
#pragma GCC unroll 8
    for (int j = 0; j < FULL; j++) x[j] = all_of_them;
  }
  const bool numbers = no_nan(a0, x[0], a1, x[1]) & no_nan(a2, x[2], a3, x[3]) & no_nan(a4, x[4], a5, x[5]) & no_nan(a6, x[6], a7, x[7]);
  if (__builtin_expect(!numbers, 0)) CONTINUE((binary<O, FORM, FULL, false>));
  each<FULL>(EACH { a = meaning::Numbers<O>::of(a, x[j]); }, ACC);
  NEXT;
}
template <class O> void unary_of_numbers(ARGS) {
  if (__builtin_expect(!(no_nan(a0, a1, a2, a3) & no_nan(a4, a5, a6, a7)), 0)) CONTINUE((unary<O, FULL>));
  each<FULL>(EACH { a = meaning::Numbers<O>::of(a); }, ACC);
  NEXT;
}
#else
template <class O> concept quick_binary = false;
template <class O> concept quick_unary = false;
template <class O, Form FORM> void binary_of_numbers(ARGS);
template <class O> void unary_of_numbers(ARGS);
#endif
// Only an operand in memory has a part: the other forms work on whole vectors, and share one handler.
template <class O, Form FORM, int N, bool PART> constexpr Handler handler_of_binary() {
  if constexpr (quick_binary<O> && N == FULL && !PART) return binary_of_numbers<O, FORM>;
  else return binary<O, FORM, N, PART && FORM == FORM_I>;
}
template <class O, Form FORM, int N, bool PART> constexpr Handler binary_handler = handler_of_binary<O, FORM, N, PART>();
template <class O, int N> constexpr Handler handler_of_unary() {
  if constexpr (quick_unary<O> && N == FULL) return unary_of_numbers<O>;
  else if constexpr (sideways<O> && N > 1) return unary_sideways<O, N>;
  else return unary<O, N>;
}

// ---- loads and stores -------------------------------------------------------------------------------------------------
template <class T> FN void convert_from(const uint8_t* m, int64_t stride, E* out, int n) {
  auto convert = [&](int64_t at) __attribute__((always_inline)) {
    T x;
    memcpy(&x, m + at, sizeof x);
    return loaded<T>(x);
  };
  if (stride == sizeof(T))  // known stride: the compiler makes vectors of it
    for (int j = 0; j < n; j++) out[j] = convert(int64_t(j * sizeof(T)));
  else
    for (int j = 0; j < n; j++) out[j] = convert(j * stride);
}
template <class T> FN void convert_to(const E* in, int n, uint8_t* m, int64_t stride) {
  auto put = [&](int64_t at, T x) __attribute__((always_inline)) { memcpy(m + at, &x, sizeof x); };
  if (stride == sizeof(T))
    for (int j = 0; j < n; j++) put(int64_t(j * sizeof(T)), stored<T>(in[j]));
  else
    for (int j = 0; j < n; j++) put(j * stride, stored<T>(in[j]));
}
#define STORAGE(X) X(BOOL, Bool) X(INT8, int8_t) X(INT16, int16_t) X(INT32, int32_t) X(INT64, int64_t) X(UINT8, uint8_t) \
  X(UINT16, uint16_t) X(UINT32, uint32_t) X(UINT64, uint64_t) X(FLOAT16, Half) X(BFLOAT16, BrainFloat) X(FLOAT32, float) \
  X(FLOAT64, double)
// n elements of a storage dtype, `stride` bytes apart, in c->convert; and back.
[[gnu::noinline, gnu::optimize("O3")]] void load_strided(Context* c, uint8_t dtype, const uint8_t* m, int64_t stride, int n) {
  switch (DType(dtype)) {
#define X(code, T) case DType::code: return convert_from<T>(m, stride, (E*)c->convert, n);
    STORAGE(X)
#undef X
  }
}
[[gnu::noinline, gnu::optimize("O3")]] void store_strided(Context* c, uint8_t dtype, uint8_t* m, int64_t stride, int n) {
  switch (DType(dtype)) {
#define X(code, T) case DType::code: return convert_to<T>((const E*)c->convert, n, m, stride);
    STORAGE(X)
#undef X
  }
}
// The same with elements first .. first + n - 1 of operand i of this row.
FN void load_converted(Context* c, int i, long first, int n) {
  const int64_t stride = c->operands[i].stride[0];
  load_strided(c, c->operands[i].dtype, c->ptr[i] + first * stride, stride, n);
}
FN void store_converted(Context* c, int i, long first, int n) {
  const int64_t stride = c->operands[i].stride[0];
  store_strided(c, c->operands[i].dtype, c->ptr[i] + first * stride, stride, n);
}
template <int N, bool PART> FN int elements(const Context* c, long off) {
  return PART ? int(rest(c, off, 0)) : N * W;
}
// A handler that may call saves registers before it looks at anything, which costs as much as the work of a strip: so each stored
// dtype has a handler of its own, and what is strided or not a whole strip has another.
template <class T> FN uint8_t* dense_place(const Context* c, const Word* p, long off) {
  return c->ptr[p->a] + (unsigned long)off / sizeof(E) * sizeof(T);
}
struct ByDtype { Handler handler[sizeof DTYPE_BYTES]; };
#define TO_DTYPE_HANDLER(table, otherwise) \
  const Operand& x = c->operands[p->a]; \
  CONTINUE(x.stride[0] == DTYPE_BYTES[x.dtype] ? table.handler[x.dtype] : otherwise)

template <class T, int N> void load_dense(ARGS) {
  const uint8_t* m = dense_place<T>(c, p, off);
  each<N>(EACH { a = from<T>(m + j * sizeof(StoredVector<T>)); }, ACC);
  NEXT;
}
template <int N, bool PART> void load_sparse(ARGS) {
  if (c->operands[p->a].stride[0]) {
    load_converted(c, p->a, off / long(sizeof(E)), elements<N, PART>(c, off));
    each<N>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  } else {  // one element
    load_converted(c, p->a, 0, 1);
    const V x = all(element(c->convert));
    each<N>(EACH { a = x; }, ACC);
  }
  NEXT;
}
// Elements of the compute dtype, anywhere: those before `count`, the others 0.
FN V load_apart(const uint8_t* m, int64_t stride, long count) {
  constexpr int64_t SIZE = sizeof(E), STRIDE_MAX = 1 << 26;
  if (stride == SIZE) return loadPart((const E*)m, count);
  if (stride == 2 * SIZE) {
    const V a = loadPart((const E*)m, 2 * count - 1), b = loadPart((const E*)m + W, 2 * count - 1 - W);
    return __builtin_shuffle(a, b, iota() * 2);
  }
#if defined(__AVX512F__)
  if constexpr (SIZE == 8) return (V)_mm512_mask_i64gather_epi64(__m512i{}, __mmask8(lanes(count)), (__m512i)(iota() * SignedElement(stride)), m, 1);
  else if (stride < STRIDE_MAX && stride > -STRIDE_MAX)
    return (V)_mm512_mask_i32gather_epi32(__m512i{}, __mmask16(lanes(count)), (__m512i)(iota() * SignedElement(stride)), m, 1);
#endif
  V v{};
  for (int i = 0; i < W && i < count; i++) v[i] = element(m + i * stride);
  return v;
}
template <int N, bool PART> void load_spread(ARGS) {
  const int64_t stride = c->operands[p->a].stride[0];
  const uint8_t* m = c->ptr[p->a] + off / long(sizeof(E)) * stride;
  each<N>(EACH { a = load_apart(m + j * W * stride, stride, PART ? rest(c, off, j) : W); }, ACC);
  NEXT;
}
template <int N, bool PART> void load_other(ARGS) {
  if (c->operands[p->a].dtype == DTYPE) CONTINUE((load_spread<N, PART>));
  CONTINUE((load_sparse<N, PART>));
}
template <int N> constexpr ByDtype loads() {
  ByDtype by{};
  for (Handler& h : by.handler) h = load_sparse<N, false>;
#define X(code, T) by.handler[int(DType::code)] = load_dense<T, N>;
  DVM_DIRECT(X)
#undef X
  return by;
}
template <int N> constexpr ByDtype LOADS = loads<N>();
template <int N> void load_any(ARGS) { TO_DTYPE_HANDLER(LOADS<N>, (load_other<N, false>)); }
// Past the caches where `m` is aligned to the vector.
template <bool STREAM, class S> FN void put(uint8_t* m, const S& s) {
#if defined(__SSE2__)
  if constexpr (STREAM && sizeof s == 16) return _mm_stream_si128((__m128i*)m, (__m128i)s);
#endif
#if defined(__AVX2__)
  if constexpr (STREAM && sizeof s == 32) return _mm256_stream_si256((__m256i*)m, (__m256i)s);
#endif
#if defined(__AVX512F__)
  if constexpr (STREAM && sizeof s == 64) return _mm512_stream_si512((__m512i*)m, (__m512i)s);
#endif
  if constexpr (STREAM && sizeof s == 2 * sizeof(V)) {
    V half[2];
    memcpy(half, &s, sizeof s);
    stream((E*)m, half[0]), stream((E*)(m + sizeof(V)), half[1]);
    return;
  }
  memcpy(m, &s, sizeof s);
}
template <class T, int N, bool STREAM> FN void put_strip(uint8_t* m, ARGS) {
  constexpr size_t BYTES = sizeof(StoredVector<T>);
  if constexpr (PACKS<T> && 4 * BYTES == sizeof(V)) {
    put<STREAM>(m, packed<T>(a0, a1, a2, a3));
    if constexpr (N == FULL) put<STREAM>(m + sizeof(V), packed<T>(a4, a5, a6, a7));
  } else if constexpr (PACKS<T> && 2 * BYTES == sizeof(V)) {
    put<STREAM>(m, packed<T>(a0, a1)), put<STREAM>(m + sizeof(V), packed<T>(a2, a3));
    if constexpr (N == FULL) put<STREAM>(m + 2 * sizeof(V), packed<T>(a4, a5)), put<STREAM>(m + 3 * sizeof(V), packed<T>(a6, a7));
  } else {
    each<N>(EACH { put<STREAM>(m + j * BYTES, to<T>(a)); }, ACC);
  }
}
template <class T, int N, bool STREAM> void store_dense(ARGS) {
  uint8_t* m = dense_place<T>(c, p, off);
  if (STREAM && !((uintptr_t)m & (sizeof(V) - 1))) put_strip<T, N, true>(m, ACC, p, c, off, t);
  else put_strip<T, N, false>(m, ACC, p, c, off, t);
  NEXT;
}
template <int N, bool PART> void store_sparse(ARGS) {
  each<N>(EACH { store(c->convert + j * sizeof(V), a); }, ACC);
  store_converted(c, p->a, off / long(sizeof(E)), elements<N, PART>(c, off));
  each<N>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);  // the call has taken the registers
  NEXT;
}
template <int N, bool STREAM> constexpr ByDtype stores() {
  ByDtype by{};
  for (Handler& h : by.handler) h = store_sparse<N, false>;
#define X(code, T) by.handler[int(DType::code)] = store_dense<T, N, STREAM>;
  DVM_DIRECT(X)
#undef X
  return by;
}
template <int N, bool STREAM> constexpr ByDtype STORES = stores<N, STREAM>();
template <int N, bool STREAM> void store_any(ARGS) { TO_DTYPE_HANDLER((STORES<N, STREAM>), (store_sparse<N, false>)); }
// Where an INDEX operand stands.
FN int64_t index_of(const Context* c, int i) { return int64_t(uintptr_t(c->ptr[i]) - uintptr_t(INDEX_ORIGIN)); }
[[gnu::noinline, gnu::optimize("O3")]] void indices(Context* c, int i, long first, int n) {
  const int64_t stride = c->operands[i].stride[0], start = index_of(c, i) + first * stride;
  for (int j = 0; j < n; j++) ((E*)c->convert)[j] = E(start + j * stride);
}
template <int N> void iota_strip(ARGS) {
  const int64_t stride = c->operands[p->a].stride[0], start = index_of(c, p->a) + off / long(sizeof(E)) * stride;
  constexpr int64_t SMALL = 1 << 23;  // what int32 and float32 hold exactly, over a strip
  if (sizeof(E) == 8 || (start < SMALL && start > -SMALL && stride < SMALL / LANES && stride > -SMALL / LANES)) {
    const Vu step = (Vu)(iota() * (Vi{} + SignedElement(stride))) + UnsignedElement(start);
    each<N>(EACH { a = __builtin_convertvector((Vi)(step + UnsignedElement(stride) * UnsignedElement(j * W)), V); }, ACC);
  } else {
    indices(c, p->a, off / long(sizeof(E)), N * W);
    each<N>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  }
  NEXT;
}
void iota_row(ARGS) {
  a0 = all(E(index_of(c, p->a)));
  NEXT;
}
template <int N> void store_slot(ARGS) {
  E* m = (E*)c->slot[p->k];
  each<N>(EACH { store(m + j * W, a); }, ACC);
  NEXT;
}
template <int N, bool PART, bool STREAM> void store_strip(ARGS) {
  E* m = (E*)(c->ptr[p->a] + off);
  if (STREAM && !PART && !((uintptr_t)m & (sizeof(V) - 1)))
    each<N>(EACH { stream(m + j * W, canonicalNaN(a)); }, ACC);
  else
    each<N>(EACH { PART ? storePart(m + j * W, canonicalNaN(a), rest(c, off, j)) : store(m + j * W, canonicalNaN(a)); }, ACC);
  NEXT;
}

// ---- reductions: element j of a row goes to lane j % LANE_COUNT, whatever the strip ----------------------------------------
template <class O, int N, bool PART> void accumulate(ARGS) {
  E* m = (E*)c->lanes[p->a] + off / long(sizeof(E)) % LANE_COUNT;
  each<N>(EACH { store(m + j * W, O::of(load(m + j * W), PART ? keepPart(a, all(identity<O>), rest(c, off, j)) : a)); }, ACC);
  NEXT;
}
// The lanes folded 64, 32, .. W apart; they go back to the identity.
template <class O> FN V folded_to_vector(void* lanes) {
  E* m = (E*)lanes;
  constexpr int N = LANE_COUNT / W;
  constexpr bool MAX = FLOATING && std::is_same_v<O, meaning::max>;  // NaN is looked for beside the tree, not in each step: half the latency
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
  return MAX && any(nans) ? all(NaN) : v[0];
}
// Folded 64, 32, .. 1 apart, in every element.
template <class O> FN V folded(void* lanes) {
  constexpr bool MAX = FLOATING && std::is_same_v<O, meaning::max>;  // a NaN is in all elements, or in none
  V v = folded_to_vector<O>(lanes);
#pragma GCC unroll 8
  for (int h = W / 2; h; h /= 2) {
    const V other = __builtin_shuffle(v, iota() ^ h);
    v = MAX ? maxNumber(v, other) : O::of(v, other);
  }
  return v;
}
template <class O, bool LONG> void fold(ARGS) {
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = folded<O>(LONG ? c->blocks[p->a] : c->lanes[p->a]);
  NEXT;
}
// How a reduction folds in registers: elements are brought in, combined, and the total brought out.
template <class O> struct Fold {
  FN static V in(V a) { return O::of(all(identity<O>), a); }
  FN static V of(V a, V b) { return O::of(a, b); }
  FN static V out(V a) { return a; }
};
// The largest float: as integers in the order of floats, +0 above -0 and NaN above all; a third of the latency.
struct FoldMax {
  static constexpr SignedElement MAGNITUDE = SignedElement(UnsignedElement(-1) >> 1);
  FN static V in(V a) { return out(canonicalNaN(a)); }
  FN static V of(V a, V b) { return (V)((Vi)a > (Vi)b ? (Vi)a : (Vi)b); }
  FN static V out(V a) { return (V)((Vi)a ^ ((Vi)a >> (8 * int(sizeof(E)) - 1) & MAGNITUDE)); }
};
template <class O> using FoldOf = std::conditional_t<FLOATING && std::is_same_v<O, meaning::max>, FoldMax, Fold<O>>;
// The vectors of a row, folded as far apart as its lanes are.
template <class F, int SHARE> FN V total_of_vectors(const V* v) {
  if constexpr (SHARE == 1) return v[0];
  else if constexpr (SHARE == 2) return F::of(v[0], v[1]);
  else if constexpr (SHARE == 3) return F::of(F::of(v[0], v[2]), v[1]);
  else return F::of(F::of(v[0], v[2]), F::of(v[1], v[3]));
}
// Rows of one strip fold at once, in registers: no lane sees a second element.
template <class O, int N, bool PART> void accumulate_short(ARGS) {
  using F = FoldOf<O>;
  const long count = PART ? rest(c, off, 0) : N * W;
  V v[8];
  each<N>(EACH { v[j] = F::in(PART ? keepPart(a, all(identity<O>), count - j * W) : a); }, ACC);
#pragma GCC unroll 4
  for (int h = N / 2; h; h /= 2)
#pragma GCC unroll 4
    for (int j = 0; j < h; j++) v[j] = F::of(v[j], v[j + h]);
#pragma GCC unroll 8
  for (int h = W / 2; h; h /= 2) v[0] = F::of(v[0], __builtin_shuffle(v[0], iota() ^ h));
  store(c->many.total[p->a], F::out(v[0]));
  NEXT;
}
void fold_short(ARGS) {
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = load(c->many.total[p->a]);
  NEXT;
}
// Running totals go from element to element, whatever the strip: the order of additions is the row's own.
template <class O> FN E next_total(E total, E x) {
  if constexpr (std::is_same_v<O, meaning::add>) return FLOATING ? total + x : E(UnsignedElement(total) + UnsignedElement(x));
  else return FLOATING ? total * x : E(UnsignedElement(total) * UnsignedElement(x));
}
template <class O> [[gnu::noinline]] void run_totals(Context* c, int r, bool first, int n) {
  E *m = (E*)c->convert, *total = (E*)c->many.running[r];
  E sum = first ? m[0] : next_total<O>(*total, m[0]);
  m[0] = sum;
  for (int j = 1; j < n; j++) m[j] = sum = next_total<O>(sum, m[j]);
  *total = sum;
}
template <class O, int N, bool PART> void running(ARGS) {
  each<N>(EACH { store(c->convert + j * sizeof(V), a); }, ACC);
  run_totals<O>(c, p->a, off == 0, elements<N, PART>(c, off));
  each<N>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  NEXT;
}
template <class O> FN void add_block_of(Context* c, int r, long block, V result) {
  E* total = (E*)c->blocks[r] + block % LANE_COUNT;
  *total = O::of(all(*total), result)[0];
}
FN void add_block(Context* c, int r, long block, V result) {
  switch (r / REDUCTIONS_EACH) {
    case 0: return add_block_of<meaning::add>(c, r, block, result);
    case 1: return add_block_of<meaning::max>(c, r, block, result);
    case 2: return add_block_of<meaning::min>(c, r, block, result);
    default: return add_block_of<meaning::mul>(c, r, block, result);
  }
}
FN V folded_block(Context* c, int r) {
  switch (r / REDUCTIONS_EACH) {
    case 0: return folded<meaning::add>(c->lanes[r]);
    case 1: return folded<meaning::max>(c->lanes[r]);
    case 2: return folded<meaning::min>(c->lanes[r]);
    default: return folded<meaning::mul>(c->lanes[r]);
  }
}
// As rows of a group keep what they have reduced.
FN V folded_row(Context* c, int r) {
  switch (r / REDUCTIONS_EACH) {
    case 0: return folded_to_vector<meaning::add>(c->lanes[r]);
    case 1: return FoldOf<meaning::max>::in(folded_to_vector<meaning::max>(c->lanes[r]));
    case 2: return folded_to_vector<meaning::min>(c->lanes[r]);
    default: return folded_to_vector<meaning::mul>(c->lanes[r]);
  }
}
// The reductions named in `mask` have seen the whole block: their lanes go to one lane of `blocks`, or wait for the blocks
// before them.
[[gnu::noinline]] void end_block(Context* c, uint32_t mask, long block) {
  for (int r = 0; r < MAX_REDUCTIONS; r++) {
    if (!(mask >> r & 1)) continue;
    const V result = folded_block(c, r);
    if (c->results) ((E*)c->results)[block * MAX_REDUCTIONS + r] = result[0];
    else add_block(c, r, block, result);
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
template <int N> FN void prefetch_strip(const Context* c, const Word* p, long off) {
  const uint8_t* m = c->ptr[p->a] + (p->k ? p->k : c->outer[0].gain[p->a]);
  if (const Operand& x = c->operands[p->a]; x.dtype == DTYPE) {
    for (int j = 0; j < int(N * sizeof(V)); j += 64) __builtin_prefetch(m + off + j);
  } else {
    const long size = DTYPE_BYTES[x.dtype];
    m += off / long(sizeof(E)) * size;
    for (long j = 0; j < N * W * size; j += 64) __builtin_prefetch(m + j);
  }
}
template <int N> void fetch(ARGS) {
  prefetch_strip<N>(c, p, off);
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
  if (constexpr int64_t AHEAD = 4; c->left[0] > AHEAD) {  // rows
    int64_t later = 0;
    memcpy(&later, m + AHEAD * c->outer[0].gain[x.index], DType(c->operands[x.index].dtype) == DType::INT64 ? 8 : 4);
    const uintptr_t row = uintptr_t(c->ptr[p->a]) - uint64_t(c->shift[p->a]) + uint64_t(later) * uint64_t(x.depth);  // anywhere: an index is not checked yet
    for (int j = 0; j < 256; j += 64) __builtin_prefetch((const void*)(row + j));
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
#define X(name, result) template <Form FORM> void row_##name(ARGS) { \
  const E a = a0[0], x = one_element<FORM>(c, p); a0 = all(result); NEXT; }
DVM_ROW_BINARY(X)
#undef X
#define X(name, result) void row_##name(ARGS) { const E a = a0[0]; a0 = all(result); NEXT; }
DVM_ROW_UNARY(X)
#undef X
void store_row(ARGS) {
  const E x = a0[0];
  memcpy(c->row_scalar[p->k], &x, sizeof x);
  NEXT;
}
void store_per_row(ARGS) {
  E x = a0[0];
  if (c->operands[p->a].dtype == DTYPE) {
    x = canonicalNaN(a0)[0];
    memcpy(c->ptr[p->a], &x, sizeof x);
  } else {
    memcpy(c->convert, &x, sizeof x);
    store_converted(c, p->a, 0, 1);
    a0 = all(element(c->convert));
  }
  NEXT;
}

}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE

#if defined(DVM_IS_float32) && defined(__AVX512F__)
#define DVM_HOLDS_STRIPS
#include "register_loop.h"
#endif
#include "whole_passes.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
// ---- dispatch tables --------------------------------------------------------------------------------------------------
[[noreturn]] void illegal(ARGS) { __builtin_trap(); }  // a word that the verifier never lets stand where this table serves

constexpr Table nothing() {
  Table t{};
  for (Handler& h : t.handler) h = illegal;
  return t;
}
enum Length { SHORT, MIDDLE, LONG };  // of a row: at most a strip, at most a block, more
template <int N, bool PART, Length LENGTH> constexpr Table strip_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  h[OP_##n##_s] = binary_handler<meaning::n, FORM_S, N, PART>, h[OP_##n##_i] = binary_handler<meaning::n, FORM_I, N, PART>; \
  h[OP_##n##_k] = binary_handler<meaning::n, FORM_K, N, PART>, h[OP_##n##_r] = binary_handler<meaning::n, FORM_R, N, PART>; \
  h[OP_##n##_b] = binary_handler<meaning::n, FORM_B, N, PART>;
  DVM_ROWS_OF(BINARY)(X)
#undef X
#define X(n) h[OP_##n] = handler_of_unary<meaning::n, N>();
  DVM_ROWS_OF(UNARY)(X)
#undef X
  h[OP_mov_i] = mov_input<N, PART>;
  h[OP_load] = PART ? load_other<N, PART> : load_any<N>, h[OP_iota] = iota_strip<N>, h[OP_store_slot] = store_slot<N>;
  h[OP_store_any] = PART ? store_sparse<N, PART> : store_any<N, false>;
  h[OP_store_any_nt] = PART ? store_sparse<N, PART> : store_any<N, true>;
  h[OP_store] = store_strip<N, PART, false>, h[OP_store_nt] = store_strip<N, PART, true>;
  h[OP_acc_sum] = accumulate<meaning::add, N, PART>, h[OP_acc_max] = accumulate<meaning::max, N, PART>;
  h[OP_acc_min] = accumulate<meaning::min, N, PART>, h[OP_acc_prod] = accumulate<meaning::mul, N, PART>;
  h[OP_run_sum] = running<meaning::add, N, PART>, h[OP_run_prod] = running<meaning::mul, N, PART>;
  h[OP_fetch] = fetch<N>, h[OP_loop] = loop<LENGTH == LONG>, h[OP_end] = end;
  if (LENGTH == SHORT) {
    h[OP_acc_sum] = accumulate_short<meaning::add, N, PART>, h[OP_acc_max] = accumulate_short<meaning::max, N, PART>;
    h[OP_acc_min] = accumulate_short<meaning::min, N, PART>, h[OP_acc_prod] = accumulate_short<meaning::mul, N, PART>;
  }
  return t;
}
template <Length LENGTH> constexpr Table row_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  h[OP_##n##_k] = binary_handler<meaning::n, FORM_K, 1, false>, h[OP_##n##_r] = binary_handler<meaning::n, FORM_R, 1, false>; \
  h[OP_##n##_b] = binary_handler<meaning::n, FORM_B, 1, false>;
  DVM_ROWS_OF(BINARY)(X)
#undef X
#define X(n) h[OP_##n] = unary<meaning::n, 1>;
  DVM_ROWS_OF(UNARY)(X)
#undef X
#define X(n, result) h[OP_##n##_k] = row_##n<FORM_K>, h[OP_##n##_r] = row_##n<FORM_R>, h[OP_##n##_b] = row_##n<FORM_B>;
  DVM_ROW_BINARY(X)
#undef X
#define X(n, result) h[OP_##n] = row_##n;
  DVM_ROW_UNARY(X)
#undef X
  h[OP_store_row] = store_row, h[OP_store_per_row] = store_per_row;
  h[OP_fold_sum] = fold<meaning::add, LENGTH == LONG>, h[OP_fold_max] = fold<meaning::max, LENGTH == LONG>;
  h[OP_fold_min] = fold<meaning::min, LENGTH == LONG>, h[OP_fold_prod] = fold<meaning::mul, LENGTH == LONG>, h[OP_iota] = iota_row;
  if (LENGTH == SHORT) h[OP_fold_sum] = h[OP_fold_max] = h[OP_fold_min] = h[OP_fold_prod] = fold_short;
  h[OP_gather] = gather, h[OP_fetch] = fetch<1>, h[OP_end_row] = end_row;
  h[OP_pass] = LENGTH == SHORT ? pass : known_pass<LENGTH == LONG>;
  return t;
}
void stop(ARGS) { c->stopped = p; }
constexpr Table stop_table() {
  Table t{};
  for (Handler& h : t.handler) h = stop;
  return t;
}
constexpr Table row_table_with_stops() {  // row words of a long row, up to a pass or the end
  Table t = row_table<LONG>();
  t.handler[OP_pass] = t.handler[OP_end_row] = stop;
  return t;
}
constexpr Table STOP = stop_table(), ROW_WITH_STOPS = row_table_with_stops();
template <Length LENGTH> struct Tables {
  static constexpr Table full = strip_table<FULL, false, LENGTH>(), half = strip_table<4, false, LENGTH>(),
                         part8 = strip_table<FULL, true, LENGTH>(), part4 = strip_table<4, true, LENGTH>(),
                         part1 = strip_table<1, true, LENGTH>(), row = row_table<LENGTH>();
};
constexpr bool every_opcode_has_a_handler() {
  for (int op = 0; op < OP_COUNT; op++)
    if (OPS[op].dtypes >> DTYPE & 1 && Tables<MIDDLE>::full.handler[op] == illegal && Tables<MIDDLE>::row.handler[op] == illegal) return false;
  return true;
}
static_assert(every_opcode_has_a_handler());

template <Length LENGTH> FN void choose_tables(Context& c) {
  using T = Tables<LENGTH>;
  const long rest = c.row_bytes % STRIP_BYTES / long(sizeof(E));
  c.full = &T::full, c.row = &T::row;
  c.tail = rest <= W ? &T::part1 : rest == 4 * W ? &T::half : rest < 4 * W ? &T::part4 : &T::part8;
}
FN void enter(Context& c, const void* table, const Word* p) {
  const V z{};
  auto* t = (const Table*)table;
  t->handler[p->op](z, z, z, z, z, z, z, z, p, &c, 0, t);
}
template <class O> FN void set_lanes(Context& c, int first) {
  for (int r = first; r < first + REDUCTIONS_EACH; r++)
    for (int j = 0; j < LANE_COUNT; j += W) store((E*)c.lanes[r] + j, all(identity<O>)), store((E*)c.blocks[r] + j, all(identity<O>));
}
[[gnu::noinline, gnu::cold]] void take_lanes(Context& c) {
  set_lanes<meaning::add>(c, 0), set_lanes<meaning::max>(c, REDUCTIONS_EACH);
  set_lanes<meaning::min>(c, 2 * REDUCTIONS_EACH), set_lanes<meaning::mul>(c, 3 * REDUCTIONS_EACH);
  c.lanes_dtype = DTYPE;
}
// Taking the lanes writes all of them: more than what a small section that needs none does itself.
FN bool reduces(const SectionView& s) {
  for (int i = 0; i < s.head->word_count; i++)
    if (s.words[i].op == OP_loop && s.words[i].a) return true;
  return false;
}
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE

#include "many_rows.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
// Sets operands and odometer to `row`, for as many rows up to `end` as it can walk in one go: a range of one dimension, and all of
// those below. Returns the row after those.
int64_t walk_from(Context& c, const SectionRun& run, int64_t row, int64_t end) {
  const SectionView& s = run.section;
  int64_t index[MAX_RANK], rest = row, level = 0, below = 1;
  for (int i = 0; i < s.head->operand_count; i++) c.ptr[i] = run.address[i];
  for (int64_t& shift : c.shift) shift = 0;
  for (int d = 1, n = 0; d < s.head->rank; d++) {
    const int64_t count = s.head->dims[d];
    if (count == 1) continue;
    const int64_t at = index[n++] = rest % count;
    rest /= count;
    for (int i = 0; at && i < s.head->operand_count; i++) c.ptr[i] += at * s.operands[i].stride[d];
  }
  while (level + 1 < s.outers && !index[level] && below * s.outer[level].count <= end - row) below *= s.outer[level++].count;
  for (int64_t d = 0; d < level; d++) c.left[d] = s.outer[d].count;
  const int64_t steps = (end - row) / below, most = s.outer[level].count - index[level];
  c.left[level] = steps < most ? steps : most;
  c.outers = level + 1;
  return row + c.left[level] * below;
}
}  // namespace

// ---- long rows on several threads ---------------------------------------------------------------------------------------
struct PassJob {  // a pass over a row, on its way through the threads; the caller's Context is one of those it uses
  const SectionRun& run;
  const Context& row;  // row scalars
  const Word* pass;
  uint8_t* ptr[MAX_OPERANDS];
};

// Blocks of the row that are a part's.
void run_pass_part(void* job, Context& c, int64_t part) {
  const PassJob& j = *static_cast<PassJob*>(job);
  const SectionView& s = j.run.section;
  const Split cut{s.split.blocks, j.run.team->parts};
  const int64_t block = part_begin(cut, part), first = block * BLOCK, end = part_begin(cut, part + 1) * BLOCK;
  const int64_t n = (end < s.head->dims[0] ? end : s.head->dims[0]) - first;
  for (int i = 0; i < s.head->operand_count; i++) c.ptr[i] = j.ptr[i] + first * s.operands[i].stride[0];
  if (&c != &j.row) memcpy(c.row_scalar, j.row.row_scalar, sizeof c.row_scalar);
  c.outer = s.outer, c.operands = s.operands, c.start = s.words, c.register_words = s.register_words;
  c.constants = s.constants;
  if (c.lanes_dtype != DTYPE) take_lanes(c);
  c.row_bytes = long(sizeof(E)) * n, c.first = first, c.results = (uint8_t*)((E*)j.run.team->results + block * MAX_REDUCTIONS);
  choose_tables<LONG>(c);
  c.row = &STOP;
  const V z{};
  known_pass<true>(z, z, z, z, z, z, z, z, j.pass, &c, 0, &STOP);
  c.first = 0, c.results = nullptr;
  leave();
}

// Returns the word after its loop.
const Word* run_pass(Context& c, const SectionRun& run, const Word* pass) {
  PassJob job{run, c, pass, {}};
  memcpy(job.ptr, c.ptr, sizeof job.ptr);
  run.team->each(run.team->parts, run_pass_part, &job);
  memcpy(c.ptr, job.ptr, sizeof job.ptr);
  while (pass->op != OP_loop) pass++;
  for (int64_t block = 0; block < run.section.split.blocks; block++)
    for (int r = 0; r < MAX_REDUCTIONS; r++)
      if (pass->a >> r & 1) add_block(&c, r, block, all(((E*)run.team->results)[block * MAX_REDUCTIONS + r]));
  return pass + 1;
}

// Every row: its row words on this thread, its passes on all. This thread adds up the blocks, also of passes that others
// ran to the end before it took a part.
void run_wide(Context& c, const SectionRun& run) {
  if (c.lanes_dtype != DTYPE && reduces(run.section)) take_lanes(c);
  for (int64_t row = 0; row < run.section.split.units; row++) {
    walk_from(c, run, row, row + 1);
    for (const Word* word = run.section.words; word->op != OP_end_row;) {
      c.start = run.section.words, c.row_bytes = long(sizeof(E)) * run.section.head->dims[0];
      enter(c, &ROW_WITH_STOPS, word);
      if (c.trap.code != TrapCode::NONE) return leave();
      word = c.stopped;
      if (word->op == OP_pass) word = run_pass(c, run, word);
    }
  }
  leave();
}

void run_rows(Context& c, const SectionRun& run) {
  for (int64_t row = run.begin; row < run.end && c.trap.code == TrapCode::NONE;) {
    row = walk_from(c, run, row, run.end);
    enter(c, c.row, c.start);
  }
  leave();
}
namespace {
void walk_alone(Context& c, const SectionRun& run, int64_t begin, int64_t end) {  // short rows
  choose_tables<SHORT>(c);
  while (begin < end) {
    begin = walk_from(c, run, begin, end);
    enter(c, c.row, c.start);
  }
}
}  // namespace

void run_vector(Context& c, const SectionRun& run) {
  const SectionView& s = run.section;
  const int operands = s.head->operand_count;
  c.outer = s.outer, c.operands = s.operands, c.start = s.words, c.constants = s.constants;
  c.register_words = s.register_words;
  c.row_bytes = long(sizeof(E)) * s.head->dims[0];
  if (run.team) return run_wide(c, run);
  if (run_many_rows(c, run)) return leave();
  if (c.row_bytes <= STRIP_BYTES) {
    choose_tables<SHORT>(c);
  } else {
    if (c.lanes_dtype != DTYPE && reduces(s)) take_lanes(c);
    c.row_bytes <= BLOCK_BYTES ? choose_tables<MIDDLE>(c) : choose_tables<LONG>(c);
  }
  if (run.end - run.begin != s.split.units) return run_rows(c, run);
  for (int i = 0; i < operands; i++) c.ptr[i] = run.address[i];
  for (int64_t& shift : c.shift) shift = 0;
  for (int64_t d = 0; d < s.outers; d++) c.left[d] = s.outer[d].count;
  c.outers = s.outers;
  enter(c, c.row, c.start);
  leave();
}

void run_strip(Context& c, const Word* words, int64_t columns) {
  c.row_bytes = long(sizeof(E)) * columns, c.start = words;
  choose_tables<MIDDLE>(c);
  enter(c, c.row_bytes >= STRIP_BYTES ? c.full : c.tail, words);
}

int64_t run_strips(Context& c, const Word* words, int operands, int64_t columns, int64_t rows) {
  const int share = share_of_row(columns);
  if (share > TOGETHER_VECTORS || rows < 2 * members_of_strip(share)) return 0;
  for (int i = 2; i < operands; i++) {  // A and B are not the words'
    const Operand& x = c.operands[i];
    if (x.dtype != DTYPE || x.mode & GATHER || x.arg == INDEX || x.arg == SCRATCH) return 0;
  }
  for (const Word* p = words; p->op != OP_end; p++)
    if (TOGETHER_1.handler[p->op] == illegal) return 0;
  set_members(c.many, columns);
  for (int i = 2; i < operands; i++) c.many.gain[i] = c.operands[i].stride[1], c.many.step[i] = c.many.rows * c.many.gain[i];
  c.start = words, c.left[0] = rows / c.many.rows * c.many.rows;
  const int64_t done = c.left[0];
  enter(c, TOGETHER[share - 1], words);
  return done;
}
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
