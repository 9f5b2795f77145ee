// The shadow machine: walks a program element by element and asks of every access what the verifier has promised.
//
// Written from the manual, not from the verifier: it follows addresses, initialisation, permissions, aliasing and work as
// they happen, on small programs only. It computes no values: gathered rows are read from the arguments before the run,
// or tried at both ends where the program itself has written them.
#pragma once
#include <algorithm>
#include <cstring>
#include <string>
#include <vector>
#include "known_passes.h"
#include "program.h"

namespace fuzz {
using namespace dvm;

inline bool named(const Word& w, Row row) { return OPS[w.op].row == row; }

class Shadow {
 public:
  // `content[i]`: bytes of argument i before the run. `way` 0 takes the branches that the machine will take, as far as flags
  // are known before the run; others throw the dice.
  void load(const VerifiedProgram& program, const std::vector<std::vector<uint8_t>>& content, uint64_t way) {
    program_ = &program, content_ = content.data(), way_ = way, dice_ = 5 + way * 0x9E3779B97F4A7C15;
    count_ = program.head().arg_count;
    if (places_.size() < count_ + 2) places_.resize(count_ + 2);
    for (size_t i = 0; i < count_; i++) {
      const ProgramArg& a = program.args()[i];
      places_[i].open(a.bytes, a.mode, a.align, a.dtype, !(a.mode & WRITE) || a.mode & ZERO_FILL);
    }
    workspace().open(program.head().workspace_bytes, READ | WRITE, ARENA_ALIGN, -1, program.zero_workspace());
    trapped = false, values_known = true, work_ = 0, number_ = 0, word_ = 0, why_.clear();
  }

  // Why the program breaks a promise, or "" if it does not.
  const std::string& run() {
    try {
      const ProgramHead& head = program_->head();
      need(head.magic == PROGRAM_MAGIC && head.version == VERSION && head.table_hash == TABLE_HASH, "head");
      need(!head.reserved0 && !head.reserved1 && head.arg_count <= MAX_ARGS, "head");
      for (int i = 0; i < head.arg_count; i++) {
        const ProgramArg& a = program_->args()[i];
        need(!a.reserved && !(a.mode & ~(READ | WRITE | ZERO_FILL)) && a.align && !(a.align & (a.align - 1)) && a.align <= 64, "argument");
      }
      const std::span<const SectionView> sections = program_->sections();
      nesting(sections);
      times_.assign(sections.size(), 0);
      for (size_t next = 0, steps = 0; next < sections.size() && !trapped; steps++) {
        const SectionView& section = sections[next];
        number_ = int(next);
        begin(section);
        if (is_control(SectionKind(section.head->kind))) {
          next = following(section, next);
          if (steps > STEPS_MAX) trapped = true, values_known = false;  // enough of this loop
          continue;
        }
        next++;
        switch (SectionKind(section.head->kind)) {
          case SectionKind::VECTOR: vector(); break;
          case SectionKind::MATMUL: matmul(); break;
          case SectionKind::PACK: pack(); break;
          case SectionKind::HOST: host(); break;
          case SectionKind::COPY: copy(); break;
          case SectionKind::ATTENTION: attention(); break;
          default: break;
        }
      }
      if (work_ > program_->head().fuel) fail("more work than fuel");
      for (int i = 0; !trapped && i < program_->head().arg_count; i++)
        if (!places_[i].all_known()) fail("an output keeps old bytes");
    } catch (const std::string& why) {
      why_ = why;
    }
    return why_;
  }
  bool trapped = false, values_known = true;

