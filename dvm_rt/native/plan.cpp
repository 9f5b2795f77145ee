// Plan bytes: parsed and checked once, evaluated for every shape.
//
// Rules. The tables follow the head in the order of PLAN_TABLES, each at a multiple of 8 bytes. After load(), every index
// in every record names something that exists and is of the right kind; what depends on dimensions (strides, sizes) is
// checked by encode() or by the verifier.
#include "plan.h"
#include <algorithm>
#include <bit>
#include <cstring>
#include <unordered_map>
#include "matmul.h"
#include "program.h"

namespace dvm {
namespace {

constexpr int64_t KERNEL_ARGS_MAX = 12;

// Collects the first thing that is wrong. Texts: "plan: <table> <number>: <what>, got <x>, allowed <y>".
struct Check {
  std::string& error;
  const char* table = "head";
  size_t number = 0;

  bool fail(const char* what, int64_t got, const std::string& allowed) {
    if (error.empty()) {
      error = std::string("plan: ") + table + " " + std::to_string(number) + ": " + what + ", got " +
              std::to_string(got) + ", allowed " + allowed;
    }
    return false;
  }
  bool below(const char* what, size_t got, size_t limit) {
    return got < limit || fail(what, int64_t(got), "below " + std::to_string(limit));
  }
  bool is(bool good, const char* what, int64_t got, const char* allowed) { return good || fail(what, got, allowed); }
};

struct Checker {
  const Plan& plan;
  Check& check;

  size_t exprs() const { return plan.exprs().size(); }
  bool expr(const char* what, uint16_t number) { return check.below(what, number, exprs()); }
  bool expr_or_none(const char* what, uint16_t number) { return number == NONE || expr(what, number); }
  bool dtype(uint8_t code) { return check.below("dtype", code, sizeof DTYPE_BYTES); }
  bool dims(uint8_t rank, const uint16_t* dims) {
    if (!check.is(rank <= MAX_RANK, "rank", rank, "0 to 8")) return false;
    return std::all_of(dims, dims + rank, [&](uint16_t d) { return expr("dim", d); });
  }

  bool symbol(const PlanSymbol& s) {
    return check.below("parameter", s.parameter, plan.parameters().size()) &&
           check.below("dim", s.dim, plan.parameters()[s.parameter].rank);
  }
  bool expression(const PlanExpr& e, size_t number) {
    if (!check.below("op", e.op, size_t(ExprOp::MAX) + 1)) return false;
    if (e.op == uint16_t(ExprOp::CONST)) return true;
    if (e.op == uint16_t(ExprOp::SYMBOL)) {
      return check.is(e.k >= 0 && e.k < int64_t(plan.symbols().size()), "symbol", e.k, "symbols of the plan");
    }
    return check.below("a", e.a, number) && check.below("b", e.b, number);
  }
  bool parameter(const PlanParameter& p) { return dtype(p.dtype) && dims(p.rank, p.dims); }
  bool output(const PlanOutput& o, size_t number) {
    if (!(dtype(o.dtype) && dims(o.rank, o.dims) && check.below("buffer", o.buffer, plan.buffers().size()))) return false;
    const PlanBuffer& b = plan.buffers()[o.buffer];
    return check.is(b.role == uint8_t(BufferRole::OUTPUT) && b.index == number && b.dtype == o.dtype, "buffer", o.buffer,
                    "the buffer of this output");
  }
  bool buffer(const PlanBuffer& b, size_t number) {
    if (!(dtype(b.dtype) && expr("bytes", b.bytes))) return false;
    switch (BufferRole(b.role)) {
      case BufferRole::PARAMETER:
        return check.below("parameter", b.index, plan.parameters().size()) &&
               check.is(b.dtype == plan.parameters()[b.index].dtype, "dtype", b.dtype, "that of the parameter");
      case BufferRole::PACKED:
        return check.below("parameter", b.index, plan.parameters().size()) &&
               check.below("pack", b.pack, plan.packs().size()) &&
               check.is(plan.packs()[b.pack].parameter == b.index, "pack", b.pack, "a pack of the parameter") &&
               check.below("packs side by side", size_t(b.pack) + plan.packs()[b.pack].reserved, plan.packs().size()) &&
               check.is(b.dtype == plan.parameters()[b.index].dtype, "dtype", b.dtype, "that of the parameter");
      case BufferRole::OUTPUT:
        if (b.pack != NONE && !(check.below("parameter that an output continues", b.pack, plan.parameters().size()) &&
                                check.is(b.dtype == plan.parameters()[b.pack].dtype, "dtype", b.dtype,
                                         "that of the parameter it continues")))
          return false;
        return check.below("output", b.index, plan.outputs().size()) &&
               check.is(plan.outputs()[b.index].buffer == number, "output", b.index, "the output of this buffer");
      case BufferRole::TEMPORARY: return check.below("slot", b.index, size_t(plan.slots()));
    }
    return check.fail("role", b.role, "0 to 3");
  }
  static bool is_packable(uint8_t dtype) {
    const DType d = DType(dtype);
    return d == DType::FLOAT32 || d == DType::FLOAT16 || d == DType::BFLOAT16;
  }
  bool pack(const PlanPack& p) {
    return check.below("parameter", p.parameter, plan.parameters().size()) &&
           check.is(is_packable(plan.parameters()[p.parameter].dtype), "dtype of the parameter",
                    plan.parameters()[p.parameter].dtype, "float32, float16, bfloat16") &&
           expr("k", p.k) && expr("n", p.n) && expr("stride_k", p.stride_k) && expr("stride_n", p.stride_n) &&
           expr_or_none("offset", p.offset);
  }

