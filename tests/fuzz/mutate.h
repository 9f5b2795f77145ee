// Programs as structures, and changes to them that keep the structure.
#pragma once
#include <algorithm>
#include <cstring>
#include <iterator>
#include <vector>
#include "program.h"

namespace fuzz {
using namespace dvm;

struct Random {  // xorshift64*: a seed replays on every machine
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D) { next(), next(); }
  uint64_t next() {
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 0x2545F4914F6CDD1D;
  }
  int64_t below(int64_t n) { return int64_t((next() >> 11) % uint64_t(n)); }
  bool chance(int percent) { return below(100) < percent; }
  template <class T, size_t N> T pick(const T (&values)[N]) { return values[below(N)]; }
  template <class T> T& of(std::vector<T>& v) { return v[below(int64_t(v.size()))]; }
};

struct Part {
  Section head;
  std::vector<Operand> operands;
  std::vector<Word> words;
  std::vector<uint64_t> constants;
};
struct Tree {
  ProgramHead head;
  std::vector<ProgramArg> args;
  std::vector<Part> sections;

  Tree() = default;
  explicit Tree(const std::vector<uint8_t>& bytes) {  // of a program that passes
    memcpy(&head, bytes.data(), sizeof head);
    const uint8_t* at = bytes.data() + sizeof head;
    args.resize(head.arg_count);
    for (ProgramArg& a : args) memcpy(&a, at, sizeof a), at += sizeof a;
    sections.resize(head.section_count);
    for (Part& s : sections) {
      memcpy(&s.head, at, sizeof s.head), at += sizeof s.head;
      s.operands.resize(s.head.operand_count), s.words.resize(s.head.word_count), s.constants.resize(s.head.constant_count);
      for (Operand& x : s.operands) memcpy(&x, at, sizeof x), at += sizeof x;
      for (Word& w : s.words) memcpy(&w, at, sizeof w), at += sizeof w;
      for (uint64_t& k : s.constants) memcpy(&k, at, sizeof k), at += sizeof k;
    }
  }
  uint64_t work() const {  // dvm_rt/isa/program.py
    using Wide = unsigned __int128;
    constexpr Wide MOST = Wide(1) << 100;
    Wide total = 0;
    std::vector<Wide>& before = before_;
    before.clear();
    for (const Part& s : sections) {
      before.push_back(total);
      if (s.head.kind >= uint16_t(SectionKind::BRANCH)) {
        total++;
        const size_t here = before.size() - 1;
        if (s.head.kind == uint16_t(SectionKind::LOOP) && uint64_t(s.head.depth) <= here) {
          const Wide first = before[here - size_t(s.head.depth)], body = total - first;
          const uint64_t times = uint64_t(s.head.dims[0]);
          total = times && body > MOST / times ? MOST : first + body * times;
        }
        continue;
      }
      Wide rows = 1;
      for (int d = 1; d < MAX_RANK && d < s.head.rank; d++) rows = rows * uint64_t(s.head.dims[d]) & ~0ull;
      if (s.head.kind == uint16_t(SectionKind::HOST) || s.head.kind == uint16_t(SectionKind::COPY)) {
        total += (uint64_t(s.head.dims[0]) * uint64_t(rows) + 15) / 16 + 1;
        continue;
      }
      const uint64_t n = uint64_t(s.head.dims[0]), lanes = uint64_t(is_compute_dtype(s.head.dtype) ? lanes_of(s.head.dtype) : LANES), strips = n / lanes + (n % lanes != 0);
      total += uint64_t(s.words.size() * strips * rows) + 1;
      if (s.head.kind) total += uint64_t((uint64_t(n * rows) * Wide(uint64_t(s.head.depth)) + 1023) / 1024);
    }
    return uint64_t(total);
  }
  void write(std::vector<uint8_t>& out) {
    size_t length = sizeof head + args.size() * sizeof(ProgramArg);
    for (Part& s : sections) {
      s.head.operand_count = uint16_t(s.operands.size()), s.head.word_count = uint16_t(s.words.size());
      s.head.constant_count = uint16_t(s.constants.size());
      s.head.bytes = uint32_t(sizeof s.head + s.operands.size() * sizeof(Operand) + s.words.size() * sizeof(Word) + s.constants.size() * sizeof(uint64_t));
      length += s.head.bytes;
    }
    head.arg_count = uint16_t(args.size()), head.section_count = uint16_t(sections.size()), head.bytes = uint32_t(length);
    out.resize(length);
    uint8_t* at = out.data();
    auto put = [&](const auto* records, size_t count) {
      if (count) memcpy(at, records, count * sizeof *records);
      at += count * sizeof *records;
    };
    put(&head, 1), put(args.data(), args.size());
    for (const Part& s : sections)
      put(&s.head, 1), put(s.operands.data(), s.operands.size()), put(s.words.data(), s.words.size()), put(s.constants.data(), s.constants.size());
  }

