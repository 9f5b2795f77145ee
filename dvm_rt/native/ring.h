// Messages from one producer to one consumer through shared memory.
//
// Layout: u64 read (consumer), u64 written (producer), each on its own cache line, then data. A message is u64 length and
// that many bytes, padded to 8; it never wraps: SKIP in place of a length sends the reader to the start. `written` moves
// only after the whole message is there, so a producer killed inside append() leaves no torn message. The consumer trusts
// nothing: a length that leaves the data makes the ring corrupt, and it is not read again.
#pragma once
#include <cstring>
#include <optional>
#include <span>
#include "shared.h"

namespace dvm {

class Ring {
 public:
  static constexpr uint64_t SKIP = ~0ull;
  static constexpr size_t HEAD_BYTES = 128, HOT_BYTES = 512 << 10;

  Ring() = default;
  explicit Ring(int fd) : map_(fd), size_((map_.bytes() - HEAD_BYTES) & ~size_t(7)) {
    seen_ = word(0).load(), written_ = word(64).load();
  }

  bool empty() const { return position() == written(); }
  size_t message_bytes_max() const { return size_ / 2 - 16; }
  void reset() { word(0).store(0), word(64).store(0), seen_ = written_ = 0; }  // nobody else may be at the ring

  // Producer. What was appended can be seen. The store is sequentially consistent: it is ordered before the caller's
  // look at whether the consumer sleeps; it also takes the line from a consumer that watches it, so several messages
  // share one.
  void publish() {
    if (word(64).load(std::memory_order_relaxed) != written_) word(64).store(written_);
  }
  // A message that publish() shows. False: no room now; then all that was appended before can be seen.
  bool append(std::span<const uint8_t> head, std::span<const uint8_t> body = {}) {
    uint64_t written = written_, length = head.size() + body.size();
    uint64_t need = 8 + round_up(length), at = written % size_, skipped = 0;
    // A consumer that keeps up lets the producer stay in few, hot lines: it starts again at the first bytes. Until the
    // consumer follows, the room is what it had read there.
    const bool again = at > HOT_BYTES && written - read_now() < HOT_BYTES / 8;
    if (size_ - at < need || (again && written + (size_ - at) + need - seen_ <= size_)) skipped = size_ - at;
    if (written + skipped + need - seen_ > size_ && written + skipped + need - read_now() > size_) return publish(), false;
    if (skipped) {
      store_at(at, SKIP);
      at = 0;
    }
    store_at(at, length);
    memcpy(data() + at + 8, head.data(), head.size());
    if (!body.empty()) memcpy(data() + at + 8 + head.size(), body.data(), body.size());
    written_ = written + skipped + need;
    return true;
  }

  // Consumer. The next message, in place until consume(); nullopt: none (or the ring is corrupt).
  std::optional<std::span<const uint8_t>> peek() {
    if (corrupt_) return {};
    const uint64_t read = word(0).load(std::memory_order_relaxed);
    const auto message = at(read);
    if (!message) return {};
    corrupt_ = message->next == read;
    if (corrupt_) return {};
    next_ = message->next;
    return message->bytes;
  }
  void consume() { word(0).store(next_, std::memory_order_release); }

  // The consumer's side, to look at without consuming. Positions are counted from the ring's first byte on.
  struct Message {
    std::span<const uint8_t> bytes;
    uint64_t next;  // the position behind it; its own: what lies there makes no sense
  };
  uint64_t position() const { return word(0).load(std::memory_order_acquire); }  // of the message that is consumed next
  uint64_t written() const { return word(64).load(std::memory_order_acquire); }  // behind the last message
  std::optional<Message> at(uint64_t position) const {
    const uint64_t waiting = word(64).load(std::memory_order_acquire) - position;
    if (!waiting) return {};
    uint64_t at = position % size_, skipped = 0;
    if (waiting <= size_ && waiting >= 8 && !((waiting | position) & 7) && load_at(at) == SKIP) skipped = size_ - at, at = 0;
    if (waiting > size_ || waiting < skipped + 8 || ((waiting | position) & 7)) return Message{{}, position};
    const uint64_t length = load_at(at);
    if (length > size_ || skipped + 8 + round_up(length) > waiting || at + 8 + round_up(length) > size_)
      return Message{{}, position};
    return Message{{data() + at + 8, length}, position + skipped + 8 + round_up(length)};
  }

 private:
  static uint64_t round_up(uint64_t n) { return (n + 7) & ~uint64_t(7); }
  std::atomic<uint64_t>& word(size_t offset) const { return *reinterpret_cast<std::atomic<uint64_t>*>(map_.data() + offset); }
  uint8_t* data() const { return map_.data() + HEAD_BYTES; }
  uint64_t read_now() { return seen_ = word(0).load(std::memory_order_acquire); }
  void store_at(uint64_t at, uint64_t value) { memcpy(data() + at, &value, 8); }
  uint64_t load_at(uint64_t at) const {
    uint64_t value;
    memcpy(&value, data() + at, 8);
    return value;
  }

  Mapping map_;
  uint64_t size_ = 0, seen_ = 0, written_ = 0, next_ = 0;  // seen_: the producer's last look at `read`
  bool corrupt_ = false;
};

}  // namespace dvm
