// Matrix products in float64 and in integers: the rule of matmul.h in other compute dtypes. Part of matmul.cpp.
//
// Integers are multiplied and added modulo 2^32 or 2^64, so signed and unsigned ones are the same code; int8 and uint8
// operands are widened to 32 bits where they are read. B is always copied, one panel of one slice at a time; A is read in place.
// Rows in groups are one product after another.
#pragma once
#include "split.h"

template <class T> using Lanes [[gnu::vector_size(4 * W)]] = T;
template <class T> constexpr int WIDTH = 4 * W / int(sizeof(T));
constexpr int PRODUCT_ROWS = W == 16 ? 14 : 6;

FN void accumulate(Lanes<double>& c, double x, Lanes<double> b) {
#if defined(__AVX512F__)
  c = _mm512_fmadd_pd(_mm512_set1_pd(x), b, c);
#elif defined(__AVX2__)
  c = _mm256_fmadd_pd(_mm256_set1_pd(x), b, c);
#else
  for (int i = 0; i < WIDTH<double>; i++) c[i] = __builtin_fma(x, b[i], c[i]);
#endif
}
FN void accumulate(Lanes<uint32_t>& c, uint32_t x, Lanes<uint32_t> b) { c += x * b; }
FN void accumulate(Lanes<uint64_t>& c, uint64_t x, Lanes<uint64_t> b) { c += x * b; }
FN double canonical(double x) { return x == x ? x : double(NaN); }
FN uint32_t canonical(uint32_t x) { return x; }
FN uint64_t canonical(uint64_t x) { return x; }

template <class T, class S> FN T widened(S x) {  // integers: sign or zero extended, then modulo
  if constexpr (std::is_integral_v<T>) return T(std::make_signed_t<T>(x));
  else return x;
}

struct PartOfProduct {
  int64_t k, columns;             // columns: valid ones of this unit
  int64_t a_row, a_step, c_row;   // elements
  const void *a, *b;              // b: in a panel of scratch
  void* c;
  bool first;                     // the first slice of K overwrites C, later ones add to it
};

template <class T, class A, int ROWS>
void product_tile(const PartOfProduct& t) {
  Lanes<T> sum[ROWS][2] = {};
  const A* a = static_cast<const A*>(t.a);
  const T* b = static_cast<const T*>(t.b);
  for (int64_t k = 0; k < t.k; k++, a += t.a_step, b += PANEL) {
    Lanes<T> left, right;
    memcpy(&left, b, sizeof left), memcpy(&right, b + WIDTH<T>, sizeof right);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const T x = widened<T>(a[i * t.a_row]);
      accumulate(sum[i][0], x, left), accumulate(sum[i][1], x, right);
    }
  }
  T* c = static_cast<T*>(t.c);
  for (int i = 0; i < ROWS; i++, c += t.c_row) {
    T row[2 * WIDTH<T>];
    memcpy(row, sum[i], sizeof row);
    for (int64_t j = 0; j < t.columns; j++) c[j] = canonical(t.first ? row[j] : T(c[j] + row[j]));
  }
}

template <class T, class A, int... ROWS>
constexpr auto product_tiles(std::integer_sequence<int, ROWS...>) {
  struct Tiles { void (*of_rows[PRODUCT_ROWS + 1])(const PartOfProduct&); };
  return Tiles{{nullptr, product_tile<T, A, ROWS + 1>...}};
}

template <class T, class S>
void copy_panel(const Operand& b, const uint8_t* from, int64_t k, int64_t columns, T* out) {
  const bool whole = columns >= PANEL && b.stride[0] == int64_t(sizeof(S));
  for (; k > 0; k--, from += b.depth, out += PANEL) {
    if (whole) {
      S row[PANEL];
      memcpy(row, from, sizeof row);
      for (int64_t j = 0; j < PANEL; j++) out[j] = widened<T>(row[j]);
      continue;
    }
    for (int64_t j = 0; j < PANEL; j++) {
      S x{};
      if (j < columns) memcpy(&x, from + j * b.stride[0], sizeof x);
      out[j] = widened<T>(x);
    }
  }
}

