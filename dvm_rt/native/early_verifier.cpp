#include "early_verifier.h"
#include <pthread.h>
#include <sched.h>
#include <unistd.h>
#include <algorithm>
#include <csignal>
#include <cstring>

namespace dvm {

constexpr uint64_t LOOK_NS = 1'000'000'000;  // a wake-up that is missed costs only what the device then does itself

EarlyVerifier::EarlyVerifier(const Control& control, std::vector<Ring>& rings, Trace& trace, const std::vector<int>& cpus,
                             int gate)
    : control_(control), trace_(trace), gate_(gate) {
  for (Ring& ring : rings) lanes_.emplace_back(ring);
  word() = BESIDE_LEAVE;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the loop
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int cpu : cpus) CPU_SET(size_t(cpu), &set);
  pthread_setaffinity_np(thread_.native_handle(), sizeof set, &set);  // if it may not, it shares the loop's
}

EarlyVerifier::~EarlyVerifier() {
  word() = BESIDE_END;
  futex_wake(word());
  thread_.join();
  word() = BESIDE_LEAVE;
}

// ---- the device ---------------------------------------------------------------------------------------------------

void EarlyVerifier::begin() {
  const bool waiting = std::any_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) {
    return lane.ring.written() > std::max(lane.ring.position(), lane.position.load(std::memory_order_relaxed));
  });
  word() = waiting ? BESIDE_COME : BESIDE_WAKE;
  if (waiting) futex_wake(word());
}

bool EarlyVerifier::has(size_t ring, uint64_t position) {
  Lane& lane = lanes_[ring];
  uint64_t taken = lane.taken.load(std::memory_order_relaxed);
  for (const uint64_t offered = lane.offered.load(std::memory_order_acquire); taken != offered;) {
    Verdict& first = lane.verdicts[taken % VERDICTS_MAX];
    if (first.position >= position) return first.position == position;
    first.program.reset();  // it came too late
    lane.taken.store(++taken, std::memory_order_release);
  }
  return false;
}

std::optional<EarlyVerifier::Verdict> EarlyVerifier::take(size_t ring, uint64_t position) {
  if (!has(ring, position)) return {};
  Lane& lane = lanes_[ring];
  const uint64_t taken = lane.taken.load(std::memory_order_relaxed);
  Verdict verdict = std::move(lane.verdicts[taken % VERDICTS_MAX]);
  lane.taken.store(taken + 1, std::memory_order_release);
  return verdict;
}

// ---- the thread ---------------------------------------------------------------------------------------------------

void EarlyVerifier::run() {
  for (uint64_t seen; (seen = word()) != BESIDE_END;) {
    if (seen == BESIDE_COME) {
      if (verify_one()) continue;
      // Who pushes wakes it from here on; what was pushed before that could be seen is looked at once more.
      if (!word().compare_exchange_strong(seen, BESIDE_WAKE)) continue;
      seen = BESIDE_WAKE;
      if (verify_one()) {
        word().compare_exchange_strong(seen, BESIDE_COME);
        continue;
      }
    }
    futex_wait(word(), uint32_t(seen), LOOK_NS);
  }
}

bool EarlyVerifier::verify_one() {
  return std::any_of(lanes_.begin(), lanes_.end(), [this](Lane& lane) { return verify_one(lane); });
}

// The next program of this ring, if there is one. The device may consume the message meanwhile, and its producer write over it:
// what was copied counts only if it was not consumed before the copy was whole.
bool EarlyVerifier::verify_one(Lane& lane) {
  if (lane.offered.load(std::memory_order_relaxed) - lane.taken.load(std::memory_order_acquire) == VERDICTS_MAX) return false;
  uint64_t position = std::max(lane.position.load(std::memory_order_relaxed), lane.ring.position());
  while (const auto message = lane.ring.at(position)) {
    if (message->next == position) return false;  // it makes no sense, or has been written over
    copy_.assign(message->bytes.begin(), message->bytes.end());
    std::atomic_thread_fence(std::memory_order_acquire);
    if (const uint64_t consumed = lane.ring.position(); consumed > position) {
      position = consumed;
      continue;
    }
    lane.position.store(message->next, std::memory_order_relaxed);
    RingHead head{uint32_t(RingKind::DROP), 0, 0};
    if (copy_.size() >= sizeof head) memcpy(&head, copy_.data(), sizeof head);
    if (RingKind(head.kind) == RingKind::PROGRAM && !(head.count & RING_FAILS)) return verify(lane, position, head), true;
    position = message->next;
  }
  return false;
}

void EarlyVerifier::verify(Lane& lane, uint64_t position, const RingHead& head) {
  if (char byte = 0; gate_ >= 0 && (write(gate_, &byte, 1) != 1 || read(gate_, &byte, 1) != 1)) return;  // nobody is there
  const uint64_t begin = now_ns(), offered = lane.offered.load(std::memory_order_relaxed);
  Verdict& verdict = lane.verdicts[offered % VERDICTS_MAX];
  verdict.position = position;
  // Of memory that any thread may give back.
  verdict.program = VerifiedProgram::load(copy_.data() + sizeof head, copy_.size() - sizeof head, verdict.error);
  trace_.add(TraceKind::LOAD, begin, now_ns(), head.program, uint64_t(verdict.error.code) | 1ull << 31);  // of another track
  lane.offered.store(offered + 1, std::memory_order_release);
}

}  // namespace dvm
