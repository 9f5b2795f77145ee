// What an accepted mutant must stand: the shadow machine's walk, then runs of the real machine between canaries, poison and
// guard pages, with different old bytes in outputs, workspace, scratch and registers. The first run is of the program as it is
// loaded, the others have some choice of stores and prefetch distances, and run all words or those loops that stand for them: with
// the same bits. Nothing here allocates once it is warm.
#pragma once
#include <algorithm>
#include <memory>
#include <string>
#include <vector>
#define private public  // the machine's own scratch and registers get old bytes too
#include "machine.h"
#undef private
#include "register_passes.h"
#include "walk.h"

namespace fuzz {

// Stands in for all host functions: reads every input, and makes bytes of them. Like those it knows shapes, not strides.
inline Trap host_stand_in(const SectionRun& run) {
  uint64_t sum = uint64_t(run.section.head->depth);
  for (int i = 0; i < run.section.head->operand_count; i++) {
    const Operand& x = run.section.operands[i];
    uint64_t bytes = DTYPE_BYTES[x.dtype];
    for (int d = 0; d < x.depth; d++) bytes *= uint64_t(x.stride[d]);
    for (uint64_t b = 0; b < bytes; b++) {
      sum = (sum ^ (x.mode & READ ? run.address[i][b] : b)) * 0x9E3779B97F4A7C15;
      if (!(x.mode & READ)) run.address[i][b] = uint8_t(sum >> 56);
    }
  }
  return {};
}

// Every lane of a reduction holds the same value, in one section's dtype or another: what a fold puts back.
inline bool lanes_at_identity(const Context& c) {
  if (c.lanes_dtype == 255) return true;  // no vector section yet
  const size_t size = DTYPE_BYTES[c.lanes_dtype], rest = sizeof c.lanes[0] - size;
  for (int r = 0; r < MAX_REDUCTIONS; r++)
    if (memcmp(c.lanes[r] + size, c.lanes[r], rest) || memcmp(c.blocks[r] + size, c.blocks[r], rest) ||
        memcmp(c.blocks[r], c.lanes[r], size) || memcmp(c.lanes[r], c.lanes[r / REDUCTIONS_EACH * REDUCTIONS_EACH], size))
      return false;
  return true;
}

class Bench {
 public:
  Bench() {
    host_runner = host_stand_in;
    cut_.cut_always(3);
    for (const Target* target : targets()) machines_.insert(machines_.begin(), std::make_unique<Machine>(*target));
  }
  size_t machines() const { return machines_.size(); }

  // On the first machine, the baseline, and with other old bytes on one of `others`: all, one (by number), or in parts on two
  // threads as well. "" or what went wrong.
  const std::string& run(const VerifiedProgram& program, const Seed& seed, bool golden, uint64_t turn) {
    why_.clear();
    if (const std::string& why = walk_.run(program, seed); !why.empty()) return why;
    while (buffers_.size() < program.head().arg_count) buffers_.push_back(std::make_unique<Guarded>()), first_.emplace_back();
    if (run_all(program, seed, golden, turn) || !why_.empty()) return why_;
    return why_ = "bench: failed and does not say why";
  }

