// A shape-polymorphic plan, and its encoding for concrete dimensions.
//
// A plan is parsed once and then read only. encode() is a pure function of (plan, symbols): every process gives the
// same bytes. It neither allocates nor hashes nor looks at the machine it runs on.
#pragma once
#include <memory>
#include <memory_resource>
#include <span>
#include <string>
#include <vector>
#include "layout.h"

namespace dvm {

// What encode() knows of a kernel before any dimension: liveness, and its words for the expected inner strides. What it points
// at lies in its plan's memory.
struct PreparedKernel {
  uint64_t live = 0;    // nodes that an output needs
  uint16_t used = 0;    // arguments that become operands
  bool reduces = false, gathers = false;
  uint32_t forms = ~0u;  // two bits an operand: the inner strides that `words` are for; ~0: none are prepared
  uint8_t row_buffers = 0;
  uint16_t strips = 0;            // operands that are read as strips
  uint16_t pass_at[2] = {0, 0};   // the first passes of the first two levels, if `words` begin with them there
  struct Size {  // a word (8-byte compute dtypes: an entry of `constants`) that is a dimension
    uint16_t at, expr;
  };
  std::span<const Word> words;
  std::span<const uint64_t> constants;
  std::span<const Size> sizes;
};

// Which kernels are one kernel over other buffers: layers of a network. Their sections differ in places alone.
struct LikeKernel {
  uint16_t first = 0;      // the first one that is so
  uint16_t number = NONE;  // of those that come again, below REPEATED_MAX; NONE: it does not
};
constexpr uint16_t REPEATED_MAX = 256;

class Plan {
 public:
  // Checks every index of every record, so that encode() need not. nullptr and `error` if something is wrong.
  static std::unique_ptr<Plan> load(const uint8_t* bytes, size_t n, std::string& error);

  std::span<const PlanSymbol> symbols() const { return symbols_; }
  std::span<const PlanExpr> exprs() const { return exprs_; }
  std::span<const PlanParameter> parameters() const { return parameters_; }
  std::span<const PlanOutput> outputs() const { return outputs_; }
  std::span<const PlanBuffer> buffers() const { return buffers_; }  // program arguments: those not TEMPORARY, in order
  std::span<const PlanPack> packs() const { return packs_; }
  std::span<const PlanKernel> kernels() const { return kernels_; }
  std::span<const PlanArg> args() const { return args_; }
  std::span<const PlanNode> nodes() const { return nodes_; }
  int slots() const { return slots_; }
  bool has_control() const { return has_control_; }  // some kernel is a branch, a jump or a loop
  bool has_products() const { return has_products_; }
  bool repeats() const { return repeats_; }  // some kernel is like another one

  // values[i] = expression i for these symbols; values has room for exprs().size(). False on a negative symbol, on
  // division by zero and on 64-bit overflow.
  bool evaluate(const int64_t* symbols, int64_t* values) const;
  size_t program_bytes_max() const { return program_bytes_max_; }  // room that encode() can need
  // Program arguments without their sizes, and the argument number of every buffer (WORKSPACE if TEMPORARY).
  std::span<const ProgramArg> program_args() const { return program_args_; }
  std::span<const uint16_t> argument_of_buffer() const { return argument_of_buffer_; }
  std::span<const LikeKernel> like() const { return like_; }                  // by kernel
  std::span<const PreparedKernel> prepared() const { return prepared_; }  // of those that are the first of their like
  // All of the above: it is in no cache when it is wanted, after other work, and can be asked for at once.
  std::span<const std::byte> memory() const { return memory_used_; }

 private:
  explicit Plan(size_t room) : memory_(room) {}
  std::pmr::monotonic_buffer_resource memory_;  // one stretch, unless words take more than is usual
  std::span<const std::byte> memory_used_;
  std::pmr::vector<uint8_t> bytes_{&memory_};
  std::span<const PlanSymbol> symbols_;
  std::span<const PlanExpr> exprs_;
  std::span<const PlanParameter> parameters_;
  std::span<const PlanOutput> outputs_;
  std::span<const PlanBuffer> buffers_;
  std::span<const PlanPack> packs_;
  std::span<const PlanKernel> kernels_;
  std::span<const PlanArg> args_;
  std::span<const PlanNode> nodes_;
  std::pmr::vector<ProgramArg> program_args_{&memory_};
  std::pmr::vector<uint16_t> argument_of_buffer_{&memory_};
  void find_like();
  std::pmr::vector<LikeKernel> like_{&memory_};
  std::pmr::vector<PreparedKernel> prepared_{&memory_};
  int slots_ = 0;
  bool has_control_ = false, has_products_ = false, repeats_ = false;
  size_t program_bytes_max_ = 0;
};

// What load() keeps for encode(); in encode.cpp.
PreparedKernel prepare(const Plan& plan, const PlanKernel& kernel, std::pmr::memory_resource& memory);

struct EncodeResult {
  int64_t bytes = 0;            // 0: nothing to run (every output is empty), or `error` is set
  const char* error = nullptr;  // what is wrong; static text
  uint16_t kernel = 0;          // where
};
// `values` are the plan's expressions for these dimensions (Plan::evaluate). `out` has `capacity` bytes, 8-aligned.
EncodeResult encode(const Plan& plan, const int64_t* values, uint8_t* out, size_t capacity);

}  // namespace dvm