  bool kernel(const PlanKernel& k, size_t number) {
    const SectionKind kind = SectionKind(k.kind);
    const bool matmul = kind == SectionKind::MATMUL, pack = kind == SectionKind::PACK, host = kind == SectionKind::HOST,
               copy = kind == SectionKind::COPY, attends = kind == SectionKind::ATTENTION;
    const bool control = is_control(kind), jump = kind == SectionKind::JUMP, loop = kind == SectionKind::LOOP;
    const bool computes = k.dtype == uint8_t(DType::FLOAT32) || (kind == SectionKind::VECTOR && is_compute_dtype(k.dtype)) ||
                          (matmul && is_product_dtype(k.dtype));
    if (!(check.below("kind", k.kind, size_t(SectionKind::LOOP) + 1) &&
          check.is(computes, "compute dtype", k.dtype,
                   "float32; of a vector kernel and a matmul also float64 and integers of 32 and 64 bits") &&
          dims(k.rank, k.dims) &&
          check.is(matmul || attends ? k.rank >= 2
                   : pack || control ? k.rank == 1
                                     : host || k.rank >= 1,
                   "rank", k.rank,
                   "1 and more, matmul and attention 2 and more, pack, branch, jump and loop 1, host 0 and more") &&
          check.is(size_t(k.first_arg) + k.args <= plan.args().size(), "args", k.args, "args of the plan") &&
          check.is(size_t(k.first_node) + k.nodes <= plan.nodes().size(), "nodes", k.nodes, "nodes of the plan") &&
          check.is(k.args <= KERNEL_ARGS_MAX, "args", k.args, "0 to 12") &&
          check.is(k.nodes <= MAX_NODES, "nodes", k.nodes, "0 to 64") &&
          check.is(
              matmul    ? k.args >= 3
              : pack    ? k.args == 2
              : copy    ? k.args == 2 || k.args == 3
              : attends ? k.args == 4 || k.args == 5
              : control ? k.args == !jump || (loop && !k.args)
                        : !host || k.args >= 1,
              "args", k.args,
              "3 and more, pack 2, copy 2 or 3, attention 4 or 5, host 1 and more, branch 1, jump 0, loop 0 or 1") &&
          check.is(!(pack || host || copy || control) || k.nodes == 0, "nodes", k.nodes,
                   "none in a pack, a copy, a host kernel, a branch, a jump and a loop") &&
          (matmul || pack || host || attends || control ? expr("depth", k.depth) : expr_or_none("depth", k.depth)))) {
      return false;
    }
    auto args = plan.args().subspan(k.first_arg, k.args);
    for (const PlanArg& a : args) {
      if (!arg(a, k)) return false;
    }
    if (matmul && !(matmul_args(args, k.dtype) && windows(k, args))) return false;
    if (matmul && args[0].index != NONE && !check.is(k.rank == 3, "rank", k.rank, "3 in groups")) return false;
    if (pack && !pack_args(args)) return false;
    if (attends) return attention_args(args) && attention_nodes(plan.nodes().subspan(k.first_node, k.nodes));
    if (host) return host_args(args);
    if (control) return control_kernel(k, args, number);
    if (copy) {
      const bool scatters = k.args == 3;
      return check.is(args[0].mode == READ && args[1].mode == (scatters ? WRITE | GATHER : WRITE), "mode", args[1].mode,
                      "READ, then WRITE, or WRITE | GATHER and the number of a row") &&
             check.is(args[0].dtype == args[1].dtype, "dtype of a copy", args[1].dtype, "one for both");
    }
    return nodes(k, args, plan.nodes().subspan(k.first_node, k.nodes));
  }

