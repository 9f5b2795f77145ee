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

// W integers of 1 or 2 bytes (of 4, where elements have 8) as integers of the compute dtype's width, and the low bytes of
// such: __builtin_convertvector goes element by element here, with gcc 12.
template <class T> FN Vi widened_integers(StoredVector<T> x) {
  [[maybe_unused]] constexpr bool SIGNED = T(-1) < T(0);
#if defined(__AVX512F__)
  if constexpr (sizeof(E) == 4 && sizeof(T) == 1)
    return (Vi)(SIGNED ? _mm512_cvtepi8_epi32((__m128i)x) : _mm512_cvtepu8_epi32((__m128i)x));
  if constexpr (sizeof(E) == 4 && sizeof(T) == 2)
    return (Vi)(SIGNED ? _mm512_cvtepi16_epi32((__m256i)x) : _mm512_cvtepu16_epi32((__m256i)x));
  if constexpr (sizeof(E) == 8 && sizeof(T) == 4)
    return (Vi)(SIGNED ? _mm512_cvtepi32_epi64((__m256i)x) : _mm512_cvtepu32_epi64((__m256i)x));
#elif defined(__AVX2__)
  if constexpr (sizeof(E) == 4 && sizeof(T) == 1) {
    const __m128i low = _mm_cvtsi64_si128((long long)x);
    return (Vi)(SIGNED ? _mm256_cvtepi8_epi32(low) : _mm256_cvtepu8_epi32(low));
  }
  if constexpr (sizeof(E) == 4 && sizeof(T) == 2)
    return (Vi)(SIGNED ? _mm256_cvtepi16_epi32((__m128i)x) : _mm256_cvtepu16_epi32((__m128i)x));
  if constexpr (sizeof(E) == 8 && sizeof(T) == 4)
    return (Vi)(SIGNED ? _mm256_cvtepi32_epi64((__m128i)x) : _mm256_cvtepu32_epi64((__m128i)x));
#endif
  return __builtin_convertvector(x, Vi);
}
template <class T> FN StoredVector<T> low_bytes(Vi x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(E) == 4 && sizeof(T) == 1) return (StoredVector<T>)_mm512_cvtepi32_epi8((__m512i)x);
  if constexpr (sizeof(E) == 4 && sizeof(T) == 2) return (StoredVector<T>)_mm512_cvtepi32_epi16((__m512i)x);
  if constexpr (sizeof(E) == 8 && sizeof(T) == 4) return (StoredVector<T>)_mm512_cvtepi64_epi32((__m512i)x);
#elif defined(__AVX2__)
  if constexpr (sizeof(E) == 4 && sizeof(T) <= 2) {
    constexpr long long PICK = sizeof(T) == 1 ? 0x0c080400 : 0x0d0c090805040100;  // of each half of the vector
    const __m256i packed = _mm256_shuffle_epi8((__m256i)x, _mm256_set1_epi64x(PICK));
    if constexpr (sizeof(T) == 1) return (StoredVector<T>)_mm256_permutevar8x32_epi32(packed, _mm256_set1_epi64x(4ll << 32))[0];
    else return (StoredVector<T>)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8));
  }
  if constexpr (sizeof(E) == 8 && sizeof(T) == 4) {
    const __m256i even = _mm256_permutevar8x32_epi32((__m256i)x, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
    return (StoredVector<T>)_mm256_castsi256_si128(even);
  }
#endif
  return __builtin_convertvector(x, StoredVector<T>);
}

