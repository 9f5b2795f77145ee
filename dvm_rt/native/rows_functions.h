// The rows of the instruction table that are computed on vectors of doubles (functions.h), a strip at a time: their code is
// long, so it stands once, and works on the strip in memory. A new one: its row in isa/table.py, one line here.
#pragma once
#include "functions.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
namespace meaning {
constexpr Precision PRECISION = sizeof(E) == 4 ? SINGLE : DOUBLE;
#define UNARY(name, result) struct name { \
  [[gnu::noinline]] static void strip(E* m, int n) { \
    for (int i = 0; i < n; i += WD) { const D a = loadD(m + i); storeD(m + i, result); } \
  } };
#define FUNCTION(name) UNARY(name, name##d<PRECISION>(a))
FUNCTION(sin)
FUNCTION(cos)
FUNCTION(tan)
FUNCTION(asin)
FUNCTION(acos)
FUNCTION(atan)
FUNCTION(sinh)
FUNCTION(cosh)
FUNCTION(asinh)
FUNCTION(acosh)
FUNCTION(atanh)
FUNCTION(exp2)
FUNCTION(expm1)
FUNCTION(log2)
FUNCTION(log10)
FUNCTION(log1p)
FUNCTION(cbrt)
FUNCTION(erfc)
FUNCTION(lgamma)
FUNCTION(digamma)
#ifndef DVM_IS_float32
UNARY(exp, expFlushed(a))
FUNCTION(log)
FUNCTION(tanh)
FUNCTION(erf)
FUNCTION(sigmoid)
#endif
#undef FUNCTION
#undef UNARY
#define BINARY(name, result) struct name { \
  [[gnu::noinline]] static void strip(E* m, const E* other, int n) { \
    for (int i = 0; i < n; i += WD) { const D a = loadD(m + i), x = loadD(other + i); storeD(m + i, result); } \
  } };
BINARY(pow, powd<PRECISION>(a, x))
BINARY(atan2, atan2d<PRECISION>(a, x))
BINARY(hypot, hypotd<PRECISION>(a, x))
BINARY(fmod, fmodd(a, x))
BINARY(remainder, remainderd(a, x))
BINARY(floor_divide, floor_divided(a, x))
#ifdef DVM_IS_float32
BINARY(logaddexp, logaddexpd(a, x))
#endif
#undef BINARY
}  // namespace meaning
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
