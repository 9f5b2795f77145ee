// A tensor: a contiguous piece of a shared buffer with a type and a shape. It never changes.
#pragma once
#include <array>
#include <span>
#include <string>
#include "arena.h"

namespace dvm {

struct Tensor {
  BufferRef buffer;
  uint64_t offset = 0;  // bytes from the start of the buffer
  uint64_t bytes = 0;
  uint8_t dtype = 0, rank = 0;
  std::array<int64_t, MAX_RANK> dims{};  // outermost first

  uint64_t seq() const { return buffer->seq; }  // the launch that makes it
  uint8_t* data() const { return buffer->data() + offset; }
  uint64_t arena_offset() const { return buffer->offset + offset; }
  std::span<const int64_t> shape() const { return {dims.data(), rank}; }
};

// Bytes of a shape; throws ShapeError for a negative dimension, a rank or a product that is too large.
uint64_t shape_bytes(uint8_t dtype, std::span<const int64_t> shape);
std::string shape_text(std::span<const int64_t> shape);  // as Python writes it

}  // namespace dvm
