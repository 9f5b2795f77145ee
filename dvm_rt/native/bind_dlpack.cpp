// DLPack, both ways: NumPy has no bfloat16, so its own exchange does not do.
#include "bind.h"
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <algorithm>
#include <vector>

namespace {
constexpr auto BFLOAT = uint8_t(nb::dlpack::dtype_code::Bfloat);

template <class Array> Array same_memory(const nb::ndarray<nb::ro>& from, nb::handle owner, nb::dlpack::dtype dtype) {
  std::vector<size_t> shape(from.ndim());
  std::vector<int64_t> strides(from.ndim());
  for (size_t d = 0; d < from.ndim(); ++d) shape[d] = from.shape(d), strides[d] = from.stride(d);
  return Array(const_cast<void*>(static_cast<const void*>(from.data())), from.ndim(), shape.data(), owner, strides.data(), dtype);
}
}  // namespace

void bind_dlpack(nb::module_& m) {
  m.def(
      "dlpack_of",
      [](nb::handle array, bool bfloat, bool writable) {
        const auto from = nb::cast<nb::ndarray<nb::ro>>(array);
        const nb::dlpack::dtype dtype = bfloat ? nb::dlpack::dtype{BFLOAT, 16, 1} : from.dtype();
        return writable ? nb::cast(same_memory<nb::ndarray<nb::array_api>>(from, array, dtype))
                        : nb::cast(same_memory<nb::ndarray<nb::array_api, nb::ro>>(from, array, dtype));
      },
      nb::arg("array"), nb::arg("bfloat"), nb::arg("writable"),
      "An object with __dlpack__ over a NumPy array's memory, which it keeps; `bfloat`: its uint16 are bfloat16 bits.");
  m.def(
      "from_dlpack",
      [](const nb::ndarray<nb::ro, nb::device::cpu>& given) {
        const bool bfloat = given.dtype().code == BFLOAT && given.dtype().bits == 16;
        const nb::ndarray<nb::ro> from(given);
        const nb::object owner = nb::cast(nb::ndarray<nb::array_api, nb::ro>(given));
        const nb::dlpack::dtype dtype = bfloat ? nb::dtype<uint16_t>() : given.dtype();
        return std::pair(nb::cast(same_memory<nb::ndarray<nb::numpy, nb::ro>>(from, owner, dtype)), bfloat);
      },
      nb::arg("object"),
      "(NumPy array over the memory of an object with __dlpack__, whether it holds bfloat16 bits). TypeError: not on the CPU.");
}
