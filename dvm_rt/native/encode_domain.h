// Operands and dimensions of a section: byte strides, and dimensions merged where all strides agree.
//
// Owns what of a kernel depends on dimensions alone. Knows nothing of nodes and words. Part of encode.cpp.
#pragma once
#include <algorithm>
#include <bit>
#include "matmul.h"
#include "near_code.h"
#include "plan.h"
#include "program.h"
#include "verify.h"

namespace dvm::encoding {
namespace {

constexpr double FAR_BYTES = 2 << 20;   // working sets beyond this are taken to be outside L2
// Of rows in several passes: up to here L3 takes what is stored sooner than memory does. A norm of 512x768 by hand, alone, is a fifth
// faster with stores past the caches, and whoever reads its result pays for it: two of them in a row take 260 us instead of 199.
constexpr double NEAR_BYTES = 4 << 20;

constexpr uint64_t bit(int i) { return uint64_t{1} << i; }
inline int lowest(uint64_t mask) { return std::countr_zero(mask); }

struct Mask {  // iterates over the set bits, lowest first
  uint64_t bits;
  struct Iterator {
    uint64_t bits;
    int operator*() const { return lowest(bits); }
    Iterator& operator++() { bits &= bits - 1; return *this; }
    bool operator!=(const Iterator& other) const { return bits != other.bits; }
  };
  Iterator begin() const { return {bits}; }
  Iterator end() const { return {0}; }
};

// The program under construction.
struct Program {
  const Plan& plan;
  const int64_t* values;
  uint8_t* bytes;
  size_t capacity, at;
  const int64_t* slot_offset;
  int sections = 0;
  uint64_t fuel = 0, scratch_bytes = 0;
  const char* error = nullptr;

  int64_t value(uint16_t expr) const { return expr == NONE ? 0 : values[expr]; }
};

// A section in the making, as far as its operands and dimensions go.
struct Domain {
  Program& program;
  const PlanKernel& kernel;
  Section* head = nullptr;
  Operand* operands = nullptr;
  int operand_count = 0, word_limit = 0;
  uint64_t used = 0;       // arguments of the kernel that become operands
  uint8_t operand_of[16];  // argument of the kernel -> operand
  int64_t dims[MAX_RANK];
  int rank = 0;

  Domain(Program& p, const PlanKernel& k) : program(p), kernel(k) {}

  void fail(const char* what) {
    if (!program.error) program.error = what;
  }
  int64_t element() const { return DTYPE_BYTES[kernel.dtype]; }  // bytes, of the compute dtype
  bool failed() const { return program.error != nullptr; }

  bool read_dims() {
    double elements = 1;
    rank = kernel.rank;
    for (int d = 0; d < rank; d++) {
      dims[d] = program.values[kernel.dims[d]];
      if (dims[d] < 0) return fail("a dimension is negative"), false;
      elements *= double(dims[d]);
    }
    return elements <= double(DIMENSION_MAX) || (fail("more than 2^40 elements"), false);
  }
  bool any_empty(int from) const {
    return std::any_of(dims + from, dims + rank, [](int64_t n) { return n == 0; });
  }

  bool begin_section() {
    const size_t room = program.capacity - program.at, fixed = sizeof(Section) + MAX_OPERANDS * sizeof(Operand);
    if (room < fixed + 2 * sizeof(Word)) return fail("the program is longer than the room for it"), false;
    head = reinterpret_cast<Section*>(program.bytes + program.at);
    operands = reinterpret_cast<Operand*>(head + 1);
    word_limit = int(std::min<size_t>(MAX_WORDS, (room - fixed) / sizeof(Word)));
    return true;
  }

