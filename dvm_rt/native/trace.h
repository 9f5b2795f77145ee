// The always-on trace of one process: a ring of TraceRecord in shared memory, overwritten from the oldest. The writer is
// one process, any thread; a reader elsewhere sees records up to `written`, the newest perhaps not whole yet.
#pragma once
#include <algorithm>
#include <cstring>
#include <vector>
#include "layout.h"
#include "shared.h"

namespace dvm {

class Trace {
 public:
  static constexpr size_t HEAD_BYTES = 64, CAPACITY = 32768;
  static constexpr size_t MAP_BYTES = HEAD_BYTES + CAPACITY * sizeof(TraceRecord);

  Trace() = default;
  explicit Trace(int fd) : map_(fd, MAP_BYTES) {}
  void add(TraceKind kind, uint64_t begin_ns, uint64_t end_ns, uint64_t id, uint64_t extra = 0) {
    if (!map_.data()) return;
    records()[head().fetch_add(1) % CAPACITY] = {begin_ns, end_ns, id, uint32_t(kind), uint32_t(extra)};
  }
  std::vector<TraceRecord> read() const {
    uint64_t written = head().load(std::memory_order_acquire), count = std::min<uint64_t>(written, CAPACITY);
    std::vector<TraceRecord> out(count);
    for (uint64_t i = 0; i < count; ++i) out[i] = records()[(written - count + i) % CAPACITY];
    uint64_t overwritten = head().load(std::memory_order_acquire) - written;  // while we read: those are not whole
    out.erase(out.begin(), out.begin() + int64_t(std::min(overwritten, count)));
    return out;
  }

 private:
  std::atomic<uint64_t>& head() const { return *reinterpret_cast<std::atomic<uint64_t>*>(map_.data()); }
  TraceRecord* records() const { return reinterpret_cast<TraceRecord*>(map_.data() + HEAD_BYTES); }
  Mapping map_;
};

}  // namespace dvm
