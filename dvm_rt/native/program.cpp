// The checksum, and how bytes become a VerifiedProgram.
#include "program.h"
#include <bit>
#include <cstring>
#include "verify.h"

namespace dvm {

// dvm_rt/isa/checksum.py defines it.
uint64_t checksum(const uint8_t* bytes, size_t n) {
  static_assert(std::endian::native == std::endian::little);
  constexpr uint64_t MULTIPLIER = 0x9E3779B97F4A7C15;
  uint64_t a = 0x243F6A8885A308D3, b = 0x13198A2E03707344, c = 0xA4093822299F31D0, d = 0x082EFA98EC4E6C89;
  auto mix = [](uint64_t& lane, uint64_t word) {
    const uint64_t x = lane ^ word;
    lane = (x ^ x >> 29) * MULTIPLIER;
  };
  auto mix_end = [&](uint64_t& lane, size_t from) {
    if (from >= n) return;
    uint64_t word = 0;
    memcpy(&word, bytes + from, n - from < 8 ? n - from : 8);
    mix(lane, word);
  };
  size_t at = 0;
  for (; at + 32 <= n; at += 32) {
    uint64_t words[4];
    memcpy(words, bytes + at, 32);
    mix(a, words[0]), mix(b, words[1]), mix(c, words[2]), mix(d, words[3]);
  }
  mix_end(a, at), mix_end(b, at + 8), mix_end(c, at + 16), mix_end(d, at + 24);
  uint64_t h = n * MULTIPLIER;
  for (uint64_t lane : {a, b, c, d}) h = (h ^ lane) * MULTIPLIER, h ^= h >> 32;
  return h;
}

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

std::unique_ptr<VerifiedProgram> VerifiedProgram::load(const uint8_t* bytes, size_t n, VerifyError& error) {
  std::unique_ptr<VerifiedProgram> program(new VerifiedProgram);
  program->bytes_.assign(bytes, bytes + n);
  VerifyFacts facts;
  error = verify(program->bytes_.data(), n, facts);
  if (error.code != VerifyCode::OK) return nullptr;
  program->zero_workspace_ = facts.zero_workspace, program->streams_ = facts.streams;
  const ProgramHead& head = program->head();
  program->sections_.reserve(head.section_count);
  program->outers_.reset(new Outer[facts.outer_rows]);
  const uint8_t* at = program->bytes_.data() + sizeof(ProgramHead) + head.arg_count * sizeof(ProgramArg);
  Outer* outer = program->outers_.get();
  for (int i = 0; i < head.section_count; i++) {
    SectionView section = section_at(at);
    at += section.head->bytes;
    if (SectionKind(section.head->kind) == SectionKind::VECTOR) outer += resolve(section, outer);
    program->sections_.push_back(section);
  }
  return program;
}

}  // namespace dvm
