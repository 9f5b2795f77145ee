// Between storage dtypes and the compute dtype: one element at a time, and whole vectors for the dtypes that are stored
// most (DVM_DIRECT). Both give the same values.
//
// Rules. To a float: rounded once, to nearest, halves to even; a stored NaN is the canonical one. Float to integer:
// truncated, saturated, NaN is 0. Integers wrap. bool: 1 where it is not 0.
#pragma once
#include <type_traits>
#include "layout.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
constexpr bool FLOATING = E(0.5) != E(0);
struct Half { uint16_t bits; };
struct BrainFloat { uint16_t bits; };
struct Bool { uint8_t byte; };  // any byte that is not 0 counts as 1

template <class T> constexpr bool is_float = std::is_floating_point_v<T>;

// ---- one element ----------------------------------------------------------------------------------------------------
FN float widened(Half h) {
  const uint32_t magnitude = h.bits & 0x7fffu;
  const float scaled = __builtin_bit_cast(float, magnitude << 13) * 0x1p112f;  // subnormals included
  const uint32_t special = magnitude >= 0x7c00 ? 0x7f800000u : 0;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, scaled) | special | uint32_t(h.bits & 0x8000u) << 16);
}
FN float widened(BrainFloat b) { return __builtin_bit_cast(float, uint32_t(b.bits) << 16); }

template <class T> FN T narrowed(float x);
template <> FN Half narrowed<Half>(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x), sign = u >> 16 & 0x8000, m = u & 0x7fffffff;
  const uint32_t small = __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, m) + 0.5f) - 0x3f000000;  // steps of 2^-24
  const uint32_t normal = (m - 0x38000000 + 0xfff + (m >> 13 & 1)) >> 13;
  const uint32_t r = m > 0x7f800000 ? 0x7e00 : (m >= 0x47800000 ? 0x7c00 : m < 0x38800000 ? small : normal) | sign;
  return {uint16_t(r)};
}
template <> FN BrainFloat narrowed<BrainFloat>(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  return {uint16_t(x == x ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fc0)};
}
// Rounded to odd: what is rounded to fewer bits later comes out as if rounded once (Boldo and Melquiond, 2008).
FN float odd_float(double x) {
  const float f = float(x);
  uint32_t u = __builtin_bit_cast(uint32_t, f);
  const double back = f, magnitude = x < 0 ? -x : x;
  const bool inexact = back != x && x == x;
  u -= inexact && (back < 0 ? -back : back) > magnitude;
  return __builtin_bit_cast(float, u | inexact);
}
template <class I> FN double odd_double(I x) {
  if constexpr (sizeof(I) < 8) return double(x);
  const bool negative = x < 0;
  uint64_t u = negative ? 0 - uint64_t(x) : uint64_t(x);
  if (u >> 53) u = (u >> 11 | ((u & 2047) != 0)) << 11;
  return negative ? -double(u) : double(u);
}

template <class To, class From> FN To saturated(From x) {
  constexpr bool SIGNED = To(-1) < To(0);
  constexpr int BITS = 8 * sizeof(To) - SIGNED;
  constexpr From UPPER = From(1ull << (BITS - 1)) * 2, LOWER = SIGNED ? -UPPER : 0;  // both exact; UPPER does not fit
  constexpr To LARGEST = To(((1ull << (BITS - 1)) - 1) * 2 + 1);
  return x != x ? To(0) : x >= UPPER ? LARGEST : x < LOWER ? To(SIGNED ? -LARGEST - 1 : 0) : To(x);
}
template <class T> FN E loaded(T x) {
  if constexpr (!FLOATING && is_float<T>) return saturated<E>(x);
  else return E(x);
}
template <> FN E loaded<Half>(Half x) { return loaded<float>(widened(x)); }
template <> FN E loaded<BrainFloat>(BrainFloat x) { return loaded<float>(widened(x)); }
template <> FN E loaded<Bool>(Bool x) { return E(x.byte != 0); }

template <class T> FN T stored(E x) {
  if constexpr (std::is_same_v<T, Bool>) return {uint8_t(x != 0)};
  else if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, BrainFloat>) {
    if constexpr (sizeof(E) == 4 && FLOATING) return narrowed<T>(x);
    else if constexpr (FLOATING) return narrowed<T>(odd_float(x));
    else return narrowed<T>(odd_float(odd_double(x)));
  }
  else if constexpr (FLOATING && !is_float<T>) return saturated<T>(x);
  else if constexpr (FLOATING) return __builtin_isnan(x) ? T(__builtin_nan("")) : T(x);
  else return T(x);
}

