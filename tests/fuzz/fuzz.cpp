// The fuzzer: mutates programs by structure, verifies them, runs what passes, and compares with what was promised.
//
// An execution is one mutant. If it passes and is small, the shadow machine walks it (shadow.h), then the real machine
// runs it once on each target, and now and then in parts on two threads, between guard pages, with different old bytes in
// outputs, workspace, scratch, registers and around everything: results must be equal, canaries intact. A seed that is not mutated must pass and give the bytes
// that the reference interpreter gave. Prints a line of figures; exit status 1 after a violation.
//
//   fuzz CORPUS [--seconds S] [--executions N] [--seed N] [--first N] [--dump FILE] [--run 0]
//
// Execution n of seed s depends on (s, n) alone: `--seed s --first n --executions 1` replays it. --dump writes every
// mutant and the verdict, for the second verifier: u8 accepted, u32 length, bytes. --run 0 only verifies.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <vector>
#define private public  // the machine's own scratch and registers get old bytes too
#include "machine.h"
#undef private
#include "mutate.h"
#include "shadow.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#endif

namespace fuzz {

constexpr size_t BUFFER_MAX = 1 << 18, PAGE = 4096, MARGIN = 256;
constexpr uint64_t WORK_MAX = 1 << 11, ELEMENTS_MAX = 1 << 17;

// Every lane of a reduction holds the same value, in one section's dtype or another: what a fold puts back.
bool lanes_at_identity(const Context& c) {
  if (c.lanes_dtype == 255) return true;  // no vector section yet
  const size_t size = DTYPE_BYTES[c.lanes_dtype];
  for (int r = 0; r < MAX_REDUCTIONS; r++)
    for (size_t at = 0; at < sizeof c.lanes[r]; at += size)
      if (memcmp(c.lanes[r] + at, c.lanes[r / REDUCTIONS_EACH * REDUCTIONS_EACH], size) || memcmp(c.blocks[r] + at, c.lanes[r], size)) return false;
  return true;
}

struct Seed {
  std::string name;
  std::vector<uint8_t> program;
  std::vector<std::vector<uint8_t>> content, expected;  // expected: empty if only promised to some ulp
};

std::vector<uint8_t> file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
// u32 number of byte strings, then each as u32 length, bytes: program, contents, expected contents.
std::vector<Seed> read_corpus(const std::string& folder) {
  std::vector<std::string> names;
  if (DIR* dir = opendir(folder.c_str())) {
    while (dirent* entry = readdir(dir))
      if (std::string(entry->d_name).ends_with(".seed")) names.push_back(entry->d_name);
    closedir(dir);
  }
  std::sort(names.begin(), names.end());
  std::vector<Seed> seeds;
  for (auto& name : names) {
    const auto bytes = file(folder + "/" + name);
    size_t at = 0;
    auto u32 = [&] { uint32_t x; memcpy(&x, bytes.data() + at, 4); at += 4; return x; };
    auto text = [&] { const uint32_t n = u32(); at += n; return std::vector<uint8_t>(bytes.begin() + at - n, bytes.begin() + at); };
    Seed seed{name, {}, {}, {}};
    const uint32_t contents = u32(), expected = u32();
    seed.program = text();
    for (uint32_t i = 0; i < contents; i++) seed.content.push_back(text());
    for (uint32_t i = 0; i < expected; i++) seed.expected.push_back(text());
    seeds.push_back(seed);
  }
  return seeds;
}

// Memory that ends at a guard page; everything around the buffer is a canary.
class Guarded {
 public:
  Guarded() {
    base_ = static_cast<uint8_t*>(mmap(nullptr, BUFFER_MAX + 2 * PAGE + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) abort();
    mprotect(base_, PAGE, PROT_NONE), mprotect(base_ + 2 * PAGE + BUFFER_MAX, PAGE, PROT_NONE);
    end_ = base_ + 2 * PAGE + BUFFER_MAX;
  }
  uint8_t* place(size_t bytes, size_t align, uint8_t old) {
    release();
    at_ = reinterpret_cast<uint8_t*>(reinterpret_cast<uintptr_t>(end_ - bytes) & ~uintptr_t(align - 1));
    bytes_ = bytes, canary_ = uint8_t(old ^ 0x3c);
    memset(at_ - MARGIN, canary_, size_t(end_ - at_) + MARGIN), memset(at_, old, bytes);
    ASAN_POISON_MEMORY_REGION(at_ - MARGIN, MARGIN);
    ASAN_POISON_MEMORY_REGION(at_ + bytes, size_t(end_ - at_) - bytes);
    return at_;
  }
  bool intact() {
    ASAN_UNPOISON_MEMORY_REGION(at_ - MARGIN, size_t(end_ - at_) + MARGIN);
    const auto is_canary = [&](uint8_t x) { return x == canary_; };
    if (!std::all_of(at_ - MARGIN, at_, is_canary) || !std::all_of(at_ + bytes_, end_, is_canary)) return false;
    return true;
  }
  void release() {
    if (at_) ASAN_UNPOISON_MEMORY_REGION(at_ - MARGIN, size_t(end_ - at_) + MARGIN);
  }
  uint8_t *at_ = nullptr, *end_;
  size_t bytes_ = 0;

 private:
  uint8_t *base_, canary_ = 0;
};

// Stands in for all host functions: reads every input, and makes bytes of them. Like those it knows shapes, not strides.
Trap host_stand_in(const SectionRun& run) {
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

class Bench {
 public:
  Bench() {
    host_runner = host_stand_in;
    cut_.cut_always(3);
    for (const Target* target : targets()) machines_.insert(machines_.begin(), std::make_unique<Machine>(*target));
  }
  // "" or what went wrong. `expected` may be null.
  std::string run(const VerifiedProgram& program, const Seed& seed, bool golden, bool cut) {
    const ProgramHead& head = program.head();
    while (buffers_.size() < head.arg_count) buffers_.push_back(std::make_unique<Guarded>());
    std::vector<std::vector<uint8_t>> content(head.arg_count);
    for (int i = 0; i < head.arg_count; i++) {
      if (size_t(i) < seed.content.size()) content[i] = seed.content[i];
      const size_t known = content[i].size();
      content[i].resize(program.args()[i].bytes);
      for (size_t b = known; b < content[i].size(); b++) content[i][b] = known ? content[i][b - known] : uint8_t(b);
    }
    Shadow shadow(program, content);
    if (std::string why = shadow.run(); !why.empty()) return "shadow: " + why;
    std::vector<std::vector<uint8_t>> first;
    Trap first_trap;
    const size_t whole = std::max<size_t>(2, machines_.size());
    for (size_t run = 0; run < whole + cut; run++) {
      const uint8_t old = run ? 0x40 : 0xff;
      Machine& machine = run < whole ? *machines_[run % machines_.size()] : cut_;
      const Trap trap = once(machine, program, content, old);
      if (trap.code == TrapCode::BINDING) return "machine: refuses its arguments";
      if (shadow.values_known && (trap.code != TrapCode::NONE) != shadow.trapped) return "machine: trap";
      for (int i = 0; i < head.arg_count; i++)
        if (!buffers_[i]->intact()) return "machine: canary of argument " + std::to_string(i);
      if (!workspace_.intact() || !scratch_.intact()) return "machine: canary of workspace or scratch";
      for (const auto& thread : machine.threads_)
        if (!lanes_at_identity(*thread.context)) return "machine: lanes are not at their identity";
      if (!run) {
        for (int i = 0; i < head.arg_count; i++) first.emplace_back(buffers_[i]->at_, buffers_[i]->at_ + buffers_[i]->bytes_);
        first_trap = trap;
        for (int i = 0; i < head.arg_count; i++)
          if (!(program.args()[i].mode & WRITE) && first[i] != content[i]) return "machine: writes an input";
        for (size_t i = 0; golden && i < seed.expected.size(); i++)
          if (first[i] != seed.expected[i]) return "machine: not what the reference gives, argument " + std::to_string(i);
      } else {
        if (trap.code != first_trap.code || trap.word != first_trap.word || trap.section != first_trap.section) return "machine: traps differ";
        for (int i = 0; trap.code == TrapCode::NONE && i < head.arg_count; i++)
          if (memcmp(first[i].data(), buffers_[i]->at_, first[i].size())) return "machine: runs differ in argument " + std::to_string(i);
      }
    }
    return "";
  }

 private:
  Trap once(Machine& machine, const VerifiedProgram& program, const std::vector<std::vector<uint8_t>>& content, uint8_t old) {
    const ProgramHead& head = program.head();
    std::vector<Binding> bindings;
    for (int i = 0; i < head.arg_count; i++) {
      const ProgramArg& a = program.args()[i];
      uint8_t* at = buffers_[i]->place(a.bytes, a.align, old);
      if (!(a.mode & WRITE) && a.bytes) memcpy(at, content[i].data(), a.bytes);
      bindings.push_back({at, a.bytes, bool(a.mode & WRITE)});
    }
    uint8_t* workspace = workspace_.place(head.workspace_bytes, ARENA_ALIGN, old);
    for (const auto& thread : machine.threads_) {
      Context& c = *thread.context;
      memset(static_cast<void*>(c.slot), old, sizeof c.slot), memset(static_cast<void*>(c.convert), old, sizeof c.convert);
      memset(static_cast<void*>(c.row_scalar), old, sizeof c.row_scalar);
    }
    if (machine.threads() > 1) return machine.run(program, bindings, workspace);  // each thread has scratch of its own
    (void)machine.scratch_.release();
    machine.scratch_.reset(scratch_.place(head.scratch_bytes, ARENA_ALIGN, old));
    machine.scratch_bytes_ = head.scratch_bytes;
    const Trap trap = machine.run(program, bindings, workspace);
    if (machine.scratch_.get() == scratch_.at_) (void)machine.scratch_.release();
    return trap;
  }
  std::vector<std::unique_ptr<Machine>> machines_;
  Machine cut_{best_target(), 2};  // takes every section in parts
  std::vector<std::unique_ptr<Guarded>> buffers_;
  Guarded workspace_, scratch_;
};

// Small enough to be walked element by element.
bool small(const VerifiedProgram& program) {
  const ProgramHead& head = program.head();
  if (head.fuel > WORK_MAX || head.workspace_bytes > BUFFER_MAX / 4 || head.scratch_bytes > BUFFER_MAX / 4 || head.arg_count > 40) return false;
  for (int i = 0; i < head.arg_count; i++)
    if (program.args()[i].bytes > BUFFER_MAX / 4) return false;
  uint64_t elements = 0;
  for (const SectionView& s : program.sections()) {
    uint64_t n = std::max<uint64_t>(1, uint64_t(s.head->depth)) * std::max<uint64_t>(1, s.head->word_count);
    for (int d = 0; d < s.head->rank && n <= ELEMENTS_MAX; d++) n *= uint64_t(s.head->dims[d]);
    if ((elements += n) > ELEMENTS_MAX) return false;
  }
  return true;
}

}  // namespace fuzz

int main(int count, char** values) {
  using namespace fuzz;
  using Clock = std::chrono::steady_clock;
  double seconds = 20;
  uint64_t seed_number = 1, first = 0, executions = ~0ull;
  const char* dump_to = nullptr;
  bool runs = true;
  for (int i = 2; i + 1 < count; i += 2) {
    const std::string option = values[i];
    if (option == "--seconds") seconds = atof(values[i + 1]);
    else if (option == "--executions") executions = strtoull(values[i + 1], nullptr, 10), seconds = 1e9;
    else if (option == "--seed") seed_number = strtoull(values[i + 1], nullptr, 10);
    else if (option == "--first") first = strtoull(values[i + 1], nullptr, 10);
    else if (option == "--dump") dump_to = values[i + 1];
    else if (option == "--run") runs = atoi(values[i + 1]);
    else return fprintf(stderr, "fuzz: options: unknown, got %s, allowed --seconds --executions --seed --first --dump --run\n", values[i]), 2;
  }
  const std::vector<Seed> seeds = count > 1 ? read_corpus(values[1]) : std::vector<Seed>();
  if (seeds.empty()) return fprintf(stderr, "fuzz: corpus: no seeds, got %s, allowed a folder of .seed files\n", count > 1 ? values[1] : ""), 2;
  FILE* dump = dump_to ? fopen(dump_to, "wb") : nullptr;
  Bench bench;
  const auto began = Clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - began).count(); };
  uint64_t accepted = 0, ran = 0, done = 0, codes[64] = {};
  std::string why;
  for (uint64_t n = first; done < executions; n++) {
    const bool golden = n < seeds.size();
    if (!golden && !(n & 63) && passed() > seconds) break;
    Random random(seed_number << 32 ^ n);
    const Seed& seed = golden ? seeds[n] : seeds[size_t(random.below(int64_t(seeds.size())))];
    std::vector<uint8_t> bytes = seed.program;
    if (!golden) {
      Tree tree(seed.program);
      bytes = Mutator(random, tree).run();
    }
    done++;
    if (getenv("FUZZ_TRACE")) fprintf(stderr, "%llu\n", (unsigned long long)n);
    // exactly as long as it is, so that the sanitizer sees a read beyond
    std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size() + !bytes.size()]);
    memcpy(exact.get(), bytes.data(), bytes.size());
    VerifyError error;
    const auto program = VerifiedProgram::load(exact.get(), bytes.size(), error);
    codes[std::min<uint32_t>(63, uint32_t(error.code))]++;
    if (dump) {
      const uint32_t length = uint32_t(bytes.size());
      fputc(program != nullptr, dump), fwrite(&length, 4, 1, dump), fwrite(bytes.data(), 1, length, dump);
    }
    if (!program) {
      if (golden) why = "verifier: refuses a seed";
    } else {
      accepted++;
      if (runs && small(*program)) ran++, why = bench.run(*program, seed, golden, golden || !(n & 15));
    }
    if (!why.empty()) {
      printf("VIOLATION execution %llu seed %s: %s\n  replay: --seed %llu --first %llu --executions 1\n", (unsigned long long)done,
             seed.name.c_str(), why.c_str(), (unsigned long long)seed_number, (unsigned long long)n);
      break;
    }
  }
  if (dump) fclose(dump);
  FILE* const out = dump ? stderr : stdout;
  const double time = passed();
  fprintf(out, "executions=%llu accepted=%.1f%% ran=%.1f%% violations=%d seconds=%.2f per_second=%.0f seed=%llu seeds=%zu\n",
         (unsigned long long)done, 100.0 * double(accepted) / double(done), 100.0 * double(ran) / double(done), !why.empty(), time,
         double(done) / time, (unsigned long long)seed_number, seeds.size());
  if (why.empty()) {
    fprintf(out, "refused:");
    for (size_t c = 1; c < std::size(VerifyCode_NAMES); c++) fprintf(out, " %s=%llu", VerifyCode_NAMES[c], (unsigned long long)codes[c]);
    fprintf(out, "\n");
  }
  return !why.empty();
}