 private:
  mutable std::vector<unsigned __int128> before_;
};

inline void seal(std::vector<uint8_t>& bytes) {  // makes the checksum fit
  constexpr size_t AT = offsetof(ProgramHead, checksum), FROM = AT + 8;
  if (bytes.size() < FROM) return;
  const uint64_t sum = checksum(bytes.data() + FROM, bytes.size() - FROM);
  memcpy(bytes.data() + AT, &sum, 8);
}

class Mutator {
 public:
  Mutator(Random& random, Tree& tree, std::vector<uint8_t>& out) : r_(random), t_(tree), out_(out) {}
  void run() {  // changes the tree, and writes its bytes
    // how much larger the head's claim of work may be: 0 finds work that was not counted
    const bool exact = r_.chance(60);
    for (int n = r_.pick({1, 1, 1, 2, 2, 3}); n > 0; n--) change();
    t_.head.fuel = t_.work() + (exact ? 0 : r_.below(1000));
    if (r_.chance(2)) t_.head.fuel -= 1 + r_.below(3);
    t_.write(out_);
    if (r_.chance(2)) raw(out_);
    seal(out_);
    if (r_.chance(1)) out_[size_t(r_.below(int64_t(out_.size())))] ^= uint8_t(1u << r_.below(8));
  }

 private:
  void change() {
    Part& s = r_.of(t_.sections);
    const int what = int(r_.below(100));
    if (is_control(s) && r_.chance(60)) return span(s);
    if (what < 38 && !s.words.empty()) word(s);
    else if (what < 72 && !s.operands.empty()) operand(s, one_of(s.operands));
    else if (what < 84) section(s);
    else if (what < 94 && !t_.args.empty()) argument(r_.of(t_.args));
    else if (what < 97) add_control();
    else whole();
  }
  static bool is_control(const Part& s) { return s.head.kind >= uint16_t(SectionKind::BRANCH); }

