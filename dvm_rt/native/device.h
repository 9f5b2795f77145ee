// The device: runs what arrives in its rings, in stream order, each launch as soon as its program is there.
//
// Owns private copies of verified programs and of queued launches, and nothing durable: a device that dies is replaced by
// another that starts at the word `done`. It trusts nobody. Programs are copied, then verified; extents and permission
// come from the launch and are checked against the arena; launches that are not the next in order are dropped; a ring
// whose lengths make no sense is not read again.
//
// While a launch runs that takes long, a second thread (early_verifier.h) verifies what lies in the rings. It changes nothing
// here, and nothing here waits for it: a message that it has verified costs less to take, and that is all.
//
// It counts its own idle time: `exposed` (the next launch lacks its program) and `starved` (there is no launch), the
// latter split by the client's clock words into time inside our client code and the user's own.
#pragma once
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>
#include "blocks.h"
#include "control.h"
#include "early_verifier.h"
#include "id_map.h"
#include "machine.h"
#include "ring.h"
#include "trace.h"

namespace dvm {

struct DeviceOptions {
  int control = -1, arena = -1, eventfd = -1, trace = -1;
  std::vector<int> rings;  // the client's, then one for each worker
  double spin_us = 50;
  uint64_t program_bytes_max = 1ull << 30;  // of all programs together
  std::string target;
  int threads = 1;  // that run kernels
  double loop_s = 1e6;  // that loops of a launch may take
  std::vector<int> beside_cpus;  // on which the second thread verifies; none: there is no such thread
  int64_t beside_ns = 50'000;  // beside launches whose long sections take longer, as modelled
  int beside_gate = -1;  // EarlyVerifier's
  bool tune = false;     // programs that run often try other choices (tuning.h)
};

class Device {
 public:
  enum class Step : uint8_t { IDLE, TOOK, RAN, COMMITTED };

  explicit Device(const DeviceOptions& options);  // throws Error
  void serve(uint64_t timeout_ns);                // the loop; returns when the time is over
  // One step of the loop: a message taken from a ring, else a launch run, else (after RAN) that launch committed.
  Step step();
  size_t program_count() const { return programs_.size(); }
  uint64_t refused() const { return refused_; }

 private:
  struct Entry {
    std::unique_ptr<VerifiedProgram> program;  // none: the client says that it fails
    uint64_t bytes = 0;
  };
  enum class Taking : uint8_t { ALL, NO_WORK };  // NO_WORK: no programs that are to be verified
  bool take_one(Taking taking = Taking::ALL);
  bool take_all();
  bool take(size_t ring, std::span<const uint8_t> message);
  void take_program(size_t ring, const RingHead& head, std::span<const uint8_t> bytes);
  std::unique_ptr<VerifiedProgram> verified(size_t ring, const RingHead& head, std::span<const uint8_t> bytes,
                                            VerifyError& error);
  void take_launch(std::span<const uint8_t> message);
  void drop(const RingHead& head);
  void refuse(size_t ring, const RingHead& head, const VerifyError& error);
  bool post_refused();
  bool run_head();
  bool anything_waits();
  Trap bind_and_run(const VerifiedProgram& program, const LaunchHead& launch, const LaunchArg* args);
  bool in_arena(uint64_t offset, uint64_t bytes);
  void commit_head();
  bool head_waits() const { return first_ != last_; }
  bool head_can_run() const;
  void rest();
  void feed(uint64_t now);
  uint64_t client_time(uint64_t now) const;

  DeviceOptions options_;
  Control control_;
  Mapping arena_;
  std::vector<Ring> rings_;
  Trace trace_;
  Machine machine_;
  Blocks memory_;  // of programs: they come and go by the thousand
  IdMap<Entry> programs_;
  std::unordered_set<uint64_t> dropped_;  // given up by the client, but a worker may still send them
  std::vector<std::vector<uint8_t>> queue_;  // launch records, from first_ to last_
  uint64_t first_ = 0, last_ = 0, queued_seq_;
  std::vector<Binding> bindings_;
  std::vector<HostSpan> host_calls_;  // of the launch that ran
  std::vector<Event> unposted_;
  uint64_t sections_split_ = 0;  // as far as the control page knows
  Machine::Tuned tuned_;         // so too
  uint64_t program_bytes_ = 0, refused_ = 0;
  bool ran_ = false, beside_runs_ = false;  // beside_runs_: the second thread works beside the launch
  LaunchHead running_{};
  Trap trap_;
  uint64_t begin_ns_ = 0, end_ns_ = 0;  // of the last launch; end_ns_ is also the end of a program's check, 0: long ago
  uint64_t rested_ns_ = 0;  // the end of the last work
  uint64_t expected_idle_ns_ = 0;  // before the next message, as it was lately
  uint64_t exposed_from_ = 0, starved_from_ = 0, client_at_ = 0;
  std::unique_ptr<EarlyVerifier> beside_;  // last: it ends first
};

}  // namespace dvm
