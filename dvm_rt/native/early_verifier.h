// A second thread of the device, which verifies programs beside a launch that takes long, before the device comes to them.
//
// Nobody waits for it: it shares CPUs with other processes and may be kept from running at any moment. It owns nothing that the
// device needs. It reads ahead in the rings and consumes nothing: messages, and their order, stay the device's. What it has
// verified is a private copy of one message, known by ring and position, and offered; the device takes it when it comes to that
// message, or, if it is not there yet, verifies the message itself, and what comes late is dropped.
//
// It works while a launch runs (begin() to end()), sleeps in between, and is woken by whoever pushes something
// (Control::wake_device).
#pragma once
#include <array>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <vector>
#include "control.h"
#include "program.h"
#include "ring.h"
#include "trace.h"

namespace dvm {

class EarlyVerifier {
 public:
  struct Verdict {
    uint64_t position = 0;  // of the message in its ring
    std::unique_ptr<VerifiedProgram> program;  // none: refused
    VerifyError error;
  };

  // On these CPUs. `gate`: for tests, a socket: it sends a byte when it has copied a program, and waits for one; -1: none.
  EarlyVerifier(const Control& control, std::vector<Ring>& rings, Trace& trace, const std::vector<int>& cpus, int gate = -1);
  ~EarlyVerifier();
  EarlyVerifier(const EarlyVerifier&) = delete;

  // ---- the device ----
  void begin();
  void end() { word() = BESIDE_LEAVE; }
  bool has(size_t ring, uint64_t position);  // positions of a ring are asked for in their order
  std::optional<Verdict> take(size_t ring, uint64_t position);

 private:
  static constexpr size_t VERDICTS_MAX = 64;  // of one ring, offered and not taken
  struct Lane {
    explicit Lane(Ring& ring) : ring(ring), position(ring.position()) {}
    Ring& ring;
    std::atomic<uint64_t> position;  // of the message that the thread looks at next
    std::array<Verdict, VERDICTS_MAX> verdicts;
    std::atomic<uint64_t> offered{0}, taken{0};
  };
  void run();
  bool verify_one();
  bool verify_one(Lane& lane);
  void verify(Lane& lane, uint64_t position, const RingHead& head);
  std::atomic<uint64_t>& word() const { return control_.word(CONTROL_BESIDE); }

  const Control& control_;
  Trace& trace_;
  const int gate_;
  std::deque<Lane> lanes_;  // one for each ring
  std::vector<uint8_t> copy_;
  std::thread thread_;  // last: it uses all others
};

}  // namespace dvm
