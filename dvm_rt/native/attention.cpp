// Attention with a streaming softmax: the scores of a few queries and a block of keys live in L1, the whole score matrix
// nowhere. attention.h defines the arithmetic. Built once per instruction set.
//
// Many queries: keys are packed into panels once, and both products run in register tiles of several queries. A few
// queries (decode): keys are transposed in registers and used at once, each is read once.
#include "attention.h"
#include <algorithm>
#include <utility>
#include "strip.h"
#include "sums.h"

namespace dvm::DVM_TARGET {
namespace {

constexpr int UNIT = 2 * W;                                            // columns of the narrowest tile
constexpr int ROWS_MAX[3] = {W == 16 ? 14 : 6, W == 16 ? 6 : 2, W == 16 ? 3 : 1};  // rows of tiles of 1, 2, 4 units
constexpr int BLOCK_ROWS = W == 16 ? 14 : 12;                          // queries that go through the keys together
constexpr int64_t GROUP_BLOCKS = 4;                                    // such blocks that share a look at a block of keys
constexpr int DIRECT_ROWS = W == 16 ? 3 : W == 8 ? 2 : 1;              // so few that packing keys does not pay
constexpr int GROUPS = W >= 8 ? 4 : 8;                                 // of W keys that are transposed side by side: whole panels
constexpr int64_t PULL_FLOATS = 1 << 16;                               // of the keys of a head that is fetched ahead, at most
constexpr int64_t PULL_SECTION_FLOATS = 1 << 17;                       // of all heads, so many that they leave L2: else it costs 6 %
constexpr int LANE_VECTORS = 16 / W;
constexpr float LOG2E = 0x1.715476p+0f;
static_assert(PANEL % UNIT == 0 && KEY_BLOCK % PANEL == 0 && GROUPS * W % PANEL == 0 && BLOCK_ROWS <= ATTENTION_BLOCK_ROWS);
static_assert(GROUP_BLOCKS * BLOCK_ROWS <= ATTENTION_ROWS && GROUP_BLOCKS * BLOCK_ROWS >= ATTENTION_FEW_ROWS);

// 2^x, x <= 0 or NaN; 0 below 2^-126. Polynomial of degree 6 on [-1/2, 1/2], 2e-9 from 2^r.
FN V exp2v(V x) {
  const V magic = all(0x1.8p23f), n = (x + magic) - magic, r = x - n;
  const V p = poly(r, all(1.5403530e-4f), 1.3333558e-3f, 9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.f);
  return scaleBetween(p, n, x, -126.f, 128.f);
}
template <int BY, int... I>
FN V rotated(V x, std::integer_sequence<int, I...>) { return __builtin_shuffle(x, Vi{((I + BY) % W)...}); }
template <int BY> FN V rotated(V x) { return rotated<BY>(x, std::make_integer_sequence<int, W>()); }
FN V largest(V x) {  // in every element; none is NaN
  if constexpr (W >= 16) x = max2(rotated<8>(x), x);
  if constexpr (W >= 8) x = max2(rotated<4 % W>(x), x);
  x = max2(rotated<2>(x), x);
  return max2(rotated<1>(x), x);
}
// The sum of 16 lanes, folded 8, 4, 2, 1 apart.
FN float folded(const float* lanes) {
  V x[LANE_VECTORS];
  for (int v = 0; v < LANE_VECTORS; v++) x[v] = load(lanes + v * W);
  for (int half = LANE_VECTORS / 2; half; half /= 2)
    for (int v = 0; v < half; v++) x[v] += x[v + half];
  if constexpr (W >= 16) x[0] += rotated<8>(x[0]);
  if constexpr (W >= 8) x[0] += rotated<4 % W>(x[0]);
  x[0] += rotated<2>(x[0]);
  return (x[0] + rotated<1>(x[0]))[0];
}

// Rows that are read soon, on their way to L2 in the order in which they lie: some cache lines wherever others are computed with.
struct Ahead {
  const float* at;
  int64_t row, width, left, column;  // floats from row to row, of a row; floats that are left; of the row at hand

