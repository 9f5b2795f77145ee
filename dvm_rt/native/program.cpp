// The checksum, and how bytes become a VerifiedProgram.
#include "program.h"
#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>
#include "known_passes.h"
#include "matmul.h"
#include "near_code.h"
#include "register_passes.h"
#include "together.h"
#include "verify.h"

namespace dvm {

constexpr size_t SMALL_BYTES = 2048;  // of most programs of one kernel

// dvm_rt/isa/checksum.py defines it.
DVM_PROVES uint64_t checksum(const uint8_t* bytes, size_t n) {
  static_assert(std::endian::native == std::endian::little);
  constexpr uint64_t MULTIPLIER = 0x9E3779B97F4A7C15;
  auto mix = [](uint64_t lane, uint64_t word) {
    lane ^= word;
    lane = (lane ^ lane >> 29) * MULTIPLIER;
    asm("" : "+r"(lane));  // scalar: vectors without a 64-bit multiplication take three times as long
    return lane;
  };
  // Words are loaded one by one, as those who have just written them stored them: a wider load would wait for the stores.
  auto word = [bytes](size_t at) {
    uint64_t word;
    memcpy(&word, bytes + at, 8);
    return word;
  };
  uint64_t a = 0x243F6A8885A308D3, b = 0x13198A2E03707344, c = 0xA4093822299F31D0, d = 0x082EFA98EC4E6C89;
  size_t at = 0;
  for (; at + 32 <= n; at += 32)
    a = mix(a, word(at)), b = mix(b, word(at + 8)), c = mix(c, word(at + 16)), d = mix(d, word(at + 24));
  uint64_t lane[4] = {a, b, c, d};
  for (int i = 0; at < n; i++, at += 8) {
    uint64_t rest = 0;
    memcpy(&rest, bytes + at, n - at < 8 ? n - at : 8);
    lane[i] = mix(lane[i], rest);
  }
  uint64_t h = n * MULTIPLIER;
  for (uint64_t l : lane) h = (h ^ l) * MULTIPLIER, h ^= h >> 32;
  return h;
}

static size_t first_section_at(const ProgramHead& head) { return sizeof(ProgramHead) + head.arg_count * sizeof(ProgramArg); }

// Steps of the odometer: when a dimension steps, those below it are at their last index and go back to 0.
static int64_t resolve(SectionView& section, Outer* out) {
  int64_t walked[MAX_OPERANDS] = {}, outers = 0;
  for (int d = 1; d < section.head->rank; d++) {
    const int64_t count = section.head->dims[d];
    if (count == 1) continue;
    Outer& outer = out[outers++];
    outer = {{}, count};
    for (int i = 0; i < section.head->operand_count; i++) {
      const uint64_t stride = section.operands[i].stride[d];  // unsigned: wraps in the middle, never in the end
      outer.gain[i] = int64_t(stride - uint64_t(walked[i]));
      walked[i] = int64_t(uint64_t(walked[i]) + stride * uint64_t(count - 1));
    }
  }
  if (!outers) out[0] = {};
  section.outer = out, section.outers = outers;
  return outers ? outers : 1;
}

// The same for a section that differs from this one, which is resolved, in places alone: its words too are those.
static int64_t again(SectionView& section, const SectionView& like, Outer* out) {
  const int64_t rows = like.outers ? like.outers : 1;
  memcpy(static_cast<void*>(out), like.outer, size_t(rows) * sizeof(Outer));
  memcpy(const_cast<Word*>(section.words), like.words, section.head->word_count * sizeof(Word));
  section.outer = out, section.outers = like.outers;
  return rows;
}

// Tells each `pass` of a vector section the number of its loop, if there is one. The block is not anybody else's yet.
static void number_passes(const SectionView& section) {
  Word* words = const_cast<Word*>(section.words);
  for (int i = 0; i < section.head->word_count; i++)
    if (words[i].op == OP_pass) words[i].a = number_of_pass(words + i);
}

// Words that may need register words beside them.
static size_t register_word_count(const SectionView& section) {
  const Section& head = *section.head;
  return SectionKind(head.kind) == SectionKind::VECTOR && DType(head.dtype) == DType::FLOAT32 ? head.word_count : 0;
}
// Writes those of each pass that has no loop of its own; the one beside `pass` tells whether there are. False: no pass has any.
DVM_PROVES [[gnu::flatten, gnu::noinline]] static bool write_register_words(const SectionView& section, Word* out) {
  bool found = false;
  for (int i = 0; i < section.head->word_count; i++) {
    if (section.words[i].op != OP_pass) continue;
    const bool held = !section.words[i].a && hold_in_registers(section, section.words + i, out + i);
    out[i] = {uint16_t(held), 0, 0};
    found |= held;
  }
  return found;
}

// Its rows are shared one by one, if at all: not each of them.
static bool one_by_one(const SectionView& section) { return !section.split.wide() || section.split.parts == 1; }
static uint32_t nanoseconds(const SectionView& section) { return uint32_t(std::min<int64_t>(work_of(section), 1 << 30)); }

DVM_PROVES std::unique_ptr<VerifiedProgram> VerifiedProgram::load(const uint8_t* bytes, size_t n, VerifyError& error,
                                                       std::pmr::memory_resource* memory) {
  // Nobody else can change the copy between the proof and its use. The stack is where the caches have it.
  uint64_t small[SMALL_BYTES / sizeof(uint64_t)];
  uint64_t* copy = small;
  if (n > SMALL_BYTES) {
    thread_local std::vector<uint64_t> large;
    if (large.size() * sizeof(uint64_t) < n) large.resize(n / sizeof(uint64_t) + 1);
    copy = large.data();
  }
  memcpy(copy, bytes, n);
  VerifyFacts facts;
  error = verify(reinterpret_cast<uint8_t*>(copy), n, facts);
  if (error.code != VerifyCode::OK) return nullptr;
  const ProgramHead& head = *reinterpret_cast<const ProgramHead*>(copy);
  const size_t outers_at = sizeof(VerifiedProgram) + (n + 7) / 8 * 8, sections_at = outers_at + facts.outer_rows * sizeof(Outer);
  const size_t beside_at = sections_at + head.section_count * sizeof(SectionView);
  const size_t register_words_at = beside_at + head.section_count * sizeof(Beside);
  size_t register_words_count = 0;
  for (auto [i, at] = std::pair{0, first_section_at(head)}; i < head.section_count; i++) {
    const SectionView section = section_at(reinterpret_cast<uint8_t*>(copy) + at);
    register_words_count += register_word_count(section), at += section.head->bytes;
  }
  const size_t block_bytes = register_words_at + register_words_count * sizeof(Word);
  static_assert(alignof(Outer) == 8 && alignof(SectionView) == 8 && sizeof(VerifiedProgram) % 8 == 0);
  uint8_t* block = static_cast<uint8_t*>(memory->allocate(block_bytes, alignof(VerifiedProgram)));
  std::unique_ptr<VerifiedProgram> program(new (block) VerifiedProgram);
  program->memory_ = memory, program->block_bytes_ = block_bytes;
  program->sections_ = reinterpret_cast<SectionView*>(block + sections_at);
  program->zero_workspace_ = facts.zero_workspace, program->streams_ = facts.streams;
  memcpy(block + sizeof(VerifiedProgram), copy, n);
  const uint8_t* at = program->bytes() + first_section_at(head);
  Word* register_words = reinterpret_cast<Word*>(block + register_words_at);
  Outer* outer = reinterpret_cast<Outer*>(block + outers_at);
  for (int i = 0; i < head.section_count; i++) {
    SectionView section = section_at(at);
    const SectionView* like = facts.repeats && facts.like[i] < i ? program->sections_ + facts.like[i] : nullptr;
    if (SectionKind(section.head->kind) == SectionKind::VECTOR) {
      outer += like ? again(section, *like, outer) : resolve(section, outer);
      if (!like) number_passes(section);
    }
    if (const size_t count = register_word_count(section)) {
      bool held = like && like->register_words;
      if (held) memcpy(register_words, like->register_words, count * sizeof(Word));
      else if (!like) held = write_register_words(section, register_words);
      if (held) section.register_words = register_words;
      register_words += count;
    }
    at += section.head->bytes;
    section.split = like ? like->split : split_of(section);
    program->split_ns_ += section.split.ns;
    if (const size_t room = size_t(section.split.blocks) * MAX_REDUCTIONS * sizeof(double); room > program->result_bytes_)
      program->result_bytes_ = room;
    program->sections_[i] = section;
  }
  Beside* beside = reinterpret_cast<Beside*>(block + beside_at);
  for (int i = head.section_count - 1; i >= 0; i--) {
    const SectionView* section = program->sections_ + i;
    beside[i] = {};
    if (i + 1 < head.section_count && facts.beside[size_t(i) + 1] && one_by_one(section[0]) && one_by_one(section[1])) {
      beside[i].count = beside[i + 1].count + 1;
      if (!beside[i + 1].ns) beside[i + 1].ns = nanoseconds(section[1]);
      beside[i].ns = nanoseconds(section[0]);
    }
  }
  return program;
}

// ---- choices that change no bits ----------------------------------------------------------------------------------------

namespace {
constexpr uint32_t DISTANCES = 2048 ^ 4096;  // exchanges these two, and the next row (0) with 6144 bytes ahead
constexpr uint32_t WAS_PAST = 1;             // in field k of a store, which says nothing: it went past the caches

// The word as the choice has it, or as it was if it has it: each exchange is its own inverse. The verifier and the machine ask
// the same of both words.
Word exchanged(Word w, uint8_t choice) {
  if (choice & OTHER_DISTANCE && w.op == OP_fetch) w.k ^= DISTANCES;
  if (!(choice & THROUGH_CACHES)) return w;
  if (w.op == OP_store_nt || w.op == OP_store_any_nt)
    return {uint16_t(w.op == OP_store_nt ? OP_store : OP_store_any), w.a, WAS_PAST};
  if ((w.op == OP_store || w.op == OP_store_any) && w.k == WAS_PAST)
    return {uint16_t(w.op == OP_store ? OP_store_nt : OP_store_any_nt), w.a, 0};
  return w;
}

constexpr double LONG_PRODUCT = 1 << 20;  // multiplications: from about 15 us on
constexpr int64_t TILE_ROWS = 14;         // fewer leave no choice of tiles
constexpr int64_t L2_ELEMENTS = 1 << 18;  // of A: fewer stay in L2 whatever is chosen

uint8_t choices_of_product(const SectionView& section) {
  const Section& head = *section.head;
  const int64_t m = head.dims[1];
  if (DType(head.dtype) != DType::FLOAT32 || double(head.dims[0]) * double(m) * double(head.depth) < LONG_PRODUCT) return 0;
  const uint8_t fetched = matmul_b(head, section.operands[1]) == MatmulB::PACKED ? OTHER_DISTANCE : 0;
  const uint8_t blocks = double(m) * double(head.depth) > L2_ELEMENTS ? OTHER_BLOCKS : 0;
  return m > TILE_ROWS ? fetched | OTHER_TILES | blocks : fetched;
}
}  // namespace

// Those that would change a word, or the way through a product that takes its time.
uint8_t VerifiedProgram::choices() const {
  uint8_t found = 0;
  for (const SectionView& section : sections()) {
    if (SectionKind(section.head->kind) == SectionKind::MATMUL) found |= choices_of_product(section);
    for (int i = 0; SectionKind(section.head->kind) == SectionKind::VECTOR && i < section.head->word_count; i++) {
      const uint16_t op = section.words[i].op;
      if (op == OP_store_nt || op == OP_store_any_nt) found |= THROUGH_CACHES;
      if (op == OP_fetch) found |= OTHER_DISTANCE;
    }
  }
  return found;
}

void VerifiedProgram::choose(uint8_t choice) const {
  const uint8_t change = chosen_ ^ choice;
  if (!change) return;
  for (SectionView& section : std::span(sections_, head().section_count)) {
    section.choice = choice;
    for (int i = 0; SectionKind(section.head->kind) == SectionKind::VECTOR && i < section.head->word_count; i++) {
      Word& word = const_cast<Word*>(section.words)[i];
      word = exchanged(word, change);
    }
    if (section.register_words) write_register_words(section, const_cast<Word*>(section.register_words));
  }
  chosen_ = choice;
}

}  // namespace dvm
