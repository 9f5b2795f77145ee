// What processes share: one clock, memory behind a file descriptor, and futexes.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace dvm {

uint64_t now_ns();  // CLOCK_MONOTONIC: the same clock in every process
uint64_t cpu_time_ns();  // of this thread
void work_for(uint64_t cpu_ns);  // of CPU time of this thread, for experiments: who is kept from running works on afterwards

int make_memory(const char* name, size_t bytes);  // memfd of fixed size, sealed; throws Error

// A shared mapping of a whole memfd. The descriptor stays the caller's.
class Mapping {
 public:
  Mapping() = default;
  explicit Mapping(int fd, size_t bytes = 0);  // 0: as large as the file; throws Error
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  ~Mapping();
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool grow(int fd);  // to the size that the file has now; the address may change

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};

// On the low half of a 64-bit word, across processes.
void futex_wait(std::atomic<uint64_t>& word, uint32_t seen, uint64_t timeout_ns);
void futex_wake(std::atomic<uint64_t>& word);

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace dvm
