// Products whose B is windows that lie one or two elements apart: read where they are, nothing is packed. Part of matmul.cpp.
//
// Places are taken W at a time; for every k the same lanes stand at one distance more, which is the same for all of them. Lanes
// that belong to no window (the end of a row of places, the gap before the next) are never read, and a store leaves them out.
// Where the rows of places lie close together, vectors run on from one row into the next; else each row has its own.
//
// One row of A for each step of the batch, a depthwise convolution: steps of the innermost batch dimension are rows here, each
// with windows of its own, so that the epilogue too takes many of them at a time.
#pragma once

constexpr int PLACES_ROWS = W == 16 ? 9 : 4;      // most rows of a tile
constexpr int PLACES_VECTORS = W == 16 ? 6 : 4;   // most of a tile
constexpr int vectors_beside(int64_t rows, int64_t step) {  // masks too take registers
  if (step == 2) return W == 16 ? (rows <= 7 ? 3 : 2) : rows == 1 ? 2 : 1;
  return W == 16 ? (rows <= 4 ? 6 : 3) : rows == 1 ? 4 : rows == 2 ? 3 : 2;
}
constexpr int64_t PLACES_ROWS_MAX = 64;           // of A: more of them pay for packed windows, which they read aligned
constexpr int64_t EVERY_OTHER_ROWS_MAX = 16;      // the same where places lie two apart: two loads and an exchange each
constexpr int64_t PLACES_AT_ONCE = 128;           // vectors of places
constexpr int64_t FINISHED_FLOATS = 8 << 10;      // of rows that wait for their epilogue

struct Places {  // W of them, or less
  int64_t from;    // lane 0, in floats from the first place of all
  int64_t to;      // column of C that the first lane is
  uint32_t lanes;  // those that are places
};

FN Where where_of(uint32_t lanes) {
#if defined(__AVX512F__)
  return Where(lanes);
#else
  return ((int32_t(lanes) - Vi{}) >> iota() & 1) != 0;
#endif
}
// Lanes of two vectors of which every second element is one: those of `lanes` from lane `first` on.
FN uint32_t spread_lanes(uint32_t lanes, int first) {
  uint32_t out = 0;
  for (int i = 0; i < W / 2; i++) out |= (lanes >> (first + i) & 1) << 2 * i;
  return out;
}

// Stores the lanes of a vector that are places behind each other.
FN void store_places(float* p, V v, uint32_t lanes, bool first) {
#if defined(__AVX512F__)
  const int count = __builtin_popcount(lanes);
  v = _mm512_maskz_compress_ps(__mmask16(lanes), v);
  storePart(p, canonicalNaN(first ? v : loadPart(p, count) + v), count);
#else
  if (lanes == (1u << W) - 1) return store(p, canonical(first ? v : load(p) + v));
  for (int i = 0; i < W; i++)
    if (lanes >> i & 1) {
      const float sum = first ? v[i] : *p + v[i];
      *p++ = sum == sum ? sum : NaN;
    }
#endif
}

struct PlacesTile {
  int64_t k, a_row, c_row;
  const float *a, *b;
  const int64_t* taps;    // floats from the first place's first element, for each k
  const Places* places;
  float* c;
  bool first;             // the first slice of K overwrites C, later ones add to it
};

template <int ROWS, int VECTORS, int STEP>
void places_tile(const PlacesTile& t) {
  V c[ROWS][VECTORS];
  Where where[VECTORS][STEP];
  const float* b[VECTORS];
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; v++) {
    b[v] = opaque(t.b + t.places[v].from);
#pragma GCC unroll 2
    for (int half = 0; half < STEP; half++)
      where[v][half] = where_of(STEP == 1 ? t.places[v].lanes : spread_lanes(t.places[v].lanes, half * W / 2));
#pragma GCC unroll 9
    for (int i = 0; i < ROWS; i++) c[i][v] = V{};
  }
  constexpr int BASES = (ROWS + 2) / 3;
  const float* a[BASES];