// ---- vectors --------------------------------------------------------------------------------------------------------
// from<T>: W stored elements; to<T>: V as W stored elements.
template <class T> struct Stored { typedef T Vector __attribute__((vector_size(W * sizeof(T)))); };
template <> struct Stored<Half> : Stored<uint16_t> {};
template <> struct Stored<BrainFloat> : Stored<uint16_t> {};
template <> struct Stored<Bool> : Stored<uint8_t> {};
template <class T> using StoredVector = typename Stored<T>::Vector;
template <class T> FN StoredVector<T> stored_at(const uint8_t* m) { StoredVector<T> s; memcpy(&s, m, sizeof s); return s; }

#ifdef DVM_IS_float32
FN StoredVector<Half> to_halves(V a) {
#if defined(__AVX512F__)
  return (StoredVector<Half>)_mm512_cvtps_ph(canonicalNaN(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (StoredVector<Half>)_mm256_cvtps_ph(canonicalNaN(a), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  StoredVector<Half> h;
  for (int i = 0; i < W; i++) h[i] = narrowed<Half>(a[i]).bits;
  return h;
#endif
}
FN V from_halves(StoredVector<Half> h) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)h);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)h);
#else
  V v;
  for (int i = 0; i < W; i++) v[i] = widened(Half{h[i]});
  return v;
#endif
}
FN StoredVector<BrainFloat> to_brain_floats(V a) {
  const Vu u = (Vu)a, r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  return __builtin_convertvector(a == a ? r : Vu{} + 0x7fc0, StoredVector<BrainFloat>);
}
FN V from_brain_floats(StoredVector<BrainFloat> b) { return (V)(__builtin_convertvector(b, Vu) << 16); }

template <class T> FN V from(const uint8_t* m) {
  const auto x = stored_at<T>(m);
  if constexpr (std::is_same_v<T, Half>) return from_halves(x);
  else if constexpr (std::is_same_v<T, BrainFloat>) return from_brain_floats(x);
  else if constexpr (std::is_same_v<T, Bool>) return truth(__builtin_convertvector(x, Vi) != 0);
  else return __builtin_convertvector(__builtin_convertvector(x, Vi), V);
}
template <class T> FN StoredVector<T> to(V a) {
  if constexpr (std::is_same_v<T, Half>) return to_halves(a);
  else if constexpr (std::is_same_v<T, BrainFloat>) return to_brain_floats(a);
  else if constexpr (std::is_same_v<T, Bool>) return __builtin_convertvector((Vi)(a != 0.f) & 1, StoredVector<T>);
  else {
    constexpr long LOWEST = T(-1) < T(0) ? -(1l << (8 * sizeof(T) - 1)) : 0, HIGHEST = LOWEST + (1l << 8 * sizeof(T)) - 1;
    constexpr bool WIDE = sizeof(T) == 4;  // its largest value is no float
    const V number = bits(bits(a) & (a == a)), x = min2(all(WIDE ? 2147483520.f : float(HIGHEST)), max2(all(float(LOWEST)), number));
    const Vi i = __builtin_convertvector(x, Vi);
    return __builtin_convertvector(WIDE ? number >= 0x1p31f ? Vi{} + INT32_MAX : i : i, StoredVector<T>);
  }
}
#define DVM_DIRECT(X) X(BOOL, Bool) X(INT8, int8_t) X(UINT8, uint8_t) X(INT16, int16_t) X(UINT16, uint16_t) X(INT32, int32_t) \
  X(FLOAT16, Half) X(BFLOAT16, BrainFloat)
#elif defined(DVM_IS_float64)
#define DVM_DIRECT(X)
#else
template <class T> FN V from(const uint8_t* m) {
  if constexpr (std::is_same_v<T, Bool>) return truth(__builtin_convertvector(stored_at<T>(m), Vi) != 0);
  else return __builtin_convertvector(stored_at<T>(m), V);
}
template <class T> FN StoredVector<T> to(V a) {
  if constexpr (std::is_same_v<T, Bool>) return __builtin_convertvector((Vi)(a != all(0)) & 1, StoredVector<T>);
  else return __builtin_convertvector(a, StoredVector<T>);
}
#define DVM_DIRECT(X) X(BOOL, Bool) X(INT8, int8_t) X(UINT8, uint8_t) X(INT16, int16_t) X(UINT16, uint16_t) X(INT32, int32_t) \
  X(UINT32, uint32_t)
#endif
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
