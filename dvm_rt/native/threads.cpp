#include "threads.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <csignal>
#include "shared.h"

namespace dvm {
namespace {

uint64_t fork_generation = 0;
void watch_forks() {
  static const int once = pthread_atfork(nullptr, nullptr, [] { ++fork_generation; });
  (void)once;
}

// After a job, or while others finish it. Where there are fewer CPUs than threads, whoever spins keeps the others from working.
constexpr uint64_t SPIN_NS = 50'000;
int free_cpus() {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof cpus, &cpus) ? ThreadPool::THREADS_MAX : CPU_COUNT(&cpus);
}

void sleep_on(std::atomic<uint32_t>& word, uint32_t seen) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}
void wake_from(std::atomic<uint32_t>& word) { syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1 << 30, nullptr, nullptr, 0); }

template <class F> bool spin_until(F condition, uint64_t spin_ns) {
  if (condition()) return true;
  using Clock = std::chrono::steady_clock;
  for (const auto stop = Clock::now() + std::chrono::nanoseconds(spin_ns); Clock::now() < stop;)
    for (int i = 0; i < 16; i++) {
      pause_cpu();
      if (condition()) return true;
    }
  return false;
}

constexpr uint64_t range_of(uint32_t generation, int64_t next, int64_t end) {
  return uint64_t(generation) << 32 | uint64_t(next) << 16 | uint64_t(end);
}
constexpr int64_t next_of(uint64_t range) { return range >> 16 & 0xffff; }
constexpr int64_t end_of(uint64_t range) { return range & 0xffff; }

}  // namespace

ThreadPool::ThreadPool(int threads)
    : threads_(threads), spin_ns_(free_cpus() < threads ? 0 : SPIN_NS), fork_generation_((watch_forks(), fork_generation)),
      ranges_(new Range[size_t(threads)]), workers_(new std::thread[size_t(threads)]) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program that we are part of
  try {
    for (int i = 1; i < threads; i++) workers_[i] = std::thread([this, i] { serve(i); });
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    stop();
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

ThreadPool::~ThreadPool() {
  if (fork_generation != fork_generation_) {
    workers_.release();  // nobody to join; their records belong to threads of the parent
    return;
  }
  stop();
}

void ThreadPool::stop() {
  stop_ = true;
  job_number_.fetch_add(1);
  wake_from(job_number_);
  for (int i = 1; i < threads_; i++)
    if (workers_[i].joinable()) workers_[i].join();
}

void ThreadPool::run(int64_t parts, Work work, void* job, bool wake) {
  if (threads_ == 1 || fork_generation != fork_generation_) {
    for (int64_t part = 0; part < parts; part++) work(job, 0, part);
    return;
  }
  if (lots_) return run_by_lot(parts, work, job);
  work_ = work, job_ = job;
  done_.store(0, std::memory_order_relaxed);
  generation_++;
  for (int i = threads_ - 1; i >= 0; i--)
    ranges_[i].parts.store(range_of(generation_, parts * i / threads_, parts * (i + 1) / threads_), std::memory_order_release);
  job_number_.fetch_add(1);
  if (wake) this->wake();
  take_parts(0);
  wait_for_parts(parts);
}

void ThreadPool::run_by_lot(int64_t parts, Work work, void* job) {
  auto below = [&](int64_t n) {
    lots_ = lots_ * 6364136223846793005 + 1442695040888963407;
    return int64_t((lots_ >> 33) % uint64_t(n));
  };
  const int64_t threads = 1 + below(threads_), first = below(threads_), begin = below(std::max<int64_t>(parts, 1)), backwards = below(2);
  for (int64_t i = 0; i < parts; i++) {
    const int64_t part = (begin + i) % parts;
    work(job, int((first + below(threads)) % threads_), backwards ? parts - 1 - part : part);
  }
}

void ThreadPool::wake() {
  if (sleepers_.load() && fork_generation == fork_generation_) wake_from(job_number_);
}

void ThreadPool::wait_for_parts(int64_t parts) {
  auto over = [&] { return done_.load(std::memory_order_acquire) == uint32_t(parts); };
  if (spin_until(over, spin_ns_)) return;
  caller_sleeps_ = true;
  for (uint32_t seen; (seen = done_.load()) != uint32_t(parts);) sleep_on(done_, seen);
  caller_sleeps_ = false;
}

void ThreadPool::serve(int thread) {
  pthread_setname_np(pthread_self(), "dvm_rt kernels");
  uint32_t seen = 0;
  while (wait_for_job(seen)) take_parts(thread);
}

// False: the pool ends.
bool ThreadPool::wait_for_job(uint32_t& seen) {
  auto changed = [&] { return job_number_.load(std::memory_order_acquire) != seen; };
  while (!spin_until(changed, spin_ns_)) {
    sleepers_.fetch_add(1);
    sleep_on(job_number_, seen);
    sleepers_.fetch_sub(1);
  }
  seen = job_number_.load();
  return !stop_;
}

void ThreadPool::take_parts(int thread) {
  uint32_t count = 0;
  int64_t part;
  for (; take(ranges_[thread], true, part); count++) work_(job_, thread, part);
  for (int i = 1; i < threads_; i++)
    for (Range& other = ranges_[(thread + i) % threads_]; take(other, false, part); count++) work_(job_, thread, part);
  if (!count) return;
  done_.fetch_add(count);  // from here on the caller may begin another job
  if (caller_sleeps_.load()) wake_from(done_);
}

bool ThreadPool::take(Range& range, bool own, int64_t& part) {
  uint64_t seen = range.parts.load(std::memory_order_acquire), left;
  do {
    const int64_t next = next_of(seen), end = end_of(seen);
    if (next == end) return false;
    const bool first = own == (seen >> 32 & 1);
    part = first ? next : end - 1, left = first ? seen + (1 << 16) : seen - 1;
  } while (!range.parts.compare_exchange_weak(seen, left, std::memory_order_acq_rel, std::memory_order_acquire));
  return true;
}

}  // namespace dvm