 private:
  bool wrong(std::string what) {
    why_ = std::move(what);
    return false;
  }
  bool run_all(const VerifiedProgram& program, const Seed& seed, bool golden, uint64_t turn) {
    const size_t n = machines_.size(), count = program.head().arg_count;
    if (!check(machine_run(*machines_[0], program, 0xff), *machines_[0], program)) return false;
    first_trap_ = trap_;
    for (size_t i = 0; i < count; i++) {
      first_[i].assign(buffers_[i]->at_, buffers_[i]->at_ + buffers_[i]->bytes_);
      if (!(program.args()[i].mode & WRITE) && memcmp(first_[i].data(), walk_.content()[i].data(), walk_.content()[i].size()))
        return wrong("machine: writes an input");
    }
    for (size_t i = 0; golden && i < seed.expected.size(); i++)
      if (first_[i] != seed.expected[i]) return wrong("machine: not what the reference gives, argument " + std::to_string(i));
    if (golden) {
      for (size_t m = 0; m < std::max<size_t>(2, n) - 1; m++)
        if (!again(*machines_[(m + 1) % n], program)) return false;
      vary(program, turn / 4);
      for (size_t m = 0; m < n; m++)
        if (!again(*machines_[m], program)) return false;
      return again(cut_, program);
    }
    vary(program, turn);
    return again(*machines_[n > 1 ? 1 + turn % (n - 1) : 0], program) && (turn % 16 || again(cut_, program));
  }
  // Nobody else runs this copy.
  static void vary(const VerifiedProgram& program, uint64_t turn) {
    program.choose(uint8_t(turn % 16));
    if (turn / 16 % 2) return;
    for (const SectionView& s : program.sections())
      for (int i = 0; i < s.head->word_count && SectionKind(s.head->kind) == SectionKind::VECTOR; i++)
        if (s.words[i].op == OP_pass) {  // its words, one by one
          const_cast<Word&>(s.words[i]).a = 0;
          if (s.register_words) const_cast<Word&>(s.register_words[i]).op = NO_REGISTER_OP;
        }
  }
  bool again(Machine& machine, const VerifiedProgram& program) {
    if (!check(machine_run(machine, program, 0x40), machine, program)) return false;
    if (trap_.code != first_trap_.code || trap_.word != first_trap_.word || trap_.section != first_trap_.section) return wrong("machine: traps differ");
    for (size_t i = 0; trap_.code == TrapCode::NONE && i < program.head().arg_count; i++)
      if (memcmp(first_[i].data(), buffers_[i]->at_, first_[i].size())) return wrong("machine: runs differ in argument " + std::to_string(i));
    return true;
  }
  bool check(const Trap& trap, const Machine& machine, const VerifiedProgram& program) {
    trap_ = trap;
    if (trap.code == TrapCode::BINDING) return wrong("machine: refuses its arguments");
    if (walk_.values_known && (trap.code != TrapCode::NONE) != walk_.trapped) return wrong("machine: trap");
    for (size_t i = 0; i < program.head().arg_count; i++)
      if (!buffers_[i]->intact()) return wrong("machine: canary of argument " + std::to_string(i));
    if (!workspace_.intact() || (machine.threads() == 1 && !scratch_.intact())) return wrong("machine: canary of workspace or scratch");
    for (const auto& thread : machine.threads_)
      if (!lanes_at_identity(*thread.context)) return wrong("machine: lanes are not at their identity");
    return true;
  }
  Trap machine_run(Machine& machine, const VerifiedProgram& program, uint8_t old) {
    const ProgramHead& head = program.head();
    bindings_.clear();
    for (size_t i = 0; i < head.arg_count; i++) {
      const ProgramArg& a = program.args()[i];
      uint8_t* at = buffers_[i]->place(a.bytes, a.align, old);
      if (!(a.mode & WRITE) && a.bytes) memcpy(at, walk_.content()[i].data(), a.bytes);
      bindings_.push_back({at, a.bytes, bool(a.mode & WRITE)});
    }
    uint8_t* workspace = workspace_.place(head.workspace_bytes, ARENA_ALIGN, old);
    for (const auto& thread : machine.threads_) {
      Context& c = *thread.context;
      memset(static_cast<void*>(c.slot), old, sizeof c.slot), memset(static_cast<void*>(c.convert), old, sizeof c.convert);
      memset(static_cast<void*>(c.row_scalar), old, sizeof c.row_scalar);
    }
    if (machine.threads() > 1) return machine.run(program, bindings_, workspace);  // each thread has scratch of its own
    (void)machine.scratch_.release();
    machine.scratch_.reset(scratch_.place(head.scratch_bytes, ARENA_ALIGN, old));
    machine.scratch_bytes_ = head.scratch_bytes;
    const Trap trap = machine.run(program, bindings_, workspace);
    if (machine.scratch_.get() == scratch_.at_) (void)machine.scratch_.release();
    machine.scratch_bytes_ = 0;
    return trap;
  }

  std::vector<std::unique_ptr<Machine>> machines_;  // the baseline first
  Machine cut_{best_target(), 2};                   // takes every section in parts
  std::vector<std::unique_ptr<Guarded>> buffers_;
  Guarded workspace_, scratch_{SCRATCH_MAX};
  std::vector<Bytes> first_;  // of the arguments, after the first run
  std::vector<Binding> bindings_;
  Walk walk_;
  Trap trap_, first_trap_;
  std::string why_;
};

}  // namespace fuzz
