// The yardstick: what somebody writes by hand who knows the shape of the loop. One pass over memory for each reduction
// and one for the result, everything inlined, U vectors side by side, the same mathematics as the machine (NaN stays
// NaN, IEEE division). Each kernel exists in VARIANTS: 1, 2 or 4 vectors at once; usual stores, those with prefetch, or
// non-temporal ones with prefetch. Compiled by fused.py with -O3 -march=native; needs AVX2 or AVX-512. Rows of n
// floats, m of them, outputs 64-byte aligned.
#include <immintrin.h>
#include <string.h>
#include <time.h>
#include "../dvm_rt/native/polynomials.h"

#define FN [[gnu::always_inline]] static inline
#define EACH _Pragma("GCC unroll 8") for (int j = 0; j < U; j++)

#if defined(__AVX512F__)
constexpr long W = 16;
#elif defined(__AVX2__) && defined(__FMA__)
constexpr long W = 8;
#else
#error "no AVX2"
#endif
typedef float V __attribute__((vector_size(4 * W)));
typedef int I __attribute__((vector_size(4 * W)));
constexpr float Infinity = __builtin_inff();

FN V all(float k) { return k - V{}; }
FN V fma1(V a, V b, V c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#else
  return _mm256_fmadd_ps(a, b, c);
#endif
}
FN V max1(V a, V b) {  // the second where one is NaN
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#else
  return _mm256_max_ps(a, b);
#endif
}
FN V min1(V a, V b) {
#if defined(__AVX512F__)
  return _mm512_min_ps(a, b);
#else
  return _mm256_min_ps(a, b);
#endif
}
FN V scale1(V a, V n) {  // a * 2^n
#if defined(__AVX512F__)
  return _mm512_scalef_ps(a, n);
#else
  const I i = __builtin_convertvector(n, I), h = i >> 1;
  return a * (V)((h + 127) << 23) * (V)((i - h + 127) << 23);
#endif
}
FN I iota() { I v; for (int i = 0; i < W; i++) v[i] = i; return v; }
FN V load1(const float* p, long left) {
  V v;
  if (left >= W) { memcpy(&v, p, sizeof v); return v; }
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(_bzhi_u32(0xffff, left), p);
#else
  return _mm256_maskload_ps(p, (__m256i)(iota() < (int)left));
#endif
}
FN void store1(float* p, V v, long left, bool streams) {
#if defined(__AVX512F__)
  if (left < W) _mm512_mask_storeu_ps(p, _bzhi_u32(0xffff, left), v);
  else if (streams) _mm512_stream_ps(p, v);
#else
  if (left < W) _mm256_maskstore_ps(p, (__m256i)(iota() < (int)left), v);
  else if (streams) _mm256_stream_ps(p, v);
#endif
  else memcpy(p, &v, sizeof v);
}
FN V keep1(V v, V other, long left) { return left >= W ? v : iota() < (int)left ? v : other; }
FN float fold(V v, bool largest) {
  for (int h = W / 2; h; h /= 2) {
    const V other = __builtin_shuffle(v, iota() ^ h);
    v = largest ? (v != v ? v : max1(v, other)) : v + other;
  }
  return v[0];
}

// U vectors.
template <int U> struct P { V v[U]; };
template <int U> FN P<U> of(float k) { P<U> r; EACH r.v[j] = all(k); return r; }
#define BINARY(op) \
  template <int U> FN P<U> operator op(P<U> a, P<U> b) { EACH a.v[j] = a.v[j] op b.v[j]; return a; } \
  template <int U> FN P<U> operator op(P<U> a, float b) { EACH a.v[j] = a.v[j] op b; return a; } \
  template <int U> FN P<U> operator op(float a, P<U> b) { EACH b.v[j] = a op b.v[j]; return b; }