  FN void four_lines() {
    if (left <= 0) return;
    left -= 4 * 16;
    if (row == width) {
#pragma GCC unroll 4
      for (int line = 0; line < 4; line++) __builtin_prefetch(at + 16 * line, 0, 2);
      at += 4 * 16;
      return;
    }
    for (int line = 0; line < 4; line++) {
      __builtin_prefetch(at + column, 0, 2);
      if ((column += 16) >= width) column = 0, at += row;
    }
  }
};

// ---- products -------------------------------------------------------------------------------------------------------
struct Tile {
  int64_t k;
  const float *a, *b;
  float* c;
  int64_t a_row, b_step, panel, c_row;  // floats; columns of B lie PANEL behind each other, panels `panel` apart
  bool first;                           // C starts from 0, else from what it holds
  Ahead* ahead = nullptr;               // with up to DIRECT_ROWS rows, or nullptr
};

template <int ROWS, int UNITS>
void tile_kernel(const Tile& t) {
  constexpr int VECTORS = 2 * UNITS, BASES = (ROWS + 2) / 3;
  V c[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) c[i][v] = t.first ? V{} : load(t.c + i * t.c_row + v * W);
  const int64_t a_row = t.a_row, b_step = t.b_step, panel = t.panel;
  const float *b = t.b, *a[BASES];
#pragma GCC unroll 5
  for (int i = 0; i < BASES; i++) a[i] = opaque(t.a + 3 * i * a_row);
  auto step = [&]() __attribute__((always_inline)) {
    V row[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) row[v] = load(b + v * W / PANEL * panel + v * W % PANEL);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const V x = all(a[i / 3][i % 3 * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) c[i][v] = accumulated(c[i][v], x, row[v]);
    }
#pragma GCC unroll 5
    for (int i = 0; i < BASES; i++) a[i]++;
    b += b_step;
  };
  int64_t k = t.k;
  for (; k >= 4; k -= 4) {
    if (ROWS <= DIRECT_ROWS && t.ahead)
      for (int64_t line = 0; line < t.ahead->width; line += 16) t.ahead->four_lines();
#pragma GCC unroll 4
    for (int u = 0; u < 4; u++) step();
  }
  for (; k > 0; k--) step();
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) store(t.c + i * t.c_row + v * W, c[i][v]);
}

using Kernel = void (*)(const Tile&);
struct Kernels { Kernel of_rows[ROWS_MAX[0] + 1]; };
template <int UNITS, int... ROWS>
constexpr Kernels kernels(std::integer_sequence<int, 0, ROWS...>) {
  constexpr int MAX = ROWS_MAX[UNITS / 2];
  return {nullptr, (ROWS <= MAX ? tile_kernel<ROWS <= MAX ? ROWS : 1, UNITS> : nullptr)...};
}
using Rows = std::make_integer_sequence<int, ROWS_MAX[0] + 1>;
constexpr Kernels KERNELS[3] = {kernels<1>(Rows()), kernels<2>(Rows()), kernels<4>(Rows())};

// C (+)= A * B for `rows` rows and `columns` columns, a multiple of PANEL.
void multiply(Tile t, int64_t rows, int64_t columns) {
  const float *const a = t.a, *const b = t.b;
  float* const c = t.c;
  for (int64_t row = 0; row < rows;) {
    const int64_t left = rows - row, height = left <= ROWS_MAX[0] ? left : std::min<int64_t>(ROWS_MAX[0], (left + 1) / 2);
    int shape = height <= ROWS_MAX[2] ? 2 : height <= ROWS_MAX[1] ? 1 : 0;
    t.a = a + row * t.a_row;
    for (int64_t column = 0; column < columns; column += UNIT << shape) {
      while (column + (UNIT << shape) > columns) shape--;
      t.b = b + column / PANEL * t.panel + column % PANEL;
      t.c = c + row * t.c_row + column;
      KERNELS[shape].of_rows[height](t);
    }
    row += height;
  }
}

// ---- keys in the order of the scores ----------------------------------------------------------------------------------
// r[c] becomes element c of W keys, `key` floats apart, for four c. All of them are readable.
FN void transposed4(const float* p, int64_t key, V* r) {
#if defined(__AVX512F__)
  const float *p4 = opaque(p + 4 * key), *p8 = opaque(p4 + 4 * key), *p12 = opaque(p8 + 4 * key);  // all that registers hold
  __m512 x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_castps128_ps512(_mm_loadu_ps(p + i * key));
    x[i] = _mm512_insertf32x4(x[i], _mm_loadu_ps(p4 + i * key), 1);
    x[i] = _mm512_insertf32x4(x[i], _mm_loadu_ps(p8 + i * key), 2);
    x[i] = _mm512_insertf32x4(x[i], _mm_loadu_ps(p12 + i * key), 3);
  }
  const __m512d a = (__m512d)_mm512_unpacklo_ps(x[0], x[1]), b = (__m512d)_mm512_unpackhi_ps(x[0], x[1]);
  const __m512d d = (__m512d)_mm512_unpacklo_ps(x[2], x[3]), e = (__m512d)_mm512_unpackhi_ps(x[2], x[3]);
  r[0] = (V)_mm512_unpacklo_pd(a, d), r[1] = (V)_mm512_unpackhi_pd(a, d);
  r[2] = (V)_mm512_unpacklo_pd(b, e), r[3] = (V)_mm512_unpackhi_pd(b, e);
#elif defined(__AVX2__)
  const float* p4 = opaque(p + 4 * key);
  __m256 x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    x[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * key)), _mm_loadu_ps(p4 + i * key), 1);
  const __m256d a = (__m256d)_mm256_unpacklo_ps(x[0], x[1]), b = (__m256d)_mm256_unpackhi_ps(x[0], x[1]);
  const __m256d d = (__m256d)_mm256_unpacklo_ps(x[2], x[3]), e = (__m256d)_mm256_unpackhi_ps(x[2], x[3]);
  r[0] = (V)_mm256_unpacklo_pd(a, d), r[1] = (V)_mm256_unpackhi_pd(a, d);
  r[2] = (V)_mm256_unpacklo_pd(b, e), r[3] = (V)_mm256_unpackhi_pd(b, e);
