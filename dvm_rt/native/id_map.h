// A map from program numbers to values.
//
// Numbers rise by one and are made, looked for and given up many together, so eight that follow each other lie side by side: one
// cache line or two serve them all, and nothing is allocated for one. Open addressing: a block of eight has its place by a
// multiplicative hash, a slot that another number holds sends to the next one, and at most half of the slots are taken. Any
// number is allowed. Pointers to values hold until the next insert() or erase().
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace dvm {

template <class Value> class IdMap {
 public:
  size_t size() const { return size_; }
  Value* find(uint64_t id) {
    for (size_t at = home(id); slots_[at].taken; at = after(at))
      if (slots_[at].id == id) return &slots_[at].value;
    return nullptr;
  }
  const Value* find(uint64_t id) const { return const_cast<IdMap*>(this)->find(id); }
  bool contains(uint64_t id) const { return find(id); }
  // The value of a number; a new one where there is none.
  Value& operator[](uint64_t id) {
    if (Value* found = find(id)) return *found;
    if (2 * (size_ + 1) > slots_.size()) grow();
    ++size_;
    Slot& slot = free_slot(id);
    slot.id = id, slot.taken = true;
    return slot.value;
  }
  bool erase(uint64_t id) {
    size_t hole = home(id);
    for (; slots_[hole].taken && slots_[hole].id != id; hole = after(hole)) {
    }
    if (!slots_[hole].taken) return false;
    // Whatever was sent on past the hole comes back, so that no search ends too early.
    for (size_t at = after(hole); slots_[at].taken; at = after(at)) {
      if (((at - home(slots_[at].id)) & mask()) < ((at - hole) & mask())) continue;
      slots_[hole] = std::move(slots_[at]);
      hole = at;
    }
    slots_[hole] = {};
    --size_;
    return true;
  }
  void clear() { *this = IdMap(); }

 private:
  static constexpr size_t BLOCK = 8;
  struct Slot {
    uint64_t id = 0;
    Value value{};
    bool taken = false;
  };
  size_t mask() const { return slots_.size() - 1; }
  size_t after(size_t at) const { return (at + 1) & mask(); }
  size_t home(uint64_t id) const {
    const uint64_t hash = id / BLOCK * 0x9E3779B97F4A7C15ull;
    return ((hash >> 32) * BLOCK + id % BLOCK) & mask();
  }
  Slot& free_slot(uint64_t id) {
    size_t at = home(id);
    while (slots_[at].taken) at = after(at);
    return slots_[at];
  }
  void grow() {
    std::vector<Slot> old(slots_.size() * 4);
    old.swap(slots_);
    for (Slot& slot : old)
      if (slot.taken) free_slot(slot.id) = std::move(slot);
  }

  std::vector<Slot> slots_ = std::vector<Slot>(8 * BLOCK);
  size_t size_ = 0;
};

}  // namespace dvm
