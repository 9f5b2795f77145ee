// A few threads that run the parts of one job: the calling thread and those that wait for it.
//
// A job is `parts` calls of one function. Every thread has a range of them, so that the same thread meets the same data in
// the next section, and takes them to and fro: every other job from the last one on, because what it met last is still in its
// caches. Who is done early takes from the other end of somebody else's. The caller works from the first moment and
// waits only for parts that somebody has begun: threads that sleep, or that the system does not let run, hold up
// nothing that they have not begun. After a job they spin for a while, then sleep on a futex; waking them costs a
// system call, so the caller says when a job is long enough for it.
//
// One thread owns the pool and calls it. run() does not allocate and takes no lock. In a forked child the threads are
// gone; there run() does everything on the calling thread.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>

namespace dvm {

class ThreadPool {
 public:
  using Work = void (*)(void* job, int thread, int64_t part);  // thread 0 is the caller

  explicit ThreadPool(int threads);  // throws std::system_error
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  // Calls work(job, thread, part) once for each part in [0, parts), parts <= PARTS_MOST. What the parts did is visible to the
  // caller afterwards. `wake`: threads that sleep are woken.
  void run(int64_t parts, Work work, void* job, bool wake);
  void wake();  // so that they spin when the next job comes
  // From now on the caller runs all parts, each in the name of a thread and in an order that are drawn by lot: how threads that
  // are late, or never come, may share them. For tests.
  void draw_lots(uint64_t seed) { lots_ = seed; }

  static constexpr int THREADS_MAX = 64;
  static constexpr int64_t PARTS_MOST = 0xffff;

 private:
  // generation << 32 | next << 16 | end: the parts of a thread that nobody has begun. A thread that read it before the next
  // job began cannot take anything: the generation has changed.
  struct alignas(64) Range {
    std::atomic<uint64_t> parts{0};
  };
  void serve(int thread);
  void stop();
  bool wait_for_job(uint32_t& seen);
  void take_parts(int thread);
  void run_by_lot(int64_t parts, Work work, void* job);
  bool take(Range& range, bool own, int64_t& part);
  void wait_for_parts(int64_t parts);

  const int threads_;
  const uint64_t spin_ns_;
  const uint64_t fork_generation_;
  uint32_t generation_ = 0;
  uint64_t lots_ = 0;  // 0: none are drawn
  std::unique_ptr<Range[]> ranges_;
  std::unique_ptr<std::thread[]> workers_;
  Work work_ = nullptr;  // of the job at hand; whoever has taken a part may read them
  void* job_ = nullptr;
  alignas(64) std::atomic<uint32_t> job_number_{0};  // futex of those who wait for a job
  std::atomic<uint32_t> sleepers_{0};
  std::atomic<bool> stop_{false};
  alignas(64) std::atomic<uint32_t> done_{0};  // parts; futex of the caller
  std::atomic<bool> caller_sleeps_{false};
};

}  // namespace dvm