#else
  for (int c = 0; c < 4; c++)
    for (int i = 0; i < W; i++) r[c][i] = p[i * key + c];
#endif
}
FN void transposed(const float* p, int64_t key, V (&r)[W]) {
#pragma GCC unroll 4
  for (int c = 0; c < W; c += 4) transposed4(p + c, key, r + c);
}
// The same with `keys` keys of `depth` elements each, perhaps more or less than W; what is missing is 0.
void transposed_part(const float* p, int64_t key, int64_t step, int64_t keys, int64_t depth, V (&r)[W]) {
  alignas(64) float t[W][W];
  for (int i = 0; i < W; i++) {
    store(t[i], i < keys && step == 1 ? loadPart(p + i * key, long(std::min<int64_t>(W, depth))) : V{});
    if (i < keys && step != 1)
      for (int d = 0; d < std::min<int64_t>(W, depth); d++) t[i][d] = p[i * key + d * step];
  }
  transposed(t[0], W, r);
}

struct Keys {
  const float* at;
  int64_t key, step;  // floats from key to key, from element to element
};

// Panels [PANEL keys][depth][PANEL] of `count` keys, zero padded.
void pack(const Keys& from, int64_t count, int64_t depth, float* out) {
  for (int64_t j = 0; j < count; j += PANEL, out += depth * PANEL) {
    for (int64_t part = 0; part < PANEL; part += W) {
      const int64_t keys = count - j - part;
      const float* p = from.at + (keys > 0 ? (j + part) * from.key : 0);
      for (int64_t d = 0; d < depth; d += W) {
        V r[W];
        if (keys >= W && depth - d >= W && from.step == 1) {
#pragma GCC unroll 16
          for (int i = 0; i < W; i++) __builtin_prefetch(p + (W + i) * from.key + d);
          transposed(p + d, from.key, r);
#pragma GCC unroll 16
          for (int i = 0; i < W; i++) store(out + (d + i) * PANEL + part, r[i]);
          continue;
        }
        if (keys <= 0) {
          for (int i = 0; i < std::min<int64_t>(W, depth - d); i++) store(out + (d + i) * PANEL + part, V{});
          continue;
        }
        transposed_part(p + d * from.step, from.key, from.step, keys, depth - d, r);
        for (int i = 0; i < std::min<int64_t>(W, depth - d); i++) store(out + (d + i) * PANEL + part, r[i]);
      }
    }
  }
}

