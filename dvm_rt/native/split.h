// How a section is cut for several threads: a function of its shape and words, never of the number of threads.
//
// Each kind of section has units: pieces that can run in any order and at once, because no unit reads what another writes
// (the verifier's overlap rule) and no bit of a result depends on who else runs. A part is a range of units; units of
// a part run in rising order. Sections of a program stay in order: all parts of one end before the next one begins.
//
// A vector section of few rows longer than BLOCK is wide: not its rows are shared but each of them, by blocks, pass by pass.
// Reductions allow it because they are defined by blocks (isa/table.py), other words because each element has its own.
//
// To add a kind: give split_of() its units and its modelled time, and let its run function do units [run.begin, run.end)
// with what the running thread owns (Context, run.scratch). A kind that split_of() does not know has one unit.
#pragma once
#include <cstdint>

namespace dvm {

struct SectionView;

struct Split {
  int64_t units = 1;   // vector: rows; matmul: matmul_cut() of matmul.h; pack: panels of all slices; attention: attention_pieces() a head
  int64_t parts = 1;   // that the machine cuts the units into; 1: too little work to share
  int64_t ns = 0;      // modelled time on one thread; 0 where parts is 1
  int64_t blocks = 0;  // wide sections: BLOCKs of a row; `parts` cuts each row, by blocks, in each of its passes
  int64_t beside = 1;  // the least units of a part
  bool wide() const { return blocks > 0; }
  int64_t pieces() const { return wide() ? blocks : units; }  // the most parts that there can be
};
constexpr int64_t PARTS_MAX = 256;
constexpr int64_t GROUP = 16;  // short rows run in groups (many_rows.h): long parts have whole ones

Split split_of(const SectionView& section);

// First unit of a part; part number `parts` begins where the section ends.
inline int64_t part_begin(const Split& split, int64_t part) {
  const int64_t begin = part * (split.units / split.parts) + part * (split.units % split.parts) / split.parts;
  return part < split.parts && split.units >= split.parts * 4 * GROUP ? begin / GROUP * GROUP : begin;
}

}  // namespace dvm
