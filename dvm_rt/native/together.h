// Sections of a program that run at the same time: as one job, whose parts are those of all of them.
//
// The verifier says which sections in a row have nothing to do with each other (VerifyFacts::beside); here is what the machine
// wants to know of that. It lies in the block of the VerifiedProgram, behind its sections.
#pragma once
#include "program.h"

namespace dvm {

struct Beside {
  uint32_t count = 1;  // so many sections from this one on may run at the same time
  uint32_t ns = 0;     // modelled time of this one on one thread; 0: next to nothing
};

inline const Beside* beside_of(const VerifiedProgram& program) {
  return reinterpret_cast<const Beside*>(program.sections().data() + program.sections().size());
}
int64_t work_of(const SectionView& section);  // modelled ns on one thread, however little (split.cpp)

}  // namespace dvm