#pragma GCC unroll 3
  for (int i = 0; i < BASES; i++) a[i] = opaque(t.a + 3 * i * t.a_row);
  const int64_t a_row = t.a_row;
  for (int64_t k = 0; k < t.k; k++) {
    const int64_t at = t.taps[k];
    V row[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      if constexpr (STEP == 1) row[v] = load_where(b[v] + at, where[v][0]);
      else row[v] = every_second<0>(load_where(b[v] + at, where[v][0]), load_where(b[v] + at + W, where[v][1]));
    }
#pragma GCC unroll 9
    for (int i = 0; i < ROWS; i++) {
      const V x = all(a[i / 3][i % 3 * a_row]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; v++) c[i][v] = accumulated(c[i][v], x, row[v]);
    }
#pragma GCC unroll 3
    for (int i = 0; i < BASES; i++) a[i]++;
  }
#pragma GCC unroll 8
  for (int v = 0; v < VECTORS; v++)
#pragma GCC unroll 9
    for (int i = 0; i < ROWS; i++) store_places(t.c + i * t.c_row + t.places[v].to, c[i][v], t.places[v].lanes, t.first);
}

using PlacesKernel = void (*)(const PlacesTile&);
struct PlacesKernels { PlacesKernel of_vectors[PLACES_VECTORS + 1]; };
template <int ROWS, int VECTORS, int STEP> constexpr PlacesKernel places_kernel() {
  if constexpr (VECTORS > 0 && VECTORS <= vectors_beside(ROWS, STEP)) return places_tile<ROWS, VECTORS, STEP>;
  else return nullptr;
}
template <int ROWS, int STEP, int... VECTORS> constexpr PlacesKernels places_kernels_of(std::integer_sequence<int, VECTORS...>) {
  return {places_kernel<ROWS, VECTORS, STEP>()...};
}
struct PlacesTable { PlacesKernels of_rows[PLACES_ROWS]; };
template <int STEP, int... ROWS> constexpr PlacesTable places_table(std::integer_sequence<int, ROWS...>) {
  return {places_kernels_of<ROWS + 1, STEP>(std::make_integer_sequence<int, PLACES_VECTORS + 1>())...};
}
constexpr PlacesTable PLACES_KERNELS[2] = {places_table<1>(std::make_integer_sequence<int, PLACES_ROWS>()),
                                           places_table<2>(std::make_integer_sequence<int, PLACES_ROWS>())};

// Walks the columns of C and names the places of the next vector.
struct PlacesWalk {
  const Windows& w;
  const bool runs_on;
  int64_t row, place;

  PlacesWalk(const Windows& w, int64_t n, int64_t column)
      : w(w), runs_on(w.place == 1 && w.place_row > w.places && n > w.places &&
                      8 * ceil_div((n / w.places - 1) * w.place_row + w.places, W) < 7 * (n / w.places * ceil_div(w.places, W))),
        row(column / w.places), place(column % w.places) {}

  Places next(int64_t column, int64_t end) {
    Places out{row * w.place_row + place * w.place, column, 0};
    for (int64_t lane = 0; lane < W && column < end;) {
      const int64_t here = smaller(smaller(W - lane, w.places - place), end - column);
      out.lanes |= ((1u << here) - 1) << lane;
      lane += here, column += here, place += here;
      if (place < w.places) break;
      place = 0, row++, lane += w.place_row - w.places;
      if (!runs_on) break;
    }
    return out;
  }
};

struct PlacesList {
  Places list[PLACES_AT_ONCE];
  int64_t count = 0, begin = 0, end = 0;  // columns that they are

  void make(const Windows& w, int64_t n, int64_t column, int64_t column_end) {
    if (count && begin == column && end <= column_end && (end == column_end || count == PLACES_AT_ONCE)) return;
    PlacesWalk walk(w, n, column);
    begin = end = column;
    for (count = 0; count < PLACES_AT_ONCE && end < column_end; count++) {
      list[count] = walk.next(end, column_end);
      end += __builtin_popcount(list[count].lanes);
    }
  }
};

