// Matrix products with their epilogue, and the packing of B; built once per instruction set.
//
// A tile of C is a few rows by a few vectors of columns, held in registers while k runs. A is read in place, one
// broadcast an element; B as panels of PANEL columns, in place or packed (matmul.h says when). Tiles are tall if M
// allows it and wide if not; neither they nor the order in which they run enters the bits of the result: an element
// is one fma chain for each slice of K, slices added in order. NaN is made canonical in every store.
//
// What limits a tile besides the multiplications are its loads, one for each row and each vector of columns: 9 rows by 3
// vectors need 12 for 27 multiplications, 14 by 2 need 16 for 28. So 3 vectors it is where 32 registers allow it, and two
// such tiles, 96 columns, fill three panels.
//
// Order: batch, K slice, group of panels, rows that keep A in L2, strip (columns that all of these rows finish before the
// next ones are begun), tile where two of them fill the strip, block of rows, tile. In the last slice the epilogue's words run
// row by row over every 128 columns that are finished, while these are in L2. An epilogue that only adds is not run: tiles do it.
#include "matmul.h"
#include <type_traits>
#include <utility>
#include "strip.h"
#include "sums.h"

namespace dvm::DVM_TARGET {
namespace {

constexpr int64_t STRIP = LANES;  // columns of an epilogue's rows, and of the widest tiles or more
// Shapes of tiles: vectors of columns, most rows.
enum Shape { TALL, THREE, WIDE, WIDEST, SHAPES };
constexpr int VECTORS_OF[SHAPES] = {2, 3, 4, 8};
constexpr int ROWS_MAX[SHAPES] = {W == 16 ? 14 : 6, W == 16 ? 9 : 0, W == 16 ? 6 : 2, W == 16 ? 3 : 1};
constexpr int64_t THREE_PANELS = 3 * PANEL;  // two tiles of shape THREE
static_assert(PANEL % (2 * W) == 0 && STRIP % PANEL == 0 && 8 * W <= STRIP && (W != 16 || THREE_PANELS == 6 * W));
constexpr int64_t L2_FLOATS = 272 << 10;    // of A and of two strips of B, this one and the next, that should stay in L2
constexpr int64_t L2_ROWS = 63;             // of A that are taken even where B leaves no room
constexpr int64_t EPILOGUE_ROWS = 126;      // most rows of STRIP columns that wait for an epilogue: 63 KiB
constexpr int64_t STREAM_FLOATS = 1 << 16;  // packed B larger than this is fetched ahead: between two runs it leaves L2
constexpr int64_t FEW_STREAM_FLOATS = 5 << 16;  // with tiles of several panels: it costs 40 % where B is in L2, and gains 5 % where not

constexpr double FAR_BYTES = 1 << 18;       // an operand of the epilogue larger than this is fetched ahead

constexpr int64_t AHEAD_K = 16;             // steps of k between the fetch of B and its use
constexpr int64_t AHEAD_K_ONE_SET = 8;      // where rows of B are 4 KiB apart: they share a set of L1, of 12 lines

constexpr int ADDED_MAX = 2;                // operands that an epilogue adds in the tiles: a bias and a residual

// ---- tile -----------------------------------------------------------------------------------------------------------
struct Tile {
  int64_t k;
  const float *a, *b;
  float* c;
  int64_t a_row, a_step;  // floats from row to row of A, from k to k
  int64_t b_step, panel;  // floats from k to k of B, from panel to panel
  int64_t c_row;
  int64_t columns;        // valid ones
  bool first;             // the first slice of K overwrites C, later ones add to it
  const float* add[ADDED_MAX];  // added to finished sums, one after the other: their elements beside c; nullptr: no more
  int64_t add_row[ADDED_MAX];
  int64_t ahead;          // fetch B to L1 so many steps of k in front of its use; 0: do not
  float* copy;            // the panel of scratch that B is copied to while it is multiplied, or nullptr
  int pull;               // fetch so many cache lines from `next` to L2 every 4 k, and go on by `next_step`: B of the next strip
  const float* next;
  int64_t next_step;
};

template <int ROWS, int VECTORS> FN bool no_nan(const V (&c)[ROWS][VECTORS]) {  // two vectors at a time
  constexpr int COUNT = ROWS * VECTORS;
  NaNs found{};
#pragma GCC unroll 64
  for (int i = 0; i < COUNT; i += 2) {
    const int other = i + 1 < COUNT ? i + 1 : i;
    found |= unordered(c[i / VECTORS][i % VECTORS], c[other / VECTORS][other % VECTORS]);
  }
  return !any(found);
}
FN int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Elements of packed B that are stored in 16 bits: widened, exactly, where they are read.
struct Bfloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };
typedef uint16_t Vh __attribute__((vector_size(2 * W)));
FN Vu widen(const void* p) {
  Vh h;
  memcpy(&h, p, sizeof h);
#if defined(__AVX512F__)
  return (Vu)_mm512_cvtepu16_epi32((__m256i)h);
#elif defined(__AVX2__)
  return (Vu)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, Vu);
#endif
}
FN V load_b(const float* p) { return load(p); }
FN V load_b(const Bfloat16* p) { return (V)(widen(p) << 16); }
FN V load_b(const Float16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
  const Vu h = widen(p), magnitude = (h & 0x7fff) << 13;  // 2^112 too small; an exponent of ones stands for infinity and NaN
  const V value = (V)magnitude * 0x1p112f;
  const Vu special = (Vu)(magnitude >= 0x0f800000u) & 0x7f800000u;
  return (V)((Vu)value | special | (h & 0x8000) << 16);
#endif
}

