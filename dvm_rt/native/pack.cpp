#include "pack.h"
#include <cstring>
#include "matmul.h"
#include "program.h"

namespace dvm {

uint64_t pack_source_bytes(const PackKey& key) {
  return uint64_t(key.offset + (key.k - 1) * key.stride_k + (key.n - 1) * key.stride_n + 1) * DTYPE_BYTES[key.dtype];
}
uint64_t packed_bytes(const PackKey& key) { return uint64_t(packed_bytes(key.n, key.k, DTYPE_BYTES[key.dtype])); }

std::vector<uint8_t> pack_program(const PackKey& key) {
  struct Bytes {
    ProgramHead head{};
    ProgramArg args[2]{};
    Section section{};
    Operand operands[2]{};
  } p;
  static_assert(sizeof(Bytes) == sizeof(ProgramHead) + 2 * sizeof(ProgramArg) + sizeof(Section) + 2 * sizeof(Operand));
  const uint8_t dtype = uint8_t(key.dtype);
  const int64_t element = DTYPE_BYTES[dtype];
  // The step of a dimension of one element says nothing: let it be what a pack wants.
  const int64_t stride_n = key.n == 1 && key.stride_k != 1 ? 1 : key.stride_n, stride_k = key.k == 1 && stride_n != 1 ? 1 : key.stride_k;
  p.head.magic = PROGRAM_MAGIC;
  p.head.version = VERSION;
  p.head.section_count = 1;
  p.head.table_hash = TABLE_HASH;
  p.head.bytes = sizeof p;
  p.head.arg_count = 2;
  p.head.fuel = uint64_t(key.n * key.k + 1023) / 1024 + 1;
  p.args[0] = {pack_source_bytes(key), READ, dtype, 0, uint32_t(element)};
  p.args[1] = {packed_bytes(key), WRITE, dtype, 0, uint32_t(ARENA_ALIGN)};
  p.section.kind = uint16_t(SectionKind::PACK);
  p.section.dtype = uint8_t(DType::FLOAT32);
  p.section.rank = 1;
  p.section.operand_count = 2;
  p.section.bytes = sizeof p.section + sizeof p.operands;
  p.section.depth = key.k;
  std::fill(std::begin(p.section.dims), std::end(p.section.dims), 1);
  p.section.dims[0] = key.n;
  p.operands[0] = {0, dtype, READ, uint16_t(NONE), 0, key.offset * element, 0, stride_k * element, {stride_n * element}};
  p.operands[1] = {1, dtype, WRITE | PACKED, uint16_t(NONE), 0, 0, 0, 0, {}};
  auto* bytes = reinterpret_cast<const uint8_t*>(&p);
  constexpr size_t checked_from = offsetof(ProgramHead, checksum) + 8;
  p.head.checksum = checksum(bytes + checked_from, sizeof p - checked_from);
  return {bytes, bytes + sizeof p};
}

}  // namespace dvm