  bool arg(const PlanArg& a, const PlanKernel& k) {
    if (a.buffer == NONE) {
      return check.is(k.kind == uint8_t(SectionKind::VECTOR), "kind", k.kind, "INDEX args only in vector kernels") &&
             check.is(a.mode == READ, "mode of an INDEX arg", a.mode, "READ") &&
             check.is(a.dtype == uint8_t(DType::INT64), "dtype of an INDEX arg", a.dtype, "int64") &&
             expr_or_none("offset", a.offset) && check.is(a.depth == NONE, "depth of an INDEX arg", a.depth, "none") &&
             std::all_of(a.strides, a.strides + k.rank, [&](uint16_t s) { return expr_or_none("stride", s); });
    }
    if (!(check.below("buffer of an arg", a.buffer, plan.buffers().size()) && dtype(a.dtype) &&
          check.is((a.mode & ~(READ | WRITE | GATHER | PACKED | WINDOWS)) == 0, "mode", a.mode,
                   "READ, WRITE, GATHER, PACKED, WINDOWS") &&
          check.is(!(a.mode & WINDOWS) || k.kind == uint8_t(SectionKind::MATMUL), "mode", a.mode, "WINDOWS only in matmuls") &&
          expr_or_none("limit", a.limit) && expr_or_none("offset", a.offset) && expr_or_none("depth", a.depth) &&
          std::all_of(a.strides, a.strides + (k.kind == uint8_t(SectionKind::HOST) || a.mode & WINDOWS ? MAX_RANK : k.rank),
                      [&](uint16_t s) { return expr_or_none("stride", s); }))) {
      return false;
    }
    if (!(check.is(a.mode & (READ | WRITE), "mode", a.mode, "READ, WRITE") &&
          check.is(a.dtype == plan.buffers()[a.buffer].dtype, "dtype of an arg", a.dtype, "that of its buffer"))) {
      return false;
    }
    const BufferRole role = BufferRole(plan.buffers()[a.buffer].role);
    if (!check.is(!(a.mode & WRITE) || role == BufferRole::OUTPUT || role == BufferRole::TEMPORARY, "mode", a.mode,
                  "WRITE only for outputs and temporaries")) {
      return false;
    }
    if (!(a.mode & GATHER)) return true;
    const bool copy = k.kind == uint8_t(SectionKind::COPY);
    if (!(check.is(k.kind == uint8_t(SectionKind::VECTOR) || (copy && a.index == 2), "kind", k.kind,
                   "gather only in vector kernels and copies") &&
          check.is(a.mode == ((copy ? WRITE : READ) | GATHER), "mode", a.mode,
                   "READ | GATHER, of a copy WRITE | GATHER") &&
          check.below("index of a gather", a.index, k.args) && expr("limit", a.limit) && expr("depth", a.depth))) {
      return false;
    }
    const PlanArg& index = plan.args()[k.first_arg + a.index];
    return check.is(index.buffer != NONE, "index of a gather", a.index, "args with a buffer") &&
           check.is(index.dtype == uint8_t(DType::INT32) || index.dtype == uint8_t(DType::INT64), "dtype of an index",
                    index.dtype, "int32, int64") &&
           check.is((index.mode & (READ | GATHER)) == READ, "mode of an index", index.mode, "READ");
  }