// The end of a tile whose last columns do not exist.
[[gnu::noinline]] void store_part_of_tile(const Tile& t, const V* sums, int rows, int vectors) {
  for (int i = 0; i < rows; i++)
    for (int v = 0; v < vectors; v++) {
      float* const p = t.c + i * t.c_row + v * W;
      const int64_t rest = t.columns - v * W;
      V sum = sums[i * vectors + v];
      if (!t.first) sum += loadPart(p, rest);
      for (int n = 0; n < ADDED_MAX && t.add[n]; n++) sum += loadPart(t.add[n] + i * t.add_row[n] + v * W, rest);
      storePart(p, canonical(sum), rest);
    }
}

// ROW_MAJOR: a_step is 1, worth 10 %. COPY: B goes to t.copy too. B: how an element of it is stored. BEGIN: columns of the first
// panel before the tile.
template <int ROWS, int VECTORS, int BEGIN, bool ROW_MAJOR, bool COPY, class B>
void tile_kernel(const Tile& t) {
  V c[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      c[i][v] = V{};
      if (v * W % 16 == 0) __builtin_prefetch(t.c + i * t.c_row + v * W, 0, 2);  // rows may share one set of L1
    }
  // One pointer for three rows: they stay in registers, and a step costs one addition each.
  constexpr int BASES = (ROWS + 2) / 3;
  const int64_t a_row = t.a_row, a_step = ROW_MAJOR ? 1 : t.a_step, b_step = t.b_step, panel = t.panel;
  const int64_t far = int64_t(uint64_t(t.ahead) * (4 / sizeof(B)) * uint64_t(b_step));  // may wrap where k is 1: not used there
  // Wide tiles fetch beside each step: all lines of four steps at once, 32 of them, fill the buffers that loads wait for.
  constexpr bool EACH_STEP = VECTORS > 3;
  const B *b = reinterpret_cast<const B*>(t.b), *fetch = reinterpret_cast<const B*>(uintptr_t(b) + uint64_t(far) * sizeof(B));
  const float *next = t.next, *a[BASES];
  float* copy = t.copy;
#pragma GCC unroll 5
  for (int i = 0; i < BASES; i++) a[i] = opaque(t.a + 3 * i * a_row);
  auto in_panels = [&](int v) __attribute__((always_inline)) {
    return (BEGIN + v * W) / PANEL * panel + (BEGIN + v * W) % PANEL - BEGIN;
  };
  auto step = [&](auto fetches) __attribute__((always_inline)) {
    if constexpr (fetches.value) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v += 64 / int(sizeof(B)) / W) __builtin_prefetch(fetch + in_panels(v));
      fetch += b_step;
    }
    V row[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) row[v] = load_b(b + (COPY ? v * W : in_panels(v)));
    if constexpr (COPY) {
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) store(copy + in_panels(v), row[v]);
      copy += PANEL;
    }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const V x = all(a[i / 3][i % 3 * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) c[i][v] = accumulated(c[i][v], x, row[v]);
    }
#pragma GCC unroll 5
    for (int i = 0; i < BASES; i++) a[i] += a_step;
    b += b_step;
  };
  int64_t k = t.k;
  if (EACH_STEP && far)
    for (; k >= 4; k -= 4)
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++) step(std::true_type());
  for (; k >= 4; k -= 4) {
    if (!EACH_STEP && far) {
#pragma GCC unroll 4
      for (int u = 0; u < 4; u++)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; v += 64 / int(sizeof(B)) / W)
          __builtin_prefetch(b + far + u * b_step + (COPY ? v * W : in_panels(v)));
    }
    for (int line = 0; line < t.pull; line++) __builtin_prefetch(next + 16 * line, 0, 2);
    next += t.next_step;
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) step(std::false_type());
  }
  for (; k > 0; k--) step(std::false_type());
  if (t.columns < VECTORS * W) {
    V sums[ROWS * VECTORS];  // not c: a sum whose address is taken leaves its register
#pragma GCC unroll 64
    for (int i = 0; i < ROWS * VECTORS; i++) sums[i] = c[i / VECTORS][i % VECTORS];
    return store_part_of_tile(t, sums, ROWS, VECTORS);
  }
  auto each = [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) f(i, v);
  };
#define EACH_SUM [&](int i, int v) __attribute__((always_inline))
  if (!t.first) each(EACH_SUM { c[i][v] += load(t.c + i * t.c_row + v * W); });
  for (int n = 0; n < ADDED_MAX && t.add[n]; n++) each(EACH_SUM { c[i][v] += load(t.add[n] + i * t.add_row[n] + v * W); });
  if (no_nan(c)) each(EACH_SUM { store(t.c + i * t.c_row + v * W, c[i][v]); });
  else each(EACH_SUM { store(t.c + i * t.c_row + v * W, canonical(c[i][v])); });
#undef EACH_SUM
}

using Kernel = void (*)(const Tile&);
struct Kernels { Kernel of_rows[ROWS_MAX[0] + 1]; };
template <Shape SHAPE, int ROWS, int BEGIN, bool ROW_MAJOR, bool COPY, class B>
constexpr Kernel kernel() {
  if constexpr (ROWS <= ROWS_MAX[SHAPE]) return tile_kernel<ROWS, VECTORS_OF[SHAPE], BEGIN, ROW_MAJOR, COPY, B>;
  else return nullptr;
}
template <Shape SHAPE, int BEGIN, bool ROW_MAJOR, bool COPY, class B, int... ROWS>
constexpr Kernels kernels(std::integer_sequence<int, 0, ROWS...>) {
  return {nullptr, kernel<SHAPE, ROWS, BEGIN, ROW_MAJOR, COPY, B>()...};
}
using Rows = std::make_integer_sequence<int, ROWS_MAX[0] + 1>;
// By shape; then THREE from the middle of a panel.
template <bool ROW_MAJOR, class B>
constexpr Kernels KERNELS[SHAPES + 1] = {
    kernels<TALL, 0, ROW_MAJOR, false, B>(Rows()), kernels<THREE, 0, ROW_MAJOR, false, B>(Rows()), kernels<WIDE, 0, ROW_MAJOR, false, B>(Rows()),
    kernels<WIDEST, 0, ROW_MAJOR, false, B>(Rows()), kernels<THREE, PANEL / 2, ROW_MAJOR, false, B>(Rows())};