// The same of 2 or 4 vectors, whose integers have no other bits: a whole vector of them, so that whole lines are stored.
#if defined(__AVX512F__)
FN Vi joined(Vi a, Vi b) {
  return (Vi)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), _mm512_packus_epi32((__m512i)a, (__m512i)b));
}
FN Vi joined(Vi a, Vi b, Vi c, Vi d) {
  const __m512i mixed =
      _mm512_packus_epi16(_mm512_packus_epi32((__m512i)a, (__m512i)b), _mm512_packus_epi32((__m512i)c, (__m512i)d));
  return (Vi)_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), mixed);
}
#elif defined(__AVX2__)
FN Vi joined(Vi a, Vi b) { return (Vi)_mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)a, (__m256i)b), 0xd8); }
FN Vi joined(Vi a, Vi b, Vi c, Vi d) {
  const __m256i mixed =
      _mm256_packus_epi16(_mm256_packus_epi32((__m256i)a, (__m256i)b), _mm256_packus_epi32((__m256i)c, (__m256i)d));
  return (Vi)_mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
#endif

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
#if defined(__AVX512F__)
FN Vi joined_halves(StoredVector<Half> a, StoredVector<Half> b) {
  return (Vi)_mm512_inserti64x4(_mm512_castsi256_si512((__m256i)a), (__m256i)b, 1);
}
#elif defined(__AVX2__)
FN Vi joined_halves(StoredVector<Half> a, StoredVector<Half> b) { return (Vi)_mm256_set_m128i((__m128i)b, (__m128i)a); }
#endif
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
#if defined(__AVX512F__)
// From memory: the port that else brings a constant from a register is the one that rounding keeps busy.
template <int32_t K> constexpr int32_t CONSTANT = K;
template <int32_t K> FN __m512i everywhere() {
  __m512i all;
  __asm__("vpbroadcastd %1, %0" : "=v"(all) : "m"(CONSTANT<K>));
  return all;
}
#endif
// Halves to even: half of the last bit that stays, less one, and that bit. What is to be cut off is in the low 16 bits;
// wrong for NaN.
FN Vu rounded_up_to_brain_float(Vu u) {
#if defined(__AVX512F__)
  // Of the two 16-bit halves of each element, 0x7fff and the last bit: their sum is one instruction.
  const __m512i halves = _mm512_ternarylogic_epi32((__m512i)u, everywhere<0x10000>(), everywhere<0x7fff>(), 0xea);
  return u + (Vu)_mm512_madd_epi16(halves, everywhere<0x10001>());
#else
  return u + 0x7fff + (u >> 16 & 1);
#endif
}
FN V from_brain_floats(StoredVector<BrainFloat> b) { return (V)((Vu)widened_integers<uint16_t>(b) << 16); }
#if defined(__AVX512F__)
FN V number_rounded_to_brain_float(V a) {  // no NaN
  const __m512i u = (__m512i)a;
  const __m512i r = _mm512_mask_add_epi32(_mm512_add_epi32(u, everywhere<0x7fff>()),
                                          _mm512_test_epi32_mask(u, everywhere<0x10000>()), u, everywhere<0x8000>());
  return (V)_mm512_and_si512(r, everywhere<-0x10000>());
}
#endif
// Rounded, and still a float. A NaN stays some NaN: it becomes canonical where it is stored.
FN V rounded_to_half(V a) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  return from_halves(to_halves(a));
#endif
}
FN V rounded_to_brain_float(V a) {
  const Vu r = rounded_up_to_brain_float((Vu)a);
#if defined(__AVX512F__)
  const __mmask16 number = _mm512_cmp_ps_mask(a, a, _CMP_ORD_Q);
  return (V)_mm512_mask_and_epi32((__m512i)a, number, (__m512i)r, everywhere<-0x10000>());
#else
  return a == a ? (V)(r & 0xffff0000u) : a;
#endif
}
typedef double Doubles __attribute__((vector_size(4 * W)));  // half a vector of floats
FN V from_doubles(const uint8_t* m) {
  Doubles low, high;
  memcpy(&low, m, sizeof low), memcpy(&high, m + sizeof low, sizeof high);
#if defined(__AVX512F__)
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(low)), _mm512_cvtpd_ps(high), 1);
#elif defined(__AVX2__)
  return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low));
#else
  return V{float(low[0]), float(low[1]), float(high[0]), float(high[1])};
#endif
}
FN StoredVector<double> to_doubles(V a) {  // a NaN is canonical in both
  const V x = canonicalNaN(a);
  Doubles low, high;
#if defined(__AVX512F__)
  low = _mm512_cvtps_pd(_mm512_castps512_ps256(x)), high = _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1));
#elif defined(__AVX2__)
  low = _mm256_cvtps_pd(_mm256_castps256_ps128(x)), high = _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1));
#else
  low = Doubles{x[0], x[1]}, high = Doubles{x[2], x[3]};
#endif
  StoredVector<double> both;
  memcpy(&both, &low, sizeof low), memcpy((uint8_t*)&both + sizeof low, &high, sizeof high);
  return both;
}

template <class T> FN V from(const uint8_t* m) {
  if constexpr (std::is_same_v<T, double>) return from_doubles(m);
  else if constexpr (std::is_same_v<T, Half>) return from_halves(stored_at<T>(m));
  else if constexpr (std::is_same_v<T, BrainFloat>) return from_brain_floats(stored_at<T>(m));
  else if constexpr (std::is_same_v<T, Bool>) return truth(widened_integers<uint8_t>(stored_at<T>(m)) != 0);
  else return __builtin_convertvector(widened_integers<T>(stored_at<T>(m)), V);
}
// What is stored, in the low bytes of integers.
template <class T> FN Vi integers(V a) {
  if constexpr (std::is_same_v<T, BrainFloat>) return (Vi)(rounded_up_to_brain_float((Vu)canonicalNaN(a)) >> 16);
  else if constexpr (std::is_same_v<T, Bool>) return (Vi)(a != 0.f) & 1;
  else {
    constexpr long LOWEST = T(-1) < T(0) ? -(1l << (8 * sizeof(T) - 1)) : 0, HIGHEST = LOWEST + (1l << 8 * sizeof(T)) - 1;
    constexpr bool WIDE = sizeof(T) == 4;  // its largest value is no float
    const V number = bits(bits(a) & (a == a)),
            x = min2(all(WIDE ? 2147483520.f : float(HIGHEST)), max2(all(float(LOWEST)), number));
    const Vi i = __builtin_convertvector(x, Vi);
    return WIDE ? number >= 0x1p31f ? Vi{} + INT32_MAX : i : i;
  }
}
template <class T> FN StoredVector<T> to(V a) {
  if constexpr (std::is_same_v<T, double>) return to_doubles(a);
  else if constexpr (std::is_same_v<T, Half>) return to_halves(a);
  else return low_bytes<T>(integers<T>(a));
}
#define DVM_DIRECT(X) X(BOOL, Bool) X(INT8, int8_t) X(UINT8, uint8_t) X(INT16, int16_t) X(UINT16, uint16_t) X(INT32, int32_t) \
  X(FLOAT16, Half) X(BFLOAT16, BrainFloat) X(FLOAT64, double)
