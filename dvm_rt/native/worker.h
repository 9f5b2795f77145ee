// An encoder worker: operator instances in, programs out. It maps no tensors and holds no state but plans.
//
// A local worker pushes programs into its own ring to the device and counts in its line of the control page: `received`
// when it begins an instance, `encoded` when programs can be seen in the ring, a few together (each publication costs the
// device a cache line), so whoever buries it knows what it died of: the instance that it began last. A
// worker of a pool (no control page, no ring) hands them back as bytes. An instance that cannot be encoded gives an empty
// program: the device refuses it and the client, who encodes it again, learns why.
#pragma once
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>
#include "control.h"
#include "plan.h"
#include "ring.h"
#include "trace.h"

namespace dvm {

struct EncoderOptions {
  int control = -1, ring = -1, worker = 0, trace = -1;
  uint64_t encode_work_ns = 0;  // for experiments: each encode takes this much longer
};

class Encoder {
 public:
  explicit Encoder(const EncoderOptions& options);
  void add_plan(uint32_t number, std::span<const uint8_t> bytes);  // throws Error
  void forget_plan(uint32_t number) { plans_.erase(number); }
  // Encodes the instances (InstanceHead + symbols, one after another) from byte `start` until the time is over or the
  // ring has no room; at least one unless the ring is full. Returns the byte to go on from. Throws Error for bytes that
  // are no instances.
  size_t encode(std::span<const uint8_t> instances, size_t start, double budget_us);
  using Programs = std::vector<std::pair<uint64_t, std::vector<uint8_t>>>;
  size_t encode(std::span<const uint8_t> instances, size_t start, double budget_us, Programs& out);
  uint64_t encoded() const { return encoded_; }

 private:
  struct Instance {
    uint64_t program;
    uint32_t number;  // of the plan
    const Plan* plan;
    std::span<const int64_t> symbols;
    size_t end;
  };
  Instance parse(std::span<const uint8_t> instances, size_t at);
  std::span<const uint8_t> encode_one(const Instance& instance, uint64_t& now);  // `now`: when it begins, then when it ends
  template <class Emit> size_t encode_all(std::span<const uint8_t> instances, size_t start, double budget_us,
                                          Emit emit);  // emit(instance, program, now)

  EncoderOptions options_;
  Control control_;
  Ring ring_;
  Trace trace_;
  std::unordered_map<uint32_t, std::unique_ptr<Plan>> plans_;
  std::vector<int64_t> values_, symbols_;
  std::vector<uint8_t> scratch_;
  uint64_t encoded_ = 0, received_before_ = 0;  // by this worker; by its predecessors
};

}  // namespace dvm
