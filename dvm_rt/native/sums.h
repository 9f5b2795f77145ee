// Sums of products that stay in vector registers: what tiles of matmul.cpp and attention.cpp are made of.
#pragma once
#include "vec.h"

namespace dvm::DVM_TARGET {
namespace {

// c + x * b, in place: left to itself gcc lets sums move between registers and pays with copies. By value: a sum whose address
// is taken, even here, is stored and loaded in each round of a loop.
FN V accumulated(V c, V x, V b) {
#if defined(__FMA__)
  asm("vfmadd231ps %2, %1, %0" : "+v"(c) : "v"(x), "v"(b));
  return c;
#else
  return fma(x, b, c);
#endif
}
FN const float* opaque(const float* p) {  // not to be rederived from another pointer
  asm("" : "+r"(p));
  return p;
}
FN V canonical(V x) { return x == x ? x : all(NaN); }

}  // namespace
}  // namespace dvm::DVM_TARGET
