// Words from nodes: which values are whole strips, after how many reductions each can be computed, what it costs; then the
// words, pass by pass.
//
// The order of a pass keeps values in the accumulator (Sethi and Ullman, 1970); what is needed again is parked in a slot
// until its last use. A value that a later pass needs is kept in a row buffer if it costs more than two simple
// instructions, else computed again: both give the same bits. Of the dimensions, only the inner strides of the operands and
// the size of row buffers enter. Part of encode.cpp.
#pragma once
#include <cstring>
#include "encode_domain.h"

namespace dvm::encoding {
namespace {

constexpr int LEVELS_MAX = 12;                     // reductions that depend on one another
constexpr int64_t ROW_BUFFER_BYTES_MAX = 1 << 19;  // longer rows are computed again rather than kept
constexpr int CHEAP_CYCLES = 16;                   // two simple instructions
constexpr uint16_t NO_PASS = 0xffff;

// Sum, maximum, minimum, product: the kind of a reduction, as the rows of the table and the numbers of reductions follow.
inline int reduction_kind(uint16_t op) {
  return op == NODE_SUM ? 0 : op == NODE_MIN ? 2 : op == NODE_PROD ? 3 : 1;  // TOTAL_LOAD is its own maximum
}
inline bool is_reduction(uint16_t op) { return op == NODE_SUM || op == NODE_MAX || op == NODE_MIN || op == NODE_PROD; }

// What a node is to the generator. Up to CONSTANT an instruction can name it as it stands.
enum Kind : uint8_t {
  STRIP,       // input, contiguous in the compute dtype
  PER_ROW,     // input, one element of the compute dtype a row
  CONSTANT,
  LOAD,        // input that has to be converted by `load`, or made by `iota`
  UNARY,
  BINARY,
  TOTAL,       // reduction of a value over the row
  TOTAL_LOAD,  // one stored element a row of another dtype: the row section cannot load, so it is its own maximum
  OUT,         // output, an element each
  OUT_ROW,     // output, one element a row
};

struct Generator : Domain {
  const PlanNode* nodes;
  int node_count;
  bool epilogue = false;      // words of a matmul: one pass, everything in it is a strip
  bool zero_product = false;  // a matmul over nothing: its product is the constant 0
  bool empty_row = false;     // a vector kernel over rows of no elements: sums are 0, only values per row are left
  bool reduces = false, gathers = false;
  bool plain = true;          // its operands are the arguments in `used`, in order, and then row buffers

  Word* words = nullptr;
  int word_count = 0;
  int constant_count = 0;
  int acc = -1, level = 0, last_level = 0;
  int unsaved = -1;           // a total that only the accumulator holds; parked when the accumulator is needed first
  bool in_pass = false;
  std::vector<PreparedKernel::Size>* sizes = nullptr;  // prepare() wants to know them
  uint16_t strips = 0, pass_at[2] = {NO_PASS, NO_PASS};  // as in PreparedKernel
  uint32_t free_slots = (1u << MAX_SLOTS) - 1, free_rows = ~0u;
  static_assert(MAX_ROW_SCALARS == 32);
  uint64_t live = 0;                       // nodes that an output needs
  uint64_t full = 0, keep = 0;             // values of a whole row; row scalars that outlive their row section
  uint64_t stored = 0, storing = 0;        // values whose row buffer holds them since an earlier pass; since this one
  uint64_t targets[LEVELS_MAX + 1] = {};   // per level: reductions and outputs that its passes make
  uint64_t row_values[LEVELS_MAX + 1] = {};  // per level: what the row section before its passes makes
  Kind kind[MAX_NODES];
  uint8_t a[MAX_NODES], b[MAX_NODES], level_of[MAX_NODES], need[MAX_NODES], uses[MAX_NODES], reduction[MAX_NODES];
  uint16_t cycles[MAX_NODES];
  int8_t slot[MAX_NODES], row[MAX_NODES], buffer[MAX_NODES];
  int running_count = 0;
  uint64_t constants[MAX_CONSTANTS];  // behind the words, if elements have 8 bytes; last, as few kernels have any

  Generator(Program& p, const PlanKernel& k, const PlanNode* n, int count) : Domain(p, k), nodes(n), node_count(count) {}

  bool is_full(int v) const { return full >> v & 1; }
  bool is_total(int v) const { return kind[v] == TOTAL || kind[v] == TOTAL_LOAD; }

