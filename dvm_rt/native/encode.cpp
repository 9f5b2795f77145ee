// Plan + dimensions -> program bytes.
//
// A kernel becomes a section: operands and dimensions (encode_domain.h), then words (encode_words.h). The words depend on
// dimensions only through the inner strides of the operands, on row buffers and prefetching: those for the expected inner
// strides are made when a plan is loaded (prepare), and copied where they fit. The generator that made them runs again
// where they do not.
//
// Rules. Pure: no clock, no look at the machine, every number that tunes is a constant. No heap, no strings while it
// encodes. Every program must pass the verifier, which trusts nothing of this. Plan::load has checked all indices.
#include <cmath>
#include "encode_words.h"
#include "attention.h"
#include "near_code.h"

namespace dvm {
namespace encoding {
namespace {

// One rule for all kernels; programs that run often try others (tuning.h). Measured on one CPU, in steady runs of aligned buffers
// (after a run of another choice the caches are otherwise, for two runs). Against these rules a distance of 4096 bytes gained 7 to
// 12 % for x + y * 3 of 2e6 elements and 0 for 1e6; stores through the caches gained 8 to 12 % for swiglu of 512x768 and 4 to 6 %
// for an LSTM cell of 400x768, took 10 % longer for gelu of 400x768, and 1.1 to 2.6 times as long for what computes less.
constexpr int64_t NEXT_ROW_BYTES_MAX = 16 << 10;  // rows up to this (all inputs) are prefetched one row ahead
constexpr uint32_t AHEAD_BYTES = 2048;            // prefetch distance in longer rows
constexpr uint32_t NEAR_AHEAD_BYTES = 4096;       // in short ones that follow one another and are stored through the caches
constexpr double L3_BYTES = 16 << 20;             // working sets up to this are taken to be in L3
// A strip and operand in memory: more than L3 needs to bring it; of one input, which the processor follows by itself (asked for
// as well, exp of 512x768 takes 180 us instead of 155), and of several (a chain of 8 of that size: 146 instead of 167).
constexpr float COMPUTING_CYCLES = 30, COMPUTING_CYCLES_SEVERAL = 45;

struct KernelEncoder : Generator {
  using Generator::Generator;
  DVM_ENCODES [[gnu::noinline]] void vector(const PreparedKernel& prepared) {
    if (!read_dims()) return;
    if (zero_product && is_grouped()) rank = 2;  // one C for all groups
    if (any_empty(1)) return;
    empty_row = dims[0] == 0;
    if (empty_row || zero_product) find_live(), plain = false;
    else take(prepared);
    if (!live || !begin_section()) return;
    if (empty_row) dims[0] = 1;
    head->scratch_bytes = 0;
    add_operands();
    collapse(reduces || gathers, empty_row);
    many_rows_first();
    if (failed()) return;
    const double bytes = touched_bytes();
    const bool ready = !empty_row && !zero_product && forms(0) == prepared.forms;
    if (ready && (!prepared.row_buffers || (row_buffer_bytes() <= ROW_BUFFER_BYTES_MAX && !rows_lie_across()))) {
      for (int i = 0; i < prepared.row_buffers; i++) add_row_buffer();
      copy_words(prepared);
    } else {
      write_vector();
    }
    if (bytes > FAR_BYTES && !failed()) add_hints(bytes);
    finish(SectionKind::VECTOR, 0);
  }
  void take(const PreparedKernel& prepared) {
    live = prepared.live, used = prepared.used, reduces = prepared.reduces, gathers = prepared.gathers;
  }
  DVM_ENCODES void copy_words(const PreparedKernel& prepared) {
    word_count = int(prepared.words.size());
    if (word_count > word_limit) return fail("more than 512 words in one section");
    words = reinterpret_cast<Word*>(operands + operand_count);
    memcpy(static_cast<void*>(words), prepared.words.data(), size_t(word_count) * sizeof(Word));
    constant_count = int(prepared.constants.size());
    std::copy(prepared.constants.begin(), prepared.constants.end(), constants);
    for (const auto& [at, expr] : prepared.sizes) {
      if (element() == 4) words[at].k = uint32_t(size(expr));
      else constants[at] = size(expr);
    }
    strips = prepared.strips, pass_at[0] = prepared.pass_at[0], pass_at[1] = prepared.pass_at[1];
  }
  // What a working set beyond L2 needs: stores past the caches, prefetches. Short rows fetch the next row in their second
  // pass, since the first has just read this one; long rows and single passes a little ahead where they first read, each operand
  // in front of its first word: a processor that waits for a dozen lines computes nothing beside. Single passes that compute more
  // than L3 has to bring leave that to the hardware (4 to 14 % faster). Short rows of not much more than L2 are stored through
  // the caches: the processor computes on while L3 takes them.
  [[gnu::noinline]] void add_hints(double bytes) {
    const bool next_row = rank > 1 && pass_at[1] != NO_PASS && std::popcount(strips) * dims[0] * element() <= NEXT_ROW_BYTES_MAX;
    const bool near = next_row && bytes <= NEAR_BYTES, alone = bytes <= L3_BYTES && computes();
    if (kernel.flags & STREAM && !near) {
      for (int i = 0; i < word_count; i++) {
        const Operand& x = operands[words[i].a];
        if (words[i].op == OP_store && x.arg != SCRATCH) words[i].op = OP_store_nt;
        if (words[i].op == OP_store_any && x.stride[0] == DTYPE_BYTES[x.dtype]) words[i].op = OP_store_any_nt;
      }
    }
    if (alone || pass_at[next_row] == NO_PASS) return;
    for (int i : Mask{strips}) {
      const Operand& x = operands[i];
      if (x.mode & GATHER || x.stride[0] != DTYPE_BYTES[x.dtype] || (rank > 1 && !x.stride[1]) || follows_another(i))
        continue;  // not at the next place, or near
      const bool rows_follow = x.stride[1] == dims[0] * x.stride[0];
      add_fetch(pass_at[next_row], i, !next_row ? AHEAD_BYTES : near && rows_follow ? NEAR_AHEAD_BYTES : 0);
    }
  }
  // In front of the first word of the pass that reads the operand; at its start, if none does.
  void add_fetch(int pass, int operand, uint32_t ahead) {
    if (word_count == word_limit) return;
    auto reads = [&](Word w) { return w.a == operand && (OPS[w.op].form == FORM_I || w.op == OP_load); };
    int at = 0, loop = pass + 1;
    for (; words[loop].op != OP_loop; loop++)
      if (!at && reads(words[loop])) at = loop;
    if (!at) at = pass + 1;
    words[loop].k++;
    memmove(static_cast<void*>(words + at + 1), words + at, size_t(word_count - at) * sizeof(Word));
    words[at] = {OP_fetch, uint16_t(operand), ahead};
    word_count++;
  }
  bool computes() const {
    float cycles = 0;
    for (int i = 0; i < word_count; i++) cycles += OPS[words[i].op].cycles;
    const int inputs = std::popcount(strips);
    return pass_at[1] == NO_PASS && cycles > (inputs > 1 ? COMPUTING_CYCLES_SEVERAL : COMPUTING_CYCLES) * float(inputs + 1);
  }

