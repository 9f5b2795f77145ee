// The program that packs a matrix once for matmul: one PACK section, made without a plan. And its inverse, for sources that
// were given up.
#pragma once
#include <vector>
#include "arena.h"

namespace dvm {

uint64_t pack_source_bytes(const PackKey& key);  // of the source that the program reads, from its start
uint64_t packed_bytes(const PackKey& key);       // of the packed form
std::vector<uint8_t> pack_program(const PackKey& key);
bool packs_all(const PackKey& key, uint64_t bytes);  // every element of a buffer of so many bytes, each once
std::vector<uint8_t> unpack_program(const PackKey& key);  // COPY sections: from the packed form to the source

}  // namespace dvm