bool reads_places(const Product& p) {
  const int64_t step = p.windows.place, most = step == 1 ? PLACES_ROWS_MAX : step == 2 ? EVERY_OTHER_ROWS_MAX : 0;
  return p.has_windows && p.a_step == 1 && p.m <= most;
}

// ---- one row of A, kernels of a few rows ------------------------------------------------------------------------------
// What the first row of a kernel reads for one row of places, the next one reads for a row above: rows of places share what is
// read. So a tile walks down the rows of the array that the kernel meets, each of which serves all its rows of places. STEP: from
// row to row of places and from place to place; where it is 2, two columns of the kernel are the two halves of what was loaded.
struct ColumnTile {
  const float *a, *b;
  float* c;
  int64_t width, column, row, c_row;  // of the kernel; floats from column to column, row to row of the array, row to row of C
  int64_t left;                       // places from here to the end of the row
};
constexpr int COLUMN_ROWS = 4, COLUMN_VECTORS = W == 16 ? 4 : 2;

// WIDTH: of the kernel; 0: t.width.
template <int STEP, int HEIGHT, int WIDTH, int ROWS, int VECTORS>
void column_tile(const ColumnTile& t) {
  V c[ROWS][VECTORS] = {};
  const int64_t width = WIDTH ? WIDTH : t.width, last = t.left - (VECTORS - 1) * W;
  const float* b = t.b;
  auto one_row = [&](auto at) __attribute__((always_inline)) {
    constexpr int I = at.value, FIRST = I < HEIGHT ? 0 : (I - HEIGHT + STEP) / STEP, LAST = I / STEP < ROWS ? I / STEP : ROWS - 1;
    const float* x = b;
    auto add = [&](const V (&row)[VECTORS], int64_t k) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int r = FIRST; r <= LAST; r++) {
        const V factor = all(t.a[(I - STEP * r) * width + k]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) c[r][v] = accumulated(c[r][v], factor, row[v]);
      }
      x += t.column;
    };
    auto one_column = [&](int64_t k) __attribute__((always_inline)) {
      V row[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) {
        const float* p = x + STEP * v * W;
        const bool whole = v + 1 < VECTORS;
        if constexpr (STEP == 1) row[v] = whole ? load(p) : loadPart(p, last);
        else row[v] = every_second<0>(whole ? load(p) : loadPart(p, 2 * last - 1),
                                      whole ? load(p + W) : loadPart(p + W, 2 * last - 1 - W));
      }
      add(row, k);
    };
    auto two_columns = [&](int64_t k) __attribute__((always_inline)) {
      V even[VECTORS], odd[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; v++) {
        const float* p = x + 2 * v * W;
        const bool whole = v + 1 < VECTORS;
        const V low = whole ? load(p) : loadPart(p, 2 * last), high = whole ? load(p + W) : loadPart(p + W, 2 * last - W);
        even[v] = every_second<0>(low, high), odd[v] = every_second<1>(low, high);
      }
      add(even, k), add(odd, k + 1);
    };
    int64_t k = 0;
    if constexpr (STEP == 2) {
#pragma GCC unroll 2
      for (; k + 1 < width; k += 2) two_columns(k);
    }
#pragma GCC unroll 3
    for (; k < width; k++) one_column(k);
    b += t.row;
  };
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (one_row(std::integral_constant<int, I>()), ...);
  }(std::make_integer_sequence<int, STEP * (ROWS - 1) + HEIGHT>());
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v++) {
      float* p = t.c + r * t.c_row + v * W;
      if (v + 1 < VECTORS) store(p, canonicalNaN(c[r][v]));
      else storePart(p, canonicalNaN(c[r][v]), last);
    }
}

