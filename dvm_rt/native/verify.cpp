// One pass over the bytes, no heap. All arithmetic on values of the program is overflow-checked or within limits that
// were checked before. Order: head, arguments, then for each section its head, its operands, how they overlap, its
// words, and what of the workspace and the outputs is known to be written.
#include "verify.h"
#include "attention.h"
#include "footprint.h"
#include "matmul.h"

namespace dvm {
namespace {

constexpr int64_t ARG_BYTES_MAX = 1ll << 48;
constexpr uint8_t FLOAT32 = uint8_t(DType::FLOAT32);
constexpr uint32_t bit_of(DType d) { return 1u << uint32_t(d); }
constexpr uint32_t PACKABLE = bit_of(DType::FLOAT32) | bit_of(DType::FLOAT16) | bit_of(DType::BFLOAT16);
static_assert(MAX_OPERANDS <= 32 && MAX_SLOTS <= 32 && MAX_ROW_SCALARS <= 32 && MAX_REDUCTIONS <= 16);

bool power_of_two(uint64_t x) { return x && !(x & (x - 1)); }

class Verifier {
 public:
  Verifier(uint8_t* bytes, size_t n, VerifyFacts& facts) : bytes_(bytes), n_(n), facts_(facts) { written_.clear(); }

  VerifyError run() {
    fetch();
    program();
    return error_;
  }

 private:
  // ---- errors: each check returns false after it has written down why ----
  [[gnu::cold, gnu::noinline]] bool refuse(VerifyCode code, Place place, int64_t number, int64_t got = 0, int64_t allowed = 0) {
    error_ = {code, place, uint16_t(section_number_), uint32_t(number), got, allowed};
    return false;
  }
  [[gnu::cold, gnu::noinline]] bool refuse_operand(VerifyCode code, int i, int64_t got = 0, int64_t allowed = 0) {
    return refuse(code, Place::OPERAND, i, got, allowed);
  }
  [[gnu::cold, gnu::noinline]] bool refuse_word(VerifyCode code, int64_t got = 0, int64_t allowed = 0) {
    return refuse(code, Place::WORD, at_, got, allowed);
  }

  bool need_operand(bool good, VerifyCode code, int i, int64_t got = 0, int64_t allowed = 0) {
    if (!good) refuse_operand(code, i, got, allowed);
    return good;
  }
  bool need_word(bool good, VerifyCode code, int64_t got = 0, int64_t allowed = 0) {
    if (!good) refuse_word(code, got, allowed);
    return good;
  }

  // What a program of one section reads and writes of this object lies in four pages: they are asked for together.
  void fetch() const {
    auto first = [](const auto* from, size_t count) { fetch_lines(from, from + count); };
    first(walk_, 4), first(print_, 4), first(touched_, 4), first(before_, 1);
    first(reinterpret_cast<const char*>(&written_), 128);
  }

  // ---- program ----
  const ProgramHead& head() const { return *reinterpret_cast<const ProgramHead*>(bytes_); }
  ProgramArg* args() const { return reinterpret_cast<ProgramArg*>(bytes_ + sizeof(ProgramHead)); }

  bool program() {
    if (!program_head()) return false;
    for (int i = 0; i < head().arg_count; i++)
      if (!argument(i)) return false;
    size_t at = sizeof(ProgramHead) + head().arg_count * sizeof(ProgramArg);
    for (section_number_ = 0; section_number_ < head().section_count; section_number_++) {
      if (n_ - at < sizeof(Section)) return refuse(VerifyCode::TRUNCATED, Place::SECTION, 0, n_ - at, sizeof(Section));
      section_ = section_at(bytes_ + at);
      close_regions();
      outers_before_ = facts_.outer_rows;
      if (!proved_count_ || !again(n_ - at)) {
        if (!section_head(n_ - at) || !section()) return false;
        remember();
      }
      gather();
      at += section_.head->bytes;
    }
    close_regions();
    section_number_ = 0;
    if (at != n_) return refuse(VerifyCode::TRUNCATED, Place::HEAD, 0, n_, at);
    if (uint64_t(fuel_) > head().fuel || head().fuel > FUEL_MAX) return refuse(VerifyCode::FUEL, Place::HEAD, 0, fuel_, int64_t(head().fuel));
    outputs();
    return true;
  }

  bool program_head() {
    constexpr size_t CHECKED_FROM = offsetof(ProgramHead, checksum) + sizeof(uint64_t);
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::HEAD, 0, got, allowed); };
    if (n_ < sizeof(ProgramHead)) return wrong(VerifyCode::TRUNCATED, n_, sizeof(ProgramHead));
    const ProgramHead& h = head();
    if (h.magic != PROGRAM_MAGIC) return wrong(VerifyCode::MAGIC, h.magic, PROGRAM_MAGIC);
    if (h.version != VERSION) return wrong(VerifyCode::VERSION, h.version, VERSION);
    if (h.table_hash != TABLE_HASH) return wrong(VerifyCode::TABLE_HASH, h.table_hash, TABLE_HASH);
    if (n_ > size_t(MAX_PROGRAM_BYTES)) return wrong(VerifyCode::LIMIT, n_, MAX_PROGRAM_BYTES);
    if (h.bytes != n_) return wrong(VerifyCode::TRUNCATED, n_, h.bytes);
    const uint64_t sum = checksum(bytes_ + CHECKED_FROM, n_ - CHECKED_FROM);
    if (h.checksum != sum) return wrong(VerifyCode::CHECKSUM, h.checksum, sum);
    if (h.reserved0 || h.reserved1) return wrong(VerifyCode::RESERVED, 1, 0);
    if (h.arg_count > MAX_ARGS) return wrong(VerifyCode::LIMIT, h.arg_count, MAX_ARGS);
    if (!h.section_count || h.section_count > MAX_SECTIONS) return wrong(VerifyCode::LIMIT, h.section_count, MAX_SECTIONS);
    if (h.workspace_bytes > WORKSPACE_BYTES_MAX) return wrong(VerifyCode::LIMIT, h.workspace_bytes, WORKSPACE_BYTES_MAX);
    if (h.scratch_bytes > SCRATCH_BYTES_MAX) return wrong(VerifyCode::LIMIT, h.scratch_bytes, SCRATCH_BYTES_MAX);
    const size_t least = sizeof h + h.arg_count * sizeof(ProgramArg);
    if (n_ < least) return wrong(VerifyCode::TRUNCATED, n_, least);
    return true;
  }