template <class B>
const Kernels* kernels_for(bool row_major) { return row_major ? KERNELS<true, B> : KERNELS<false, B>; }
template <bool ROW_MAJOR>  // of the first block of rows
constexpr Kernels COPYING[SHAPES + 1] = {kernels<TALL, 0, ROW_MAJOR, true, float>(Rows()), kernels<THREE, 0, ROW_MAJOR, true, float>(Rows()), {},
                                         {}, kernels<THREE, PANEL / 2, ROW_MAJOR, true, float>(Rows())};

// ---- packing --------------------------------------------------------------------------------------------------------
// One round of a transpose: blocks of S x S change places across the diagonal of blocks of 2S x 2S.
template <int S, int... J>
FN void exchange(V (&r)[W], std::integer_sequence<int, J...>) {
  constexpr Vi UPPER{(J & S ? W + J - S : J)...}, LOWER{(J & S ? W + J : J + S)...};
#pragma GCC unroll 16
  for (int i = 0; i < W; i++)
    if (!(i & S)) {
      const V a = r[i], b = r[i + S];
      r[i] = __builtin_shuffle(a, b, UPPER), r[i + S] = __builtin_shuffle(a, b, LOWER);
    }
}
FN void transpose(V (&r)[W]) {
  using Columns = std::make_integer_sequence<int, W>;
  if constexpr (W >= 16) exchange<8>(r, Columns());
  if constexpr (W >= 8) exchange<4>(r, Columns());
  exchange<2>(r, Columns()), exchange<1>(r, Columns());
}

// For one product, or ONCE for many, by a pack section. As much is read and written then as memory gives, so that the next
// columns are fetched. What is written stays in the caches, where the system has just zeroed its pages and products soon read
// it; a matrix that L3 may not hold goes PAST them (4 to 16 MB are packed in 1/4 less time so, 64 MB in 1/2 more).
enum class Packing { ONE, ONCE, PAST };
constexpr int64_t PAST_BYTES = 16 << 20;
template <Packing HOW> FN void put(float* p, V v) {
  if constexpr (HOW == Packing::PAST) stream(p, v);
  else store(p, v);
}

// W columns of B, each contiguous in k and `column` floats apart, to out[k][PANEL]; those beyond `columns` are 0.
template <Packing HOW>
void pack_contiguous_k(const float* b, int64_t column, int64_t columns, int64_t k, float* out) {
  if (columns <= 0) {
    for (; k > 0; k--, out += PANEL) store(out, V{});
    return;
  }
  for (; k > 0; k -= W, b += W) {
    V r[W];
    if constexpr (HOW != Packing::ONE) {
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) __builtin_prefetch(b + (W + i) * column);
    }
    if (columns >= W && k >= W) {
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) r[i] = load(b + i * column);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) r[i] = i < columns ? loadPart(b + i * column, smaller(k, W)) : V{};
    }
    transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++, out += PANEL)
      if (i < k) put<HOW>(out, r[i]);
  }
}

// The same of elements of 16 bits, whatever they mean.
void pack_panel_16(const uint16_t* b, int64_t b_column, int64_t b_step, int64_t columns, int64_t k, uint16_t* out) {
  for (int64_t i = 0; i < k; i++, b += b_step, out += PANEL)
    for (int64_t j = 0; j < PANEL; j++) out[j] = j < columns ? b[j * b_column] : 0;
}

// One panel of B: columns [0, columns) of k rows, to out[k][PANEL], zero padded.
template <Packing HOW = Packing::ONE>
void pack_panel(const float* b, int64_t b_column, int64_t b_step, int64_t columns, int64_t k, float* out) {
  if (b_column != 1) {
    for (int64_t j = 0; j < PANEL; j += W) pack_contiguous_k<HOW>(b + j * b_column, b_column, columns - j, k, out + j);
    return;
  }
  for (int64_t i = 0; i < k; i++, b += b_step, out += PANEL) {
    __builtin_prefetch(b + 16 * b_step), __builtin_prefetch(b + 16 * b_step + 16);
    for (int64_t j = 0; j < PANEL; j += W)
      put<HOW>(out + j, columns - j >= W ? load(b + j) : loadPart(b + j, columns - j));
  }
}

// ---- windows --------------------------------------------------------------------------------------------------------
struct Windows {  // B as matmul.h says; distances in elements
  int64_t width, height, places;
  int64_t place, place_row, column, row, channel;
};

Windows windows_of(const Operand& b) {
  const int64_t size = DTYPE_BYTES[b.dtype];
  return {kernel_width(b), kernel_height(b), b.limit, b.stride[0] / size, b.stride[PLACE_ROW] / size, b.stride[KERNEL_COLUMN] / size,
          b.stride[KERNEL_ROW] / size, b.depth / size};
}

// Walks along k; `at` is how far the first place is from the first of all.
struct Tap {
  const Windows& w;
  int64_t x, y, at;

