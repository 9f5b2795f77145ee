// Copies between any two geometries, for elements of 1, 2, 4 and 8 bytes: rows, transposes in tiles, and the rest.
//
// The dimension that the destination is most nearly contiguous along is the row. Where the source is contiguous along it
// too, rows are copied; where it is along another one, square tiles of those two are transposed in registers, each line of
// either side touched once; else elements go one by one. What is beyond the caches is stored past them, in whole lines, where
// the instruction set can. Bytes are what the reference copies: NaN becomes canonical. A third operand names the row of the
// destination, and is checked.
#include <algorithm>
#include <cstring>
#include <utility>
#include "target.h"
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace dvm::DVM_TARGET {
namespace {

constexpr double FAR_BYTES = 4 << 20;  // of the destination: beyond it, stores go past the caches
constexpr int64_t LONG_ROW_BYTES = 4096;  // shorter rows are not: their loads and such stores wait for each other
constexpr int64_t BLOCK_BYTES = 512;  // of a source row that tiles walk before the next row: pages stay in the TLB

template <class T, int N> using Vec [[gnu::vector_size(sizeof(T) * N)]] = T;
#if defined(__AVX512F__)
constexpr int TILE_BYTES = 64;
#else
constexpr int TILE_BYTES = 32;
#endif
template <class T> constexpr int TILE = std::min(16, int(TILE_BYTES / sizeof(T)));

// What a copy does with bits: nothing, or NaN made canonical. `Bits` is unsigned.
template <class Bits, Bits INFINITE, Bits CANONICAL> struct Kind {
  using T = Bits;
  static constexpr bool FLOATS = INFINITE != 0;
  static T one(T x) { return FLOATS && T(x & T(T(~T(0)) >> 1)) > INFINITE ? CANONICAL : x; }
  template <class V> static V many(V x) {
    if constexpr (FLOATS) {
      const V nan = V((x & (V{} + T(T(~T(0)) >> 1))) > (V{} + INFINITE));
      return (x & ~nan) | ((V{} + CANONICAL) & nan);
    }
    return x;
  }
};

struct Dim {
  int64_t count, from, to;  // strides in bytes
};

template <class K> struct Copy {
  using T = typename K::T;
  static constexpr int N = TILE<T>;
  using V = Vec<T, N>;
  static constexpr int64_t SIZE = sizeof(T);

  static T load(const uint8_t* p) {
    T x;
    memcpy(&x, p, sizeof x);
    return K::one(x);
  }
  static void store(uint8_t* p, T x) { memcpy(p, &x, sizeof x); }

  // A line of the destination: aligned, and not to be kept.
  static void stream(uint8_t* to, V x) {
#if defined(__AVX512F__)
    if constexpr (sizeof(V) == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)x);
#endif
    memcpy(to, &x, sizeof x);
  }
  static constexpr bool STREAMS = TILE_BYTES == 64 && sizeof(V) == 64;

  static void row(uint8_t* to, const uint8_t* from, int64_t count, bool far) {
    int64_t i = 0;
    if (STREAMS && far && count * SIZE >= LONG_ROW_BYTES && !(reinterpret_cast<uintptr_t>(to) & (SIZE - 1))) {
      for (; i < count && (reinterpret_cast<uintptr_t>(to + i * SIZE) & 63); i++) store(to + i * SIZE, load(from + i * SIZE));
      for (; i + N <= count; i += N) {
        V x;
        memcpy(&x, from + i * SIZE, sizeof x);
        stream(to + i * SIZE, K::many(x));
      }
    }
    for (; i + N <= count; i += N) {
      V x;
      memcpy(&x, from + i * SIZE, sizeof x);
      x = K::many(x);
      memcpy(to + i * SIZE, &x, sizeof x);
    }
    for (; i < count; i++) store(to + i * SIZE, load(from + i * SIZE));
  }
  template <size_t... I> static V reversed(V a, std::index_sequence<I...>) { return __builtin_shufflevector(a, a, (N - 1 - I)...); }
  // From the last element to the first.
  static void row_back(uint8_t* to, const uint8_t* from, int64_t count) {
    int64_t i = 0;
    for (; i + N <= count; i += N) {
      V x;
      memcpy(&x, from - (i + N - 1) * SIZE, sizeof x);
      x = K::many(reversed(x, std::make_index_sequence<N>()));
      memcpy(to + i * SIZE, &x, sizeof x);
    }
    for (; i < count; i++) store(to + i * SIZE, load(from - i * SIZE));
  }
  static void strided(uint8_t* to, const uint8_t* from, const Dim& d) {
    if (d.from == 0) {
      const T x = load(from);
      for (int64_t i = 0; i < d.count; i++) store(to + i * d.to, x);
      return;
    }
    for (int64_t i = 0; i < d.count; i++) store(to + i * d.to, load(from + i * d.from));
  }

  template <size_t... I> static V low(V a, V b, std::index_sequence<I...>) { return __builtin_shufflevector(a, b, (I % 2 ? N + I / 2 : I / 2)...); }
  template <size_t... I> static V high(V a, V b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I % 2 ? N + N / 2 + I / 2 : N / 2 + I / 2)...);
  }
  // N rows of N elements; a perfect shuffle of the rows, log2(N) times, exchanges rows and columns.
  template <bool STREAM> static void tile(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) {
    V a[N], b[N];
#pragma GCC unroll 32
    for (int i = 0; i < N; i++) memcpy(&a[i], from + i * from_row, sizeof(V));
    constexpr auto indices = std::make_index_sequence<N>();
    for (int stage = 1; stage < N; stage *= 2) {
#pragma GCC unroll 16
      for (int i = 0; i < N / 2; i++) b[2 * i] = low(a[i], a[i + N / 2], indices), b[2 * i + 1] = high(a[i], a[i + N / 2], indices);
#pragma GCC unroll 32
      for (int i = 0; i < N; i++) a[i] = b[i];
    }
#pragma GCC unroll 32
    for (int i = 0; i < N; i++) {
      const V x = K::many(a[i]);
      if constexpr (STREAM) stream(to + i * to_row, x);
      else memcpy(to + i * to_row, &x, sizeof(V));
    }
  }
  static void ahead(const uint8_t* from, int64_t from_row) {
#pragma GCC unroll 32
    for (int i = 0; i < N; i++) __builtin_prefetch(from + i * from_row);
  }
  // Destination contiguous along r, source contiguous along c.
  template <bool STREAM> static void transpose(uint8_t* to, const uint8_t* from, const Dim& r, const Dim& c) {
    const int64_t rows = r.count / N * N, columns = c.count / N * N, block = std::max<int64_t>(BLOCK_BYTES / SIZE, N);
    for (int64_t j0 = 0; j0 < columns; j0 += block)
      for (int64_t i = 0; i < rows; i += N)
        for (int64_t j = j0; j < std::min(j0 + block, columns); j += N) {
          if (STREAM && i + 2 * N <= rows) ahead(from + (i + N) * r.from + j * SIZE, r.from);
          tile<STREAM>(to + i * SIZE + j * c.to, c.to, from + i * r.from + j * SIZE, r.from);
        }
    const Dim rest{r.count - rows, r.from, SIZE};
    for (int64_t j = 0; j < c.count; j++) {
      if (j >= columns) strided(to + j * c.to, from + j * SIZE, r);
      else if (rest.count) strided(to + rows * SIZE + j * c.to, from + rows * r.from + j * SIZE, rest);
    }
  }

  // dims[0] is the row, dims[1] the next; the others are walked.
  static void walk(uint8_t* to, const uint8_t* from, const Dim* dims, int rank, bool tiles, bool far) {
    if (rank > 2) {
      const Dim& d = dims[rank - 1];
      for (int64_t i = 0; i < d.count; i++) walk(to + i * d.to, from + i * d.from, dims, rank - 1, tiles, far);
      return;
    }
    if (tiles) {
      const bool lines = STREAMS && far && !((reinterpret_cast<uintptr_t>(to) | uintptr_t(dims[1].to)) & 63);
      return lines ? transpose<true>(to, from, dims[0], dims[1]) : transpose<false>(to, from, dims[0], dims[1]);
    }
    const bool back = dims[0].from == -SIZE && dims[0].to == SIZE;
    const bool rows = dims[0].from == SIZE && dims[0].to == SIZE;
    for (int64_t i = 0; i < dims[1].count; i++) {
      if (rows) row(to + i * dims[1].to, from + i * dims[1].from, dims[0].count, far);
      else if (back) row_back(to + i * dims[1].to, from + i * dims[1].from, dims[0].count);
      else strided(to + i * dims[1].to, from + i * dims[1].from, dims[0]);
    }
  }

  static void run(const SectionRun& section, int64_t shift) {
    const Section& head = *section.section.head;
    const Operand *x = section.section.operands, *y = x + 1;
    Dim dims[MAX_RANK + 1];
    int rank = 0;
    for (int d = 0; d < head.rank; d++)
      if (head.dims[d] > 1) dims[rank++] = {head.dims[d], x->stride[d], y->stride[d]};
    auto farther = [](const Dim& a, const Dim& b) { return std::abs(a.to) < std::abs(b.to); };
    std::stable_sort(dims, dims + rank, farther);
    if (rank == 0) dims[rank++] = {1, SIZE, SIZE};
    const bool still = section.address[0] == section.address[1] + shift &&
                       std::all_of(dims, dims + rank, [](const Dim& d) { return d.from == d.to; });
    if (still) return;  // memory that grows is where it was
    bool tiles = false;
    if (rank > 1 && dims[0].to == SIZE && dims[0].from != SIZE && dims[0].count >= N) {
      for (int d = 1; d < rank && !tiles; d++) {
        if (dims[d].from != SIZE || dims[d].count < N) continue;
        std::rotate(dims + 1, dims + d, dims + d + 1);
        tiles = true;
      }
    }
    if (rank == 1) dims[rank++] = {1, 0, 0};
    double bytes = double(SIZE);
    for (int d = 0; d < rank; d++) bytes *= double(dims[d].count);
    const bool far = bytes > FAR_BYTES;
    walk(section.address[1] + shift, section.address[0], dims, rank, tiles, far);
#if defined(__AVX512F__)
    if (far) _mm_sfence();
#endif
  }
};