  void write_vector() {
    analyse();
    if (failed()) return;
    words = reinterpret_cast<Word*>(operands + operand_count);
    for (int i = 0; i < operand_count; i++) {
      if (operands[i].mode & GATHER) emit(OP_gather, i);
    }
    row_section(row_values[0]);
    for (level = 0; level <= last_level && !failed(); level++) {
      passes(targets[level], row_values[level + 1]);
      row_section(row_values[level + 1]);
    }
    emit(OP_end_row);
  }
  void write_epilogue() {
    analyse();
    if (failed()) return;
    words = reinterpret_cast<Word*>(operands + operand_count);
    count_all(targets[0]);
    in_pass = true;
    uint64_t last = 0;  // what overwrites the product comes after everything that reads it
    for (int v : Mask{targets[0]}) {
      if (b[v] == 2) last |= bit(v);
    }
    for (int v : Mask{targets[0] & ~last}) store(v);
    for (int v : Mask{last}) store(v);
    emit(OP_end);
  }

  // ---- analysis ---------------------------------------------------------------------------------------------------

  // Nodes that matter, from the outputs back, and the arguments that they name.
  void find_live() {
    for (int v = node_count - 1; v >= 0; v--) {
      const PlanNode& n = nodes[v];
      if (n.op == NODE_OUTPUT) {
        const PlanArg& out = program.plan.args()[kernel.first_arg + n.b];
        if (empty_row && program.value(out.strides[0]) != 0) continue;  // an output of no elements
        live |= bit(v) | bit(n.a), used |= bit(n.b);
      } else if (!(live >> v & 1) || n.op == NODE_CONST || n.op == NODE_SIZE) {
        continue;
      } else if (n.op == NODE_INPUT) {
        if (zero_product && n.a == 2) continue;
        used |= bit(n.a);
        const PlanArg& in = program.plan.args()[kernel.first_arg + n.a];
        if (in.mode & GATHER) used |= bit(in.index), gathers = true;
      } else if (is_reduction(n.op)) {
        if (empty_row) continue;
        live |= bit(n.a), reduces = true;
      } else {
        live |= bit(n.a);
        if (ROW_GROUP[n.op] == Group::BINARY) live |= bit(n.b);
        if (ROW_GROUP[n.op] == Group::RUNNING) reduces = true;  // the row has to stay what it is
      }
    }
  }

  void analyse() {
    if (!epilogue) reduces |= has_row_output();
    for (int v : Mask{live}) {
      slot[v] = row[v] = buffer[v] = -1;
      level_of[v] = need[v] = 0, cycles[v] = 0;
      switch (nodes[v].op) {
        case NODE_INPUT: input(v); break;
        case NODE_CONST:
        case NODE_SIZE: kind[v] = CONSTANT; break;
        case NODE_OUTPUT: output(v); break;
        case NODE_SUM:
        case NODE_MAX:
        case NODE_MIN:
        case NODE_PROD: total(v); break;
        default: arithmetic(v);
      }
      last_level = std::max<int>(last_level, level_of[v]);
    }
    if (!epilogue && (reduces || row_values[0])) cross_passes();
  }

  bool has_row_output() const {
    for (int v : Mask{live}) {
      if (nodes[v].op == NODE_OUTPUT && operands[operand_of[nodes[v].b]].stride[0] == 0) return true;
    }
    return false;
  }
  void input(int v) {
    if (zero_product && nodes[v].a == 2) {
      kind[v] = CONSTANT;
      return;
    }
    const Operand& o = operands[a[v] = operand_of[nodes[v].a]];
    const bool counts = o.arg == INDEX, same = o.dtype == kernel.dtype && !counts;
    if (same && o.stride[0] == 0) {
      kind[v] = PER_ROW;
      return;
    }
    kind[v] = same && o.stride[0] == element() ? STRIP : LOAD;
    if (o.stride[0] == 0 && reduces && !counts) {
      kind[v] = TOTAL_LOAD;
      targets[0] |= bit(v);
      return;
    }
    full |= bit(v);
    if (kind[v] == STRIP || (kind[v] == LOAD && !counts)) strips |= uint16_t(1u << a[v]);
    if (kind[v] == LOAD) cycles[v] = uint16_t(ROW_CYCLES[counts ? ROW_iota : ROW_load]);
  }
  int level_after(int v) const { return level_of[v] + is_total(v); }  // users of a reduction run one pass later
  void set_level(int v, int l) {
    if (l > LEVELS_MAX - 1) return fail("more than 12 reductions that depend on one another");
    level_of[v] = uint8_t(l);
  }

