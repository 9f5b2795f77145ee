// Runs verified programs, large sections on several threads. One owner, who runs one program at a time; it allocates only
// when it meets a larger scratch need.
//
// Bits do not depend on the number of threads, and neither do traps: of all units that would trap, the first one counts.
// Buffers of a launch that overlap where one of them is written are the only exception. The stream makes one kind of such: an
// output that continues an input starts where the input starts, and is written behind it; copying the input there does nothing.
#pragma once
#include <vector>
#include "target.h"
#include "threads.h"

namespace dvm {

struct Binding {  // what a launch gives for one argument of a program: authority over extents and permission
  uint8_t* address;
  uint64_t bytes;
  bool writable;
};

// Runs a HOST section: its operands' memory is proven, the rest is the runner's. Set where there is Python; without one such
// sections trap. The trap's word is the number of the function.
using HostRunner = Trap (*)(const SectionRun& run);
extern HostRunner host_runner;

struct HostSpan {  // one host function that a run called
  uint64_t begin_ns, end_ns;
  uint32_t function;
};

class Machine {
 public:
  // Throws std::system_error if the system gives no threads.
  explicit Machine(const Target& target = best_target(), int threads = 1);
  // `workspace` holds head().workspace_bytes, ARENA_ALIGN aligned. Bindings smaller than the program declares, not
  // aligned, or not writable where it writes give TrapCode::BINDING (word = argument) before anything runs.
  // Loops also end (STOPPED) when `deadline_ns` (now_ns; 0: none) has passed.
  Trap run(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace, uint64_t deadline_ns = 0);
  // From now on programs that it runs are tuned (tuning.h). They are run by nobody else then.
  void tune() { tunes_ = true; }
  struct Tuned { uint64_t tried = 0, kept = 0, gained_ns = 0; };  // choices; a run, of all that were kept
  const Tuned& tuned() const { return tuned_; }
  void reserve(const VerifiedProgram& program);  // scratch, so that run() does not allocate
  const std::vector<HostSpan>& host_calls() const { return host_calls_; }  // of the last run()
  int threads() const { return int(threads_.size()); }
  uint64_t sections_split() const { return sections_split_; }
  // Ends a program with TrapCode::STOPPED when its loops go on after so long. They look at the clock as they go back, and
  // not each time: a body is short.
  void limit_loops(uint64_t ns) { loop_ns_max_ = ns; }
  // Cuts every section into (at most) so many parts, however little work it is; 0: as split.h says. For tests.
  void cut_always(int64_t parts) { parts_always_ = parts; }
  void draw_lots(uint64_t seed) {
    if (pool_) pool_->draw_lots(seed);
  }

 private:
  Trap run_as_it_is(const VerifiedProgram& program, std::span<const Binding> args, uint8_t* workspace, uint64_t deadline_ns);
  Trap run_host(const SectionRun& run);
  size_t following(const SectionView& section, size_t number, const uint8_t* flag);
  bool late(size_t number);
  struct Thread {
    std::unique_ptr<Context> context;
    uint8_t* scratch = nullptr;
    int64_t trapped_part = 0;  // in the section at hand
    Trap trap;
  };
  static constexpr size_t TOGETHER_MAX = 16;
  struct Cut;  // a section on its way through the threads
  class Crew;  // they themselves, for a wide section
  using Run = void (*)(Context&, const SectionRun&);
  Run run_of(const Section& section) const;
  Split split_of_run(const SectionView& section) const;
  void run_wide(const SectionRun& whole, const Split& split, bool streams);
  void each_part(int64_t count, ThreadPool::Work work, void* job, bool wake);
  void run_cut(const SectionRun& whole, const Split& split, bool streams);
  static void run_part(void* cut, int thread, int64_t part);
  struct Bound;     // where the operands of a run lie
  struct Together;  // sections that run at the same time
  size_t run_together(const VerifiedProgram& program, size_t first, const Bound& bound);
  static void run_piece(void* together, int thread, int64_t part);

  const Target* target_;
  std::vector<Thread> threads_;  // the caller's first
  std::unique_ptr<ThreadPool> pool_;  // none: one thread
  bool back_ = true;                  // without a pool: the last section in parts ran from its last part on
  std::unique_ptr<uint8_t[], void (*)(uint8_t*)> scratch_;
  size_t scratch_bytes_ = 0;  // of each thread
  std::unique_ptr<uint8_t[], void (*)(uint8_t*)> results_;  // of blocks of long rows
  size_t result_bytes_ = 0;
  int64_t parts_always_ = 0;
  bool tunes_ = false;
  Tuned tuned_;
  uint64_t sections_split_ = 0;
  std::vector<HostSpan> host_calls_;
  uint64_t deadline_ns_ = 0;  // of this run
  uint64_t loop_ns_max_ = ~0ull, looked_ns_ = 0, loops_began_ns_ = 0;  // of this run; 0: not yet
  int until_look_ = 1;                                                // times that loops go back
  std::vector<int64_t> times_;  // by number of a LOOP section: how often its body has run since the loop was entered
};

}  // namespace dvm