// Bytes to the row of the destination that operand 2 names; false: it has no such row.
bool find_row(Context& context, const SectionRun& run, int64_t& shift) {
  const Operand &target = run.section.operands[1], &named = run.section.operands[2];
  int64_t row;
  if (DType(named.dtype) == DType::INT64) {
    memcpy(&row, run.address[2], 8);
  } else {
    int32_t narrow;
    memcpy(&narrow, run.address[2], 4);
    row = narrow;
  }
  if (row < -target.limit || row >= target.limit) {
    context.trap = {TrapCode::GATHER_RANGE, 0, 0, row, target.limit};
    return false;
  }
  shift = (row < 0 ? row + target.limit : row) * target.depth;
  return true;
}

}  // namespace

void copy(Context& context, const SectionRun& run) {
  int64_t shift = 0;
  if (run.section.head->operand_count == 3 && !find_row(context, run, shift)) return;
  switch (DType(run.section.operands[0].dtype)) {
    case DType::FLOAT16: return Copy<Kind<uint16_t, 0x7C00, 0x7E00>>::run(run, shift);
    case DType::BFLOAT16: return Copy<Kind<uint16_t, 0x7F80, 0x7FC0>>::run(run, shift);
    case DType::FLOAT32: return Copy<Kind<uint32_t, 0x7F800000, 0x7FC00000>>::run(run, shift);
    case DType::FLOAT64: return Copy<Kind<uint64_t, 0x7FF0000000000000, 0x7FF8000000000000>>::run(run, shift);
    default: break;
  }
  switch (DTYPE_BYTES[run.section.operands[0].dtype]) {
    case 1: return Copy<Kind<uint8_t, 0, 0>>::run(run, shift);
    case 2: return Copy<Kind<uint16_t, 0, 0>>::run(run, shift);
    case 4: return Copy<Kind<uint32_t, 0, 0>>::run(run, shift);
    default: return Copy<Kind<uint64_t, 0, 0>>::run(run, shift);
  }
}

}  // namespace dvm::DVM_TARGET