  void add_operands() {
    for (int arg : Mask{used}) operand_of[arg] = uint8_t(operand_count++);
    for (int arg : Mask{used}) add_operand(program.plan.args()[kernel.first_arg + arg], operands[operand_of[arg]]);
  }
  DVM_ENCODES void add_operand(const PlanArg& arg, Operand& o) {
    const int64_t size = arg.buffer == NONE ? 1 : DTYPE_BYTES[arg.dtype];
    bool overflow = !place(arg, o);
    o.dtype = arg.dtype, o.mode = arg.mode, o.reserved = 0;
    o.index = arg.mode & GATHER ? operand_of[arg.index] : arg.mode & WINDOWS ? arg.index : uint16_t(NONE);
    o.limit = arg.mode & (GATHER | WINDOWS) ? program.value(arg.limit) : 0;
    overflow |= __builtin_mul_overflow(program.value(arg.depth), size, &o.depth);
    for (int d = 0; d < rank; d++) overflow |= __builtin_mul_overflow(program.value(arg.strides[d]), size, &o.stride[d]);
    for (int d = rank; d < MAX_RANK; d++) o.stride[d] = 0;
    if (arg.mode & WINDOWS) {
      for (int d = WINDOWS_RANK_MAX; d < MAX_RANK; d++)
        overflow |= __builtin_mul_overflow(program.value(arg.strides[d]), size, &o.stride[d]);
    }
    if (overflow) fail("a stride or an offset is beyond 64 bits");
  }

  // In which argument, and where in it. False on overflow.
  bool place(const PlanArg& arg, Operand& o) const {
    const bool counts = arg.buffer == NONE;  // an INDEX operand
    o.arg = counts ? uint16_t(INDEX) : program.plan.argument_of_buffer()[arg.buffer];
    if (__builtin_mul_overflow(program.value(arg.offset), counts ? 1 : DTYPE_BYTES[arg.dtype], &o.base)) return false;
    return o.arg != WORKSPACE ||
           !__builtin_add_overflow(o.base, program.slot_offset[program.plan.buffers()[arg.buffer].index], &o.base);
  }

  // Can dimension d be walked as a continuation of dimension `inner`?
  bool continues(int inner, int d) const {
    for (int i = 0; i < operand_count; i++) {
      const int64_t* stride = operands[i].stride;
      if (uint64_t(stride[d]) != uint64_t(stride[inner]) * uint64_t(dims[inner])) return false;
    }
    return true;
  }
  void push(int d, int m) {  // dimension d becomes dimension m <= d
    if (m == d) return;
    dims[m] = dims[d];
    for (int i = 0; i < operand_count; i++) operands[i].stride[m] = operands[i].stride[d];
  }
  void set_rank(int m) {
    for (int i = 0; i < operand_count; i++) {
      for (int d = m; d < rank; d++) operands[i].stride[d] = 0;
    }
    rank = m;
  }

  // Fewer and longer dimensions. The row stays what it is where it means something: reductions, gathers.
  DVM_ENCODES void collapse(bool keep_row, bool empty_row) {
    int m = 0;
    for (int d = 0; d < rank; d++) {
      if (dims[d] == 1 && !(d == 0 && keep_row)) continue;
      if (m > (keep_row ? 1 : 0) && continues(m - 1, d)) dims[m - 1] *= dims[d];
      else push(d, m++);
    }
    if (m == 0) dims[0] = 1, m = 1;
    set_rank(m);
    if (dims[0] == 1 && !empty_row) unit_row();
  }
  // Short rows go many at a time where the first of the outer dimensions has as many.
  void many_rows_first() {
    constexpr int64_t SHORT = 64, MANY = 8;
    if (rank < 3 || dims[0] > SHORT || dims[1] >= MANY) return;
    for (int d = 2; d < rank; d++) {
      if (dims[d] < MANY) continue;
      std::swap(dims[1], dims[d]);
      for (int i = 0; i < operand_count; i++) std::swap(operands[i].stride[1], operands[i].stride[d]);
      return;
    }
  }
  // In a row of one element the inner stride says nothing: let every operand be contiguous (but a gather's index).
  void unit_row() {
    uint32_t indices = 0;
    for (int i = 0; i < operand_count; i++) {
      if (operands[i].mode & GATHER) indices |= 1u << operands[i].index;
    }
    for (int i = 0; i < operand_count; i++) {
      if (!(indices >> i & 1) && operands[i].arg != INDEX) operands[i].stride[0] = DTYPE_BYTES[operands[i].dtype];
    }
  }

