"""Planted bugs: does the fuzzer see them? Each is a change of one place in a source file of the core; production sources stay
as they are.

    scripts/fuzz --plants [--seconds S] [NAME ...]

One executable holds all of them: in a copy of the sources each statement that has plants becomes a choice that asks
`planted(number)` (planted.h; `--write FOLDER` makes that copy). The fuzzer then hunts for one after the other, each in a process of its own, for
at most so many seconds of CPU time. What is printed: file, bug, executions and seconds until it was seen, and how."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NATIVE, MADE, CORPUS = ROOT / "dvm_rt/native", ROOT / "build/fuzz/plants", ROOT / "build/fuzz/corpus"
SOURCES = ("verify", "program", "split", "threads", "machine", "shared", "matmul", "copy", "vector")
HEADERS = ("footprint.h", "known_passes.h", "whole_passes.h", "windows.h")
GOLDEN_EVERY = 4  # executions: bugs that change results are seen by seeds


@dataclass(frozen=True)
class Plant:
    """`old`, which stands exactly once in the file, becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def change(self, source: str) -> tuple[int, int, str]:
        """Begin and end of what differs, and what stands there instead. ValueError if `old` does not stand there once."""
        if source.count(self.old) != 1:
            raise ValueError(f"plants: {self.name}: places in {self.file}, got {source.count(self.old)}, allowed 1")
        begin, end, new = source.index(self.old), source.index(self.old) + len(self.old), self.new
        while new and begin < end and source[begin] == new[0]:
            begin, new = begin + 1, new[1:]
        while new and begin < end and source[end - 1] == new[-1]:
            end, new = end - 1, new[:-1]
        gone = source[begin:end] if not new else ""
        return begin + len(gone) - len(gone.lstrip()), end - len(gone) + len(gone.rstrip()), new


def _verify(name: str, old: str, new: str) -> Plant:
    return Plant(name, "verify.cpp", old, new)


def _footprint(name: str, old: str, new: str) -> Plant:
    return Plant(name, "footprint.h", old, new)


