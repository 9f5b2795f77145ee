// Functions on vectors of doubles, for the instruction set that this file is compiled for.
//
// Each has two forms. SINGLE takes float32 values and gives what is rounded to float32 once, at the end: its relative
// error is near 2^-33, so results are within 0.51 ULP or so, and no float32 is subnormal or too large on the way. DOUBLE
// takes any float64, and its steps carry enough bits for 2 ULP or so. Both are measured: docs/accuracy.md.
//
// Every result has the same bits on every instruction set: each fma is explicit, the order of all terms is shared, and
// what few lanes need (huge angles, huge quotients) is done one lane at a time by the same integer arithmetic. NaN counts
// as positive wherever a sign is asked for, because outputs hold the canonical one: so fused and unfused agree.
// Where the terms of a gamma function cancel, both carry 100 bits, as pairs; the zeros of its logarithm are tabled.
//
// Sources: reduction of huge angles, Payne and Hanek 1983; erfc, Shepherd and Laframboise 1981; gamma by Stirling's series
// with a shift. Polynomials: scripts/polynomials.
#pragma once
#include "polynomials.h"
#if defined(DVM_IS_float64)
#include "vec_float64.h"
#else
#include "vec.h"
#endif

namespace dvm::DVM_TARGET {
namespace {
enum Precision { SINGLE, DOUBLE };
constexpr double INF = __builtin_inf(), NOT_A_NUMBER = __builtin_nan("");

// ---- primitives: those of vec_float64.h, which is not there where the compute dtype is float32 --------------------------
#if defined(DVM_IS_float64)
constexpr int WD = W;
using D = V;
using Di = Vi;
using Du = Vu;
#else
constexpr int WD = W / 2;
typedef double D __attribute__((vector_size(8 * WD)));
typedef int64_t Di __attribute__((vector_size(8 * WD)));
typedef uint64_t Du __attribute__((vector_size(8 * WD)));
FN D all(double k) { return k - D{}; }
FN D bits(Di i) { return (D)i; }
FN Di bits(D v) { return (Di)v; }
FN D absv(D x) { return bits(bits(x) & INT64_MAX); }
#if defined(__AVX512F__)
FN D fma(D a, D b, D c) { return _mm512_fmadd_pd(a, b, c); }
FN D nfma(D a, D b, D c) { return _mm512_fnmadd_pd(a, b, c); }
FN D sqrtv(D a) { return _mm512_sqrt_pd(a); }
template <int MODE> FN D roundv(D a) { return _mm512_roundscale_pd(a, MODE | _MM_FROUND_NO_EXC); }
#elif defined(__AVX2__)
FN D fma(D a, D b, D c) { return _mm256_fmadd_pd(a, b, c); }
FN D nfma(D a, D b, D c) { return _mm256_fnmadd_pd(a, b, c); }
FN D sqrtv(D a) { return _mm256_sqrt_pd(a); }
template <int MODE> FN D roundv(D a) { return _mm256_round_pd(a, MODE | _MM_FROUND_NO_EXC); }
#else
[[gnu::noinline]] inline D fma(D a, D b, D c) { for (int i = 0; i < WD; i++) c[i] = __builtin_fma(a[i], b[i], c[i]); return c; }
FN D nfma(D a, D b, D c) { return fma(-a, b, c); }
FN D sqrtv(D a) { for (int i = 0; i < WD; i++) a[i] = __builtin_sqrt(a[i]); return a; }
template <int MODE> FN D roundv(D a) {
  for (int i = 0; i < WD; i++)
    a[i] = MODE == 0   ? __builtin_rint(a[i])
           : MODE == 1 ? __builtin_floor(a[i])
           : MODE == 2 ? __builtin_ceil(a[i])
                       : __builtin_trunc(a[i]);
  return a;
}
#endif
#endif
typedef float Floats __attribute__((vector_size(4 * WD)));
FN D loadD(const double* p) { D v; memcpy(&v, p, sizeof v); return v; }
FN D loadD(const float* p) { Floats h; memcpy(&h, p, sizeof h); return __builtin_convertvector(h, D); }
FN void storeD(double* p, D v) { memcpy(p, &v, sizeof v); }
FN void storeD(float* p, D v) { const Floats h = __builtin_convertvector(v, Floats); memcpy(p, &h, sizeof h); }
#if defined(__AVX512F__)
FN bool anyLane(Di x) { return _mm512_movepi64_mask((__m512i)x); }
#elif defined(__AVX2__)
FN bool anyLane(Di x) { return _mm256_movemask_pd((__m256d)x); }
#else
FN bool anyLane(Di x) { for (int i = 0; i < WD; i++) if (x[i]) return true; return false; }
#endif
FN Di signBit(D x) { return bits(x) & INT64_MIN; }
FN D flip(D x, Di sign) { return bits(bits(x) ^ sign); }
FN Di isNaN(D x) { return x != x; }
FN D nearest(D x) { return roundv<ROUND_EVEN>(x); }
FN D clamp(D x, double low, double high) { return x < low ? all(low) : x > high ? all(high) : x; }  // NaN stays
template <size_t N> FN D poly(const double (&c)[N], D x) {
  D q = all(c[0]);
#pragma GCC unroll 32
  for (size_t i = 1; i < N; i++) q = fma(q, x, all(c[i]));
  return q;
}
#define POLY(name, x) (P == SINGLE ? poly(polynomial::name##_SINGLE, x) : poly(polynomial::name##_DOUBLE, x))

// 2^n, n an integer from -1022 to 1023.
FN Di integer(D n) { return bits(n + 0x1.8p52); }  // its low 51 bits are those of n
FN D power2(D n) { return bits((Di)(((Du)integer(n) << 52) + (Du)bits(all(1.0)))); }  // unsigned: NaN wraps
// a * 2^n: for a double result, rounded once; a is near 1 and |n| <= 2044. Float32 results need no second step.
template <Precision P> FN D scaled(D a, D n) {
  if (P == SINGLE) return a * power2(n);
  const D h = roundv<ROUND_DOWN>(n * 0.5);
  return a * power2(h) * power2(n - h);
}
// a + b exactly, as a sum and what rounding took from it.
struct Pair { D high, low; };
FN Pair sum(D a, D b) {
  const D s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}
FN Pair product(D a, D b) { const D p = a * b; return {p, fma(a, b, -p)}; }

// ---- exponentials -----------------------------------------------------------------------------------------------------
constexpr double LN2 = 0x1.62e42fefa39efp-1, LN2_LOW = 0x1.abc9e3b39803fp-56, LOG2_E = 0x1.71547652b82fep0,
                 LOG2_E_LOW = 0x1.777d0ffda0d24p-56;
struct Reduced { D n, r; };  // x = n ln 2 + r
FN Reduced reduceExp(D x, D low = D{}) {
  const D n = nearest(x * LOG2_E);
  return {n, nfma(n, all(LN2_LOW), nfma(n, all(LN2), x)) + low};
}
template <Precision P> FN D expm1Part(D r) { return fma(r * r, POLY(EXP, r), r); }
template <Precision P> constexpr double EXP_LIMIT = P == SINGLE ? 150 : 750;
template <Precision P> FN D expd(D x, D low = D{}) {
  const auto [n, r] = reduceExp(clamp(x, -EXP_LIMIT<P>, EXP_LIMIT<P>), low);
  return scaled<P>(1.0 + expm1Part<P>(r), n);
}
FN D expFlushed(D x) {  // the row `exp` in float64: no subnormal results
  const D y = expd<DOUBLE>(x);
  return y < 0x1p-1022 ? D{} : y;
}
template <Precision P> FN D exp2d(D x, D low = D{}) {  // 2^(x + low)
  constexpr double LIMIT = P == SINGLE ? 200 : 1100;
  x = clamp(x, -LIMIT, LIMIT);
  const D n = nearest(x), r = (x - n) + low;
  return scaled<P>(1.0 + expm1Part<P>(P == SINGLE ? r * LN2 : fma(r, all(LN2), r * LN2_LOW)), n);
}
template <Precision P> FN D expm1d(D x) {  // halves on the way: 2^1024 does not fit
  const auto [n, r] = reduceExp(clamp(x, -40, P == SINGLE ? 100 : 709.9));
  const D half = power2(n - 1.0);
  D y;
  if (P == SINGLE) {
    y = 2.0 * fma(expm1Part<P>(r), half, half - 0.5);
  } else {  // near n = 1 the terms cancel
    const Pair s = sum(half - 0.5, r * half);
    y = 2.0 * (s.high + fma(r * half * r, POLY(EXP, r), s.low));
  }
  return x == 0.0 ? x : x > 709.9 ? all(INF) : y;
}
// e^|x| / 4 = high (1 + c + s), e^-|x| / 4 = low (1 + c - s).
struct Hyperbolic { D high, low, c, s; };  // c without its 1
template <Precision P> FN Hyperbolic hyperbolic(D x) {
  const auto [n, r] = reduceExp(clamp(absv(x), 0, P == SINGLE ? 100 : 710.7));
  const D z = r * r, m = n > 900.0 ? all(900.0) : n;
  return {power2(n - 2.0), power2(-2.0 - m), z * POLY(COSH, z), fma(r * z, POLY(SINH, z), r)};
}
template <Precision P> FN D sinhd(D x) {
  const auto [high, low, c, s] = hyperbolic<P>(x);
  const D k = high - low;
  return flip(2.0 * (k + fma(s, high + low, c * k)), signBit(x));
}
template <Precision P> FN D coshd(D x) {
  const auto [high, low, c, s] = hyperbolic<P>(x);
  const D k = high + low;
  return 2.0 * (k + fma(s, high - low, c * k));
}
template <Precision P> FN D tanhd(D x) {
  const D t = expm1d<P>(clamp(absv(x), 0, 20) * -2.0);
  return bits(bits(absv(t / (t + 2.0))) | signBit(x));
}
template <Precision P> FN D sigmoidd(D x) {
  const D t = expd<P>(-absv(x));
  return (x < 0.0 ? t : all(1.0)) / (1.0 + t);
}

// ---- logarithms -------------------------------------------------------------------------------------------------------
// x = 2^e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for a positive normal x.
struct Logarithm { D e, f; };
FN Logarithm splitLog(D x) {
  constexpr int64_t ROOT = 0x3fe6a09e667f3bcd, ONE = 0x3ff0000000000000;
  const Du i = (Du)bits(x) + uint64_t(ONE - ROOT);
  const D e = bits((Di)((i >> 52) | 0x4330000000000000ull)) - (0x1p52 + 1023);
  return {e, bits((Di)(i & 0x000fffffffffffffull) + ROOT) - 1.0};
}
// log(1 + f) = f + low.
template <Precision P> FN D logLow(D f) {
  if (P == SINGLE) return f * f * poly(polynomial::LOG_SINGLE, f);
  const D s = f / (f + 2.0), z = s * s;
  return s * fma(z, POLY(ATANH, z), -f);
}
FN D logLimits(D y, D x) {  // what a logarithm is where x is not a positive number
  y = x < INF ? y : x;
  y = x == 0.0 ? all(-INF) : y;
  return x < 0.0 ? all(NOT_A_NUMBER) : y;
}
// Calls part(e, f, low) for log x = e ln 2 + f + low; subnormal numbers of DOUBLE are scaled first.
template <Precision P, class F> FN D anyLog(D x, F part) {
  if (P == SINGLE) {
    const auto [e, f] = splitLog(x);
    return logLimits(part(e, f, logLow<P>(f)), x);
  }
  const Di tiny = x < 0x1p-1022;
  auto [e, f] = splitLog(tiny ? x * 0x1p54 : x);
  e = tiny ? e - 54.0 : e;
  return logLimits(part(e, f, logLow<P>(f)), x);
}
FN D naturalLog(D e, D f, D low) {
  const Pair s = sum(e * LN2, f);  // what e * LN2 rounds off is in the fma below
  return s.high + (low + (s.low + fma(e, all(LN2_LOW), fma(e, all(LN2), -(e * LN2)))));
}
template <Precision P> FN D logd(D x) {
  return anyLog<P>(x, [](D e, D f, D low) __attribute__((always_inline)) { return naturalLog(e, f, low); });
}
template <Precision P> FN D log2d(D x) {
  return anyLog<P>(x, [](D e, D f, D low) __attribute__((always_inline)) {
    if (P == SINGLE) return fma(f + low, all(LOG2_E), e);
    const Pair p = product(f, all(LOG2_E)), s = sum(e, p.high);
    return s.high + (s.low + fma(low, all(LOG2_E), fma(f, all(LOG2_E_LOW), p.low)));
  });
}
template <Precision P> FN D log10d(D x) {
  constexpr double LOG10_E = 0x1.bcb7b1526e50ep-2, LOG10_E_LOW = 0x1.95355baaafad3p-57, LOG10_2 = 0x1.34413509f79ffp-2,
                   LOG10_2_LOW = -0x1.9dc1da994fd21p-59;
  return anyLog<P>(x, [](D e, D f, D low) __attribute__((always_inline)) {
    if (P == SINGLE) return fma(f + low, all(LOG10_E), e * LOG10_2);
    const Pair p = product(f, all(LOG10_E)), q = product(e, all(LOG10_2)), s = sum(q.high, p.high);
    return s.high + (s.low + fma(low, all(LOG10_E), fma(f, all(LOG10_E_LOW), p.low) + fma(e, all(LOG10_2_LOW), q.low)));
  });
}
template <Precision P> FN D log1pd(D x) {  // log(u + c), u + c = 1 + x exactly
  const auto [u, c] = sum(all(1.0), x);
  const auto [e, f] = splitLog(u);
  D y = P == SINGLE ? fma(e, all(LN2), f + logLow<P>(f)) + (x < 1.0 ? c : D{}) : naturalLog(e, f, logLow<P>(f) + c / u);
  y = x < INF ? y : x;
  y = x == 0.0 ? x : x == -1.0 ? all(-INF) : y;
  return x < -1.0 ? all(NOT_A_NUMBER) : y;
}
// Of a positive normal number, where no part of a result of ULP size is lost in the sum: for float32 results. DOUBLE has
// all bits in the absolute sense, for terms that may cancel.
template <Precision P> FN D logOfNormal(D x, D low = D{}) {
  const auto [e, f] = splitLog(x);
  return fma(e, all(LN2), f + (f * f * POLY(LOG, f) + low));
}
template <Precision P> FN D asinhd(D x) {
  const D a = absv(x);
  D y;
  if (P == SINGLE) {
    const D z = a * a;
    y = a < 0.25 ? fma(a * z, poly(polynomial::ASINH_SMALL_SINGLE, z), a) : logOfNormal<P>(a + sqrtv(z + 1.0));
    y = a < INF ? y : a;
  } else {
    const D b = a < 0x1p28 ? a : all(0x1p28);
    y = log1pd<P>(b + b * b / (1.0 + sqrtv(fma(b, b, all(1.0)))));
    y = a < 0x1p28 ? y : logd<P>(a) + LN2;
  }
  return flip(y, signBit(x));
}
template <Precision P> FN D acoshd(D x) {
  D y;
  if (P == SINGLE) {
    y = x < INF ? logOfNormal<P>(x + sqrtv(fma(x, x, all(-1.0)))) : x;
  } else {
    const D t = (x < 0x1p28 ? x : all(0x1p28)) - 1.0;
    y = x < 0x1p28 ? log1pd<P>(t + sqrtv(fma(t, t, t + t))) : logd<P>(x) + LN2;
  }
  return x < 1.0 ? all(NOT_A_NUMBER) : y;
}
template <Precision P> FN D atanhd(D x) {
  const D a = absv(x), t = a + a;
  D y;
  if (P == SINGLE) {
    const D z = a * a;
    y = a < 0.25 ? fma(a * z, poly(polynomial::ATANH_SMALL_SINGLE, z), a) : 0.5 * logOfNormal<P>((1.0 + a) / (1.0 - a));
    y = a < 1.0 ? y : a == 1.0 ? all(INF) : all(NOT_A_NUMBER);
  } else {
    y = log1pd<P>(a < 0.5 ? t + t * a / (1.0 - a) : t / (1.0 - a)) * 0.5;
  }
  return flip(y, signBit(x));
}
FN D logaddexpd(D a, D b) {  // for float32: the terms may cancel
  const D m = a > b ? a : b;
  const auto [u, c] = sum(all(1.0), expd<DOUBLE>(-absv(a - b)));
  const D y = m + logOfNormal<DOUBLE>(u, c);
  return a == b ? a + LN2 : isNaN(a) | isNaN(b) ? all(NOT_A_NUMBER) : y;
}

// ---- angles -----------------------------------------------------------------------------------------------------------
constexpr double PI_2 = 0x1.921fb54442d18p0, PI_2_LOW = 0x1.1a62633145c07p-54, PI_2_LOWER = -0x1.f1976b7ed8fbcp-110,
                 PI = 0x1.921fb54442d18p1, PI_LOW = 0x1.1a62633145c07p-53;
struct Angle { D r, low; Di quadrant; };  // |x| = quadrant pi / 2 + r + low

// One lane: |x| 2 / pi modulo 4 from 192 bits of 2 / pi, found by the exponent of x.
[[gnu::noinline]] void reduceHuge(double x, double* r, double* low, int64_t* quadrant) {
  uint64_t u, t[3];
  memcpy(&u, &x, 8);
  const int64_t m = int64_t((u & 0x000fffffffffffffull) | 0x0010000000000000ull), e = int64_t(u >> 52 & 0x7ff) - 1075;
  const int64_t first = e - 2 + 64, word = first >> 6, shift = first & 63;  // bits before count in multiples of 4
  for (int i = 0; i < 3; i++) {
    const uint64_t* p = polynomial::TWO_OVER_PI + word + i;
    t[i] = shift ? p[0] << shift | p[1] >> (64 - shift) : p[0];
  }
  const unsigned __int128 p2 = (unsigned __int128)m * t[2], p1 = (unsigned __int128)m * t[1] + uint64_t(p2 >> 64);
  const uint64_t p0 = m * t[0] + uint64_t(p1 >> 64);
  const unsigned __int128 fraction = ((unsigned __int128)p0 << 66) | (unsigned __int128)uint64_t(p1) << 2 | uint64_t(p2) >> 62;
  const __int128 f = (__int128)fraction;  // of a quadrant, in units of 2^-128, from -1/2 to 1/2
  *quadrant = int64_t(p0 >> 62) + (f < 0);
  const double high = double(f), rest = double(f - (__int128)high), scale = 0x1p-128;
  *r = high * scale * PI_2;
  *low = __builtin_fma(high * scale, PI_2, -*r) + (high * scale * PI_2_LOW + rest * scale * PI_2);
}
template <Precision P> FN Angle reduceAngle(D x) {
  constexpr double LIMIT = P == SINGLE ? 0x1p44 : 0x1p20;  // n is exact, and the products below lose nothing that counts
  x = absv(x);
  const D n = nearest(x * 0x1.45f306dc9c883p-1), a = nfma(n, all(PI_2), x);
  Angle y{a, D{}, integer(n)};
  if (P == SINGLE) {
    y.r = nfma(n, all(PI_2_LOWER), nfma(n, all(PI_2_LOW), a));
  } else {
    const Pair p = product(n, all(PI_2_LOW)), s = sum(a, -p.high);
    const D low = nfma(n, all(PI_2_LOWER), s.low - p.low);
    y.r = s.high + low;
    y.low = (s.high - y.r) + low;
  }
  if (const Di huge = (x > LIMIT) & (x < INF); __builtin_expect(anyLane(huge), 0)) {
    double in[WD], r[WD], low[WD];
    int64_t quadrant[WD];
    memcpy(in, &x, sizeof x), memcpy(r, &y.r, sizeof x), memcpy(low, &y.low, sizeof x), memcpy(quadrant, &y.quadrant, sizeof x);
    for (int i = 0; i < WD; i++)
      if (in[i] > LIMIT && in[i] < INF) reduceHuge(in[i], r + i, low + i, quadrant + i);
    memcpy(&y.r, r, sizeof x), memcpy(&y.low, low, sizeof x), memcpy(&y.quadrant, quadrant, sizeof x);
  }
  return y;
}
struct SineCosine { D sine, cosine; };  // of r + low, |r| <= pi / 4
template <Precision P> FN SineCosine sineCosine(D r, D low) {
  const D z = r * r, h = z * 0.5;
  if (P == SINGLE) return {fma(r * z, POLY(SIN, z), r), fma(z * z, POLY(COS, z), 1.0 - h)};
  const D s = r + fma(r * z, POLY(SIN, z), nfma(low, h, low));
  const D w = 1.0 - h, c = w + (((1.0 - w) - h) + fma(z * z, POLY(COS, z), -(r * low)));
  return {s, c};
}
FN Di odd(Di quadrant) { return -(quadrant & 1) != 0; }
FN Di bitOne(Di quadrant) { return (Di)((Du)(quadrant & 2) << 62); }  // bit 1 as the sign bit
template <Precision P> FN D sind(D x) {
  const auto [r, low, q] = reduceAngle<P>(x);
  const auto [s, c] = sineCosine<P>(r, low);
  return flip(odd(q) ? c : s, bitOne(q) ^ signBit(x));
}
template <Precision P> FN D cosd(D x) {
  const auto [r, low, q] = reduceAngle<P>(x);
  const auto [s, c] = sineCosine<P>(r, low);
  return flip(odd(q) ? s : c, bitOne((Di)((Du)q + 1)));  // unsigned: of an infinity q is anything
}
template <Precision P> FN D tand(D x) {
  const auto [r, low, q] = reduceAngle<P>(x);
  const auto [s, c] = sineCosine<P>(r, low);
  const Di swap = odd(q);
  return flip((swap ? c : s) / (swap ? s : c), (swap & INT64_MIN) ^ signBit(x));
}
// The angle of (x, y) for y, x >= 0, turned by pi - . where `back`: c pi / 4 +- atan(t), |t| <= tan(pi / 8).
template <Precision P> FN D angleOf(D y, D x, Di back) {
  const Di steep = y > x;
  const D small = steep ? x : y, large = steep ? y : x;
  const Di middle = small > large * 0x1.a827999fcef32p-2;
  const D num = middle ? small - large : small, den = middle ? small + large : large;
  const D t = num / (den == 0.0 ? all(1.0) : den), z = t * t, tail = t * z * POLY(ATAN, z);
  D c = middle ? all(1.0) : D{};
  c = steep ? 2.0 - c : c;
  c = back ? 4.0 - c : c;
  const Di sign = (steep ^ back) & INT64_MIN;
  return fma(c, all(PI_2 / 2), flip(t, sign)) + fma(c, all(PI_2_LOW / 2), flip(tail, sign));
}
template <Precision P> FN D atand(D x) {
  const D a = absv(x), y = angleOf<P>(a < 0x1p60 ? a : all(0x1p60), all(1.0), Di{});
  return isNaN(x) ? x : flip(y, signBit(x));
}
template <Precision P> FN D atan2d(D y, D x) {
  D a = absv(y), b = absv(x);
  const Di both = (a == INF) & (b == INF);
  a = both ? all(1.0) : a == INF ? all(1.0) : b == INF ? D{} : a;
  b = both ? all(1.0) : b == INF ? all(1.0) : absv(y) == INF ? D{} : b;
  if (P == DOUBLE) {  // so that sums do not overflow and quotients lose nothing
    const D m = a > b ? a : b, k = m > 0x1p900 ? all(0x1p-200) : m < 0x1p-700 ? all(0x1p300) : all(1.0);
    a *= k, b *= k;
  }
  const D r = angleOf<P>(a, b, signBit(x) != 0);
  return isNaN(x) | isNaN(y) ? all(NOT_A_NUMBER) : flip(r, signBit(y));
}
// asin s = s + tail for s = |x| or, above 1/2, s = sqrt((1 - |x|) / 2).
struct HalfAngle { D s, tail; Di large; };
template <Precision P> FN HalfAngle halfAngle(D x) {
  const D a = absv(x);
  const Di large = a > 0.5;
  const D z = large ? (1.0 - a) * 0.5 : a * a, s = large ? sqrtv(z) : a;
  return {s, s * z * POLY(ASIN, z), large};
}
template <Precision P> FN D asind(D x) {
  const auto [s, tail, large] = halfAngle<P>(x);
  const D h = PI_2 - 2.0 * s, l = (PI_2 - h) - 2.0 * s;
  return flip(large ? h + (l + (PI_2_LOW - 2.0 * tail)) : s + tail, signBit(x));
}
template <Precision P> FN D acosd(D x) {
  const auto [s, tail, large] = halfAngle<P>(x);
  const Di negative = signBit(x);
  const D from = negative != 0 ? all(PI) : D{}, turn = flip(2.0 * s, negative), h = from + turn, l = (from - h) + turn;
  const D outer = h + (l + (flip(2.0 * tail, negative) + (negative != 0 ? all(PI_LOW) : D{})));
  const D v = flip(s, negative), g = PI_2 - v, m = (PI_2 - g) - v;
  return large ? outer : g + (m + (PI_2_LOW - flip(tail, negative)));
}

// ---- error function, cube root, gamma ---------------------------------------------------------------------------------
template <Precision P> constexpr double ERFC_FROM = P == SINGLE ? 1 : 0.5;  // below, 1 - erf loses nothing
template <Precision P> FN D erfSmall(D x, D z) { return fma(x, POLY(ERF, z), x); }
template <Precision P> FN D erfcLarge(D a) {  // from ERFC_FROM on
  constexpr double LIMIT = P == SINGLE ? 10.5 : 27.3;
  a = a > LIMIT ? all(LIMIT) : a;
  const D plus = a + 4.0, twice = fma(a, all(2.0), all(1.0));
  if (P == SINGLE) {
    const D one = 1.0 / (plus * twice);
    return expd<P>(-(a * a)) * (POLY(ERFC, (a - 4.0) * twice * one) * plus * one);
  }
  const D q = POLY(ERFC, (a - 4.0) / plus) / twice;
  const Pair p = product(a, a);  // in two steps: the last may give a subnormal number
  const auto [n, r] = reduceExp(-p.high, -p.low);
  return scaled<P>(fma(expm1Part<P>(r), q, q), n);
}
template <Precision P> FN D erfd(D x) {
  const D a = absv(x), b = a < 1.0 ? all(1.0) : a;
  return a < 1.0 ? erfSmall<P>(x, x * x) : isNaN(x) ? x : flip(1.0 - erfcLarge<P>(b), signBit(x));
}
template <Precision P> FN D erfcd(D x) {
  const D a = absv(x), t = erfcLarge<P>(a < ERFC_FROM<P> ? all(ERFC_FROM<P>) : a);
  return a < ERFC_FROM<P> ? 1.0 - erfSmall<P>(x, x * x) : isNaN(x) ? x : x < 0.0 ? 2.0 - t : t;
}
template <Precision P> FN D cbrtd(D x) {
  D a = absv(x), back = all(1.0);
  if (P == DOUBLE) {
    const Di tiny = a < 0x1p-1022;
    a = tiny ? a * 0x1p54 : a, back = tiny ? all(0x1p-18) : back;
  }
  const Du i = (Du)bits(a);
  const D e = bits((Di)((i >> 52) | 0x4330000000000000ull)) - (0x1p52 + 1023);
  const D n = roundv<ROUND_DOWN>((e + 0.5) * (1.0 / 3)), step = nfma(n, all(3.0), e);  // 0, 1 or 2
  const D mantissa = bits((Di)(i & 0x000fffffffffffffull) + 0x3ff0000000000000);
  const D m = mantissa * (step == 0.0 ? all(1.0) : step == 1.0 ? all(2.0) : all(4.0));
  D r = poly(polynomial::RCBRT_SINGLE, mantissa) * (step == 0.0   ? all(1.0)
                                                    : step == 1.0 ? all(0x1.965fea53d6e3dp-1)
                                                                  : all(0x1.428a2f98d728bp-1));
  constexpr int STEPS = P == SINGLE ? 1 : 2;  // Newton on r = m^(-1/3)
  for (int k = 0; k < STEPS; k++) r = fma(r * (1.0 / 3), nfma(m * r * r, r, all(1.0)), r);
  D y = m * r * r;
  if (P == DOUBLE) {
    const Pair p = product(y, y);
    y = fma(nfma(p.low, y, nfma(p.high, y, m)), r * r * (1.0 / 3), y);
  }
  y = flip(y * power2(n) * back, signBit(x));
  return (a == 0.0) | !(a < INF) ? x : y;
}
FN D sinPi(D x) {  // |sin(pi x)|
  const D n = nearest(x), r = absv(x - n);  // up to 1/2
  const auto [s, c] = sineCosine<DOUBLE>((r > 0.25 ? 0.5 - r : r) * PI, D{});
  return r > 0.25 ? c : s;
}
constexpr double STIRLING[] = {1. / 156, -691. / 360360, 1. / 1188, -1. / 1680, 1. / 1260, -1. / 360, 1. / 12};
// For float32 results: log |gamma(a)|, a > 0. Below 3 a polynomial around its zeros at 1 and 2, above Stirling's
// series, from 8 on directly.
FN D logGammaPositive(D a) {
  const Di low = a < 3.0, first = a < 1.0, shifted = a < 8.0;
  const D y = first ? a + 1.0 : a;
  const D p = a * (a + 1.0) * ((a + 2.0) * (a + 3.0)) * (a + 4.0);
  const D w = shifted ? a + 5.0 : a, v = 1.0 / w;
  const D lost = logOfNormal<DOUBLE>(low ? (first ? a : all(1.0)) : shifted ? p : all(1.0));
  const D series = fma(w - 0.5, logOfNormal<DOUBLE>(w), 0x1.d67f1c864beb5p-1 - w) + v * poly(STIRLING, v * v);
  const D near = (y - 1.0) * (y - 2.0) * poly(polynomial::LGAMMA_DOUBLE, y - 2.0);
  return ((low ? near : series) - lost) + 0.0;  // +0 at 1 and 2
}
FN D logGammaSingle(D x) {
  const D a = absv(x), positive = logGammaPositive(a);
  D y = positive;
  if (anyLane(x <= 0.0)) {
    const D reflected = 0x1.250d048e7a1bdp0 - logOfNormal<DOUBLE>(a * sinPi(a)) - positive;
    y = x < 0.0 ? (a < 0x1p-60 ? -logOfNormal<DOUBLE>(a) : reflected) : positive;
    y = (x <= 0.0) & (nearest(x) == x) ? all(INF) : y;
  }
  return a == INF ? all(INF) : y;
}
constexpr double DIGAMMA[] = {-1. / 12, 691. / 32760, -1. / 132, 1. / 240, -1. / 252, 1. / 120, -1. / 12};
// For float32 results, of a > 0: the series from 8 on, and below the recurrence as one fraction.
FN D digammaPositive(D a) {
  const Di shifted = a < 8.0;
  D p = a, q = all(1.0);  // q / p = sum of 1 / (a + k), k = 0..7
#pragma GCC unroll 8
  for (int k = 1; k < 8; k++) q = fma(q, a + double(k), p), p = p * (a + double(k));
  const D w = shifted ? a + 8.0 : a, v = 1.0 / w, z = v * v;
  const D series = logOfNormal<DOUBLE>(w) + fma(z, poly(DIGAMMA, z), v * -0.5);
  return series - (shifted ? q / p : D{});
}
FN D digammaSingle(D x) {
  const Di reflect = x < 0.0;
  const D y = digammaPositive(reflect ? 1.0 - x : x);
  D z = y;
  if (anyLane(x <= 0.0)) {
    const D r = x - nearest(x), a = absv(r), turned = a > 0.25 ? a - 0.5 : a;
    const auto [s, c] = sineCosine<DOUBLE>(turned * PI, D{});
    const D cotangent = flip(a > 0.25 ? -s / c : c / s, signBit(r));
    z = reflect ? y - PI * cotangent : y;
    z = x == 0.0 ? flip(all(INF), ~signBit(x) & INT64_MIN) : reflect & (r == 0.0) ? all(NOT_A_NUMBER) : z;
  }
  return x == INF ? x : x == -INF ? all(NOT_A_NUMBER) : z;
}

// ---- gamma functions of float64, on pairs of 2^-102 or so ----------------------------------------------------------------
constexpr double GAMMA_FROM = 24, REFLECTED_FROM = -34, ZERO_WIDTH = 0x1p-20;
FN Pair settled(D high, D low) { const D s = high + low; return {s, low - (s - high)}; }
FN Pair plus(Pair a, Pair b) { const Pair s = sum(a.high, b.high); return settled(s.high, s.low + (a.low + b.low)); }
FN Pair times(Pair a, Pair b) {
  const Pair p = product(a.high, b.high);
  return settled(p.high, fma(a.low, b.high, fma(a.high, b.low, p.low)));
}
FN Pair times(Pair a, D b) { const Pair p = product(a.high, b); return settled(p.high, fma(a.low, b, p.low)); }
FN Pair reciprocal(Pair a) {
  const D r = 1.0 / a.high;
  return {r, r * nfma(r, a.low, nfma(r, a.high, all(1.0)))};
}
FN Pair negative(Pair a) { return {-a.high, -a.low}; }
FN Pair chosen(Di which, Pair a, Pair b) { return {which ? a.high : b.high, which ? a.low : b.low}; }
// The first `EXACT` coefficients, lowest first, meet pairs; what the others give is below 2^-50 of the sum.
template <int EXACT, size_t N> [[gnu::noinline]] Pair pairPoly(const double (&c)[N][2], Pair x) {
  D q{};
  for (int i = N - 1; i >= EXACT; i--) q = fma(q, x.high, all(c[i][0]));
  Pair y{q, D{}};
  for (int i = EXACT - 1; i >= 0; i--) y = plus(Pair{all(c[i][0]), all(c[i][1])}, times(y, x));
  return y;
}
// Of a positive normal number.
[[gnu::noinline]] inline Pair logPair(Pair x) {
  const auto [e, f] = splitLog(x.high);
  const D half = roundv<ROUND_DOWN>(e * -0.5), low = x.low * power2(half) * power2(-e - half);
  const Pair m = settled(f, low), s = times(m, reciprocal(plus(Pair{all(2.0), D{}}, m)));
  const Pair y = times(s, pairPoly<11>(polynomial::ATANH_PAIRS, times(s, s)));
  const Pair n = product(e, all(LN2));
  return plus(settled(n.high, fma(e, all(LN2_LOW), n.low)), y);
}
// log |gamma(x)|, x > REFLECTED_FROM: Stirling's series from GAMMA_FROM on, below it after steps of one.
FN Pair logGammaPair(D x) {
  constexpr double LOG = 0x1.acfe390c97d69p-2, LOG_LOW = 0x1.3494bc9001442p-56;  // (log(2 pi) - 1) / 2
  Pair w{x, D{}}, p{all(1.0), D{}};
  for (double step = 1;; step++) {
    const Di small = w.high < GAMMA_FROM;
    if (!anyLane(small)) break;
    p = chosen(small, times(p, w), p);
    w = chosen(small, sum(all(step), x), w);
  }
  const Di sign = signBit(p.high);
  const Pair v = reciprocal(w), lost = logPair({flip(p.high, sign), flip(p.low, sign)}), one{all(-1.0), D{}}, half{all(-0.5), D{}};
  const Pair series = plus(times(v, pairPoly<7>(polynomial::STIRLING_PAIRS, times(v, v))), {all(LOG), all(LOG_LOW)});
  const Pair y = plus(times(plus(w, half), plus(logPair(w), one)), plus(series, negative(lost)));
  const Di finite = y.high < INF;  // beyond 2^1024 the steps give NaN
  return {finite ? y.high : all(INF), finite ? y.low : D{}};
}
FN double nearZero(const polynomial::Zero& zero, double x) {
  const double d = (x - zero.high) - zero.low;
  return __builtin_fma(d, zero.first, d * d * __builtin_fma(d, zero.third, zero.second));
}
// One lane: log |gamma(x)| where it is y, near 0. Zeros lie at 1, 2, left of -2, and on both sides of -3, -4, ..
FN double logGammaNearZero(double x, double y) {
  constexpr int COUNT = sizeof polynomial::LGAMMA_ZEROS / sizeof *polynomial::LGAMMA_ZEROS;
  const double n = __builtin_rint(x);
  const int at = x > 0 ? int(n) - 1 : 2 * int(-n) - 3 + (x < n);
  return at >= 0 && at < COUNT ? nearZero(polynomial::LGAMMA_ZEROS[at], x) : y;
}
FN D logGammaDouble(D x) {
  const D a = absv(x);
  const Di reflected = x < REFLECTED_FROM;
  const Pair g = logGammaPair(reflected | isNaN(x) ? a : x);
  D y = g.high + g.low;
  if (anyLane(reflected)) y = reflected ? (0x1.250d048e7a1bdp0 - logd<DOUBLE>(a * sinPi(a))) - y : y;
  if (const Di zero = absv(y) < ZERO_WIDTH; __builtin_expect(anyLane(zero), 0))
    for (int i = 0; i < WD; i++)
      if (zero[i]) y[i] = logGammaNearZero(x[i], y[i]) + 0.0;  // +0 at 1 and 2
  y = ((x <= 0.0) & (nearest(x) == x)) | (a == INF) ? all(INF) : y;
  return isNaN(x) ? x : y;
}
// pi cot(pi r), |r| <= 1/2.
FN Pair cotangentPair(D r) {
  const D a = absv(r);
  const Di turned = a > 0.25;
  const Pair pi{all(PI), all(PI_LOW)}, t = times(pi, turned ? 0.5 - a : a), z = times(t, t);
  const Pair s = times(t, pairPoly<8>(polynomial::SIN_PAIRS, z)), c = pairPoly<8>(polynomial::COS_PAIRS, z);
  const Pair y = times(pi, times(chosen(turned, s, c), reciprocal(chosen(turned, c, s))));
  return {flip(y.high, signBit(r)), flip(y.low, signBit(r))};
}
FN D digammaDouble(D x) {
  const Di reflect = x < 0.0;
  const D a = absv(x), first = reflect ? all(1.0) : D{};
  Pair w = sum(first, a), lost{};
  for (double step = 1;; step++) {
    const Di small = w.high < GAMMA_FROM;
    if (!anyLane(small)) break;
    lost = chosen(small, plus(lost, reciprocal(w)), lost);
    w = chosen(small, sum(first + step, a), w);
  }
  const Pair v = reciprocal(w), series = plus({v.high * -0.5, v.low * -0.5}, times(times(v, v), pairPoly<7>(polynomial::DIGAMMA_PAIRS, times(v, v))));
  Pair y = plus(plus(logPair(w), series), negative(lost));
  if (const D r = x - nearest(x); anyLane(reflect)) y = chosen(reflect, plus(y, negative(cotangentPair(r))), y);
  D z = y.high + y.low;
  const auto& zero = polynomial::DIGAMMA_ZERO;
  const D d = (x - zero.high) - zero.low;
  z = (absv(z) < ZERO_WIDTH) & ~reflect ? fma(d, all(zero.first), d * d * fma(d, all(zero.third), all(zero.second))) : z;
  z = a < 0x1p-60 ? -1.0 / x : z;
  z = reflect & (nearest(x) == x) ? all(NOT_A_NUMBER) : z;
  return isNaN(x) | (x == INF) ? x : z;
}
template <Precision P> FN D lgammad(D x) { return P == SINGLE ? logGammaSingle(x) : logGammaDouble(x); }
template <Precision P> FN D digammad(D x) { return P == SINGLE ? digammaSingle(x) : digammaDouble(x); }

// ---- powers -----------------------------------------------------------------------------------------------------------
// log2 of a positive number as high + low; DOUBLE: to 2^-66 or so of itself.
template <Precision P> FN Pair log2Pair(D x) {
  const Di tiny = x < 0x1p-1022;
  auto [e, f] = splitLog(P == DOUBLE ? (tiny ? x * 0x1p54 : x) : x);
  if (P == DOUBLE) e = tiny ? e - 54.0 : e;
  const Pair d = sum(all(2.0), f);
  const D s = f / d.high, z = s * s;
  if (P == SINGLE) return {fma(fma(s * z, POLY(ATANH, z), s + s), all(LOG2_E), e), D{}};
  const D s2 = nfma(s, d.low, nfma(s, d.high, f)) / d.high;  // s + s2 = f / (2 + f)
  const Pair q = product(s, s);  // (s + s2)^2 = q.high + q2
  const D q2 = fma(s + s, s2, q.low);
  // 2 s + 2/3 s q + s q^2 p: the second term needs a low part too.
  const D higher = z * poly(polynomial::ATANH_TAIL_DOUBLE, z), k = all(0x1.5555555555555p-1);
  constexpr double K_LOW = 0x1.5555555555555p-55;
  const Pair t = product(s, q.high), u = product(t.high, k);
  const D t2 = fma(s, q2, fma(s2, q.high, t.low));
  const D u2 = fma(t2, k, fma(t.high, all(K_LOW), u.low)) + t.high * higher;
  const Pair v = sum(s + s, u.high);
  const D v2 = v.low + (u2 + (s2 + s2));
  const Pair w = product(v.high, all(LOG2_E));  // to base 2
  const D w2 = fma(v2, all(LOG2_E), fma(v.high, all(LOG2_E_LOW), w.low));
  const Pair r = sum(e, w.high);
  const D low = r.low + w2, high = r.high + low;
  return {high, (r.high - high) + low};
}
template <Precision P> FN D powd(D x, D y) {  // special cases as in C
  const D a = absv(x);
  const Pair l = log2Pair<P>(a);
  D high = l.high, low{};
  high = a == 0.0 ? all(-INF) : a == INF ? all(INF) : high;
  D t = y * high;
  if (P == DOUBLE) {
    low = fma(y, high, -t) + y * l.low;
    low = absv(t) < 1100.0 ? low : D{};  // beyond, and where t is infinite
  }
  D r = exp2d<P>(t, low);
  r = (a == 1.0) & ~isNaN(y) ? all(1.0) : r;
  const D half = y * 0.5;
  const Di whole = nearest(y) == y, oddly = whole & (nearest(half) != half);
  r = (x < 0.0) & (a < INF) & ~whole ? all(NOT_A_NUMBER) : r;
  r = flip(r, signBit(x) & oddly);
  return (y == 0.0) | (x == 1.0) ? all(1.0) : isNaN(x) | isNaN(y) ? all(NOT_A_NUMBER) : r;
}
template <Precision P> FN D hypotd(D x, D y) {
  const D a = absv(x), b = absv(y);
  D r;
  if (P == SINGLE) {
    r = sqrtv(fma(a, a, b * b));
  } else {  // scaled, and one step of correction
    const D m = a > b ? a : b, o = a > b ? b : a;
    const D k = m > 0x1p500 ? all(0x1p-600) : m < 0x1p-450 ? all(0x1p600) : all(1.0), u = m * k, v = o * k;
    const Pair p = product(u, u), q = product(v, v);
    const D h = sqrtv(p.high + q.high);
    const Pair hh = product(h, h);
    const D rest = ((p.high - hh.high) + q.high) + ((p.low + q.low) - hh.low);
    r = (h + (h == 0.0 ? D{} : rest / (h + h))) * (m > 0x1p500 ? all(0x1p600) : m < 0x1p-450 ? all(0x1p-600) : all(1.0));
  }
  r = isNaN(x) | isNaN(y) ? all(NOT_A_NUMBER) : r;
  return (a == INF) | (b == INF) ? all(INF) : r;
}

FN V nextafterv(V x, V y) {
  const Vi i = bits(x), up = (x < y) == (i >= 0);  // away from zero
  const Vi next = (Vi)((Vu)i - 1 - 2 * (Vu)up);  // 1 more or less; unsigned, because lanes that are dropped may wrap
  V r = bits(x == E(0) ? (bits(y) & SIGN) | 1 : next);
  r = x == y ? y : r;
  return (x != x) | (y != y) ? all(NaN) : r;
}

// ---- remainders -------------------------------------------------------------------------------------------------------
// |x| modulo |y|, exactly.
FN D modulus(D x, D y) {
  const D a = absv(x), b = absv(y), q = roundv<ROUND_ZERO>(a / b);  // at most 1 too large below 2^51
  D r = nfma(q, b, a);
  r = r < 0.0 ? r + b : r;
  r = b == INF ? a : r;
  if (const Di far = (q > 0x1p50) & (b > 0.0) & (a < INF); __builtin_expect(anyLane(far), 0))
    for (int i = 0; i < WD; i++)
      if (far[i]) r[i] = __builtin_fmod(a[i], b[i]);
  return (a < INF) & (b > 0.0) ? r : all(NOT_A_NUMBER);
}
FN D fmodd(D x, D y) { return flip(modulus(x, y), signBit(x)); }
FN D remainderd(D x, D y) {  // the sign of y, as in Python
  const D r = flip(modulus(x, y), signBit(x));
  const Di other = ((signBit(x) ^ signBit(y)) != 0) & (r != 0.0);
  return r == 0.0 ? bits(signBit(y)) : other ? r + y : r;
}
FN D floor_divided(D x, D y) {
  const D r = flip(modulus(x, y), signBit(x)), exact = x / y;
  const Di other = ((signBit(x) ^ signBit(y)) != 0) & (r != 0.0);
  D q = nearest((x - r) / y);
  q = other ? q - 1.0 : q;
  q = q == 0.0 ? bits(signBit(exact)) : q;
  return y == 0.0 ? exact : q;
}
}  // namespace
}  // namespace dvm::DVM_TARGET