  Tap(const Windows& w, int64_t k)
      : w(w), x(k % w.width), y(k / w.width % w.height), at(x * w.column + y * w.row + k / (w.width * w.height) * w.channel) {}
  void next() {
    at += w.column;
    if (++x < w.width) return;
    x = 0, at += w.row - w.width * w.column;
    if (++y < w.height) return;
    y = 0, at += w.channel - w.height * w.row;
  }
};

#if defined(__AVX512F__)
typedef __mmask16 Where;
FN V load_where(const float* p, Where where) { return _mm512_maskz_loadu_ps(where, p); }
#else
typedef Vi Where;
FN V load_where(const float* p, Where where) {
#if defined(__AVX2__)
  return _mm256_maskload_ps(p, (__m256i)where);
#else
  V v{};
  for (int i = 0; i < W; i++)
    if (where[i]) v[i] = p[i];
  return v;
#endif
}
#endif
FN Where lanes_between(int64_t low, int64_t high, int step) {  // every step-th of them
#if defined(__AVX512F__)
  const uint32_t to = uint32_t(_bzhi_u32(0xffff, uint32_t(std::clamp<int64_t>(high, 0, W)))),
                 below = uint32_t(_bzhi_u32(0xffff, uint32_t(std::clamp<int64_t>(low, 0, W))));
  return Where(to & ~below & (step == 2 ? 0x5555 : 0xffff));
#else
  return (iota() >= int32_t(low)) & (iota() < int32_t(high)) & ((iota() & (step - 1)) == 0);
#endif
}

template <int ODD> FN V every_second(V low, V high) {
  Vi at;
  for (int i = 0; i < W; i++) at[i] = 2 * i + ODD;
  return __builtin_shuffle(low, high, at);
}

// W columns of a panel: places of at most two rows of places, PLACE elements apart.
template <int PLACE>
struct Lanes2 {
  int64_t from[2];  // lane 0, from the first place of all
  Where where[2][PLACE];

  // From this place of this row on, and to where the next begins; false if they are of more rows than two.
  bool set(const Windows& w, int64_t& row, int64_t& place, int64_t columns) {
    const int64_t count = smaller(columns, W), left = w.places - place, first = smaller(count, left);
    from[0] = row * w.place_row + place * PLACE, from[1] = (row + 1) * w.place_row - first * PLACE;
    for (int half = 0; half < PLACE; half++) {
      where[0][half] = lanes_between(0, first * PLACE - half * W, PLACE);
      where[1][half] = lanes_between(first * PLACE - half * W, count * PLACE - half * W, PLACE);
    }
    place += W;
    if (place >= w.places) place -= w.places, row++;
    return count - first <= w.places && place < w.places;
  }
  FN V load(const float* b, int part) const {
    if constexpr (PLACE == 1) return load_where(b + from[part], where[part][0]);
    else return every_second<0>(load_where(b + from[part], where[part][0]), load_where(b + from[part] + W, where[part][1]));
  }
};

template <int PLACE>
bool pack_rows_of_places(const Windows& w, const float* b, int64_t k0, int64_t k, int64_t j, int64_t columns, float* out) {
  Lanes2<PLACE> lanes[PANEL / W];
  int64_t row = j / w.places, place = j % w.places;
  const bool one_row = place + smaller(columns, PANEL) <= w.places;
  for (int v = 0; v < PANEL / W; v++)
    if (!lanes[v].set(w, row, place, columns - v * W)) return false;
  Tap tap(w, k0);
  for (; k > 0; k--, tap.next(), out += PANEL)
#pragma GCC unroll 8
    for (int v = 0; v < PANEL / W; v++) {
      const V first = lanes[v].load(b + tap.at, 0);
      store(out + v * W, one_row ? first : bits(bits(first) | bits(lanes[v].load(b + tap.at, 1))));
    }
  return true;
}

// One panel of windows, columns [j, j + columns) of all, to out[k][PANEL], zero padded.
template <class T, class S>
void pack_places(const Windows& w, const S* b, int64_t k0, int64_t k, int64_t j, int64_t columns, T* out) {
  int64_t from[PANEL];
  for (int64_t i = 0; i < PANEL && i < columns; i++)
    from[i] = (j + i) / w.places * w.place_row + (j + i) % w.places * w.place;
  Tap tap(w, k0);
  for (; k > 0; k--, tap.next(), out += PANEL) {
    for (int64_t i = 0; i < PANEL; i++) out[i] = i < columns ? T(b[tap.at + from[i]]) : T{};
  }
}
void pack_windows(const Windows& w, const float* b, int64_t k0, int64_t k, int64_t j, int64_t columns, float* out) {
  if (w.place == 1 && pack_rows_of_places<1>(w, b, k0, k, j, columns, out)) return;
  if (w.place == 2 && pack_rows_of_places<2>(w, b, k0, k, j, columns, out)) return;
  pack_places(w, b, k0, k, j, columns, out);
}

#include "products.h"