  void total(int v) {
    if (empty_row) {
      kind[v] = CONSTANT;
      return;
    }
    kind[v] = TOTAL, a[v] = uint8_t(nodes[v].a);
    set_level(v, level_after(a[v]));
    targets[level_of[v]] |= bit(v);
  }
  void output(int v) {
    const Operand& o = operands[operand_of[nodes[v].b]];
    a[v] = uint8_t(nodes[v].a), b[v] = operand_of[nodes[v].b];
    set_level(v, level_after(a[v]));
    if (o.stride[0]) {
      kind[v] = OUT, full |= bit(v), targets[level_of[v]] |= bit(v);
      return;
    }
    kind[v] = OUT_ROW, row_values[level_of[v]] |= bit(v);
    if (epilogue || is_full(a[v])) fail("an element of each strip cannot be stored once a row");
  }
  void arithmetic(int v) {
    const uint16_t op = nodes[v].op;
    const bool binary = ROW_GROUP[op] == Group::BINARY;
    const int x = a[v] = uint8_t(nodes[v].a), y = b[v] = binary ? uint8_t(nodes[v].b) : a[v];
    kind[v] = binary ? BINARY : UNARY;
    set_level(v, std::max(level_after(x), level_after(y)));
    int cost = int(ROW_CYCLES[op]);
    if (is_full(x)) cost += cycles[x];
    if (is_full(y) && y != x) cost += cycles[y];
    cycles[v] = uint16_t(std::min(cost, 10000));
    const bool runs = ROW_GROUP[op] == Group::RUNNING;
    if (runs && running_count == MAX_RUNNING) return fail("more than 4 running totals in one kernel");
    if (runs) reduction[v] = uint8_t(running_count++);
    if (epilogue || runs || is_full(x) || is_full(y)) full |= bit(v);
    else row_values[level_of[v]] |= bit(v);
    const bool free_x = kind[x] <= CONSTANT || !is_full(x), free_y = kind[y] <= CONSTANT || !is_full(y);
    if (x == y || free_y) need[v] = need[x];
    else if (free_x) need[v] = need[y];
    else if (binary && COMMUTED[op] == 0xffff) need[v] = std::max<uint8_t>(need[y], need[x] + 1);
    else need[v] = need[x] == need[y] ? need[x] + 1 : std::max(need[x], need[y]);
  }

  // Row scalars that must be kept, and values that deserve a row buffer.
  void cross_passes() {
    uint64_t made = 0;  // computed in a pass of its own level because something there needs it
    for (uint64_t left = live; left;) {
      const int v = 63 - std::countl_zero(left);
      left ^= bit(v);
      if (kind[v] < UNARY || kind[v] == TOTAL_LOAD || !(made >> v & 1 || kind[v] >= TOTAL)) continue;
      if (level_of[a[v]] == level_of[v]) made |= bit(a[v]);
      if (kind[v] == BINARY && level_of[b[v]] == level_of[v]) made |= bit(b[v]);
    }
    for (int v : Mask{live}) {
      if (kind[v] < UNARY || kind[v] == TOTAL_LOAD) continue;
      cross(a[v], v, made);
      if (kind[v] == BINARY) cross(b[v], v, made);
    }
  }
  void cross(int value, int user, uint64_t made) {  // has it to outlive its pass or its row section?
    if (kind[value] <= CONSTANT) return;
    if (!is_full(value)) {
      if (is_full(user) || kind[user] == TOTAL || level_of[user] != level_after(value)) keep |= bit(value);
    } else if (level_of[value] < level_of[user] && cycles[value] > CHEAP_CYCLES && buffer[value] < 0 && made >> value & 1) {
      if (operand_count == MAX_OPERANDS || row_buffer_bytes() > ROW_BUFFER_BYTES_MAX || rows_lie_across())
        return;  // computed again instead
      buffer[value] = int8_t(operand_count);
      add_row_buffer();
    }
  }

  // ---- words ------------------------------------------------------------------------------------------------------