using ColumnKernel = void (*)(const ColumnTile&);
struct ColumnKernels { ColumnKernel of[COLUMN_ROWS][COLUMN_VECTORS]; };
template <int STEP, int HEIGHT, int WIDTH, int... I> constexpr ColumnKernels column_kernels(std::integer_sequence<int, I...>) {
  return {{column_tile<STEP, HEIGHT, WIDTH, I / COLUMN_VECTORS + 1, I % COLUMN_VECTORS + 1>...}};
}
using ColumnTiles = std::make_integer_sequence<int, COLUMN_ROWS * COLUMN_VECTORS>;
template <int STEP, int HEIGHT, int WIDTH> constexpr ColumnKernels COLUMNS = column_kernels<STEP, HEIGHT, WIDTH>(ColumnTiles());
template <int STEP> const ColumnKernels* column_kernels_of(int64_t height, int64_t width) {
  if (height == 3) return width == 3 ? &COLUMNS<STEP, 3, 3> : &COLUMNS<STEP, 3, 0>;
  return height == 5 ? &COLUMNS<STEP, 5, 0> : height == 7 ? &COLUMNS<STEP, 7, 0> : nullptr;
}
const ColumnKernels* column_kernels_for(const Product& p) {
  const Windows& w = p.windows;
  if (w.width * w.height != p.k || w.place_row <= 0 || w.row <= 0) return nullptr;
  if (w.place == 1 && w.row % w.place_row == 0) return column_kernels_of<1>(w.height, w.width);
  if (w.place == 2 && w.column == 1 && w.place_row == 2 * w.row) return column_kernels_of<2>(w.height, w.width);
  return nullptr;
}
// All places of one row of A. Rows of places share what they read with those as far below as rows of the kernel are.
void run_columns(const ColumnKernels& kernels, const Windows& w, int64_t n, const float* a, const float* b, float* c) {
  const int64_t rows = n / w.places, apart = w.place == 1 ? w.row / w.place_row : 1;
  ColumnTile t{a, b, c, w.width, w.column, w.row, apart * w.places, 0};
  for (int64_t first = 0; first < smaller(apart, rows); first++)
    for (int64_t row = first, height; row < rows; row += height * apart) {
      height = smaller(COLUMN_ROWS, ceil_div(rows - row, apart));
      for (int64_t place = 0; place < w.places; place += COLUMN_VECTORS * W) {
        t.b = b + row * w.place_row + place * w.place, t.c = c + row * w.places + place, t.left = w.places - place;
        kernels.of[height - 1][smaller(COLUMN_VECTORS, ceil_div(t.left, W)) - 1](t);
      }
    }
}

// ---- one product ----------------------------------------------------------------------------------------------------
// Rows of C, `own` apart in B: 0, or each has windows of its own.
struct PlacesProduct {
  const Product& p;
  const int64_t own;
  int64_t* const taps;
  int64_t slice_of_taps = -1;
  const ColumnKernels* columns = nullptr;  // those of a row of A that has all its places
  PlacesList places;

  PlacesProduct(const Product& p, int64_t own) : p(p), own(own), taps(reinterpret_cast<int64_t*>(p.scratch)) {}

