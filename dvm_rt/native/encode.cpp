// Plan + dimensions -> program bytes.
//
// A vector kernel becomes words in four steps: operands with byte strides; dimensions merged where all strides agree;
// analysis (which values are whole strips, after how many reductions each can be computed, what it costs); words, pass
// by pass. The order of a pass keeps values in the accumulator (Sethi and Ullman, 1970); what is needed again is parked
// in a slot until its last use. A value that a later pass needs is kept in a row buffer if it costs more than two simple
// instructions, else computed again: both give the same bits.
//
// The words depend on dimensions only through the inner strides of the operands, on row buffers and prefetching: those for
// the expected inner strides are made when a plan is loaded (prepare), and copied where they fit. The generator that made
// them runs again where they do not.
//
// Rules. Pure: no clock, no look at the machine, every number that tunes is a constant here. No heap, no strings. Every
// program must pass the verifier, which trusts nothing of this. Plan::load has checked all indices.
#include <algorithm>
#include <bit>
#include <cstring>
#include "matmul.h"
#include "plan.h"
#include "program.h"
#include "verify.h"

namespace dvm {
namespace {

constexpr int LEVELS_MAX = 12;                      // reductions that depend on one another
constexpr double FAR_BYTES = 2 << 20;               // working sets beyond this are taken to be outside L2
constexpr int64_t ROW_BUFFER_BYTES_MAX = 1 << 19;   // longer rows are computed again rather than kept
constexpr int64_t NEXT_ROW_BYTES_MAX = 16 << 10;    // rows up to this (all inputs) are prefetched one row ahead
constexpr uint32_t AHEAD_BYTES = 2048;              // prefetch distance in longer rows
constexpr int CHEAP_CYCLES = 16;                    // two simple instructions
constexpr int SUMS = 4;                             // reductions 0..3 are sums, 4..7 maxima

// What a node is to the generator. Up to CONSTANT an instruction can name it as it stands.
enum Kind : uint8_t {
  STRIP,       // input, contiguous floats
  PER_ROW,     // input, one float a row
  CONSTANT,
  LOAD,        // input that has to be converted or gathered by `load`
  UNARY,
  BINARY,
  TOTAL,       // reduction of a value over the row
  TOTAL_LOAD,  // one stored element a row that is not a float: the row section cannot load, so it is its own maximum
  OUT,         // output, an element each
  OUT_ROW,     // output, one float a row
};

constexpr uint16_t NO_PASS = 0xffff;

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

// Writes the words of one section from its nodes.
struct Generator {
  Program& program;
  const PlanKernel& kernel;
  const PlanNode* nodes;
  int node_count;
  bool epilogue = false;      // words of a matmul: one pass, everything in it is a strip
  bool zero_product = false;  // a matmul over nothing: its product is the constant 0
  bool empty_row = false;     // a vector kernel over rows of no elements: sums are 0, only values per row are left

  Section* head = nullptr;
  Operand* operands = nullptr;
  int operand_count = 0;
  uint64_t used = 0;          // arguments of the kernel that become operands
  uint8_t operand_of[16];     // argument of the kernel -> operand
  int64_t dims[MAX_RANK];
  int rank = 0;
  bool reduces = false, gathers = false;

  Word* words = nullptr;
  int word_count = 0, word_limit = 0;
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

  Generator(Program& p, const PlanKernel& k, const PlanNode* n, int count) : program(p), kernel(k), nodes(n), node_count(count) {}

  void fail(const char* what) {
    if (!program.error) program.error = what;
  }
  bool failed() const { return program.error != nullptr; }
  bool is_full(int v) const { return full >> v & 1; }
  bool is_total(int v) const { return kind[v] == TOTAL || kind[v] == TOTAL_LOAD; }