  void emit(int op, int operand = 0, uint32_t k = 0) {
    if (word_count >= word_limit) return fail("more than 512 words in one section");
    words[word_count++] = {uint16_t(op), uint16_t(operand), k};
  }
  // Can an instruction name this value: input, constant, slot, row scalar, row buffer of an earlier pass?
  bool named(int v) const {
    if (kind[v] <= CONSTANT) return true;
    return is_full(v) ? slot[v] >= 0 || stored >> v & 1 : row[v] >= 0;
  }
  uint64_t size(uint16_t expr) const { return bits_of(program.values ? program.values[expr] : 0); }  // 0: prepare() runs
  uint64_t constant(int v) const {  // bits; also what reductions over nothing and products over nothing are
    const PlanNode& n = nodes[v];
    if (n.op == NODE_CONST) return is_float() ? bits_of(n.k) : bits_of(std::bit_cast<int64_t>(n.k));
    if (n.op == NODE_SIZE) return size(n.a);
    if (n.op == NODE_MAX || n.op == NODE_MIN) return extreme(n.op == NODE_MIN);
    return bits_of(int64_t(n.op == NODE_PROD));
  }
  bool is_float() const { return kernel.dtype == uint8_t(DType::FLOAT32) || kernel.dtype == uint8_t(DType::FLOAT64); }
  template <class N> uint64_t bits_of(N number) const {  // in the compute dtype
    if (kernel.dtype == uint8_t(DType::FLOAT32)) return std::bit_cast<uint32_t>(float(number));
    if (kernel.dtype == uint8_t(DType::FLOAT64)) return std::bit_cast<uint64_t>(double(number));
    return element() == 4 ? uint32_t(int64_t(number)) : uint64_t(int64_t(number));
  }
  uint64_t extreme(bool largest) const {
    if (is_float()) return bits_of(largest ? __builtin_inf() : -__builtin_inf());
    const bool is_signed = kernel.dtype == uint8_t(DType::INT32) || kernel.dtype == uint8_t(DType::INT64);
    const uint64_t smallest = is_signed ? uint64_t{1} << (8 * element() - 1) : 0;
    return (largest ? ~smallest : smallest) & (element() == 4 ? 0xffffffffull : ~0ull);
  }
  // What field k of a word holds for a constant. `size_of`: the expression that it is the value of, or NONE.
  uint32_t constant_field(uint64_t bits, uint16_t size_of) {
    const bool in_word = element() == 4;
    if (sizes && size_of != NONE) sizes->push_back({uint16_t(in_word ? word_count : constant_count), size_of});
    if (in_word) return uint32_t(bits);
    if (constant_count == MAX_CONSTANTS) return fail("more than 512 constants in one section"), 0;
    constants[constant_count] = bits;
    return uint32_t(constant_count++);
  }
  void emit_form(int instruction, int v) {
    const int op = FIRST_OP[instruction];
    if (kind[v] == CONSTANT) {
      emit(op + FORM_K, 0, constant_field(constant(v), nodes[v].op == NODE_SIZE ? nodes[v].a : uint16_t(NONE)));
    } else if (kind[v] <= PER_ROW) emit(op + (kind[v] == STRIP ? FORM_I : FORM_B), a[v]);
    else if (!is_full(v)) emit(op + FORM_R, 0, uint32_t(row[v]));
    else if (slot[v] >= 0) emit(op + FORM_S, 0, uint32_t(slot[v]));
    else emit(op + FORM_I, buffer[v]);
  }
  void park(int v) {  // the accumulator, in a slot or as a row scalar
    if (is_full(v)) {
      if (!free_slots) return fail("more than 24 strips alive at once");
      slot[v] = int8_t(lowest(free_slots)), free_slots &= free_slots - 1;
      emit(OP_store_slot, 0, uint32_t(slot[v]));
    } else {
      if (!free_rows) return fail("more than 32 row scalars alive at once");
      row[v] = int8_t(lowest(free_rows)), free_rows &= free_rows - 1;
      emit(OP_store_row, 0, uint32_t(row[v]));
    }
  }
  void save() {  // the accumulator is about to be overwritten
    if (unsaved >= 0 && acc == unsaved) park(unsaved);
    unsaved = -1;
  }
  void release(int v) {  // one use of v is over
    if (--uses[v]) return;
    if (slot[v] >= 0) free_slots |= 1u << slot[v], slot[v] = -1;
    if (row[v] >= 0 && !in_pass && !(keep >> v & 1)) free_rows |= 1u << row[v], row[v] = -1;
  }