  void set_taps(int64_t k0, int64_t k) {
    if (slice_of_taps == k0) return;
    slice_of_taps = k0;
    Tap tap(p.windows, k0);
    for (int64_t i = 0; i < k; i++, tap.next()) taps[i] = tap.at;
  }
  // Rows of A by all places; those of B stay in L1 from one block of rows to the next.
  void blocks(PlacesTile& t, int64_t rows) {
    const int64_t blocks = ceil_div(rows, PLACES_ROWS), height = rows / blocks, taller = rows % blocks;
    const int64_t step = p.windows.place, most = vectors_beside(height + (taller != 0), step);
    const float* const a = t.a;
    float* const c = t.c;
    for (int64_t at = 0; at < places.count; at += most) {
      t.a = a, t.c = c, t.places = places.list + at;
      for (int64_t i = 0; i < blocks; i++) {
        const int64_t here = height + (i < taller);
        PLACES_KERNELS[step - 1].of_rows[here - 1].of_vectors[smaller(places.count - at, most)](t);
        t.a += here * p.a_row, t.c += here * p.c_row;
      }
    }
  }
  void rows_of_slices(int64_t row, int64_t row_end) {
    PlacesTile t{};
    t.a_row = p.a_row, t.c_row = p.c_row, t.taps = taps;
    for (int64_t k0 = 0; k0 < p.k; k0 += p.slice) {
      t.k = smaller(p.slice, p.k - k0), t.first = k0 == 0;
      set_taps(k0, t.k);
      for (int64_t at = row, rows = own ? 1 : row_end - row; at < row_end; at += rows) {
        t.a = reinterpret_cast<const float*>(p.base[0]) + at * p.a_row + k0;
        t.b = reinterpret_cast<const float*>(p.base[1]) + at * own;
        t.c = reinterpret_cast<float*>(p.base[2]) + at * p.c_row;
        blocks(t, rows);
      }
    }
  }
  void multiply_rows(Context& context) {
    const int64_t rows = std::max<int64_t>(PLACES_ROWS, FINISHED_FLOATS / p.n);
    for (int64_t row = p.row_begin; row < p.row_end; row += rows) {
      const int64_t end = smaller(p.row_end, row + rows);
      for (int64_t at = row; at < end; at++)
        run_columns(*columns, p.windows, p.n, reinterpret_cast<const float*>(p.base[0]) + at * p.a_row,
                    reinterpret_cast<const float*>(p.base[1]) + at * own, reinterpret_cast<float*>(p.base[2]) + at * p.c_row);
      for (int64_t at = 0; p.words && at < p.n; at += STRIP) finish(context, p, row, end - row, at, smaller(STRIP, p.n - at));
    }
  }
  void multiply(Context& context) {
    if (columns) return multiply_rows(context);
    for (int64_t column = p.column_begin; column < p.column_end; column = places.end) {
      places.make(p.windows, p.n, column, p.column_end);
      const int64_t columns = places.end - column, rows = std::max<int64_t>(PLACES_ROWS, FINISHED_FLOATS / columns);
      for (int64_t row = p.row_begin; row < p.row_end; row += rows) {
        const int64_t end = smaller(p.row_end, row + rows);
        rows_of_slices(row, end);
        for (int64_t at = column; p.words && at < places.end; at += STRIP)
          finish(context, p, row, end - row, at, smaller(STRIP, places.end - at));
      }
    }
  }
};

// Steps of the innermost batch dimension as rows, each with windows of its own: a product of one row.
void run_own_windows(Context& context, const SectionRun& run, Product p, int64_t step, int64_t end) {
  const Section& head = *run.section.head;
  Operand operands[MAX_OPERANDS];
  for (int i = 0; i < p.operand_count; i++) operands[i] = p.operands[i], operands[i].stride[1] = operands[i].stride[2];
  p.operands = context.operands = operands;
  p.a_row = operands[0].stride[1] / 4, p.c_row = operands[2].stride[1] / 4;
  PlacesProduct product(p, operands[1].stride[1] / 4);
  product.columns = column_kernels_for(p);
  for (int64_t rows; step < end; step += rows) {
    int64_t rest = step / head.dims[2];
    for (int i = 0; i < p.operand_count; i++) p.base[i] = run.address[i];
    for (int d = 3; d < head.rank; rest /= head.dims[d++])
      for (int i = 0; i < p.operand_count; i++) p.base[i] += rest % head.dims[d] * operands[i].stride[d];
    p.row_begin = step % head.dims[2], rows = smaller(head.dims[2] - p.row_begin, end - step);
    p.row_end = p.row_begin + rows;
    product.multiply(context);
  }
}