  // ---- branches, jumps, loops ----
  void span(Part& s) {
    const int64_t number = &s - t_.sections.data(), count = int64_t(t_.sections.size());
    const bool loop = s.head.kind == uint16_t(SectionKind::LOOP);
    switch (r_.below(12)) {
      case 0: s.head.depth += r_.chance(50) ? 1 : -1; break;
      case 1: case 2: s.head.depth = r_.below((loop ? number : count - 1 - number) + 2); break;
      case 3: s.head.depth = near(s.head.depth, 1); break;
      case 4: s.head.kind = uint16_t(r_.pick(CONTROLS)); break;
      case 5: case 6: s.head.dims[0] = r_.chance(70) ? 1 + r_.below(6) : near(s.head.dims[0], 1); break;
      case 7:
        if (s.operands.empty()) s.operands.push_back(flag());
        else s.operands.pop_back();
        break;
      case 8: s.operands.assign(1, flag()); break;
      case 9: if (!s.operands.empty()) operand(s, s.operands[0]); break;
      case 10: if (r_.chance(20)) s.words.push_back({OP_end_row, 0, 0}); else move(number); break;
      default: move(number);
    }
  }
  static constexpr SectionKind CONTROLS[] = {SectionKind::BRANCH, SectionKind::JUMP, SectionKind::LOOP};
  Operand flag() {  // some bool: of an argument there is, of a new one, or of what a section writes
    Operand x{};
    x.arg = uint16_t(t_.args.size()), x.dtype = uint8_t(DType::BOOL), x.mode = READ, x.index = NONE;
    for (size_t i = 0; i < t_.args.size() && r_.chance(90); i++) {
      const size_t at = size_t(r_.below(int64_t(t_.args.size())));
      const bool fits = t_.args[at].dtype == x.dtype && t_.args[at].mode & READ && t_.args[at].bytes;
      if (!fits) continue;
      x.arg = uint16_t(at), x.base = r_.below(int64_t(t_.args[at].bytes));
      if (r_.chance(20)) x.mode = t_.args[at].mode & (READ | WRITE);
      return x;
    }
    if (t_.head.workspace_bytes && r_.chance(30)) return x.arg = WORKSPACE, x.base = r_.below(int64_t(std::min<uint64_t>(t_.head.workspace_bytes, 64))), x;
    ProgramArg a{};
    a.bytes = uint64_t(1 + r_.below(8)), a.mode = uint8_t(r_.chance(60) ? READ : READ | WRITE), a.dtype = x.dtype, a.align = 1;
    x.base = r_.below(int64_t(a.bytes));
    if (r_.chance(30)) x.mode = a.mode;
    t_.args.push_back(a);
    return x;
  }
  void add_control() {
    if (t_.sections.size() > 60) return;
    Part s{};
    const SectionKind kind = r_.pick(CONTROLS);
    const int64_t count = int64_t(t_.sections.size()), at = r_.below(count + 1);
    s.head.kind = uint16_t(kind), s.head.dtype = uint8_t(DType::FLOAT32), s.head.rank = 1;
    for (int64_t& dim : s.head.dims) dim = 1;
    const bool loop = kind == SectionKind::LOOP;
    s.head.depth = r_.below((loop ? at : count - at) + 1);
    if (loop) s.head.dims[0] = 1 + r_.below(4);
    if (kind == SectionKind::BRANCH || (loop && r_.chance(50))) s.operands.push_back(flag());
    insert(at, s);
  }
  void move(int64_t from) {
    const Part s = t_.sections[size_t(from)];
    erase(from), insert(r_.below(int64_t(t_.sections.size()) + 1), s);
  }
  // Spans of control sections follow, most of the time.
  void insert(int64_t at, const Part& added) {
    const bool follow = r_.chance(85);
    for (int64_t i = 0; follow && i < int64_t(t_.sections.size()); i++) {
      Part& s = t_.sections[size_t(i)];
      const bool loop = s.head.kind == uint16_t(SectionKind::LOOP);
      if (is_control(s) && (loop ? i >= at && i - s.head.depth < at : i < at && i + s.head.depth >= at)) s.head.depth++;
    }
    t_.sections.insert(t_.sections.begin() + at, added);
  }
  void erase(int64_t at) {
    const bool follow = r_.chance(85);
    for (int64_t i = 0; follow && i < int64_t(t_.sections.size()); i++) {
      Part& s = t_.sections[size_t(i)];
      const bool loop = s.head.kind == uint16_t(SectionKind::LOOP);
      if (is_control(s) && (loop ? i > at && i - s.head.depth <= at : i < at && i + s.head.depth >= at)) s.head.depth--;
    }
    t_.sections.erase(t_.sections.begin() + at);
  }

  Operand& one_of(std::vector<Operand>& operands) {  // an operand that others hang on, more often
    Operand& x = r_.of(operands);
    return x.mode & GATHER && x.index < operands.size() && r_.chance(50) ? operands[x.index] : x;
  }
  int64_t near(int64_t value, int64_t step) {
    switch (r_.below(8)) {
      case 0: return value + step;
      case 1: return value - step;
      case 2: return value + 1;
      case 3: return value - 1;
      case 4: return -value;
      case 5: return 0;
      case 6: return value * 2;
      default: return boundary();
    }
  }
  int64_t boundary() {
    static const int64_t VALUES[] = {0, 1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 511, 512,
        513, 1023, 1024, 1025, 4096, 16384, 16385, 65535, 65536, 1ll << 31, (1ll << 32) - 4, 1ll << 32, 1ll << 40, (1ll << 40) + 1,
        1ll << 48, 1ll << 62, INT64_MAX, INT64_MIN, -1, -4, -8, -64, -(1ll << 31), -(1ll << 40)};
    return r_.pick(VALUES);
  }