// ---- one product ----------------------------------------------------------------------------------------------------
struct Product {  // what all steps of the batch share; distances in floats
  int64_t n, m, k, slice;
  int64_t row_begin, row_end, column_begin, column_end;  // of C, to be made
  int64_t a_row, a_step, b_column, b_step, c_row;
  int64_t rows_max;       // rows of A, one slice long, that L2 holds
  Shape shape;            // of the tiles; THREE: of most, the others as the rest of the columns asks
  const Kernels* kernels; // [shape]
  int64_t b_element;      // bytes of an element of B: 4 unless it is packed
  const Kernels* copying; // for the first block of rows, where that copies B; else nullptr
  int64_t ring;           // copied panels that scratch keeps: few stay in L1 or L2, if no other rows come back to them
  MatmulB form;
  bool fetch;             // B comes from beyond L2, packed
  bool fetch_few;         // it is worth it for one block of few rows
  bool fetch_in_place;    // B in place: only the first row block waits for it
  int64_t ahead_in_place;
  float* scratch;
  uint8_t* base[MAX_OPERANDS];  // of this step of the batch
  const Operand* operands;
  int operand_count;
  const Word* words;      // epilogue, or nullptr
  int added[ADDED_MAX];   // operands whose sum with the product is all of the epilogue; 0: none, or it is something else
  bool in_tiles;          // and they are added in the tiles
  bool has_windows;       // B is COPIED from
  Windows windows;
  uint8_t choice;         // tuning.h
  uint16_t far;           // bit i: operand i of the epilogue is a large matrix, fetched to L2 beside the tiles

  const float* b_at(const float* b, int64_t elements) const {  // so many stored elements behind b
    return reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(b) + elements * b_element);
  }
};

void set_rows(Product& p, int64_t begin, int64_t end) {
  const int64_t m = end - begin;
  p.row_begin = begin, p.row_end = end;
  const int64_t fit = std::max(L2_FLOATS / p.slice - 2 * THREE_PANELS, L2_ROWS);
  const int64_t most = smaller(fit, p.words && !p.added[0] ? EPILOGUE_ROWS : m), block = ROWS_MAX[p.shape];
  p.rows_max = m <= most ? m : smaller(m, ceil_div(ceil_div(m, ceil_div(m, most)), block) * block);
  if (p.choice & OTHER_BLOCKS && p.rows_max < m) p.rows_max = std::max<int64_t>(block, p.rows_max / 2 / block * block);
  p.ring = p.rows_max < m ? GROUP_PANELS : p.shape == TALL ? 1 : p.shape == THREE ? 3 : STRIP / PANEL;
}

void set_shape(Product& p, int64_t m) {
  const bool three = m <= ROWS_MAX[THREE] || (m > ROWS_MAX[TALL] && ROWS_MAX[THREE] && !(p.choice & OTHER_TILES));
  p.shape = m <= ROWS_MAX[WIDEST] ? WIDEST : m <= ROWS_MAX[WIDE] ? WIDE : three ? THREE : TALL;
  p.fetch_in_place = p.form == MatmulB::IN_PLACE && p.shape <= THREE;
}

// Is the epilogue `mov.i C`, `add.i` of one or two matrices or rows, `store C`? In the tiles the same numbers are added in the
// same order, where they are in registers: read again from L2, they cost 3 to 5 % of a product with K = 256.
void find_added(Product& p) {
  const Word* word = p.words;
  if (!word || word->op != OP_mov_i || (word++)->a != 2) return;
  int found[ADDED_MAX] = {}, count = 0;
  for (; word->op == OP_add_i && count < ADDED_MAX; word++) {
    const Operand& x = p.operands[word->a];
    const bool plain = x.dtype == uint8_t(DType::FLOAT32) && !(x.mode & GATHER) && x.arg != INDEX && x.arg != SCRATCH;
    if (word->a <= 2 || !plain || x.stride[0] != 4) return;
    found[count++] = word->a;
  }
  if (word[0].op == OP_store && word[0].a == 2 && word[1].op == OP_end) std::copy(found, found + count, p.added);
}

// Whether the tiles of this step of the batch may add: not if what they add is what they write.
bool adds_in_tiles(const Product& p) {
  struct Range { const uint8_t *begin, *end; };
  auto range = [&](int i) {
    const int64_t rows = (p.m - 1) * p.operands[i].stride[1];
    return Range{p.base[i] + smaller(rows, 0), p.base[i] + std::max<int64_t>(rows, 0) + 4 * p.n};
  };
  const Range c = range(2);
  for (int i : p.added)
    if (const Range x = range(i); i && x.begin < c.end && c.begin < x.end) return false;
  return p.added[0];
}

Product product(const SectionRun& run) {
  const Section& head = *run.section.head;
  const Operand *a = run.section.operands, *b = a + 1, *c = a + 2;
  Product p{};
  p.n = head.dims[0], p.m = head.dims[1], p.k = head.depth, p.slice = slice_k(p.k);
  p.a_row = a->stride[1] / 4, p.a_step = a->depth / 4, p.c_row = c->stride[1] / 4;
  p.b_column = b->stride[0] / 4, p.b_step = b->depth / 4;
  p.column_end = p.n, p.choice = run.section.choice;
  p.b_element = DTYPE_BYTES[b->dtype];
  p.ahead_in_place = b->depth % 4096 ? AHEAD_K : AHEAD_K_ONE_SET;
  p.kernels = b->dtype == uint8_t(DType::BFLOAT16)  ? kernels_for<Bfloat16>(p.a_step == 1)
              : b->dtype == uint8_t(DType::FLOAT16) ? kernels_for<Float16>(p.a_step == 1)
                                                    : kernels_for<float>(p.a_step == 1);
  p.form = matmul_b(head, *b);
  const int64_t packed = p.form == MatmulB::PACKED ? panels(p.n) * PANEL * p.slice * p.b_element : 0;
  p.fetch = packed > STREAM_FLOATS * 4, p.fetch_few = packed > FEW_STREAM_FLOATS * 4;
  if (p.choice & OTHER_DISTANCE && p.form == MatmulB::PACKED) p.fetch = !p.fetch, p.fetch_few = p.fetch;
  if ((p.has_windows = is_windows(*b))) p.windows = windows_of(*b);
  const bool copies = p.form == MatmulB::COPIED && b->stride[0] == 4 && !p.has_windows;
  p.copying = !copies ? nullptr : p.a_step == 1 ? COPYING<true> : COPYING<false>;
  p.words = head.word_count ? run.section.words : nullptr;
  p.scratch = reinterpret_cast<float*>(run.scratch), p.operands = a, p.operand_count = head.operand_count;
  find_added(p);
  set_shape(p, p.m);
  set_rows(p, 0, p.m);
  for (int i = 0; i < p.operand_count; i++) {
    p.base[i] = run.address[i];
    const bool rows = i > 2 && a[i].mode & READ && a[i].stride[0] == DTYPE_BYTES[a[i].dtype];
    if (p.words && rows && double(a[i].stride[1]) * double(p.m) > FAR_BYTES) p.far |= uint16_t(1 << i);
  }
  return p;
}

