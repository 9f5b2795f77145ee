// Views of program bytes, and the only thing that can run: a VerifiedProgram.
#pragma once
#include <memory>
#include <memory_resource>
#include <new>
#include <span>
#include "layout.h"
#include "split.h"
#include "tuning.h"

namespace dvm {

// Reduction lanes of a compute dtype: elements of the longest strip.
inline int64_t lanes_of(uint8_t dtype) { return DTYPE_BYTES[dtype] == 8 ? LANES / 2 : LANES; }
inline bool is_compute_dtype(uint8_t dtype) { return dtype < sizeof DTYPE_BYTES && COMPUTE_DTYPES >> dtype & 1; }
// Sections that say which section follows, and compute nothing.
inline bool is_control(SectionKind kind) { return kind >= SectionKind::BRANCH; }
static_assert(SectionKind::BRANCH < SectionKind::JUMP && SectionKind::JUMP < SectionKind::LOOP && std::size(SectionKind_NAMES) == size_t(SectionKind::LOOP) + 1);
inline bool is_write(uint8_t mode) { return mode & WRITE; }

// How an outer dimension of a vector section is stepped; worked out when a program is loaded.
struct Outer {
  int64_t gain[MAX_OPERANDS];  // what operand addresses gain, the way back of the dimensions below included
  int64_t count;
};

// One section inside program bytes. Says nothing about validity: verify() does.
struct SectionView {
  const Section* head;
  const Operand* operands;  // head->operand_count
  const Word* words;        // head->word_count
  const uint64_t* constants;  // head->constant_count
  const Outer* outer = nullptr;  // vector sections of a VerifiedProgram: those dimensions beyond the row that are longer
  int64_t outers = 0;            // than 1, innermost first; outer[0] can always be read
  Split split = {};              // sections of a VerifiedProgram
  uint8_t choice = 0;            // the same: how a product is walked (tuning.h); vector sections have theirs in their words
  const Word* register_words = nullptr;  // the same, one for each word (register_passes.h); null: no pass has any
};
inline SectionView section_at(const uint8_t* bytes) {
  auto* head = reinterpret_cast<const Section*>(bytes);
  auto* operands = reinterpret_cast<const Operand*>(head + 1);
  auto* words = reinterpret_cast<const Word*>(operands + head->operand_count);
  return {head, operands, words, reinterpret_cast<const uint64_t*>(words + head->word_count)};
}

// 64 bits over everything after ProgramHead.checksum / PlanHead.checksum; catches flipped bits, not forgery.
uint64_t checksum(const uint8_t* bytes, size_t n);

// Why a program was refused, and where: number `word` of what `place` names, in section `section`.
enum class Place : uint8_t { HEAD, ARGUMENT, SECTION, OPERAND, WORD };
struct VerifyError {
  VerifyCode code = VerifyCode::OK;
  Place place = Place::HEAD;
  uint16_t section = 0;
  uint32_t word = 0;
  int64_t got = 0, allowed = 0;  // where the rule is about a number
};

// A private copy of program bytes that passed verify(), and what is worked out from it, in one block. No other way to make one,
// no switch to skip it. Nothing changes it but choose(), which knows only words that prove the same before and after, and ways
// through a product.
class VerifiedProgram {
 public:
  // Null, and why, if refused. The block comes from `memory`, which outlives it.
  static std::unique_ptr<VerifiedProgram> load(const uint8_t* bytes, size_t n, VerifyError& error,
                                               std::pmr::memory_resource* memory = std::pmr::new_delete_resource());
  const ProgramHead& head() const { return *reinterpret_cast<const ProgramHead*>(bytes()); }
  const ProgramArg* args() const { return reinterpret_cast<const ProgramArg*>(bytes() + sizeof(ProgramHead)); }
  std::span<const SectionView> sections() const { return {sections_, head().section_count}; }
  bool zero_workspace() const { return zero_workspace_; }  // some section may read what no section wrote
  bool streams() const { return streams_; }                // some section has non-temporal stores
  size_t result_bytes() const { return result_bytes_; }    // of the blocks of the longest row of wide sections
  int64_t split_ns() const { return split_ns_; }           // modelled time of those sections that several threads share
  // For the one machine that runs it, between two runs: how it is tuned, which choices it has, and their exchange.
  Tuning& tuning() const { return tuning_; }
  uint8_t choices() const;
  void choose(uint8_t choice) const;
  VerifiedProgram(const VerifiedProgram&) = delete;
  static void operator delete(VerifiedProgram* program, std::destroying_delete_t) {
    program->memory_->deallocate(program, program->block_bytes_, alignof(VerifiedProgram));
  }

 private:
  VerifiedProgram() = default;
  const uint8_t* bytes() const { return reinterpret_cast<const uint8_t*>(this + 1); }  // then outers, then sections
  std::pmr::memory_resource* memory_;
  size_t block_bytes_;
  SectionView* sections_;
  bool zero_workspace_ = false, streams_ = false;
  int64_t split_ns_ = 0;
  size_t result_bytes_ = 0;
  mutable uint8_t chosen_ = 0;
  mutable Tuning tuning_;
};

}  // namespace dvm
