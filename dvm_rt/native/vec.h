// Vectors of W floats and the mathematics on them, for the instruction set that this file is compiled for.
//
// GCC vector extensions and about a dozen primitives per instruction set. Every result has the same bits on all of
// them: division and square root are IEEE, each fma is explicit (compile with -ffp-contract=off), polynomials and
// the order of their terms are shared. Accuracy against float64 is tested in tests/native/test_machine.py.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#include "polynomials.h"

namespace dvm::DVM_TARGET {
namespace {
using E = float;
#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif
typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t Vi __attribute__((vector_size(4 * W)));
typedef uint32_t Vu __attribute__((vector_size(4 * W)));
using SignedElement = int32_t;
using UnsignedElement = uint32_t;
#define FN [[gnu::always_inline]] inline

constexpr float Inf = __builtin_inff();
constexpr float NaN = __builtin_nanf("");  // 0x7fc00000, the canonical one
constexpr int32_t SIGN = INT32_MIN;

FN V all(float k) { return k - V{}; }
FN V load(const void* p) { V v; memcpy(&v, p, sizeof v); return v; }
FN void store(void* p, V v) { memcpy(p, &v, sizeof v); }
FN V bits(Vi i) { return (V)i; }
FN Vi bits(V v) { return (Vi)v; }
FN Vi iota() { Vi v; for (int i = 0; i < W; i++) v[i] = i; return v; }
FN V negAbs(V x) { return bits(bits(x) | SIGN); }
FN V absv(V x) { return bits(bits(x) & 0x7fffffff); }
FN V signOf(V x, V magnitude) { return bits((bits(x) & SIGN) | bits(magnitude)); }

// After vector code: without this every SSE instruction of the caller is slow.
FN void leave() {
#if defined(__AVX2__)
  _mm256_zeroupper();
#endif
}

// ---- primitives -----------------------------------------------------------------------------------------------------
// unordered tells where a or b is NaN. min2 and max2 return the second argument when either is NaN or both are zero
// (the x86 rule). loadPart, storePart and keepPart touch elements 0 .. rest - 1 only; rest may be anything below 128,
// negative included.
#if defined(__AVX512F__)
FN V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
FN V nfma(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); }
FN V min2(V a, V b) { return _mm512_min_ps(a, b); }
FN V max2(V a, V b) { return _mm512_max_ps(a, b); }
FN V sqrtv(V a) { return _mm512_sqrt_ps(a); }
template <int MODE> FN V roundv(V a) { return _mm512_roundscale_ps(a, MODE | _MM_FROUND_NO_EXC); }
FN __mmask16 lanes(long rest) { return _bzhi_u32(0xffff, rest < 0 ? 0 : rest); }
FN V loadPart(const float* p, long rest) { return _mm512_maskz_loadu_ps(lanes(rest), p); }
FN void storePart(float* p, V v, long rest) { _mm512_mask_storeu_ps(p, lanes(rest), v); }
FN V keepPart(V v, V other, long rest) { return _mm512_mask_mov_ps(other, lanes(rest), v); }
FN void stream(float* p, V v) { _mm512_stream_ps(p, v); }
// a * 2^n, n an integer, 1/2 < a < 2: for any result.
FN V scale(V a, V n) { return _mm512_scalef_ps(a, n); }
// The same where low <= x <= high, +0 where x < low, infinity where x > high; makes no subnormals.
FN V scaleBetween(V a, V n, V x, float low, float) {  // above high it overflows by itself
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, all(low), _CMP_NLT_UQ), a, n);
}
// IEEE 754-2019 maximum and minimum: NaN if either is NaN, +0 above -0.
typedef __mmask16 NaNs;
FN NaNs unordered(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q); }
FN NaNs numbers(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_ORD_Q); }  // where neither is NaN
FN NaNs numbers(NaNs before, V a, V b) { return _mm512_mask_cmp_ps_mask(before, a, b, _CMP_ORD_Q); }
FN V maxNumber(V a, V b) { return _mm512_range_ps(a, b, 5); }  // neither is NaN
FN V minNumber(V a, V b) { return _mm512_range_ps(a, b, 4); }
FN bool no_nan(V a, V b, V c, V d) { return _kortestz_mask16_u8(unordered(a, b), unordered(c, d)); }
FN V maxv(V a, V b) {
  return _mm512_mask_add_ps(maxNumber(a, b), unordered(a, b), a, b);
}  // the sum of a NaN and anything is a NaN
FN V minv(V a, V b) { return _mm512_mask_add_ps(minNumber(a, b), unordered(a, b), a, b); }
FN bool any(NaNs x) { return x; }
// x, and the canonical NaN for any NaN: the first argument where the second is a NaN, else the second.
FN V canonicalNaN(V x) { return _mm512_fixupimm_ps(all(NaN), x, _mm512_set1_epi32(0x11111100), 0); }
// of[i & 15], an element for each i.
FN V lookup(const float (&of)[16], Vi i) { return _mm512_permutexvar_ps((__m512i)i, load(of)); }
#else
typedef Vi NaNs;
#if defined(__AVX2__)
FN V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
FN V nfma(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); }
FN V min2(V a, V b) { return _mm256_min_ps(a, b); }
FN V max2(V a, V b) { return _mm256_max_ps(a, b); }
FN V sqrtv(V a) { return _mm256_sqrt_ps(a); }
template <int MODE> FN V roundv(V a) { return _mm256_round_ps(a, MODE | _MM_FROUND_NO_EXC); }
FN Vi lanes(long rest) { return iota() < int32_t(rest); }
FN V loadPart(const float* p, long rest) { return _mm256_maskload_ps(p, (__m256i)lanes(rest)); }
FN void storePart(float* p, V v, long rest) { _mm256_maskstore_ps(p, (__m256i)lanes(rest), v); }
FN V keepPart(V v, V other, long rest) { return lanes(rest) ? v : other; }
FN void stream(float* p, V v) { _mm256_stream_ps(p, v); }
FN NaNs unordered(V a, V b) { return (Vi)_mm256_cmp_ps(a, b, _CMP_UNORD_Q); }
FN bool any(NaNs x) { return _mm256_movemask_ps((V)x); }
FN V lookup(const float (&of)[16], Vi i) {
  const V low = _mm256_permutevar8x32_ps(load(of), (__m256i)i), high = _mm256_permutevar8x32_ps(load(of + 8), (__m256i)i);
  return _mm256_blendv_ps(low, high, (V)(i << 28));
}
#else
// A call for each element anyway: out of line, or code and compile time multiply.
[[gnu::noinline]] inline V fma(V a, V b, V c) { for (int i = 0; i < W; i++) c[i] = __builtin_fmaf(a[i], b[i], c[i]); return c; }
FN V nfma(V a, V b, V c) { return fma(-a, b, c); }
FN V min2(V a, V b) { return a < b ? a : b; }
FN V max2(V a, V b) { return a > b ? a : b; }
FN V sqrtv(V a) { for (int i = 0; i < W; i++) a[i] = __builtin_sqrtf(a[i]); return a; }
template <int MODE> FN V roundv(V a) {
  for (int i = 0; i < W; i++)
    a[i] = MODE == 0   ? __builtin_rintf(a[i])
           : MODE == 1 ? __builtin_floorf(a[i])
           : MODE == 2 ? __builtin_ceilf(a[i])
                       : __builtin_truncf(a[i]);
  return a;
}
FN V loadPart(const float* p, long rest) { V v{}; for (int i = 0; i < W; i++) if (i < rest) v[i] = p[i]; return v; }
FN void storePart(float* p, V v, long rest) { for (int i = 0; i < W; i++) if (i < rest) p[i] = v[i]; }
FN V keepPart(V v, V other, long rest) { return iota() < int32_t(rest) ? v : other; }
FN void stream(float* p, V v) { store(p, v); }
FN NaNs unordered(V a, V b) { return (a != a) | (b != b); }
FN bool any(NaNs x) { for (int i = 0; i < W; i++) if (x[i]) return true; return false; }
FN V lookup(const float (&of)[16], Vi i) { V v; for (int j = 0; j < W; j++) v[j] = of[i[j] & 15]; return v; }
#endif
FN V scale(V a, V n) {  // in two steps, the second of which may overflow or round to a subnormal; |n| <= 252
  Vi i = __builtin_convertvector(n, Vi), h = i >> 1;
  return a * bits((h + 127) << 23) * bits((i - h + 127) << 23);
}
FN V scaleBetween(V a, V n, V x, float low, float high) {
  V r = x > high ? all(Inf) : (V)((Vu)a + ((Vu)__builtin_convertvector(n, Vi) << 23));  // unsigned: may wrap
  return bits(bits(r) & ~(x < low));
}
FN V maxNumber(V a, V b) { return bits(bits(max2(a, b)) & bits(max2(b, a))); }  // the two differ only in zeros and NaN
FN V maxv(V a, V b) { return bits(bits(maxNumber(a, b)) | unordered(a, b)); }
FN V minv(V a, V b) { return bits(bits(min2(a, b)) | bits(min2(b, a))); }  // the or of a NaN and anything is a NaN
FN V canonicalNaN(V x) { return x == x ? x : all(NaN); }
#endif
FN V lookup(const float (&of)[16], V i) { return lookup(of, bits(i)); }
enum : int { ROUND_EVEN = 0, ROUND_DOWN = 1, ROUND_UP = 2, ROUND_ZERO = 3 };  // for roundv, as the hardware counts