  void word(Part& s) {
    if (s.head.kind == uint16_t(SectionKind::VECTOR) && r_.chance(10)) return hint(s);
    Word& w = r_.of(s.words);
    const OpInfo info = w.op < OP_COUNT ? OPS[w.op] : OPS[0];
    switch (r_.below(12)) {
      case 0: case 1: case 2: case 3: {  // another of its kind
        for (int tries = 0; tries < 40; tries++) {
          const uint16_t op = uint16_t(r_.below(OP_COUNT));
          if (OPS[op].group == info.group && OPS[op].form == info.form && info.group != Group::CONTROL) {
            w.op = op;
            break;
          }
        }
        break;
      }
      case 4: w.op = uint16_t(r_.chance(5) ? boundary() : r_.below(OP_COUNT)); break;
      case 5: if (info.a != Field::EMPTY || r_.chance(10)) w.a = uint16_t(r_.chance(80) ? r_.below(int64_t(s.operands.size()) + 2) : boundary()); break;
      case 6:
        if (info.k == Field::CONSTANT || info.k == Field::AHEAD) w.k = r_.chance(50) ? uint32_t(r_.below(4)) : uint32_t(r_.next());
        else if (info.k != Field::EMPTY || r_.chance(10)) w.k = uint32_t(near(w.k, 1));
        break;
      case 7: {
        const int64_t limit = info.k == Field::SLOT ? MAX_SLOTS : info.k == Field::ROW ? MAX_ROW_SCALARS : 0;
        if (limit && r_.chance(60)) rename(s, info.k, w.k, uint32_t(r_.chance(70) ? limit - 1 + r_.below(3) : r_.below(limit)));
        else if (limit) w.k = uint32_t(r_.chance(50) ? limit - 1 + r_.below(3) : r_.below(limit));
        else if (info.k != Field::EMPTY || r_.chance(10)) w.k = uint32_t(r_.chance(50) ? r_.below(34) : boundary());
        break;
      }
      case 8: std::swap(w, r_.of(s.words)); break;
      case 9: s.words.erase(s.words.begin() + (&w - s.words.data())), jumps(s); break;
      default: {  // a copy elsewhere, or a word of another section
        if (info.form == FORM_S && r_.chance(40)) return early(s, w);
        const Word copy = r_.chance(70) ? w : random_word(s);
        s.words.insert(s.words.begin() + r_.below(int64_t(s.words.size()) + 1), copy), jumps(s);
      }
    }
  }
  void rename(Part& s, Field field, uint32_t from, uint32_t to) {  // a slot or a row scalar, wherever it stands
    for (Word& other : s.words)
      if (other.op < OP_COUNT && OPS[other.op].k == field && other.k == from) other.k = to;
  }
  void hint(Part& s) {  // a fetch more, or another distance; stores past the caches, or through them
    for (Word& w : s.words) {
      const bool one = w.op == OP_store || w.op == OP_store_nt;
      if ((one || w.op == OP_store_any || w.op == OP_store_any_nt) && r_.chance(50))
        w.op = r_.chance(50) ? (one ? OP_store_nt : OP_store_any_nt) : (one ? OP_store : OP_store_any);
    }
    const Word fetch{OP_fetch, uint16_t(r_.below(int64_t(s.operands.size()) + (s.operands.empty() || r_.chance(3)))), uint32_t(r_.pick({0, 512, 2048, 4096, 6144, -1}))};
    if (r_.chance(70)) s.words.insert(s.words.begin() + r_.below(int64_t(s.words.size()) + 1), fetch), jumps(s);
  }
  void early(Part& s, const Word& w) {  // reads a slot at the start of some pass
    const Word read{OP_mov_s, 0, w.k};
    std::vector<size_t> passes;
    for (size_t i = 0; i < s.words.size(); i++)
      if (s.words[i].op == OP_pass) passes.push_back(i + 1);
    if (passes.empty()) return;
    s.words.insert(s.words.begin() + int64_t(r_.of(passes)), read), jumps(s);
  }
  Word random_word(Part& s) {
    Word w{uint16_t(r_.below(OP_COUNT)), 0, 0};
    const OpInfo& info = OPS[w.op];
    if (info.a == Field::OPERAND) w.a = uint16_t(r_.below(int64_t(s.operands.size()) + 1));
    if (info.a == Field::REDUCTION) w.a = uint16_t(r_.below(MAX_REDUCTIONS + 1));
    if (info.a == Field::RUNNING) w.a = uint16_t(r_.below(MAX_RUNNING + 1));
    if (info.k == Field::SLOT || info.k == Field::ROW) w.k = uint32_t(r_.below(4));
    if (info.k == Field::CONSTANT) w.k = r_.chance(50) ? uint32_t(r_.below(4)) : uint32_t(r_.next());
    return w;
  }
  void jumps(Part& s) {  // most of the time the distances and masks of passes follow
    if (r_.chance(10)) return;
    size_t pass = 0;
    uint16_t mask = 0;
    for (size_t i = 0; i < s.words.size(); i++) {
      Word& w = s.words[i];
      if (w.op >= OP_COUNT) continue;
      if (OPS[w.op].row == ROW_pass) pass = i, mask = 0;
      if (OPS[w.op].group == Group::REDUCE && w.a < 16) mask |= uint16_t(1u << w.a);
      if (OPS[w.op].row == ROW_loop) w.k = uint32_t(i - pass), w.a = mask;
    }
  }

