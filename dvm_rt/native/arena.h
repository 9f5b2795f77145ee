// The client's memory for tensors: one memfd, sealed against shrinking, that the device maps too; inline, where nobody else
// maps it, memory of the process alone, which the system has ready in two thirds of the time.
//
// Owns the mapping (reserved once at `bytes_max`, so addresses never move; backed in steps, so touching it cannot fail
// later), the allocator (two-level segregated fit: constant time, neighbours merged at once, bookkeeping
// outside the arena), and the Buffers.
//
// Rules. A buffer's memory is free as soon as nobody names the buffer, also while launches that use it have not run: the
// device runs in stream order, so an output of a later launch may take it at once. The host does not wait for the
// stream: it may only write where no uncommitted launch reads or writes. So a free block knows the last launch that was
// pushed before it was freed. Until that is committed the block is *tainted*: launches take it first, the host never, and
// it is not merged with clean neighbours, which it would taint.
//
// release() may come from any thread at any time: it puts the buffer on a list that the next allocation empties. All
// else runs under the stream's lock. The arena lives until the stream and the last buffer have let go of it.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>
#include "errors.h"
#include "layout.h"
#include "shared.h"

namespace dvm {

class Arena;
struct Buffer;

class BufferRef {  // counts Buffer::references
 public:
  BufferRef() = default;
  explicit BufferRef(Buffer* adopted) : buffer_(adopted) {}
  BufferRef(const BufferRef& other);
  BufferRef(BufferRef&& other) noexcept : buffer_(std::exchange(other.buffer_, nullptr)) {}
  BufferRef& operator=(BufferRef other) noexcept {
    std::swap(buffer_, other.buffer_);
    return *this;
  }
  ~BufferRef();
  Buffer* get() const { return buffer_; }
  Buffer* operator->() const { return buffer_; }
  explicit operator bool() const { return buffer_; }

 private:
  Buffer* buffer_ = nullptr;
};

struct PackKey {  // which packed form of a buffer: K, N, strides in elements, first element, dtype
  int64_t k, n, stride_k, stride_n, offset, dtype;
  bool operator==(const PackKey&) const = default;
};
struct PackPart {  // a further matrix beside the first one; a buffer that is gone is never the same again
  Buffer* source;
  uint64_t serial;
  PackKey key;
  bool operator==(const PackPart&) const = default;
};
struct Packed {
  PackKey key;
  std::vector<PackPart> more;
  BufferRef buffer;
};

enum class Use : uint8_t { TENSOR, WORKSPACE, PACKED };

struct Block {  // a stretch of the arena, free or taken
  uint64_t offset = 0, bytes = 0;
  Block *before = nullptr, *after = nullptr;   // neighbours in memory
  bool free = false, tainted = false;
  Block *previous = nullptr, *next = nullptr;  // free: in its list
  uint64_t touched = 0;                        // tainted: the last launch that may use it
  Block *older = nullptr, *newer = nullptr;    // tainted: in the order in which launches will let go of them
};

struct Buffer {
  std::atomic<uint32_t> references{1};  // tensors, views, packed forms, continuations
  uint32_t launches = 0;                // uncommitted launches that name it: they keep this record, not the memory
  Use use = Use::TENSOR;
  bool dead = false;
  bool viewed = false;            // Python has seen its memory, and may see it again at any time
  std::atomic<bool> gone{false};  // its memory is given up: Stream::restore() makes it anew from a packed form
  Arena* arena = nullptr;
  Block* block = nullptr;
  uint64_t offset = 0, bytes = 0;
  uint64_t serial = 0;   // of all buffers that there were
  uint64_t seq = 0;      // the launch that writes it; 0: the host did
  uint64_t touched = 0;  // at release: the last launch pushed
  Failure failure;       // why its bytes mean nothing
  BufferRef root;        // a continuation: whose memory this is; it has none of its own
  uint64_t extent = 0;   // of memory with room to grow into: bytes that tensors have so far
  std::vector<Packed> packed;
  Buffer* next = nullptr;  // in the list of released, or of spare ones
  uint8_t* data() const;
};

struct MemoryReport {
  uint64_t tensors, workspace, packed, free, arena;  // bytes; arena = all that the system has given
};

enum class Writer : uint8_t { HOST, LAUNCH };

// A thread that makes the next pages of an arena ready before anybody asks for them: to zero a page takes the system longer
// than a small kernel runs.
class Ahead {
 public:
  Ahead(int fd, uint8_t* data);
  ~Ahead();
  void want(uint64_t from, uint64_t to);  // bytes of the arena
  uint64_t ready() const { return ready_.load(std::memory_order_acquire); }  // all below are there