  DVM_PRODUCTS [[gnu::noinline]] void matmul(const PreparedKernel& prepared) {
    const int64_t depth = program.values[kernel.depth];
    if (!read_dims()) return;
    const bool no_groups = is_grouped() && dims[2] == 0 && dims[0] && dims[1];
    if (any_empty(0) && !no_groups) return;
    if (depth < 0 || depth > DIMENSION_MAX) return fail("the depth of a matmul is negative or beyond 2^40");
    if (depth == 0 || no_groups) {
      zero_product = true;
      return vector(prepared);
    }
    epilogue = true;
    take(prepared);
    if (!begin_section()) return;
    add_operands();
    operands[2].mode |= READ;  // slices of K are added there
    if (is_grouped()) operands[0].index = operand_of[3];
    else merge_matrix_dims(depth);
    unit_matrices(depth);
    if (failed()) return;
    head->depth = depth, head->dtype = kernel.dtype;
    for (int d = 0; d < MAX_RANK; d++) head->dims[d] = d < rank ? dims[d] : 1;
    head->scratch_bytes = uint64_t(matmul_scratch_bytes(*head, operands[1]));
    if (node_count && forms(2) == prepared.forms) copy_words(prepared);
    else if (node_count) write_epilogue();
    finish(SectionKind::MATMUL, depth);
  }