PLANTS: tuple[Plant, ...] = (
    # head, arguments
    _verify("head-reserved", "if (h.reserved0 || h.reserved1)", "if (h.reserved0)"),
    _verify("argument-mode", "a.mode & ~(READ | WRITE)) return wrong(VerifyCode::ARGUMENT", "a.mode & ~(READ | WRITE | 32)) return wrong(VerifyCode::ARGUMENT"),
    _verify("argument-align", "!power_of_two(a.align) || a.align", "!a.align || a.align"),
    _verify("output-one-byte", "!written_.covers(i, 0, a.bytes)", "!written_.covers(i, 0, 1)"),
    _verify("output-last-byte", "!written_.covers(i, 0, a.bytes)", "!written_.covers(i, 0, a.bytes - 1)"),
    # section
    _verify("section-dtype", ": s.dtype != FLOAT32) return wrong", ": s.dtype > FLOAT32) return wrong"),
    _verify("section-dim-zero", "if (dim < 1 || dim > most)", "if (dim < 0 || dim > most)"),
    _verify("section-unused-dim", "most = d < s.rank ? DIMENSION_MAX : 1", "most = d <= s.rank ? DIMENSION_MAX : 1"),
    _verify("section-scratch", "if (s.scratch_bytes > head().scratch_bytes)", "if (s.scratch_bytes > head().scratch_bytes + 64)"),
    _verify("section-operands", "if (s.operand_count > MAX_OPERANDS)", "if (s.operand_count > MAX_OPERANDS + 1)"),
    _verify("fuel-rows", "int64_t(s.word_count) * strips * rows_", "int64_t(s.word_count) * strips"),
    _verify("fuel-matmul", "strips * rows_ + steps + 1);", "strips * rows_ + 1);"),
    _verify("matmul-scratch", "section_.operands[1]);\n      if (s.scratch_bytes < uint64_t(need))", "section_.operands[1]);\n      if (s.scratch_bytes + 128 < uint64_t(need))"),
    # operands
    _verify("operand-permission", "|| !access || access & ~arg_mode)", "|| !access)"),
    _verify("operand-argument-dtype", "if (x.dtype != dtype) return", "if (DTYPE_BYTES[x.dtype] != DTYPE_BYTES[dtype]) return"),
    _verify("index-limit", "print.high <= INDEX_MAX &&", ""),
    _verify("iota-of-memory", "return need_word(section_.operands[i].arg == INDEX,", "return need_word(true,"),
    _verify("load-of-index", "if (x.arg == INDEX) return refuse_word(", "if (false) return refuse_word("),
    _verify("constant-number", "element_ == 4 || w.k < section_.head->constant_count,", "element_ == 4 || w.k <= section_.head->constant_count,"),
    _verify("row-dtypes", "if (!(op.dtypes >> section_.head->dtype & 1))", "if (false)"),
    _verify("operand-unused-stride", "for (int d = section_.head->rank; d < used; d++)", "for (int d = section_.head->rank + 1; d < used; d++)"),
    _verify("operand-align-argument", "|| align < element)", ")"),
    _verify("operand-align-base-only", "offsets |= uint64_t(walk.stride[d]);", ""),
    _verify("operand-align-stride-only", "uint64_t offsets = uint64_t(x.base);", "uint64_t offsets = 0;"),
    _verify("bounds-low", "if (print.low < 0) return", "if (false) return"),
    _verify("bounds-high-by-1", "if (print.high > bytes) return", "if (print.high > bytes + 1) return"),
    _footprint("bounds-high-by-element", "__builtin_add_overflow(out.high, walk.element, &out.high)", "__builtin_add_overflow(out.high, 0, &out.high)"),
    _footprint("bounds-count", "__builtin_mul_overflow(walk.stride[d], walk.count[d] - 1, &reach)", "__builtin_mul_overflow(walk.stride[d], walk.count[d] - 2, &reach)"),
    _footprint("bounds-32-bit", "walk.count[d] - 1, &reach);", "walk.count[d] - 1, &reach), reach = int32_t(reach);"),
    _footprint("bounds-negative-stride", "int64_t& end = reach < 0 ? out.low : out.high;", "int64_t& end = out.high;"),
    _verify("bounds-last-dimension", "const int dims = grouped_ && (i == 2 || i > 3) ? 2 : s.rank;", "const int dims = grouped_ && (i == 2 || i > 3) ? 2 : s.rank - 1;"),
    _verify("bounds-depth", "if (has_depth) walk.step(attends", "if (has_depth && i) walk.step(attends"),
    _verify("bounds-gather", "if (gathers) walk.step(x.limit, x.depth);", ""),
    _verify("bounds-packed", "walk.element = packed_bytes(s.dims[0], depth, DTYPE_BYTES[x.dtype]);", "walk.element = s.dims[0] * depth * DTYPE_BYTES[x.dtype];"),
    _verify("gather-index-dtype", "(index.dtype == uint8_t(DType::INT32) ||", "(index.dtype == uint8_t(DType::INT32) || index.dtype == uint8_t(DType::INT16) ||"),
    _verify("matmul-across", "if (matmul && across)", "if (matmul && i == 0 && across)"),
    _verify("matmul-along", "return need_operand(along == element || x.depth == element,", "return need_operand(true,"),
    _verify("matmul-c-stride", "return need_operand(x.stride[0] == element, VerifyCode::OPERAND, i, x.stride[0], element);", "return true;"),
    _verify("matmul-c-mode", "if (x.mode != (READ | WRITE)) return", "if (!(x.mode & WRITE)) return"),
    _verify("pack-destination-mode", ": kind_ == SectionKind::PACK && x.mode & WRITE && x.mode & PACKED)", ": kind_ == SectionKind::PACK && x.mode & PACKED)"),
    _verify("row-buffer-stride", "if (x.stride[d] != (d ? 0 : element_)) return", "if (d == 0 && x.stride[d] != element_) return"),
    # aliasing
    _verify("separate-none", "return need_operand(find_blocks(walk_[i], print_[i]),", "return need_operand(find_blocks(walk_[i], print_[i]) || true,"),
    _footprint("separate-first-only", "separate &= stride >= below;", "separate &= stride >= uint64_t(walk.element);"),
    _footprint("dense-always", "if (stride != below && !first)", "if (false)"),
    _footprint("blocks-pitch-of-first", "out.pitch = std::gcd(out.pitch, stride);", "out.pitch = first;"),
    _footprint("blocks-count", "if (stride == first * out.blocks && out.times == 1)", "if (out.times == 1)"),
    _footprint("apart-width", "return from_a + a.width <= from_b ||", "return from_a < from_b ||"),
    _footprint("apart-other-pitch", "const uint64_t pitch = std::gcd(a.pitch, b.pitch);", "const uint64_t pitch = a.pitch;"),
    _verify("overlap-base", "bool same = x.base == y.base && x.dtype", "bool same = x.dtype"),
    _verify("overlap-stride", "same &= x.stride[d] == y.stride[d] || section_.head->dims[d] == 1;", ""),
    _verify("overlap-end", "if (print_[i].high <= print_[w].low ||", "if (print_[i].high <= print_[w].low + 4 ||"),
    _verify("overlap-product", "&& (kind_ == SectionKind::VECTOR || (kind_ == SectionKind::MATMUL && i >= 2)))", ")"),
    # words
    _verify("word-reserved-k", "if (op.k == Field::EMPTY && w.k)", "if (false)"),
    _verify("word-operand", "if (a >= section_.head->operand_count)", "if (a > section_.head->operand_count)"),
    _verify("word-epilogue-ab", "return need_word(kind_ == SectionKind::VECTOR || a >= 2,", "return need_word(kind_ == SectionKind::VECTOR || a >= 1,"),
    _verify("word-slot-limit", "w.k >= MAX_SLOTS)", "w.k > MAX_SLOTS)"),
    _verify("word-row-limit", "w.k >= MAX_ROW_SCALARS)", "w.k > MAX_ROW_SCALARS)"),
    _verify("acc-unary", "case Group::UNARY: return needs_acc();", "case Group::UNARY: return true;"),
    _verify("acc-store", "case Group::STORE: return needs_acc() &&", "case Group::STORE: return"),
    _verify("acc-after-pass", "slots_ = 0, accumulated_ = running_ = 0, has_acc_ = false;", "slots_ = 0, accumulated_ = running_ = 0;"),
    _verify("running-beyond", "if (r >= MAX_RUNNING || running_ >> r & 1)", "if (r < 32 && running_ >> r & 1)"),
    _verify("running-twice", "if (r >= MAX_RUNNING || running_ >> r & 1)", "if (r >= MAX_RUNNING)"),
    _verify("running-unset", "case Group::RUNNING: return needs_acc() && running(w.a);", "case Group::RUNNING: return running(w.a);"),
    _verify("acc-after-loop", "in_pass_ = has_acc_ = false;", "in_pass_ = false;"),
    _verify("slot-unset", "need_word(slots_ >> w.k & 1, VerifyCode::UNINITIALISED, w.k)", "true"),
    _verify("slot-of-last-pass", "pass_at_ = at_, slots_ = 0,", "pass_at_ = at_,"),
    _verify("row-unset", "return need_word(rows_set_ >> w.k & 1,", "return need_word(true,"),
    _verify("form-s-in-row-section", "case FORM_S: return needs_pass() &&", "case FORM_S: return"),
    _verify("form-i-stride", "needs_pass() && inner_stride(w.a, element_) && reads(w.a)", "needs_pass() && reads(w.a)"),
    _verify("form-b-dtype", "if (x.dtype != section_.head->dtype) return refuse_word(VerifyCode::OPERAND_FORM", "if (stride && x.dtype != section_.head->dtype) return refuse_word(VerifyCode::OPERAND_FORM"),
    _verify("read-permission", "if (!(x.mode & READ)) return", "if (!(x.mode & (READ | WRITE))) return"),
    _verify("read-before-gather", "if (x.mode & GATHER && !(gathered_ >> i & 1)) return", "if (false) return"),
    _verify("read-row-buffer", "if (x.arg == SCRATCH) return refuse_word(VerifyCode::UNINITIALISED, i);", "if (x.arg == SCRATCH) return true;"),
    _verify("write-permission", "if (!(x.mode & WRITE)) return refuse_word", "if (!(x.mode & (READ | WRITE))) return refuse_word"),
    _verify("store-any-still", "section_.head->dims[0] > 1;\n", "section_.head->dims[0] > 64;\n"),
    _verify("store-per-row-in-pass", "return needs_row_section() && need_word(!stride,", "return need_word(!stride,"),
    _verify("reduction-kind", "return need_word(r / REDUCTIONS_EACH == kind,", "return need_word(r < MAX_REDUCTIONS,"),
    _verify("fold-nothing", "if (!(pending_ >> r & 1)) return", "if (false) return"),
    _verify("fold-forgotten", "bool all_folded() { return need_word(!pending_,", "bool all_folded() { return need_word(true,"),
    _verify("loop-distance", "if (w.k != uint32_t(at_ - pass_at_))", "if (w.k > uint32_t(at_ - pass_at_))"),
    _verify("loop-mask", "if (w.a != accumulated_)", "if (w.a & ~accumulated_)"),
    _verify("end-row-in-the-middle", "if (at_ + 1 != section_.head->word_count) return refuse_word(VerifyCode::NESTING, at_,", "if (false) return refuse_word(VerifyCode::NESTING, at_,"),
    _verify("no-end", "return need_word(last == end,", "return need_word(true,"),
    _verify("gather-late", "if (row_began_) return", "if (in_pass_) return"),
    # copies, host functions, attention, products of other dtypes, index operands, constants
    _verify("copy-mode", "if (mode != allowed) return refuse_operand", "if (!(mode & allowed)) return refuse_operand"),
    _verify("copy-dtype", "if (section_.operands[0].dtype != section_.operands[1].dtype)", "if (false)"),
    _verify("copy-words", "if (s.word_count) return wrong(VerifyCode::NESTING, s.word_count, 0);\n    for", "for"),
    _verify("copy-to-one-place", "const bool each = kind_ == SectionKind::COPY && x.mode & WRITE;", "const bool each = false;"),
    _verify("host-mode", "if (x.mode != (last ? WRITE : READ)) return", "if (!(x.mode & (last ? WRITE : READ))) return"),
    _verify("host-elements", "if (host_elements_ > s.dims[0]) return", "if (host_elements_ > 2 * s.dims[0]) return"),
    _verify("host-bytes", "walk_[i].element = elements * DTYPE_BYTES[x.dtype];", "walk_[i].element = elements;"),
    _verify("host-rank", "if (x.depth < 0 || x.depth > MAX_RANK) return", "if (x.depth > MAX_RANK) return"),
    _verify("host-negative-dimension", "if (n < 0 || n > DIMENSION_MAX) return", "if (n > DIMENSION_MAX) return"),
    _verify("host-unused-dimension", "if (d >= x.depth && n) return", "if (false) return"),
    _verify("host-nothing-somewhere", "if (!elements) return need_operand(x.base == 0,", "if (!elements) return need_operand(true,"),
    _verify("host-function", "if (s.depth > int64_t(std::size(HostFunction_NAMES)))", "if (s.depth > 1 + int64_t(std::size(HostFunction_NAMES)))"),
    _verify("host-reads", "(last ? stored_ : read_) |= 1u << i;", "stored_ |= 1u << i;"),
    _verify("attention-scratch", "if (s.scratch_bytes < uint64_t(need)) return wrong(VerifyCode::LIMIT, s.scratch_bytes, need);\n    if (!overlaps", "if (!overlaps"),
    _verify("attention-width", "if (x.limit < least || x.limit > most)", "if (x.limit < least)"),
    _verify("attention-width-of-v", "section_.operands[i < 2 ? 1 : 2].limit", "section_.operands[1].limit"),
    _verify("attention-mask-dtype", "const bool known = x.dtype == FLOAT32 || x.dtype == uint8_t(DType::BOOL);", "const bool known = true;"),
    _verify("attention-mask-stride", "return need_operand(!x.stride[0] || x.stride[0] == DTYPE_BYTES[x.dtype],", "return need_operand(true,"),
    _verify("attention-across", "if (across) return refuse_operand(VerifyCode::OPERAND, i, across, 0);\n    return need_operand(i < V", "return need_operand(i < V"),
    _verify("attention-depth-of-o", "return need_operand(i < V || x.depth == 4,", "return need_operand(true,"),
    _verify("attention-words", "if (w.op != OPS_OF_WORDS[at_])", "if (false)"),
    _verify("attention-word-fields", "if (w.a || (w.op == OP_end && w.k))", "if (false)"),
    _verify("attention-reads", "read_ = ((1u << s.operand_count) - 1) & ~O;", "read_ = 0;"),
    _verify("matmul-byte-result", "const bool bytes = matmul && i < 2 &&", "const bool bytes = matmul &&"),
    _verify("matmul-dtype", "const bool may = matmul ? x.dtype == dtype || bytes :", "const bool may = matmul ? DTYPE_BYTES[x.dtype] == DTYPE_BYTES[dtype] || bytes :"),
    _verify("pack-two-dtypes", "(kind_ == SectionKind::PACK && x.dtype != section_.operands[0].dtype)", "false"),
    _verify("index-operand-low", "print.low >= -INDEX_MAX &&", ""),
    _verify("index-operand-dtype", "if (x.dtype != uint8_t(DType::INT64)) return", "if (x.dtype > uint8_t(DType::INT64)) return"),
    _verify("index-operand-mode", "if (x.mode != READ) return refuse_operand(VerifyCode::PERMISSION, i, x.mode, READ);\n    if (x.dtype", "if (x.dtype"),
    _verify("index-operand-depth", "x.index != NONE || x.limit || x.depth)", "x.index != NONE || x.limit)"),
    _verify("index-operand-elsewhere", "if (kind_ != SectionKind::VECTOR) return refuse_operand(VerifyCode::ARGUMENT", "if (false) return refuse_operand(VerifyCode::ARGUMENT"),
    _verify("gather-by-index-operand", "index.arg != INDEX && index.mode & READ", "index.mode & READ"),
    _verify("constants-of-4-bytes", "if (s.constant_count && element_ != 8)", "if (false)"),
    _verify("store-any-permission", "need_word(!still, VerifyCode::OPERAND_FORM, 0, 4) && writes(w.a);", "need_word(!still, VerifyCode::OPERAND_FORM, 0, 4);"),
    # products of windows
    _verify("windows-mode", "if (x.mode != (READ | WINDOWS)) return", "if (!(x.mode & READ)) return"),
    _verify("windows-anywhere", "(kind_ == SectionKind::MATMUL && i == 1 ? WINDOWS : 0);", "(kind_ == SectionKind::MATMUL && i >= 1 ? WINDOWS : 0);"),
    _verify("windows-dtype", "if (x.dtype != s.dtype) return refuse_operand(VerifyCode::DTYPE, i, x.dtype, s.dtype);\n    if (grouped_", "if (grouped_"),
    _verify("windows-grouped", "if (grouped_ || s.rank > WINDOWS_RANK_MAX)", "if (s.rank > WINDOWS_RANK_MAX)"),
    _verify("windows-rank", "if (grouped_ || s.rank > WINDOWS_RANK_MAX)", "if (grouped_ || s.rank > WINDOWS_RANK_MAX + 1)"),
    _verify("windows-no-width", "if (!width || !height || s.depth", "if (!height || s.depth"),
    _verify("windows-no-height", "if (!width || !height || s.depth", "if (!width || s.depth"),
    _verify("windows-part-of-a-channel", "if (!width || !height || s.depth % (width * height)) return", "if (!width || !height) return"),
    _verify("windows-no-places", "if (places < 1 || s.dims[0] % places) return", "if (places && s.dims[0] % places) return"),
    _verify("windows-part-of-a-row", "if (places < 1 || s.dims[0] % places) return", "if (places < 1) return"),
    _verify("windows-across", "if (x.stride[1]) return refuse_operand(VerifyCode::OPERAND, i, x.stride[1], 0);\n    Walk", "Walk"),
    _verify("windows-unused-stride", "const int used = is_windows(x) ? WINDOWS_RANK_MAX : MAX_RANK;", "const int used = is_windows(x) ? 0 : MAX_RANK;"),
    _verify("windows-bounds-place", "walk.step(places, x.stride[0]),", ""),
    _verify("windows-bounds-place-row", "walk.step(s.dims[0] / places, x.stride[PLACE_ROW]);", "walk.step(s.dims[0] / places - 1, x.stride[PLACE_ROW]);"),
    _verify("windows-bounds-column", "walk.step(width, x.stride[KERNEL_COLUMN]),", "walk.step(width - 1, x.stride[KERNEL_COLUMN]),"),
    _verify("windows-bounds-row", "walk.step(height, x.stride[KERNEL_ROW]);", "walk.step(height - 1, x.stride[KERNEL_ROW]);"),
    _verify("windows-bounds-channel", "walk.step(s.depth / (width * height), x.depth);", ";"),
    _verify("windows-bounds-batch", "for (int d = 2; d < s.rank; d++) walk.step(s.dims[d], x.stride[d]);\n    return true;\n  }\n\n  // Q, K", "for (int d = 3; d < s.rank; d++) walk.step(s.dims[d], x.stride[d]);\n    return true;\n  }\n\n  // Q, K"),
    Plant("windows-place-too-far", "matmul.cpp", "left = w.places - place, first = smaller(count, left);", "left = w.places - place + 1, first = smaller(count, left);"),
    Plant("windows-row-wrap", "matmul.cpp", "from[1] = (row + 1) * w.place_row - first * PLACE;", "from[1] = row * w.place_row - first * PLACE;"),
    Plant("windows-tail-columns", "matmul.cpp", "lanes_between(first * PLACE - half * W, count * PLACE - half * W, PLACE);", "lanes_between(first * PLACE - half * W, W, PLACE);"),
    Plant("windows-third-row", "matmul.cpp", "return count - first <= w.places && place < w.places;", "return true;"),
    Plant("windows-one-row", "matmul.cpp", "const bool one_row = place + smaller(columns, PANEL) <= w.places;", "const bool one_row = place + smaller(columns, PANEL) <= w.places + 1;"),
    Plant("places-one-lane-more", "windows.h", "out.lanes |= ((1u << here) - 1) << lane;", "out.lanes |= ((1u << here << (here < W)) - 1) << lane;"),
    Plant("places-next-row", "windows.h", "place = 0, row++, lane += w.place_row - w.places;", "place = 0, row++, lane += w.place_row - w.places + 1;"),
    Plant("columns-rows-beside", "windows.h", "t.left = w.places - place;", "t.left = w.places;"),
    Plant("added-where-it-is-written", "matmul.cpp", "i && x.begin < c.end && c.begin < x.end) return false;", "i && x.begin == c.end) return false;"),
    Plant("added-row", "matmul.cpp", "for (int n = 0; n < ADDED_MAX && t.add[n]; n++) sum += loadPart(t.add[n] + i * t.add_row[n] + v * W, rest);", "for (int n = 0; n < ADDED_MAX && t.add[n]; n++) sum += loadPart(t.add[n] + v * W, rest);"),
    Plant("windows-next-row-of-kernel", "matmul.cpp", "at += w.row - w.width * w.column;", "at += w.row - (w.width - 1) * w.column;"),
    Plant("windows-next-channel", "matmul.cpp", "at += w.channel - w.height * w.row;", "at += w.channel;"),
    Plant("windows-second-slice", "matmul.cpp", "copy(p, k0, t.k, column, end, const_cast<float*>(from.b));", "copy(p, p.has_windows ? 0 : k0, t.k, column, end, const_cast<float*>(from.b));"),
    Plant("windows-other-places", "matmul.cpp", "(j + i) / w.places * w.place_row + (j + i) % w.places * w.place;", "i / w.places * w.place_row + (j + i) % w.places * w.place;"),
    # passes with loops of their own
    Plant("pass-any-slot", "known_passes.h", "names_slot ? p->k : 0);", "0);"),
    Plant("pass-shorter", "known_passes.h", "if (found || count != int(sizeof...(STEP))) return;", "if (found || count < int(sizeof...(STEP))) return;"),
    Plant("pass-wrong-number", "known_passes.h", "found = number;", "found = number > 10 ? number - 1 : number;"),
    Plant("pass-strip-less", "whole_passes.h", "const long whole = c->row_bytes / STRIP_BYTES * STRIP_BYTES;", "const long whole = (c->row_bytes + STRIP_BYTES - 1) / STRIP_BYTES * STRIP_BYTES;"),
    Plant("pass-last-strip", "whole_passes.h", "take_all<FULL>(s, STEP_NUMBERS);",
          "const long at = s.at; s.at -= at && at + STRIP_BYTES == bytes ? STRIP_BYTES : 0; take_all<FULL>(s, STEP_NUMBERS); s.at = at;"),
    Plant("pass-store-slot", "whole_passes.h", "s.slot[SLOT][j] = x[j];", "s.slot[0][j] = x[j];"),
    Plant("pass-constant", "whole_passes.h", "FORM == FORM_R) s.k[I] = all(one_element<FORM>(c, p));",
          "FORM == FORM_R) s.k[I] = all(one_element<FORM>(c, p - 1));"),
    Plant("pass-store-nan", "whole_passes.h", "return WAY == BUFFERED || are_numbers(x);", "return true;"),
    _verify("alike-argument-dtype", "if (a.dtype != x.dtype || x.mode", "if (x.mode"),
    _verify("alike-permission", "x.mode & (READ | WRITE) & ~a.mode || a.align", "a.align"),
    _verify("alike-align-argument", "~a.mode || a.align < element) return false;", "~a.mode) return false;"),
    _verify("alike-align", "if (x.base & (element - 1) || __builtin_sub_overflow", "if (__builtin_sub_overflow"),
    _verify("alike-low", "if (moved[i] < -print_[i].low || moved[i] > bytes", "if (moved[i] > bytes"),
    _verify("alike-high", "< -print_[i].low || moved[i] > bytes - print_[i].high)", "< -print_[i].low)"),
    _verify("alike-other-high", "print_[i].low += moved[i], print_[i].high += moved[i];", "print_[i].low += moved[i];"),
    _verify("alike-meet", "if (meet ? !met || moved[i] != moved[w] : p.same", "if (!meet && p.same"),
    _verify("alike-moved", "!met || moved[i] != moved[w]", "!met"),
    _verify("alike-met", "!met || moved[i] != moved[w]", "moved[i] != moved[w]"),
    _verify("alike-same", ": p.same[i] >> w & 1) return false;", ": false) return false;"),
    _verify("alike-fuel", "fuel_ += p.fuel, facts_", "facts_"),
    _verify("alike-read", "read_ = p.read, stored_ = p.stored;", "stored_ = p.stored;"),
    _verify("alike-unrecorded", "facts_.like[section_number_] = p.number;\n      record();", "facts_.like[section_number_] = p.number;"),
    _verify("alike-words", "return !memcmp(section_.words, one.words, s.word_count * sizeof(Word));", "return true;"),
    _verify("alike-strides", "memcmp(a + AFTER, b + AFTER, sizeof x - AFTER)) return false;", "false) return false;"),
    _verify("alike-head", "if (rest < one.head->bytes || memcmp(one.head, &s, sizeof s)) return false;", "if (rest < one.head->bytes) return false;"),
    _verify("alike-workspace-for-scratch", "if (argument ? y.arg >= MAX_ARGS : x.arg != y.arg) return false;", ""),
    Plant("group-folded", "whole_passes.h", "folded[reductions_before(I)] = (V*)c->many.folded[p->a];", "folded[reductions_before(I)] = (V*)c->many.folded[0];"),
    # choices of stores and distances
    Plant("choose-load", "program.cpp", "if (choice & OTHER_DISTANCE && w.op == OP_fetch)", "if (choice & OTHER_DISTANCE && (w.op == OP_fetch || w.op == OP_load))"),
    Plant("choose-form-of-store", "program.cpp", "w.op == OP_store_nt ? OP_store : OP_store_any),", "w.op == OP_store_nt ? OP_store_any : OP_store),"),
    Plant("choose-any-store", "program.cpp", "&& w.k == WAS_PAST)", ")"),
    Plant("choose-not-back", "program.cpp", "&& w.k == WAS_PAST)", "&& false)"),
    Plant("choose-operand", "program.cpp", "OP_store : OP_store_any), w.a, WAS_PAST};", "OP_store : OP_store_any), 0, WAS_PAST};"),
    Plant("choose-forgets", "program.cpp", "chosen_ = choice;", ";"),
    # branches, jumps, loops
    _verify("control-skip", "if (skip > left) return", "if (skip > left + 1) return"),
    _verify("control-skip-backwards", "has_depth ? s.depth < !is_control(kind_)", "has_depth ? s.depth < (is_control(kind_) ? -1 : 1)"),
    _verify("control-back", "if (first < 0) return", "if (first < -1) return"),
    _verify("control-words", "if (s.word_count) return wrong(VerifyCode::NESTING, s.word_count, 0);\n    if (s.operand_count) {", ";\n    if (s.operand_count) {"),
    _verify("control-dims", "(!loop && s.dims[0] != 1)", "(!loop && s.dims[0] > 2)"),
    _verify("control-two-flags", "s.operand_count < least || s.operand_count > most", "s.operand_count < least || s.operand_count > most + 1"),
    _verify("control-flag-mode", "if (flag.mode != READ) return", "if (!(flag.mode & READ)) return"),
    _verify("control-flag-dtype", "if (flag.dtype != uint8_t(DType::BOOL)) return", "if (DTYPE_BYTES[flag.dtype] != 1) return"),
    _verify("control-flag-stride", "if (flag.stride[0]) return", "if (false) return"),
    _verify("control-flag-written", "read_ = 1, stored_ = 0;\n      record();", "read_ = 1, stored_ = 0;\n      ;"),
    _verify("region-overlap", "if (region_count_ && last > region_end_[region_count_ - 1])", "if (false)"),
    _verify("region-never-closed", "if (--region_count_ < SNAPSHOTS_MAX) written_.meet(snapshot_[region_count_]);", "if (--region_count_ < SNAPSHOTS_MAX) ;"),
    _verify("region-deep", "else written_.clear();", "else ;"),
    _verify("loop-across-region", "if (before_[first].region != before_[section_number_].region)", "if (false)"),
    _verify("loop-overlap", "if (loop_count_ && loop_end_[loop_count_ - 1] >= first) return", "if (false) return"),
    _verify("loop-fuel", "__builtin_mul_overflow(fuel_ - before_[first].fuel, times, &all)", "__builtin_mul_overflow(fuel_ - before_[first].fuel, times > 1 ? times - 1 : 1, &all)"),
    Plant("machine-loop-limit", "machine.cpp", "++times < head.dims[0];", "++times <= head.dims[0];"),
    Plant("machine-loop-times", "machine.cpp", "times = 0;", ";"),
    Plant("machine-loop-trap", "machine.cpp", "if (set) threads_[0].context->trap = {TrapCode::LOOP_LIMIT", "if (false) threads_[0].context->trap = {TrapCode::LOOP_LIMIT"),
    Plant("machine-loop-after-trap", "machine.cpp", "std::fill(times_.begin(), times_.end(), 0);", ";"),
    Plant("machine-branch", "machine.cpp", "number + 1 + (set ? 0 : size_t(head.depth))", "number + 1 + (set ? size_t(head.depth) : 0)"),
    # what is cleared
    _verify("workspace-not-cleared", "facts_.zero_workspace = true;", ";"),
    _verify("read-before-write", "else if (args()[x.arg].mode & WRITE) args()[x.arg].mode |= ZERO_FILL;", ";"),
    _footprint("covers-start-only", "ranges_[i - 1].arg == arg && ranges_[i - 1].high >= high;", "ranges_[i - 1].arg == arg && ranges_[i - 1].high > low;"),
    _footprint("written-other-argument", "if (begin > 0 && ranges_[begin - 1].arg == arg &&", "if (begin > 0 &&"),
    # loading, machine
    Plant("odometer-way-back", "program.cpp", "stride * uint64_t(count - 1));", "stride * uint64_t(count));"),
    Plant("odometer-wide-dims", "program.cpp", "int64_t(stride - uint64_t(walked[i]))", "int32_t(int16_t(stride - uint64_t(walked[i])))"),
    Plant("machine-no-zero-fill", "machine.cpp", "if (wanted[i].mode & ZERO_FILL)", "if (wanted[i].mode & ZERO_FILL && i > 0)"),
    Plant("machine-zero-fill-short", "machine.cpp", "memset(args[i].address, 0, wanted[i].bytes)", "memset(args[i].address, 0, wanted[i].bytes & ~7ull)"),
    Plant("machine-workspace", "machine.cpp", "if (program.zero_workspace()) memset", "if (false) memset"),
    Plant("machine-base", "machine.cpp", "address[i] = start + x.base;", "address[i] = start + (x.arg == WORKSPACE ? 0 : x.base);"),
    Plant("machine-part-skips-a-row", "machine.cpp", "thread.scratch, part_begin(cut.split, part),", "thread.scratch, part_begin(cut.split, part) + (part > 0),"),
    Plant("copy-repeated", "copy.cpp", "if (d.from == 0) {", "if (d.from == 0 || d.count == 3) {"),
    Plant("copy-rest-of-tiles", "copy.cpp", "i = std::min(i, r.count - N);", "i = std::min(i, r.count - N + 1);"),
    Plant("copy-halves-as-bytes", "copy.cpp", "case 2: return f(Kind<uint16_t, 0, 0>());", "case 2: return f(Kind<uint8_t, 0, 0>());"),
    Plant("machine-lanes", "vector.cpp", "for (int j = 0; j < N; j++) store(m + j * W, all(identity<O>));", "for (int j = 0; j < N - 1; j++) store(m + j * W, all(identity<O>));"),
    Plant("matmul-batch", "matmul.cpp", "(more ? 1 : 1 - head.dims[d])", "(more ? 1 : -head.dims[d])"),
    Plant("matmul-epilogue-column", "matmul.cpp", "+ column * p.operands[i].stride[0];", "+ column * 4;"),
    Plant("matmul-first-slice", "matmul.cpp", "t.first = k0 == 0;", "t.first = true;"),
    Plant("matmul-edge", "matmul.cpp", "const int64_t rest = t.columns - v * W;", "const int64_t rest = t.columns - v * W + 1;"),
    Plant("vector-gather-limit", "vector.cpp", "i >= x.limit) {", "i > x.limit) {"),
    Plant("vector-gather-shift", "vector.cpp", "c->ptr[p->a] += shift - c->shift[p->a];", "c->ptr[p->a] += shift;"),
    Plant("vector-tail", "vector.cpp", "rest == 4 * W ? &T::half : rest < 4 * W", "rest == 4 * W ? &T::half : rest <= 5 * W"),
    Plant("vector-fold", "vector.cpp", "for (int h = W / 2; h; h /= 2) v[0] = F::of", "for (int h = W / 2; h > 1; h /= 2) v[0] = F::of"),
    Plant("vector-odometer", "vector.cpp", "c->left[d] = c->outer[d].count;\n  }", "c->left[d] = c->outer[0].count;\n  }"),
    Plant("vector-load-stride", "vector.cpp", "  load_strided(c, c->operands[i].dtype, c->ptr[i] + first * stride, stride, n);", "  load_strided(c, c->operands[i].dtype, c->ptr[i] + first * (stride < 0 ? 4 : stride), stride, n);"),
    Plant("vector-store-nan", "vector.cpp", "x = canonicalNaN(a0)[0];", ";"),
)  # fmt: skip