  // The inner stride of every operand from `first` on: 0, an element of the compute dtype or another.
  uint32_t forms(int first) const {
    uint32_t all = 0;
    for (int i = first; i < operand_count; i++) {
      const int64_t stride = operands[i].stride[0];
      all |= uint32_t(stride == 0 ? 0 : stride == element() ? 1 : 2) << 2 * i;
    }
    return all;
  }
  // Whether the operand reads the same array as another one, a little behind it: taps of a window. It finds in the caches what
  // that one has brought there.
  bool follows_another(int i) const {
    constexpr int64_t NEAR = 32 << 10;
    const Operand& x = operands[i];
    for (int j = 0; j < operand_count; j++) {
      const Operand& y = operands[j];
      const int64_t before = y.base - x.base;
      if (j == i || y.arg != x.arg || y.dtype != x.dtype || before < 0 || before > NEAR || (before == 0 && j > i)) continue;
      if (std::equal(x.stride, x.stride + rank, y.stride)) return true;
    }
    return false;
  }

  double touched_bytes() const {
    double bytes = 0;
    for (int i = 0; i < operand_count; i++) {
      if (operands[i].arg == INDEX || follows_another(i)) continue;
      double size = DTYPE_BYTES[operands[i].dtype];
      for (int d = 0; d < rank; d++) size *= operands[i].stride[d] ? double(dims[d]) : 1.0;
      bytes += size;
    }
    return bytes;
  }