// 1 where the comparison (all bits of an element, or none) holds, else 0.
FN V truth(Vi holds) { return bits(holds & bits(all(1))); }
FN V whereLess(V x, float k, V a, V b) { return x < k ? a : b; }
}  // namespace
}  // namespace dvm::DVM_TARGET

#include "vec_pack.h"

namespace dvm::DVM_TARGET {
namespace {
// ---- mathematics: T is V, or a Pack of them ---------------------------------------------------------------------------
// Horner's rule, highest coefficient first.
template <class T, class Q, class... C> FN T poly(T x, Q highest, C... c) {
  T q = highest;
  ((q = fma(q, x, all(c))), ...);
  return q;
}

// e^x = 2^n (1 + r + q r^2), |r| <= ln2 / 2.
template <class T> struct Exp { T n, r, q; };
template <class T> FN Exp<T> expParts(T x) {
  const V magic = all(0x1.8p23f);
  T n = fma(x, all(1.44269504f), magic) - magic;  // rounds to an integer
  T r = nfma(n, all(-2.12194440e-4f), nfma(n, all(0.693359375f), x));
  return {n, r, poly(r, all(1.38145289e-3f), 8.3687501e-3f, 4.16683927e-2f, 1.66665196e-1f, 4.9999994e-1f)};
}
constexpr float EXP_LOW = -0x1.5d589ep+6f, EXP_HIGH = 0x1.62e42ep+6f;  // first and last x with 2^-126 <= e^x < 2^128
template <class T> FN T expv(T x) {
  auto [n, r, q] = expParts(min2(all(89.f), x));  // NaN stays, being the second argument; what x < EXP_LOW gives is dropped
  return scaleBetween(fma(fma(q, r, all(1)), r, all(1)), n, x, EXP_LOW, EXP_HIGH);
}
template <class T> FN T sigmoidv(T x) {  // t = e^-|x| <= 1 never overflows; small results are precise, subnormal ones too
  auto [n, r, q] = expParts(max2(all(-104.f), negAbs(x)));
  T t = scale(fma(fma(q, r, all(1)), r, all(1)), n);
  return whereLess(x, 0.f, t, all(1)) / (t + 1.f);
}
// An odd function that rises to 1: the middle of a segment is added to x by rounding, and stands in the low bits of the sum.
template <class T, int DEGREE> FN T oddv(const polynomial::Segments<DEGREE>& f, T x) {
  constexpr float ROUNDING = 0x1.8p23f;
  const T t = min2(all(f.limit), absv(x)), i = fma(t, all(f.per_unit), all(ROUNDING)), u = nfma(i - ROUNDING, all(f.width), t);
  T q = lookup(f.c[0], i);
#pragma GCC unroll 8
  for (int j = 1; j < DEGREE; j++) q = fma(q, u, lookup(f.c[j], i));
  return signOf(x, fma(q, u, max2(lookup(f.c[DEGREE], i), u)));  // in segment 0 u is larger; NaN stays, being second
}
template <class T> FN T tanhv(T x) { return oddv(polynomial::TANH_SEGMENTS, x); }
template <class T> FN T erfv(T x) { return oddv(polynomial::ERF_SEGMENTS, x); }
FN V logv(V x) {
  Vi tiny = x < 0x1p-126f;
  V y = tiny ? x * 0x1p23f : x;
  Vi i = (Vi)((Vu)y - 0x3f3504f3u);
  V e = __builtin_convertvector((i >> 23) + (tiny & -23), V), f = bits((i & 0x7fffff) + 0x3f3504f3) - 1.f, z = f * f;
  V q = poly(f, all(7.0376836292e-2f), -1.1514610310e-1f, 1.1676998740e-1f, -1.2420140846e-1f, 1.4249322787e-1f,
             -1.6668057665e-1f, 2.0000714765e-1f, -2.4999993993e-1f, 3.3333331174e-1f);
  q = fma(e, all(-2.12194440e-4f), q * f * z);
  V r = fma(e, all(0.693359375f), f + nfma(all(0.5f), z, q));
  r = x < Inf ? r : x;  // +inf and NaN give themselves
  r = x == 0.f ? all(-Inf) : r;
  return x < 0.f ? all(NaN) : r;
}
}  // namespace
}  // namespace dvm::DVM_TARGET
