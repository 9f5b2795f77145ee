#include "arena.h"
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#include <bit>
#include <cerrno>
#include <cstring>

namespace dvm {

constexpr uint64_t PAGE = 4096, HUGE_PAGE = 2 << 20, STEP_MIN = 4 << 20;

// Pages from the system, mapped together: else each faults at its first touch. False: there are none.
static bool make_ready(int fd, uint8_t* data, uint64_t from, uint64_t to) {
  if (from >= to) return true;
  if (fd >= 0 && fallocate(fd, 0, off_t(from), off_t(to - from))) return false;
#ifdef MADV_POPULATE_WRITE
  if (madvise(data + from, to - from, MADV_POPULATE_WRITE) && fd < 0 && errno != EINVAL)
    return false;  // EINVAL: a kernel before 5.14
#endif
  return true;
}

Ahead::Ahead(int fd, uint8_t* data) : fd_(fd), data_(data), owner_(getpid()) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the program
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Ahead::~Ahead() {
  if (getpid() != owner_) {
    thread_.detach();
    return;
  }
  {
    std::lock_guard held(lock_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void Ahead::want(uint64_t from, uint64_t to) {
  {
    std::lock_guard held(lock_);
    if (ready_ < from) ready_ = from;
    wanted_ = to;
  }
  wake_.notify_one();
}

void Ahead::run() {
  constexpr uint64_t STEP = 1 << 20;  // short enough for a caller who waits for the kernel's lock on the mapping
  for (std::unique_lock held(lock_);;) {
    wake_.wait(held, [&] { return stop_ || ready_ < wanted_; });
    if (stop_) return;
    const uint64_t from = ready_, to = std::min(from + STEP, wanted_);
    held.unlock();
    const bool there = make_ready(fd_, data_, from, to);
    held.lock();
    if (!there) wanted_ = 0;  // the arena itself will hear of it
    else if (ready_ < to) ready_ = to;
  }
}

static uint64_t round_up(uint64_t bytes, uint64_t to) { return (bytes + to - 1) / to * to; }

// Memory of the process alone, in huge pages where the system gives them when asked: it has 20 MiB of them ready in 3 ms
// instead of 7.5. nullptr: there is none.
static uint8_t* reserve_alone(uint64_t bytes) {
  void* at = mmap(nullptr, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) return nullptr;
  uint8_t* const begin = static_cast<uint8_t*>(at);
  uint8_t* const data = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(at), HUGE_PAGE));
  if (data > begin) munmap(begin, uint64_t(data - begin));
  munmap(data + bytes, uint64_t(begin + HUGE_PAGE - data));
  madvise(data, bytes, MADV_HUGEPAGE);
  return data;
}

Arena::Arena(uint64_t bytes_max, bool shared) : bytes_max_(round_up(bytes_max, PAGE)) {
  if (!shared && (data_ = reserve_alone(bytes_max_))) return;
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

Arena::~Arena() { munmap(data_, bytes_max_); }

void Arena::close() {
  ahead_.reset();
  drain();
  closed_ = true;
  if (fd_ >= 0) ::close(fd_);  // what is mapped stays
  fd_ = -1;
  left_ = live_;
  if (!live_) delete this;
}

Buffer* Arena::allocate(uint64_t bytes, uint64_t committed, Writer writer, Use use) {
  committed_ = committed;
  if (fail_after != NEVER_FAIL && fail_after-- == 0) return fail_after = NEVER_FAIL, nullptr;
  if (bytes > bytes_max_) return drain(), nullptr;
  const uint64_t size = rounded(bytes);
  if (Buffer* same = drain(size, writer, use)) return renewed(same, bytes);
  Block* block = find(size, writer);
  if (!block && grow(size, writer)) block = find(size, writer);
  if (!block && writer == Writer::LAUNCH) merge_all(), block = find(size, writer);
  if (!block) return nullptr;
  remove(block);
  if (block->bytes > size) {
    Block* rest = new_block();
    *rest = {};
    rest->offset = block->offset + size;
    rest->bytes = block->bytes - size;
    rest->before = block;
    rest->after = block->after;
    (rest->after ? rest->after->before : last_) = rest;
    block->after = rest;
    block->bytes = size;
    if (block->tainted) taint(rest, block->touched);
    insert(rest);
  }
  if (block->tainted) clean(block);
  Buffer* buffer = new_buffer(bytes, use);
  buffer->block = block;
  buffer->offset = block->offset;
  used_[int(use)] += size;
  return buffer;
}

Buffer* Arena::continued(Buffer* root) {
  Buffer* buffer = new_buffer(root->bytes, root->use);
  root->references.fetch_add(1, std::memory_order_relaxed);
  buffer->root = BufferRef(root);
  buffer->block = nullptr;
  buffer->offset = root->offset;
  return buffer;
}

Buffer* Arena::new_buffer(uint64_t bytes, Use use) {
  Buffer* buffer = spare_buffers_;
  if (buffer) spare_buffers_ = buffer->next;
  else buffer = &buffers_.emplace_back();
  buffer->use = use;
  buffer->dead = false;
  buffer->gone.store(false, std::memory_order_relaxed);
  buffer->arena = this;
  ++live_;
  return renewed(buffer, bytes);
}

// A record for another tensor.
Buffer* Arena::renewed(Buffer* buffer, uint64_t bytes) {
  buffer->references.store(1, std::memory_order_relaxed);
  buffer->viewed = false;
  buffer->bytes = bytes;
  buffer->seq = buffer->extent = 0;
  buffer->serial = ++serials_;
  return buffer;
}

void Arena::release(Buffer* buffer) {
  if (closed_) {
    buffer->packed.clear();
    buffer->root = {};
    if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
    return;
  }
  buffer->touched = launched.load(std::memory_order_relaxed);
  buffer->next = released_.load(std::memory_order_relaxed);
  while (!released_.compare_exchange_weak(buffer->next, buffer, std::memory_order_release, std::memory_order_relaxed)) {
  }
}

void Arena::give_up(Buffer* buffer) {
  used_[int(buffer->use)] -= buffer->block->bytes;
  give_back(buffer->block, launched.load(std::memory_order_relaxed));
  buffer->block = nullptr;
  buffer->gone.store(true, std::memory_order_release);
}

void Arena::take(Buffer* buffer, Buffer* from) {
  buffer->block = from->block, buffer->offset = from->offset;
  buffer->gone.store(false, std::memory_order_release);
  --live_;
  from->references.store(0, std::memory_order_relaxed);
  from->dead = true;
  spare(from);
}

// Takes back what was released, but for the first that is of this size and use: a block that is asked for again at once goes from
// hand to hand, with its record, and is never free.
Buffer* Arena::drain(uint64_t size, Writer writer, Use use) {
  Buffer* same = nullptr;
  while (released_.load(std::memory_order_relaxed)) {
    Buffer* buffer = nullptr;  // the first released first
    for (Buffer* last = released_.exchange(nullptr, std::memory_order_acquire); last;) {
      Buffer* rest = last->next;
      last->next = buffer;
      buffer = last;
      last = rest;
    }
    while (buffer) {
      Buffer* next = buffer->next;
      buffer->packed.clear();
      buffer->root = {};
      if (!same && buffer->block && buffer->block->bytes == size && buffer->use == use && !buffer->launches &&
          (writer == Writer::LAUNCH || buffer->touched <= committed_)) {
        buffer->failure.reset();
        same = std::exchange(buffer, next);
        continue;
      }
      --live_;
      if (buffer->block) {
        used_[int(buffer->use)] -= buffer->block->bytes;
        give_back(buffer->block, buffer->touched);
      }
      buffer->dead = true;
      if (!buffer->launches) spare(buffer);
      buffer = next;
    }
  }
  settle();
  return same;
}

// Blocks whose launches are committed become clean, and one with their clean neighbours.
void Arena::settle() {
  while (oldest_ && oldest_->touched <= committed_) {
    Block* block = oldest_;
    remove(block);
    clean(block);
    insert(merged(block, false));
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

Block* Arena::find_in(bool tainted, Class from) {
  Lists& free = free_[tainted];
  if (uint32_t second = free.second[from.first] & (~0u << from.second)) return free.lists[from.first][std::countr_zero(second)];
  uint64_t first = free.first & (~0ull << (from.first + 1));
  if (!first) return nullptr;
  int i = std::countr_zero(first);
  return free.lists[i][std::countr_zero(free.second[i])];
}

Block* Arena::find(uint64_t bytes, Writer writer) {
  Class from = class_of(bytes);
  Block* tainted = writer == Writer::LAUNCH ? find_in(true, from) : nullptr;
  return tainted ? tainted : find_in(false, from);
}

bool Arena::grow(uint64_t bytes, Writer writer) {
  Block* tail = last_ && last_->free ? last_ : nullptr;
  uint64_t have = tail && tail->bytes < bytes ? tail->bytes : 0;
  if (extend(tail && !tail->tainted ? bytes - have : bytes, tail && !tail->tainted)) return true;
  return writer == Writer::LAUNCH && tail && extend(bytes - have, true);
}

// More memory from the system: at least `bytes`, as a block of its own or joined to the last one.
bool Arena::extend(uint64_t bytes, bool join) {
  const uint64_t page = fd_ < 0 ? HUGE_PAGE : PAGE;
  auto take = [&](uint64_t step) {
    step = std::min(round_up(step, page), bytes_max_ - bytes_);
    return step >= bytes && make_ready(fd_, data_, std::max(bytes_, ahead_ ? ahead_->ready() : 0), bytes_ + step) ? step : 0;
  };
  const uint64_t usual = fd_ < 0 ? HUGE_PAGE : std::max(bytes_ / 4, STEP_MIN);  // alone, a step is one cheap call of the system
  uint64_t step = take(std::max(bytes, usual));
  if (!step && !(step = take(bytes))) return false;
  if (ahead_) ahead_->want(bytes_ + step, std::min(bytes_ + step + usual, bytes_max_));
  if (join) {
    remove(last_);
    last_->bytes += step;
  } else {
    Block* block = new_block();
    *block = {};
    block->offset = bytes_;
    block->bytes = step;
    block->before = last_;
    if (last_) last_->after = block;
    last_ = block;
  }
  bytes_ += step;
  insert(last_);
  return true;
}

// The last resort of a launch that needs a large block: clean and tainted neighbours become one.
void Arena::merge_all() {
  for (Block* block = last_; block; block = block->before)
    if (block->free && block->before && block->before->free) {
      remove(block);
      insert(block = merged(block, true));
    }
}

void Arena::insert(Block* block) {
  Lists& free = free_[block->tainted];
  auto [first, second] = class_of(block->bytes);
  Block*& head = free.lists[first][second];
  block->free = true;
  block->previous = nullptr;
  block->next = head;
  if (head) head->previous = block;
  head = block;
  free.second[first] |= 1u << second;
  free.first |= 1ull << first;
}

void Arena::remove(Block* block) {
  Lists& free = free_[block->tainted];
  auto [first, second] = class_of(block->bytes);
  if (block->next) block->next->previous = block->previous;
  if (block->previous) block->previous->next = block->next;
  else if (!(free.lists[first][second] = block->next) && !(free.second[first] &= ~(1u << second))) free.first &= ~(1ull << first);
  block->free = false;
}

void Arena::taint(Block* block, uint64_t touched) {
  block->tainted = true;
  block->touched = touched;
  Block* before = newest_;  // nearly always: launches are let go of in the order in which blocks are freed
  while (before && before->touched > touched) before = before->older;
  block->older = before;
  block->newer = before ? before->newer : oldest_;
  (block->newer ? block->newer->older : newest_) = block;
  (before ? before->newer : oldest_) = block;
}

void Arena::clean(Block* block) {
  (block->older ? block->older->newer : oldest_) = block->newer;
  (block->newer ? block->newer->older : newest_) = block->older;
  block->tainted = false;
}

// A block that is in no list, made one with its free neighbours: with those like it, or with all.
Block* Arena::merged(Block* block, bool any) {
  auto join = [&](Block* low, Block* high) {
    uint64_t touched = std::max(low->tainted ? low->touched : 0, high->tainted ? high->touched : 0);
    bool tainted = low->tainted || high->tainted;
    for (Block* b : {low, high})
      if (b->tainted) clean(b);
    if (tainted) taint(low, touched);
    low->bytes += high->bytes;
    low->after = high->after;
    (high->after ? high->after->before : last_) = low;
    high->next = spare_blocks_;
    spare_blocks_ = high;
    return low;
  };
  auto fits = [&](Block* neighbour) { return neighbour && neighbour->free && (any || neighbour->tainted == block->tainted); };
  if (Block* after = block->after; fits(after)) remove(after), block = join(block, after);
  if (Block* before = block->before; fits(before)) remove(before), block = join(before, block);
  return block;
}

void Arena::give_back(Block* block, uint64_t touched) {
  if (touched > committed_) taint(block, touched);
  insert(merged(block, false));
}

Block* Arena::new_block() {
  if (Block* block = spare_blocks_) {
    spare_blocks_ = block->next;
    return block;
  }
  return &blocks_.emplace_back();
}

bool Arena::check() const {
  uint64_t total = 0, taken = 0, tainted = 0, waiting = 0;
  for (const Block* b = last_; b; b = b->before) {
    if (b->after ? b->after->offset != b->offset + b->bytes || b->after->before != b : b->offset + b->bytes != bytes_)
      return false;
    total += b->bytes;
    tainted += b->tainted;
    if (!b->free) {
      taken += b->bytes;
      if (b->tainted) return false;
      continue;
    }
    if (b->after && b->after->free && b->after->tainted == b->tainted && !b->tainted) return false;
    const Lists& free = free_[b->tainted];
    auto [first, second] = class_of(b->bytes);
    const Block* at = free.lists[first][second];
    while (at && at != b) at = at->next;
    if (!at || !(free.first >> first & 1) || !(free.second[first] >> second & 1)) return false;
  }
  for (const Block* b = oldest_; b; b = b->newer, ++waiting)
    if (!b->tainted || !b->free || b->touched <= committed_ ||
        (b->newer ? b->newer->touched < b->touched || b->newer->older != b : b != newest_))
      return false;
  return total == bytes_ && taken == used_[0] + used_[1] + used_[2] && tainted == waiting;
}

}  // namespace dvm