# ---- one source for all plants --------------------------------------------------------------------------------------
Change = tuple[int, int, int, str]  # number of the plant, begin, end, what stands there instead


def switched(source: str, plants: Iterable[tuple[int, Plant]]) -> str:
    """The source with a choice by `planted` for each statement that has plants."""
    source = re.sub(r"^#pragma GCC unroll.*$", "", source, flags=re.MULTILINE)  # a choice is no loop
    code, groups = _Code(source), []
    for number, plant in plants:
        begin, end, new = plant.change(source)
        groups.append((code.statement(begin, end), [(number, begin, end, new)]))
    merged: list[tuple[tuple[int, int], list[Change]]] = []
    for (begin, end), changes in sorted(groups):
        if merged and begin < merged[-1][0][1]:
            (first, last), before = merged.pop()
            merged.append(((first, max(last, end)), before + changes))
        else:
            merged.append(((begin, end), changes))
    for (begin, end), changes in reversed(merged):
        source = source[:begin] + _choice(source, begin, end, changes) + source[end:]
    return '#include "planted.h"\n' + source


def _choice(source: str, begin: int, end: int, changes: list[Change]) -> str:
    plain = source[begin:end]
    variants = [(number, source[begin:a] + new + source[b:end]) for number, a, b, new in changes]
    if declared := re.fullmatch(r"((?:const )?[\w:]+(?:<[^;=]*>)?(?: |[*&] | [*&])\w+ = )(.*);", plain, re.DOTALL):
        first = len(declared[1])
        pieces = _pieces(plain[first:-1])
        for _, a, b, _ in changes:  # of several names that are declared together, those that change
            assert any(begin + first + x <= a and b <= begin + first + y for x, y in pieces), plain
        out = declared[1]
        for x, y in pieces:
            piece, at = plain[first + x : first + y], begin + first + x
            name = re.match(r"( \w+ = )", piece) if x else None
            lead = name[1] if name else ""
            mine = [(n, source[at + len(lead) : a] + new + source[b : begin + first + y]) for n, a, b, new in changes if at <= a and b <= begin + first + y]
            out += ("," if x else "") + lead + "".join(f"planted({n}) ? ({text}) : " for n, text in mine) + f"({piece[len(lead) :]})"
        return out + ";"
    if plain.startswith("if (") and plain.endswith("{"):
        close = plain.rindex(")")
        return "if (" + "".join(f"planted({n}) ? bool({text[4 : text.rindex(')')]}) : " for n, text in variants) + f"bool({plain[4:close]})) {{"
    return "".join(f"if (planted({n})) {{ {text}; }} else " for n, text in variants) + "{ " + plain + " }"


