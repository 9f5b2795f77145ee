// A second thread of the device, which takes what arrives while a launch runs that takes long: programs are verified before
// anybody waits for them.
//
// What the device's loop owns belongs to one thread at a time. lend() gives it away for the time of a launch, take_back() waits
// for no more than one message. In between the thread sleeps, and is woken by whoever pushes something (Control::wake_device).
// It runs on CPUs of its own: beside the launch, not in its way.
#pragma once
#include <functional>
#include <thread>
#include <vector>
#include "control.h"

namespace dvm {

class Beside {
 public:
  // `take` takes one message, and says whether there was one.
  Beside(const Control& control, const std::vector<int>& cpus, std::function<bool()> take);
  ~Beside();
  Beside(const Beside&) = delete;
  void lend(bool waiting);  // waiting: there is something to take already
  void take_back();

 private:
  enum State : uint64_t { HOME, LENT, AT_WORK };
  void run();
  void work();
  std::atomic<uint64_t>& word() const { return control_.word(CONTROL_BESIDE); }

  const Control& control_;
  const std::function<bool()> take_;
  std::atomic<uint64_t> state_{HOME};
  std::atomic<bool> wanted_{false};
  std::thread thread_;
};

}  // namespace dvm