// The epilogue over finished columns of some rows, at most a strip of them; `address`: of the operands, in this step of
// the batch.
void finish_product(Context& context, const Section& head, const Word* words, uint8_t* const* address, int64_t row,
                    int64_t row_end, int64_t column, int64_t columns) {
  const auto run = DType(head.dtype) == DType::FLOAT32   ? float32::run_strip
                   : DType(head.dtype) == DType::FLOAT64 ? float64::run_strip
                   : DType(head.dtype) == DType::INT32 ? int32::run_strip
                   : DType(head.dtype) == DType::INT64 ? int64::run_strip
                   : DType(head.dtype) == DType::UINT32 ? uint32::run_strip
                                                        : uint64::run_strip;
  for (; row < row_end; row++) {
    for (int i = 0; i < head.operand_count; i++)
      context.ptr[i] = address[i] + row * context.operands[i].stride[1] + column * context.operands[i].stride[0];
    run(context, words, columns);
  }
}

// Rows [row, row_end) by columns [column, column_end) of one step of the batch, or of one group of rows.
template <class T, class A, class B>
void product_part(Context& context, const SectionRun& run, uint8_t* const* address, int64_t row, int64_t row_end, int64_t column,
                  int64_t column_end) {
  static constexpr auto TILES = product_tiles<T, A>(std::make_integer_sequence<int, PRODUCT_ROWS>());
  constexpr int64_t COLUMNS = 2 * WIDTH<T>;
  const Section& head = *run.section.head;
  const Operand *a = run.section.operands, *b = a + 1, *c = a + 2;
  const int64_t slice = slice_k(head.depth);
  T* const scratch = reinterpret_cast<T*>(run.scratch);
  PartOfProduct t{};
  t.a_row = a->stride[1] / int64_t(sizeof(A)), t.a_step = a->depth / int64_t(sizeof(A)),
  t.c_row = c->stride[1] / int64_t(sizeof(T));
  int64_t finished = column;
  for (int64_t k0 = 0; k0 < head.depth; k0 += slice) {
    t.k = smaller(slice, head.depth - k0), t.first = k0 == 0;
    for (int64_t j = column; j < column_end; j += PANEL) {
      const int64_t wide = smaller(PANEL, column_end - j);
      if (is_windows(*b)) {
        if constexpr (std::is_same_v<T, B>)
          pack_places(windows_of(*b), reinterpret_cast<const T*>(address[1]), k0, t.k, j, wide, scratch);
      } else {
        copy_panel<T, B>(*b, address[1] + k0 * b->depth + j * b->stride[0], t.k, wide, scratch);
      }
      for (int64_t i = row; i < row_end; i += PRODUCT_ROWS)
        for (int64_t u = 0; u < wide; u += COLUMNS) {
          t.columns = smaller(COLUMNS, wide - u);
          t.a = address[0] + i * a->stride[1] + k0 * a->depth, t.b = scratch + u;
          t.c = address[2] + i * c->stride[1] + (j + u) * int64_t(sizeof(T));
          TILES.of_rows[smaller(PRODUCT_ROWS, row_end - i)](t);
        }
      const bool enough = j + wide == column_end || (j + wide - finished) * int64_t(sizeof(T)) == STRIP_BYTES_MAX;
      if (head.word_count && k0 + t.k == head.depth && enough) {
        finish_product(context, head, run.section.words, address, row, row_end, finished, j + wide - finished);
        finished = j + wide;
      }
    }
  }
}

int64_t rows_of_group(const Operand& sizes, const uint8_t* from, int64_t group) {
  if (DType(sizes.dtype) == DType::INT64) {
    int64_t rows;
    memcpy(&rows, from + group * sizes.stride[2], sizeof rows);
    return rows;
  }
  int32_t rows;
  memcpy(&rows, from + group * sizes.stride[2], sizeof rows);
  return rows;
}