 private:
  static constexpr size_t STEPS_MAX = 2000;
  // What may be skipped are regions, loops are spans: any two are nested or disjoint, and a loop is whole inside of a region.
  void nesting(std::span<const SectionView> sections) {
    spans_.clear();
    for (size_t i = 0; i < sections.size(); i++) {
      const Section& head = *sections[i].head;
      if (!is_control(SectionKind(head.kind))) continue;
      const bool loop = SectionKind(head.kind) == SectionKind::LOOP;
      const int64_t at = int64_t(i), first = loop ? at - head.depth : at + 1, last = loop ? at : at + head.depth;
      need(head.depth >= 0 && first >= 0 && last < int64_t(sections.size()), "a jump to nowhere");
      if (first <= last) spans_.push_back({first, last, loop});
      need(head.rank == 1 && (loop || head.dims[0] == 1) && !head.word_count, "control section");
      const bool needs_flag = SectionKind(head.kind) == SectionKind::BRANCH, may = SectionKind(head.kind) != SectionKind::JUMP;
      need(head.operand_count >= needs_flag && head.operand_count <= may, "number of flags");
    }
    for (const Span& a : spans_)
      for (const Span& b : spans_) {
        const bool apart = a.last < b.first || b.last < a.first, inside = a.first >= b.first && a.last <= b.last;
        const bool around = b.first >= a.first && b.last <= a.last;
        need(apart || inside || around, "spans that overlap");
        const bool cut = a.loop && !b.loop && (a.first >= b.first && a.first <= b.last) != (a.last >= b.first && a.last <= b.last);
        need(!cut, "a loop across the end of a region");
      }
  }
  struct Span {
    int64_t first, last;
    bool loop;
  };
  std::vector<Span> spans_;
  // What the verifier says of a program holds on every way through it: flags are thrown.
  size_t following(const SectionView& section, size_t number) {
    const Section& head = *section.head;
    bool set = false;
    if (head.operand_count) {
      const Operand& x = section.operands[0];
      Place& p = place(x);
      need(x.mode == READ && x.dtype == uint8_t(DType::BOOL) && p.mode & READ && x.base >= 0 && x.base < p.bytes, "flag");
      need((p.dtype < 0 || p.dtype == x.dtype) && !x.stride[0], "flag");
      need(p.known[size_t(x.base)], "a flag of old bytes");
      if (!way_ && x.arg < count_ && !(p.mode & WRITE)) set = content_[x.arg][size_t(x.base)];
      else values_known = false, dice_ = dice_ * 6364136223846793005 + 1442695040888963407, set = dice_ >> 40 & 1;
    }
    if (SectionKind(head.kind) != SectionKind::LOOP) return number + 1 + (set ? 0 : size_t(head.depth));
    if (++times_[number] < head.dims[0] && (set || !head.operand_count)) return number - size_t(head.depth);
    times_[number] = 0, trapped |= set;
    return number + 1;
  }
  std::vector<int64_t> times_;
  uint64_t way_ = 0, dice_ = 5;
  static constexpr uint32_t NOBODY = 0, MANY = ~0u;
  static constexpr uint8_t FLOAT32 = uint8_t(DType::FLOAT32);
  struct Place {  // one argument, the workspace or the scratch
    int64_t bytes = 0, align = 1;
    int mode = 0, dtype = -1;
    std::vector<uint8_t> known;            // per byte: holds something of this run
    std::vector<uint32_t> writer, reader;  // per byte, of this section: element that wrote, that read
    bool stored = false;                   // some section wrote here
    void open(uint64_t n, int m, int64_t a, int d, bool k) {
      bytes = int64_t(n), mode = m, align = a, dtype = d, stored = false;
      known.assign(n, k);
    }
    bool all_known() const { return std::find(known.begin(), known.end(), 0) == known.end(); }
  };

  [[noreturn]] void fail(const char* what) {
    throw std::string(what) + ", section " + std::to_string(number_ - 1) + " word " + std::to_string(word_);
  }
  void need(bool good, const char* what) {
    if (!good) fail(what);
  }
  Place& workspace() { return places_[count_]; }
  Place& scratch() { return places_[count_ + 1]; }
  Place& place(const Operand& x) {
    if (x.arg == SCRATCH) return scratch();
    if (x.arg == WORKSPACE) return workspace();
    need(x.arg < program_->head().arg_count, "no such argument");
    return places_[x.arg];
  }

