// Runs verified programs. One Machine per device thread; it allocates only when it meets a larger scratch need.
#pragma once
#include "target.h"

namespace dvm {

struct Binding {  // what a launch gives for one argument of a program: authority over extents and permission
  uint8_t* address;
  uint64_t bytes;
  bool writable;
};

class Machine {
 public:
  explicit Machine(const Target& target = best_target());
  // `workspace` holds head().workspace_bytes, ARENA_ALIGN aligned. Bindings smaller than the program declares, not
  // aligned, or not writable where it writes give TrapCode::BINDING (word = argument) before anything runs.
  Trap run(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace);
  void reserve(const VerifiedProgram& program);  // scratch, so that run() does not allocate

 private:
  const Target* target_;
  std::unique_ptr<Context> context_;
  std::unique_ptr<uint8_t[], void (*)(uint8_t*)> scratch_;
  size_t scratch_bytes_ = 0;
};

}  // namespace dvm