// Scores of ROWS queries and GROUPS * W keys, at `s`, KEY_BLOCK floats a query. Each key is read once, from where it lies;
// the values of these keys are on their way meanwhile.
template <int ROWS>
void scores_in_place(const float* q, int64_t depth, const float* p, int64_t key, Ahead& values, float* s) {
  V sum[GROUPS][ROWS];
#pragma GCC unroll 8
  for (int g = 0; g < GROUPS; g++)
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) sum[g][i] = V{};
  for (int64_t d = 0; d < depth; d += 4) {
#pragma GCC unroll 4
    for (int line = 0; line < GROUPS * W * 4 / 16; line += 4) values.four_lines();
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) {
      V r[4];
      transposed4(p + g * W * key + d, key, r);
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++)
#pragma GCC unroll 4
        for (int i = 0; i < ROWS; i++) sum[g][i] = accumulated(sum[g][i], all(q[i * depth + d + c]), r[c]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 8
    for (int g = 0; g < GROUPS; g++) store(s + i * KEY_BLOCK + g * W, sum[g][i]);
}
void scores_in_place(int64_t rows, const float* q, int64_t depth, const float* p, int64_t key, Ahead& values, float* s) {
  if (rows == 1) scores_in_place<1>(q, depth, p, key, values, s);
  if constexpr (DIRECT_ROWS >= 2)
    if (rows == 2) scores_in_place<2>(q, depth, p, key, values, s);
  if constexpr (DIRECT_ROWS >= 3)
    if (rows == 3) scores_in_place<3>(q, depth, p, key, values, s);
}

// The same for up to W keys.
template <int ROWS>
void scores_of_few(const float* q, int64_t depth, const float* p, int64_t key, int64_t keys, float* s) {
  alignas(64) float t[W][W] = {};
  V sum[ROWS];
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; i++) sum[i] = V{};
  for (int64_t d = 0; d < depth; d += W) {
    V r[W];
    if (keys >= W) {
      transposed(p + d, key, r);
    } else {
      for (int64_t i = 0; i < keys; i++) store(t[i], load(p + i * key + d));
      transposed(t[0], W, r);
    }
#pragma GCC unroll 16
    for (int c = 0; c < W; c++)
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; i++) sum[i] = accumulated(sum[i], all(q[i * depth + d + c]), r[c]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; i++) store(s + i * KEY_BLOCK, sum[i]);
}
void scores_of_few(int64_t rows, const float* q, int64_t depth, const float* p, int64_t key, int64_t keys, float* s) {
  if (rows == 1) scores_of_few<1>(q, depth, p, key, keys, s);
  if constexpr (DIRECT_ROWS >= 2)
    if (rows == 2) scores_of_few<2>(q, depth, p, key, keys, s);
  if constexpr (DIRECT_ROWS >= 3)
    if (rows == 3) scores_of_few<3>(q, depth, p, key, keys, s);
}

// ---- softmax --------------------------------------------------------------------------------------------------------
struct Mask {
  const uint8_t* at;  // nullptr: none
  int64_t key;        // bytes from key to key: 0 or an element
  bool additive;      // float32, else bool
  V masked;           // what the bool one puts in place of a score
};

FN V with_mask(V y, const Mask& mask, int64_t j, int64_t rest) {
  if (mask.additive) {
    const float* p = reinterpret_cast<const float*>(mask.at + j * mask.key);
    return fma(mask.key ? (rest >= W ? load(p) : loadPart(p, rest)) : all(*p), all(LOG2E), y);
  }
  uint8_t seen[W];
  const uint8_t* p = mask.at + j * mask.key;
  if (!mask.key) memset(seen, *p, W);
  else if (rest >= W) memcpy(seen, p, W);
  else memset(seen, 0, W), memcpy(seen, p, size_t(rest < 0 ? 0 : rest));
  typedef uint8_t Bytes __attribute__((vector_size(W)));
  Bytes b;
  memcpy(&b, seen, W);
  return __builtin_convertvector(b, Vi) != 0 ? y : mask.masked;
}

