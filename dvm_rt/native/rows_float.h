// What the rows of the instruction table mean in float32 and float64. A new function: its row in isa/table.py, the function
// on vectors in vec.h (float32) and vec_float64.h, one line here; `widths=(4,)` in the row while there is none in float64.
#pragma once
#include "rows_functions.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
namespace meaning {
#define BINARY(name, result) struct name { FN static V of(V a, V x) { return result; } };
BINARY(mov, x)
BINARY(add, a + x)
BINARY(sub, a - x)
BINARY(rsub, x - a)
BINARY(mul, a * x)
BINARY(div, a / x)
BINARY(rdiv, x / a)
BINARY(max, maxv(a, x))
BINARY(min, minv(a, x))
BINARY(eq, truth(a == x))
BINARY(ne, truth(a != x))
BINARY(lt, truth(a < x))
BINARY(le, truth(a <= x))
BINARY(gt, truth(a > x))
BINARY(ge, truth(a >= x))
BINARY(keep, bits(bits(a) & (x != E(0))))
BINARY(drop, bits(bits(a) & (x == E(0))))
BINARY(merge, bits(bits(a) | bits(x)))
BINARY(copysign, x == x ? signOf(x, absv(a)) : absv(a))
BINARY(nextafter, nextafterv(a, x))
#undef BINARY
#define UNARY(name, result) struct name { FN static V of(V a) { return result; } };
UNARY(neg, -a)
UNARY(abs, absv(a))
UNARY(square, a * a)
UNARY(relu, max2(V{}, a))
UNARY(sqrt, sqrtv(a))
UNARY(rsqrt, E(1) / sqrtv(a))
UNARY(recip, E(1) / a)
UNARY(floor, roundv<ROUND_DOWN>(a))
UNARY(ceil, roundv<ROUND_UP>(a))
UNARY(trunc, roundv<ROUND_ZERO>(a))
UNARY(round, roundv<ROUND_EVEN>(a))
UNARY(isnan, truth(a != a))
UNARY(isinf, truth(absv(a) == Inf))
UNARY(isfinite, truth(absv(a) < Inf))
UNARY(signbit, truth((bits(a) < 0) & (a == a)))
UNARY(sign, a == a ? truth(a > E(0)) - truth(a < E(0)) : a)
#if defined(DVM_IS_float32) && defined(__AVX512F__)
// What they are for numbers, and masks are slow: a strip is looked through for NaN first.
template <class O> struct Numbers {};
template <> struct Numbers<max> { FN static V of(V a, V x) { return maxNumber(a, x); } };
template <> struct Numbers<min> { FN static V of(V a, V x) { return minNumber(a, x); } };
#endif
#ifdef DVM_IS_float32
#define SIDEWAYS(name, function) struct name { template <class T> FN static T of(T a) { return function(a); } };
SIDEWAYS(exp, expv)
SIDEWAYS(tanh, tanhv)
SIDEWAYS(erf, erfv)
SIDEWAYS(sigmoid, sigmoidv)
#undef SIDEWAYS
UNARY(log, logv(a))
UNARY(to_f16, rounded_to_half(a))
UNARY(to_bf16, rounded_to_brain_float(a))
#endif
#undef UNARY
#if defined(DVM_IS_float32) && defined(__AVX512F__)
template <> struct Numbers<to_bf16> { FN static V of(V a) { return number_rounded_to_brain_float(a); } };
#endif
template <class O> constexpr E identity = 0;
template <> constexpr E identity<max> = -Inf;
template <> constexpr E identity<min> = Inf;
template <> constexpr E identity<mul> = 1;
}  // namespace meaning

// One element: a scalar root or division has half the latency of a vector one.
FN E root(E a) {
  if constexpr (sizeof(E) == 4) return __builtin_sqrtf(a);
  else return __builtin_sqrt(a);
}
#define DVM_ROW_BINARY(X) X(div, a / x) X(rdiv, x / a)
#define DVM_ROW_UNARY(X) X(sqrt, root(a)) X(rsqrt, E(1) / root(a)) X(recip, E(1) / a)
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
