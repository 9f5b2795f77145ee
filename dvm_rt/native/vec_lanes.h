// Vectors of W elements E of any compute dtype but float32 (vec.h), for the instruction set that this file is compiled for.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dvm::DVM_TARGET {
namespace {
using E = DVM_ELEMENT;
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int W = VECTOR_BYTES / sizeof(E);
using SignedElement = std::conditional_t<sizeof(E) == 4, int32_t, int64_t>;
using UnsignedElement = std::make_unsigned_t<SignedElement>;
typedef E V __attribute__((vector_size(VECTOR_BYTES)));
typedef SignedElement Vi __attribute__((vector_size(VECTOR_BYTES)));
typedef UnsignedElement Vu __attribute__((vector_size(VECTOR_BYTES)));
#define FN [[gnu::always_inline]] inline

FN V all(E k) { return k - V{}; }
FN V load(const void* p) { V v; memcpy(&v, p, sizeof v); return v; }
FN void store(void* p, V v) { memcpy(p, &v, sizeof v); }
FN Vi iota() { Vi v; for (int i = 0; i < W; i++) v[i] = i; return v; }

// After vector code: without this every SSE instruction of the caller is slow.
FN void leave() {
#if defined(__AVX2__)
  _mm256_zeroupper();
#endif
}

// Elements 0 .. rest - 1 only; rest may be anything below 128, negative included.
#if defined(__AVX512F__)
FN unsigned lanes(long rest) { return _bzhi_u32((1u << W) - 1, rest < 0 ? 0 : rest); }
FN V loadPart(const E* p, long rest) {
  if constexpr (sizeof(E) == 4) return (V)_mm512_maskz_loadu_epi32(__mmask16(lanes(rest)), p);
  else return (V)_mm512_maskz_loadu_epi64(__mmask8(lanes(rest)), p);
}
FN void storePart(E* p, V v, long rest) {
  if constexpr (sizeof(E) == 4) _mm512_mask_storeu_epi32(p, __mmask16(lanes(rest)), (__m512i)v);
  else _mm512_mask_storeu_epi64(p, __mmask8(lanes(rest)), (__m512i)v);
}
FN V keepPart(V v, V other, long rest) {
  if constexpr (sizeof(E) == 4) return (V)_mm512_mask_mov_epi32((__m512i)other, __mmask16(lanes(rest)), (__m512i)v);
  else return (V)_mm512_mask_mov_epi64((__m512i)other, __mmask8(lanes(rest)), (__m512i)v);
}
FN void stream(void* p, V v) { _mm512_stream_si512((__m512i*)p, (__m512i)v); }
#elif defined(__AVX2__)
FN Vi lanes(long rest) { return iota() < SignedElement(rest); }
FN V loadPart(const E* p, long rest) {
  if constexpr (sizeof(E) == 4) return (V)_mm256_maskload_epi32((const int*)p, (__m256i)lanes(rest));
  else return (V)_mm256_maskload_epi64((const long long*)p, (__m256i)lanes(rest));
}
FN void storePart(E* p, V v, long rest) {
  if constexpr (sizeof(E) == 4) _mm256_maskstore_epi32((int*)p, (__m256i)lanes(rest), (__m256i)v);
  else _mm256_maskstore_epi64((long long*)p, (__m256i)lanes(rest), (__m256i)v);
}
FN V keepPart(V v, V other, long rest) { return lanes(rest) ? v : other; }
FN void stream(void* p, V v) { _mm256_stream_si256((__m256i*)p, (__m256i)v); }
#else
FN V loadPart(const E* p, long rest) { V v{}; for (int i = 0; i < W; i++) if (i < rest) v[i] = p[i]; return v; }
FN void storePart(E* p, V v, long rest) { for (int i = 0; i < W; i++) if (i < rest) p[i] = v[i]; }
FN V keepPart(V v, V other, long rest) { return iota() < SignedElement(rest) ? v : other; }
FN void stream(void* p, V v) { store(p, v); }
#endif

// 1 where the comparison (all bits of an element, or none) holds, else 0.
FN V truth(Vi holds) { return (V)(holds & (Vi)all(1)); }
}  // namespace
}  // namespace dvm::DVM_TARGET