BINARY(+) BINARY(-) BINARY(*) BINARY(/)
template <int U> FN P<U> fma(P<U> a, P<U> b, P<U> c) { EACH a.v[j] = fma1(a.v[j], b.v[j], c.v[j]); return a; }
template <int U> FN P<U> fma(P<U> a, P<U> b, float c) { EACH a.v[j] = fma1(a.v[j], b.v[j], all(c)); return a; }
template <int U> FN P<U> fma(P<U> a, float b, P<U> c) { EACH a.v[j] = fma1(a.v[j], all(b), c.v[j]); return a; }
template <int U> FN P<U> largest(P<U> a, P<U> b) {
  EACH {
    const V r = max1(a.v[j], b.v[j]);
    a.v[j] = a.v[j] != a.v[j] ? a.v[j] : r;
  }
  return a;
}
template <int U> FN P<U> abs(P<U> a) { EACH a.v[j] = (V)((I)a.v[j] & 0x7fffffff); return a; }
template <int U> FN P<U> minus_abs(P<U> a) { EACH a.v[j] = (V)((I)a.v[j] | (int)0x80000000); return a; }
template <int U> FN P<U> sign_of(P<U> x, P<U> a) { EACH a.v[j] = (V)(((I)x.v[j] & (int)0x80000000) | (I)a.v[j]); return a; }
template <int U> FN P<U> scale(P<U> a, P<U> n) { EACH a.v[j] = scale1(a.v[j], n.v[j]); return a; }
template <int U, class... C> FN P<U> horner(P<U> x, P<U> q, C... c) { ((q = fma(q, x, (float)c)), ...); return q; }

// e^x = 2^n (1 + r + q r^2); the clamps keep NaN, because x comes second.
template <int U> struct Exp { P<U> n, r, q; };
template <int U> FN Exp<U> exp_parts(P<U> x, bool negative) {
  EACH x.v[j] = max1(all(-104.f), negative ? x.v[j] : min1(all(89.f), x.v[j]));
  const P<U> n = fma(x, 1.44269504f, of<U>(0x1.8p23f)) - 0x1.8p23f;
  const P<U> r = fma(n, 2.12194440e-4f, fma(n, -0.693359375f, x));
  return {n, r, horner(r, of<U>(1.38145289e-3f), 8.3687501e-3, 4.16683927e-2, 1.66665196e-1, 4.9999994e-1)};
}
template <int U> FN P<U> exp(P<U> x, bool negative = false) {
  const auto [n, r, q] = exp_parts(x, negative);
  return scale(fma(fma(q, r, 1.f), r, 1.f), n);
}
template <int U> FN P<U> sigmoid(P<U> x) {
  const P<U> t = exp(minus_abs(x), true);
  P<U> top;
  EACH top.v[j] = x.v[j] < 0.f ? t.v[j] : all(1.f);
  return top / (t + 1.f);
}
FN V lookup1(const float (&of)[16], V i) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps((__m512i)i, _mm512_load_ps(of));
#else
  const V low = _mm256_permutevar8x32_ps(_mm256_load_ps(of), (__m256i)i);
  return _mm256_blendv_ps(low, _mm256_permutevar8x32_ps(_mm256_load_ps(of + 8), (__m256i)i), (V)((I)i << 28));
#endif
}
template <int U> FN P<U> lookup(const float (&of)[16], P<U> i) { EACH i.v[j] = lookup1(of, i.v[j]); return i; }
template <int U, int DEGREE> FN P<U> odd(const dvm::polynomial::Segments<DEGREE>& f, P<U> x) {
  P<U> t = abs(x);
  EACH t.v[j] = min1(all(f.limit), t.v[j]);
  const P<U> i = fma(t, f.per_unit, of<U>(0x1.8p23f)), u = fma(i - 0x1.8p23f, -f.width, t);
  P<U> q = lookup(f.c[0], i), first = lookup(f.c[DEGREE], i);
#pragma GCC unroll 8
  for (int k = 1; k < DEGREE; k++) q = fma(q, u, lookup(f.c[k], i));
  EACH first.v[j] = max1(first.v[j], u.v[j]);
  return sign_of(x, fma(q, u, first));
}
template <int U> FN P<U> tanh(P<U> x) { return odd(dvm::polynomial::TANH_SEGMENTS, x); }
template <int U> FN P<U> erf(P<U> x) { return odd(dvm::polynomial::ERF_SEGMENTS, x); }