 private:
  void run();
  const int fd_;
  uint8_t* const data_;
  const int owner_;  // process: a forked child has no such thread to wait for
  std::mutex lock_;
  std::condition_variable wake_;
  uint64_t wanted_ = 0;
  bool stop_ = false;
  std::atomic<uint64_t> ready_{0};
  std::thread thread_;
};

class Arena {
 public:
  explicit Arena(uint64_t bytes_max, bool shared = true);
  void prepare_ahead() { ahead_.reset(new Ahead(fd_, data_)); }
  Arena(const Arena&) = delete;
  // Memory for `bytes`, ARENA_ALIGN aligned; contents undefined. `committed`: launches that are done. nullptr: there is no
  // such block and none can be made. Throws nothing.
  Buffer* allocate(uint64_t bytes, uint64_t committed, Writer writer, Use use = Use::TENSOR);
  // The same memory under another record, with a launch and a failure of its own: what is appended there changes nothing that
  // was there before.
  Buffer* continued(Buffer* root);
  void release(Buffer* buffer);    // the last reference is gone
  void give_up(Buffer* buffer);    // its memory alone: launches pushed so far may still read it
  void take(Buffer* buffer, Buffer* from);  // memory for it again, that of `from`, which nobody else names
  template <class Act> void for_each(Act act) {  // living buffer
    drain();
    for (Buffer& buffer : buffers_)
      if (buffer.references.load(std::memory_order_relaxed) && !buffer.dead) act(buffer);
  }
  void forget_launch(Buffer* buffer);  // one launch that named it is committed
  void close();                    // the stream is gone; no release() may run beside it

  uint8_t* data() const { return data_; }
  int fd() const { return fd_; }  // -1: not shared
  uint64_t bytes_max() const { return bytes_max_; }
  uint64_t bytes() const { return bytes_; }
  MemoryReport report();
  bool check() const;  // every invariant of the allocator; for tests

  std::atomic<uint64_t> launched{0};  // kept by the stream: the last launch pushed
  uint64_t fail_after = NEVER_FAIL;   // fault injection: allocations until the next one fails
  static constexpr uint64_t NEVER_FAIL = ~0ull;

 private:
  static constexpr int SECOND_BITS = 5, SECOND = 1 << SECOND_BITS, FIRST = 48;
  struct Class {
    int first, second;
  };
  ~Arena();
  static uint64_t rounded(uint64_t bytes);
  static Class class_of(uint64_t bytes);
  Block* find(uint64_t bytes, Writer writer);
  Block* find_in(bool tainted, Class from);
  bool grow(uint64_t bytes, Writer writer);
  bool extend(uint64_t bytes, bool join);
  void merge_all();
  void insert(Block* block);
  void remove(Block* block);
  Block* merged(Block* block, bool any);
  void taint(Block* block, uint64_t touched);
  void clean(Block* block);
  void give_back(Block* block, uint64_t touched);
  Buffer* drain(uint64_t size, Writer writer, Use use);
  void drain() { drain(0, Writer::HOST, Use::TENSOR); }
  void settle();
  void spare(Buffer* buffer);
  Block* new_block();
  Buffer* new_buffer(uint64_t bytes, Use use);
  Buffer* renewed(Buffer* buffer, uint64_t bytes);

  int fd_ = -1;
  uint8_t* data_ = nullptr;
  uint64_t bytes_max_, bytes_ = 0;
  std::unique_ptr<Ahead> ahead_;
  uint64_t used_[3] = {};  // by Use
  uint64_t committed_ = 0;
  struct Lists {  // free blocks by size
    uint64_t first = 0;             // bit i: some list of lists[i] is not empty
    uint32_t second[FIRST] = {};
    Block* lists[FIRST][SECOND] = {};
  } free_[2];                       // clean, tainted
  Block *oldest_ = nullptr, *newest_ = nullptr;  // tainted blocks
  Block* last_ = nullptr;  // highest in memory
  std::deque<Block> blocks_;
  std::deque<Buffer> buffers_;
  Block* spare_blocks_ = nullptr;
  Buffer* spare_buffers_ = nullptr;
  bool closed_ = false;  // nobody empties `released_` any more, nothing is allocated
  std::atomic<Buffer*> released_{nullptr};
  uint64_t serials_ = 0;
  uint64_t live_ = 0;                 // buffers that are not released, until close()
  std::atomic<uint64_t> left_{0};     // the same from close() on, when nobody has the lock any more
};

inline uint8_t* Buffer::data() const { return arena->data() + offset; }
inline BufferRef::BufferRef(const BufferRef& other) : buffer_(other.buffer_) {
  if (buffer_) buffer_->references.fetch_add(1, std::memory_order_relaxed);
}
inline BufferRef::~BufferRef() {
  if (buffer_ && buffer_->references.fetch_sub(1, std::memory_order_acq_rel) == 1) buffer_->arena->release(buffer_);
}

}  // namespace dvm