// What the queries of a block have found in the keys so far and in those at hand, each phase for all of them: a query alone
// would wait for one result after the other.
struct Found {
  alignas(64) float level[ATTENTION_BLOCK_ROWS], back[ATTENTION_BLOCK_ROWS];
};

// The largest of the scores of one query and `columns` keys, of which `keys` exist and it sees `seen`; its scores, masked.
FN V largest_score(float* s, int64_t columns, int64_t keys, int64_t seen, const Mask& mask) {
  V most = all(-Inf);
  int64_t j = 0;
  if (!mask.at) {  // what has nothing to hide
    V other = most;
    for (; j + 2 * W <= seen; j += 2 * W) most = max2(load(s + j), most), other = max2(load(s + j + W), other);
    most = max2(other, most);
  }
  for (; j < columns; j += W) {
    V y = load(s + j);
    if (mask.at) y = with_mask(y, mask, j, keys - j);
    if (j + W > seen) y = keepPart(y, all(-Inf), long(seen - j));
    store(s + j, y);
    most = max2(y, most);
  }
  return largest(most);
}

// The largest scores of all queries of the block are in found.level: what they weigh by, and what the earlier weights count then.
FN void weigh(Found& found, float* top) {
#pragma GCC unroll 4
  for (int i = 0; i < ATTENTION_BLOCK_ROWS; i += W) {
    const V now = load(found.level + i), level = now == -Inf ? V{} : now;
    store(found.back + i, exp2v(load(top + i) - level));
    store(top + i, now), store(found.level + i, level);
  }
}

// Scores -> weights; their sums by lanes.
FN void weights_of(float* s, int64_t columns, V level, V (&sum)[LANE_VECTORS]) {
#pragma GCC unroll 2
  for (int64_t j = 0; j < columns; j += 16)
#pragma GCC unroll 4
    for (int v = 0; v < LANE_VECTORS; v++) {
      const V p = exp2v(load(s + j + v * W) - level);
      store(s + j + v * W, p);
      sum[v] += p;
    }
}

// ---- one head -------------------------------------------------------------------------------------------------------
// What the next head will read, on its way to L2 while this one is computed: a few rows after each row of the softmax.
struct Pull {
  const char* at[3];
  int64_t step[3], left[3];  // bytes from row to row; rows
  int64_t bytes, rows;       // of a row; at a time

  FN void some() {
    for (int64_t n = rows; n > 0; n--) {
      const int i = left[0] ? 0 : left[1] ? 1 : 2;
      if (!left[i]) return;
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(at[i] + line, 0, 2);
      at[i] += step[i], left[i]--;
    }
  }
};

struct Attention {
  Pull pull;
  int64_t keys, queries, depth, columns, width;          // width of Q and K; of V and O, also in whole panels
  int64_t q_row, q_step, v_key, o_row, mask_row, limit;  // floats (mask_row: bytes)
  Keys k;
  const float *q, *v;
  float* o;
  Mask mask;
  bool packed;         // K lies in panels
  bool pulls;          // queries, keys and values of the next head are fetched: they come from beyond L2, and fit into it
  bool direct;         // so few queries that K is used where it lies
  const float* next_head;  // its keys, if there is another one
  float scale, empty;
  float *query, *sum, *score, *lanes, *values, *panels;  // scratch
  int64_t slots, filled;                                 // panels: room for blocks of keys; one behind the last that is there
};

// The first row's limit is `limit`; each further row sees one key more. Rows with as many keys in their chains go together.
void add_values(const Attention& t, float* sum, int64_t rows, int64_t limit, int64_t keys, const float* v, int64_t v_key,
                bool first, Ahead* ahead) {
  auto chain = [&](int64_t row) {
    const int64_t seen = std::clamp<int64_t>(limit + row, 0, keys);
    return std::min(keys, ceil_div(seen, PANEL) * PANEL);
  };
  for (int64_t row = 0, end; row < rows; row = end) {
    const int64_t length = chain(row);
    for (end = row + 1; end < rows && chain(end) == length;) end++;
    if (length == 0) continue;
    multiply({length, t.score + row * KEY_BLOCK, v, sum + row * t.width, KEY_BLOCK, v_key, PANEL, t.width, first, ahead},
             end - row, t.width);
  }
}

