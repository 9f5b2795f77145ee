// The program that packs a matrix once for matmul: one PACK section, made without a plan.
#pragma once
#include <vector>
#include "arena.h"

namespace dvm {

uint64_t pack_source_bytes(const PackKey& key);  // of the source that the program reads, from its start
uint64_t packed_bytes(const PackKey& key);       // of the packed form
std::vector<uint8_t> pack_program(const PackKey& key);

}  // namespace dvm
