// Runs verified programs. One Machine per device thread; it allocates only when it meets a larger scratch need.
#pragma once
#include "target.h"

namespace dvm {

struct Binding {  // what a launch gives for one argument of a program: authority over extents and permission
  uint8_t* address;
  uint64_t bytes;
  bool writable;
};

// Runs a HOST section: its operands' memory is proven, the rest is the runner's. Set where there is Python; without one such
// sections trap. The trap's word is the number of the function.
using HostRunner = Trap (*)(const SectionRun& run);
extern HostRunner host_runner;

struct HostSpan {  // one host function that a run called
  uint64_t begin_ns, end_ns;
  uint32_t function;
};

class Machine {
 public:
  explicit Machine(const Target& target = best_target());
  // `workspace` holds head().workspace_bytes, ARENA_ALIGN aligned. Bindings smaller than the program declares, not
  // aligned, or not writable where it writes give TrapCode::BINDING (word = argument) before anything runs.
  Trap run(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace);
  void reserve(const VerifiedProgram& program);  // scratch, so that run() does not allocate
  const std::vector<HostSpan>& host_calls() const { return host_calls_; }  // of the last run()

 private:
  Trap run_host(const SectionRun& run);
  const Target* target_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<uint8_t[], void (*)(uint8_t*)> scratch_;
  size_t scratch_bytes_ = 0;
  std::vector<HostSpan> host_calls_;
};

}  // namespace dvm
