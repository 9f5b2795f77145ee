// Runs verified programs: binds arguments, clears what must not show old bytes, runs section after section.
#include "machine.h"
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#if defined(DVM_X86)
#include <immintrin.h>
#endif

namespace dvm {

// One build of the kernels each; see CMakeLists.txt.
#if defined(DVM_AVX512)
namespace avx512 { extern const Target target; }
#endif
#if defined(DVM_AVX2)
namespace avx2 { extern const Target target; }
#endif
namespace baseline { extern const Target target; }

namespace {

// The arithmetic of programs is defined with round to nearest and subnormals; a host may have changed that.
class FloatMode {
#if defined(DVM_X86)
 public:
  FloatMode() : before_(_mm_getcsr()) {
    if ((before_ | STICKY) != DEFAULT) _mm_setcsr(DEFAULT);
  }
  ~FloatMode() {
    if ((before_ | STICKY) != DEFAULT) _mm_setcsr(before_);
  }

 private:
  static constexpr unsigned STICKY = 0x3f, DEFAULT = 0x1f80 | STICKY;
  unsigned before_;
#endif
};

uint8_t* allocate(size_t bytes) { return static_cast<uint8_t*>(::operator new(bytes, std::align_val_t(ARENA_ALIGN))); }
void release(uint8_t* p) { ::operator delete(p, std::align_val_t(ARENA_ALIGN)); }

bool fits(const ProgramArg& want, const Binding& got) {
  return got.bytes >= want.bytes && !(reinterpret_cast<uintptr_t>(got.address) & (want.align - 1)) &&
         (got.writable || !is_write(want.mode));
}

}  // namespace

Context::Context() {
  memset(static_cast<void*>(this), 0, sizeof *this);
  lanes_dtype = 255;
}

std::span<const Target* const> targets() {
  static const struct Found {
    const Target* list[3];
    size_t count = 0;
    Found() {
#if defined(DVM_X86)
      __builtin_cpu_init();
      [[maybe_unused]] const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
#if defined(DVM_AVX512)
      if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
        list[count++] = &avx512::target;
#endif
#if defined(DVM_AVX2)
      if (has_avx2) list[count++] = &avx2::target;
#endif
#endif
      list[count++] = &baseline::target;
    }
  } found;
  return {found.list, found.count};
}

const Target* find_target(const char* name) {
  for (const Target* target : targets())
    if (!strcmp(target->name, name)) return target;
  return nullptr;
}

const Target& best_target() {
  const char* name = getenv("DVM_RT_TARGET");
  if (!name || !*name) return *targets()[0];
  const Target* named = find_target(name);
  if (!named)
    throw std::invalid_argument("machine: DVM_RT_TARGET: not on this CPU, got " + std::string(name) + ", allowed those of targets()");
  return *named;
}

Machine::Machine(const Target& target) : target_(&target), context_(new Context), scratch_(nullptr, release) {}

void Machine::reserve(const VerifiedProgram& program) {
  const size_t need = program.head().scratch_bytes;
  if (need <= scratch_bytes_) return;
  scratch_.reset();
  scratch_bytes_ = 0;
  scratch_.reset(allocate(need));
  scratch_bytes_ = need;
}

Trap Machine::run(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace) {
  const ProgramHead& head = program.head();
  const ProgramArg* wanted = program.args();
  for (size_t i = 0; i < head.arg_count; i++)
    if (i >= args.size() || !fits(wanted[i], args[i]))
      return {TrapCode::BINDING, 0, uint32_t(i), i < args.size() ? int64_t(args[i].bytes) : 0, int64_t(wanted[i].bytes)};
  reserve(program);
  for (size_t i = 0; i < head.arg_count; i++)
    if (wanted[i].mode & ZERO_FILL) memset(args[i].address, 0, wanted[i].bytes);
  if (program.zero_workspace()) memset(workspace, 0, head.workspace_bytes);

  const FloatMode float_mode;
  Context& context = *context_;
  context.trap = {};
  uint8_t* address[MAX_OPERANDS];
  uint16_t number = 0;
  for (const SectionView& section : program.sections()) {
    for (int i = 0; i < section.head->operand_count; i++) {
      const Operand& x = section.operands[i];
      uint8_t* start = x.arg < head.arg_count ? args[x.arg].address : x.arg == WORKSPACE ? workspace : x.arg == INDEX ? INDEX_ORIGIN : scratch_.get();
      address[i] = start + x.base;
    }
    const SectionRun run{section, address, scratch_.get()};
    switch (SectionKind(section.head->kind)) {
      case SectionKind::VECTOR: target_->vector[section.head->dtype](context, run); break;
      case SectionKind::MATMUL: target_->matmul(context, run); break;
      case SectionKind::PACK: target_->pack(context, run); break;
    }
    if (context.trap.code != TrapCode::NONE) {
      context.trap.section = number;
      break;
    }
    number++;
  }
#if defined(DVM_X86)
  if (program.streams()) _mm_sfence();  // whoever reads the outputs must not overtake non-temporal stores
#endif
  return context.trap;
}

}  // namespace dvm