void score_block(Attention& t, const float* query, int64_t rows, int64_t j0, int64_t columns) {
  const int64_t keys = std::min(KEY_BLOCK, t.keys - j0);
  const Keys from{t.k.at + j0 * t.k.key, t.k.key, t.k.step};
  const float* panels;
  if (t.packed) {
    panels = t.k.at + j0 * t.depth;
  } else {
    if (t.direct) {
      int64_t column = 0;
      Ahead values{t.v + j0 * t.v_key, t.v_key, t.columns, std::min(columns, keys) * t.columns, 0};
      for (; column + GROUPS * W <= std::min(columns, keys); column += GROUPS * W)
        scores_in_place(rows, query, t.depth, from.at + column * from.key, from.key, values, t.score + column);
      for (; column < std::min(columns, keys); column += W)  // what lies behind these keys is hidden from every query
        scores_of_few(rows, query, t.depth, from.at + column * from.key, from.key, keys - column, t.score + column);
      return;
    }
    const int64_t block = j0 / KEY_BLOCK;
    float* const out = t.panels + (t.slots == 1 ? 0 : block) * KEY_BLOCK * t.depth;
    if (t.slots == 1 ? t.filled != block + 1 : t.filled <= block) {
      pack(from, keys, t.depth, out);
      t.filled = block + 1;
    }
    panels = out;
  }
  multiply({t.depth, query, panels, t.score, t.depth, PANEL, t.depth * PANEL, KEY_BLOCK, true}, rows, columns);
}

// The values of a block of keys as the tiles want them: in place, or padded to whole panels.
const float* values_of(const Attention& t, int64_t j0, int64_t keys) {
  const float* v = t.v + j0 * t.v_key;
  if (t.width == t.columns) return v;
  for (int64_t j = 0; j < keys; j++) {
    std::copy_n(v + j * t.v_key, t.columns, t.values + j * t.width);
    std::fill_n(t.values + j * t.width + t.columns, t.width - t.columns, 0.f);
  }
  return t.values;
}

void begin_row(const Attention& t, int64_t row, int64_t i) {
  const V factor = all(t.scale * LOG2E);
  const float* q = t.q + row * t.q_row;
  float* const query = t.query + i * t.depth;
  int64_t d = 0;
  if (t.q_step == 1)
    for (; d + W <= t.depth; d += W) store(query + d, load(q + d) * factor);
  for (; d < t.depth; d++) query[d] = q[d * t.q_step] * factor[0];
  std::fill_n(t.lanes + i * 16, 16, 0.f);
}

void end_row(const Attention& t, int64_t row, int64_t i) {
  const float total = folded(t.lanes + i * 16), share = 1.f / total;  // dividing one element takes a quarter of a vector's time
  const bool none = total == 0.f;
  float* const out = t.o + row * t.o_row;
  for (int64_t d = 0; d < t.columns; d += W) {
    const V x = canonical(none ? all(t.empty) : load(t.sum + i * t.width + d) * share);
    if (t.columns - d >= W) store(out + d, x);
    else storePart(out + d, x, long(t.columns - d));
  }
}

// The next block of keys that is used in place: from j0 on, if anything there is seen, or the first one of the next head.
Ahead keys_after(const Attention& t, int64_t j0, int64_t last) {
  if (!t.direct) return {};
  if (j0 < last) return {t.k.at + j0 * t.k.key, t.k.key, t.depth, std::min(KEY_BLOCK, last - j0) * t.depth, 0};
  return {t.next_head, t.k.key, t.depth, t.next_head ? std::min(KEY_BLOCK, t.keys) * t.depth : 0, 0};
}