  // acc <- v. The caller owns one use of v and releases it.
  void generate(int v) {
    if (acc == v || failed()) return;
    if (kind[v] <= LOAD || named(v)) save();
    if (named(v)) {
      emit_form(ROW_mov, v);
      acc = v;
      return;
    }
    if (kind[v] == LOAD) emit(operands[a[v]].arg == INDEX ? OP_iota : OP_load, a[v]);
    else if (kind[v] == BINARY) generate_binary(v);
    else {
      generate(a[v]), release(a[v]);
      emit(FIRST_OP[nodes[v].op], ROW_GROUP[nodes[v].op] == Group::RUNNING ? reduction[v] : 0);
    }
    acc = v;
    if (uses[v] > 1 || keep >> v & 1) park(v);
    if (buffer[v] >= 0 && level_of[v] == level) emit(OP_store, buffer[v]), storing |= bit(v);
  }
  void generate_binary(int v) {
    int instruction = nodes[v].op, x = a[v], y = b[v];
    const bool ordered = COMMUTED[instruction] == 0xffff;  // its first operand must be in the accumulator
    if (named(y) && !(named(x) && acc == y && !ordered)) {
      generate(x);
    } else if (ordered) {
      generate(y);
      if (!named(y)) park(y);
      generate(x);
    } else if (named(x)) {
      generate(y), instruction = COMMUTED[instruction], y = x;
    } else {  // both need the accumulator: the heavier one first
      const int first = need[x] >= need[y] ? x : y, second = first == x ? y : x;
      generate(first);
      if (named(second)) {  // it came up on the way, and has been parked
        if (second == x) instruction = COMMUTED[instruction];
        y = second;
      } else {
        if (!named(first)) park(first);
        generate(second);
        if (second == y) instruction = COMMUTED[instruction];
        y = first;
      }
    }
    emit_form(instruction, y);
    release(a[v]), release(b[v]);
  }

  void count(int v) {  // uses of every value inside the pass that is about to be written
    if (uses[v]++ || named(v) || is_total(v)) return;
    if (kind[v] == UNARY || kind[v] == BINARY) count(a[v]);
    if (kind[v] == BINARY) count(b[v]);
  }
  void count_all(uint64_t wanted) {
    memset(uses, 0, size_t(node_count));
    for (int v : Mask{wanted}) {
      if (kind[v] != TOTAL_LOAD) count(a[v]);
    }
  }

  void store(int v) {
    const Operand& o = operands[b[v]];
    generate(a[v]), release(a[v]);
    const bool plain = o.dtype == kernel.dtype && o.stride[0] == element();
    emit(plain ? OP_store : OP_store_any, b[v]);
  }

  // `due`: what the row section behind this pass makes, if that comes next.
  void pass(uint64_t now, bool first, uint64_t due) {
    count_all(now);
    const int begin = word_count;
    emit(OP_pass);
    in_pass = true, acc = -1;
    if (first && level < 2) pass_at[level] = uint16_t(begin);
    int next[4] = {0, REDUCTIONS_EACH, 2 * REDUCTIONS_EACH, 3 * REDUCTIONS_EACH};
    uint32_t mask = 0;
    for (int v : Mask{now}) {
      if (kind[v] == OUT) {
        store(v);
        continue;
      }
      if (kind[v] == TOTAL_LOAD) emit(OP_load, a[v]), acc = v;
      else generate(a[v]), release(a[v]);
      const int which = reduction_kind(nodes[v].op);
      reduction[v] = uint8_t(next[which]++), mask |= 1u << reduction[v];
      emit(OP_acc_sum + which, reduction[v]);
    }
    emit(OP_loop, int(mask), uint32_t(word_count - begin));
    in_pass = false, acc = -1;
    stored |= storing, storing = 0;
    for (int v : Mask{now}) {
      if (kind[v] == OUT) continue;
      save();
      emit(OP_fold_sum + reduction_kind(nodes[v].op), reduction[v]);
      acc = v;
      if (!(keep >> v & 1) && used_once(v, due)) unsaved = v;
      else park(v);
    }
    if (!due) save();
  }
  bool used_once(int v, uint64_t due) const {
    int found = 0;
    for (int user : Mask{due}) found += (a[user] == v) + (kind[user] == BINARY && b[user] == v);
    return found == 1;
  }
  // The passes of one level: as few as the reductions allow, four of each kind.
  void passes(uint64_t wanted, uint64_t due) {
    for (bool first = true; wanted && !failed(); first = false) {
      int found[4] = {};
      uint64_t now = 0;
      for (int v : Mask{wanted}) {
        if (kind[v] != OUT && found[reduction_kind(nodes[v].op)]++ >= REDUCTIONS_EACH) continue;
        now |= bit(v);
      }
      wanted &= ~now;
      pass(now, first, wanted ? 0 : due);
    }
  }
  void row_section(uint64_t due) {
    if (!due) return;
    memset(uses, 0, size_t(node_count));
    for (int v : Mask{due}) {
      uses[a[v]]++;
      if (kind[v] == BINARY) uses[b[v]]++;
    }
    for (int v : Mask{due}) {
      if (kind[v] == OUT_ROW) {
        generate(a[v]), release(a[v]);
        emit(OP_store_per_row, b[v]);
      } else if (row[v] < 0 && (keep >> v & 1 || uses[v] > 1)) {
        uses[v]++, generate(v), release(v);
      }
    }
  }
};

}  // namespace
}  // namespace dvm::encoding