// Memory, `left` floats of it; Way: 0 usual, 1 with prefetch, 2 that and non-temporal stores.
template <int U, int Way> FN P<U> load(const float* p, long left) {
  P<U> r;
  EACH r.v[j] = load1(p + j * W, left - j * W);
  if (Way) EACH __builtin_prefetch(p + j * W + 512);
  return r;
}
template <int U, int Way> FN void store(float* p, P<U> v, long left) { EACH store1(p + j * W, v.v[j], left - j * W, Way == 2); }
template <int U> FN P<U> keep(P<U> v, float other, long left) { EACH v.v[j] = keep1(v.v[j], all(other), left - j * W); return v; }
template <int U> FN float total(P<U> v) { V s = v.v[0]; for (int j = 1; j < U; j++) s += v.v[j]; return fold(s, false); }
template <int U> FN float top(P<U> v) {
  V s = v.v[0];
  for (int j = 1; j < U; j++) s = s != s ? s : max1(s, v.v[j]);
  return fold(s, true);
}
// f<vectors>(start, floats left): whole groups of U vectors, then single ones.
template <int U, class F> FN void over(long n, F f) {
  long i = 0;
  for (; i + U * W <= n; i += U * W) f.template operator()<U>(i, U * W);
  for (; i + W <= n; i += W) f.template operator()<1>(i, W);
  if (i < n) f.template operator()<1>(i, n - i);
}

typedef float* const* Args;
#define KERNEL(name) template <int U, int Way> static void name(Args a, long m, long n)
#define FLAT over<U>(m * n, [&]<int N>(long i, long left)
#define IN(k) load<N, Way>(a[k] + i, left)

KERNEL(chain8) {
  FLAT {
    const auto x = IN(0), y = IN(1), b = largest(x * y + x, y) * 0.5f;
    store<N, Way>(a[2] + i, abs(b - y) + (b * 2.f - x), left);
  });
}
KERNEL(gelu) {
  FLAT { const auto x = IN(0); store<N, Way>(a[1] + i, x * 0.5f * (erf(x * 0.70710678f) + 1.f), left); });
}
KERNEL(swiglu) {
  FLAT { const auto x = IN(0); store<N, Way>(a[2] + i, x * sigmoid(x) * IN(1), left); });
}
KERNEL(lstm) {  // gates (m, 4 n): i, f, g, o; c (m, n)
  for (long row = 0; row < m; row++) {
    const float *g = a[0] + 4 * n * row, *c = a[1] + n * row;
    float* out = a[2] + n * row;
    over<U>(n, [&]<int N>(long i, long left) {
      const auto at = [&](const float* p) { return load<N, Way>(p + i, left); };
      const auto state = sigmoid(at(g + n)) * at(c) + sigmoid(at(g)) * tanh(at(g + 2 * n));
      store<N, Way>(out + i, sigmoid(at(g + 3 * n)) * tanh(state), left);
    });
  }
}

// Reductions: U partial results; single vectors go to the first of them.
template <int U, class F> FN P<U> sums(long n, F term) {
  P<U> s = of<U>(0.f);
  over<U>(n, [&]<int N>(long i, long left) {
    const auto t = keep(term.template operator()<N>(i, left), 0.f, left);
    for (int j = 0; j < N; j++) s.v[j] += t.v[j];
  });
  return s;
}
template <int U> FN float row_top(const float* x, long n) {
  P<U> s = of<U>(-Infinity);
  over<U>(n, [&]<int N>(long i, long left) {
    const auto t = keep(load<N, 0>(x + i, left), -Infinity, left);
    for (int j = 0; j < N; j++) { const V r = max1(s.v[j], t.v[j]); s.v[j] = s.v[j] != s.v[j] ? s.v[j] : r; }
  });
  return top(s);
}
constexpr long ROW_MAX = 1 << 16;
alignas(64) static float row_of[ROW_MAX];
template <int N, int Way> FN void next_row(const float* p) { if (Way) for (int j = 0; j < N; j++) __builtin_prefetch(p + j * W); }