def _pieces(text: str) -> list[tuple[int, int]]:
    """Between commas that stand in no brackets."""
    depth, cuts = 0, [-1]
    for at, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            cuts.append(at)
    return [(a + 1, b) for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]


class _Code:
    """C++ as far as statements go."""

    def __init__(self, source: str) -> None:
        blank = lambda found: re.sub(r"[^\n]", " ", found[0])  # noqa: E731
        self.text = re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"|^#[^\n]*', blank, source, flags=re.MULTILINE)
        self.bounds = [0]  # a statement may begin after one of these
        brackets: list[str] = []  # that are open; blocks, which a statement ends at, are not among them
        for at, char in enumerate(self.text):
            if char in "([" or (char == "{" and (brackets or self._is_value(at))):
                brackets.append(char)
            elif brackets and char in ")]}":
                brackets.pop()
            elif char in ";{}" and not brackets:
                self.bounds.append(at + 1)

    def statement(self, begin: int, end: int) -> tuple[int, int]:
        """Of the innermost statement around a place; of an if with a block its head."""
        first = max(bound for bound in self.bounds if bound <= begin)
        label = re.compile(r"\s*(?:(?:case\s+[\w:]+|default):(?!:)\s*|else\b\s*)*").match(self.text, first)
        first = label.end()
        last = self._end(max(end - 1, first))
        if self.text[last - 1] == "{" and not self.text.startswith("if (", first):
            last = self._block(last)
        while self.text[last - 1] == ";" and self.text.startswith("if (", first) and (other := re.compile(r"\s*else\b").match(self.text, last)):
            last = self._end(other.end())
            if self.text[last - 1] == "{":
                last = self._block(last)
        return first, last

    def _end(self, at: int) -> int:
        return next(bound for bound in self.bounds if bound > at)

    def _block(self, at: int) -> int:
        depth = 1
        while depth:
            depth += (self.text[at] == "{") - (self.text[at] == "}")
            at += 1
        return at

    def _is_value(self, at: int) -> bool:
        before = self.text[:at].rstrip()
        return before.endswith(("=", ",", "return"))


