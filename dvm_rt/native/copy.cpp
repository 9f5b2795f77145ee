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
constexpr double FAR_TILES_BYTES = (1 << 20) - 1;  // the same of transposes: their lines come late, and share few sets of a cache
constexpr int64_t LONG_ROW_BYTES = 4096;  // shorter rows are not: their loads and such stores wait for each other
constexpr int64_t ROWS_AHEAD = 8;         // of short rows that do not follow one another
constexpr int64_t RUN_BYTES = 256;    // of a destination row that tiles write before the next row
constexpr int64_t SQUARES_AHEAD = 2;  // see transpose_lines
constexpr int64_t BLOCK_BYTES = 512;  // of a source row that tiles walk before the next row: pages stay in the TLB

template <class T, int N> using Vec [[gnu::vector_size(sizeof(T) * N)]] = T;
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANE_BYTES = 16;

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
  static constexpr int N = VECTOR_BYTES / sizeof(T), L = LANE_BYTES / sizeof(T);  // elements of a vector, of a lane
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
  static constexpr bool STREAMS = sizeof(V) == 64;

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
#if defined(__AVX512BW__)
    if (i == count) return;
    const __mmask64 rest = _bzhi_u64(~uint64_t(0), unsigned((count - i) * SIZE));
    _mm512_mask_storeu_epi8(to + i * SIZE, rest, (__m512i)K::many((V)_mm512_maskz_loadu_epi8(rest, from + i * SIZE)));
#else
    for (; i < count; i++) store(to + i * SIZE, load(from + i * SIZE));
#endif
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
    int64_t i = 0;
    if (d.from == 2 * SIZE && d.to == SIZE) i = every_second(to, from, d.count);
    for (; i < d.count; i++) store(to + i * d.to, load(from + i * d.from));
  }
  template <size_t... I> static V even(V a, V b, std::index_sequence<I...>) { return __builtin_shufflevector(a, b, (2 * I)...); }
  static int64_t every_second(uint8_t* to, const uint8_t* from, int64_t count) {
    int64_t i = 0;
    for (; i + N < count; i += N) {  // not the last one: what follows it may not be there
      V x, y;
      memcpy(&x, from + 2 * i * SIZE, sizeof x), memcpy(&y, from + (2 * i + N) * SIZE, sizeof y);
      x = K::many(even(x, y, std::make_index_sequence<N>()));
      memcpy(to + i * SIZE, &x, sizeof x);
    }
    return i;
  }
  // Each element `times` times. A whole vector of it is stored; what is too much is the place of the elements after it.
  static void repeat(uint8_t* to, const uint8_t* from, const Dim& d, int64_t times) {
    const uint8_t* end = to + d.count * times * SIZE;
    for (int64_t i = 0; i < d.count; i++, to += times * SIZE) {
      const T x = load(from + i * d.from);
      const V all = V{} + x;
      if (end - to >= int64_t(sizeof all)) memcpy(to, &all, sizeof all);
      else for (int64_t k = 0; k < times; k++) store(to + k * SIZE, x);
    }
  }

  // Lane by lane the first halves of two vectors, element by element in turn, or the second halves.
  template <int HALF, class A, size_t... I> static A interleaved(A a, A b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, (I % 2 * sizeof...(I) + I / L * L + HALF * (L / 2) + I % L / 2)...);
  }
  template <class A, size_t... I> static auto joined(A a, A b, std::index_sequence<I...>) { return __builtin_shufflevector(a, b, I...); }
#if defined(__AVX512F__)
  // Masked broadcasts: shuffles, of which there is one a cycle, are left for the tile.
  static Vec<T, 4 * L> four_lanes(const uint8_t* from, int64_t step) {
    auto at = [&](int g) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + g * step)); };
    __m512i x = _mm512_castsi128_si512(at(0));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, at(1));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, at(2));
    return (Vec<T, 4 * L>)_mm512_mask_broadcast_i32x4(x, 0xf000, at(3));
  }
