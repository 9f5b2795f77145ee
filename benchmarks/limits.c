// What the machine can do, measured beside every run: a triad a = b + s * c with non-temporal and with usual stores, a read,
// and the peak of fused multiply-adds. Compiled by limits.py with -O3 -march=native.
#include <immintrin.h>
#include <stddef.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

typedef float V __attribute__((vector_size(32)));
#ifdef __AVX512F__
#define COPIED 64
#define stream_vector(p, v) _mm512_stream_si512((__m512i*)(p), (__m512i)(v))
#else
#define COPIED 32
#define stream_vector(p, v) _mm256_stream_si256((__m256i*)(p), (__m256i)(v))
#endif

static void triad(float* a, const float* b, const float* c, size_t n, int streams) {
  const V s = {3, 3, 3, 3, 3, 3, 3, 3};
  for (size_t i = 0; i < n; i += 8) {
    const V v = *(const V*)(b + i) + s * *(const V*)(c + i);
    if (streams) _mm256_stream_ps(a + i, (__m256)v);
    else *(V*)(a + i) = v;
  }
  if (streams) _mm_sfence();
}

// Seconds of one pass, the least of `reps`.
double time_triad(float* a, const float* b, const float* c, size_t n, int streams, int reps) {
  double least = 1e9;
  for (int r = 0; r < reps; r++) {
    const double begin = now();
    triad(a, b, c, n, streams);
    const double spent = now() - begin;
    if (spent < least) least = spent;
  }
  return least;
}

static void copy(char* to, const char* from, size_t bytes, int streams) {
  typedef long long C __attribute__((vector_size(COPIED), aligned(1)));
  size_t i = 0;
  for (; i + 4 * COPIED <= bytes; i += 4 * COPIED)
    for (int j = 0; j < 4; j++) {
      const C v = *(const C*)(from + i + j * COPIED);
      if (streams) stream_vector(to + i + j * COPIED, v);
      else *(C*)(to + i + j * COPIED) = v;
    }
  for (; i < bytes; i++) to[i] = from[i];
  if (streams) _mm_sfence();
}

// Nanoseconds a copy, the mean of `reps` one after another; both ends begin at a cache line.
double time_copy(char* to, const char* from, size_t bytes, int streams, int reps) {
  copy(to, from, bytes, streams);
  const double begin = now();
  for (int r = 0; r < reps; r++) {
    copy(to, from, bytes, streams);
    __asm__ volatile("" ::: "memory");
  }
  return 1e9 * (now() - begin) / reps;
}

double time_read(const float* a, size_t n, int reps) {
  double least = 1e9;
  volatile float keep = 0;
  for (int r = 0; r < reps; r++) {
    const double begin = now();
    V sum[8] = {0};
    for (size_t i = 0; i + 64 <= n; i += 64)
      for (int j = 0; j < 8; j++) sum[j] += *(const V*)(a + i + 8 * j);
    for (int j = 1; j < 8; j++) sum[0] += sum[j];
    keep += sum[0][0];
    const double spent = now() - begin;
    if (spent < least) least = spent;
  }
  return least;
}

#ifdef __AVX512F__
#define WIDE 16
typedef float W __attribute__((vector_size(64)));
#else
#define WIDE 8
typedef float W __attribute__((vector_size(32)));
#endif
// Floating-point operations a second: ten independent chains, in registers.
double fma_peak(int reps) {
  W a = {1}, b = {2}, c = {3}, d = {4}, e = {5}, f = {6}, g = {7}, h = {8}, i = {9}, j = {10};
  double best = 0;
  for (int r = 0; r < reps; r++) {
    const double begin = now();
    for (int k = 0; k < 20000; k++) {
      a = a * 0.999f + 0.001f, b = b * 0.999f + 0.001f, c = c * 0.999f + 0.001f, d = d * 0.999f + 0.001f;
      e = e * 0.999f + 0.001f, f = f * 0.999f + 0.001f, g = g * 0.999f + 0.001f, h = h * 0.999f + 0.001f;
      i = i * 0.999f + 0.001f, j = j * 0.999f + 0.001f;
    }
    const double rate = 20000.0 * 10 * WIDE * 2 / (now() - begin);
    if (rate > best) best = rate;
  }
  const W sum = a + b + c + d + e + f + g + h + i + j;
  volatile float keep = sum[0];
  (void)keep;
  return best;
}
