// Copies between any two geometries, for elements of 1, 2, 4 and 8 bytes: rows, transposes in tiles, and the rest.
//
// The dimension that the destination is most nearly contiguous along is the row. Where the source is contiguous along it
// too, rows are copied; where it is along another one, square tiles of those two are transposed in registers, each line of
// either side touched once; else elements go one by one. What is beyond the caches is stored past them, in whole lines, where
// the instruction set can. Bytes are what the reference copies: NaN becomes canonical. A third operand names the row of the
// destination, and is checked. Vector sections that do nothing but gather rows are copies of rows too, and run here; so do those
// that fill short rows with a number (the edges of a convolution).
#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>
#include "place_row.h"
#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace dvm::DVM_TARGET {
namespace {

constexpr double FAR_BYTES = 4 << 20;  // of the destination: beyond it, stores go past the caches
constexpr double FAR_TILES_BYTES = (1 << 20) - 1;  // the same of transposes: their lines come late, and share few sets of a cache
constexpr int64_t LONG_ROW_BYTES = 2048;  // shorter rows are not, unless they are whole lines: their ends would be fetched
constexpr int64_t ROWS_AHEAD = 24;        // of short rows that do not follow one another
constexpr int64_t STREAMS_MAX = 64;  // rows of the source that a transpose walks at once
constexpr int64_t CARRIED_MAX = 2048;  // rows of the destination with a part of a line that waits for the rest

template <class T, int N> using Vec [[gnu::vector_size(sizeof(T) * N)]] = T;
#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif
constexpr int LANE_BYTES = 16;
constexpr int64_t LINE_BYTES = 64;

// What a copy does with bits: nothing, or NaN made canonical. `Bits` is unsigned.
template <class Bits, Bits INFINITE, Bits CANONICAL> struct Kind {
  using T = Bits;
  static constexpr bool FLOATS = INFINITE != 0;
  static T one(T x) { return FLOATS && T(x & T(T(~T(0)) >> 1)) > INFINITE ? CANONICAL : x; }
  template <class V> static V many(V x) {
    if constexpr (FLOATS) {
      using Signed = Vec<std::make_signed_t<T>, sizeof(V) / sizeof(T)>;  // no sign is left, and this compare is one instruction
      return Signed(x & (V{} + T(T(~T(0)) >> 1))) > Signed(V{} + INFINITE) ? V{} + CANONICAL : x;
    }
    return x;
  }
};

using Floats = Kind<uint32_t, 0x7F800000, 0x7FC00000>;

struct Bools {
  using T = uint8_t;
  static T one(T x) { return x != 0; }
  template <class V> static V many(V x) { return V(x != 0) & 1; }
};

struct Dim {
  int64_t count, from, to;  // strides in bytes
};

template <class K> struct Copy {
  using T = typename K::T;
  static constexpr int N = VECTOR_BYTES / sizeof(T), L = LANE_BYTES / sizeof(T);  // elements of a vector, of a lane
  using V = Vec<T, N>;
  static constexpr int64_t SIZE = sizeof(T), LINE = LINE_BYTES / SIZE;

  static T load(const uint8_t* p) {
    T x;
    memcpy(&x, p, sizeof x);
    return K::one(x);
  }
  static void store(uint8_t* p, T x) { memcpy(p, &x, sizeof x); }

  static V whole_vector(const uint8_t* m) {
    V x;
    memcpy(&x, m, sizeof x);
    return x;
  }
  // A vector of the destination: aligned, and not to be kept.
  static void stream(uint8_t* to, V x) {
#if defined(__AVX512F__)
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)x);
#elif defined(__AVX2__)
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)x);
#elif defined(__SSE2__)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)x);
#else
    memcpy(to, &x, sizeof x);
