// Code that makes a program, side by side: in sections of its own, whose ends the linker tells, so that all of it can be asked for
// at once. After other work it is in no cache, and what is branched to comes line after line, which takes several times as long as
// to run it. What programs seldom need (sections of few kinds, errors) stays out of it.
#pragma once
#include <cstddef>

#define DVM_ENCODES [[gnu::section("dvm_encodes")]]
#define DVM_PROVES [[gnu::section("dvm_proves")]]
#define DVM_PRODUCTS [[gnu::section("dvm_products")]]  // both, of what only matrix products need

extern "C" {
#define DVM_ENDS(name) [[gnu::visibility("hidden")]] extern const char __start_##name[], __stop_##name[];
DVM_ENDS(dvm_encodes) DVM_ENDS(dvm_proves) DVM_ENDS(dvm_products)
#undef DVM_ENDS
}

namespace dvm {

inline void fetch_lines(const void* from, const void* to) {
  constexpr std::ptrdiff_t CACHE_LINE = 64;
  for (auto* at = static_cast<const char*>(from); at < to; at += CACHE_LINE) __builtin_prefetch(at);
  asm volatile("");  // a function that only asks for memory does nothing, to the compiler: calls of it would be left out
}

}  // namespace dvm
