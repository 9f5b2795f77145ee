#include "tensor.h"

namespace dvm {

std::string shape_text(std::span<const int64_t> shape) {
  std::string out = "(";
  for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
  return out + (shape.size() == 1 ? ",)" : ")");
}

uint64_t shape_bytes(uint8_t dtype, std::span<const int64_t> shape) {
  uint64_t bytes = DTYPE_BYTES[dtype];
  bool fits = shape.size() <= size_t(MAX_RANK), empty = false;
  for (int64_t dim : shape) {
    fits = fits && dim >= 0;
    empty = empty || dim == 0;
  }
  for (int64_t dim : shape) fits = fits && !__builtin_mul_overflow(bytes, uint64_t(empty ? 0 : dim), &bytes);
  if (fits && bytes < 1ull << 48) return bytes;
  throw Error("ShapeError", say("stream: tensor: shape, got ", shape_text(shape), ", allowed rank ", MAX_RANK,
      " and less than 2^48 bytes"));
}

}  // namespace dvm