#endif
  }
  static constexpr bool WHOLE_LINES = sizeof(V) == LINE_BYTES;  // what tiles store

  template <size_t... I> static V reversed(V a, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, a, (N - 1 - I)...);
  }
  // Elements i .. i + N - 1 of a row; BACK: of one that is read from its last element on.
  template <bool BACK> static V part(const uint8_t* from, int64_t i) {
    const V x = whole_vector(BACK ? from - (i + N - 1) * SIZE : from + i * SIZE);
    if constexpr (BACK) return K::many(reversed(x, std::make_index_sequence<N>()));
    return K::many(x);
  }
  template <bool BACK> static void some(uint8_t* to, const uint8_t* from, int64_t first, int64_t end) {  // less than a vector
#if defined(__AVX512BW__)
    if constexpr (!BACK) {
      const __mmask64 rest = _bzhi_u64(~uint64_t(0), unsigned((end - first) * SIZE));
      _mm512_mask_storeu_epi8(to + first * SIZE, rest, (__m512i)K::many((V)_mm512_maskz_loadu_epi8(rest, from + first * SIZE)));
      return;
    }
#endif
    for (int64_t i = first; i < end; i++) store(to + i * SIZE, load(BACK ? from - i * SIZE : from + i * SIZE));
  }
  // `past`: whole lines go past the caches.
  template <bool BACK> static void row(uint8_t* to, const uint8_t* from, int64_t count, bool past) {
    int64_t i = 0;
    if (past && !(reinterpret_cast<uintptr_t>(to) & (SIZE - 1))) {
      i = int64_t(-reinterpret_cast<uintptr_t>(to) & (LINE_BYTES - 1)) / SIZE;
      if (i) some<BACK>(to, from, 0, i = std::min(i, count));
      for (; i + N <= count; i += N) stream(to + i * SIZE, part<BACK>(from, i));
    }
    for (; i + N <= count; i += N) {
      const V x = part<BACK>(from, i);
      memcpy(to + i * SIZE, &x, sizeof x);
    }
    if (i < count) some<BACK>(to, from, i, count);
  }
  // A row of VECTORS vectors, of which the last one may overlap the one before it; 0: of any length.
  template <int VECTORS> static void row_of(uint8_t* to, const uint8_t* from, int64_t count, bool past) {
    if constexpr (!VECTORS) return row<false>(to, from, count, past);
#pragma GCC unroll 8
    for (int k = 0; k < VECTORS; k++) {
      const int64_t i = k + 1 < VECTORS ? k * N : count - N;
      const V x = part<false>(from, i);
      past ? stream(to + i * SIZE, x) : void(memcpy(to + i * SIZE, &x, sizeof x));
    }
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
  template <int TIMES, size_t... I> static V repeated(V a, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, a, (I / TIMES)...);
  }
  // N / TIMES elements at a time, of which a whole vector is read, TIMES times each: how many it has done.
  template <int TIMES> static int64_t repeat_many(uint8_t* to, const uint8_t* from, int64_t count, bool past) {
    if constexpr (TIMES > N) return 0;
    else {
      past = past && !(reinterpret_cast<uintptr_t>(to) & (sizeof(V) - 1));
      int64_t i = 0;
      for (; i + N <= count; i += N / TIMES) {
        const V x = K::many(repeated<TIMES>(whole_vector(from + i * SIZE), std::make_index_sequence<N>()));
        past ? stream(to + i * TIMES * SIZE, x) : void(memcpy(to + i * TIMES * SIZE, &x, sizeof x));
      }
      return i;
    }
  }
  // Each element `times` times. A whole vector of it is stored; what is too much is the place of the elements after it.
  static void repeat(uint8_t* to, const uint8_t* from, const Dim& d, int64_t times, bool past) {
    const uint8_t* end = to + d.count * times * SIZE;
    int64_t i = 0;
    if (d.from == SIZE)
      i = times == 2   ? repeat_many<2>(to, from, d.count, past)
          : times == 4 ? repeat_many<4>(to, from, d.count, past)
                       : 0;
    for (to += i * times * SIZE; i < d.count; i++, to += times * SIZE) {
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
  template <class A, size_t... I> static auto joined(A a, A b, std::index_sequence<I...>) {
    return __builtin_shufflevector(a, b, I...);
  }
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
  // Lane g of vector m is row g L + m; a perfect shuffle of the vectors, log2(L) times, exchanges rows and columns in every lane.
  template <bool STREAM, class A> static void finish_tile(A* a, uint8_t* to, int64_t to_row) {
    constexpr auto indices = std::make_index_sequence<sizeof(A) / SIZE>();
    A b[L];
#pragma GCC unroll 4
    for (int stage = 1; stage < L; stage *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < L / 2; i++)
        b[2 * i] = interleaved<0>(a[i], a[i + L / 2], indices),
              b[2 * i + 1] = interleaved<1>(a[i], a[i + L / 2], indices);
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
  // G L rows of L elements.
  template <int G, bool STREAM> static void tile(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) {
    Vec<T, G * L> a[L];
#pragma GCC unroll 16
    for (int m = 0; m < L; m++) a[m] = lanes<G>(from + m * from_row, L * from_row);
    finish_tile<STREAM>(a, to, to_row);
  }
#if defined(__AVX512F__)
  // Two tiles beside each other: half as many loads, of which there is hardly more than one a cycle.
  static constexpr int ACROSS = 2 * L;
  template <bool STREAM> static void tiles_across(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) {
    V a[L], b[L];
#pragma GCC unroll 16
    for (int m = 0; m < L; m++) {
      auto at = [&](int g) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + (m + g * L) * from_row)); };
      const __m512i x = _mm512_inserti64x4(_mm512_castsi256_si512(at(0)), at(1), 1);
      const __m512i y = _mm512_inserti64x4(_mm512_castsi256_si512(at(2)), at(3), 1);
      a[m] = (V)_mm512_shuffle_i32x4(x, y, 0x88), b[m] = (V)_mm512_shuffle_i32x4(x, y, 0xdd);
    }
    finish_tile<STREAM>(a, to, to_row);
    finish_tile<STREAM>(b, to + L * to_row, to_row);
  }