def write(folder: Path) -> None:
    """A copy of the sources with all plants; files that do not change are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*(f"{stem}.cpp" for stem in SOURCES), *HEADERS):
        text = (NATIVE / name).read_text()
        if mine := [(n, plant) for n, plant in enumerate(PLANTS) if plant.file == name]:
            text = switched(text, mine)
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
            if name in HEADERS:  # who includes it is compiled again
                for stem in SOURCES:
                    (folder / f"{stem}.cpp").touch()


# ---- the hunt -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    plant: Plant
    found: bool
    executions: int
    seconds: float
    cpu_seconds: float
    why: str


def hunt(
    plants: Iterable[int], fuzzer: Path = MADE / "fuzz", corpus: Path = CORPUS, seconds: float = 0, executions: int = 0, seed: int = 1
) -> Iterator[Found]:
    """Each plant by number, for some seconds or for a number of executions."""
    limit = ("--executions", str(executions)) if executions else ("--seconds", str(seconds))
    numbers = ",".join(map(str, plants))
    command = [fuzzer, corpus, "--plants", numbers, *limit, "--seed", str(seed), "--golden-every", str(GOLDEN_EVERY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            number, found, executed, wall, cpu, *why = line.rstrip("\n").split(" ", 5)
            yield Found(PLANTS[int(number)], found == "1", int(executed), float(wall), float(cpu), why[0] if why else "")


def reached(fuzzer: Path, corpus: Path, *options: str) -> set[str]:
    """Whose places programs come by, where nothing is planted: a bug elsewhere cannot be found, and is none."""
    command = [fuzzer, corpus, *options, "--progress", "0"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return {PLANTS[int(number)].name for number in said.partition("reached:")[2].split()}


def main(options: list[str]) -> int:
    if options[:1] == ["--write"]:
        write(Path(options[1]))
        return 0
    seconds = 60.0
    if options[:1] == ["--seconds"]:
        seconds, options = float(options[1]), options[2:]
    wanted = [n for n, plant in enumerate(PLANTS) if not options or plant.name in options or plant.file in options]
    began, cpu, missed = time.monotonic(), 0.0, []
    for one in hunt(wanted, seconds=seconds):
        cpu += one.cpu_seconds
        if not one.found:
            missed.append(one.plant.name)
        seen = one.why if one.found else f"NOT FOUND: {one.why}"
        print(f"{one.plant.file:12} {one.plant.name:26} {one.executions:>8} executions {one.cpu_seconds:>6.2f} s  {seen}", flush=True)
    print(f"{len(wanted) - len(missed)} of {len(wanted)} found in {time.monotonic() - began:.0f} s, {cpu:.0f} s of CPU time; not found: {missed}")
    return len(missed) > 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
