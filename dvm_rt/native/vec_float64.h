// Vectors of W doubles and the mathematics on them: what vec.h is for float32.
#pragma once
#include "vec_lanes.h"

namespace dvm::DVM_TARGET {
namespace {
constexpr double Inf = __builtin_inf();
constexpr double NaN = __builtin_nan("");  // the canonical one
constexpr int64_t SIGN = INT64_MIN;

FN V bits(Vi i) { return (V)i; }
FN Vi bits(V v) { return (Vi)v; }
FN V absv(V x) { return bits(bits(x) & INT64_MAX); }
FN V negAbs(V x) { return bits(bits(x) | SIGN); }
FN V signOf(V x, V magnitude) { return bits((bits(x) & SIGN) | bits(magnitude)); }

// As in vec.h: min2 and max2 return the second argument when either is NaN or both are zero.
#if defined(__AVX512F__)
FN V fma(V a, V b, V c) { return _mm512_fmadd_pd(a, b, c); }
FN V nfma(V a, V b, V c) { return _mm512_fnmadd_pd(a, b, c); }
FN V min2(V a, V b) { return _mm512_min_pd(a, b); }
FN V max2(V a, V b) { return _mm512_max_pd(a, b); }
FN V sqrtv(V a) { return _mm512_sqrt_pd(a); }
template <int MODE> FN V roundv(V a) { return _mm512_roundscale_pd(a, MODE | _MM_FROUND_NO_EXC); }
typedef __mmask8 NaNs;
FN NaNs unordered(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_UNORD_Q); }
FN NaNs numbers(V a, V b) { return _mm512_cmp_pd_mask(a, b, _CMP_ORD_Q); }
FN NaNs numbers(NaNs before, V a, V b) { return _mm512_mask_cmp_pd_mask(before, a, b, _CMP_ORD_Q); }
FN bool any(NaNs x) { return x; }
#else
typedef Vi NaNs;
#if defined(__AVX2__)
FN V fma(V a, V b, V c) { return _mm256_fmadd_pd(a, b, c); }
FN V nfma(V a, V b, V c) { return _mm256_fnmadd_pd(a, b, c); }
FN V min2(V a, V b) { return _mm256_min_pd(a, b); }
FN V max2(V a, V b) { return _mm256_max_pd(a, b); }
FN V sqrtv(V a) { return _mm256_sqrt_pd(a); }
template <int MODE> FN V roundv(V a) { return _mm256_round_pd(a, MODE | _MM_FROUND_NO_EXC); }
FN NaNs unordered(V a, V b) { return (Vi)_mm256_cmp_pd(a, b, _CMP_UNORD_Q); }
FN bool any(NaNs x) { return _mm256_movemask_pd((V)x); }
#else
// A call for each element anyway: out of line, or code and compile time multiply.
[[gnu::noinline]] inline V fma(V a, V b, V c) { for (int i = 0; i < W; i++) c[i] = __builtin_fma(a[i], b[i], c[i]); return c; }
FN V nfma(V a, V b, V c) { return fma(-a, b, c); }
FN V min2(V a, V b) { return a < b ? a : b; }
FN V max2(V a, V b) { return a > b ? a : b; }
FN V sqrtv(V a) { for (int i = 0; i < W; i++) a[i] = __builtin_sqrt(a[i]); return a; }
template <int MODE> FN V roundv(V a) {
  for (int i = 0; i < W; i++)
    a[i] = MODE == 0   ? __builtin_rint(a[i])
           : MODE == 1 ? __builtin_floor(a[i])
           : MODE == 2 ? __builtin_ceil(a[i])
                       : __builtin_trunc(a[i]);
  return a;
}
FN NaNs unordered(V a, V b) { return (a != a) | (b != b); }
FN bool any(NaNs x) { for (int i = 0; i < W; i++) if (x[i]) return true; return false; }
#endif
#endif
FN V maxNumber(V a, V b) { return bits(bits(max2(a, b)) & bits(max2(b, a))); }  // neither is NaN
FN V maxv(V a, V b) { return bits(bits(maxNumber(a, b)) | (Vi)((a != a) | (b != b))); }
FN V minv(V a, V b) { return bits(bits(min2(a, b)) | bits(min2(b, a))); }
FN V canonicalNaN(V x) { return x == x ? x : all(NaN); }
enum : int { ROUND_EVEN = 0, ROUND_DOWN = 1, ROUND_UP = 2, ROUND_ZERO = 3 };  // for roundv, as the hardware counts
}  // namespace
}  // namespace dvm::DVM_TARGET
