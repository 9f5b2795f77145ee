#include "shared.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <cerrno>
#include <cstring>
#include <ctime>
#include "errors.h"

namespace dvm {

uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1'000'000'000 + uint64_t(t.tv_nsec);
}

uint64_t cpu_time_ns() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return uint64_t(t.tv_sec) * 1'000'000'000 + uint64_t(t.tv_nsec);
}

void work_for(uint64_t cpu_ns) {
  if (!cpu_ns) return;
  for (const uint64_t end = cpu_time_ns() + cpu_ns; cpu_time_ns() < end;) pause_cpu();
}

static Error system_error(const char* what, size_t bytes) {
  return {"DeviceOutOfMemoryError", std::string("memory: ") + what + ": " + strerror(errno) + ", got " + std::to_string(bytes) +
                                        " bytes, allowed what the system has"};
}

int make_memory(const char* name, size_t bytes) {
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) throw system_error("memfd_create", bytes);
  if (ftruncate(fd, off_t(bytes)) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
    close(fd);
    throw system_error("ftruncate", bytes);
  }
  return fd;
}

Mapping::Mapping(int fd, size_t bytes) : bytes_(bytes) {
  struct stat status{};
  if (!bytes_ && fstat(fd, &status) == 0) bytes_ = size_t(status.st_size);
  if (!bytes_) return;
  void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) throw system_error("mmap", bytes_);
  data_ = static_cast<uint8_t*>(at);
}
Mapping::Mapping(Mapping&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Mapping::~Mapping() {
  if (data_) munmap(data_, bytes_);
}

bool Mapping::grow(int fd) {
  struct stat status{};
  if (fstat(fd, &status) || size_t(status.st_size) <= bytes_) return false;
  size_t bytes = size_t(status.st_size);
  void* at = data_ ? mremap(data_, bytes_, bytes, MREMAP_MAYMOVE)
                   : mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) return false;
  data_ = static_cast<uint8_t*>(at);
  bytes_ = bytes;
  return true;
}

static uint32_t* low_half(std::atomic<uint64_t>& word) { return reinterpret_cast<uint32_t*>(&word); }  // little endian

void futex_wait(std::atomic<uint64_t>& word, uint32_t seen, uint64_t timeout_ns) {
  timespec t{time_t(timeout_ns / 1'000'000'000), long(timeout_ns % 1'000'000'000)};
  syscall(SYS_futex, low_half(word), FUTEX_WAIT, seen, &t, nullptr, 0);
}
void futex_wake(std::atomic<uint64_t>& word) { syscall(SYS_futex, low_half(word), FUTEX_WAKE, 1 << 30, nullptr, nullptr, 0); }

}  // namespace dvm
