// Memory of programs: blocks of some sizes, out of chunks that are kept.
//
// An allocator of all sizes is in no cache when a program is made, after other work, and takes longer than its proof. Chunks are
// huge pages where the system has them; who makes programs asks for the next one (prepare) when nobody waits for it.
#pragma once
#include <sys/mman.h>
#include <array>
#include <bit>
#include <cstdint>
#include <memory_resource>
#include <new>
#include <vector>

namespace dvm {

class Blocks final : public std::pmr::memory_resource {
 public:
  Blocks() = default;
  Blocks(const Blocks&) = delete;
  ~Blocks() override {
    for (std::byte* chunk : chunks_) ::operator delete(chunk, std::align_val_t(CHUNK_BYTES));
  }

  // Sees to it that a usual block is there.
  void prepare() {
    if (left_ >= CHUNK_BYTES / 8) return;
    top_ = static_cast<std::byte*>(::operator new(CHUNK_BYTES, std::align_val_t(CHUNK_BYTES)));
    chunks_.push_back(top_);
    left_ = CHUNK_BYTES;
    madvise(top_, CHUNK_BYTES, MADV_HUGEPAGE);  // a hint
    *top_ = std::byte{};
  }
  // Where the next block is, if it is a new one.
  void fetch(size_t bytes) const {
    for (size_t at = 0; at < bytes && at < left_; at += ALIGN) __builtin_prefetch(top_ + at, 1);
  }

 private:
  static constexpr size_t CHUNK_BYTES = 2 << 20, BLOCK_BYTES_MAX = CHUNK_BYTES / 8, ALIGN = 64;
  struct Free {
    Free* next;
  };

  // Four classes between two powers of two.
  static size_t class_of(size_t bytes) {
    const size_t lines = (bytes + ALIGN - 1) / ALIGN;
    if (lines <= 8) return lines;
    const int shift = std::bit_width(lines - 1) - 3;
    return size_t(shift) * 4 + ((lines - 1) >> shift) + 1;
  }
  static size_t bytes_of(size_t number) {
    if (number <= 8) return number * ALIGN;
    const size_t shift = (number - 5) / 4, steps = number - shift * 4;
    return (steps << shift) * ALIGN;
  }

  void* do_allocate(size_t bytes, size_t) override {
    if (bytes > BLOCK_BYTES_MAX) return ::operator new(bytes);
    const size_t number = class_of(bytes), size = bytes_of(number);
    if (Free* block = free_[number]) return free_[number] = block->next, block;
    if (left_ < size) left_ = 0, prepare();
    std::byte* block = top_;
    top_ += size, left_ -= size;
    return block;
  }
  void do_deallocate(void* block, size_t bytes, size_t) override {
    if (bytes > BLOCK_BYTES_MAX) return ::operator delete(block);
    const size_t number = class_of(bytes);
    free_[number] = new (block) Free{free_[number]};
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  std::vector<std::byte*> chunks_;
  std::byte* top_ = nullptr;
  size_t left_ = 0;
  std::array<Free*, 64> free_{};
};

}  // namespace dvm