// The columns of B that one slice of K and one group of panels can read, as the tiles see them.
struct Columns {
  const float* b;            // column `begin`, first k of the slice
  int64_t begin, end;
  int64_t step, panel;
  const float* edge;         // in place: the last panel, copied because it is not full; else nullptr
  int64_t edge_begin;        // its first column; `end` if there is none
};

Columns columns_of(const Product& p, int64_t k0, int64_t k, int64_t begin, int64_t most) {
  const float* const b = reinterpret_cast<const float*>(p.base[1]);
  const int64_t end = smaller(p.column_end, begin + most);
  if (p.form == MatmulB::PACKED)
    return {p.b_at(b, k0 * panels(p.n) * PANEL + begin * k), begin, end, PANEL, k * PANEL, nullptr, end};
  if (p.form == MatmulB::COPIED) return {p.scratch, begin, end, PANEL, k * PANEL, nullptr, end};
  const int64_t full = end == p.n ? p.n - p.n % PANEL : end;
  if (full == end) return {b + k0 * p.b_step + begin, begin, end, p.b_step, PANEL, nullptr, end};
  pack_panel(b + k0 * p.b_step + full, 1, p.b_step, end - full, k, p.scratch);
  return {b + k0 * p.b_step + begin, begin, end, p.b_step, PANEL, p.scratch, full};
}

// The panels of B from `column` on, k rows of it from k0 on, packed.
void copy(const Product& p, int64_t k0, int64_t k, int64_t column, int64_t end, float* out) {
  const float* const b = reinterpret_cast<const float*>(p.base[1]);
  for (; column < end; column += PANEL, out += PANEL * k)
    if (p.has_windows) pack_windows(p.windows, b, k0, k, column, end - column, out);
    else pack_panel(b + k0 * p.b_step + column * p.b_column, p.b_column, p.b_step, end - column, k, out);
}

// The epilogue over a finished block of C.
void finish(Context& context, const Product& p, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  auto place = [&] {
    for (int i = 0; i < p.operand_count; i++)
      context.ptr[i] = p.base[i] + row * p.operands[i].stride[1] + column * p.operands[i].stride[0];
  };
  place();
  if (const int64_t done = float32::run_strips(context, p.words, p.operand_count, columns, rows)) {
    if (!(rows -= done)) return;
    row += done;
    place();
  }
  for (;;) {
    float32::run_strip(context, p.words, columns);
    if (--rows == 0) return;
    for (int i = 0; i < p.operand_count; i++) context.ptr[i] += p.operands[i].stride[1];
  }
}

// Columns that all rows finish before the next ones are begun, and the tiles that they are cut into.
struct Strip {
  int64_t columns;
  Shape shape;
  int64_t part;  // of the columns: what all rows finish first
};
Strip next_strip(const Product& p, int64_t columns) {
  if (p.shape == TALL || (p.shape == THREE && columns <= PANEL)) return {smaller(columns, PANEL), TALL, PANEL};
  if (p.shape != THREE) return {smaller(columns, STRIP), p.shape, STRIP};
  if (columns >= THREE_PANELS) return {THREE_PANELS, THREE, THREE_PANELS / 2};
  if (columns <= THREE_PANELS / 2) return {columns, THREE, columns};
  return {smaller(columns, 2 * PANEL), WIDE, 2 * PANEL};
}

// What the epilogue is going to read beside these elements of C.
void fetch_operands(const Product& p, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  for (uint16_t left = p.far; left; left &= left - 1) {
    const Operand& x = p.operands[__builtin_ctz(left)];
    const uint8_t* from = p.base[__builtin_ctz(left)] + row * x.stride[1] + column * x.stride[0];
    for (int64_t i = 0; i < rows; i++, from += x.stride[1])
      for (int64_t at = 0; at < columns * x.stride[0]; at += 64) __builtin_prefetch(from + at, 0, 2);
  }
}

// B of the next strip, which lies in rows far apart: the tiles after those that copy share its lines, so that no moment has many
// of them on their way. A tile passes k / 4 rows, so four of them fetch the same lines of all rows.
struct NextRows {
  const float* b = nullptr;
  int64_t lines, each;  // of a row; that a tile fetches of it
  int64_t tile = 0;

  NextRows() = default;
  NextRows(const float* b, int64_t columns, int64_t tiles) : b(b), lines(columns / 16 + 1), each(ceil_div(lines, tiles / 4)) {}

  void give(Tile& t, int64_t row) {
    const int64_t first = tile / 4 * each, rows = t.k / 4;
    t.pull = int(std::max<int64_t>(0, smaller(each, lines - first)));
    t.next = b + tile++ % 4 * rows * row + 16 * first, t.next_step = row;
  }
};

