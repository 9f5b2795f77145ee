#include "verify.h"

namespace dvm {
namespace {

struct Verifier {
  uint8_t* bytes;
  size_t n;
  VerifyFacts& facts;
  VerifyError error;

  bool fail(VerifyCode code, uint32_t word = 0) { return error.code = code, error.word = word, false; }

  const ProgramHead& head() const { return *reinterpret_cast<const ProgramHead*>(bytes); }

  bool head_is_good() {
    const ProgramHead& h = head();
    if (n < sizeof h) return fail(VerifyCode::TRUNCATED);
    if (h.magic != PROGRAM_MAGIC) return fail(VerifyCode::MAGIC);
    if (h.version != VERSION) return fail(VerifyCode::VERSION);
    if (h.table_hash != TABLE_HASH) return fail(VerifyCode::TABLE_HASH);
    if (n > MAX_PROGRAM_BYTES) return fail(VerifyCode::LIMIT);
    if (h.bytes != n) return fail(VerifyCode::TRUNCATED);
    constexpr size_t CHECKED_FROM = offsetof(ProgramHead, checksum) + 8;
    if (h.checksum != checksum(bytes + CHECKED_FROM, n - CHECKED_FROM)) return fail(VerifyCode::CHECKSUM);
    return true;
  }

  bool section_is_good(const SectionView& s) {
    if (s.head->kind == uint16_t(SectionKind::VECTOR)) {
      size_t outers = 0;
      for (int d = 1; d < s.head->rank; d++) outers += s.head->dims[d] != 1;
      facts.outer_rows += outers ? outers : 1;
    }
    for (int i = 0; i < s.head->word_count; i++) facts.streams |= s.words[i].op == OP_store_nt;
    return true;
  }

  bool run() {
    if (!head_is_good()) return false;
    size_t at = sizeof(ProgramHead) + head().arg_count * sizeof(ProgramArg);
    for (int i = 0; i < head().section_count; i++) {
      error.section = i;
      if (n - at < sizeof(Section)) return fail(VerifyCode::TRUNCATED);
      SectionView s = section_at(bytes + at);
      if (s.head->bytes > n - at) return fail(VerifyCode::TRUNCATED);
      at += s.head->bytes;
      if (!section_is_good(s)) return false;
    }
    return true;
  }
};

}  // namespace

VerifyError verify(uint8_t* bytes, size_t n, VerifyFacts& facts) {
  Verifier verifier{bytes, n, facts, {}};
  verifier.run();
  return verifier.error;
}

}  // namespace dvm