  bool is_grouped() const { return program.plan.args()[kernel.first_arg].index != NONE; }

  [[gnu::noinline]] void pack() {
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

  [[gnu::noinline]] void copy() {
    if (!read_dims() || any_empty(0) || !begin_section()) return;
    used = (uint64_t{1} << kernel.args) - 1;
    add_operands();
    collapse(false, false);
    head->scratch_bytes = 0;
    finish(SectionKind::COPY, 0);
  }

  // A branch, a jump or a loop: how far in sections is known when they are encoded (`Control`).
  [[gnu::noinline]] void control() {
    if (!read_dims() || !begin_section()) return;
    dims[0] = std::max<int64_t>(dims[0], 1);
    used = (uint64_t{1} << kernel.args) - 1;
    add_operands();
    head->scratch_bytes = 0;
    finish(SectionKind(kernel.kind), 0);
  }

  [[gnu::noinline]] void attention() {
    const int64_t depth = program.values[kernel.depth];
    if (!read_dims() || any_empty(1)) return;
    if (depth < 0 || depth > DIMENSION_MAX) return fail("the width of a head is negative or beyond 2^40");
    if (!begin_section()) return;
    used = (uint64_t{1} << kernel.args) - 1;
    add_operands();
    const PlanArg* args = program.plan.args().data() + kernel.first_arg;
    const int64_t columns = program.value(args[2].limit), width = std::max(depth, columns);
    if (columns == 0) return;
    if (depth == 0) return fail("heads of width 0");
    if (columns < 0 || columns > DIMENSION_MAX) return fail("the width of the values of a head is negative or beyond 2^40");
    operands[0].limit = program.value(args[0].limit), operands[1].limit = depth, operands[2].limit = columns;
    if (dims[0] == 0) without_keys(), plain = false;
    unit_heads();
    merge_heads();
    if (failed()) return;
    head->depth = width;
    for (int d = 0; d < MAX_RANK; d++) head->dims[d] = d < rank ? dims[d] : 1;
    head->scratch_bytes = uint64_t(attention_scratch_bytes(*head, operands[1]));
    words = reinterpret_cast<Word*>(operands + operand_count);
    constexpr uint16_t OPS_OF_WORDS[ATTENTION_WORDS] = {OP_mul_k, OP_mov_k, OP_mov_k, OP_end};
    for (word_count = 0; word_count < ATTENTION_WORDS; word_count++) {
      const bool has_constant = word_count < kernel.nodes;
      double constant = has_constant ? nodes[word_count].k : 0;
      if (has_constant && nodes[word_count].op == NODE_SIZE) constant = 1 / std::sqrt(double(program.value(nodes[word_count].a)));
      words[word_count] = {OPS_OF_WORDS[word_count], 0, std::bit_cast<uint32_t>(float(constant))};
    }
    finish(SectionKind::ATTENTION, width);
  }

  // A host function: whole arrays, and attributes as words.
  [[gnu::noinline]] void host() {
    if (!begin_section()) return;
    if (word_limit < kernel.rank) return fail("the program is longer than the room for it");
    int64_t elements = 0;
    for (int i = 0; i < kernel.args; i++) {
      const PlanArg& arg = program.plan.args()[kernel.first_arg + i];
      Operand& o = operands[operand_count++];
      const int64_t arg_rank = program.value(arg.depth);
      if (arg_rank < 0 || arg_rank > MAX_RANK) return fail("the rank of a host operand is beyond 8");
      rank = 0;
      add_operand(arg, o);  // base and place; its strides are dims here
      o.depth = arg_rank;
      double count = 1;
      for (int d = 0; d < MAX_RANK; d++) {
        o.stride[d] = d < arg_rank ? program.value(arg.strides[d]) : 0;
        if (o.stride[d] < 0) return fail("a dimension is negative");
        if (d < arg_rank) count *= double(o.stride[d]);
      }
      if (count + double(elements) > double(DIMENSION_MAX)) return fail("more than 2^40 elements");
      elements += int64_t(count);
      if (count == 0) o.base = 0;
    }
    words = reinterpret_cast<Word*>(operands + operand_count);
    for (word_count = 0; word_count < kernel.rank; word_count++)
      words[word_count] = std::bit_cast<Word>(program.values[kernel.dims[word_count]]);
    rank = 1, dims[0] = std::max<int64_t>(elements, 1), head->scratch_bytes = 0;
    finish(SectionKind::HOST, program.values[kernel.depth]);
  }

  DVM_ENCODES void finish(SectionKind section_kind, int64_t depth) {
    if (failed()) return;
    head->kind = uint16_t(section_kind), head->dtype = kernel.dtype, head->rank = uint8_t(rank);
    head->operand_count = uint16_t(operand_count), head->word_count = uint16_t(word_count);
    head->bytes = uint32_t(sizeof(Section) + operand_count * sizeof(Operand) + word_count * sizeof(Word) +
                           constant_count * sizeof(uint64_t));
    if (head->bytes > program.capacity - program.at) return fail("the program is longer than the room for it");
    if (constant_count)
      memcpy(reinterpret_cast<uint8_t*>(operands + operand_count) + word_count * sizeof(Word), constants,
             constant_count * sizeof(uint64_t));
    head->constant_count = uint16_t(constant_count), head->reserved = 0, head->depth = depth;
    for (int d = 0; d < MAX_RANK; d++) head->dims[d] = d < rank ? dims[d] : 1;
    program.at += head->bytes, program.sections++;
    program.scratch_bytes = std::max<uint64_t>(program.scratch_bytes, head->scratch_bytes);
    if (program.scratch_bytes > SCRATCH_BYTES_MAX) fail("more scratch than 2^32 bytes");
    add_fuel(section_kind, depth);
  }
  // As isa/program.py defines it.
  void add_fuel(SectionKind section_kind, int64_t depth) {
    uint64_t rows = 1, work = 0, steps = 0;
    bool overflow = false;
    if (is_control(section_kind)) return void(program.fuel++);
    if (section_kind == SectionKind::HOST || section_kind == SectionKind::COPY) {
      uint64_t elements = 1;
      for (int d = 0; d < rank; d++) elements *= uint64_t(dims[d]);  // at most 2^40
      return add_fuel((elements + 15) / 16 + 1);
    }
    for (int d = 1; d < rank; d++) overflow |= __builtin_mul_overflow(rows, uint64_t(dims[d]), &rows);
    overflow |= __builtin_mul_overflow(
        uint64_t(word_count) * uint64_t((dims[0] + lanes_of(kernel.dtype) - 1) / lanes_of(kernel.dtype)), rows, &work);
    if (section_kind != SectionKind::VECTOR) {
      overflow |= __builtin_mul_overflow(rows, uint64_t(dims[0]), &steps);
      overflow |= __builtin_mul_overflow(steps, uint64_t(depth), &steps);
      uint64_t panels;  // products take as long for one column as for a panel
      overflow |= __builtin_mul_overflow(rows * uint64_t((dims[0] + PANEL - 1) / PANEL), uint64_t(depth), &panels) ||
                  panels > SECTION_FUEL_MAX * 1024 / PANEL;
      steps = steps / 1024 + (steps % 1024 != 0);
    }
    overflow |= __builtin_add_overflow(work, steps + 1, &work);
    add_fuel(overflow ? ~0ull : work);
  }
  void add_fuel(uint64_t work) {
    if (work > SECTION_FUEL_MAX) return void(fail("more work in one kernel than 2^33 steps"));
    program.fuel += work;
    if (program.fuel > FUEL_MAX) fail("more work than 2^40 steps");
  }
};

// A matmul over nothing without an epilogue: fill its product.
constexpr PlanNode FILL[2] = {{NODE_CONST, uint16_t(NONE), uint16_t(NONE), 0, 0.0}, {NODE_OUTPUT, 0, 2, 0, 0.0}};

// The section of a kernel, for those that are like it.
struct Made {
  uint32_t at, bytes;  // 0 bytes: there is none
  uint64_t fuel;
  uint32_t used;  // arguments that are operands
  bool plain;
};

DVM_ENCODES Made encode_kernel(Program& program, const PlanKernel& kernel, const PreparedKernel& prepared) {
  const uint32_t at = uint32_t(program.at);
  const uint64_t fuel = program.fuel;
  const PlanNode* nodes = program.plan.nodes().data() + kernel.first_node;
  int count = kernel.nodes;
  const bool matmul = kernel.kind == uint8_t(SectionKind::MATMUL);
  const bool grouped = matmul && program.plan.args()[kernel.first_arg].index != NONE;
  if (matmul && count == 0 && (program.values[kernel.depth] == 0 || (grouped && program.values[kernel.dims[2]] == 0)))
    nodes = FILL, count = 2;
  KernelEncoder encoder(program, kernel, nodes, count);
  if (matmul) encoder.matmul(prepared);
  else if (kernel.kind == uint8_t(SectionKind::PACK)) encoder.pack();
  else if (kernel.kind == uint8_t(SectionKind::ATTENTION)) encoder.attention();
  else if (kernel.kind == uint8_t(SectionKind::HOST)) encoder.host();
  else if (kernel.kind == uint8_t(SectionKind::COPY)) encoder.copy();
  else if (is_control(SectionKind(kernel.kind))) encoder.control();
  else encoder.vector(prepared);
  return {at, uint32_t(program.at) - at, program.fuel - fuel, uint32_t(encoder.used), encoder.plain};
}

// The same over other buffers. Where it reads ahead is what was decided for the first one.
void encode_again(Program& program, const PlanKernel& kernel, const Made& made) {
  if (!made.bytes) return;
  if (made.bytes > program.capacity - program.at) return void(program.error = "the program is longer than the room for it");
  uint8_t* to = program.bytes + program.at;
  memcpy(to, program.bytes + made.at, made.bytes);
  const Domain section(program, kernel);
  Operand* operand = reinterpret_cast<Operand*>(to + sizeof(Section));
  for (int arg : Mask{made.used})
    if (!section.place(program.plan.args()[kernel.first_arg + arg], *operand++))
      program.error = "a stride or an offset is beyond 64 bits";
  program.at += made.bytes, program.sections++, program.fuel += made.fuel;
  if (program.fuel > FUEL_MAX) program.error = "more work than 2^40 steps";
}

// Kernels that are empty for these dimensions have no section, so what a branch skips and a loop repeats are other numbers of
// sections than of kernels. Where each kernel starts:
struct Control {
  uint16_t section[MAX_SECTIONS + 1];
  uint32_t at[MAX_SECTIONS + 1];
  uint64_t fuel[MAX_SECTIONS + 1];