// A block of rows (t.a, `rows`; C from `c`) by the columns [column, end), which are one part of a strip.
void block_of_strip(const Product& p, const Columns& from, Tile& t, Shape shape, float* c, int64_t rows, int64_t column,
                    int64_t end, const float* const (&added)[ADDED_MAX], const float* source, NextRows* next) {
  for (; column < end; column += VECTORS_OF[shape] * W) {
    while (shape > TALL && ((VECTORS_OF[shape] - 1) * W >= end - column || !ROWS_MAX[shape])) shape = Shape(shape - 1);  // its last vector would hold nothing
    const bool edge = column >= from.edge_begin;
    const int64_t at = column - (edge ? from.edge_begin : from.begin), begin = at % PANEL;
    t.b = edge ? from.edge + at : p.b_at(from.b, at / PANEL * from.panel + begin);
    t.b_step = edge ? PANEL : from.step;
    t.c = c + column;
    for (int n = 0; n < ADDED_MAX; n++) t.add[n] = added[n] ? added[n] + column : nullptr;
    if (source) {  // full panels: what the next blocks read is written here
      t.copy = const_cast<float*>(t.b);
      t.b = source + column, t.b_step = p.b_step;
    }
    t.columns = smaller(end - column, VECTORS_OF[shape] * W);
    if (next) next->give(t, p.b_step);
    (source ? p.copying : p.kernels)[begin && shape == THREE ? SHAPES : shape].of_rows[rows](t);
    t.next += t.k / 4 * t.next_step;
  }
}

// Rows [row, row + m) by the columns of a strip, for the slice that `t` describes.
void run_strip(const Product& p, Columns from, const Strip& strip, Tile t, int64_t k0, int64_t row, int64_t m, int64_t column) {
  const float* const a = reinterpret_cast<const float*>(p.base[0]) + k0 * p.a_step;
  float* const c = reinterpret_cast<float*>(p.base[2]);
  const int64_t blocks = ceil_div(m, ROWS_MAX[strip.shape]), height = m / blocks, taller = m % blocks, end = column + strip.columns;
  const bool last = k0 + t.k == p.k;
  const float* source = nullptr;  // what the first block of rows reads while it copies
  if (p.form == MatmulB::COPIED) {
    from.b += (column - from.begin) / PANEL % p.ring * from.panel, from.begin = column;
    const bool full = strip.columns % PANEL == 0 && strip.shape <= THREE;
    if (row == p.row_begin && p.copying && full) source = reinterpret_cast<const float*>(p.base[1]) + k0 * p.b_step;
    else if (row == p.row_begin) copy(p, k0, t.k, column, end, const_cast<float*>(from.b));
  }
  const int64_t tiles = ceil_div(strip.columns, VECTORS_OF[strip.shape] * W);
  const float* const pull_end = p.b_at(from.b, (end - from.begin + strip.columns) * t.k);
  t.next = p.b_at(from.b, (end - from.begin) * t.k);
  if (blocks > 1 && (p.fetch || (p.form == MatmulB::COPIED && row != p.row_begin)))
    t.pull = int(ceil_div(strip.columns * p.b_element / 16, blocks * tiles)), t.next_step = t.pull * 16;
  NextRows next;
  const int64_t later = (blocks - 1) * tiles;
  if (source && end < p.column_end && later >= 4) next = NextRows(source + end, strip.columns, later);
  for (; column < end; column += strip.part) {
    for (int64_t block = 0, at = row; block < blocks; block++) {  // heights differ by at most one
      const int64_t rows = height + (block < taller);
      if (p.far && last) fetch_operands(p, at, rows, column, smaller(column + strip.part, end) - column);
      t.a = a + at * p.a_row;
      const bool first = block == 0 && (p.fetch_in_place || source);
      t.ahead = p.fetch ? (blocks == 1 && (p.shape <= THREE || p.fetch_few) ? AHEAD_K : 0) : first ? p.ahead_in_place : 0;
      if (t.next >= pull_end || next.b) t.pull = 0, t.next_step = 0;
      const float* added[ADDED_MAX] = {};
      for (int n = 0; p.in_tiles && last && n < ADDED_MAX && p.added[n]; n++)
        added[n] = reinterpret_cast<const float*>(p.base[p.added[n]]) + at * t.add_row[n];
      block_of_strip(p, from, t, strip.shape, c + at * p.c_row, rows, column, smaller(column + strip.part, end), added,
                     block == 0 ? source : nullptr, block && next.b ? &next : nullptr);
      at += rows;
    }
  }
}

// Rows [row, row + m) by the columns of one group of panels, for the slice that `t` describes.
void group_of_panels(Context& context, const Product& p, const Columns& from, const Tile& t, int64_t k0, int64_t row,
                     int64_t m) {
  const bool last = p.words && !p.in_tiles && k0 + t.k == p.k;
  int64_t finished = from.begin;
  for (int64_t column = from.begin; column < from.end;) {
    const Strip strip = next_strip(p, (column < from.edge_begin ? from.edge_begin : from.end) - column);
    run_strip(p, from, strip, t, k0, row, m, column);
    column += strip.columns;
    while (last && finished < column && (column == from.end || column - finished >= STRIP)) {
      const int64_t columns = smaller(STRIP, column - finished);
      finish(context, p, row, m, finished, columns);
      finished += columns;
    }
  }
}

// A matrix that few rows meet again and again, and that is too large for L2, is read to and fro: what was read last is still there,
// and is read first. From one end each time, it would be gone. (From an L2 of 2 MiB, one row by 512 x 1280 takes 37 us instead
// of 59, by 1024 x 1024 93 instead of 140.) Then columns are finished one strip after the other, all slices of each.
thread_local bool to_and_fro = false;