  void begin(const SectionView& section) {
    s_ = &section, number_++, word_ = 0;
    const Section& head = *section.head;
    const SectionKind kind = SectionKind(head.kind);
    const bool vector = kind == SectionKind::VECTOR, copies = kind == SectionKind::COPY, host = kind == SectionKind::HOST,
               attends = kind == SectionKind::ATTENTION;
    need(head.kind <= uint16_t(SectionKind::LOOP) && !head.reserved, "section head");
    need(head.dtype == uint8_t(DType::FLOAT32) || ((vector || kind == SectionKind::MATMUL) && is_compute_dtype(head.dtype)), "compute dtype");
    need(!head.constant_count || element_bytes() == 8, "constants");
    need(head.operand_count <= MAX_OPERANDS && head.word_count <= MAX_WORDS, "section counts");
    need(head.rank >= 1 && head.rank <= MAX_RANK && (vector || copies ? head.depth == 0 : head.depth >= !is_control(kind)), "rank or depth");
    for (int d = 0; d < MAX_RANK; d++) need(head.dims[d] >= 1 && (d < head.rank || head.dims[d] == 1), "dims");
    for (int i = 0; i < head.operand_count; i++) {
      const Operand& x = section.operands[i];
      const bool windows = kind == SectionKind::MATMUL && i == 1 && x.mode == (READ | WINDOWS);
      need(x.dtype < sizeof DTYPE_BYTES && !x.reserved && x.mode & (READ | WRITE) && (x.mode < 16 || windows), "operand");
      const bool grouped = kind == SectionKind::MATMUL && i == 0 && x.index == 3;
      need(x.mode & GATHER || windows ? x.limit >= 1 : (x.limit == 0 || (attends && i < 3)) && (x.index == NONE || grouped), "index or limit without gather");
      for (int d = host ? int(x.depth) : head.rank; d < (windows ? 5 : MAX_RANK); d++) need(x.stride[d] == 0, "stride of an unused dimension");
      if (vector || copies) need(!x.depth || x.mode & GATHER, "depth");
      if (x.mode & GATHER) need(x.index < head.operand_count && section.operands[x.index].arg != INDEX, "an index without memory");
      if (x.mode & PACKED) need(!vector && i == 1 && !x.depth && !x.stride[0] && !x.stride[1], "packed");
      if (SectionKind(head.kind) == SectionKind::PACK && i == 1) need(x.mode & PACKED, "destination of a pack");
      if (x.arg == SCRATCH) need(vector && x.stride[0] == element_bytes() && x.dtype == head.dtype, "row buffer");
      if (x.arg == INDEX) need(vector && x.mode == READ && !x.depth && x.dtype == uint8_t(DType::INT64), "index operand");
      for (int d = 1; x.arg == SCRATCH && d < MAX_RANK; d++) need(x.stride[d] == 0, "row buffer");
    }
    need(section.head->scratch_bytes <= program_->head().scratch_bytes, "more scratch than the head claims");
    scratch().open(section.head->scratch_bytes, READ | WRITE, ARENA_ALIGN, head.dtype, false);
    for (Place& p : places_) p.writer.clear(), p.reader.clear();
    for (int i = 0; i < section.head->operand_count; i++) {
      const Operand& x = section.operands[i];
      if (!(x.mode & WRITE)) continue;
      Place& p = place(x);
      p.writer.assign(p.bytes, NOBODY), p.reader.assign(p.bytes, NOBODY);
    }
    work_++;
  }

  // Whole arrays. The function's bytes are not known here: fuzz.cpp has a stand-in of its own.
  void host() {
    const Section& head = *s_->head;
    need(head.rank == 1 && head.operand_count >= 1 && head.depth <= int64_t(std::size(HostFunction_NAMES)), "host section");
    __int128 total = 0;
    for (int i = 0; i < head.operand_count; i++) {
      const Operand& x = s_->operands[i];
      const int how = i == head.operand_count - 1 ? WRITE : READ;
      need(x.mode == how && x.depth >= 0 && x.depth <= MAX_RANK, "host operand");
      __int128 elements = 1;
      for (int d = 0; d < x.depth; d++) need(x.stride[d] >= 0, "host dimension"), elements = std::min<__int128>(elements * x.stride[d], __int128(1) << 62);
      for (int d = 0; d < x.depth; d++) elements = x.stride[d] ? elements : 0;
      total += elements;
      need(total <= head.dims[0], "more elements than the section says");
      need(elements || !x.base, "a place of nothing");
      if (elements) touch(i, x.base, int64_t(elements) * DTYPE_BYTES[x.dtype], how, how == READ ? MANY : 1);
    }
    work_ += (head.dims[0] + 15) / 16;
  }
  void copy() {
    const Section& head = *s_->head;
    const bool scatters = head.operand_count == 3;
    need((scatters || head.operand_count == 2) && !head.word_count, "copy section");
    need(s_->operands[0].mode == READ && s_->operands[1].mode == (scatters ? WRITE | GATHER : WRITE) && s_->operands[0].dtype == s_->operands[1].dtype, "copy operands");
    __int128 shift = 0;
    if (scatters) {  // to any row: the dice say which
      const Operand &target = s_->operands[1], &named = s_->operands[2];
      need(named.mode == READ && target.index == 2 && (named.dtype == uint8_t(DType::INT32) || named.dtype == uint8_t(DType::INT64)), "row of a copy");
      for (int d = 0; d < MAX_RANK; d++) need(!named.stride[d], "row of a copy");
      touch(2, named.base, DTYPE_BYTES[named.dtype], READ, MANY);
      values_known = false, dice_ = dice_ * 6364136223846793005 + 1442695040888963407;
      shift = __int128(int64_t(dice_ >> 1) % target.limit) * target.depth;
    }
    int64_t index[MAX_RANK] = {};
    for (uint32_t id = 1;; id++) {
      for (int i = 0; i < 2; i++) {
        __int128 at = s_->operands[i].base + (i ? shift : 0);
        for (int d = 0; d < head.rank; d++) at += __int128(index[d]) * s_->operands[i].stride[d];
        touch(i, at, DTYPE_BYTES[s_->operands[i].dtype], i ? WRITE : READ, id);
      }
      int d = 0;
      while (d < head.rank && ++index[d] == head.dims[d]) index[d++] = 0;
      if (d == head.rank) {
        work_ += (id + 15) / 16;
        return;
      }
    }
  }

