#include "beside.h"
#include <pthread.h>
#include <sched.h>
#include <csignal>

namespace dvm {

constexpr uint64_t SPIN_NS = 20'000, LOOK_NS = 1'000'000;

Beside::Beside(const Control& control, const std::vector<int>& cpus, std::function<bool()> take)
    : control_(control), take_(std::move(take)) {
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

Beside::~Beside() {
  if (state_ != HOME) take_back();
  word() = BESIDE_END;
  futex_wake(word());
  thread_.join();
  word() = BESIDE_LEAVE;
}

void Beside::lend(bool waiting) {
  state_ = LENT;
  word() = waiting ? BESIDE_COME : BESIDE_WAKE;
  if (waiting) futex_wake(word());
}

void Beside::take_back() {
  word() = BESIDE_LEAVE;
  wanted_ = true;
  const uint64_t spin = now_ns() + SPIN_NS;
  for (uint64_t lent = LENT; !state_.compare_exchange_strong(lent, HOME); lent = LENT) {
    if (now_ns() < spin) pause_cpu();
    else futex_wait(state_, AT_WORK, LOOK_NS);
  }
  wanted_ = false;
  word() = BESIDE_LEAVE;  // it may have asked to be woken meanwhile
}

// Takes all there is, then wants to be woken; what was pushed before the pusher could see that is taken too.
void Beside::work() {
  while (!wanted_) {
    if (take_()) continue;
    word() = BESIDE_WAKE;
    if (wanted_ || !take_()) return;
    word() = BESIDE_LEAVE;
  }
}

void Beside::run() {
  for (uint64_t seen; (seen = word()) != BESIDE_END;) {
    if (uint64_t lent = LENT; state_.compare_exchange_strong(lent, AT_WORK)) {
      work();
      state_ = LENT;
      if (wanted_) futex_wake(state_);
      seen = BESIDE_WAKE;
    }
    futex_wait(word(), uint32_t(seen), LOOK_NS * 1000);  // a wake-up that is missed costs only what the loop then does itself
  }
}

}  // namespace dvm