  void operand(Part& s, Operand& x) {
    const int64_t element = x.dtype < sizeof DTYPE_BYTES ? DTYPE_BYTES[x.dtype] : 4;
    if (x.arg == INDEX && r_.chance(30)) return far(s, x);
    if (x.arg == SCRATCH && r_.chance(20)) return void(x.stride[r_.below(std::clamp<int>(s.head.rank, 1, MAX_RANK))] = r_.chance(50) ? element : 2 * element);
    const SectionKind kind = SectionKind(s.head.kind);
    if (kind == SectionKind::HOST && r_.chance(15)) return void(r_.chance(50) ? x.depth = r_.below(MAX_RANK + 3) - 2 : x.stride[r_.below(3)] = r_.below(6) - 3);
    if (x.mode & GATHER && r_.chance(25)) return void(x.limit = near(x.limit, 1));
    if (x.mode & WINDOWS && r_.chance(60)) return windows(s, x, element);
    if (kind == SectionKind::MATMUL && &x == s.operands.data() + 1 && !(x.mode & (PACKED | WINDOWS)) && r_.chance(20)) return become_windows(s, x);
    if (r_.chance(kind == SectionKind::MATMUL || is_index(s, x) ? 18 : 6)) return r_.chance(70) ? retype(x) : recast(s);
    if (r_.chance(2)) return number(x);
    int64_t& stride = x.stride[r_.chance(98) && s.head.rank <= MAX_RANK && s.head.rank ? r_.below(s.head.rank) : r_.below(MAX_RANK)];
    switch (r_.below(16)) {
      case 0: case 1: x.base = near(x.base, element); break;
      case 2: x.base += element * (1 + r_.below(4)) * (r_.chance(50) ? 1 : -1); break;
      case 3: case 4: stride = near(stride, element); break;
      case 5: stride = 0; break;
      case 6: std::swap(stride, x.stride[r_.below(s.head.rank && s.head.rank <= MAX_RANK ? s.head.rank : 1)]); break;
      case 7: x.mode = r_.chance(70) ? x.mode ^ uint8_t(1u << r_.below(6)) : uint8_t(boundary()); break;
      case 8: x.mode = r_.chance(50) ? x.mode | READ : x.mode ^ (READ | WRITE); break;
      case 9: {
        const int64_t to = r_.below(int64_t(t_.args.size()) + 2);
        x.arg = uint16_t(to < int64_t(t_.args.size()) ? to : to == int64_t(t_.args.size()) ? WORKSPACE : SCRATCH);
        if (x.arg < t_.args.size() && r_.chance(50)) x.dtype = t_.args[x.arg].dtype;
        break;
      }
      case 10: {
        const Operand& other = r_.of(s.operands);
        if (r_.chance(30)) x.arg = other.arg, x.base = other.base;
        else if (r_.chance(50)) x = other;
        else shift(x, other, element);
        break;
      }
      case 11:
        x.dtype = uint8_t(r_.below(14));
        if (r_.chance(70) && x.arg < t_.args.size()) t_.args[x.arg].dtype = x.dtype, follow(t_.args[x.arg]);
        break;
      case 12: if (x.depth || r_.chance(s.head.kind == uint16_t(SectionKind::HOST) ? 50 : 10)) x.depth = near(x.depth, 4); break;
      case 13: if (x.limit || r_.chance(10)) x.limit = near(x.limit, 1); break;
      case 14: x.index = uint16_t(r_.chance(x.limit ? 90 : 10) ? r_.below(int64_t(s.operands.size()) + 1) : x.index); break;
      default:
        if (r_.chance(5)) x.reserved = uint16_t(1 + r_.below(3));
        else fill(s, x);
    }
  }
  // ---- B of a product, as windows: mostly the same number of places and steps, walked in another way ----
  int64_t divisor(int64_t n) {
    for (int tries = 0; tries < 8; tries++)
      if (const int64_t d = 1 + r_.below(std::clamp<int64_t>(n, 1, 255)); n % d == 0) return d;
    return 1;
  }
  void windows(Part& s, Operand& x, int64_t element) {
    int64_t high = x.index / 256, wide = x.index % 256, &far = x.stride[r_.pick({5, 5, 6, 6, 7, 7, 0})];
    switch (r_.below(14)) {
      case 0: x.limit = divisor(s.head.dims[0]); break;
      case 1: x.limit = near(x.limit, 1); break;
      case 2: std::swap(high, wide), std::swap(x.stride[5], x.stride[6]), x.index = uint16_t(high * 256 + wide); break;
      case 3: x.index = uint16_t(near(x.index, r_.chance(50) ? 1 : 256)); break;
      case 4: x.index = uint16_t(r_.chance(50) ? high * 256 : wide); break;
      case 5: wide = divisor(s.head.depth), high = divisor(s.head.depth / wide), x.index = uint16_t(high * 256 + wide); break;
      case 6: case 7: far = near(far, element); break;
      case 8: far += element * (r_.chance(50) ? 1 : -1); break;
      case 9: std::swap(far, x.stride[r_.pick({5, 6, 7})]); break;
      case 10: x.stride[r_.chance(50) ? 1 : s.head.rank < 5 ? s.head.rank : 4] = element * (1 + r_.below(3)); break;
      case 11:
        if (r_.chance(30)) return x.mode = READ, x.limit = 0, x.index = NONE, void(x.stride[5] = x.stride[6] = x.stride[7] = 0);
        if (r_.chance(30)) return void(r_.of(s.operands) = Operand(x));
        x.mode = uint8_t(WINDOWS | r_.pick({3, 1 | PACKED, 1 | GATHER, int(WRITE), 0, int(READ)}));
        break;
      case 12:  // more dimensions, or the next ones as groups of rows
        s.head.rank = uint8_t(r_.chance(70) ? 3 + r_.below(5) : s.head.rank + 1);
        if (r_.chance(30)) grouped(s);
        break;
      default: r_.chance(50) ? retype(x) : recast(s);
    }
  }
  void become_windows(Part& s, Operand& x) {  // the same elements: columns of the kernel or its rows are steps of K
    const int64_t wide = divisor(s.head.depth), high = divisor(s.head.depth / wide), places = divisor(s.head.dims[0]);
    x.mode = READ | WINDOWS, x.limit = places, x.index = uint16_t(high * 256 + wide);
    x.stride[5] = x.depth, x.stride[6] = x.depth * wide, x.stride[7] = x.stride[0] * places, x.depth *= wide * high;
    s.head.scratch_bytes = std::max<uint64_t>(s.head.scratch_bytes, uint64_t(std::clamp<int64_t>(s.head.depth, 1, 2048) * 4 * PANEL * DTYPE_BYTES[x.dtype < sizeof DTYPE_BYTES ? x.dtype : 0]));
    t_.head.scratch_bytes = std::max(t_.head.scratch_bytes, s.head.scratch_bytes);
  }
  void grouped(Part& s) {  // A names operand 3, numbers of rows, which are whole ones: all of them in one group
    if (s.operands.size() < 3) return;
    ProgramArg a{};
    a.bytes = 64, a.mode = READ, a.dtype = uint8_t(DType::INT64), a.align = 8;
    Operand rows{};
    rows.arg = uint16_t(t_.args.size()), rows.dtype = a.dtype, rows.mode = READ, rows.index = NONE;
    t_.args.push_back(a);
    s.operands.insert(s.operands.begin() + 3, rows), s.operands[0].index = 3;
    for (Word& w : s.words)
      if (w.op < OP_COUNT && OPS[w.op].a == Field::OPERAND && w.a >= 3) w.a++;
    s.head.rank = 3;
    for (size_t i : {0u, 2u}) s.operands[i].stride[2] = 0;
  }
  static bool is_index(const Part& s, const Operand& x) {
    return std::any_of(s.operands.begin(), s.operands.end(), [&](const Operand& o) { return o.mode & GATHER && o.index == &x - s.operands.data(); });
  }
  void far(Part& s, Operand& x) {  // numbers near their limit
    if (r_.chance(20)) return void((r_.chance(50) ? x.depth : x.limit) = near(0, 4));
    int64_t& at = r_.chance(50) ? x.base : x.stride[r_.below(std::clamp<int>(s.head.rank, 1, MAX_RANK))];
    at = (int64_t(INDEX_MAX) - 4 + r_.below(9)) * (r_.chance(50) ? 1 : -1) * (r_.chance(20) ? 2 : 1);
  }
  void number(Operand& x) {  // becomes an index operand
    x.arg = INDEX, x.dtype = uint8_t(DType::INT64), x.mode = READ, x.index = NONE, x.limit = x.depth = 0;
    if (r_.chance(50)) x.stride[0] = 0;
  }
  void retype(Operand& x) {  // another dtype on the same elements, and its argument with it
    const int64_t before = x.dtype < sizeof DTYPE_BYTES ? DTYPE_BYTES[x.dtype] : 4;
    x.dtype = uint8_t(r_.below(int64_t(sizeof DTYPE_BYTES)));
    const int64_t now = DTYPE_BYTES[x.dtype];
    for (int64_t& stride : x.stride) stride = stride % before ? stride : stride / before * now;
    if (x.depth % before == 0) x.depth = x.depth / before * now;
    if (x.base % before == 0) x.base = x.base / before * now;
    if (x.arg >= t_.args.size()) return void(t_.head.workspace_bytes *= now > before ? 2 : 1);
    ProgramArg& a = t_.args[x.arg];
    a.dtype = x.dtype, a.align = uint32_t(std::max<int64_t>(a.align, now));
    if (now > before) a.bytes = a.bytes / uint64_t(before) * uint64_t(now);
  }
  void recast(Part& s) {  // a section computes in another dtype of the same size
    static constexpr DType OF_4[] = {DType::FLOAT32, DType::INT32, DType::UINT32}, OF_8[] = {DType::FLOAT64, DType::INT64, DType::UINT64};
    if (!is_compute_dtype(s.head.dtype)) return;
    const uint8_t before = s.head.dtype, now = uint8_t(DTYPE_BYTES[before] == 4 ? r_.pick(OF_4) : r_.pick(OF_8));
    s.head.dtype = now;
    for (Operand& x : s.operands) {
      if (x.dtype != before) continue;
      x.dtype = now;
      if (x.arg < t_.args.size()) t_.args[x.arg].dtype = now;
    }
  }
  void fill(Part& s, const Operand& x) {  // one more, or up to the limit and beyond
    const Operand copy = x;
    const size_t most = r_.chance(80) ? s.operands.size() + 1 : size_t(MAX_OPERANDS + r_.below(2));
    while (s.operands.size() < most) s.operands.push_back(copy);
  }
  void section(Part& s) {
    int64_t& dim = s.head.dims[r_.chance(85) && s.head.rank && s.head.rank <= MAX_RANK ? r_.below(s.head.rank) : r_.below(MAX_RANK)];
    switch (r_.below(14)) {
      case 0: case 1: dim = dim > 1 ? dim - 1 : dim; break;
      case 2: dim = dim > 1 ? 1 + r_.below(dim) : dim; break;
      case 3: dim = near(dim, 1); break;
      case 4: dim = boundary(); break;
      case 5: std::swap(dim, s.head.dims[r_.below(s.head.rank && s.head.rank <= MAX_RANK ? s.head.rank : 1)]); break;
      case 6:
        if (s.head.kind == uint16_t(SectionKind::HOST) && r_.chance(50)) {
          s.head.depth = int64_t(std::size(HostFunction_NAMES)) + r_.below(4) - 1;
          break;
        }
        if (s.head.depth || r_.chance(10)) s.head.depth = near(s.head.depth, 1);
        break;
      case 7: s.head.depth = s.head.depth > 1 ? 1 + r_.below(s.head.depth) : s.head.depth; break;
      case 8: s.head.scratch_bytes = uint64_t(near(int64_t(s.head.scratch_bytes), 4)), t_.head.scratch_bytes = std::max(t_.head.scratch_bytes, s.head.scratch_bytes); break;
      case 9: s.head.rank = uint8_t(r_.chance(70) ? s.head.rank + 1 : boundary()); break;
      case 10: if (r_.chance(30)) s.head.kind = uint16_t(r_.below(int64_t(std::size(SectionKind_NAMES)) + 1)); else s.head.scratch_bytes += 64 * r_.below(8); break;
      case 11: if (r_.chance(20)) s.head.dtype = uint8_t(r_.below(14)); break;
      case 12:
        if (r_.chance(10)) s.head.reserved = 1;
        else if (r_.chance(50)) s.head.dtype = uint8_t(r_.below(int64_t(sizeof DTYPE_BYTES) + 1));
        else if (s.constants.empty()) s.constants.push_back(r_.next());
        else s.constants.pop_back();
        break;
      default: if (r_.chance(30)) s.head.rank--;
    }
  }
  void argument(ProgramArg& a) {
    switch (r_.below(12)) {
      case 0: a.bytes = uint64_t(near(int64_t(a.bytes), 4)); break;
      case 1: case 2: case 3: case 4: a.bytes += uint64_t(1 + r_.below(200)); break;
      case 5: a.bytes -= std::min<uint64_t>(a.bytes, uint64_t(1 + r_.below(8))); break;
      case 6: a.mode = uint8_t(r_.chance(70) ? r_.below(4) : r_.chance(50) ? a.mode ^ 1u << r_.below(8) : r_.below(256)); break;
      case 7: case 8: a.mode |= READ | WRITE; break;
      case 9: a.align = uint32_t(r_.chance(80) ? 1u << r_.below(8) : boundary()); break;
      case 10:
        if (r_.chance(30)) a.dtype = uint8_t(r_.below(14));
        if (r_.chance(70)) follow(a);
        break;
      default: if (r_.chance(10)) a.reserved = 1;
    }
  }
  void shift(Operand& x, const Operand& other, int64_t element) {  // over another one, a few elements further
    x = other;
    x.base += element * (r_.below(9) - 4);
    if (x.arg < t_.args.size()) t_.args[x.arg].mode |= READ | WRITE, t_.args[x.arg].bytes += 16;
    if (x.arg == WORKSPACE) t_.head.workspace_bytes += 16;
    if (r_.chance(50)) x.mode = READ | WRITE;
  }
  void follow(const ProgramArg& a) {  // operands take the dtype of their argument
    for (Part& s : t_.sections)
      for (Operand& x : s.operands)
        if (x.arg == &a - t_.args.data()) x.dtype = a.dtype;
  }
  void whole() {
    auto& sections = t_.sections;
    switch (r_.below(8)) {
      case 0: t_.head.workspace_bytes = uint64_t(near(int64_t(t_.head.workspace_bytes), 64)); break;
      case 1: case 2: t_.head.workspace_bytes += uint64_t(r_.below(256)); break;
      case 3: t_.head.scratch_bytes = uint64_t(near(int64_t(t_.head.scratch_bytes), 64)); break;
      case 4: if (sections.size() > 1) erase(r_.below(int64_t(sections.size()))); break;
      case 5: insert(r_.below(int64_t(sections.size()) + 1), Part(r_.of(sections))); break;
      case 6: std::swap(r_.of(sections), r_.of(sections)); break;
      default: if (r_.chance(10)) (r_.chance(50) ? t_.head.reserved1 : t_.head.scratch_bytes) += 1;
    }
  }
  void raw(std::vector<uint8_t>& out) {  // no respect for structure
    if (r_.chance(20)) {
      out.resize(out.size() - size_t(r_.below(int64_t(std::min<size_t>(out.size(), 64)))));
      return;
    }
    const int64_t at = r_.below(int64_t(out.size()) / 2) * 2;
    const uint16_t value = uint16_t(boundary());
    memcpy(out.data() + at, &value, std::min<size_t>(2, out.size() - size_t(at)));
  }

  Random& r_;
  Tree& t_;
  std::vector<uint8_t>& out_;
};

}  // namespace fuzz