  // One element of operand i at byte `at`, for the element `id` (1..) of the section's domain.
  void touch(int i, __int128 at, int64_t size, int how, uint32_t id) {
    const Operand& x = s_->operands[i];
    need(x.arg != INDEX, "an index operand has no memory");
    Place& p = place(x);
    need(at >= 0 && at + size <= p.bytes, "outside its argument");
    need(x.dtype < sizeof DTYPE_BYTES && (p.dtype < 0 || p.dtype == x.dtype), "dtype of its argument");
    need(at % DTYPE_BYTES[x.dtype] == 0 && p.align >= DTYPE_BYTES[x.dtype], "not aligned");
    need((x.mode & how) == how && (p.mode & how) == how, how == READ ? "read without permission" : "written without permission");
    const bool tracked = !p.writer.empty();
    if (how == READ) {
      for (int64_t b = int64_t(at); b < int64_t(at) + size; b++) {
        need(p.known[b], "read before written");
        if (!tracked || x.arg == SCRATCH) continue;
        need(p.writer[b] == NOBODY || p.writer[b] == id, "reads what another element writes");
        p.reader[b] = p.reader[b] == NOBODY || p.reader[b] == id ? id : MANY;
      }
      return;
    }
    need(tracked, "written without permission");
    p.stored = true;
    for (int64_t b = int64_t(at); b < int64_t(at) + size; b++) {
      p.known[b] = 1;
      if (x.arg == SCRATCH) {  // a row buffer: no two operands, no two elements of a row
        need(p.writer[b] == NOBODY || p.writer[b] == id, "two row buffers overlap");
      } else {
        need(p.writer[b] == NOBODY || p.writer[b] == id, "two elements write one place");
        need(p.reader[b] == NOBODY || p.reader[b] == id, "writes what another element reads");
      }
      p.writer[b] = id;
    }
  }
  void strip(int i, int how, int64_t stride) {  // a whole row
    const Operand& x = s_->operands[i];
    for (int64_t j = 0; j < s_->head->dims[0]; j++)
      touch(i, row_at_[i] + __int128(j) * stride, DTYPE_BYTES[x.dtype], how, element(stride ? j : 0));
  }
  int64_t element_bytes() const { return DTYPE_BYTES[s_->head->dtype]; }
  uint32_t element(int64_t j) const { return uint32_t(row_ * s_->head->dims[0] + j + 1); }