KERNEL(softmax) {
  for (long row = 0; row < m; row++) {
    const float* x = a[0] + n * row;
    const float k = row_top<U>(x, n);
    const float inverse = 1.f / total(sums<U>(n, [&]<int N>(long i, long left) {
      const auto e = exp(load<N, 0>(x + i, left) - k, true);
      store<N, 0>(row_of + i, e, left), next_row<N, Way>(x + n + i);
      return e;
    }));
    over<U>(n, [&]<int N>(long i, long left) {
      store<N, Way>(a[1] + n * row + i, load<N, 0>(row_of + i, left) * inverse, left);
    });
  }
}
KERNEL(layer_norm) {
  for (long row = 0; row < m; row++) {
    const float* x = a[0] + n * row;
    const float mean = total(sums<U>(n, [&]<int N>(long i, long left) { return load<N, 0>(x + i, left); })) / n;
    const float square = total(sums<U>(n, [&]<int N>(long i, long left) {
      const auto d = load<N, 0>(x + i, left) - mean;
      next_row<N, Way>(x + n + i);
      return d * d;
    }));
    const float inverse = 1.f / __builtin_sqrtf(square / n + 1e-5f);
    over<U>(n, [&]<int N>(long i, long left) {
      store<N, Way>(
          a[3] + n * row + i,
          fma((load<N, 0>(x + i, left) - mean) * inverse, load<N, 0>(a[1] + i, left), load<N, 0>(a[2] + i, left)),
          left);
    });
  }
}
KERNEL(rms_norm) {
  for (long row = 0; row < m; row++) {
    const float* x = a[0] + n * row;
    const float square = total(sums<U>(n, [&]<int N>(long i, long left) {
      const auto d = load<N, 0>(x + i, left);
      next_row<N, Way>(x + n + i);
      return d * d;
    }));
    const float inverse = 1.f / __builtin_sqrtf(square / n + 1e-6f);
    over<U>(n, [&]<int N>(long i, long left) {
      store<N, Way>(a[2] + n * row + i, load<N, 0>(x + i, left) * inverse * load<N, 0>(a[1] + i, left), left);
    });
  }
}
KERNEL(cross_entropy) {  // x, target -> one float a row
  for (long row = 0; row < m; row++) {
    const float *x = a[0] + n * row, *y = a[1] + n * row;
    const float k = row_top<U>(x, n);
    P<U> hit = of<U>(0.f);
    const float sum = total(sums<U>(n, [&]<int N>(long i, long left) {
      const auto d = load<N, 0>(x + i, left) - k, t = keep(d * load<N, 0>(y + i, left), 0.f, left);
      for (int j = 0; j < N; j++) hit.v[j] += t.v[j];
      next_row<N, Way>(x + n + i), next_row<N, Way>(y + n + i);
      return exp(d, true);
    }));
    a[2][row] = __builtin_logf(sum) - total(hit);
  }
}

typedef void (*Kernel)(Args, long, long);
#define VARIANTS(name) \
  {name<1, 0>, name<2, 0>, name<4, 0>, name<1, 1>, name<2, 1>, name<4, 1>, name<1, 2>, name<2, 2>, name<4, 2>}
static const struct { const char* name; Kernel variants[9];
} KERNELS[] = {
    {"chain of 8", VARIANTS(chain8)}, {"gelu", VARIANTS(gelu)},
    {"swiglu", VARIANTS(swiglu)},     {"lstm cell", VARIANTS(lstm)},
    {"softmax", VARIANTS(softmax)},   {"layer norm", VARIANTS(layer_norm)},
    {"rms norm", VARIANTS(rms_norm)}, {"cross entropy", VARIANTS(cross_entropy)},
};

// Seconds that so many runs of a variant of a kernel take; negative where there is none of that name, or a row is too long.
extern "C" double time_fused(const char* name, int variant, Args arrays, long m, long n, long reps) {
  for (const auto& kernel : KERNELS)
    if (!strcmp(kernel.name, name) && n <= ROW_MAX) {
      timespec begin, end;
      clock_gettime(CLOCK_MONOTONIC, &begin);
      for (long i = 0; i < reps; i++) kernel.variants[variant](arrays, m, n);
      if (variant >= 6) _mm_sfence();
      clock_gettime(CLOCK_MONOTONIC, &end);
      return double(end.tv_sec - begin.tv_sec) + 1e-9 * double(end.tv_nsec - begin.tv_nsec);
    }
  return -1;
}
