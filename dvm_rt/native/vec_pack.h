// Several vectors side by side, as one value: what vec.h says of a vector holds for each of them.
//
// A polynomial is a chain in which each step waits four cycles for the one before, and the CPU looks ahead by one vector or two
// at most: a function over a strip is written so that the steps of SIDE_BY_SIDE vectors stand next to each other. As many as
// the registers hold beside their constants. Every element sees the same operations: bits do not depend on it.
#pragma once

namespace dvm::DVM_TARGET {
namespace {
#if defined(__AVX512F__)
constexpr int SIDE_BY_SIDE = 4;
#elif defined(__AVX2__)
constexpr int SIDE_BY_SIDE = 2;
#else
constexpr int SIDE_BY_SIDE = 1;  // fma is a call
#endif

template <int U> struct Pack {
  V v[U];
  Pack() = default;
  FN Pack(V x) { each([&](int j) __attribute__((always_inline)) { v[j] = x; }); }
  FN Pack(float k) : Pack(all(k)) {}
  template <class F> FN static void each(F f) {
#pragma GCC unroll 8
    for (int j = 0; j < U; j++) f(j);
  }
#define OF(name, parameters, result) \
  FN friend Pack name parameters { Pack r; each([&](int j) __attribute__((always_inline)) { r.v[j] = result; }); return r; }
  OF(operator+, (Pack a, Pack b), a.v[j] + b.v[j])
  OF(operator-, (Pack a, Pack b), a.v[j] - b.v[j])
  OF(operator-, (Pack a), -a.v[j])
  OF(operator*, (Pack a, Pack b), a.v[j] * b.v[j])
  OF(operator/, (Pack a, Pack b), a.v[j] / b.v[j])
  OF(fma, (Pack a, Pack b, Pack c), fma(a.v[j], b.v[j], c.v[j]))
  OF(nfma, (Pack a, Pack b, Pack c), nfma(a.v[j], b.v[j], c.v[j]))
  OF(min2, (Pack a, Pack b), min2(a.v[j], b.v[j]))
  OF(max2, (Pack a, Pack b), max2(a.v[j], b.v[j]))
  OF(absv, (Pack a), absv(a.v[j]))
  OF(negAbs, (Pack a), negAbs(a.v[j]))
  OF(signOf, (Pack a, Pack magnitude), signOf(a.v[j], magnitude.v[j]))
  OF(scale, (Pack a, Pack n), scale(a.v[j], n.v[j]))
  OF(scaleBetween, (Pack a, Pack n, Pack x, float low, float high), scaleBetween(a.v[j], n.v[j], x.v[j], low, high))
  OF(whereLess, (Pack x, float k, Pack a, Pack b), whereLess(x.v[j], k, a.v[j], b.v[j]))
  OF(lookup, (const float (&of)[16], Pack i), lookup(of, i.v[j]))
#undef OF
};
}  // namespace
}  // namespace dvm::DVM_TARGET
