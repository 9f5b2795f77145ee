// Everything that one build of the kernels offers, for one instruction set.
#include <string_view>
#include "strip.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace dvm::DVM_TARGET {
void copy(Context&, const SectionRun&);    // copy.cpp
bool gather(Context&, const SectionRun&);  // copy.cpp
bool fill(Context&, const SectionRun&);    // copy.cpp
namespace {
// Without this every SSE instruction of the caller is slow after vector code.
void leave() {
#if defined(__AVX2__)
  _mm256_zeroupper();
#endif
}
template <void (*RUN)(Context&, const SectionRun&)> void copy_or_run(Context& c, const SectionRun& run) {
  const Word* words = run.section.words;
  const bool gathers = words[0].op == OP_gather, fills = words[0].op == OP_pass && words[1].op == OP_mov_k;
  if (!(gathers && gather(c, run)) && !(fills && fill(c, run))) return RUN(c, run);
  leave();
}
void run_matmul_and_leave(Context& c, const SectionRun& run) { run_matmul(c, run), leave(); }
void run_pack_and_leave(Context& c, const SectionRun& run) { run_pack(c, run), leave(); }
void run_attention_and_leave(Context& c, const SectionRun& run) { run_attention(c, run), leave(); }

#if defined(__AVX512F__)
constexpr int STRIP = 128;
#elif defined(__AVX2__)
constexpr int STRIP = 64;
#else
constexpr int STRIP = 32;
#endif
#define NAME_OF(target) #target
#define NAME(target) NAME_OF(target)
constexpr Target made() {
  Target t{NAME(DVM_TARGET), STRIP, {}, run_matmul_and_leave, run_pack_and_leave, copy, run_attention_and_leave};
#define X(dtype) \
  for (size_t i = 0; i < sizeof DTYPE_BYTES; i++) \
    if (std::string_view(DTYPE_NAMES[i]) == #dtype) t.vector[i] = copy_or_run<dtype::run_vector>;
  DVM_EACH_DTYPE(X)
#undef X
  return t;
}
}  // namespace

extern const Target target;
const Target target = made();
}  // namespace dvm::DVM_TARGET