// `rows` queries from `row` on, number `first` and on of their group, and the block of keys from j0 on. The first block of keys
// finds nothing that it would add to.
void visit(Attention& t, int64_t row, int64_t first, int64_t rows, int64_t j0, const float* v, float* top) {
  const int64_t limit = t.limit + row;  // keys that the first row sees
  const int64_t last = std::clamp<int64_t>(limit + rows - 1, 0, t.keys);
  if (last <= j0) return;
  const int64_t keys = std::min(KEY_BLOCK, t.keys - j0), columns = ceil_div(std::min(keys, last - j0), PANEL) * PANEL;
  float *const sum = t.sum + first * t.width, *const lanes = t.lanes + first * 16;
  score_block(t, t.query + first * t.depth, rows, j0, columns);
  Found found;
  const int64_t begin = std::max<int64_t>(0, j0 + 1 - limit);  // rows before it see nothing here
  top += first;
  std::copy_n(top, ATTENTION_BLOCK_ROWS, found.level);  // those that see nothing stay as they are, and so do the next block's
  for (int64_t i = begin; i < rows; i++) {
    Mask mask = t.mask;
    if (mask.at) mask.at += (row + i) * t.mask_row + j0 * mask.key;
    const V most = largest_score(t.score + i * KEY_BLOCK, columns, keys, std::min(keys, limit + i - j0), mask);
    found.level[i] = max2(most, all(top[i]))[0];
  }
  weigh(found, top);
  for (int64_t i = begin; i < rows; i++) {
    V total[LANE_VECTORS] = {};
    weights_of(t.score + i * KEY_BLOCK, columns, all(found.level[i]), total);
    for (int l = 0; l < LANE_VECTORS; l++) {
      float* const at = lanes + i * 16 + l * W;
      store(at, j0 ? fma(load(at), all(found.back[i]), total[l]) : total[l]);
    }
    t.pull.some();
  }
  for (int64_t i = begin; j0 && i < rows; i++)
    if (!(found.back[i] == 1.f))
      for (int64_t d = i * t.width; d < (i + 1) * t.width; d += W) store(sum + d, load(sum + d) * found.back[i]);
  Ahead ahead = keys_after(t, j0 + KEY_BLOCK, last);
  add_values(t, sum, rows, limit - j0, keys, v, t.width == t.columns ? t.v_key : t.width, !j0, ahead.left ? &ahead : nullptr);
}

// Groups of blocks of queries go through the keys together: a block of keys and values is read from L1 by all but the first.
void head(Attention& t, int64_t first, int64_t rows) {
  const int64_t blocks = ceil_div(rows, BLOCK_ROWS), height = rows / blocks, taller = rows % blocks;
  auto row_of = [&](int64_t block) { return first + block * height + std::min(block, taller); };  // heights differ by at most one
  for (int64_t from = 0; from < blocks; from += GROUP_BLOCKS) {
    const int64_t to = std::min(from + GROUP_BLOCKS, blocks), begin = row_of(from), end = row_of(to);
    float top[ATTENTION_ROWS + ATTENTION_BLOCK_ROWS];
    std::fill_n(top, ATTENTION_ROWS + ATTENTION_BLOCK_ROWS, -Inf);
    for (int64_t row = begin; row < end; row++) begin_row(t, row, row - begin);
    const int64_t last = std::clamp<int64_t>(t.limit + end - 1, 0, t.keys);
    for (int64_t j0 = 0; j0 < last; j0 += KEY_BLOCK) {
      const float* const v = values_of(t, j0, std::min(KEY_BLOCK, t.keys - j0));
      for (int64_t block = from; block < to; block++)
        visit(t, row_of(block), row_of(block) - begin, row_of(block + 1) - row_of(block), j0, v, top);
    }
    for (int64_t row = begin; row < end; row++) end_row(t, row, row - begin);
  }
}

float constant(const Word& word) {
  float value;
  memcpy(&value, &word.k, sizeof value);
  return value;
}