  static bool is_product_dtype(uint8_t dtype) {
    const DType d = DType(dtype);
    return d == DType::FLOAT32 || d == DType::FLOAT64 || d == DType::INT32 || d == DType::UINT32 || d == DType::INT64 ||
           d == DType::UINT64;
  }
  bool matmul_args(std::span<const PlanArg> args, uint8_t dtype) {
    for (const PlanArg& a : args.first(3)) {
      const bool bytes = &a != &args[2] && DType(dtype) == DType::INT32 &&
                         (DType(a.dtype) == DType::INT8 || DType(a.dtype) == DType::UINT8);
      const bool weights = &a == &args[1] && a.mode & PACKED && is_packable(a.dtype);
      if (!check.is(a.dtype == dtype || bytes || weights, "dtype of a matrix", a.dtype,
                    "the compute dtype; int8, uint8 into int32; float16, bfloat16 of a packed B"))
        return false;
    }
    return groups(args) &&
           check.is(!(args[1].mode & PACKED) || DType(dtype) == DType::FLOAT32, "mode of B", args[1].mode, "READ") &&
           check.is(args[0].mode == READ, "mode of A", args[0].mode, "READ") &&
           check.is(args[1].mode == READ || args[1].mode == (READ | PACKED) || args[1].mode == (READ | WINDOWS), "mode of B",
                    args[1].mode, "READ, PACKED, WINDOWS") &&
           check.is((args[2].mode & ~READ) == WRITE, "mode of C", args[2].mode, "WRITE, READ | WRITE") &&
           expr("depth of A", args[0].depth) && ((args[1].mode & PACKED) || expr("depth of B", args[1].depth));
  }
  // Only B may be windows.
  bool windows(const PlanKernel& k, std::span<const PlanArg> args) {
    for (const PlanArg& a : args) {
      if (a.mode & WINDOWS && !(check.is(&a == &args[1] && args[0].index == NONE, "mode", a.mode, "WINDOWS of B, without groups") &&
                                check.is(k.rank <= WINDOWS_RANK_MAX, "rank", k.rank, "2 to 5 with windows") &&
                                check.is(a.index & 255 && a.index >> 8, "kernel of windows", a.index, "height * 256 + width") &&
                                check.is(a.dtype == k.dtype, "dtype of windows", a.dtype, "the compute dtype") &&
                                expr("limit", a.limit)))
        return false;
    }
    return true;
  }
  // Rows in groups: A names the argument that holds their numbers of rows.
  bool groups(std::span<const PlanArg> args) {
    if (args[0].index == NONE) return true;
    return check.is(args[0].index == 3 && args.size() >= 4, "argument of the groups", args[0].index, "3") &&
           check.is(args[3].buffer != NONE && args[3].mode == READ, "mode of the groups", args[3].mode, "READ") &&
           check.is(args[3].dtype == uint8_t(DType::INT32) || args[3].dtype == uint8_t(DType::INT64), "dtype of the groups",
                    args[3].dtype, "int32, int64");
  }
  bool host_args(std::span<const PlanArg> args) {  // inputs, then the output; strides are dims, depth is the rank
    for (const PlanArg& a : args) {
      const uint8_t mode = &a == &args.back() ? WRITE : READ;
      if (!(check.is(a.mode == mode, "mode", a.mode, "READ, and WRITE of the last one") && expr("rank", a.depth))) return false;
    }
    return true;
  }
  // What it skips or repeats are kernels of the plan, so many for all shapes.
  bool control_kernel(const PlanKernel& k, std::span<const PlanArg> args, size_t number) {
    const PlanExpr& span = plan.exprs()[k.depth];
    const bool loop = SectionKind(k.kind) == SectionKind::LOOP;
    const int64_t most = int64_t(loop ? number : plan.kernels().size() - number - 1);
    for (const PlanArg& a : args) {
      if (!(check.is(a.mode == READ, "mode of a flag", a.mode, "READ") &&
            check.is(a.dtype == uint8_t(DType::BOOL), "dtype of a flag", a.dtype, "bool") &&
            check.is(a.strides[0] == NONE, "stride of a flag", a.strides[0], "none"))) {
        return false;
      }
    }
    return check.is(span.op == uint16_t(ExprOp::CONST), "depth", k.depth, "constants: kernels to skip or to repeat") &&
           ((span.k >= 0 && span.k <= most) ||
            check.fail("kernels to skip or to repeat", span.k, "0 to " + std::to_string(most)));
  }
  bool pack_args(std::span<const PlanArg> args) {
    return check.is(args[0].dtype == uint8_t(DType::FLOAT32) && args[1].dtype == uint8_t(DType::FLOAT32), "dtype of a pack",
                    args[0].dtype, "float32") &&
           check.is(args[0].mode == READ, "mode of the source", args[0].mode, "READ") &&
           check.is((args[1].mode & ~PACKED) == WRITE, "mode of the packed form", args[1].mode, "WRITE") &&
           expr("depth", args[0].depth);
  }

