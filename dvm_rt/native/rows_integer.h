// What the rows of the instruction table mean in int32, uint32, int64 and uint64.
#pragma once

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {
namespace meaning {
#define BINARY(name, result) struct name { FN static V of(V a, V x) { return result; } };
BINARY(mov, x)
BINARY(add, (V)(as_unsigned(a) + as_unsigned(x)))
BINARY(sub, (V)(as_unsigned(a) - as_unsigned(x)))
BINARY(rsub, (V)(as_unsigned(x) - as_unsigned(a)))
BINARY(mul, (V)(as_unsigned(a) * as_unsigned(x)))
BINARY(max, maxv(a, x))
BINARY(min, minv(a, x))
BINARY(eq, truth(a == x))
BINARY(ne, truth(a != x))
BINARY(lt, truth(a < x))
BINARY(le, truth(a <= x))
BINARY(gt, truth(a > x))
BINARY(ge, truth(a >= x))
BINARY(keep, a & (V)(x != all(0)))
BINARY(drop, a & (V)(x == all(0)))
BINARY(merge, a | x)
BINARY(bit_and, a & x)
BINARY(bit_xor, a ^ x)
BINARY(shl, (V)(as_unsigned(a) << as_unsigned(x & SHIFT_MASK)))
BINARY(shr, a >> (x & SHIFT_MASK))
#undef BINARY
// Long code, which stands once and works on the strip in memory.
#define BINARY(name, result) struct name { \
  [[gnu::noinline]] static void strip(E* m, const E* other, int n) { \
    for (int i = 0; i < n; i += W) { const V a = load(m + i), x = load(other + i); store(m + i, result); } \
  } };
BINARY(floordiv, divided(a, x, true).quotient)
BINARY(floormod, divided(a, x, true).remainder)
BINARY(truncdiv, divided(a, x, false).quotient)
BINARY(truncmod, divided(a, x, false).remainder)
#ifdef DVM_IS_uint64
BINARY(philox, philoxv(a, x))
#endif
#undef BINARY
#define UNARY(name, result) struct name { FN static V of(V a) { return result; } };
UNARY(neg, (V)(0 - as_unsigned(a)))
UNARY(abs, a < all(0) ? (V)(0 - as_unsigned(a)) : a)
UNARY(square, (V)(as_unsigned(a) * as_unsigned(a)))
UNARY(relu, maxv(a, all(0)))
UNARY(bit_not, ~a)
UNARY(sign, truth(a > all(0)) - truth(a < all(0)))
UNARY(wrap_i8, (V)(((as_unsigned(a) & 0xff) ^ 0x80) - 0x80))  // shifts have half as many units
UNARY(wrap_i16, (V)(((as_unsigned(a) & 0xffff) ^ 0x8000) - 0x8000))
UNARY(wrap_u8, a & 0xff)
UNARY(wrap_u16, a & 0xffff)
#undef UNARY
template <class O> constexpr E identity = 0;
template <> constexpr E identity<max> = IS_SIGNED ? E(1) << (8 * sizeof(E) - 1) : 0;
template <> constexpr E identity<min> = ~identity<max>;
template <> constexpr E identity<mul> = 1;
}  // namespace meaning

#define DVM_ROW_BINARY(X)
#define DVM_ROW_UNARY(X)
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
