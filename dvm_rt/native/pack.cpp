#include "pack.h"
#include <algorithm>
#include <cstring>
#include "matmul.h"
#include "program.h"

namespace dvm {

uint64_t pack_source_bytes(const PackKey& key) {  // a dimension that goes backwards has its last element first
  const int64_t last = std::max<int64_t>((key.k - 1) * key.stride_k, 0) + std::max<int64_t>((key.n - 1) * key.stride_n, 0);
  return uint64_t(key.offset + last + 1) * DTYPE_BYTES[key.dtype];
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
  const int64_t stride_n = key.n == 1 && key.stride_k != 1 ? 1 : key.stride_n,
                stride_k = key.k == 1 && stride_n != 1 ? 1 : key.stride_k;
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

bool packs_all(const PackKey& key, uint64_t bytes) {
  const bool rows = key.stride_n == 1 && key.stride_k == key.n, columns = key.stride_k == 1 && key.stride_n == key.k;
  return key.offset == 0 && (rows || columns) && uint64_t(key.k) * uint64_t(key.n) * DTYPE_BYTES[key.dtype] == bytes;
}

namespace {
// Sections of one program, one behind the other.
struct Copies {
  std::vector<uint8_t> bytes = std::vector<uint8_t>(sizeof(ProgramHead) + 2 * sizeof(ProgramArg));
  uint32_t count = 0;
  uint64_t fuel = 0;
  uint8_t dtype;

  explicit Copies(uint8_t dtype) : dtype(dtype) {}

  // dims: innermost first; bases and strides in elements.
  void add(const int64_t (&dims)[3], int64_t from, const int64_t (&steps_from)[3], int64_t to, const int64_t (&steps_to)[3]) {
    const int64_t size = DTYPE_BYTES[dtype];
    struct {
      Section section{};
      Operand operands[2]{};
    } part;
    part.section.kind = uint16_t(SectionKind::COPY), part.section.dtype = uint8_t(DType::FLOAT32);
    part.section.rank = 3, part.section.operand_count = 2, part.section.bytes = sizeof part;
    std::fill(std::begin(part.section.dims), std::end(part.section.dims), 1);
    std::copy(dims, dims + 3, part.section.dims);
    const auto operand = [&](uint16_t arg, uint8_t mode, int64_t base, const int64_t (&steps)[3]) {
      return Operand{arg, dtype, mode, uint16_t(NONE), 0, base * size, 0, 0, {steps[0] * size, steps[1] * size, steps[2] * size}};
    };
    part.operands[0] = operand(0, READ, from, steps_from), part.operands[1] = operand(1, WRITE, to, steps_to);
    auto* begin = reinterpret_cast<const uint8_t*>(&part);
    bytes.insert(bytes.end(), begin, begin + sizeof part);
    fuel += uint64_t((dims[0] * dims[1] * dims[2] + 15) / 16 + 1);
    ++count;
  }
};
}  // namespace

std::vector<uint8_t> unpack_program(const PackKey& key) {
  const uint8_t dtype = uint8_t(key.dtype);
  Copies out(dtype);
  const int64_t slice = slice_k(key.k), full = key.n / PANEL, rest = key.n % PANEL;
  for (int64_t k = 0; k < key.k; k += slice) {
    const int64_t count = std::min(slice, key.k - k), from = k * PANEL * panels(key.n), to = k * key.stride_k;
    if (full)
      out.add({PANEL, count, full}, from, {1, PANEL, count * PANEL}, to, {key.stride_n, key.stride_k, PANEL * key.stride_n});
    if (rest)
      out.add({rest, count, 1}, from + full * count * PANEL, {1, PANEL, 0}, to + full * PANEL * key.stride_n,
              {key.stride_n, key.stride_k, 0});
  }
  ProgramHead head{};
  head.magic = PROGRAM_MAGIC, head.version = VERSION, head.section_count = out.count, head.table_hash = TABLE_HASH;
  head.bytes = uint32_t(out.bytes.size()), head.arg_count = 2, head.fuel = out.fuel;
  const ProgramArg args[2] = {{packed_bytes(key), READ, dtype, 0, uint32_t(ARENA_ALIGN)},
                              {pack_source_bytes(key), WRITE, dtype, 0, uint32_t(DTYPE_BYTES[dtype])}};
  memcpy(out.bytes.data() + sizeof head, args, sizeof args);
  memcpy(out.bytes.data(), &head, sizeof head);
  constexpr size_t checked_from = offsetof(ProgramHead, checksum) + 8;
  head.checksum = checksum(out.bytes.data() + checked_from, out.bytes.size() - checked_from);
  memcpy(out.bytes.data(), &head, sizeof head);
  return std::move(out.bytes);
}

}  // namespace dvm