  // Q, K, V, O and perhaps a mask.
  bool attention_args(std::span<const PlanArg> args) {
    for (const PlanArg& a : args.first(4)) {
      if (!check.is(a.dtype == uint8_t(DType::FLOAT32), "dtype of an attention", a.dtype, "float32") || !expr("depth", a.depth))
        return false;
    }
    return check.is(args[0].mode == READ, "mode of Q", args[0].mode, "READ") && expr("keys that query 0 sees", args[0].limit) &&
           expr("width of V", args[2].limit) &&
           check.is(args[1].mode == READ || args[1].mode == (READ | PACKED), "mode of K", args[1].mode, "READ, PACKED") &&
           check.is(args[2].mode == READ, "mode of V", args[2].mode, "READ") &&
           check.is(args[3].mode == WRITE, "mode of O", args[3].mode, "WRITE") &&
           (args.size() == 4 || (check.is(args[4].mode == READ, "mode of a mask", args[4].mode, "READ") &&
                                 check.is(args[4].dtype == uint8_t(DType::FLOAT32) || args[4].dtype == uint8_t(DType::BOOL),
                                          "dtype of a mask", args[4].dtype, "float32, bool")));
  }
  // Scale (a size stands for 1 / its square root), masked, empty.
  bool attention_nodes(std::span<const PlanNode> nodes) {
    if (nodes.size() == 3 && nodes[0].op == NODE_SIZE && !expr("size", nodes[0].a)) return false;
    return check.is(nodes.size() == 3 && (nodes[0].op == NODE_CONST || nodes[0].op == NODE_SIZE) &&
                        nodes[1].op == NODE_CONST && nodes[2].op == NODE_CONST,
                    "nodes", int64_t(nodes.size()), "three constants in an attention");
  }

