// Modelled time and units of sections.
#include "split.h"
#include <algorithm>
#include "attention.h"
#include "near_code.h"
#include "program.h"
#include "together.h"

namespace dvm {
namespace {

// Measured: handing a section to threads that spin and collecting it costs 1 to 2 us, so a section of 20 us gains from two.
constexpr double SPLIT_NS = 20e3, PART_NS = 5e3;
constexpr double CYCLES_PER_NS = 2.8, MACS_PER_NS = 70, BYTES_PER_NS = 20;  // of one thread, AVX-512
constexpr int64_t PART_ROWS = 27, PART_PANELS = 3;  // least of a matmul that a part has, where there are two parts
constexpr double ATTENTION_MACS_PER_NS = 45;
constexpr double ROW_CYCLES_LEAST = 30;
constexpr int64_t WIDE_ROWS = 16;  // so many rows or more are parts enough
constexpr int64_t LINE = 64;     // bytes
constexpr int64_t BESIDE = 256;  // rows
constexpr double CYCLES_MAX = 256;  // more than any word takes for a strip

int64_t rows_of(const Section& head) {
  int64_t rows = 1;
  for (int d = 1; d < head.rank; d++) rows *= head.dims[d];
  return rows;
}

struct Modelled {
  Split split;
  double ns = 0;  // also where that is too little to share
};

Modelled cut(int64_t units, double ns, int64_t beside = 1) {
  if (ns < SPLIT_NS || units < 2 * beside) return {{units}, ns};
  return {{units, std::min({units / beside, int64_t(ns / PART_NS), PARTS_MAX}), int64_t(ns), 0, beside}, ns};
}

// Rows that lie beside each other in memory, element by element, are best read together: columns a cache line wide take 4 times
// as long as all.
int64_t rows_beside(const SectionView& section) {
  if (section.head->dims[0] > BLOCK) return 1;  // they are not
  for (int i = 0; i < section.head->operand_count; i++) {
    const Operand& x = section.operands[i];
    if (x.arg != SCRATCH && x.stride[1] && std::abs(x.stride[1]) < LINE && std::abs(x.stride[0]) > std::abs(x.stride[1]))
      return BESIDE;
  }
  return 1;
}

DVM_PROVES double strip_cycles(const SectionView& section) {  // of all words that run once a strip; an epilogue has no `pass`
  double cycles = 0;
  bool in_pass = SectionKind(section.head->kind) != SectionKind::VECTOR;
  for (int i = 0; i < section.head->word_count; i++) {
    const uint16_t op = section.words[i].op;
    in_pass = op == OP_pass || (in_pass && op != OP_loop);
    if (in_pass) cycles += OPS[op].cycles;
  }
  return cycles;
}

// Words whose elements know nothing of each other and of their place in the row, or whose reductions go by blocks. A word
// that is not listed here keeps rows in one piece.
bool rows_can_be_cut(const SectionView& section) {
  for (int i = 0; i < section.head->word_count; i++) {
    const OpInfo& op = OPS[section.words[i].op];
    const bool known = op.row == ROW_gather || op.row == ROW_fetch || op.row == ROW_pass || op.row == ROW_loop || op.row == ROW_end_row;
    if ((op.group == Group::CONTROL && !known) || op.group == Group::RUNNING) return false;
  }
  return true;
}

Modelled split_vector(const SectionView& section) {
  const Section& head = *section.head;
  const int64_t rows = rows_of(head), strips = ceil_div(head.dims[0], lanes_of(head.dtype));
  const bool may_be_wide = rows < WIDE_ROWS && head.dims[0] > BLOCK && DTYPE_BYTES[head.dtype] == 4;  // block results have 4 bytes
  const double most = double(rows) * double(strips) * head.word_count * CYCLES_MAX;
  if (most < SPLIT_NS * CYCLES_PER_NS && !may_be_wide) return {{rows}};  // small sections pay for nothing
  const double row_ns = (double(strips) * strip_cycles(section) + ROW_CYCLES_LEAST) / CYCLES_PER_NS;
  if (may_be_wide && (row_ns >= SPLIT_NS || rows == 1) && rows_can_be_cut(section)) {
    const int64_t blocks = ceil_div(head.dims[0], BLOCK);
    Split split = cut(blocks, row_ns).split;
    split.units = rows, split.blocks = blocks, split.ns *= rows;
    return {split, double(rows) * row_ns};
  }
  return cut(rows, double(rows) * row_ns, rows_beside(section));
}

Modelled split_matmul(const SectionView& section) {
  const Section& head = *section.head;
  const MatmulCut of = matmul_cut(head, section.operands);
  const double n = double(head.dims[0]), m = double(head.dims[1]), k = double(head.depth), steps = double(of.steps);
  if (n * m * k * steps < SPLIT_NS * BYTES_PER_NS / 4) return {{of.pieces * of.steps}};
  const double product = std::max(n * m * k / MACS_PER_NS, 4 * n * k / BYTES_PER_NS);
  const double epilogue = m * double(ceil_div(head.dims[0], LANES)) * strip_cycles(section) / CYCLES_PER_NS;
  Modelled found = cut(of.pieces * of.steps, steps * (product + epilogue));
  // Parts that keep tiles tall and wide: some blocks of rows, or strips of three packed panels. A part that copies B waits for it,
  // so that small ones, which overlap, are better.
  const bool packed = section.operands[1].mode & PACKED;
  const int64_t whole = of.along == MatmulCut::ROWS ? PART_ROWS : of.along == MatmulCut::PANELS && packed ? PART_PANELS : 1;
  const int64_t most = std::max<int64_t>(of.pieces * of.steps / whole, 2);
  found.split.parts = std::min({found.split.parts, MATMUL_PARTS_MAX, most});
  return found;
}

Modelled split_pack(const SectionView& section) {
  const Section& head = *section.head;
  return cut(panels(head.dims[0]) * ceil_div(head.depth, slice_k(head.depth)), 8.0 * double(head.dims[0]) * double(head.depth) / BYTES_PER_NS);
}

Modelled split_attention(const SectionView& section) {
  const Section& head = *section.head;
  const double keys = double(head.dims[0]), queries = double(head.dims[1]);
  const double width = double(section.operands[1].limit) + double(section.operands[2].limit);
  int64_t heads = 1;
  for (int d = 2; d < head.rank; d++) heads *= head.dims[d];
  const double ns = std::max(keys * queries * width / ATTENTION_MACS_PER_NS, 4 * keys * width / BYTES_PER_NS);
  return cut(heads * attention_pieces(head), double(heads) * ns);
}

DVM_PROVES Modelled modelled(const SectionView& section) {
  switch (SectionKind(section.head->kind)) {
    case SectionKind::VECTOR: return split_vector(section);
    case SectionKind::MATMUL: return split_matmul(section);
    case SectionKind::PACK: return split_pack(section);
    case SectionKind::ATTENTION: return split_attention(section);
    default: return {};
  }
}

}  // namespace

DVM_PROVES Split split_of(const SectionView& section) { return modelled(section).split; }
int64_t work_of(const SectionView& section) { return int64_t(modelled(section).ns); }

}  // namespace dvm