  void start(const Program& program, size_t kernel) {
    section[kernel] = uint16_t(program.sections), at[kernel] = uint32_t(program.at), fuel[kernel] = program.fuel;
  }
  // After this kernel: a loop knows what it repeats.
  void finish(Program& program, size_t kernel) const {
    const PlanKernel& k = program.plan.kernels()[kernel];
    if (SectionKind(k.kind) != SectionKind::LOOP) return;
    Section& head = section_of(program, kernel);
    const size_t first = kernel - size_t(program.values[k.depth]);
    head.depth = section[kernel] - section[first];
    uint64_t all;
    if (__builtin_mul_overflow(program.fuel - fuel[first], uint64_t(head.dims[0]), &all) || all > FUEL_MAX)
      program.error = "more work than 2^40 steps";
    else program.fuel = fuel[first] + all;
    if (program.fuel > FUEL_MAX) program.error = "more work than 2^40 steps";
  }
  // After all: so do branches and jumps.
  void resolve(Program& program) {
    start(program, program.plan.kernels().size());
    for (size_t i = 0; i < program.plan.kernels().size(); i++) {
      const PlanKernel& k = program.plan.kernels()[i];
      const SectionKind kind = SectionKind(k.kind);
      if (kind == SectionKind::BRANCH || kind == SectionKind::JUMP)
        section_of(program, i).depth = section[i + 1 + size_t(program.values[k.depth])] - section[i + 1];
    }
  }
  Section& section_of(Program& program, size_t kernel) const { return *reinterpret_cast<Section*>(program.bytes + at[kernel]); }
};

// All kernels, or up to the one of this number, which has an error. Most plans have nothing to remember from one to the next:
// they touch no more of the stack than they need.
DVM_ENCODES size_t encode_each(Program& program) {
  const size_t count = program.plan.kernels().size();
  for (size_t i = 0; i < count; i++) {
    encode_kernel(program, program.plan.kernels()[i], program.plan.prepared()[i]);
    if (program.error) return i;
  }
  return count;
}
[[gnu::noinline]] size_t encode_repeated(Program& program, Control* control) {
  const Plan& plan = program.plan;
  Made made[REPEATED_MAX];
  for (size_t i = 0; i < plan.kernels().size(); i++) {
    if (control) control->start(program, i);
    const LikeKernel like = plan.like()[i];
    if (like.first != i && like.number != NONE && made[like.number].plain) {
      encode_again(program, plan.kernels()[i], made[like.number]);
    } else {
      const Made section = encode_kernel(program, plan.kernels()[i], plan.prepared()[like.first]);
      if (like.number != NONE) made[like.number] = section;
    }
    if (control && !program.error) control->finish(program, i);
    if (program.error) return i;
  }
  if (control) control->resolve(program);
  return plan.kernels().size();
}
[[gnu::noinline]] size_t encode_with_control(Program& program) {
  Control control;
  return encode_repeated(program, &control);
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
    if (bytes > INT64_MAX - ARENA_ALIGN ||
        __builtin_add_overflow(total, (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN, &total)) {
      return -1;
    }
  }
  return total;
}

}  // namespace
}  // namespace encoding

// Runs the generator on a kernel of made-up dimensions whose inner strides are what the plan says where it says it.
PreparedKernel prepare(const Plan& plan, const PlanKernel& kernel, std::pmr::memory_resource& memory) {
  using namespace encoding;
  PreparedKernel prepared;
  const SectionKind kind = SectionKind(kernel.kind);
  if (kind != SectionKind::VECTOR && kind != SectionKind::MATMUL) return prepared;
  Program program{plan, nullptr, nullptr, 0, 0, nullptr};
  Generator generator(program, kernel, plan.nodes().data() + kernel.first_node, kernel.nodes);
  generator.epilogue = kind == SectionKind::MATMUL;
  generator.find_live();
  if (generator.epilogue) generator.used |= plan.args()[kernel.first_arg].index == NONE ? 7 : 15;
  prepared.live = generator.live, prepared.used = uint16_t(generator.used);
  prepared.reduces = generator.reduces, prepared.gathers = generator.gathers;
  if (!kernel.nodes) return prepared;

  struct {
    Section head;
    Operand operands[MAX_OPERANDS];
    Word words[MAX_WORDS];
  } section;
  std::vector<PreparedKernel::Size> sizes;
  generator.sizes = &sizes;
  generator.head = &section.head, generator.operands = section.operands, generator.word_limit = MAX_WORDS;
  section.head.scratch_bytes = 0;
  generator.rank = 2, generator.dims[0] = generator.dims[1] = LANES;
  for (int arg : Mask{generator.used}) {
    const PlanArg& a = plan.args()[kernel.first_arg + arg];
    Operand& o = section.operands[generator.operand_count];
    o = {};
    const PlanExpr* inner = a.strides[0] == NONE ? nullptr : &plan.exprs()[a.strides[0]];
    const bool known = !inner || inner->op == uint16_t(ExprOp::CONST);
    o.dtype = a.dtype, o.mode = a.mode, o.arg = a.buffer == NONE ? uint16_t(INDEX) : uint16_t(0);
    o.stride[0] = known ? (inner ? int64_t(uint64_t(inner->k) * (a.buffer == NONE ? 1 : DTYPE_BYTES[a.dtype])) : 0)
                        : 1;  // 1: some other stride
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
  auto keep = [&]<class Record>(const Record* from, size_t count) -> std::span<const Record> {
    auto* to = static_cast<Record*>(memory.allocate(count * sizeof(Record), alignof(Record)));
    std::copy(from, from + count, to);
    return {to, count};
  };
  prepared.words = keep(generator.words, size_t(generator.word_count));
  prepared.constants = keep(generator.constants, size_t(generator.constant_count));
  prepared.sizes = keep(sizes.data(), sizes.size());
  return prepared;
}

DVM_ENCODES EncodeResult encode(const Plan& plan, const int64_t* values, uint8_t* out, size_t capacity) {
  using namespace encoding;
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
  const size_t kernels = plan.kernels().size();
  const size_t done = plan.has_control() ? encode_with_control(program)
                      : plan.repeats()   ? encode_repeated(program, nullptr)
                                         : encode_each(program);
  if (done < kernels) return {0, program.error, uint16_t(done)};
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