  // ---- operands and dimensions ------------------------------------------------------------------------------------

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
      } else if (n.op == NODE_SUM || n.op == NODE_MAX) {
        if (empty_row) continue;
        live |= bit(n.a), reduces = true;
      } else {
        live |= bit(n.a);
        if (ROW_GROUP[n.op] == Group::BINARY) live |= bit(n.b);
      }
    }
  }

  bool read_dims() {
    rank = kernel.rank;
    for (int d = 0; d < rank; d++) {
      dims[d] = program.values[kernel.dims[d]];
      if (dims[d] < 0 || dims[d] > DIMENSION_MAX) return fail("a dimension is negative or beyond 2^40"), false;
    }
    return true;
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
  void add_operand(const PlanArg& arg, Operand& o) {
    const int64_t size = DTYPE_BYTES[arg.dtype];
    const PlanBuffer& buffer = program.plan.buffers()[arg.buffer];
    bool overflow = __builtin_mul_overflow(program.value(arg.offset), size, &o.base);
    o.arg = program.plan.argument_of_buffer()[arg.buffer];
    if (o.arg == WORKSPACE) overflow |= __builtin_add_overflow(o.base, program.slot_offset[buffer.index], &o.base);
    o.dtype = arg.dtype, o.mode = arg.mode, o.reserved = 0;
    o.index = arg.mode & GATHER ? operand_of[arg.index] : uint16_t(NONE);
    o.limit = arg.mode & GATHER ? program.value(arg.limit) : 0;
    overflow |= __builtin_mul_overflow(program.value(arg.depth), size, &o.depth);
    for (int d = 0; d < rank; d++) overflow |= __builtin_mul_overflow(program.value(arg.strides[d]), size, &o.stride[d]);
    for (int d = rank; d < MAX_RANK; d++) o.stride[d] = 0;
    if (overflow) fail("a stride or an offset is beyond 64 bits");
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
  void collapse() {
    const bool keep_row = reduces || gathers;
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
  // In a row of one element the inner stride says nothing: let every operand be contiguous (but a gather's index).
  void unit_row() {
    uint32_t indices = 0;
    for (int i = 0; i < operand_count; i++) {
      if (operands[i].mode & GATHER) indices |= 1u << operands[i].index;
    }
    for (int i = 0; i < operand_count; i++) {
      if (!(indices >> i & 1)) operands[i].stride[0] = DTYPE_BYTES[operands[i].dtype];
    }
  }

  // Does the kernel touch more than L2 holds?
  bool is_far() const {
    double bytes = 0;
    for (int i = 0; i < operand_count; i++) {
      double size = DTYPE_BYTES[operands[i].dtype];
      for (int d = 0; d < rank; d++) size *= operands[i].stride[d] ? double(dims[d]) : 1.0;
      bytes += size;
    }
    return bytes > FAR_BYTES;
  }

  // ---- analysis ---------------------------------------------------------------------------------------------------

  void analyse() {
    for (int v : Mask{live}) {
      slot[v] = row[v] = buffer[v] = -1;
      level_of[v] = need[v] = 0, cycles[v] = 0;
      switch (nodes[v].op) {
        case NODE_INPUT: input(v); break;
        case NODE_CONST:
        case NODE_SIZE: kind[v] = CONSTANT; break;
        case NODE_OUTPUT: output(v); break;
        case NODE_SUM:
        case NODE_MAX: total(v); break;
        default: arithmetic(v);
      }
      last_level = std::max<int>(last_level, level_of[v]);
    }
    if (!epilogue && (reduces || row_values[0])) cross_passes();
  }

  void input(int v) {
    if (zero_product && nodes[v].a == 2) {
      kind[v] = CONSTANT;
      return;
    }
    const Operand& o = operands[a[v] = operand_of[nodes[v].a]];
    const bool floats = o.dtype == uint8_t(DType::FLOAT32);
    if (floats && o.stride[0] == 0) {
      kind[v] = PER_ROW;
      return;
    }
    kind[v] = floats && o.stride[0] == 4 ? STRIP : LOAD;
    if (o.stride[0] == 0 && reduces) {
      kind[v] = TOTAL_LOAD;
      targets[0] |= bit(v);
      return;
    }
    full |= bit(v);
    if (kind[v] == STRIP) strips |= uint16_t(1u << a[v]);
    if (kind[v] == LOAD) cycles[v] = uint16_t(ROW_CYCLES[ROW_load]);
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
    if (o.dtype != uint8_t(DType::FLOAT32)) fail("one value a row is stored as float32 only");
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
    if (epilogue || is_full(x) || is_full(y)) full |= bit(v);
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
      if (operand_count == MAX_OPERANDS || row_buffer_bytes() > ROW_BUFFER_BYTES_MAX) return;  // computed again instead
      buffer[value] = int8_t(operand_count);
      add_row_buffer();
    }
  }
  int64_t row_buffer_bytes() const { return (dims[0] * 4 + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN; }
  void add_row_buffer() {
    Operand& o = operands[operand_count++];
    o = {uint16_t(SCRATCH), uint8_t(DType::FLOAT32), READ | WRITE, uint16_t(NONE), 0, int64_t(head->scratch_bytes), 0, 0, {4}};
    head->scratch_bytes += uint64_t(row_buffer_bytes());
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
  float size(uint16_t expr) const { return program.values ? float(program.values[expr]) : 0.0f; }  // 0: prepare() runs
  float constant(int v) const {  // also what reductions over nothing and products over nothing are
    if (nodes[v].op == NODE_CONST) return float(nodes[v].k);
    if (nodes[v].op == NODE_SIZE) return size(nodes[v].a);
    return nodes[v].op == NODE_MAX ? -__builtin_inff() : 0.0f;
  }
  void emit_form(int instruction, int v) {
    const int op = FIRST_OP[instruction];
    if (kind[v] == CONSTANT) {
      if (sizes && nodes[v].op == NODE_SIZE) sizes->push_back({uint16_t(word_count), nodes[v].a});
      emit(op + FORM_K, 0, std::bit_cast<uint32_t>(constant(v)));
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
    if (kind[v] == LOAD) emit(OP_load, a[v]);
    else if (kind[v] == BINARY) generate_binary(v);
    else {
      generate(a[v]), release(a[v]);
      emit(FIRST_OP[nodes[v].op]);
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
      if (!named(first)) park(first);
      generate(second);
      if (second == y) instruction = COMMUTED[instruction];
      y = first;
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
    const bool plain = o.dtype == uint8_t(DType::FLOAT32) && o.stride[0] == 4;
    emit(plain ? OP_store : OP_store_any, b[v]);
  }

  // `due`: what the row section behind this pass makes, if that comes next.
  void pass(uint64_t now, bool first, uint64_t due) {
    count_all(now);
    const int begin = word_count;
    emit(OP_pass);
    in_pass = true, acc = -1;
    if (first && level < 2) pass_at[level] = uint16_t(begin);
    int sums = 0, maxima = SUMS;
    uint32_t mask = 0;
    for (int v : Mask{now}) {
      if (kind[v] == OUT) {
        store(v);
        continue;
      }
      if (kind[v] == TOTAL_LOAD) emit(OP_load, a[v]), acc = v;
      else generate(a[v]), release(a[v]);
      const bool sum = nodes[v].op == NODE_SUM;
      reduction[v] = uint8_t(sum ? sums++ : maxima++), mask |= 1u << reduction[v];
      emit(sum ? OP_acc_sum : OP_acc_max, reduction[v]);
    }
    emit(OP_loop, int(mask), uint32_t(word_count - begin));
    in_pass = false, acc = -1;
    stored |= storing, storing = 0;
    for (int v : Mask{now}) {
      if (kind[v] == OUT) continue;
      save();
      emit(nodes[v].op == NODE_SUM ? OP_fold_sum : OP_fold_max, reduction[v]);
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
  // The passes of one level: as few as the reductions allow, four sums and four maxima each.
  void passes(uint64_t wanted, uint64_t due) {
    for (bool first = true; wanted && !failed(); first = false) {
      int sums = 0, maxima = 0;
      uint64_t now = 0;
      for (int v : Mask{wanted}) {
        const bool sum = nodes[v].op == NODE_SUM;
        if (kind[v] != OUT && (sum ? sums++ : maxima++) >= SUMS) continue;
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

  void finish(SectionKind section_kind, int64_t depth) {
    if (failed()) return;
    head->kind = uint16_t(section_kind), head->dtype = kernel.dtype, head->rank = uint8_t(rank);
    head->operand_count = uint16_t(operand_count), head->word_count = uint16_t(word_count);
    head->bytes = uint32_t(sizeof(Section) + operand_count * sizeof(Operand) + word_count * sizeof(Word));
    head->reserved = 0, head->depth = depth;
    for (int d = 0; d < MAX_RANK; d++) head->dims[d] = d < rank ? dims[d] : 1;
    program.at += head->bytes, program.sections++;
    program.scratch_bytes = std::max<uint64_t>(program.scratch_bytes, head->scratch_bytes);
    add_fuel(section_kind, depth);
  }
  // As isa/program.py defines it.
  void add_fuel(SectionKind section_kind, int64_t depth) {
    uint64_t rows = 1, work = 0, steps = 0;
    bool overflow = false;
    for (int d = 1; d < rank; d++) overflow |= __builtin_mul_overflow(rows, uint64_t(dims[d]), &rows);
    overflow |= __builtin_mul_overflow(uint64_t(word_count) * uint64_t((dims[0] + LANES - 1) / LANES), rows, &work);
    if (section_kind != SectionKind::VECTOR) {
      overflow |= __builtin_mul_overflow(rows, uint64_t(dims[0]), &steps);
      overflow |= __builtin_mul_overflow(steps, uint64_t(depth), &steps);
      steps = steps / 1024 + (steps % 1024 != 0);
    }
    overflow |= __builtin_add_overflow(work, steps + 1, &work) || __builtin_add_overflow(program.fuel, work, &program.fuel);
    if (overflow || program.fuel > FUEL_MAX) fail("more work than 2^40 steps");
  }

  // ---- kernels ----------------------------------------------------------------------------------------------------

  void vector(const PreparedKernel& prepared) {
    if (!read_dims() || any_empty(1)) return;
    empty_row = dims[0] == 0;
    if (empty_row || zero_product) find_live();
    else take(prepared);
    if (!live || !begin_section()) return;
    if (empty_row) dims[0] = 1;
    head->scratch_bytes = 0;
    add_operands();
    collapse();
    if (failed()) return;
    const bool far = is_far(), ready = !empty_row && !zero_product && forms(0) == prepared.forms;
    if (ready && (!prepared.row_buffers || row_buffer_bytes() <= ROW_BUFFER_BYTES_MAX)) {
      for (int i = 0; i < prepared.row_buffers; i++) add_row_buffer();
      copy_words(prepared);
    } else {
      write_vector();
    }
    if (far && !failed()) add_hints();
    finish(SectionKind::VECTOR, 0);
  }
  void take(const PreparedKernel& prepared) {
    live = prepared.live, used = prepared.used, reduces = prepared.reduces, gathers = prepared.gathers;
  }
  void copy_words(const PreparedKernel& prepared) {
    word_count = int(prepared.words.size());
    if (word_count > word_limit) return fail("more than 512 words in one section");
    words = reinterpret_cast<Word*>(operands + operand_count);
    memcpy(static_cast<void*>(words), prepared.words.data(), size_t(word_count) * sizeof(Word));
    for (const auto& [word, expr] : prepared.sizes) words[word].k = std::bit_cast<uint32_t>(size(expr));
    strips = prepared.strips, pass_at[0] = prepared.pass_at[0], pass_at[1] = prepared.pass_at[1];
  }
  // What a working set beyond L2 needs: stores past the caches, prefetches. Short rows fetch the next row in their second
  // pass, since the first has just read this one; long rows and single passes a little ahead where they first read.
  void add_hints() {
    if (kernel.flags & STREAM) {
      for (int i = 0; i < word_count; i++) {
        if (words[i].op == OP_store && operands[words[i].a].arg != SCRATCH) words[i].op = OP_store_nt;
      }
    }
    const bool next_row = rank > 1 && pass_at[1] != NO_PASS && std::popcount(strips) * dims[0] * 4 <= NEXT_ROW_BYTES_MAX;
    const uint16_t at = pass_at[next_row];
    Word fetches[MAX_OPERANDS];
    int count = 0;
    for (int i : Mask{strips}) {
      if (operands[i].mode & GATHER || (rank > 1 && !operands[i].stride[1])) continue;  // not at the next place, or near
      fetches[count++] = {OP_fetch, uint16_t(i), next_row ? 0 : AHEAD_BYTES};
    }
    if (at == NO_PASS || count == 0 || word_count + count > word_limit) return;
    int loop = at;
    while (words[loop].op != OP_loop) loop++;
    words[loop].k += uint32_t(count);
    memmove(static_cast<void*>(words + at + 1 + count), words + at + 1, size_t(word_count - at - 1) * sizeof(Word));
    std::copy(fetches, fetches + count, words + at + 1);
    word_count += count;
  }
  // The inner stride of every operand from `first` on: 0, 4 bytes or another.
  uint32_t forms(int first) const {
    uint32_t all = 0;
    for (int i = first; i < operand_count; i++) {
      const int64_t stride = operands[i].stride[0];
      all |= uint32_t(stride == 0 ? 0 : stride == 4 ? 1 : 2) << 2 * i;
    }
    return all;
  }
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

  void matmul(const PreparedKernel& prepared) {
    const int64_t depth = program.values[kernel.depth];
    if (!read_dims() || any_empty(0)) return;
    if (depth < 0 || depth > DIMENSION_MAX) return fail("the depth of a matmul is negative or beyond 2^40");
    if (depth == 0) {
      zero_product = true;
      return vector(prepared);
    }
    epilogue = true;
    take(prepared);
    if (!begin_section()) return;
    add_operands();
    operands[2].mode |= READ;  // slices of K are added there
    merge_matrix_dims();
    unit_matrices(depth);
    if (failed()) return;
    head->depth = depth;
    for (int d = 0; d < MAX_RANK; d++) head->dims[d] = d < rank ? dims[d] : 1;
    head->scratch_bytes = uint64_t(matmul_scratch_bytes(*head, operands[1]));
    if (node_count && forms(2) == prepared.forms) copy_words(prepared);
    else if (node_count) write_epilogue();
    finish(SectionKind::MATMUL, depth);
  }
  // Batches join the rows where B is the same for all of them. dims[1] is one that B does not step along.
  void merge_matrix_dims() {
    const Operand& right = operands[1];
    if (right.stride[1] != 0) return fail("matrix B steps with the rows of the product");
    int m = 1;
    for (int d = 1; d < rank; d++) {
      if (dims[d] == 1) continue;
      if (m == 1 && right.stride[d] != 0) add_unit_rows(), m = 2;
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
  void unit_matrices(int64_t depth) {
    Operand &left = operands[0], &right = operands[1], &product = operands[2];
    const bool packed = right.mode & PACKED;
    if (dims[0] == 1) {
      left.stride[0] = 0, product.stride[0] = 4;
      for (int i = 3; i < operand_count; i++) {
        if (operands[i].mode & WRITE) operands[i].stride[0] = DTYPE_BYTES[operands[i].dtype];
      }
      if (!packed && right.depth != 4) right.stride[0] = 4;
    }
    if (dims[1] == 1 && left.depth != 4) left.stride[1] = 4;
    if (depth == 1) {
      if (left.stride[1] != 4) left.depth = 4;
      if (!packed && right.stride[0] != 4) right.depth = 4;
    }
    if (packed) right.stride[0] = right.depth = 0;
    if (left.stride[0] != 0) return fail("matrix A steps with the columns of the product");
    if (left.stride[1] != 4 && left.depth != 4) return fail("matrix A is contiguous in neither of its dimensions");
    if (!packed && right.stride[0] != 4 && right.depth != 4) {
      return fail("matrix B is contiguous in neither of its dimensions");
    }
    if (product.stride[0] != 4) return fail("the rows of the product are not contiguous");
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

  void pack() {
    const int64_t depth = program.values[kernel.depth];
    if (!read_dims() || depth == 0 || dims[0] == 0) return;
    if (depth < 0 || depth > DIMENSION_MAX) return fail("the depth of a pack is negative or beyond 2^40");
    if (!begin_section()) return;
    used = 3;
    add_operands();
    if (dims[0] == 1 && operands[0].depth != 4) operands[0].stride[0] = 4;
    if (depth == 1 && operands[0].stride[0] != 4) operands[0].depth = 4;
    if (operands[0].stride[0] != 4 && operands[0].depth != 4) {
      return fail("the matrix to pack is contiguous in neither of its dimensions");
    }
    operands[1].mode |= PACKED, operands[1].stride[0] = operands[1].depth = 0;
    head->scratch_bytes = 0;
    finish(SectionKind::PACK, depth);
  }
};

// A matmul over nothing without an epilogue: fill its product.
constexpr PlanNode FILL[2] = {{NODE_CONST, uint16_t(NONE), uint16_t(NONE), 0, 0.0}, {NODE_OUTPUT, 0, 2, 0, 0.0}};

void encode_kernel(Program& program, const PlanKernel& kernel, const PreparedKernel& prepared) {
  const PlanNode* nodes = program.plan.nodes().data() + kernel.first_node;
  int count = kernel.nodes;
  const bool matmul = kernel.kind == uint8_t(SectionKind::MATMUL);
  if (matmul && count == 0 && program.values[kernel.depth] == 0) nodes = FILL, count = 2;
  Generator generator(program, kernel, nodes, count);
  if (matmul) generator.matmul(prepared);
  else if (kernel.kind == uint8_t(SectionKind::PACK)) generator.pack();
  else generator.vector(prepared);
}

// Where each workspace slot starts; returns the bytes of all, -1 if that overflows.
int64_t lay_out_workspace(const Plan& plan, const int64_t* values, int64_t* offset) {
  const int slots = plan.slots();
  std::fill(offset, offset + slots, 0);
  for (const PlanBuffer& b : plan.buffers()) {
    if (b.role == uint8_t(BufferRole::TEMPORARY)) offset[b.index] = std::max(offset[b.index], values[b.bytes]);
  }
  int64_t total = 0;
  for (int i = 0; i < slots; i++) {
    const int64_t bytes = offset[i];
    offset[i] = total;
    if (bytes > INT64_MAX - ARENA_ALIGN || __builtin_add_overflow(total, (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN, &total)) {
      return -1;
    }
  }
  return total;
}

}  // namespace

// Runs the generator on a kernel of made-up dimensions whose inner strides are what the plan says where it says it.
PreparedKernel prepare(const Plan& plan, const PlanKernel& kernel) {
  PreparedKernel prepared;
  const SectionKind kind = SectionKind(kernel.kind);
  if (kind == SectionKind::PACK) return prepared;
  Program program{plan, nullptr, nullptr, 0, 0, nullptr};
  Generator generator(program, kernel, plan.nodes().data() + kernel.first_node, kernel.nodes);
  generator.epilogue = kind == SectionKind::MATMUL;
  generator.find_live();
  if (generator.epilogue) generator.used |= 7;
  prepared.live = generator.live, prepared.used = uint16_t(generator.used);
  prepared.reduces = generator.reduces, prepared.gathers = generator.gathers;
  if (!kernel.nodes) return prepared;

  struct {
    Section head;
    Operand operands[MAX_OPERANDS];
    Word words[MAX_WORDS];
  } section;
  generator.sizes = &prepared.sizes;
  generator.head = &section.head, generator.operands = section.operands, generator.word_limit = MAX_WORDS;
  section.head.scratch_bytes = 0;
  generator.rank = 2, generator.dims[0] = generator.dims[1] = LANES;
  for (int arg : Mask{generator.used}) {
    const PlanArg& a = plan.args()[kernel.first_arg + arg];
    Operand& o = section.operands[generator.operand_count];
    o = {};
    const PlanExpr* inner = a.strides[0] == NONE ? nullptr : &plan.exprs()[a.strides[0]];
    const bool known = !inner || inner->op == uint16_t(ExprOp::CONST);
    o.dtype = a.dtype, o.mode = a.mode;
    o.stride[0] = known ? (inner ? int64_t(uint64_t(inner->k) * DTYPE_BYTES[a.dtype]) : 0) : 1;  // 1: some other stride
    generator.operand_of[arg] = uint8_t(generator.operand_count++);
  }
  const int operand_count = generator.operand_count;
  const uint32_t forms = generator.forms(generator.epilogue ? 2 : 0);
  if (generator.epilogue) generator.write_epilogue();
  else generator.write_vector();
  if (program.error) return prepared;  // encode() will say so
  prepared.forms = forms;
  prepared.row_buffers = uint8_t(generator.operand_count - operand_count);
  prepared.strips = generator.strips;
  std::copy(generator.pass_at, generator.pass_at + 2, prepared.pass_at);
  prepared.words.assign(generator.words, generator.words + generator.word_count);
  return prepared;
}

EncodeResult encode(const Plan& plan, const int64_t* values, uint8_t* out, size_t capacity) {
  const auto args = plan.program_args();
  const size_t sections_at = sizeof(ProgramHead) + args.size() * sizeof(ProgramArg);
  if (capacity < sections_at) return {0, "the program is longer than the room for it", 0};
  auto* program_args = reinterpret_cast<ProgramArg*>(out + sizeof(ProgramHead));
  std::copy(args.begin(), args.end(), program_args);
  for (size_t i = 0; i < plan.buffers().size(); i++) {
    const uint16_t argument = plan.argument_of_buffer()[i];
    const int64_t bytes = values[plan.buffers()[i].bytes];
    if (bytes < 0) return {0, "a buffer of negative size", 0};
    if (argument != WORKSPACE) program_args[argument].bytes = uint64_t(bytes);
  }
  int64_t slot_offset[MAX_ARGS];
  const int64_t workspace_bytes = lay_out_workspace(plan, values, slot_offset);
  if (workspace_bytes < 0) return {0, "the workspace is beyond 64 bits", 0};

  Program program{plan, values, out, std::min<size_t>(capacity, MAX_PROGRAM_BYTES), sections_at, slot_offset};
  for (size_t i = 0; i < plan.kernels().size(); i++) {
    encode_kernel(program, plan.kernels()[i], plan.prepared()[i]);
    if (program.error) return {0, program.error, uint16_t(i)};
  }
  if (program.sections == 0) return {0, nullptr, 0};

  auto& head = *reinterpret_cast<ProgramHead*>(out);
  head = {};
  head.magic = PROGRAM_MAGIC, head.version = VERSION, head.section_count = uint16_t(program.sections);
  head.table_hash = TABLE_HASH, head.bytes = uint32_t(program.at), head.arg_count = uint16_t(args.size());
  head.workspace_bytes = uint64_t(workspace_bytes), head.scratch_bytes = program.scratch_bytes, head.fuel = program.fuel;
  constexpr size_t CHECKED_FROM = offsetof(ProgramHead, checksum) + sizeof head.checksum;
  head.checksum = checksum(out + CHECKED_FROM, program.at - CHECKED_FROM);
  return {int64_t(program.at), nullptr, 0};
}

}  // namespace dvm