  // ---- words over one row ----
  struct State {
    bool in_pass = false, acc = false;
    uint32_t slots = 0, rows = 0, gathered = 0, open = 0, running = 0;
  };
  void gathered(int i, State& st) {
    const Operand& x = s_->operands[i];
    need(x.mode & GATHER && x.index < s_->head->operand_count, "gather without an index");
    const Operand& index = s_->operands[x.index];
    need(index.arg != INDEX && (index.dtype == uint8_t(DType::INT32) || index.dtype == uint8_t(DType::INT64)), "dtype of an index");
    need(!(index.mode & GATHER) && index.stride[0] == 0, "an index that is no plain element a row");
    const int64_t size = DTYPE_BYTES[index.dtype];
    touch(x.index, row_at_[x.index], size, READ, element(0));
    st.gathered |= 1u << i;
    if (index.arg < count_ && !place(index).stored && !(place(index).mode & WRITE)) {
      int64_t at = 0;
      int32_t narrow;
      memcpy(size == 8 ? (void*)&at : (void*)&narrow, content_[index.arg].data() + int64_t(row_at_[x.index]), size);
      if (size == 4) at = narrow;
      if (at < -x.limit || at >= x.limit) trapped = true;
      else row_at_[i] = row_start_[i] + __int128(at < 0 ? at + x.limit : at) * x.depth;
    } else {  // not known: either end
      values_known = false;
      row_at_[i] = row_start_[i] + (row_ & 1 ? __int128(x.limit - 1) * x.depth : 0);
    }
  }
  void numbers(int i) {  // what iota makes of an index operand fits in 49 bits
    const Operand& x = s_->operands[i];
    need(x.arg == INDEX, "iota of memory");
    const __int128 first = row_at_[i], last = first + __int128(s_->head->dims[0] - 1) * x.stride[0];
    for (const __int128 v : {first, last}) need(v >= -INDEX_MAX && v <= INDEX_MAX, "an index beyond its limit");
  }
  void reads(int i, const State& st) {
    need(!(s_->operands[i].mode & GATHER) || st.gathered >> i & 1, "used before its gather");
  }
  void run_words(State st) {
    const Section& head = *s_->head;
    const bool epilogue = SectionKind(head.kind) == SectionKind::MATMUL;
    int64_t pass_at = -1;
    int at = 0;
    for (; at < head.word_count && !trapped; at++) {
      const Word& w = s_->words[at];
      word_ = at;
      need(w.op < OP_COUNT, "no such opcode");
      const OpInfo& op = OPS[w.op];
      work_ += st.in_pass ? (head.dims[0] + lanes_of(head.dtype) - 1) / lanes_of(head.dtype) : 1;
      need(op.dtypes >> head.dtype & 1, "no such row for this compute dtype");
      if (op.form == FORM_K && element_bytes() == 8) need(w.k < head.constant_count, "no such constant");
      if (op.a == Field::OPERAND) need(w.a < head.operand_count, "no such operand");
      const uint16_t empty = w.op == OP_pass ? number_of_pass(&w) : 0;  // loading has written it there
      need((op.a != Field::EMPTY || w.a == empty) && (op.k != Field::EMPTY || !w.k), "reserved field of a word");
      if (op.k == Field::SLOT) need(w.k < MAX_SLOTS, "no such slot");
      if (op.k == Field::ROW) need(w.k < MAX_ROW_SCALARS, "no such row scalar");
      if (op.a == Field::REDUCTION) need(w.a < MAX_REDUCTIONS, "no such reduction");
      if (op.a == Field::RUNNING) need(w.a < MAX_RUNNING, "no such running total");
      const bool plain = op.a != Field::OPERAND || s_->operands[w.a].dtype == head.dtype;
      const int64_t size = element_bytes(), kind = w.a / REDUCTIONS_EACH;
      const int64_t inner = op.a == Field::OPERAND ? s_->operands[w.a].stride[0] : 0;
      switch (op.group) {
        case Group::BINARY:
          need(st.acc || op.row == ROW_mov, "acc is not set");
          if (op.form == FORM_S) need(st.in_pass && st.slots >> w.k & 1, "slot is not set");
          if (op.form == FORM_R) need(!epilogue && st.rows >> w.k & 1, "row scalar is not set");
          if (op.form == FORM_I) need(st.in_pass && plain && inner == size, "form i"), reads(w.a, st), strip(w.a, READ, size);
          if (op.form == FORM_B) need(plain && inner == 0, "form b"), reads(w.a, st), touch(w.a, row_at_[w.a], size, READ, element(0));
          st.acc = true;
          break;
        case Group::UNARY: need(st.acc, "acc is not set"); break;
        case Group::LOAD:
          if (op.row == ROW_iota) numbers(w.a);
          else need(st.in_pass, "load outside a pass"), reads(w.a, st), strip(w.a, READ, inner);
          st.acc = true;
          break;
        case Group::STORE:
          need(st.acc, "acc is not set");
          if (op.row == ROW_store_slot) need(st.in_pass, "slot outside a pass"), st.slots |= 1u << w.k;
          else if (op.row == ROW_store_row) need(!st.in_pass, "row scalar inside a pass"), st.rows |= 1u << w.k;
          else if (op.row == ROW_store_per_row)
            need(!st.in_pass && inner == 0, "store_per_row"), touch(w.a, row_at_[w.a], DTYPE_BYTES[s_->operands[w.a].dtype], WRITE, element(0));
          else if (op.row == ROW_store_any || op.row == ROW_store_any_nt)
            need(st.in_pass && (inner || head.dims[0] == 1), "store_any"), strip(w.a, WRITE, inner);
          else need(st.in_pass && plain && inner == size, "store"), strip(w.a, WRITE, size);
          break;
        case Group::REDUCE:
          need(st.in_pass && !epilogue && st.acc, "reduction outside a pass");
          need(kind == op.row - ROW_acc_sum && !(st.open >> w.a & 1), "kind of reduction, once in a pass");
          st.open |= 1u << w.a;
          break;
        case Group::RUNNING:
          need(st.in_pass && !epilogue && st.acc, "running total outside a pass");
          need(!(st.running >> w.a & 1), "running total once in a pass");
          st.running |= 1u << w.a;
          break;
        case Group::FOLD:
          need(!st.in_pass && kind == op.row - ROW_fold_sum, "kind of reduction");
          need(st.open >> w.a & 1, "nothing to fold");
          st.open &= ~(1u << w.a), st.acc = true;
          break;
        case Group::CONTROL:
          if (op.row == ROW_end) {
            need(epilogue && at + 1 == head.word_count, "end");
            return;
          }
          need(!epilogue, "control in an epilogue");
          if (op.row == ROW_gather) {
            for (int before = 0; before < at; before++) need(named(s_->words[before], ROW_gather), "gather not first");
            gathered(w.a, st);
          }
          if (op.row == ROW_pass) {
            need(!st.in_pass && !st.open, "pass");
            st.in_pass = true, st.acc = false, st.slots = st.running = 0, pass_at = at;
          }
          if (op.row == ROW_loop) {
            need(st.in_pass && w.k == uint64_t(at - pass_at), "jump");
            need(w.a == st.open, "mask of reductions");
            st.in_pass = st.acc = false, st.slots = 0;
          }
          if (op.row == ROW_end_row) {
            need(!st.in_pass && !st.open && at + 1 == head.word_count, "end_row");
            return;
          }
          break;
      }
    }
    need(trapped, "runs beyond its last word");
  }