#else
  static constexpr int ACROSS = L;
  template <bool STREAM> static void tiles_across(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) {
    tile<N / L, STREAM>(to, to_row, from, from_row);
  }
#endif
  // N rows of the source by one line of each.
  template <bool STREAM> static void square(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row) {
    for (int64_t j = 0; j < LINE; j += ACROSS) tiles_across<STREAM>(to + j * to_row, to_row, from + j * SIZE, from_row);
  }
  // N rows of the source, `columns` of them: what is less than a tile is a tile that begins before.
  static void strip(uint8_t* to, int64_t to_row, const uint8_t* from, int64_t from_row, int64_t columns) {
    for (int64_t j = 0; j < columns; j += L) {
      j = std::min(j, columns - L);
      tile<N / L, false>(to + j * to_row, to_row, from + j * SIZE, from_row);
    }
  }
  // Destination contiguous along r, source contiguous along c. Squares go down the destination's rows; the last of them begins
  // before it would, and writes again what is there.
  static void transpose_near(uint8_t* to, const uint8_t* from, const Dim& r, const Dim& c, int64_t j0) {
    for (int64_t j = j0; j < c.count; j += LINE) {
      const int64_t columns = std::min(c.count - j, LINE), back = std::max<int64_t>(L - columns, 0);
      for (int64_t i = 0; i < r.count; i += N) {
        i = std::min(i, r.count - N);
        const uint8_t* m = from + i * r.from + (j - back) * SIZE;
        uint8_t* out = to + i * SIZE + (j - back) * c.to;
        if (columns == LINE) square<false>(out, c.to, m, r.from);
        else strip(out, c.to, m, r.from, columns + back);
      }
    }
  }
  // Past the caches, where lines of the destination are whole: some squares down, then along the source. Few rows of
  // the source at a time: the processor follows so many streams, and fetches what comes next of each.
  static constexpr int64_t RUN = std::max<int64_t>(N, std::min<int64_t>(2 * N, STREAMS_MAX));
  static void ask_for_square(const uint8_t* from, int64_t from_row) {
    for (int k = 0; k < N; k++) __builtin_prefetch(from + k * from_row + 2 * LINE_BYTES, 0, 2);
  }
  static void transpose_lines(uint8_t* to, const uint8_t* from, const Dim& r, const Dim& c) {
    const int64_t rows = r.count / N * N, columns = c.count / LINE * LINE;
    for (int64_t i0 = 0; i0 < rows; i0 += RUN)
      for (int64_t j = 0; j < columns; j += LINE)
        for (int64_t i = i0; i < std::min(i0 + RUN, rows); i += N) {
          const uint8_t* m = from + i * r.from + j * SIZE;
          ask_for_square(m, r.from);
          square<true>(to + i * SIZE + j * c.to, c.to, m, r.from);
        }
    transpose_near(to, from, r, c, columns);
    const int64_t i = r.count - N;
    for (int64_t j = 0; rows < r.count && j < columns; j += LINE)
      square<false>(to + i * SIZE + j * c.to, c.to, from + i * r.from + j * SIZE, r.from);
  }
  // The same where lines of the destination begin anywhere: squares are transposed into a buffer. The end of a run that
  // is no whole line is carried to the next one.
  static void transpose_carried(uint8_t* to, const uint8_t* from, const Dim& r, const Dim& c) {
    constexpr int64_t PITCH = RUN * SIZE + LINE_BYTES;
    alignas(64) uint8_t buffer[LINE * PITCH], carried[CARRIED_MAX * LINE_BYTES];
    const int64_t columns = c.count / LINE * LINE;
    for (int64_t j0 = 0; j0 < columns; j0 += CARRIED_MAX)
      for (int64_t i0 = 0; i0 < r.count; i0 += RUN) {
        const int64_t rows = std::min(r.count - i0, RUN);
        for (int64_t j = j0; j < std::min(j0 + CARRIED_MAX, columns); j += LINE) {
          uint8_t* carry = carried + (j - j0) * LINE_BYTES;
          for (int64_t k = 0; k < LINE; k++) memcpy(buffer + k * PITCH, carry + k * LINE_BYTES, LINE_BYTES);
          for (int64_t i = 0; i < rows; i += N) {
            i = std::min(i, rows - N);  // where this is below 0 it writes again what is carried
            const uint8_t* m = from + (i0 + i) * r.from + j * SIZE;
            ask_for_square(m, r.from);
            square<false>(buffer + LINE_BYTES + i * SIZE, PITCH, m, r.from);
          }
          for (int64_t k = 0; k < LINE; k++) {
            const uint8_t* made = buffer + k * PITCH + LINE_BYTES;
            put_run(to + i0 * SIZE + (j + k) * c.to, made, rows * SIZE, i0 == 0, i0 + rows == r.count);
            memcpy(carry + k * LINE_BYTES, made + rows * SIZE - LINE_BYTES, LINE_BYTES);
          }
        }
      }
    transpose_near(to, from, r, c, columns);
  }
  // `bytes` of a row of the destination, behind those that were left of it before.
  static void put_run(uint8_t* to, const uint8_t* made, int64_t bytes, bool first, bool last) {
    const int64_t over = int64_t(reinterpret_cast<uintptr_t>(to) & (LINE_BYTES - 1));
    int64_t at = -over;
    if (first && over) {
      at += LINE_BYTES;
      memcpy(to, made, size_t(at));
    }
    for (; at + LINE_BYTES <= bytes; at += LINE_BYTES)
      for (int64_t k = at; k < at + LINE_BYTES; k += VECTOR_BYTES) stream(to + k, whole_vector(made + k));
    if (last) memcpy(to + at, made + at, size_t(bytes - at));
  }
  static void transpose(uint8_t* to, const uint8_t* from, const Dim& r, const Dim& c, bool far) {
    if (r.count >= N) {
      const bool lines = !((reinterpret_cast<uintptr_t>(to) | uintptr_t(c.to)) & (LINE_BYTES - 1));
      if (!WHOLE_LINES || !far) return transpose_near(to, from, r, c, 0);
      return lines ? transpose_lines(to, from, r, c) : transpose_carried(to, from, r, c);
    }
    for (int64_t i = 0; i < r.count; i += L) {
      i = std::min(i, r.count - L);
      for (int64_t j = 0; j < c.count; j += L) {
        j = std::min(j, c.count - L);
        tile<1, false>(to + i * SIZE + j * c.to, c.to, from + i * r.from + j * SIZE, r.from);
      }
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
    if (dims[0].from == 0 && dims[0].to == SIZE && dims[1].to == bytes && bytes <= int64_t(sizeof(V)))
      return repeat(to, from, dims[1], dims[0].count, far);
    const bool whole = !((reinterpret_cast<uintptr_t>(to) | uintptr_t(dims[1].to) | uintptr_t(bytes)) & (LINE_BYTES - 1));
    const bool past = far && (whole || bytes >= LONG_ROW_BYTES);
    const int64_t asked = rows && far && bytes < LONG_ROW_BYTES && dims[1].from != bytes ? bytes : 0;
    for (int64_t i = 0; i < dims[1].count; i++) {
      for (int64_t j = 0; j < asked && i + ROWS_AHEAD < dims[1].count; j += LINE_BYTES)
        __builtin_prefetch(from + (i + ROWS_AHEAD) * dims[1].from + j, 0, 2);
      if (rows) row<false>(to + i * dims[1].to, from + i * dims[1].from, dims[0].count, past);
      else if (back) row<true>(to + i * dims[1].to, from + i * dims[1].from, dims[0].count, past);
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
#if defined(__SSE2__)
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

// ---- rows that indices name -------------------------------------------------------------------------------------------
// A vector section that does nothing but `gather, pass, acc <- gathered row, store, loop, end_row`, hints aside.
struct Gather {
  const SectionRun& run;
  int table, index, target;  // operands
  bool past;                 // whole lines are stored past the caches
};

// May rows be copied as they are stored? Where a load and a store of the section's dtype keep a value, but for the NaN of floats.
bool keeps(DType computed, DType stored) {
  const bool floats = computed == DType::FLOAT32 || computed == DType::FLOAT64;
  switch (stored) {
    case DType::BOOL: case DType::INT8: case DType::UINT8: case DType::INT16: case DType::UINT16: return true;
    case DType::INT32: case DType::UINT32: return computed != DType::FLOAT32;
    case DType::INT64: case DType::UINT64: return !floats && DTYPE_BYTES[int(computed)] == 8;
    case DType::FLOAT16: case DType::BFLOAT16: return floats;
    default: return stored == computed;
  }
}

bool only_gathers(const SectionView& s, Gather& g) {
  constexpr int WORDS = 6;
  if (s.head->operand_count != 3 || s.words[0].op != OP_gather || !s.outers) return false;
  const Word* found[WORDS] = {};
  int count = 0;
  for (int i = 0; i < s.head->word_count; i++) {
    if (s.words[i].op == OP_fetch) continue;
    if (count == WORDS) return false;
    found[count++] = s.words + i;
  }
  if (count != WORDS || found[1]->op != OP_pass || found[4]->op != OP_loop || found[5]->op != OP_end_row) return false;
  const uint16_t load = found[2]->op, store = found[3]->op;
  g.past = store == OP_store_nt || store == OP_store_any_nt;
  if ((load != OP_mov_i && load != OP_load) || (!g.past && store != OP_store && store != OP_store_any)) return false;
  g.table = found[0]->a, g.target = found[3]->a, g.index = s.operands[g.table].index;
  if (found[2]->a != g.table || g.target == g.table) return false;
  const Operand &from = s.operands[g.table], &to = s.operands[g.target];
  const int64_t size = DTYPE_BYTES[from.dtype];
  const bool dense = from.stride[0] == size && to.stride[0] == size;
  return dense && from.dtype == to.dtype && keeps(DType(s.head->dtype), DType(from.dtype));
}

// Where the rows begin that `count` indices name, from the table of the line's first row on; these are its rows from `first` on.
// False: one is out of range.
template <class I>
[[gnu::noinline, gnu::optimize("O3")]] bool find_rows(int64_t* place, const uint8_t* index, int64_t first, int64_t count,
                                                      int64_t index_step, int64_t table_step, const Operand& table) {
  const uint64_t limit = uint64_t(table.limit), depth = uint64_t(table.depth), step = uint64_t(table_step);
  uint64_t outside = 0;
  auto find = [&](int64_t r, const uint8_t* m) __attribute__((always_inline)) {
    I number;
    memcpy(&number, m, sizeof number);
    const uint64_t i = uint64_t(int64_t(number));
    outside |= uint64_t(i + limit >= 2 * limit);
    place[r] = int64_t((i + (number < 0 ? limit : 0)) * depth + uint64_t(first + r) * step);
  };
  if (index_step == sizeof(I))
    for (int64_t r = 0; r < count; r++) find(r, index + r * int64_t(sizeof(I)));
  else
    for (int64_t r = 0; r < count; r++) find(r, index + r * index_step);
  return !outside;
}
template <class I> int64_t first_outside(const uint8_t* index, int64_t index_step, int64_t limit) {
  for (I number;; index += index_step) {
    memcpy(&number, index, sizeof number);
    if (number < -limit || number >= limit) return number;
  }
}

// Rows that go together: `count` elements each, `step` bytes apart in the destination. Beside each the one `ahead` of it is asked
// for, its first `lines` lines.
struct Rows {
  int64_t count, step, ahead, lines;
};
template <int VECTORS> [[gnu::always_inline]] inline void ask(const uint8_t* row, int64_t lines) {
  constexpr int64_t LINES = (VECTORS * VECTOR_BYTES + LINE_BYTES - 1) / LINE_BYTES;
#pragma GCC unroll 8
  for (int64_t k = 0; k < (LINES ? LINES : lines); k++) __builtin_prefetch(row + k * LINE_BYTES, 0, 2);
}
template <class K, int VECTORS, bool PAST, bool ASKS>
[[gnu::noinline]] void copy_rows(uint8_t* to, const uint8_t* table, const int64_t* place, int64_t rows, const Rows& r) {
  const auto [count, step, ahead, lines] = r;
  for (int64_t k = 0; k < rows; k++, to += step) {
    if constexpr (ASKS) ask<VECTORS>(table + place[k + ahead], lines);
    Copy<K>::template row_of<VECTORS>(to, table + place[k], count, PAST);
  }
}

// Indices are checked many at a time, `ahead` rows before those are copied, so that memory works on many rows at once. A table
// that stays in L2 needs none of that.
template <class K, int VECTORS> void run_gather(Context& context, const Gather& g) {
  constexpr int64_t ROWS = 128, AHEAD_MIN = 12, AHEAD_MAX = 96, AHEAD_BYTES = 64 << 10, LINES_MAX = 16, NEAR_BYTES = 768 << 10;
  const SectionRun& run = g.run;
  const Operand& x = run.section.operands[g.table];
  const int64_t* step = run.section.outer[0].gain;
  const int64_t count = run.section.head->dims[0], bytes = count * int64_t(sizeof(typename K::T));
  const bool near = x.limit * x.depth <= NEAR_BYTES, wide = DType(run.section.operands[g.index].dtype) == DType::INT64;
  const int64_t ahead = near ? 0 : std::clamp(AHEAD_BYTES / bytes, AHEAD_MIN, AHEAD_MAX);
  const Rows rows{count, step[g.target], ahead, std::min((bytes + LINE_BYTES - 1) / LINE_BYTES, LINES_MAX)};
  int64_t place[AHEAD_MAX + ROWS];
  uint8_t* ptr[MAX_OPERANDS];
  for (int64_t row = run.begin, here; row < run.end; row += here) {
    here = place_row(run, row, ptr);
    const uint8_t *table = ptr[g.table], *index = ptr[g.index];
    uint8_t* to = ptr[g.target];
    const uintptr_t alike = uintptr_t(to) | uintptr_t(rows.step) | uintptr_t(bytes);
    const bool past = g.past && !(alike & (LINE_BYTES - 1));
    const auto copy_asking = past ? copy_rows<K, VECTORS, true, true> : copy_rows<K, VECTORS, false, true>;
    const auto copy_asked = past ? copy_rows<K, VECTORS, true, false> : copy_rows<K, VECTORS, false, false>;
    for (int64_t found = 0, waiting = 0; found < here;) {  // of the rows found so far, some wait to be copied
      const int64_t next = std::min(ahead + ROWS - waiting, here - found);
      const auto find = wide ? find_rows<int64_t> : find_rows<int32_t>;
      if (!find(place + waiting, index, found, next, step[g.index], step[g.table], x)) {
        const auto outside = wide ? first_outside<int64_t> : first_outside<int32_t>;
        context.trap = {TrapCode::GATHER_RANGE, 0, 0, outside(index, step[g.index], x.limit), x.limit};
        return;
      }
      if (!found)
        for (int64_t k = 0; k < std::min(ahead, next); k++) ask<VECTORS>(table + place[k], rows.lines);
      found += next, index += next * step[g.index], waiting += next;
      const int64_t asking = ahead ? std::max(waiting - ahead, int64_t(0)) : 0;
      copy_asking(to, table, place, asking, rows);
      to += asking * rows.step;
      const int64_t done = found < here ? waiting - ahead : waiting;
      copy_asked(to, table, place + asking, done - asking, rows);
      to += (done - asking) * rows.step, waiting -= done;
      std::copy_n(place + done, waiting, place);
    }
  }
}
template <class K> void run_gather(Context& context, const Gather& g) {
  const int64_t bytes = g.run.section.head->dims[0] * int64_t(sizeof(typename K::T));
  switch (bytes < VECTOR_BYTES ? 0 : (bytes + VECTOR_BYTES - 1) / VECTOR_BYTES) {
    case 1: return run_gather<K, 1>(context, g);
    case 2: return run_gather<K, 2>(context, g);
    case 4: return run_gather<K, 4>(context, g);
    case 8: return run_gather<K, 8>(context, g);
    default: return run_gather<K, 0>(context, g);
  }
}

// f(kind) of the elements of a dtype.
template <class F> void with_kind(uint8_t dtype, F f) {
  switch (DType(dtype)) {
    case DType::FLOAT16: return f(Kind<uint16_t, 0x7C00, 0x7E00>());
    case DType::BFLOAT16: return f(Kind<uint16_t, 0x7F80, 0x7FC0>());
    case DType::FLOAT32: return f(Floats());
    case DType::FLOAT64: return f(Kind<uint64_t, 0x7FF0000000000000, 0x7FF8000000000000>());
    default: break;
  }
  switch (DTYPE_BYTES[dtype]) {
    case 1: return f(Kind<uint8_t, 0, 0>());
    case 2: return f(Kind<uint16_t, 0, 0>());
    case 4: return f(Kind<uint32_t, 0, 0>());
    default: return f(Kind<uint64_t, 0, 0>());
  }
}
}  // namespace

// False: the section is not one that only gathers.
bool gather(Context& context, const SectionRun& run) {
  Gather g{run, 0, 0, 0, false};
  if (run.team || !only_gathers(run.section, g)) return false;
  const uint8_t dtype = run.section.operands[g.table].dtype;
  if (DType(dtype) == DType::BOOL) run_gather<Bools>(context, g);
  else with_kind(dtype, [&](auto kind) { run_gather<decltype(kind)>(context, g); });
  return true;
}

namespace {
constexpr int64_t FILL_BYTES_MAX = 1024;  // of a row: longer ones have stores of their own

// `pass; mov.k number; store; loop; end_row` of 4-byte floats.
bool only_fills(const SectionView& s) {
  if (s.head->word_count != 5 || s.head->operand_count != 1 || s.words[1].op != OP_mov_k) return false;
  const uint16_t op = s.words[2].op;
  return (op == OP_store || op == OP_store_any) && DType(s.head->dtype) == DType::FLOAT32 &&
         DType(s.operands[0].dtype) == DType::FLOAT32 && s.head->dims[0] * 4 <= FILL_BYTES_MAX;
}
void fill_row(uint8_t* to, int64_t stride, int64_t count, uint32_t x) {
  using C = Copy<Floats>;
  int64_t i = 0;
  if (stride == 4)
    for (const C::V many = C::V{} + x; i + C::N <= count; i += C::N) memcpy(to + 4 * i, &many, sizeof many);
  for (; i < count; i++) C::store(to + i * stride, x);
}
}  // namespace

// False: the section is not one that only fills short rows.
bool fill(Context&, const SectionRun& run) {
  const SectionView& s = run.section;
  if (run.team || !only_fills(s)) return false;
  const uint32_t x = Floats::one(s.words[1].k);
  const int64_t count = s.head->dims[0], stride = s.operands[0].stride[0], step = s.outers ? s.outer[0].gain[0] : 0;
  for (int64_t row = run.begin, rows; row < run.end; row += rows) {
    uint8_t* to;
    rows = place_row(run, row, &to);
    if (count == 1)
      for (int64_t i = 0; i < rows; i++) memcpy(to + i * step, &x, sizeof x);
    else
      for (int64_t i = 0; i < rows; i++) fill_row(to + i * step, stride, count, x);
  }
  return true;
}

void copy(Context& context, const SectionRun& run) {
  int64_t shift = 0;
  if (run.section.head->operand_count == 3 && !find_row(context, run, shift)) return;
  with_kind(run.section.operands[0].dtype, [&](auto kind) { Copy<decltype(kind)>::run(run, shift); });
}

}  // namespace dvm::DVM_TARGET