#elif defined(DVM_IS_float64)
template <class T> FN V from(const uint8_t* m) { return __builtin_convertvector(stored_at<T>(m), V); }
template <class T> FN StoredVector<T> to(V a) { return __builtin_convertvector(canonicalNaN(a), StoredVector<T>); }
#define DVM_DIRECT(X) X(FLOAT32, float)
#else
// W integers of 8 bytes, cut to 4.
FN V low_words(const uint8_t* m) {
#if defined(__AVX512F__)
  const __m256i low = _mm512_cvtepi64_epi32(_mm512_loadu_si512(m)), high = _mm512_cvtepi64_epi32(_mm512_loadu_si512(m + 64));
  return (V)_mm512_inserti32x8(_mm512_castsi256_si512(low), high, 1);
#else
  V v;
  for (int i = 0; i < W; i++) memcpy(&v[i], m + 8 * i, 4);
  return v;
#endif
}
template <class T> FN StoredVector<T> doubled_words(V a) {  // the other way
#if defined(__AVX512F__)
  const __m256i low = _mm512_castsi512_si256((__m512i)a), high = _mm512_extracti32x8_epi32((__m512i)a, 1);
  const __m512i halves[2] = {IS_SIGNED ? _mm512_cvtepi32_epi64(low) : _mm512_cvtepu32_epi64(low),
                             IS_SIGNED ? _mm512_cvtepi32_epi64(high) : _mm512_cvtepu32_epi64(high)};
  StoredVector<T> both;
  memcpy(&both, halves, sizeof both);
  return both;
#else
  return __builtin_convertvector(a, StoredVector<T>);
#endif
}
template <class T> FN V from(const uint8_t* m) {
  if constexpr (std::is_same_v<T, Bool>) return truth(widened_integers<uint8_t>(stored_at<T>(m)) != 0);
  else if constexpr (sizeof(T) < sizeof(E)) return (V)widened_integers<T>(stored_at<T>(m));
  else if constexpr (sizeof(T) == sizeof(E)) return (V)stored_at<T>(m);
  else return low_words(m);
}
template <class T> FN Vi integers(V a) {
  if constexpr (std::is_same_v<T, Bool>) return (Vi)(a != all(0)) & 1;
  else return (Vi)a;
}
template <class T> FN StoredVector<T> to(V a) {
  if constexpr (sizeof(T) < sizeof(E)) return low_bytes<T>(integers<T>(a));
  else if constexpr (sizeof(T) == sizeof(E)) return (StoredVector<T>)a;
  else return doubled_words<T>(a);
}
#define DVM_DIRECT_INTEGERS(X) X(BOOL, Bool) X(INT8, int8_t) X(UINT8, uint8_t) X(INT16, int16_t) X(UINT16, uint16_t) \
  X(INT32, int32_t) X(UINT32, uint32_t)
#if defined(DVM_IS_int64) || defined(DVM_IS_uint64)
#define DVM_DIRECT DVM_DIRECT_INTEGERS
#else
#define DVM_DIRECT(X) DVM_DIRECT_INTEGERS(X) X(INT64, int64_t) X(UINT64, uint64_t)
#endif
#endif

// Whole vectors of a dtype that has several in one: from as many vectors of the compute dtype.
#if defined(__AVX2__)
template <class T> constexpr bool PACKS = sizeof(E) == 4 && sizeof(T) < 4;
template <class T> FN Vi only_low_bytes(V a) {
  const Vi i = integers<T>(a);
  return std::is_same_v<T, Bool> || std::is_same_v<T, BrainFloat> ? i : i & Vi(Vi{} + ((1 << 8 * sizeof(T) % 32) - 1));
}
template <class T, class... Vs> FN Vi packed(Vs... a) {
#ifdef DVM_IS_float32
  if constexpr (std::is_same_v<T, Half>) {
    return joined_halves(to_halves(a)...);
  } else
#endif
    return joined(only_low_bytes<T>(a)...);
}
#else
template <class T> constexpr bool PACKS = false;
#endif
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
