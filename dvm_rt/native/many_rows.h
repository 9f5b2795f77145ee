// Other ways to walk the rows of a vector section: the same words, the same bits, several rows at a time. Part of vector.cpp.
//
// Side by side: rows that lie across memory, next to one another (a reduction over an outer axis). A strip is one element of
// as many rows as it holds; lanes and row scalars are strips of those rows too, so memory streams along its contiguous axis.
// Together: rows of at most half a strip, in groups of as many as a vector has elements. The strip is cut into equal shares, one
// a row, and a pass goes from strip to strip of its group; row scalars are one vector with an element for each row, so that row
// words, folds among them, run once a group. A known pass (known_passes.h) over rows of whole vectors has a loop for that too.
// In groups: longer rows that are reduced. Passes go from row to row, and row words run once a group in the same way.
//
// Why the bits are the same. Each element sees the same operations; element j of a row meets element j + 64, j + 32, .. of
// its lanes in the same order. Lanes that no element reaches hold the identity, and every lane starts as f(identity,
// element), which is never -0 in a sum: folding such a lane with the identity changes nothing, so it can be left out.
#pragma once
#include "place_row.h"

namespace dvm::DVM_TARGET::DVM_DTYPE {
namespace {

// Has every word a handler in these tables?
bool words_fit(const SectionView& s, const Table& strip, const Table& row) {
  bool in_pass = false;
  for (int i = 0; i < s.head->word_count; i++) {
    const uint16_t op = s.words[i].op;
    if ((in_pass ? strip : row).handler[op] == illegal) return false;
    in_pass = op == OP_pass || (in_pass && op != OP_loop);
  }
  return true;
}

// ---- side by side -----------------------------------------------------------------------------------------------------
// `off` counts elements of a row; c->many.rows of the strip's rows are there.
constexpr int BESIDE = FULL * W;
FN long rows_left(const Context* c, int j) { return c->many.rows - j * W; }
FN const uint8_t* beside_place(const Context* c, int i, long off) { return c->ptr[i] + off * c->operands[i].stride[0]; }

template <class O> void beside_operand(ARGS) {
  const uint8_t* m = beside_place(c, p->a, off);
  if (c->outer[0].gain[p->a] == 0) {
    const V x = all(element(m));
    each<FULL>(EACH { a = O::of(a, x); }, ACC);
  } else {
    each<FULL>(EACH { a = O::of(a, loadPart((const E*)m + j * W, rows_left(c, j))); }, ACC);
  }
  NEXT;
}
template <class O> void beside_row(ARGS) {
  const E* m = (const E*)c->many.scalar[p->k];
  each<FULL>(EACH { a = O::of(a, load(m + j * W)); }, ACC);
  NEXT;
}
void beside_load(ARGS) {
  const uint8_t* m = beside_place(c, p->a, off);
  const int64_t gain = c->outer[0].gain[p->a], ahead = 8 * c->operands[p->a].stride[0];
  if (c->operands[p->a].dtype != DTYPE || gain == 0) {
    load_strided(c, c->operands[p->a].dtype, m, gain, int(c->many.rows));
    each<FULL>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  } else {
    each<FULL>(EACH {
      a = loadPart((const E*)m + j * W, rows_left(c, j));
      if (j * sizeof(V) % 64 == 0) __builtin_prefetch(m + ahead + j * sizeof(V));
    }, ACC);
  }
  NEXT;
}
void beside_store(ARGS) {
  uint8_t* m = (uint8_t*)beside_place(c, p->a, off);
  if (c->operands[p->a].dtype != DTYPE) {
    each<FULL>(EACH { store(c->convert + j * sizeof(V), a); }, ACC);
    store_strided(c, c->operands[p->a].dtype, m, c->outer[0].gain[p->a], int(c->many.rows));
    each<FULL>(EACH { a = load(c->convert + j * sizeof(V)); }, ACC);
  } else {
    each<FULL>(EACH { storePart((E*)m + j * W, canonicalNaN(a), rows_left(c, j)); }, ACC);
  }
  NEXT;
}
void beside_store_row(ARGS) {
  each<FULL>(EACH { store((E*)c->many.scalar[p->k] + j * W, a); }, ACC);
  NEXT;
}
template <class O> void beside_accumulate(ARGS) {
  E* m = (E*)c->many.lanes[p->a][off % LANE_COUNT];
  if (off < LANE_COUNT) each<FULL>(EACH { store(m + j * W, O::of(all(identity<O>), a)); }, ACC);
  else each<FULL>(EACH { store(m + j * W, O::of(load(m + j * W), a)); }, ACC);
  NEXT;
}
template <class O> void beside_running(ARGS) {
  E* m = (E*)c->many.running[p->a];
  if (off) each<FULL>(EACH { a = O::of(load(m + j * W), a); }, ACC);
  each<FULL>(EACH { store(m + j * W, a); }, ACC);
  NEXT;
}
template <class O> void beside_fold(ARGS) {
  const long count = c->row_bytes / long(sizeof(E));
  for (long half = LANE_COUNT / 2; half; half /= 2)
    for (long i = 0; i < half && i + half < count; i++) {
      E *m = (E*)c->many.lanes[p->a][i], *x = (E*)c->many.lanes[p->a][i + half];
      for (int j = 0; j < FULL; j++) store(m + j * W, O::of(load(m + j * W), load(x + j * W)));
    }
  const E* m = (const E*)c->many.lanes[p->a][0];
  each<FULL>(EACH { a = load(m + j * W); }, ACC);
  NEXT;
}
void beside_pass(ARGS) {
  off = 0, t = (const Table*)c->full;
  NEXT;
}
void beside_loop(ARGS) {
  if (++off < c->row_bytes / long(sizeof(E))) p -= p->k;
  else t = (const Table*)c->row;
  NEXT;
}
void no_hint(ARGS) { NEXT; }
void last_row(ARGS) {}

template <bool ROW> constexpr Table beside_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  if constexpr (!binary_strip<meaning::n>) { \
    h[OP_##n##_s] = binary<meaning::n, FORM_S, FULL, false>, h[OP_##n##_k] = binary<meaning::n, FORM_K, FULL, false>; \
    h[OP_##n##_i] = h[OP_##n##_b] = beside_operand<meaning::n>, h[OP_##n##_r] = beside_row<meaning::n>; \
  }
  DVM_ROWS_OF(BINARY)(X)
#undef X
#define X(n) h[OP_##n] = unary<meaning::n, FULL>;
  DVM_ROWS_OF(UNARY)(X)
#undef X
  h[OP_fetch] = no_hint;
  if (ROW) {
    h[OP_store_row] = beside_store_row, h[OP_store_per_row] = beside_store;
    h[OP_fold_sum] = beside_fold<meaning::add>, h[OP_fold_max] = beside_fold<meaning::max>;
    h[OP_fold_min] = beside_fold<meaning::min>, h[OP_fold_prod] = beside_fold<meaning::mul>;
    h[OP_pass] = beside_pass, h[OP_end_row] = last_row;
  } else {
    h[OP_load] = beside_load, h[OP_store_slot] = store_slot<FULL>;
    h[OP_store] = h[OP_store_nt] = h[OP_store_any] = h[OP_store_any_nt] = beside_store;
    h[OP_acc_sum] = beside_accumulate<meaning::add>, h[OP_acc_max] = beside_accumulate<meaning::max>;
    h[OP_acc_min] = beside_accumulate<meaning::min>, h[OP_acc_prod] = beside_accumulate<meaning::mul>;
    h[OP_run_sum] = beside_running<meaning::add>, h[OP_run_prod] = beside_running<meaning::mul>;
    h[OP_loop] = beside_loop;
  }
  return t;
}
constexpr Table BESIDE_STRIP = beside_table<false>(), BESIDE_ROW = beside_table<true>();

constexpr int64_t BESIDE_LEAST = 16;  // rows
bool are_beside(const SectionView& s) {
  if (!s.outers || s.outer[0].count < BESIDE_LEAST || s.head->dims[0] > BLOCK) return false;
  bool across = false;
  for (int i = 0; i < s.head->operand_count; i++) {
    const Operand& x = s.operands[i];
    const int64_t gain = s.outer[0].gain[i];
    const int64_t size = DTYPE_BYTES[x.dtype];
    if (gain != size && gain != 0) return false;
    if (x.arg == SCRATCH || x.arg == INDEX || x.mode & GATHER) return false;
    if (x.mode & WRITE && gain == 0) return false;
    across |= gain == size && x.stride[0] != size && x.stride[0] != 0;
  }
  return across && words_fit(s, BESIDE_STRIP, BESIDE_ROW);
}
void run_beside(Context& c, const SectionRun& run) {
  c.full = &BESIDE_STRIP, c.row = &BESIDE_ROW;
  for (int64_t row = run.begin, rows; row < run.end; row += rows) {
    rows = place_row(run, row, c.ptr);
    for (int64_t at = 0; at < rows; at += BESIDE) {
      c.many.rows = rows - at < BESIDE ? rows - at : BESIDE;
      enter(c, c.row, c.start);
      for (int i = 0; i < run.section.head->operand_count; i++) c.ptr[i] += BESIDE * c.outer[0].gain[i];
    }
  }
}

// ---- together ---------------------------------------------------------------------------------------------------------
// SHARE vectors a row, of which the last one holds c->many.rest elements; the others are full. `off` counts rows of the group.
template <int SHARE> constexpr int MEMBERS = FULL / SHARE < W ? FULL / SHARE : W;  // rows
template <int SHARE> FN bool is_there(int j) { return j < MEMBERS<SHARE> * SHARE; }
template <int SHARE> FN bool is_last(int j) { return j % SHARE == SHARE - 1; }
// Where the strip's vectors stand in an operand; what does not change from vector to vector is taken once, before any is stored.
template <int SHARE> struct Members {
  const uint8_t* first;
  int64_t gain;
  FN Members(const Context* c, int i, long off) : first(c->ptr[i] + off * c->many.gain[i]), gain(c->many.gain[i]) {}
  FN E* operator[](int j) const { return (E*)(first + j / SHARE * gain + j % SHARE * sizeof(V)); }
};

template <class O, int SHARE> void together_operand(ARGS) {
  const long rest = c->many.rest;
  const Members<SHARE> m(c, p->a, off);
  each<FULL>(EACH {
    if (is_there<SHARE>(j)) a = O::of(a, is_last<SHARE>(j) ? loadPart(m[j], rest) : load(m[j]));
  }, ACC);
  NEXT;
}
template <int SHARE> void together_mov(ARGS) {
  if (!is_product_added(p)) CONTINUE((together_operand<meaning::mov, SHARE>));
  const long rest = c->many.rest;
  auto input = [&](int i, int j) __attribute__((always_inline)) {
    const E* m = Members<SHARE>(c, i, off)[j];
    return !is_there<SHARE>(j) ? V{} : is_last<SHARE>(j) ? loadPart(m, rest) : load(m);
  };
  auto factor = [&](int i, int j) __attribute__((always_inline)) {
    return is_there<SHARE>(j) ? all(element(c->ptr[i] + (off + j / SHARE) * c->many.gain[i])) : V{};
  };
  p = add_products<FULL>(p, c, input, factor, ACC);
  NEXT;
}
template <int SHARE> void together_load(ARGS) {
  const int64_t stride = c->operands[p->a].stride[0], gain = c->many.gain[p->a];
  const uint8_t* m = c->ptr[p->a] + off * gain;
  const long rest = c->many.rest;
  each<FULL>(EACH {
    if (is_there<SHARE>(j)) a = load_apart(m + j / SHARE * gain + j % SHARE * W * stride, stride, is_last<SHARE>(j) ? rest : W);
  }, ACC);
  NEXT;
}
template <class O, Form FORM, int SHARE> void together_scalar(ARGS) {  // one element a row
  const uint8_t* m = FORM == FORM_R ? c->many.scalar[p->k] : c->ptr[p->a];
  const int64_t gain = FORM == FORM_R ? int64_t(sizeof(E)) : c->many.gain[p->a];
  m += off * gain;
  each<FULL>(EACH { if (is_there<SHARE>(j)) a = O::of(a, all(element(m + j / SHARE * gain))); }, ACC);
  NEXT;
}
template <class O, Form FORM> void together_in_row(ARGS) {
  V x;
  if constexpr (FORM == FORM_R) {
    x = load(c->many.scalar[p->k]);
  } else if (const int64_t gain = c->many.gain[p->a]; gain == sizeof(E)) {
    x = loadPart((const E*)c->ptr[p->a], c->many.group);
  } else {
    alignas(64) E each_row[W] = {};
    for (int64_t r = 0; r < c->many.group; r++) each_row[r] = element(c->ptr[p->a] + r * gain);
    x = load(each_row);
  }
  a0 = O::of(a0, x);
  NEXT;
}
template <bool STREAM, int SHARE> void together_store(ARGS) {
  const long rest = c->many.rest;
  const Members<SHARE> m(c, p->a, off);
  if (STREAM && c->many.whole && !(((uintptr_t)c->ptr[p->a] | (uintptr_t)c->many.gain[p->a]) & (sizeof(V) - 1)))
    each<FULL>(EACH { stream(m[j], canonicalNaN(a)); }, ACC);
  else
    each<FULL>(EACH {
      if (!is_there<SHARE>(j)) return;
      if (is_last<SHARE>(j)) storePart(m[j], canonicalNaN(a), rest);
      else store(m[j], canonicalNaN(a));
    }, ACC);
  NEXT;
}
void together_store_row(ARGS) {
  store(c->many.scalar[p->k], a0);
  NEXT;
}
void together_store_per_row(ARGS) {
  const int64_t gain = c->many.gain[p->a];
  if (gain == sizeof(E)) {
    storePart((E*)c->ptr[p->a], canonicalNaN(a0), c->many.group);
    NEXT;
  }
  alignas(64) E each_row[W];
  store(each_row, canonicalNaN(a0));
  for (int64_t r = 0; r < c->many.group; r++) memcpy(c->ptr[p->a] + r * gain, &each_row[r], sizeof(E));
  NEXT;
}
// Of each 2 H lanes of a and b the first H, or the last.
template <int H, bool LAST> FN V halves(V a, V b) {
  Vi from;
#pragma GCC unroll 16
  for (int l = 0; l < W; l++) from[l] = (l < W / 2 ? 0 : W) + l % (W / 2) / H * 2 * H + l % H + LAST * H;
  return __builtin_shuffle(a, b, from);
}
// v[r] holds row r of ROWS: folded W / 2, W / 4, .. 1 apart, two rows in one vector each time. Row r's total in lane r.
template <class F, int ROWS> FN V total_of_rows(V* v) {
  auto pairs = [&]<int H>() __attribute__((always_inline)) {
    constexpr int PAIRS = ROWS * H / W, OTHER = PAIRS > 0;  // where one vector is left its halves meet, twice
#pragma GCC unroll 8
    for (int i = 0; i < PAIRS + !OTHER; i++)
      v[i] = F::of(halves<H, false>(v[2 * i], v[2 * i + OTHER]), halves<H, true>(v[2 * i], v[2 * i + OTHER]));
  };
  if constexpr (W >= 16) pairs.template operator()<8>();
  if constexpr (W >= 8) pairs.template operator()<4>();
  if constexpr (W >= 4) pairs.template operator()<2>();
  pairs.template operator()<1>();
  return v[0];
}
template <class O, int SHARE> void together_accumulate(ARGS) {
  using F = FoldOf<O>;
  const long rest = c->many.rest;
  V v[FULL];
  each<FULL>(EACH { v[j] = F::in(is_last<SHARE>(j) ? keepPart(a, all(identity<O>), rest) : a); }, ACC);
  V* row = (V*)c->many.folded[p->a] + off;
#pragma GCC unroll 8
  for (int r = 0; r < MEMBERS<SHARE>; r++) row[r] = total_of_vectors<F, SHARE>(v + r * SHARE);
  NEXT;
}
template <class O, int ROWS> FN V together_folded(const uint8_t* folded) {  // rows beyond the group's: whatever there was
  using F = FoldOf<O>;
  V v[ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; r++) v[r] = load(folded + r * sizeof(V));
  return F::out(total_of_rows<F, ROWS>(v));
}
template <class O> void together_fold(ARGS) {
  constexpr int FEW = W < 4 ? W : 4;
  const uint8_t* folded = c->many.folded[p->a];
  a0 = c->many.group <= FEW ? together_folded<O, FEW>(folded) : together_folded<O, W>(folded);
  NEXT;
}
void together_words(ARGS) {
  off = 0, t = (const Table*)c->full;
  NEXT;
}
void together_known(ARGS) {
  p = ((const RowLoops*)c->many.loops)->of[p->a](c, p);
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};
  NEXT;
}
void together_pass(ARGS) {
  if (((const RowLoops*)c->many.loops)->of[p->a]) CONTINUE(together_known);
  CONTINUE(together_words);
}
void together_loop(ARGS) {
  if ((off += c->many.rows) < c->many.group) p -= p->k;
  else t = (const Table*)c->row;
  NEXT;
}
void together_fetch(ARGS) {
  const int64_t gain = c->many.gain[p->a];
  const uint8_t* m = c->ptr[p->a] + (off + c->many.group) * gain;
  for (int64_t r = 0; r < c->many.rows; r++, m += gain)
    for (long j = 0; j < c->row_bytes; j += 64) __builtin_prefetch(m + j);
  NEXT;
}
void together_end_row(ARGS) {
  if (!(c->left[0] -= c->many.group)) return;
  for (int i = 0; i < MAX_OPERANDS; i++) c->ptr[i] += c->many.step[i];
  c->many.group = c->left[0] < c->many.group_most ? c->left[0] : c->many.group_most;
  p = c->start - 1;
  NEXT;
}
void together_end(ARGS) {  // of an epilogue's words: one strip is all there is of a row
  if (!(c->left[0] -= c->many.rows)) return;
  for (int i = 0; i < MAX_OPERANDS; i++) c->ptr[i] += c->many.step[i];
  p = c->start - 1;
  NEXT;
}

template <int SHARE> constexpr Table together_strip_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  if constexpr (!binary_strip<meaning::n>) { \
    h[OP_##n##_s] = binary<meaning::n, FORM_S, FULL, false>, h[OP_##n##_k] = binary<meaning::n, FORM_K, FULL, false>; \
    h[OP_##n##_i] = together_operand<meaning::n, SHARE>; \
    h[OP_##n##_r] = together_scalar<meaning::n, FORM_R, SHARE>, h[OP_##n##_b] = together_scalar<meaning::n, FORM_B, SHARE>; \
  }
  DVM_ROWS_OF(BINARY)(X)
#undef X
#define X(n) h[OP_##n] = unary<meaning::n, FULL>;
  DVM_ROWS_OF(UNARY)(X)
#undef X
  h[OP_mov_i] = together_mov<SHARE>, h[OP_load] = together_load<SHARE>, h[OP_end] = together_end;
  h[OP_fetch] = together_fetch, h[OP_store_slot] = store_slot<FULL>, h[OP_loop] = together_loop;
  h[OP_store] = together_store<false, SHARE>, h[OP_store_nt] = together_store<true, SHARE>;
  h[OP_acc_sum] = together_accumulate<meaning::add, SHARE>, h[OP_acc_max] = together_accumulate<meaning::max, SHARE>;
  h[OP_acc_min] = together_accumulate<meaning::min, SHARE>, h[OP_acc_prod] = together_accumulate<meaning::mul, SHARE>;
  return t;
}
template <Handler PASS> constexpr Table together_row_table() {
  Table t = nothing();
  Handler* h = t.handler;
#define X(n) \
  if constexpr (!binary_strip<meaning::n>) { \
    h[OP_##n##_k] = binary<meaning::n, FORM_K, 1, false>; \
    h[OP_##n##_r] = together_in_row<meaning::n, FORM_R>, h[OP_##n##_b] = together_in_row<meaning::n, FORM_B>; \
  }
  DVM_ROWS_OF(BINARY)(X)
#undef X
#define X(n) h[OP_##n] = unary<meaning::n, 1>;
  DVM_ROWS_OF(UNARY)(X)
#undef X
  h[OP_fetch] = no_hint, h[OP_store_row] = together_store_row, h[OP_store_per_row] = together_store_per_row;
  h[OP_fold_sum] = together_fold<meaning::add>, h[OP_fold_max] = together_fold<meaning::max>;
  h[OP_fold_min] = together_fold<meaning::min>, h[OP_fold_prod] = together_fold<meaning::mul>;
  h[OP_pass] = PASS, h[OP_end_row] = together_end_row;
  return t;
}
constexpr Table TOGETHER_1 = together_strip_table<1>(), TOGETHER_2 = together_strip_table<2>(),
                TOGETHER_3 = together_strip_table<3>(), TOGETHER_4 = together_strip_table<4>(),
                TOGETHER_ROW = together_row_table<together_pass>();

constexpr int64_t TOGETHER_LEAST = 8;  // rows
constexpr int64_t TOGETHER_VECTORS = 4;  // of a row
bool go_together(const SectionView& s) {
  if (!s.outers || s.outer[0].count < TOGETHER_LEAST || s.head->dims[0] > TOGETHER_VECTORS * W) return false;
  for (int i = 0; i < s.head->operand_count; i++) {
    const Operand& x = s.operands[i];
    if (x.arg == INDEX || x.mode & GATHER || x.dtype != DTYPE || (x.arg == SCRATCH && x.stride[0] != sizeof(E))) return false;
  }
  return words_fit(s, TOGETHER_1, TOGETHER_ROW);
}
void walk_alone(Context& c, const SectionRun& run, int64_t begin, int64_t end);  // row by row

constexpr const Table* TOGETHER[] = {&TOGETHER_1, &TOGETHER_2, &TOGETHER_3, &TOGETHER_4};
int share_of_row(long count) { return int((count + W - 1) / W); }  // vectors
int members_of_strip(int share) { return FULL / share < W ? FULL / share : W; }
void set_members(ManyRows& many, long count) {
  const int share = share_of_row(count), rows = members_of_strip(share);
  many.rows = rows, many.rest = count - (share - 1) * W, many.whole = count == share * W && rows * share == FULL;
  many.loops = &ROW_LOOPS[count == share * W ? share : 0];
  for (int64_t& step : many.step) step = 0;
}

void run_together(Context& c, const SectionRun& run) {
  const Section& head = *run.section.head;
  const long count = head.dims[0];
  const int share = share_of_row(count), rows = members_of_strip(share);
  set_members(c.many, count);
  for (int64_t row = run.begin, here; row < run.end; row += here) {
    here = place_row(run, row, c.ptr);
    const int64_t most = here / rows * rows;
    if (most) {
      for (int i = 0; i < head.operand_count; i++) {
        c.many.gain[i] = c.outer[0].gain[i], c.many.step[i] = W * c.outer[0].gain[i];
        if (run.section.operands[i].arg != SCRATCH) continue;
        c.ptr[i] = c.many.buffer[i], c.many.gain[i] = share * sizeof(V), c.many.step[i] = 0;
      }
      c.many.group_most = W, c.many.group = most < W ? most : W;
      c.full = TOGETHER[share - 1], c.row = &TOGETHER_ROW, c.left[0] = most;
      enter(c, c.row, c.start);
    }
    if (most < here) walk_alone(c, run, row + most, row + here);
  }
}

// ---- in groups --------------------------------------------------------------------------------------------------------
// Rows of at least a strip that are reduced, a few at a time: a pass goes from row to row, then the row words run once for all of
// them. No row waits for the sum of the one before.
constexpr int64_t GROUP_BYTES = 32 << 10;  // of all operands: what stays in L1 from pass to pass

// The pass over each row of the group as over one alone, by its words where it has no loop.
const Word* pass_of_rows(Context* c, const Word* pass) {
  const Word* loop = pass;
  while (loop->op != OP_loop) loop++;
  uint8_t* first[MAX_OPERANDS];
  memcpy(first, c->ptr, sizeof first);
  for (int64_t r = 0; r < c->many.group; r++) {
    for (int64_t k = 0; k < c->many.scalars; k++) memcpy(c->row_scalar[k], c->many.scalar[k] + r * sizeof(E), sizeof(E));
    const V z{};
    known_pass<false>(z, z, z, z, z, z, z, z, pass, c, 0, &STOP);
    for (uint32_t left = loop->a; left; left &= left - 1) {
      const int reduction = __builtin_ctz(left);
      store(c->many.folded[reduction] + r * sizeof(V), folded_row(c, reduction));
    }
    for (int i = 0; i < MAX_OPERANDS; i++) c->ptr[i] += c->many.gain[i];
  }
  memcpy(c->ptr, first, sizeof first);
  return loop;
}
void group_pass(ARGS) {
  const PassLoop loop = LOOPS<Over::GROUP>.of[p->a][way_of_pass(c, p, c->many.gain)];
  p = loop && c->row_bytes % STRIP_BYTES == 0 ? loop(c, p, c->row_bytes) : pass_of_rows(c, p);
  a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = V{};
  NEXT;
}
constexpr Table GROUP_ROW = together_row_table<group_pass>();

// Rows of a group; 0: they go one by one. So they do where rows come from beyond L2, which pays least when it is asked for evenly:
// in groups, softmax of 512x768 takes 124 us instead of 119.
int64_t rows_of_group(const SectionView& s) {
  if (!s.outers || s.head->dims[0] < FULL * W || s.head->dims[0] > BLOCK || !reduces(s)) return 0;
  int64_t bytes = 0;  // of a row, of all operands
  for (int i = 0; i < s.head->operand_count; i++) {
    const Operand& x = s.operands[i];
    const bool buffer = x.arg == SCRATCH;
    if (x.mode & GATHER || (buffer && x.stride[0] != sizeof(E))) return 0;
    if (x.stride[0] && (buffer || s.outer[0].gain[i])) bytes += s.head->dims[0] * DTYPE_BYTES[x.dtype];
  }
  for (int i = 0; i < s.head->word_count; i++)
    if (s.words[i].op == OP_fetch || (s.words[i].op == OP_store_per_row && s.operands[s.words[i].a].dtype != DTYPE)) return 0;
  int64_t rows = bytes ? GROUP_BYTES / bytes : W;
  if (rows > W) rows = W;
  if (rows > s.outer[0].count) rows = s.outer[0].count;
  return rows > 1 && words_fit(s, Tables<MIDDLE>::full, GROUP_ROW) ? rows : 0;
}
void run_in_groups(Context& c, const SectionRun& run, int64_t rows) {
  const SectionView& s = run.section;
  if (c.lanes_dtype != DTYPE) take_lanes(c);
  choose_tables<MIDDLE>(c);
  c.row = &STOP, c.many.scalars = 0;
  for (int i = 0; i < s.head->word_count; i++)
    if (s.words[i].op == OP_store_row && int64_t(s.words[i].k) >= c.many.scalars) c.many.scalars = s.words[i].k + 1;
  memset(c.many.gain, 0, sizeof c.many.gain), memset(c.many.step, 0, sizeof c.many.step);
  for (int64_t row = run.begin, here; row < run.end; row += here) {
    here = place_row(run, row, c.ptr);
    uint8_t* buffer = c.many.buffer[0];
    for (int i = 0; i < s.head->operand_count; i++) {
      c.many.gain[i] = s.outer[0].gain[i], c.many.step[i] = rows * c.many.gain[i];
      if (s.operands[i].arg != SCRATCH) continue;
      c.ptr[i] = buffer, c.many.gain[i] = c.row_bytes, c.many.step[i] = 0, buffer += rows * c.row_bytes;
    }
    c.many.group_most = rows, c.many.group = here < rows ? here : rows, c.left[0] = here;
    enter(c, &GROUP_ROW, c.start);
  }
}

// Runs the section if one of these ways is for it.
bool run_many_rows(Context& c, const SectionRun& run) {
  const SectionView& s = run.section;
  if (are_beside(s)) run_beside(c, run);
  else if (go_together(s)) run_together(c, run);
  else if (const int64_t rows = rows_of_group(s)) run_in_groups(c, run, rows);
  else return false;
  return true;
}
}  // namespace
}  // namespace dvm::DVM_TARGET::DVM_DTYPE