  // Is a row strided, and are rows next to each other? The machine then takes many rows side by side, and needs no row buffer.
  bool rows_lie_across() const {
    for (int i = 0; i < operand_count && rank > 1; i++) {
      const Operand& o = operands[i];
      const int64_t size = DTYPE_BYTES[o.dtype];
      if (o.arg != INDEX && o.arg != SCRATCH && o.stride[0] && o.stride[0] != size && o.stride[1] == size) return true;
    }
    return false;
  }
  int64_t row_buffer_bytes() const { return (dims[0] * element() + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN; }
  void add_row_buffer() {
    Operand& o = operands[operand_count++];
    o = {uint16_t(SCRATCH), kernel.dtype, READ | WRITE, uint16_t(NONE), 0, int64_t(head->scratch_bytes), 0, 0, {element()}};
    head->scratch_bytes += uint64_t(row_buffer_bytes());
  }

  // ---- matrices ---------------------------------------------------------------------------------------------------

  // Batches join the rows where B is the same for all of them. dims[1] is one that B does not step along. Rows are what A
  // is contiguous along, if it is not along k: else a batch stays one, with a single row.
  DVM_PRODUCTS void merge_matrix_dims(int64_t depth) {
    const Operand &left = operands[0], &right = operands[1];
    const int64_t size = DTYPE_BYTES[left.dtype];
    auto may_be_rows = [&](int d) {
      return right.stride[d] == 0 && (left.depth == size || left.stride[d] == size || depth == 1);
    };
    if (right.stride[1] != 0) return fail("matrix B steps with the rows of the product");
    int m = 1;
    for (int d = 1; d < rank; d++) {
      if (dims[d] == 1) continue;
      if (m == 1 && d > 1 && !may_be_rows(d)) add_unit_rows(), m = 2;
      if (m > 1 && continues(m - 1, d)) dims[m - 1] *= dims[d];
      else push(d, m++);
    }
    if (m == 1) add_unit_rows(), m = 2;
    set_rank(std::max(m, 2));
  }
  void add_unit_rows() {
    dims[1] = 1;
    for (int i = 0; i < operand_count; i++) operands[i].stride[1] = 0;
  }
  // Strides along dimensions of one element say nothing: make them what the matmul wants.
  DVM_PRODUCTS void unit_matrices(int64_t depth) {
    Operand &left = operands[0], &right = operands[1], &product = operands[2];
    const bool packed = right.mode & PACKED, lies_free = right.mode & (PACKED | WINDOWS);
    const int64_t left_size = DTYPE_BYTES[left.dtype], right_size = DTYPE_BYTES[right.dtype], size = DTYPE_BYTES[product.dtype];
    if (dims[0] == 1) {
      left.stride[0] = 0, product.stride[0] = size;
      for (int i = 3; i < operand_count; i++) {
        if (operands[i].mode & WRITE) operands[i].stride[0] = DTYPE_BYTES[operands[i].dtype];
      }
      if (!lies_free && right.depth != right_size) right.stride[0] = right_size;
    }
    if (dims[1] == 1 && left.depth != left_size) left.stride[1] = left_size;
    if (depth == 1) {
      if (left.stride[1] != left_size) left.depth = left_size;
      if (!lies_free && right.stride[0] != right_size) right.depth = right_size;
    }
    if (packed) right.stride[0] = right.depth = 0;
    if (left.stride[0] != 0) return fail("matrix A steps with the columns of the product");
    if (left.stride[1] != left_size && left.depth != left_size)
      return fail("matrix A is contiguous in neither of its dimensions");
    if (!lies_free && right.stride[0] != right_size && right.depth != right_size) {
      return fail("matrix B is contiguous in neither of its dimensions");
    }
    if (product.stride[0] != size) return fail("the rows of the product are not contiguous");
  }

  // ---- attention --------------------------------------------------------------------------------------------------

  // No keys: one that no query sees, and that is never read. It has to lie somewhere.
  void without_keys() {
    operand_count = 4, dims[0] = 1, operands[0].limit = -DIMENSION_MAX;
    for (int i = 1; i <= 2; i++) {
      operands[i] = operands[0];
      operands[i].limit = 1, operands[i].stride[1] = 0;
    }
    operands[2].depth = 4;
  }
  // Strides along dimensions of one element say nothing: make them what an attention wants.
  void unit_heads() {
    Operand &k = operands[1], &v = operands[2];
    if (k.mode & PACKED) k.stride[0] = k.depth = 0;
    for (int i = 0; i < operand_count; i++) {
      if (dims[0] == 1) operands[i].stride[0] = 0;
      const int64_t width = i < 2 ? k.limit : v.limit;
      if (width == 1 && i < 4 && !(operands[i].mode & PACKED)) operands[i].depth = 4;
    }
    if (operands[0].stride[0] || operands[3].stride[0]) return fail("queries or results of an attention step with the keys");
    if (k.stride[1] || v.stride[1]) return fail("keys or values of an attention step with the queries");
    if (v.depth != 4 || operands[3].depth != 4)
      return fail("values or results of an attention are not contiguous in their heads");
    if (operand_count > 4 && operands[4].stride[0] && operands[4].stride[0] != DTYPE_BYTES[operands[4].dtype])
      return fail("the mask of an attention is not contiguous along the keys");
  }
  // Heads that share their keys are further queries, as long as all of them see all keys.
  void merge_heads() {
    if (rank < 2) return add_unit_rows(), set_rank(2);
    const bool sees_all = operands[0].limit >= dims[0];
    int m = 2;
    for (int d = 2; d < rank; d++) {
      if (dims[d] == 1) continue;
      const bool shared = sees_all && operands[1].stride[d] == 0 && operands[2].stride[d] == 0;
      if (shared && dims[1] == 1) push(d, 1);
      else if (shared && continues(1, d)) dims[1] *= dims[d];
      else if (m > 2 && continues(m - 1, d)) dims[m - 1] *= dims[d];
      else push(d, m++);
    }
    set_rank(m);
  }
};

}  // namespace
}  // namespace dvm::encoding
