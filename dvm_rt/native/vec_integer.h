// Vectors of W integers (int32, uint32, int64, uint64) and the arithmetic on them. Everything wraps.
#pragma once
#include "vec_lanes.h"

namespace dvm::DVM_TARGET {
namespace {
constexpr bool IS_SIGNED = E(-1) < E(0);
constexpr E SHIFT_MASK = 8 * sizeof(E) - 1;

FN Vu as_unsigned(V v) { return (Vu)v; }
FN V maxv(V a, V b) { return a > b ? a : b; }
FN V minv(V a, V b) { return a < b ? a : b; }
FN V absv(V a) {
  if constexpr (!IS_SIGNED) return a;
#if defined(__AVX512F__)
  else if constexpr (sizeof(E) == 4) return (V)_mm512_abs_epi32((__m512i)a);
  else return (V)_mm512_abs_epi64((__m512i)a);
#elif defined(__AVX2__)
  else if constexpr (sizeof(E) == 4) return (V)_mm256_abs_epi32((__m256i)a);
#endif
  return a < all(0) ? (V)(0 - as_unsigned(a)) : a;
}

// Integers have no NaN: so that stores and folds read the same for every compute dtype.
struct NaNs {
  FN void operator|=(NaNs) {}
};
constexpr E NaN = 0;
FN V canonicalNaN(V x) { return x; }
FN V maxNumber(V a, V b) { return maxv(a, b); }
FN NaNs unordered(V, V) { return {}; }
FN bool any(NaNs) { return false; }

// Quotients and remainders. x / 0 = 0, x % 0 = 0; the most negative number / -1 wraps.
struct Divided { V quotient, remainder; };
FN Divided divided(V a, V x, bool down) {
  Vi minus{};
  if constexpr (IS_SIGNED) minus = x == all(E(-1));
  const V d = (minus | (x == all(0))) ? all(1) : x;
  V q = a / d, r = a - (V)(as_unsigned(q) * as_unsigned(d));
  if constexpr (IS_SIGNED) {
    if (down) {
      const Vi lower = (r != all(0)) & ((r ^ d) < all(0));
      q = q + (V)lower, r = r + (d & (V)lower);
    }
    q = minus ? (V)(0 - as_unsigned(a)) : q;
  }
  const V there = (V)(x != all(0));
  return {q & there, r & there & ~(V)minus};
}

#ifdef DVM_IS_uint64
// Philox4x32-10 (Salmon et al., 2011) of the counter (a low, a high, 0, 0) under the key (x low, x high), its first two
// words. A 64-bit lane holds one 32-bit word, so that the products come whole.
FN Vu low_product(Vu a, uint32_t k) {
#if defined(__AVX512F__)
  return (Vu)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(k));
#elif defined(__AVX2__)
  return (Vu)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(k));
#elif defined(__SSE2__)
  return (Vu)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(k));
#else
  return (a & 0xffffffffu) * k;
#endif
}
FN V philoxv(V counter, V key) {
  const Vu low = Vu{} + 0xffffffffu, c = (Vu)counter;
  Vu k0 = (Vu)key & low, k1 = (Vu)key >> 32, v0 = c & low, v1 = c >> 32, v2{}, v3{};
#pragma GCC unroll 10
  for (int round = 0; round < 10; round++) {
    const Vu p = low_product(v0, 0xD2511F53u), q = low_product(v2, 0xCD9E8D57u);
    v0 = (q >> 32) ^ v1 ^ k0, v2 = (p >> 32) ^ v3 ^ k1;
    v1 = q & low, v3 = p & low;
    k0 = (k0 + 0x9E3779B9u) & low, k1 = (k1 + 0xBB67AE85u) & low;
  }
  return (V)(v0 | v1 << 32);
}
#endif
}  // namespace
}  // namespace dvm::DVM_TARGET
