// The control page: counters in shared memory, one writer a word (layout.CONTROL_LINES), and behind it the ring of events
// from the device to the client. Completion is the word `done`; whoever waits for it spins, then arms `want_*` and sleeps,
// and the device pays for a wake-up only if somebody asked for the sequence number it just committed.
#pragma once
#include <sched.h>
#include <unistd.h>
#include "layout.h"
#include "shared.h"

namespace dvm {

constexpr uint64_t NEVER = ~0ull;
// The word `beside`: what becomes of the device's second thread. LEAVE: sleeps, and nobody wakes it; WAKE: sleeps, who pushes
// wakes it; COME: is to look; END: is to go.
enum BesideWord : uint64_t { BESIDE_LEAVE, BESIDE_WAKE, BESIDE_COME, BESIDE_END };
constexpr size_t LOG_CAPACITY = 4096;    // launches that can be uncommitted
constexpr size_t EVENT_CAPACITY = 8192;  // a trap for each of them, and as many refused programs
constexpr size_t CONTROL_MAP_BYTES = CONTROL_BYTES + EVENT_CAPACITY * sizeof(Event);

inline uint64_t cpu_now() { return uint64_t(sched_getcpu()); }

class Control {
 public:
  Control() = default;
  explicit Control(int fd) : map_(fd, CONTROL_MAP_BYTES) {}
  std::atomic<uint64_t>& word(int index) const { return reinterpret_cast<std::atomic<uint64_t>*>(map_.data())[index]; }
  std::atomic<uint64_t>& worker(int worker, WorkerWord name) const { return word(CONTROL_WORKER + 8 * worker + name); }
  uint64_t get(int index) const { return word(index).load(std::memory_order_acquire); }
  void set(int index, uint64_t value) const { word(index).store(value, std::memory_order_release); }
  void add(int index, uint64_t value) const {
    set(index, word(index).load(std::memory_order_relaxed) + value);
  }  // the writer only

  void start() const { set(CONTROL_WANT_FUTEX, NEVER), set(CONTROL_WANT_EVENTFD, NEVER), set(CONTROL_DEVICE_CPU, NEVER); }

  // ---- the device ----
  void commit(uint64_t seq, int eventfd) const {
    word(CONTROL_DONE).store(seq);
    if (seq >= word(CONTROL_WANT_FUTEX).load()) wake_waiters();
    if (seq >= word(CONTROL_WANT_EVENTFD).load()) wake_loop(eventfd);
  }
  bool event_room(size_t reserve) const {
    return get(CONTROL_EVENT_WRITTEN) - get(CONTROL_EVENT_READ) + reserve < EVENT_CAPACITY;
  }
  void post(const Event& event, int eventfd) const {  // there is room
    uint64_t written = get(CONTROL_EVENT_WRITTEN);
    events()[written % EVENT_CAPACITY] = event;
    word(CONTROL_EVENT_WRITTEN).store(written + 1);
    ring_bells(eventfd);
  }

  // ---- the client ----
  bool take(Event& event) const {
    uint64_t read = get(CONTROL_EVENT_READ);
    if (read == get(CONTROL_EVENT_WRITTEN)) return false;
    event = events()[read % EVENT_CAPACITY];
    set(CONTROL_EVENT_READ, read + 1);
    return true;
  }
  bool events_waiting() const { return get(CONTROL_EVENT_READ) != get(CONTROL_EVENT_WRITTEN); }
  bool arm(ControlWord want, uint64_t seq) const {  // true: already done
    uint64_t wanted = word(want).load();
    while (seq < wanted && !word(want).compare_exchange_weak(wanted, seq)) {
    }
    return word(CONTROL_DONE).load() >= seq;
  }
  // Sleeps until `done` reaches `seq`, a bell rings, or the time is over; the caller looks again in any case.
  void sleep(uint64_t seq, uint64_t timeout_ns) const {
    uint32_t seen = uint32_t(word(CONTROL_BELL).load());
    if (!arm(CONTROL_WANT_FUTEX, seq) && !events_waiting()) futex_wait(word(CONTROL_BELL), seen, timeout_ns);
  }

  // A launch is on its way: a device that sleeps wakes up meanwhile, unless that would keep us from getting there.
  void rouse_device() const {
    if (!word(CONTROL_ASLEEP).load(std::memory_order_relaxed)) return;
    const uint64_t here = cpu_now();
    if (here == get(CONTROL_DEVICE_CPU)) return;
    set(CONTROL_CLIENT_CPU, here);
    wake_loop_of_device();
  }

  // ---- anybody ----
  void wake_loop_of_device() const {  // it takes `asleep` back by itself when it wakes
    if (word(CONTROL_ASLEEP).load() && word(CONTROL_ASLEEP).exchange(0)) futex_wake(word(CONTROL_ASLEEP));
  }
  void wake_device() const {  // after a push
    wake_loop_of_device();
    uint64_t asleep = word(CONTROL_BESIDE).load();
    if (asleep == BESIDE_WAKE && word(CONTROL_BESIDE).compare_exchange_strong(asleep, BESIDE_COME))
      futex_wake(word(CONTROL_BESIDE));
  }
  void wake_waiters() const {
    word(CONTROL_WANT_FUTEX).exchange(NEVER);
    word(CONTROL_BELL).fetch_add(1);
    futex_wake(word(CONTROL_BELL));
  }
  void ring_bells(int eventfd) const {  // after an event or a death: a waiter's wake-up may have died with the device
    if (word(CONTROL_WANT_FUTEX).load() != NEVER) wake_waiters();
    if (word(CONTROL_WANT_EVENTFD).load() != NEVER) wake_loop(eventfd);
  }

  void wake_loop(int eventfd) const {
    word(CONTROL_WANT_EVENTFD).exchange(NEVER);
    uint64_t one = 1;
    if (eventfd >= 0 && write(eventfd, &one, 8) != 8) return;  // full: its reader is woken anyway
  }

 private:
  Event* events() const { return reinterpret_cast<Event*>(map_.data() + CONTROL_BYTES); }
  Mapping map_;
};

// ---- records of the rings: this head, then what the comment says ----
struct RingHead {
  uint32_t kind;   // RingKind
  uint32_t count;  // PROGRAM: RingFlag; LAUNCH: arguments; DROP: RingFlag
  uint64_t program;
};
enum RingFlag : uint32_t {
  RING_FOREIGN = 1,     // PROGRAM: from outside, delivered by the client
  RING_FAILS = 2,       // PROGRAM: no bytes; what launches it traps: the client knows why
  RING_MAY_ARRIVE = 4,  // DROP: a worker may still send this program
};
struct LaunchHead {
  RingHead head;
  uint64_t seq, workspace, workspace_bytes;
  uint64_t deadline_ns;  // of the request: its loops end then; 0: none. Then LaunchArg[count]
};
struct LaunchArg {
  uint64_t offset, bytes, writable;
};

}  // namespace dvm