  bool nodes(const PlanKernel& k, std::span<const PlanArg> args, std::span<const PlanNode> nodes) {
    uint64_t values = 0, stored = 0, read = 0;  // bit masks: nodes that have a value; args that are written, read
    auto value = [&](uint16_t v) { return check.is(v < MAX_NODES && values >> v & 1, "operand of a node", v, "earlier values"); };
    const bool matmul = k.kind == uint8_t(SectionKind::MATMUL);
    for (size_t i = 0; i < nodes.size(); i++) {
      const PlanNode& n = nodes[i];
      if (n.op == NODE_INPUT) {
        if (!(check.below("argument of a node", n.a, args.size()) &&
              check.is(args[n.a].mode & READ || (matmul && n.a == 2), "argument of a node", n.a, "readable ones") &&
              check.is(!matmul || n.a >= 2, "argument of a node", n.a, "2 and more in an epilogue"))) {
          return false;
        }
        read |= 1ull << n.a;
      } else if (n.op == NODE_OUTPUT) {
        if (!(value(n.a) && check.below("argument of a node", n.b, args.size()) &&
              check.is(args[n.b].mode & WRITE, "argument of a node", n.b, "writable ones") &&
              check.is(!(stored >> n.b & 1), "argument of a node", n.b, "one output each"))) {
          return false;
        }
        stored |= 1ull << n.b;
        continue;  // an output has no value
      } else if (n.op == NODE_SUM || n.op == NODE_MAX || n.op == NODE_MIN || n.op == NODE_PROD) {
        if (!(check.is(!matmul, "op", n.op, "no reductions in an epilogue") && value(n.a))) return false;
      } else if (n.op == NODE_SIZE) {
        if (!expr("size", n.a)) return false;
      } else if (n.op != NODE_CONST) {
        const bool known = n.op < ROW_COUNT, binary = known && ROW_GROUP[n.op] == Group::BINARY && n.op != ROW_mov;
        const bool runs = known && ROW_GROUP[n.op] == Group::RUNNING && !matmul;
        if (!check.is(binary || runs || (known && ROW_GROUP[n.op] == Group::UNARY), "op", n.op,
                      "binary and unary rows, running totals but in an epilogue"))
          return false;
        if (!check.is(ROW_DTYPES[n.op] >> k.dtype & 1, "op", n.op, "rows that exist for the compute dtype")) return false;
        if (!(value(n.a) && (!binary || value(n.b)))) return false;
      }
      values |= 1ull << i;
    }
    if (!matmul) return check.is(!(read & stored), "argument read and written", std::countr_zero(read & stored), "one of them");
    return check.is(nodes.empty() || stored >> 2 & 1, "nodes", int64_t(nodes.size()), "epilogues that store C") &&
           check.is(!(read & stored & ~4ull), "argument read and written", int64_t(read & stored), "only C");
  }
};

// Room that one kernel can need; generous, the encoder checks it too.
size_t section_bytes_max(const PlanKernel& k, std::span<const PlanNode> nodes) {
  int64_t reductions = 0;
  for (const PlanNode& n : nodes.subspan(k.first_node, k.nodes))
    reductions += n.op == NODE_SUM || n.op == NODE_MAX || n.op == NODE_MIN || n.op == NODE_PROD;
  const int64_t words = std::min<int64_t>(MAX_WORDS, 40 + (reductions + 2) * 4 * k.nodes);
  return sizeof(Section) + MAX_OPERANDS * sizeof(Operand) + words * (sizeof(Word) + sizeof(uint64_t));  // and as many constants
}

template <class Record>
bool take(std::span<const uint8_t> bytes, size_t& at, size_t count, std::span<const Record>& table) {
  if (count > (bytes.size() - at) / sizeof(Record)) return false;
  table = {reinterpret_cast<const Record*>(bytes.data() + at), count};
  at = std::min((at + count * sizeof(Record) + 7) & ~size_t{7}, bytes.size());
  return true;
}

}  // namespace

std::unique_ptr<Plan> Plan::load(const uint8_t* bytes, size_t n, std::string& error) {
  error.clear();
  Check check{error};
  if (n < sizeof(PlanHead)) return check.fail("truncated", int64_t(n), "bytes of a whole head"), nullptr;
  const size_t room = 2 * n + 1024;  // what is worked out is less than the plan itself
  std::unique_ptr<Plan> plan(new Plan(room));
  plan->bytes_.assign(bytes, bytes + n);
  const PlanHead& head = *reinterpret_cast<const PlanHead*>(plan->bytes_.data());
  if (!(check.is(head.magic == PLAN_MAGIC, "magic", head.magic, "that of a plan") &&
        check.is(head.version == VERSION, "version", head.version, "1") &&
        check.is(head.table_hash == TABLE_HASH, "table hash", int64_t(head.table_hash), "that of this build") &&
        check.is(head.checksum == checksum(plan->bytes_.data() + sizeof head, n - sizeof head), "checksum",
                 int64_t(head.checksum), "that of the bytes") &&
        check.is(head.symbols <= MAX_SYMBOLS, "symbols", head.symbols, "0 to 64") &&
        check.is(head.exprs <= MAX_EXPRS, "expressions", head.exprs, "0 to 4096") &&
        check.is(head.kernels <= MAX_SECTIONS, "kernels", head.kernels, "0 to 4096") &&
        check.is(head.buffers <= MAX_ARGS, "buffers", head.buffers, "0 to 2048") &&
        check.is(head.slots <= MAX_ARGS, "workspace slots", head.slots, "0 to 2048"))) {
    return nullptr;
  }
  size_t at = sizeof head;
  const auto& all = plan->bytes_;
  if (!(take(all, at, head.symbols, plan->symbols_) && take(all, at, head.exprs, plan->exprs_) &&
        take(all, at, head.parameters, plan->parameters_) && take(all, at, head.outputs, plan->outputs_) &&
        take(all, at, head.buffers, plan->buffers_) && take(all, at, head.packs, plan->packs_) &&
        take(all, at, head.kernels, plan->kernels_) && take(all, at, head.args, plan->args_) &&
        take(all, at, head.nodes, plan->nodes_) && at == n)) {
    return check.fail("length", int64_t(n), "what the head says"), nullptr;
  }
  plan->slots_ = head.slots;

  Checker checker{*plan, check};
  auto every = [&](const char* table, auto records, auto good) {
    check.table = table;
    for (check.number = 0; check.number < records.size(); check.number++) {
      if (!good(records[check.number])) return false;
    }
    return true;
  };
  if (!(every("symbol", plan->symbols(), [&](auto& r) { return checker.symbol(r); }) &&
        every("expression", plan->exprs(), [&](auto& r) { return checker.expression(r, check.number); }) &&
        every("parameter", plan->parameters(), [&](auto& r) { return checker.parameter(r); }) &&
        every("output", plan->outputs(), [&](auto& r) { return checker.output(r, check.number); }) &&
        every("buffer", plan->buffers(), [&](auto& r) { return checker.buffer(r, check.number); }) &&
        every("pack", plan->packs(), [&](auto& r) { return checker.pack(r); }) &&
        every("kernel", plan->kernels(), [&](auto& r) { return checker.kernel(r, check.number); }))) {
    return nullptr;
  }
  for (const PlanKernel& k : plan->kernels()) {
    plan->has_control_ |= is_control(SectionKind(k.kind));
    plan->has_products_ |= SectionKind(k.kind) == SectionKind::MATMUL;
  }

  plan->argument_of_buffer_.reserve(plan->buffers().size()), plan->program_args_.reserve(plan->buffers().size());
  plan->like_.reserve(plan->kernels().size()), plan->prepared_.reserve(plan->kernels().size());
  for (const PlanBuffer& b : plan->buffers()) {
    const bool temporary = b.role == uint8_t(BufferRole::TEMPORARY);
    plan->argument_of_buffer_.push_back(temporary ? uint16_t(WORKSPACE) : uint16_t(plan->program_args_.size()));
    if (temporary) continue;
    const uint8_t mode = b.role == uint8_t(BufferRole::OUTPUT) ? WRITE : READ;
    plan->program_args_.push_back({0, mode, b.dtype, 0, DTYPE_BYTES[b.dtype]});
  }
  for (const PlanKernel& k : plan->kernels()) {
    for (int i = 0; i < k.args; i++) {
      const PlanArg& a = plan->args()[k.first_arg + i];
      if (a.buffer == NONE) continue;
      const uint16_t argument = plan->argument_of_buffer_[a.buffer];
      const bool product = k.kind == uint8_t(SectionKind::MATMUL) && i == 2;
      if (argument != WORKSPACE) plan->program_args_[argument].mode |= (a.mode & (READ | WRITE)) | (product ? READ : 0);
    }
  }
  size_t bytes_max = sizeof(ProgramHead) + plan->program_args_.size() * sizeof(ProgramArg);
  for (const PlanKernel& k : plan->kernels()) bytes_max += section_bytes_max(k, plan->nodes());
  plan->find_like();
  for (size_t i = 0; i < plan->kernels().size(); i++)
    plan->prepared_.push_back(plan->like_[i].first == i ? prepare(*plan, plan->kernels()[i], plan->memory_)
                                                        : PreparedKernel());
  const auto* const begin = reinterpret_cast<const std::byte*>(plan->bytes_.data());
  const auto* end = static_cast<const std::byte*>(plan->memory_.allocate(1, 1));
  plan->memory_used_ = {begin, end >= begin && end <= begin + room ? end : begin + room};
  plan->program_bytes_max_ = std::min(bytes_max, size_t(MAX_PROGRAM_BYTES));
  return plan;
}

// Buffers count by the order in which a kernel names them, and by whether they are workspace. Expressions are one if their
// numbers are: who writes plans writes each of them once.
void Plan::find_like() {
  std::unordered_map<std::string, uint16_t> firsts;
  uint16_t repeated = 0;
  for (size_t i = 0; i < kernels_.size(); i++) {
    like_.push_back({uint16_t(i)});
    PlanKernel k = kernels_[i];
    const SectionKind kind = SectionKind(k.kind);
    if (kind != SectionKind::VECTOR && kind != SectionKind::MATMUL && kind != SectionKind::ATTENTION) continue;
    std::string content;
    auto add = [&](const auto& record) { content.append(reinterpret_cast<const char*>(&record), sizeof record); };
    auto args = args_.subspan(k.first_arg, k.args);
    for (PlanArg a : args) {
      const bool workspace = a.buffer != NONE && buffers_[a.buffer].role == uint8_t(BufferRole::TEMPORARY);
      const auto named = std::find_if(args.begin(), args.end(), [&](const PlanArg& b) { return b.buffer == a.buffer; });
      if (a.buffer != NONE) a.buffer = uint16_t((named - args.begin()) * 2 + workspace);
      add(a);
    }
    for (const PlanNode& n : nodes_.subspan(k.first_node, k.nodes)) add(n);
    k.first_arg = k.first_node = 0;
    add(k);
    LikeKernel& first = like_[firsts.try_emplace(std::move(content), uint16_t(i)).first->second];
    if (first.first == i) continue;
    repeats_ = true;
    if (first.number == NONE && repeated < REPEATED_MAX) first.number = repeated++;
    like_[i] = first;
  }
}

bool Plan::evaluate(const int64_t* symbols, int64_t* values) const {
  for (size_t i = 0; i < symbols_.size(); i++) {
    if (symbols[i] < 0) return false;
  }
  int64_t* out = values;
  for (const PlanExpr& e : exprs_) {
    const ExprOp op = ExprOp(e.op);
    if (op == ExprOp::CONST || op == ExprOp::SYMBOL) {
      *out++ = op == ExprOp::CONST ? e.k : symbols[e.k];
      continue;
    }
    const int64_t a = values[e.a], b = values[e.b];
    switch (op) {
      case ExprOp::ADD:
        if (__builtin_add_overflow(a, b, out)) return false;
        break;
      case ExprOp::MUL:
        if (__builtin_mul_overflow(a, b, out)) return false;
        break;
      case ExprOp::FLOORDIV:
      case ExprOp::MOD: {
        if (b == 0 || (op == ExprOp::FLOORDIV && a == INT64_MIN && b == -1)) return false;
        if (b == -1) {  // the quotient of the most negative number does not fit
          *out = op == ExprOp::FLOORDIV ? -a : 0;
          break;
        }
        const int64_t quotient = a / b, rest = a % b;
        const bool below = rest != 0 && (rest < 0) != (b < 0);  // C++ rounds towards zero, Python down
        *out = op == ExprOp::FLOORDIV ? quotient - below : rest + (below ? b : 0);
        break;
      }
      case ExprOp::MIN: *out = std::min(a, b); break;
      default: *out = std::max(a, b); break;
    }
    out++;
  }
  return true;
}

}  // namespace dvm