Attention attention(const SectionRun& run) {
  const Section& section = *run.section.head;
  const Operand *q = run.section.operands, *k = q + 1, *v = q + 2, *o = q + 3, *m = q + 4;
  const bool masked = section.operand_count > 4;
  Attention t{};
  t.keys = section.dims[0], t.queries = section.dims[1], t.depth = k->limit;
  t.columns = v->limit, t.width = padded_width(t.columns);
  t.q_row = q->stride[1] / 4, t.q_step = q->depth / 4, t.v_key = v->stride[0] / 4, t.o_row = o->stride[1] / 4;
  t.limit = q->limit;
  t.k.key = k->stride[0] / 4, t.k.step = k->depth / 4, t.packed = k->mode & PACKED;
  t.direct = !t.packed && t.queries <= DIRECT_ROWS && t.depth % W == 0 && t.k.step == 1;
  t.scale = constant(run.section.words[0]), t.empty = constant(run.section.words[2]);
  t.mask.masked = all(constant(run.section.words[1]) * LOG2E);
  if (masked) t.mask.key = m->stride[0], t.mask_row = m->stride[1], t.mask.additive = m->dtype == uint8_t(DType::FLOAT32);
  float* at = reinterpret_cast<float*>(run.scratch);
  t.lanes = at, at += ATTENTION_ROWS * 16;
  t.score = at, at += ATTENTION_BLOCK_ROWS * KEY_BLOCK;
  t.sum = at, at += ATTENTION_ROWS * t.width;
  if (t.width != t.columns) t.values = at, at += KEY_BLOCK * t.width;
  t.query = at, at += ATTENTION_ROWS * t.depth;
  t.panels = at;
  t.slots = key_slots(section, *k);
  int64_t heads = 1;
  for (int d = 2; d < section.rank; d++) heads *= section.dims[d];
  const bool even = t.depth == t.columns && t.depth % 16 == 0, fits = t.keys * t.depth <= PULL_FLOATS;
  const bool many = double(heads) * double(t.queries + 2 * t.keys) * double(t.depth) > PULL_SECTION_FLOATS;
  t.pulls = !t.packed && t.queries > ATTENTION_FEW_ROWS && even && fits && many;
  return t;
}

// Queries, keys and values of the head at `base`.
Pull pull(const Attention& t, uint8_t* const* base, const Operand* operands) {
  Pull next{};
  next.bytes = 4 * t.depth;
  for (int i = 0; i < 3; i++) {
    next.at[i] = reinterpret_cast<const char*>(base[i]);
    next.step[i] = operands[i].stride[i == 0];
    next.left[i] = i == 0 ? t.queries : t.keys;
  }
  if (next.at[1] == reinterpret_cast<const char*>(t.k.at)) next.left[1] = next.left[2] = 0;
  next.rows = ceil_div(next.left[0] + next.left[1] + next.left[2], t.queries * ceil_div(t.keys, KEY_BLOCK));
  return next;
}

}  // namespace

void run_attention(Context&, const SectionRun& run) {
  const Section& section = *run.section.head;
  const Operand* operands = run.section.operands;
  const int operand_count = section.operand_count;
  Attention t = attention(run);
  uint8_t* base[5] = {};
  std::copy_n(run.address, operand_count, base);
  const int64_t pieces = attention_pieces(section);
  int64_t index[MAX_RANK] = {}, rest = run.begin / pieces;
  for (int d = 2; d < section.rank; rest /= section.dims[d++]) {
    index[d] = rest % section.dims[d];
    for (int i = 0; i < operand_count; i++) base[i] += operands[i].stride[d] * index[d];
  }
  for (int64_t unit = run.begin; unit < run.end;) {
    const int64_t piece = unit % pieces, count = std::min(pieces - piece, run.end - unit);
    const float* k = reinterpret_cast<const float*>(base[1]);
    if (k != t.k.at) t.filled = 0;  // heads of one group share their keys
    t.q = reinterpret_cast<const float*>(base[0]), t.k.at = k, t.v = reinterpret_cast<const float*>(base[2]);
    t.o = reinterpret_cast<float*>(base[3]), t.mask.at = base[4];
    for (int d = 2; d < section.rank; d++) {  // the batch dimensions count like an odometer
      const bool more = ++index[d] < section.dims[d];
      for (int i = 0; i < operand_count; i++) base[i] += operands[i].stride[d] * (more ? 1 : 1 - section.dims[d]);
      if (more) break;
      index[d] = 0;
    }
    unit += count;
    t.pull = t.pulls && unit < run.end ? pull(t, base, operands) : Pull{};
    const float* const next_k = reinterpret_cast<const float*>(base[1]);
    t.next_head = unit < run.end && next_k != k ? next_k : nullptr;
    const int64_t first = piece * ATTENTION_FEW_ROWS;
    head(t, first, std::min(count * ATTENTION_FEW_ROWS, t.queries - first));
  }
}

}  // namespace dvm::DVM_TARGET