void multiply(Context& context, Product& p) {
  p.in_tiles = adds_in_tiles(p);
  Tile t{};
  t.a_row = p.a_row, t.a_step = p.a_step, t.c_row = p.c_row;
  for (int n = 0; n < ADDED_MAX; n++) t.add_row[n] = p.operands[p.added[n]].stride[1] / 4;
  auto columns = [&](int64_t k0, int64_t begin, int64_t most) {
    t.k = smaller(p.slice, p.k - k0), t.first = k0 == 0;
    const Columns from = columns_of(p, k0, t.k, begin, most);
    t.panel = from.panel;
    for (int64_t row = p.row_begin; row < p.row_end; row += p.rows_max)
      group_of_panels(context, p, from, t, k0, row, smaller(p.rows_max, p.row_end - row));
  };
  if (p.fetch_few && p.shape >= WIDE) {
    const bool back = (to_and_fro = !to_and_fro);
    const int64_t strips = ceil_div(p.column_end - p.column_begin, STRIP);
    for (int64_t strip = 0; strip < strips; strip++)
      for (int64_t k0 = 0; k0 < p.k; k0 += p.slice)
        columns(k0, p.column_begin + STRIP * (back ? strips - 1 - strip : strip), STRIP);
    return;
  }
  for (int64_t k0 = 0; k0 < p.k; k0 += p.slice)
    for (int64_t column = p.column_begin; column < p.column_end; column += GROUP_PANELS * PANEL)
      columns(k0, column, GROUP_PANELS * PANEL);
}

#include "windows.h"

void run_groups(Context& context, const SectionRun& run) {
  Product p = product(run);
  context.operands = run.section.operands, context.constants = run.section.constants;
  each_group(context, run, p.base, [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
    p.column_begin = column, p.column_end = column_end;
    set_shape(p, row_end - row);
    set_rows(p, row, row_end);
    multiply(context, p);
  });
}

}  // namespace

void run_matmul(Context& context, const SectionRun& run) {
  const Section& head = *run.section.head;
  if (DType(head.dtype) != DType::FLOAT32) return run_product(context, run);
  if (is_grouped(run.section.operands[0])) return run_groups(context, run);
  Product p = product(run);
  context.operands = run.section.operands, context.constants = run.section.constants;
  int64_t index[MAX_RANK] = {}, piece = 0, left = INT64_MAX;
  MatmulCut cut{MatmulCut::BATCH, 1, 1};
  const bool whole = run.end - run.begin >= run.section.split.units, places = reads_places(p);
  if (!whole) cut = matmul_cut(head, p.operands);
  if (places && p.m == 1 && head.rank > 2 && cut.along == MatmulCut::BATCH)
    return run_own_windows(context, run, p, whole ? 0 : run.begin, whole ? matmul_cut(head, p.operands).steps : run.end);
  PlacesProduct of_places(p, 0);
  if (!whole) {
    piece = run.begin % cut.pieces, left = run.end - run.begin;
    int64_t rest = run.begin / cut.pieces;
    for (int d = 2; d < head.rank; rest /= head.dims[d++]) {
      index[d] = rest % head.dims[d];
      for (int i = 0; i < p.operand_count; i++) p.base[i] += p.operands[i].stride[d] * index[d];
    }
  }
  for (;; piece = 0) {
    const int64_t pieces = smaller(cut.pieces - piece, left);
    if (cut.along == MatmulCut::ROWS) set_rows(p, piece, piece + pieces);
    if (cut.along == MatmulCut::PANELS) p.column_begin = piece * PANEL, p.column_end = smaller(p.n, (piece + pieces) * PANEL);
    places ? of_places.multiply(context) : multiply(context, p);
    if (!(left -= pieces)) return;
    int d = 2;  // the batch dimensions count like an odometer
    for (; d < head.rank; d++) {
      const bool more = ++index[d] < head.dims[d];
      for (int i = 0; i < p.operand_count; i++)
        p.base[i] += p.operands[i].stride[d] * (more ? 1 : 1 - head.dims[d]);
      if (more) break;
      index[d] = 0;
    }
    if (d >= head.rank) return;
  }
}

void run_pack(Context&, const SectionRun& run) {
  const Operand& source = run.section.operands[0];
  const int64_t n = run.section.head->dims[0], k = run.section.head->depth, slice = slice_k(k), element = DTYPE_BYTES[source.dtype];
  const int64_t column = source.stride[0] / element, step = source.depth / element;
  const bool past = k * panels(n) * PANEL * element > PAST_BYTES;
  for (int64_t unit = run.begin; unit < run.end; unit++) {
    const int64_t k0 = unit / panels(n) * slice, j = unit % panels(n) * PANEL, rows = smaller(slice, k - k0);
    const uint8_t* const b = run.address[0] + k0 * source.depth + j * source.stride[0];
    uint8_t* const out = run.address[1] + (k0 * panels(n) * PANEL + j * rows) * element;
    if (element == 2)
      pack_panel_16(reinterpret_cast<const uint16_t*>(b), column, step, n - j, rows, reinterpret_cast<uint16_t*>(out));
    else if (past && reinterpret_cast<uintptr_t>(out) % sizeof(V) == 0)
      pack_panel<Packing::PAST>(reinterpret_cast<const float*>(b), column, step, n - j, rows, reinterpret_cast<float*>(out));
    else
      pack_panel<Packing::ONCE>(reinterpret_cast<const float*>(b), column, step, n - j, rows, reinterpret_cast<float*>(out));
  }
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

}  // namespace dvm::DVM_TARGET