  // ---- sections ----
  template <class F> void odometer(int first, F body, int end = MAX_RANK) {
    const Section& head = *s_->head;
    const int rank = std::min(int(head.rank), end);
    int64_t index[MAX_RANK] = {};
    for (row_ = 0;; row_++) {
      for (int i = 0; i < head.operand_count; i++) {
        row_at_[i] = s_->operands[i].base;
        for (int d = first; d < rank; d++) row_at_[i] += __int128(index[d]) * s_->operands[i].stride[d];
        row_start_[i] = row_at_[i];
      }
      body();
      int d = first;
      for (; d < rank && ++index[d] == head.dims[d]; d++) index[d] = 0;
      if (d == rank || trapped) return;
    }
  }
  void vector() {
    odometer(1, [&] {
      Place& p = scratch();
      std::fill(p.known.begin(), p.known.end(), 0), std::fill(p.writer.begin(), p.writer.end(), NOBODY);
      run_words({});
    });
  }
  static bool half(uint8_t dtype) { return dtype == uint8_t(DType::FLOAT16) || dtype == uint8_t(DType::BFLOAT16); }
  // dtypes of A and B: the compute dtype, bytes in int32; packed weights also in 16 bits.
  bool factor(const Operand& x) const {
    const uint8_t dtype = s_->head->dtype;
    if (x.mode & PACKED) return dtype == FLOAT32 && (x.dtype == FLOAT32 || half(x.dtype));
    const bool byte = x.dtype == uint8_t(DType::INT8) || x.dtype == uint8_t(DType::UINT8);
    return x.dtype == dtype || (dtype == uint8_t(DType::INT32) && byte);
  }
  void matmul() {
    const Section& head = *s_->head;
    const int64_t n = head.dims[0], m = head.dims[1], k = head.depth;
    need(head.rank >= 2 && head.operand_count >= 3, "shape of a matmul");
    const Operand *a = s_->operands, *b = a + 1, *c = a + 2;
    need(need_scratch(head, *b) <= int64_t(head.scratch_bytes), "scratch of a matmul");
    need(factor(*a) && factor(*b) && c->dtype == head.dtype, "dtype of a matmul");
    const int64_t of_a = DTYPE_BYTES[a->dtype], of_b = DTYPE_BYTES[b->dtype], of_c = DTYPE_BYTES[c->dtype];
    const bool grouped = a->index != NONE;
    __int128 left = m;
    if (grouped) {
      need(head.rank == 3 && head.operand_count >= 4, "shape of a matmul in groups");
      need(!a->stride[2] && !c->stride[2] && !s_->operands[3].stride[0] && !s_->operands[3].stride[1], "strides of a matmul in groups");
      for (int i = 4; i < head.operand_count; i++) need(!s_->operands[i].stride[2], "strides of an epilogue of groups");
      need(s_->operands[3].dtype == uint8_t(DType::INT32) || s_->operands[3].dtype == uint8_t(DType::INT64), "dtype of groups");
    }
    odometer(2, [&] {
      if (grouped) left -= rows_of_group(row_at_[3]);
      if (left < 0 || left > m) trapped = true;
      for (int64_t i = 0; i < m; i++)
        for (int64_t z = 0; z < k; z++) touch(0, row_at_[0] + __int128(i) * a->stride[1] + __int128(z) * a->depth, of_a, READ, MANY);
      need(a->stride[0] == 0 && (a->stride[1] == of_a || a->depth == of_a), "shape of A");
      if (b->mode & PACKED) {
        touch(1, row_at_[1], k * ((n + PANEL - 1) / PANEL) * PANEL * of_b, READ, MANY);
      } else if (b->mode & WINDOWS) {
        const int64_t high = b->index / 256, wide = b->index % 256;
        need(high && wide && k % (high * wide) == 0 && n % b->limit == 0 && head.rank <= 5 && !grouped && !b->stride[1] && b->dtype == head.dtype, "windows");
        for (int64_t j = 0; j < n; j++)
          for (int64_t z = 0; z < k; z++)
            touch(1, row_at_[1] + __int128(j % b->limit) * b->stride[0] + __int128(j / b->limit) * b->stride[7] + __int128(z % wide) * b->stride[5] +
                  __int128(z / wide % high) * b->stride[6] + __int128(z / (wide * high)) * b->depth, of_b, READ, MANY);
      } else {
        need(b->stride[1] == 0 && (b->stride[0] == of_b || b->depth == of_b), "shape of B");
        for (int64_t j = 0; j < n; j++)
          for (int64_t z = 0; z < k; z++) touch(1, row_at_[1] + __int128(j) * b->stride[0] + __int128(z) * b->depth, of_b, READ, MANY);
      }
      need(c->stride[0] == of_c && c->mode == (READ | WRITE), "shape of C");
      for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++)
          touch(2, row_at_[2] + __int128(i) * c->stride[1] + of_c * j, of_c, WRITE, uint32_t(((grouped ? 0 : row_) * m + i) * n + j + 1));
    });
    work_ += (n * rows_of(head) * k + 1023) / 1024;
    if (head.word_count) {
      odometer(1, [&] {
        State st;
        st.in_pass = true;
        for (int w = 0; w < head.word_count; w++)
          if (OPS[s_->words[w].op].a == Field::OPERAND) need(s_->words[w].a >= 2, "A or B in an epilogue");
        run_words(st);
      }, grouped ? 2 : MAX_RANK);
    }
  }
  // The number of rows of one group; 0 where its value is not known here. Traps where it is below 0.
  int64_t rows_of_group(__int128 at) {
    const Operand& x = s_->operands[3];
    const int64_t size = DTYPE_BYTES[x.dtype];
    touch(3, at, size, READ, MANY);
    if (!(x.arg < count_ && !place(x).stored && !(place(x).mode & WRITE))) return values_known = false, 0;
    int64_t rows = 0;
    int32_t narrow;
    memcpy(size == 8 ? (void*)&rows : (void*)&narrow, content_[x.arg].data() + int64_t(at), size);
    if (size == 4) rows = narrow;
    trapped |= rows < 0;
    return rows;
  }
  static int64_t rows_of(const Section& head) {
    int64_t rows = 1;
    for (int d = 1; d < head.rank; d++) rows *= head.dims[d];
    return rows;
  }
  // dvm_rt/isa/matmul.py, once more.
  static int64_t need_scratch(const Section& head, const Operand& b) {
    const int64_t n = head.dims[0], m = head.dims[1], k = head.depth;
    const auto up = [](int64_t x, int64_t y) { return (x + y - 1) / y; };
    const int64_t slice = k <= SLICE_K ? k : up(up(k, up(k, SLICE_K)), 8) * 8, panel = slice * PANEL * DTYPE_BYTES[head.dtype];
    if (head.dtype != FLOAT32) return panel;
    if (b.mode & PACKED) return 0;
    if (b.stride[0] != 4 || b.mode & WINDOWS || m > 14) return std::min<int64_t>(up(n, PANEL), 32) * panel;
    return n % PANEL ? panel : 0;
  }
  void pack() {
    const Section& head = *s_->head;
    const Operand* b = s_->operands;
    need(head.rank == 1 && head.operand_count == 2 && !head.word_count, "shape of a pack");
    need((b->dtype == FLOAT32 || half(b->dtype)) && b[1].dtype == b->dtype, "dtype of a pack");
    const int64_t size = DTYPE_BYTES[b->dtype];
    need(b->stride[0] == size || b->depth == size, "shape of a pack's source");
    need(b->mode == READ && b[1].mode & WRITE, "modes of a pack");
    odometer(1, [&] {
      for (int64_t j = 0; j < head.dims[0]; j++)
        for (int64_t k = 0; k < head.depth; k++) touch(0, row_at_[0] + __int128(j) * b->stride[0] + __int128(k) * b->depth, size, READ, MANY);
      touch(1, row_at_[1], head.depth * ((head.dims[0] + PANEL - 1) / PANEL) * PANEL * size, WRITE, 1);
    });
    work_ += (head.dims[0] * head.depth + 1023) / 1024;
  }