#endif
  // Lanes from G places, `step` bytes apart.
  template <int G> static auto lanes(const uint8_t* from, int64_t step) {
    if constexpr (G == 1) {
      Vec<T, L> x;
      memcpy(&x, from, sizeof x);
      return x;
#if defined(__AVX512F__)
    } else if constexpr (G == 4) {
      return four_lanes(from, step);
#endif
    } else {
      return joined(lanes<G / 2>(from, step), lanes<G / 2>(from + G / 2 * step, step), std::make_index_sequence<G * L>());
    }
  }
  // G L rows of L elements. Lane g of vector m begins as row g L + m; a perfect shuffle of the vectors, log2(L) times, exchanges
  // rows and columns in every lane.
  template <int G, bool STREAM> static void tile(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) {
    using A = Vec<T, G * L>;
    constexpr auto indices = std::make_index_sequence<G * L>();
    A a[L], b[L];
#pragma GCC unroll 16
    for (int m = 0; m < L; m++) a[m] = lanes<G>(from + m * from_row, L * from_row);
#pragma GCC unroll 4
    for (int stage = 1; stage < L; stage *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < L / 2; i++) b[2 * i] = interleaved<0>(a[i], a[i + L / 2], indices), b[2 * i + 1] = interleaved<1>(a[i], a[i + L / 2], indices);
#pragma GCC unroll 16
      for (int i = 0; i < L; i++) a[i] = b[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; i++) {
      const A x = K::many(a[i]);
      if constexpr (STREAM) stream(to + i * to_row, x);
      else memcpy(to + i * to_row, &x, sizeof x);
    }
  }
  // Destination contiguous along r, source contiguous along c. N rows of the source by one line of each are a square; squares go
  // down a run of the destination (all of it where it stays in the caches), then along the source. A line of either side is in
  // use for one square only: rows that are a power of two apart share few sets of a cache, and more lines than those hold would
  // be fetched again for every tile. So lines are asked for no more than SQUARES_AHEAD squares before.
  template <bool STREAM> static void transpose_lines(uint8_t* to, const uint8_t* from, const Dim& r, int64_t whole, const Dim& c, int64_t columns) {
    constexpr int64_t RUN = std::max<int64_t>(RUN_BYTES / SIZE, N), LINE = 64 / SIZE;
    for (int64_t i0 = 0; i0 < whole; i0 += STREAM ? RUN : N)
      for (int64_t j0 = 0; j0 < columns; j0 += LINE)
        for (int64_t i = i0; i < std::min(i0 + (STREAM ? RUN : N), whole); i += N) {
          const uint8_t* m = from + i * r.from + j0 * SIZE;
          const int64_t down = i + SQUARES_AHEAD * N < std::min(i0 + RUN, whole) ? SQUARES_AHEAD * N * r.from : 64;
          for (int k = 0; k < N; k++) __builtin_prefetch(m + k * r.from + (STREAM ? down : 64), 0, STREAM ? 2 : 3);
          for (int64_t j = j0; j < std::min(j0 + LINE, columns); j += L, m += L * SIZE)
            tile<N / L, STREAM>(to + i * SIZE + j * c.to, c.to, m, r.from);
        }
  }
  // The same where lines of the destination begin anywhere: blocks are transposed into a buffer, of which whole lines go past
  // the caches.
  static void transpose_blocks(uint8_t* to, const uint8_t* from, const Dim& r, int64_t whole, const Dim& c, int64_t columns) {
    constexpr int64_t BLOCK = std::min<int64_t>(BLOCK_BYTES / SIZE, 256), PITCH = BLOCK * SIZE + 64;
    alignas(64) uint8_t buffer[BLOCK * PITCH];
    for (int64_t i0 = 0; i0 < whole; i0 += BLOCK)
      for (int64_t j0 = 0; j0 < columns; j0 += BLOCK) {
        const int64_t i1 = std::min(i0 + BLOCK, whole), j1 = std::min(j0 + BLOCK, columns), bytes = (i1 - i0) * SIZE;
        for (int64_t i = i0; i < i1; i += N)
          for (int64_t j = j0; j < j1; j += L) {
            const uint8_t* m = from + i * r.from + j * SIZE;
            if ((j - j0) * SIZE % 64 == 0 && i + 2 * N <= r.count)
              for (int k = 0; k < N; k++) __builtin_prefetch(m + (N + k) * r.from);
            tile<N / L, false>(buffer + (j - j0) * PITCH + (i - i0) * SIZE, PITCH, m, r.from);
          }
        for (int64_t j = j0; j < j1; j++) {
          uint8_t* line = to + j * c.to + i0 * SIZE;
          const uint8_t* made = buffer + (j - j0) * PITCH;
          int64_t at = std::min<int64_t>(-reinterpret_cast<uintptr_t>(line) & 63, bytes);
          memcpy(line, made, size_t(at));
          for (; at + int64_t(sizeof(V)) <= bytes; at += sizeof(V)) {
            V x;
            memcpy(&x, made + at, sizeof x);
            stream(line + at, x);
          }
          memcpy(line + at, made + at, size_t(bytes - at));
        }
      }
  }
  static void transpose(uint8_t* to, const uint8_t* from, const Dim& r, const Dim& c, bool far) {
    const int64_t whole = r.count / N * N, rows = r.count / L * L, columns = c.count / L * L;
    const bool lines = !((reinterpret_cast<uintptr_t>(to) | uintptr_t(c.to)) & 63);
    if (STREAMS && far) lines ? transpose_lines<true>(to, from, r, whole, c, columns) : transpose_blocks(to, from, r, whole, c, columns);
    else transpose_lines<false>(to, from, r, whole, c, columns);
    for (int64_t j = 0; j < columns; j += L)
      for (int64_t i = whole; i < rows; i += L) tile<1, false>(to + i * SIZE + j * c.to, c.to, from + i * r.from + j * SIZE, r.from);
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
    if (tiles) return transpose(to, from, dims[0], dims[1], far);
    const bool back = dims[0].from == -SIZE && dims[0].to == SIZE;
    const bool rows = dims[0].from == SIZE && dims[0].to == SIZE;
    const int64_t bytes = dims[0].count * SIZE;
    if (dims[0].from == 0 && dims[0].to == SIZE && dims[1].to == bytes && bytes <= int64_t(sizeof(V))) return repeat(to, from, dims[1], dims[0].count);
    const int64_t lines = rows && far && bytes < LONG_ROW_BYTES && dims[1].from != bytes ? bytes : 0;
    for (int64_t i = 0; i < dims[1].count; i++) {
      for (int64_t j = 0; j < lines && i + ROWS_AHEAD < dims[1].count; j += 64) __builtin_prefetch(from + (i + ROWS_AHEAD) * dims[1].from + j);
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
    if (rank > 1 && dims[0].to == SIZE && dims[0].from != SIZE && dims[0].count >= L) {
      for (int d = 1; d < rank && !tiles; d++) {
        if (dims[d].from != SIZE || dims[d].count < L) continue;
        std::rotate(dims + 1, dims + d, dims + d + 1);
        tiles = true;
      }
    }
    if (rank == 1) dims[rank++] = {1, 0, 0};
    double bytes = double(SIZE);
    for (int d = 0; d < rank; d++) bytes *= double(dims[d].count);
    const bool far = bytes > (tiles ? FAR_TILES_BYTES : FAR_BYTES);
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