// Groups of rows, one behind the other, each with its own B: multiply(row, row_end, column, column_end) with B at
// address[1]. What is beyond all of them is 0; an epilogue sees those rows too.
template <class F>
void each_group(Context& context, const SectionRun& run, uint8_t** address, F multiply) {
  const Section& head = *run.section.head;
  const Operand *b = run.section.operands + 1, *c = b + 1, *sizes = b + 2;
  const bool whole = run.end - run.begin >= run.section.split.units;
  const int64_t column = whole ? 0 : run.begin * PANEL,
                column_end = whole ? head.dims[0] : smaller(head.dims[0], run.end * PANEL);
  int64_t row = 0;
  for (int64_t group = 0; group < head.dims[2]; group++, address[1] += b->stride[2]) {
    const int64_t rows = rows_of_group(*sizes, run.address[3], group);
    if (rows < 0 || rows > head.dims[1] - row) {
      context.trap = {TrapCode::GATHER_RANGE, 0, 0, rows, head.dims[1] - row + 1};
      return;
    }
    if (rows) multiply(row, row + rows, column, column_end);
    row += rows;
  }
  const int64_t element = DTYPE_BYTES[head.dtype], strip = STRIP_BYTES_MAX / element;
  for (int64_t i = row; i < head.dims[1]; i++)
    memset(address[2] + i * c->stride[1] + column * element, 0, size_t((column_end - column) * element));
  for (int64_t j = column; head.word_count && j < column_end; j += strip)
    finish_product(context, head, run.section.words, address, row, head.dims[1], j, smaller(strip, column_end - j));
}

template <class T, class A, class B>
void product_of(Context& context, const SectionRun& run) {
  const Section& head = *run.section.head;
  const Operand* const a = run.section.operands;
  context.operands = a, context.constants = run.section.constants;
  uint8_t* address[MAX_OPERANDS];
  std::copy(run.address, run.address + head.operand_count, address);
  if (is_grouped(*a))
    return each_group(context, run, address, [&](int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
      product_part<T, A, B>(context, run, address, row, row_end, column, column_end);
    });
  const MatmulCut cut = matmul_cut(head, a);
  for (int64_t unit = run.begin; unit < run.end;) {
    const int64_t piece = unit % cut.pieces, pieces = smaller(cut.pieces - piece, run.end - unit);
    int64_t row = 0, row_end = head.dims[1], column = 0, column_end = head.dims[0], step = unit / cut.pieces;
    std::copy(run.address, run.address + head.operand_count, address);
    if (cut.along == MatmulCut::ROWS) row = piece, row_end = piece + pieces;
    if (cut.along == MatmulCut::PANELS) column = piece * PANEL, column_end = smaller(column_end, (piece + pieces) * PANEL);
    for (int d = 2; d < head.rank; step /= head.dims[d++])
      for (int i = 0; i < head.operand_count; i++) address[i] += step % head.dims[d] * a[i].stride[d];
    product_part<T, A, B>(context, run, address, row, row_end, column, column_end);
    unit += pieces;
  }
}

template <class T, class A>
void product_with(Context& context, const SectionRun& run, DType b) {
  if constexpr (sizeof(T) == 4) {
    if (b == DType::INT8) return product_of<T, A, int8_t>(context, run);
    if (b == DType::UINT8) return product_of<T, A, uint8_t>(context, run);
  }
  product_of<T, A, T>(context, run);
}

// A matmul section whose compute dtype is not float32.
void run_product(Context& context, const SectionRun& run) {
  const DType a = DType(run.section.operands[0].dtype), b = DType(run.section.operands[1].dtype);
  switch (DType(run.section.head->dtype)) {
    case DType::FLOAT64: return product_with<double, double>(context, run, b);
    case DType::INT64:
    case DType::UINT64: return product_with<uint64_t, uint64_t>(context, run, b);
    default:
      if (a == DType::INT8) return product_with<uint32_t, int8_t>(context, run, b);
      if (a == DType::UINT8) return product_with<uint32_t, uint8_t>(context, run, b);
      return product_with<uint32_t, uint32_t>(context, run, b);
  }
}