  bool argument(int i) {
    const ProgramArg& a = args()[i];
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::ARGUMENT, i, got, allowed); };
    if (a.reserved) return wrong(VerifyCode::RESERVED, a.reserved, 0);
    if (a.mode & ~(READ | WRITE)) return wrong(VerifyCode::ARGUMENT, a.mode, READ | WRITE);
    if (a.dtype >= sizeof DTYPE_BYTES) return wrong(VerifyCode::DTYPE, a.dtype, sizeof DTYPE_BYTES - 1);
    if (!power_of_two(a.align) || a.align > ARENA_ALIGN) return wrong(VerifyCode::ALIGNMENT, a.align, ARENA_ALIGN);
    if (a.bytes > uint64_t(ARG_BYTES_MAX)) return wrong(VerifyCode::LIMIT, a.bytes, ARG_BYTES_MAX);
    return true;
  }

  void outputs() {
    for (int i = 0; i < head().arg_count; i++) {
      ProgramArg& a = args()[i];
      if (a.mode & WRITE && a.bytes && !written_.covers(i, 0, a.bytes)) a.mode |= ZERO_FILL;
    }
  }

  // ---- section ----
  bool section_head(size_t rest) {
    const Section& s = *section_.head;
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::SECTION, 0, got, allowed); };
    constexpr uint16_t LAST = uint16_t(SectionKind::LOOP);
    if (s.kind > LAST) return wrong(VerifyCode::SECTION_KIND, s.kind, LAST);
    kind_ = SectionKind(s.kind);
    if (s.operand_count > MAX_OPERANDS) return wrong(VerifyCode::LIMIT, s.operand_count, MAX_OPERANDS);
    if (s.word_count > MAX_WORDS) return wrong(VerifyCode::LIMIT, s.word_count, MAX_WORDS);
    const size_t bytes = sizeof s + s.operand_count * sizeof(Operand) + s.word_count * sizeof(Word) + s.constant_count * sizeof(uint64_t);
    if (s.constant_count > MAX_CONSTANTS) return wrong(VerifyCode::LIMIT, s.constant_count, MAX_CONSTANTS);
    if (s.bytes != bytes || bytes > rest) return wrong(VerifyCode::TRUNCATED, s.bytes, bytes);
    const bool wide = kind_ == SectionKind::VECTOR || kind_ == SectionKind::MATMUL;  // not float32 alone
    if (wide ? !is_compute_dtype(s.dtype) : s.dtype != FLOAT32) return wrong(VerifyCode::DTYPE, s.dtype, FLOAT32);
    element_ = DTYPE_BYTES[s.dtype];
    if (s.constant_count && element_ != 8) return wrong(VerifyCode::CONSTANT, s.constant_count, 0);
    if (s.reserved) return wrong(VerifyCode::RESERVED, s.reserved, 0);
    if (s.rank < 1 || s.rank > MAX_RANK) return wrong(VerifyCode::DIMENSION, s.rank, MAX_RANK);
    if (s.scratch_bytes > head().scratch_bytes) return wrong(VerifyCode::LIMIT, s.scratch_bytes, head().scratch_bytes);
    rows_ = 1, elements_ = 1;
    size_t outers = 0;
    for (int d = 0; d < MAX_RANK; d++) {
      const int64_t dim = s.dims[d], most = d < s.rank ? DIMENSION_MAX : 1;
      if (dim < 1 || dim > most) return wrong(VerifyCode::DIMENSION, dim, most);
      if (__builtin_mul_overflow(elements_, dim, &elements_) || elements_ > DIMENSION_MAX)
        return wrong(VerifyCode::OVERFLOW, dim, DIMENSION_MAX);
      if (d) rows_ *= dim, outers += dim > 1;
    }
    if (kind_ == SectionKind::VECTOR) facts_.outer_rows += outers ? outers : 1;
    const bool has_depth = kind_ != SectionKind::VECTOR && kind_ != SectionKind::COPY;
    if (has_depth ? s.depth < !is_control(kind_) || s.depth > DIMENSION_MAX : s.depth != 0)
      return wrong(has_depth ? VerifyCode::DIMENSION : VerifyCode::RESERVED, s.depth, has_depth ? DIMENSION_MAX : 0);
    return burn();
  }

  // The formula of dvm_rt/isa/program.py.
  bool burn() {
    const Section& s = *section_.head;
    int64_t steps = 0;
    before_[section_number_].fuel = fuel_;
    if (is_control(kind_)) return fuel_++, true;  // a loop: see there
    if (kind_ == SectionKind::HOST || kind_ == SectionKind::COPY) {  // a host function's words are attributes
      return burn(ceil_div(elements_, int64_t(16)) + 1);
    }
    if (kind_ != SectionKind::VECTOR) {
      int64_t whole;  // products take as long for one column as for a panel
      if (__builtin_mul_overflow(rows_ * ceil_div(s.dims[0], int64_t(PANEL)), s.depth, &whole) || whole > int64_t(SECTION_FUEL_MAX) * 1024 / PANEL)
        return refuse(VerifyCode::FUEL, Place::SECTION, 0, s.depth, SECTION_FUEL_MAX);
      steps = elements_ * s.depth;
      steps = steps / 1024 + (steps % 1024 != 0);
    }
    const int64_t strips = ceil_div(s.dims[0], lanes_of(s.dtype));  // strips * rows_ <= elements_ <= 2^40, times 2^9 words
    return burn(int64_t(s.word_count) * strips * rows_ + steps + 1);
  }
  bool burn(int64_t work) {  // of one section; the sum of at most 4096 of them cannot overflow, and loops are checked
    if (work > int64_t(SECTION_FUEL_MAX)) return refuse(VerifyCode::FUEL, Place::SECTION, 0, work, SECTION_FUEL_MAX);
    fuel_ += work;
    return true;
  }

  bool section() {
    const Section& s = *section_.head;
    const bool matmul = kind_ == SectionKind::MATMUL, pack = kind_ == SectionKind::PACK;
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::SECTION, 0, got, allowed); };
    grouped_ = matmul && s.operand_count && is_grouped(section_.operands[0]);
    if (kind_ == SectionKind::ATTENTION) return attention();
    if (matmul && (s.rank < 2 || s.operand_count < 3))
      return wrong(s.rank < 2 ? VerifyCode::DIMENSION : VerifyCode::OPERAND, s.rank < 2 ? s.rank : s.operand_count, s.rank < 2 ? 2 : 3);
    if (pack && (s.rank != 1 || s.operand_count != 2))
      return wrong(s.rank != 1 ? VerifyCode::DIMENSION : VerifyCode::OPERAND, s.rank != 1 ? s.rank : s.operand_count, s.rank != 1 ? 1 : 2);
    if (kind_ == SectionKind::HOST) return host();
    if (kind_ == SectionKind::COPY) return copy();
    if (is_control(kind_)) return control();
    if (grouped_) {
      if (s.rank != 3) return wrong(VerifyCode::DIMENSION, s.rank, 3);
      if (s.operand_count < 4) return wrong(VerifyCode::OPERAND, s.operand_count, 4);
    }
    for (int i = 0; i < s.operand_count; i++)
      if (!operand(i)) return false;
    if (matmul) {
      const int64_t need = matmul_scratch_bytes(s, section_.operands[1]);
      if (s.scratch_bytes < uint64_t(need)) return wrong(VerifyCode::LIMIT, s.scratch_bytes, need);
    }
    if (!overlaps()) return false;
    stored_ = read_ = 0;
    if (pack) {
      if (s.word_count) return wrong(VerifyCode::NESTING, s.word_count, 0);
      read_ = 1, stored_ = 2;
    }
    if (matmul) read_ = grouped_ ? 11 : 3, stored_ = 4;
    if (!pack && !words()) return false;
    record();
    return true;
  }

  // ---- sections that differ from an earlier one in places alone: layers of a network ----
  // What was proved of that one holds for this one but for where its operands lie, which is looked at here: arguments and what
  // they allow, ends, alignment. Whatever is otherwise is proved as if there had been no other: false then says nothing.
  static constexpr int REPEATING_SECTIONS = 8;  // fewer are proved one by one
  struct Proved {
    const uint8_t* at;  // of the section: no SectionView, which would be initialised, and all these with it
    uint16_t number;
    int64_t fuel;
    size_t outers;
    uint32_t read, stored;
    uint32_t same[MAX_OPERANDS];
    Footprint print[MAX_OPERANDS];
  };
  void remember() {
    if (head().section_count < REPEATING_SECTIONS) return;
    facts_.repeats = true, facts_.like[section_number_] = uint16_t(section_number_);
    const bool may = kind_ == SectionKind::VECTOR || kind_ == SectionKind::MATMUL || kind_ == SectionKind::ATTENTION;
    if (!may || proved_count_ == PROVED_MAX) return;
    Proved& p = proved_[proved_count_++];
    p.at = reinterpret_cast<const uint8_t*>(section_.head), p.number = uint16_t(section_number_);
    p.fuel = fuel_ - before_[section_number_].fuel;
    p.outers = facts_.outer_rows - outers_before_, p.read = read_, p.stored = stored_;
    const size_t n = section_.head->operand_count;
    memcpy(p.same, same_, n * sizeof *same_), memcpy(static_cast<void*>(p.print), print_, n * sizeof *print_);
  }
  [[gnu::noinline]] bool again(size_t rest) {
    for (int i = 0; i < proved_count_; i++) {
      if (++next_proved_ >= proved_count_) next_proved_ = 0;
      const Proved& p = proved_[next_proved_];
      if (!differs_in_places(section_at(p.at), rest)) continue;
      if (!lies_well(p)) return false;
      kind_ = SectionKind(section_.head->kind), read_ = p.read, stored_ = p.stored;
      before_[section_number_].fuel = fuel_, fuel_ += p.fuel, facts_.outer_rows += p.outers;
      facts_.like[section_number_] = p.number;
      record();
      return true;
    }
    return false;
  }
  // From it, at most. Operands without memory, and those of scratch, are the same.
  bool differs_in_places(const SectionView& one, size_t rest) const {
    const Section& s = *section_.head;
    if (rest < one.head->bytes || memcmp(one.head, &s, sizeof s)) return false;
    constexpr size_t ARG = sizeof(Operand::arg), BASE = offsetof(Operand, base), AFTER = BASE + sizeof(Operand::base);
    for (int i = 0; i < s.operand_count; i++) {
      const Operand &x = section_.operands[i], &y = one.operands[i];
      const auto *a = reinterpret_cast<const uint8_t*>(&x), *b = reinterpret_cast<const uint8_t*>(&y);
      if (memcmp(a + ARG, b + ARG, BASE - ARG) || memcmp(a + AFTER, b + AFTER, sizeof x - AFTER)) return false;
      const bool stays = x.arg == SCRATCH || x.arg == INDEX, argument = x.arg < MAX_ARGS;
      if (argument ? y.arg >= MAX_ARGS : x.arg != y.arg) return false;
      if (stays && x.base != y.base) return false;
    }
    return !memcmp(section_.words, one.words, s.word_count * sizeof(Word));  // of constants only the number is asked
  }
  bool lies_well(const Proved& p) {
    const Operand* const proved = section_at(p.at).operands;
    const int n = section_.head->operand_count;
    int64_t moved[MAX_OPERANDS];
    for (int i = 0; i < n; i++) {
      const Operand& x = section_.operands[i];
      print_[i] = p.print[i], moved[i] = 0;
      if (x.arg == SCRATCH || x.arg == INDEX) continue;
      const bool workspace = x.arg == WORKSPACE;
      if (!workspace && x.arg >= head().arg_count) return false;
      const int64_t element = DTYPE_BYTES[x.dtype], bytes = workspace ? head().workspace_bytes : args()[x.arg].bytes;
      if (!workspace) {
        const ProgramArg& a = args()[x.arg];
        if (a.dtype != x.dtype || x.mode & (READ | WRITE) & ~a.mode || a.align < element) return false;
      }
      if (x.base & (element - 1) || __builtin_sub_overflow(x.base, proved[i].base, &moved[i])) return false;
      if (moved[i] < -print_[i].low || moved[i] > bytes - print_[i].high) return false;
      print_[i].low += moved[i], print_[i].high += moved[i];
    }
    // Operands that meet have moved together; those that met still do.
    for (int w = 0; w < n; w++) {
      if (!(section_.operands[w].mode & WRITE)) continue;
      for (int i = 0; i < n; i++) {
        if (i == w) continue;
        const bool meet = section_.operands[i].arg == section_.operands[w].arg && print_[i].high > print_[w].low &&
                          print_[w].high > print_[i].low;
        const bool met = proved[i].arg == proved[w].arg;
        if (meet ? !met || moved[i] != moved[w] : p.same[i] >> w & 1) return false;
      }
    }
    return true;
  }

  // ---- copies: operand 0 to operand 1, any dtype; operand 2, if there is one, names the row of operand 1 ----
  [[gnu::cold, gnu::noinline]] bool copy() {
    const Section& s = *section_.head;
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::SECTION, 0, got, allowed); };
    const bool scatters = s.operand_count == 3;
    if (!scatters && s.operand_count != 2) return wrong(VerifyCode::OPERAND, s.operand_count, 2);
    if (s.word_count) return wrong(VerifyCode::NESTING, s.word_count, 0);
    for (int i = 0; i < s.operand_count; i++) {
      if (!operand(i)) return false;
      const uint8_t mode = section_.operands[i].mode, allowed = i != 1 ? READ : scatters ? WRITE | GATHER : WRITE;
      if (mode != allowed) return refuse_operand(VerifyCode::PERMISSION, i, mode, allowed);
    }
    for (int d = 0; scatters && d < s.rank; d++)
      if (section_.operands[2].stride[d]) return refuse_operand(VerifyCode::OPERAND, 2, section_.operands[2].stride[d], 0);
    if (section_.operands[0].dtype != section_.operands[1].dtype)
      return refuse_operand(VerifyCode::DTYPE, 1, section_.operands[1].dtype, section_.operands[0].dtype);
    if (!overlaps()) return false;
    read_ = scatters ? 5 : 1, stored_ = scatters ? 0 : 2;  // which row is written is known when it is
    record();
    return true;
  }

  // ---- branches, jumps and loops ----
  // What a branch or a jump may skip are regions, nested or disjoint; those that are open are a stack. A loop must begin in the
  // innermost region in which it ends, and not inside of another loop that has ended: `loops_` are those that no other holds.
  [[gnu::cold, gnu::noinline]] bool control() {
    const Section& s = *section_.head;
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::SECTION, 0, got, allowed); };
    const bool loop = kind_ == SectionKind::LOOP;
    if (s.rank != 1 || (!loop && s.dims[0] != 1)) return wrong(VerifyCode::DIMENSION, s.rank != 1 ? s.rank : s.dims[0], 1);
    const int least = kind_ == SectionKind::BRANCH, most = kind_ != SectionKind::JUMP;
    if (s.operand_count < least || s.operand_count > most) return wrong(VerifyCode::OPERAND, s.operand_count, most);
    if (s.word_count) return wrong(VerifyCode::NESTING, s.word_count, 0);
    if (s.operand_count) {
      if (!operand(0)) return false;
      const Operand& flag = section_.operands[0];
      if (flag.mode != READ) return refuse_operand(VerifyCode::PERMISSION, 0, flag.mode, READ);
      if (flag.dtype != uint8_t(DType::BOOL)) return refuse_operand(VerifyCode::DTYPE, 0, flag.dtype, int64_t(DType::BOOL));
      if (flag.stride[0]) return refuse_operand(VerifyCode::OPERAND, 0, flag.stride[0], 0);
      read_ = 1, stored_ = 0;
      record();
    }
    return loop ? end_loop() : open_region();
  }
  [[gnu::cold, gnu::noinline]] bool open_region() {
    const int64_t first = section_number_ + 1, left = int64_t(head().section_count) - first, skip = section_.head->depth;
    if (skip > left) return refuse(VerifyCode::JUMP, Place::SECTION, 0, skip, left);
    if (!skip) return true;
    const int64_t last = section_number_ + skip;
    Written at_jump;
    if (kind_ == SectionKind::JUMP) at_jump = written_;
    section_number_++, close_regions(), section_number_--;  // those that end here do not hold the new one
    if (region_count_ && last > region_end_[region_count_ - 1])
      return refuse(VerifyCode::NESTING, Place::SECTION, 0, last, region_end_[region_count_ - 1]);
    if (region_count_ < SNAPSHOTS_MAX) snapshot_[region_count_] = kind_ == SectionKind::JUMP ? at_jump : written_;
    region_end_[region_count_] = uint16_t(last), region_number_[region_count_] = uint16_t(first);
    region_count_++;
    return true;
  }
  // Regions that end before the section at hand: what is written then is what is written on both ways here. Where there is
  // no room for a snapshot nothing counts as written, which only costs a zero fill.
  void close_regions() {
    while (region_count_ && region_end_[region_count_ - 1] < section_number_) {
      if (--region_count_ < SNAPSHOTS_MAX) written_.meet(snapshot_[region_count_]);
      else written_.clear();
    }
    before_[section_number_].region = region_count_ ? region_number_[region_count_ - 1] : 0;
  }
  [[gnu::cold, gnu::noinline]] bool end_loop() {
    const int64_t back = section_.head->depth, times = section_.head->dims[0], first = section_number_ - back;
    if (first < 0) return refuse(VerifyCode::JUMP, Place::SECTION, 0, back, section_number_);
    if (before_[first].region != before_[section_number_].region)
      return refuse(VerifyCode::NESTING, Place::SECTION, 0, before_[first].region, before_[section_number_].region);
    while (loop_count_ && loop_begin_[loop_count_ - 1] >= first) loop_count_--;
    if (loop_count_ && loop_end_[loop_count_ - 1] >= first) return refuse(VerifyCode::NESTING, Place::SECTION, 0, first, loop_end_[loop_count_ - 1]);
    loop_begin_[loop_count_] = uint16_t(first), loop_end_[loop_count_++] = uint16_t(section_number_);
    int64_t all;
    if (__builtin_mul_overflow(fuel_ - before_[first].fuel, times, &all) || __builtin_add_overflow(before_[first].fuel, all, &fuel_) ||
        fuel_ > int64_t(FUEL_MAX))
      return refuse(VerifyCode::OVERFLOW, Place::SECTION, 0, times, FUEL_MAX);
    return true;
  }

  // Everything about an attention section but what operand() sees to.
  [[gnu::cold, gnu::noinline]] bool attention() {
    const Section& s = *section_.head;
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::SECTION, 0, got, allowed); };
    if (s.rank < 2) return wrong(VerifyCode::DIMENSION, s.rank, 2);
    if (s.operand_count < 4 || s.operand_count > 5) return wrong(VerifyCode::OPERAND, s.operand_count, 5);
    if (s.word_count != ATTENTION_WORDS) return wrong(VerifyCode::NESTING, s.word_count, ATTENTION_WORDS);
    for (int i = 0; i < s.operand_count; i++)
      if (!operand(i)) return false;
    const int64_t need = attention_scratch_bytes(s, section_.operands[1]);
    if (s.scratch_bytes < uint64_t(need)) return wrong(VerifyCode::LIMIT, s.scratch_bytes, need);
    if (!overlaps()) return false;
    constexpr uint16_t OPS_OF_WORDS[ATTENTION_WORDS] = {OP_mul_k, OP_mov_k, OP_mov_k, OP_end};
    for (at_ = 0; at_ < ATTENTION_WORDS; at_++) {
      const Word& w = section_.words[at_];
      if (w.op != OPS_OF_WORDS[at_]) return refuse_word(VerifyCode::OPCODE, w.op, OPS_OF_WORDS[at_]);
      if (w.a || (w.op == OP_end && w.k)) return refuse_word(VerifyCode::RESERVED, w.a, 0);
    }
    constexpr uint32_t O = 1u << 3;
    stored_ = O, read_ = ((1u << s.operand_count) - 1) & ~O;
    record();
    return true;
  }
  // ---- host functions: whole arrays, row-major; inputs are read, the last operand is written ----
  [[gnu::cold, gnu::noinline]] bool host() {
    const Section& s = *section_.head;
    auto wrong = [&](VerifyCode code, int64_t got, int64_t allowed) { return refuse(code, Place::SECTION, 0, got, allowed); };
    if (s.rank != 1) return wrong(VerifyCode::DIMENSION, s.rank, 1);
    if (!s.operand_count) return wrong(VerifyCode::OPERAND, 0, 1);
    if (s.depth > int64_t(std::size(HostFunction_NAMES))) return wrong(VerifyCode::OPCODE, s.depth, int64_t(std::size(HostFunction_NAMES)));
    host_elements_ = 0;
    stored_ = read_ = 0;
    for (int i = 0; i < s.operand_count; i++)
      if (!operand(i)) return false;
    if (!overlaps()) return false;
    record();
    return true;
  }
  // The rest of operand() for a host function.
  [[gnu::cold, gnu::noinline]] bool host_operand(int i) {
    const Operand& x = section_.operands[i];
    const Section& s = *section_.head;
    const bool last = i == s.operand_count - 1;
    if (x.mode != (last ? WRITE : READ)) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, last ? WRITE : READ);
    if (x.index != NONE || x.limit) return refuse_operand(VerifyCode::RESERVED, i, x.index, NONE);
    if (x.depth < 0 || x.depth > MAX_RANK) return refuse_operand(VerifyCode::DIMENSION, i, x.depth, MAX_RANK);
    int64_t elements = 1;
    for (int d = 0; d < MAX_RANK; d++) {
      const int64_t n = x.stride[d];
      if (d >= x.depth && n) return refuse_operand(VerifyCode::RESERVED, i, n, 0);
      if (n < 0 || n > DIMENSION_MAX) return refuse_operand(VerifyCode::DIMENSION, i, n, DIMENSION_MAX);
      if (d < x.depth && n == 0) elements = 0;
    }
    for (int d = 0; d < x.depth && elements; d++)
      if (__builtin_mul_overflow(elements, x.stride[d], &elements) || elements > s.dims[0])
        return refuse_operand(VerifyCode::DIMENSION, i, x.stride[d], s.dims[0]);
    host_elements_ += elements;  // each at most 2^40
    if (host_elements_ > s.dims[0]) return refuse_operand(VerifyCode::DIMENSION, i, host_elements_, s.dims[0]);
    walk_[i].n = 0, walk_[i].element = elements * DTYPE_BYTES[x.dtype];
    print_[i] = {0, 0, 0, 0, 1, 0, 1};
    if (!elements) return need_operand(x.base == 0, VerifyCode::OUT_OF_BOUNDS, i, x.base, 0);
    (last ? stored_ : read_) |= 1u << i;
    return true;
  }

  // ---- operands ----
  DVM_PROVES bool operand(int i) {
    const Operand& x = section_.operands[i];
    if (x.arg == INDEX) return index_operand(i);
    const bool scratch = x.arg == SCRATCH, workspace = x.arg == WORKSPACE;
    if (x.reserved) return refuse_operand(VerifyCode::RESERVED, i, x.reserved, 0);
    if (!scratch && !workspace && x.arg >= head().arg_count)
      return refuse_operand(VerifyCode::ARGUMENT, i, x.arg, int64_t(head().arg_count) - 1);
    if (scratch && kind_ != SectionKind::VECTOR) return refuse_operand(VerifyCode::ARGUMENT, i, x.arg, WORKSPACE);
    const uint8_t arg_mode = scratch || workspace ? READ | WRITE : args()[x.arg].mode & (READ | WRITE);
    const uint8_t access = x.mode & (READ | WRITE);
    const uint8_t may = READ | WRITE | GATHER | PACKED | (kind_ == SectionKind::MATMUL && i == 1 ? WINDOWS : 0);
    if (x.mode & ~may || !access || access & ~arg_mode)
      return refuse_operand(VerifyCode::PERMISSION, i, x.mode, arg_mode);
    if (x.dtype >= sizeof DTYPE_BYTES) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, sizeof DTYPE_BYTES - 1);
    const uint8_t dtype = scratch ? section_.head->dtype : workspace ? x.dtype : args()[x.arg].dtype;
    if (x.dtype != dtype) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, dtype);
    if (kind_ == SectionKind::HOST) {
      if (!host_operand(i)) return false;
      if (!walk_[i].element) return true;
    } else {
      const int used = is_windows(x) ? WINDOWS_RANK_MAX : MAX_RANK;
      for (int d = section_.head->rank; d < used; d++)
        if (x.stride[d]) return refuse_operand(VerifyCode::RESERVED, i, x.stride[d], 0);
      if (!(is_windows(x) ? windows_shape(i) : shape(i))) return false;
    }
    const uint64_t align = scratch || workspace ? ARENA_ALIGN : args()[x.arg].align;
    const int64_t bytes = scratch ? section_.head->scratch_bytes : workspace ? head().workspace_bytes : args()[x.arg].bytes;
    if (!inside(i, align, bytes)) return false;
    if (!(x.mode & WRITE) || scratch) return true;
    return need_operand(find_blocks(walk_[i], print_[i]), VerifyCode::OVERLAP, i);
  }

  // No memory: strides that `iota` turns into numbers.
  [[gnu::cold, gnu::noinline]] bool index_operand(int i) {
    const Operand& x = section_.operands[i];
    if (kind_ != SectionKind::VECTOR) return refuse_operand(VerifyCode::ARGUMENT, i, x.arg, WORKSPACE);
    if (x.reserved || x.index != NONE || x.limit || x.depth) return refuse_operand(VerifyCode::RESERVED, i, 1, 0);
    if (x.mode != READ) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ);
    if (x.dtype != uint8_t(DType::INT64)) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, int64_t(DType::INT64));
    Walk& walk = walk_[i];
    walk.element = 0, walk.n = 0;
    for (int d = 0; d < MAX_RANK; d++) {
      if (d < section_.head->rank) walk.step(section_.head->dims[d], x.stride[d]);
      else if (x.stride[d]) return refuse_operand(VerifyCode::RESERVED, i, x.stride[d], 0);
    }
    Footprint& print = print_[i];
    print.width = 0;
    if (!find_ends(walk, x.base, print)) return refuse_operand(VerifyCode::OVERFLOW, i, x.base, INDEX_MAX);
    const bool good = print.low >= -INDEX_MAX && print.high <= INDEX_MAX && x.stride[0] >= -INDEX_MAX && x.stride[0] <= INDEX_MAX;
    return need_operand(good, VerifyCode::OUT_OF_BOUNDS, i, print.high, INDEX_MAX);
  }

  // What the section's kind asks of operand i, and where it goes.
  bool shape(int i) {
    const Operand& x = section_.operands[i];
    Walk& walk = walk_[i];
    walk.element = DTYPE_BYTES[x.dtype], walk.n = 0;
    const Section& s = *section_.head;
    const bool attends = kind_ == SectionKind::ATTENTION;
    const bool has_depth = (kind_ == SectionKind::MATMUL && i < 2) || (kind_ == SectionKind::PACK && i == 0) ||
                           (attends && i < 4);
    const bool gathers = x.mode & GATHER, packed = x.mode & PACKED || (kind_ == SectionKind::PACK && i == 1);
    if (gathers && !gathered_shape(i)) return false;
    if (attends && i < 3 && x.index == NONE) {  // Q: keys that query 0 sees; K, V: their width
      const int64_t least = i ? 1 : -DIMENSION_MAX, most = i ? s.depth : DIMENSION_MAX;
      if (x.limit < least || x.limit > most) return refuse_operand(VerifyCode::DIMENSION, i, x.limit, most);
    } else if (grouped_ && i == 0) {
      if (x.index != 3 || x.limit) return refuse_operand(VerifyCode::OPERAND, i, x.index, 3);
    } else if (!gathers && (x.index != NONE || x.limit)) return refuse_operand(VerifyCode::RESERVED, i, x.index, NONE);
    if (x.depth && !gathers && (!has_depth || packed)) return refuse_operand(VerifyCode::RESERVED, i, x.depth, 0);
    if (packed) {
      const bool may = i == 1 && (kind_ == SectionKind::MATMUL || attends ? (x.mode & (READ | WRITE)) == READ
                                                                  : kind_ == SectionKind::PACK && x.mode & WRITE && x.mode & PACKED);
      if (!may || x.stride[0] || x.stride[1]) return refuse_operand(VerifyCode::OPERAND, i, x.mode, READ);
      const bool known = s.dtype == FLOAT32 && (attends ? x.dtype == FLOAT32 : PACKABLE >> x.dtype & 1);
      if (!known || (kind_ == SectionKind::PACK && x.dtype != section_.operands[0].dtype))
        return refuse_operand(VerifyCode::DTYPE, i, x.dtype, FLOAT32);
      const int64_t depth = attends ? x.limit : s.depth;
      if (attends && depth > SLICE_K) return refuse_operand(VerifyCode::DIMENSION, i, depth, SLICE_K);
      walk.element = packed_bytes(s.dims[0], depth, DTYPE_BYTES[x.dtype]);
      for (int d = 2; d < s.rank; d++) walk.step(s.dims[d], x.stride[d]);
      return true;
    }
    const bool each = kind_ == SectionKind::COPY && x.mode & WRITE;
    if (x.stride[0] || each) walk.step(s.dims[0], x.stride[0]);  // 0: one element a row, which may be written once a row
    const int dims = grouped_ && (i == 2 || i > 3) ? 2 : s.rank;  // groups share one C, and its epilogue
    for (int d = 1; d < dims; d++) walk.step(s.dims[d], x.stride[d]);
    if (has_depth) walk.step(attends ? section_.operands[i < 2 ? 1 : 2].limit : s.depth, x.depth);
    if (gathers) walk.step(x.limit, x.depth);
    if (x.arg == SCRATCH) {
      for (int d = 0; d < s.rank; d++)
        if (x.stride[d] != (d ? 0 : element_)) return refuse_operand(VerifyCode::OPERAND, i, x.stride[d], d ? 0 : element_);
    }
    if (attends) return attention_shape(i);
    if (grouped_ && !group_shape(i)) return false;
    if (kind_ == SectionKind::VECTOR || kind_ == SectionKind::COPY || is_control(kind_) || i > 2) return true;
    return product_shape(i);
  }

  // B of a matmul, as windows.
  [[gnu::noinline]] bool windows_shape(int i) {
    const Operand& x = section_.operands[i];
    const Section& s = *section_.head;
    const int64_t width = kernel_width(x), height = kernel_height(x), places = x.limit;
    if (x.mode != (READ | WINDOWS)) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ | WINDOWS);
    if (x.dtype != s.dtype) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, s.dtype);
    if (grouped_ || s.rank > WINDOWS_RANK_MAX) return refuse_operand(VerifyCode::DIMENSION, i, s.rank, WINDOWS_RANK_MAX);
    if (!width || !height || s.depth % (width * height)) return refuse_operand(VerifyCode::OPERAND, i, x.index, s.depth);
    if (places < 1 || s.dims[0] % places) return refuse_operand(VerifyCode::DIMENSION, i, places, s.dims[0]);
    if (x.stride[1]) return refuse_operand(VerifyCode::OPERAND, i, x.stride[1], 0);
    Walk& walk = walk_[i];
    walk.element = DTYPE_BYTES[x.dtype], walk.n = 0;
    walk.step(places, x.stride[0]), walk.step(s.dims[0] / places, x.stride[PLACE_ROW]);
    walk.step(width, x.stride[KERNEL_COLUMN]), walk.step(height, x.stride[KERNEL_ROW]);
    walk.step(s.depth / (width * height), x.depth);
    for (int d = 2; d < s.rank; d++) walk.step(s.dims[d], x.stride[d]);
    return true;
  }

  // Q, K not packed, V, O, mask of an attention.
  [[gnu::noinline]] bool attention_shape(int i) {
    const Operand& x = section_.operands[i];
    constexpr int K = 1, V = 2, O = 3, MASK = 4;
    if (i == MASK) {
      const bool known = x.dtype == FLOAT32 || x.dtype == uint8_t(DType::BOOL);
      if (!known) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, FLOAT32);
      if (x.mode != READ) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ);
      return need_operand(!x.stride[0] || x.stride[0] == DTYPE_BYTES[x.dtype], VerifyCode::OPERAND, i, x.stride[0], 0);
    }
    if (x.dtype != FLOAT32) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, FLOAT32);
    const bool may = i == O ? (x.mode & ~READ) == WRITE : x.mode == READ;
    if (!may) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, i == O ? WRITE : READ);
    const int64_t across = i == K || i == V ? x.stride[1] : x.stride[0];
    if (across) return refuse_operand(VerifyCode::OPERAND, i, across, 0);
    return need_operand(i < V || x.depth == 4, VerifyCode::OPERAND, i, x.depth, 4);
  }

  [[gnu::cold, gnu::noinline]] bool gathered_shape(int i) {
    const Operand& x = section_.operands[i];
    const bool scatters = kind_ == SectionKind::COPY && i == 1 && x.mode == (WRITE | GATHER) && x.index == 2;
    if (!scatters && (kind_ != SectionKind::VECTOR || x.mode & (WRITE | PACKED)))
      return refuse_operand(VerifyCode::OPERAND, i, x.mode, READ | GATHER);
    if (x.index >= section_.head->operand_count) return refuse_operand(VerifyCode::OPERAND, i, x.index, section_.head->operand_count - 1);
    const Operand& index = section_.operands[x.index];
    const bool good = (index.dtype == uint8_t(DType::INT32) || index.dtype == uint8_t(DType::INT64)) && index.stride[0] == 0 &&
                      index.arg != INDEX && index.mode & READ && !(index.mode & GATHER);
    if (!good) return refuse_operand(VerifyCode::OPERAND, i, x.index, NONE);
    if (x.limit < 1 || x.limit > DIMENSION_MAX) return refuse_operand(VerifyCode::DIMENSION, i, x.limit, DIMENSION_MAX);
    return true;
  }

  // Rows in groups: A, C and what the epilogue touches are the same for all of them; their numbers of rows are whole numbers.
  [[gnu::cold, gnu::noinline]] bool group_shape(int i) {
    const Operand& x = section_.operands[i];
    if (i % 2 == 0 || i > 3) return need_operand(!x.stride[2], VerifyCode::OPERAND, i, x.stride[2], 0);
    if (i == 1) return true;
    const bool whole = x.dtype == uint8_t(DType::INT32) || x.dtype == uint8_t(DType::INT64);
    if (!whole) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, int64_t(DType::INT64));
    if (x.mode != READ) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ);
    return need_operand(!x.stride[0] && !x.stride[1], VerifyCode::OPERAND, i, x.stride[0], 0);
  }

  // A, B not packed, C of a matmul; source of a pack.
  DVM_PRODUCTS [[gnu::noinline]] bool product_shape(int i) {
    const Operand& x = section_.operands[i];
    const bool matmul = kind_ == SectionKind::MATMUL;
    const uint8_t dtype = section_.head->dtype;
    const bool bytes = matmul && i < 2 && dtype == uint8_t(DType::INT32) && (bit_of(DType::INT8) | bit_of(DType::UINT8)) >> x.dtype & 1;
    const bool may = matmul ? x.dtype == dtype || bytes : PACKABLE >> x.dtype & 1;
    if (!may) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, dtype);
    const int64_t element = DTYPE_BYTES[x.dtype];
    if (i == 2) {
      if (x.mode != (READ | WRITE)) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ | WRITE);
      return need_operand(x.stride[0] == element, VerifyCode::OPERAND, i, x.stride[0], element);
    }
    if (x.mode != READ) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ);
    const bool is_a = matmul && i == 0;
    const int64_t along = is_a ? x.stride[1] : x.stride[0], across = is_a ? x.stride[0] : x.stride[1];
    if (matmul && across) return refuse_operand(VerifyCode::OPERAND, i, across, 0);
    return need_operand(along == element || x.depth == element, VerifyCode::OPERAND, i, along, element);
  }

  bool inside(int i, uint64_t align, int64_t bytes) {
    const Operand& x = section_.operands[i];
    const Walk& walk = walk_[i];
    Footprint& print = print_[i];
    print.width = 0;
    if (!find_ends(walk, x.base, print)) return refuse_operand(VerifyCode::OVERFLOW, i, x.base, bytes);
    if (print.low < 0) return refuse_operand(VerifyCode::OUT_OF_BOUNDS, i, print.low, 0);
    if (print.high > bytes) return refuse_operand(VerifyCode::OUT_OF_BOUNDS, i, print.high, bytes);
    uint64_t offsets = uint64_t(x.base);
    for (int d = 0; d < walk.n; d++) offsets |= uint64_t(walk.stride[d]);
    const uint64_t element = DTYPE_BYTES[x.dtype];
    if (offsets & (element - 1) || align < element) return refuse_operand(VerifyCode::ALIGNMENT, i, align, element);
    return true;
  }

  // What one operand writes, another may touch only at the very same places, element by element.
  DVM_PROVES bool overlaps() {
    const int n = section_.head->operand_count;
    for (int i = 0; i < n; i++) same_[i] = 1u << i;
    for (int w = 0; w < n; w++) {
      if (!(section_.operands[w].mode & WRITE)) continue;
      for (int i = 0; i < n; i++) {
        if (i == w || section_.operands[i].arg != section_.operands[w].arg) continue;
        if (print_[i].high <= print_[w].low || print_[w].high <= print_[i].low) continue;
        if (same_places(section_.operands[i], section_.operands[w]) && (kind_ == SectionKind::VECTOR || (kind_ == SectionKind::MATMUL && i >= 2))) {
          same_[i] |= 1u << w;
          continue;
        }
        if (!print_[i].width) find_blocks(walk_[i], print_[i]);
        if (!print_[w].width) find_blocks(walk_[w], print_[w]);
        if (!apart(print_[i], print_[w])) return refuse_operand(VerifyCode::OVERLAP, i, print_[i].low, print_[w].high);
      }
    }
    return true;
  }
  bool same_places(const Operand& x, const Operand& y) const {
    bool same = x.base == y.base && x.dtype == y.dtype && !((x.mode | y.mode) & (GATHER | PACKED));
    for (int d = 0; d < section_.head->rank; d++) same &= x.stride[d] == y.stride[d] || section_.head->dims[d] == 1;
    return same;
  }

  // ---- words ----
  bool words() {
    const Section& s = *section_.head;
    const bool epilogue = kind_ == SectionKind::MATMUL;
    if (!s.word_count && !epilogue) return refuse(VerifyCode::NESTING, Place::SECTION, 0, 0, 1);
    if (!s.word_count) return true;
    in_pass_ = epilogue, has_acc_ = false, row_began_ = false;
    slots_ = rows_set_ = gathered_ = 0;
    accumulated_ = pending_ = 0;
    for (int i = 0, n = s.word_count; i < n; i++) {
      at_ = i;
      if (!word(section_.words[i])) return false;
    }
    const uint16_t last = section_.words[s.word_count - 1].op;
    const uint16_t end = epilogue ? OP_end : OP_end_row;
    return need_word(last == end, VerifyCode::NESTING, last, end);
  }

  bool word(const Word& w) {
    if (w.op >= OP_COUNT) return refuse_word(VerifyCode::OPCODE, w.op, OP_COUNT - 1);
    const OpInfo& op = OPS[w.op];
    if (op.a == Field::EMPTY && w.a) return refuse_word(VerifyCode::RESERVED, w.a, 0);
    if (op.a == Field::OPERAND && !operand_number(w.a)) return false;
    if (op.k == Field::EMPTY && w.k) return refuse_word(VerifyCode::RESERVED, w.k, 0);
    if (op.k == Field::SLOT && w.k >= MAX_SLOTS) return refuse_word(VerifyCode::SLOT, w.k, MAX_SLOTS - 1);
    if (op.k == Field::ROW && w.k >= MAX_ROW_SCALARS) return refuse_word(VerifyCode::ROW_SCALAR, w.k, MAX_ROW_SCALARS - 1);
    if (!(op.dtypes >> section_.head->dtype & 1)) return refuse_word(VerifyCode::DTYPE, section_.head->dtype, op.dtypes);
    row_began_ |= op.row != ROW_gather;
    switch (op.group) {
      case Group::BINARY: return sets_acc((op.row == ROW_mov || needs_acc()) && source(op.form, w));
      case Group::UNARY: return needs_acc();
      case Group::LOAD:
        if (op.row == ROW_iota) return sets_acc(is_index(w.a));
        return sets_acc(needs_pass() && reads(w.a));
      case Group::STORE: return needs_acc() && destination(op.row, w);
      case Group::REDUCE: return needs_acc() && accumulate(op.row, w.a);
      case Group::RUNNING: return needs_acc() && running(w.a);
      case Group::FOLD: return sets_acc(fold(op.row, w.a));
      default: return control(op.row, w);
    }
  }

  bool operand_number(uint16_t a) {
    if (a >= section_.head->operand_count) return refuse_word(VerifyCode::OPERAND, a, int64_t(section_.head->operand_count) - 1);
    return need_word(kind_ == SectionKind::VECTOR || a >= 2, VerifyCode::OPERAND, a, 2);  // A and B are not the epilogue's
  }
  bool needs_acc() { return need_word(has_acc_, VerifyCode::UNINITIALISED); }
  bool sets_acc(bool good) { return has_acc_ = good; }
  bool needs_pass() { return need_word(in_pass_, VerifyCode::NESTING); }
  bool needs_row_section() { return need_word(!in_pass_, VerifyCode::NESTING); }

  bool source(Form form, const Word& w) {
    switch (form) {
      case FORM_S: return needs_pass() && need_word(slots_ >> w.k & 1, VerifyCode::UNINITIALISED, w.k);
      case FORM_I: return needs_pass() && inner_stride(w.a, element_) && reads(w.a);
      case FORM_K: return need_word(element_ == 4 || w.k < section_.head->constant_count, VerifyCode::CONSTANT, w.k, section_.head->constant_count - 1);
      case FORM_R:
        if (kind_ != SectionKind::VECTOR) return refuse_word(VerifyCode::NESTING);
        return need_word(rows_set_ >> w.k & 1, VerifyCode::UNINITIALISED, w.k);
      default: return inner_stride(w.a, 0) && reads(w.a);  // FORM_B: a binary word has a form
    }
  }
  // Operand forms that take elements as they lie: compute dtype, one stride.
  DVM_PROVES bool inner_stride(int i, int64_t stride) {
    const Operand& x = section_.operands[i];
    if (x.dtype != section_.head->dtype) return refuse_word(VerifyCode::OPERAND_FORM, x.dtype, section_.head->dtype);
    return need_word(x.stride[0] == stride, VerifyCode::OPERAND_FORM, x.stride[0], stride);
  }
  bool is_index(int i) {
    return need_word(section_.operands[i].arg == INDEX, VerifyCode::OPERAND_FORM, section_.operands[i].arg, INDEX);
  }
  DVM_PROVES bool reads(int i) {
    const Operand& x = section_.operands[i];
    if (x.arg == INDEX) return refuse_word(VerifyCode::OPERAND_FORM, x.arg, SCRATCH);
    if (!(x.mode & READ)) return refuse_word(VerifyCode::PERMISSION, x.mode, READ);
    if (x.mode & GATHER && !(gathered_ >> i & 1)) return refuse_word(VerifyCode::UNINITIALISED, i);
    if (!(stored_ & same_[i])) {
      if (x.arg == SCRATCH) return refuse_word(VerifyCode::UNINITIALISED, i);
      read_ |= 1u << i;
    }
    return true;
  }

  bool destination(Row row, const Word& w) {
    switch (row) {
      case ROW_store_slot: return slots_ |= 1u << w.k, needs_pass();
      case ROW_store_row: return rows_set_ |= 1u << w.k, needs_row_section();
      case ROW_store_per_row: {
        const int64_t stride = section_.operands[w.a].stride[0];
        return needs_row_section() && need_word(!stride, VerifyCode::OPERAND_FORM, stride, 0) && writes(w.a);
      }
      case ROW_store_any:
      case ROW_store_any_nt: {
        facts_.streams |= row == ROW_store_any_nt;
        const bool still = section_.operands[w.a].stride[0] == 0 && section_.head->dims[0] > 1;
        return needs_pass() && need_word(!still, VerifyCode::OPERAND_FORM, 0, 4) && writes(w.a);
      }
      default:  // store, store_nt
        facts_.streams |= row == ROW_store_nt;
        return needs_pass() && inner_stride(w.a, element_) && writes(w.a);
    }
  }
  bool writes(int i) {
    const Operand& x = section_.operands[i];
    if (!(x.mode & WRITE)) return refuse_word(VerifyCode::PERMISSION, x.mode, WRITE);
    stored_ |= 1u << i;
    return true;
  }

  // `kind`: 0 sums, 1 maxima, 2 minima, 3 products, as the rows of the table follow one another.
  bool reduction(int kind, uint16_t r) {
    return need_word(r / REDUCTIONS_EACH == kind, VerifyCode::REDUCTION, r, REDUCTIONS_EACH * kind + REDUCTIONS_EACH - 1);
  }
  bool accumulate(Row row, uint16_t r) {
    if (kind_ != SectionKind::VECTOR) return refuse_word(VerifyCode::NESTING);
    if (!needs_pass() || !reduction(row - ROW_acc_sum, r)) return false;
    if (accumulated_ >> r & 1) return refuse_word(VerifyCode::REDUCTION, r);  // once in a pass: rows may fold at once
    accumulated_ |= 1u << r;
    return true;
  }
  bool running(uint16_t r) {
    if (kind_ != SectionKind::VECTOR) return refuse_word(VerifyCode::NESTING);
    if (!needs_pass()) return false;
    if (r >= MAX_RUNNING || running_ >> r & 1) return refuse_word(VerifyCode::REDUCTION, r, MAX_RUNNING - 1);
    running_ |= 1u << r;
    return true;
  }
  bool fold(Row row, uint16_t r) {
    if (!needs_row_section() || !reduction(row - ROW_fold_sum, r)) return false;
    if (!(pending_ >> r & 1)) return refuse_word(VerifyCode::REDUCTION, r, pending_);
    pending_ &= ~(1u << r);
    return true;
  }
  bool all_folded() { return need_word(!pending_, VerifyCode::REDUCTION, pending_, 0); }

  bool control(Row row, const Word& w) {
    if (kind_ != SectionKind::VECTOR) return need_word(row == ROW_end && at_ + 1 == section_.head->word_count, VerifyCode::NESTING);
    switch (row) {
      case ROW_gather: {
        const Operand& x = section_.operands[w.a];
        if (row_began_) return refuse_word(VerifyCode::NESTING);
        if (!(x.mode & GATHER)) return refuse_word(VerifyCode::OPERAND_FORM, x.mode, GATHER);
        gathered_ |= 1u << w.a;
        return reads(x.index);
      }
      case ROW_fetch: return true;
      case ROW_pass:
        pass_at_ = at_, slots_ = 0, accumulated_ = running_ = 0, has_acc_ = false;
        if (!needs_row_section() || !all_folded()) return false;
        return in_pass_ = true;
      case ROW_loop:
        if (!needs_pass()) return false;
        if (w.k != uint32_t(at_ - pass_at_)) return refuse_word(VerifyCode::JUMP, w.k, at_ - pass_at_);
        if (w.a != accumulated_) return refuse_word(VerifyCode::REDUCTION, w.a, accumulated_);
        pending_ = accumulated_, in_pass_ = has_acc_ = false;
        return true;
      case ROW_end_row:
        if (at_ + 1 != section_.head->word_count) return refuse_word(VerifyCode::NESTING, at_, section_.head->word_count - 1);
        return needs_row_section() && all_folded();
      default: return refuse_word(VerifyCode::NESTING, w.op, OP_end_row);
    }
  }

  // ---- what may run at the same time ----
  void gather() {
    if (is_control(kind_) || kind_ == SectionKind::HOST) return void(touched_count_ = -1);
    const int n = section_.head->operand_count;
    for (int i = 0; i < n; i++)
      if (!print_[i].width) print_[i].width = uint64_t(print_[i].high - print_[i].low), print_[i].pitch = 0;  // blocks were never asked for
    bool beside = touched_count_ >= 0 && touched_count_ + n <= TOUCHED_MAX;
    for (int i = 0; beside && i < n; i++) {
      const Operand& x = section_.operands[i];
      for (int t = 0; beside && t < touched_count_; t++)
        beside = x.arg != touched_[t].arg || !(touched_[t].writes || x.mode & WRITE) || apart(print_[i], touched_[t].print);
    }
    if (beside) facts_.beside.set(size_t(section_number_));
    else touched_count_ = 0;
    for (int i = 0; i < n; i++) {
      const Operand& x = section_.operands[i];
      if (x.arg != SCRATCH && x.arg != INDEX) touched_[touched_count_++] = {x.arg, bool(x.mode & WRITE), print_[i]};
    }
  }

  // ---- what is written, in section order ----
  DVM_PROVES void record() {
    const int n = section_.head->operand_count;
    for (int i = 0; i < n; i++) {
      const Operand& x = section_.operands[i];
      if (!(read_ >> i & 1) || written_.covers(x.arg, print_[i].low, print_[i].high)) continue;
      if (x.arg == WORKSPACE) facts_.zero_workspace = true;
      else if (args()[x.arg].mode & WRITE) args()[x.arg].mode |= ZERO_FILL;  // nobody's old bytes
    }
    for (int i = 0; i < n; i++) {
      const Operand& x = section_.operands[i];
      if (stored_ >> i & 1 && x.arg != SCRATCH) written_.add(x.arg, print_[i]);
    }
  }

  uint8_t* const bytes_;
  const size_t n_;
  VerifyFacts& facts_;
  VerifyError error_;
  int64_t fuel_ = 0;
  // of the section at hand
  int section_number_ = 0;
  bool grouped_ = false;               // a matmul whose rows lie in groups
  SectionView section_{};
  SectionKind kind_{};
  int64_t element_ = 4;              // bytes of an element of the compute dtype
  int64_t host_elements_ = 0;        // of the operands so far
  int64_t elements_ = 0, rows_ = 0;  // product of all dimensions; of those beyond the first
  uint32_t read_ = 0, stored_ = 0;   // operands read before this section wrote them; operands stored so far
  // of the words so far
  int at_ = 0, pass_at_ = 0;
  bool in_pass_ = false, has_acc_ = false, row_began_ = false;
  uint32_t slots_ = 0, rows_set_ = 0, gathered_ = 0, accumulated_ = 0, pending_ = 0, running_ = 0;
  int region_count_ = 0, loop_count_ = 0;
  int touched_count_ = -1;           // -1: the next section runs after all before it
  int proved_count_ = 0, next_proved_ = -1;
  size_t outers_before_ = 0;           // of the section at hand, of facts_.outer_rows
  // From here on nothing is initialised, and the largest come last.
  uint32_t same_[MAX_OPERANDS];      // operands that write the same places, itself included
  Walk walk_[MAX_OPERANDS];          // where operands go
  Footprint print_[MAX_OPERANDS];    // and what they touch
  Written written_;
  struct Touched {
    uint16_t arg;
    bool writes;
    Footprint print;
  };
  static constexpr int TOUCHED_MAX = 64;
  Touched touched_[TOUCHED_MAX];     // by sections that may run at the same time
  struct Before {
    int64_t fuel;
    uint16_t region;  // number of the innermost region that holds the section; 0: none
  };
  Before before_[MAX_SECTIONS + 1];  // by section
  // of branches and loops; what is read here was written before
  uint16_t region_end_[MAX_SECTIONS], region_number_[MAX_SECTIONS];  // last and first section of open regions
  uint16_t loop_begin_[MAX_SECTIONS], loop_end_[MAX_SECTIONS];
  static constexpr int SNAPSHOTS_MAX = 8;
  Written snapshot_[SNAPSHOTS_MAX];    // of the outermost open regions: what is written where they are skipped
  static constexpr int PROVED_MAX = 24;
  Proved proved_[PROVED_MAX];          // sections that others may be like
  static_assert(std::is_trivially_default_constructible_v<Proved> && std::is_trivially_default_constructible_v<Touched>);
};

}  // namespace

DVM_PROVES VerifyError verify(uint8_t* bytes, size_t n, VerifyFacts& facts) { return Verifier(bytes, n, facts).run(); }

}  // namespace dvm
