#include "arena.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <bit>
#include <cerrno>
#include <cstring>

namespace dvm {

constexpr uint64_t PAGE = 4096, STEP_MIN = 4 << 20;

Arena::Arena(uint64_t bytes_max) : bytes_max_((bytes_max + PAGE - 1) & ~(PAGE - 1)) {
  fd_ = memfd_create("dvm_rt arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd_ >= 0 && fcntl(fd_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) == 0) {
    void* at = mmap(nullptr, bytes_max_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_, 0);
    if (at != MAP_FAILED) data_ = static_cast<uint8_t*>(at);
  }
  if (data_) return;
  std::string why = strerror(errno);
  if (fd_ >= 0) ::close(fd_);
  throw Error("DeviceOutOfMemoryError", say("arena: reservation: ", why, ", got ", bytes_max_,
      " bytes, allowed less"), {{"requested", int64_t(bytes_max_)}, {"free", 0}});
}

Arena::~Arena() {
  munmap(data_, bytes_max_);
  ::close(fd_);
}

void Arena::close() {
  drain();
  closed_ = true;
  left_ = live_;
  if (!live_) delete this;
}

Buffer* Arena::allocate(uint64_t bytes, uint64_t committed, Use use) {
  drain();
  if (fail_after != NEVER_FAIL && fail_after-- == 0) return fail_after = NEVER_FAIL, nullptr;
  if (bytes > bytes_max_) return nullptr;
  uint64_t size = rounded(bytes);
  if (committed != ANY) committed_ = std::max(committed_, committed);
  Block* block = find(size, committed);
  if (!block && join(committed_)) block = find(size, committed);
  if (!block && grow(size, committed_)) block = find(size, committed);
  if (!block && committed == ANY && join(ANY)) block = find(size, ANY);
  if (!block && committed == ANY && grow(size, ANY)) block = find(size, ANY);
  if (!block) return nullptr;
  remove(block);
  if (block->bytes > size) {
    Block* rest = new_block();
    *rest = {block->offset + size, block->bytes - size, block->touched, block, block->after, nullptr, nullptr, false};
    (rest->after ? rest->after->before : last_) = rest;
    block->after = rest;
    block->bytes = size;
    insert(rest);
  }
  Buffer* buffer = spare_buffers_;
  if (buffer) spare_buffers_ = buffer->next;
  else buffer = &buffers_.emplace_back();
  buffer->references.store(1, std::memory_order_relaxed);
  buffer->use = use;
  buffer->dead = false;
  buffer->arena = this;
  buffer->block = block;
  buffer->offset = block->offset;
  buffer->bytes = bytes;
  buffer->seq = 0;
  used_[int(use)] += size;
  ++live_;
  return buffer;
}

void Arena::release(Buffer* buffer) {
  if (closed_) {
    buffer->packed.clear();
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
    return;
  }
  buffer->touched = launched.load(std::memory_order_relaxed);
  buffer->next = released_.load(std::memory_order_relaxed);
  while (!released_.compare_exchange_weak(buffer->next, buffer, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

void Arena::drain() {
  while (Buffer* buffer = released_.load(std::memory_order_relaxed) ? released_.exchange(nullptr, std::memory_order_acquire) : nullptr)
    while (buffer) {
      Buffer* next = buffer->next;
      --live_;
      used_[int(buffer->use)] -= buffer->block->bytes;
      give_back(buffer->block, buffer->touched);
      buffer->packed.clear();
      buffer->dead = true;
      if (!buffer->launches) spare(buffer);
      buffer = next;
    }
}

void Arena::forget_launch(Buffer* buffer) {
  if (--buffer->launches == 0 && buffer->dead) spare(buffer);
}

void Arena::spare(Buffer* buffer) {
  buffer->failure.reset();
  buffer->next = spare_buffers_;
  spare_buffers_ = buffer;
}

MemoryReport Arena::report() {
  drain();
  uint64_t used = used_[0] + used_[1] + used_[2];
  return {used_[int(Use::TENSOR)], used_[int(Use::WORKSPACE)], used_[int(Use::PACKED)], bytes_max_ - used, bytes_};
}

// ---- two-level segregated fit ------------------------------------------------------------------------------------
// Sizes below SECOND units have a list each; above, each power of two is cut into SECOND lists. Sizes are rounded up to
// the lower bound of a list (at most 3 % more), so any block of the list fits and a freed block fits its own size again.

uint64_t Arena::rounded(uint64_t bytes) {
  uint64_t units = bytes ? (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN : 1;
  int extra = std::bit_width(units) - 1 - SECOND_BITS;
  if (extra > 0) units = (units + (1ull << extra) - 1) >> extra << extra;
  return units * ARENA_ALIGN;
}

Arena::Class Arena::class_of(uint64_t bytes) {
  uint64_t units = bytes / ARENA_ALIGN;
  if (units < SECOND) return {0, int(units)};
  int extra = std::bit_width(units) - 1 - SECOND_BITS;
  return {extra + 1, int(units >> extra) & (SECOND - 1)};
}

Block* Arena::find(uint64_t bytes, uint64_t committed) {
  auto [first, second] = class_of(bytes);
  uint32_t in_first = second_map_[first] & (~0u << second);
  for (;;) {
    for (; in_first; in_first &= in_first - 1) {
      int looked = 0;
      for (Block* b = lists_[first][std::countr_zero(in_first)]; b && looked < 16; b = b->next, ++looked)
        if (b->touched <= committed) return b;
    }
    uint64_t above = first_map_ & (~0ull << (first + 1));
    if (!above) return nullptr;
    first = std::countr_zero(above);
    in_first = second_map_[first];
  }
}

bool Arena::grow(uint64_t bytes, uint64_t committed) {
  bool joins = last_ && last_->free && last_->touched <= committed;
  uint64_t need = joins && last_->bytes < bytes ? bytes - last_->bytes : bytes;
  auto take = [&](uint64_t step) {
    step = std::min((step + PAGE - 1) & ~(PAGE - 1), bytes_max_ - bytes_);
    return step >= need && fallocate(fd_, 0, off_t(bytes_), off_t(step)) == 0 ? step : 0;
  };
  uint64_t step = take(std::max(std::max(need, bytes_ / 4), STEP_MIN));
  if (!step && !(step = take(need))) return false;
#ifdef MADV_POPULATE_WRITE
  madvise(data_ + bytes_, step, MADV_POPULATE_WRITE);  // page faults now, together; where unknown, on first touch
#endif
  bytes_ += step;
  if (joins) {
    remove(last_);
    last_->bytes += step;
  } else {  // fresh memory is untouched: not joined to a block that a launch may still use
    Block* block = new_block();
    *block = {bytes_ - step, step, 0, last_, nullptr, nullptr, nullptr, false};
    if (last_) last_->after = block;
    last_ = block;
  }
  insert(last_);
  return true;
}

void Arena::insert(Block* block) {
  auto [first, second] = class_of(block->bytes);
  Block*& head = lists_[first][second];
  block->free = true;
  block->previous = nullptr;
  block->next = head;
  if (head) head->previous = block;
  head = block;
  second_map_[first] |= 1u << second;
  first_map_ |= 1ull << first;
}

void Arena::remove(Block* block) {
  auto [first, second] = class_of(block->bytes);
  if (block->next) block->next->previous = block->previous;
  if (block->previous) block->previous->next = block->next;
  else if (!(lists_[first][second] = block->next) && !(second_map_[first] &= ~(1u << second))) first_map_ &= ~(1ull << first);
  block->free = false;
}

// Neighbours become one. Not at once where a launch may still use one of them: under a steady stream of launches a block
// that grows with every release would never come to rest, and the host never find any.
void Arena::give_back(Block* block, uint64_t touched) {
  block->touched = touched;
  auto at_rest = [&](Block* other) { return other && other->free && std::max(other->touched, touched) <= committed_; };
  if (at_rest(block->after)) remove(block->after), swallow(block, block->after);
  if (Block* before = block->before; at_rest(before)) {
    remove(before);
    swallow(before, block);
    block = before;
  }
  insert(block);
}

void Arena::swallow(Block* low, Block* high) {
  low->bytes += high->bytes;
  low->touched = std::max(low->touched, high->touched);
  low->after = high->after;
  (high->after ? high->after->before : last_) = low;
  high->next = spare_blocks_;
  spare_blocks_ = high;
}

// What `give_back` left apart. False: there was nothing.
bool Arena::join(uint64_t committed) {
  bool any = false;
  for (Block *high = last_, *low; high && (low = high->before); high = low) {
    if (!low->free || !high->free || std::max(low->touched, high->touched) > committed) continue;
    remove(low), remove(high);
    swallow(low, high);
    insert(low);
    any = true;
  }
  return any;
}

Block* Arena::new_block() {
  if (Block* block = spare_blocks_) {
    spare_blocks_ = block->next;
    return block;
  }
  return &blocks_.emplace_back();
}

bool Arena::check() const {
  uint64_t total = 0, taken = 0;
  for (const Block* b = last_; b; b = b->before) {
    if (b->after ? b->after->offset != b->offset + b->bytes || b->after->before != b : b->offset + b->bytes != bytes_) return false;
    total += b->bytes;
    if (!b->free) taken += b->bytes;
    else {
      auto [first, second] = class_of(b->bytes);
      const Block* at = lists_[first][second];
      while (at && at != b) at = at->next;
      if (!at || !(first_map_ >> first & 1) || !(second_map_[first] >> second & 1)) return false;
    }
  }
  return total == bytes_ && taken == used_[0] + used_[1] + used_[2];
}

}  // namespace dvm