  void attention() {
    const Section& head = *s_->head;
    const Operand *q = s_->operands, *k = q + 1, *v = q + 2, *o = q + 3, *m = q + 4;
    const int64_t keys = head.dims[0], queries = head.dims[1];
    need(head.rank >= 2 && (head.operand_count == 4 || head.operand_count == 5) && head.word_count == 4, "shape of an attention");
    for (int w = 0; w < 4; w++) {
      static constexpr uint16_t WORDS[] = {OP_mul_k, OP_mov_k, OP_mov_k, OP_end};
      need(s_->words[w].op == WORDS[w] && !s_->words[w].a && (w < 3 || !s_->words[w].k), "words of an attention");
    }
    need(k->limit >= 1 && k->limit <= head.depth && v->limit >= 1 && v->limit <= head.depth, "widths of an attention");
    const int64_t wide = (head.depth + PANEL - 1) / PANEL * PANEL, blocks = (keys + KEY_BLOCK - 1) / KEY_BLOCK * KEY_BLOCK;
    const int64_t kept = k->mode & PACKED ? 0 : queries <= 48 || blocks * head.depth > 1 << 24 ? KEY_BLOCK : blocks;
    const int64_t need_scratch = 64 * (head.depth + wide + 16) + 16 * KEY_BLOCK + KEY_BLOCK * wide + kept * head.depth;
    need(4 * need_scratch <= int64_t(head.scratch_bytes), "scratch of an attention");
    for (const Operand* x : {q, k, v, o}) need(x->dtype == FLOAT32, "dtype of an attention");
    need(!q->stride[0] && !o->stride[0] && !k->stride[1] && !v->stride[1] && v->depth == 4 && o->depth == 4, "strides of an attention");
    auto rows = [&](int i, int dim, int64_t width, int how) {
      const Operand& x = q[i];
      for (int64_t r = 0; r < head.dims[dim]; r++)
        for (int64_t d = 0; d < width; d++)
          touch(i, row_at_[i] + __int128(r) * x.stride[dim] + __int128(d) * x.depth, 4, how,
                how == READ ? MANY : uint32_t((row_ * queries + r) * width + d + 1));
    };
    odometer(2, [&] {
      rows(0, 1, k->limit, READ), rows(2, 0, v->limit, READ);
      if (k->mode & PACKED) touch(1, row_at_[1], k->limit * ((keys + PANEL - 1) / PANEL) * PANEL * 4, READ, MANY);
      else rows(1, 0, k->limit, READ);
      if (head.operand_count == 5) {
        const int64_t size = DTYPE_BYTES[m->dtype];
        need((m->dtype == FLOAT32 || m->dtype == uint8_t(DType::BOOL)) && m->mode == READ && (!m->stride[0] || m->stride[0] == size) && !m->depth, "mask of an attention");
        for (int64_t i = 0; i < queries; i++)
          for (int64_t j = 0; j < keys; j++) touch(4, row_at_[4] + __int128(i) * m->stride[1] + j * m->stride[0], size, READ, MANY);
      }
      rows(3, 1, v->limit, WRITE);
    });
    work_ += (keys * rows_of(head) * head.depth + 1023) / 1024 + 4 * ((keys + LANES - 1) / LANES) * rows_of(head);
  }

  const VerifiedProgram* program_ = nullptr;
  const std::vector<uint8_t>* content_ = nullptr;
  size_t count_ = 0;  // of arguments; the workspace and the scratch come behind them
  std::vector<Place> places_;
  std::string why_;
  const SectionView* s_ = nullptr;
  __int128 row_start_[MAX_OPERANDS], row_at_[MAX_OPERANDS];  // of this row, without and with what gathers added
  int64_t row_ = 0;
  uint64_t work_ = 0;
  int number_ = 0, word_ = 0;
};

}  // namespace fuzz
