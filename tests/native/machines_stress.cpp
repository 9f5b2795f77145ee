// Machines with threads that share one CPU, so that now and then any thread runs all parts, or none, under the thread sanitizer
// (scripts/threads_tsan --machines): each of three callers owns one after the other, which goes from program to program and keeps
// what threads keep. The bytes of one thread are what every run must leave.
//
//   machines_stress FOLDER SECONDS [SEED]
//
// FOLDER holds programs with contents, as tests/native/mixed_programs.py writes them.
#include <dirent.h>
#include <sched.h>
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <utility>
#include "machine.h"

using namespace dvm;
using Bytes = std::vector<uint8_t>;

struct Aligned {
  uint8_t* at;
  explicit Aligned(size_t bytes) : at(static_cast<uint8_t*>(::operator new(bytes + 1, std::align_val_t(ARENA_ALIGN)))) {}
  Aligned(Aligned&& other) noexcept : at(std::exchange(other.at, nullptr)) {}
  ~Aligned() { ::operator delete(at, std::align_val_t(ARENA_ALIGN)); }
};

struct Case {
  std::string name;
  std::unique_ptr<VerifiedProgram> program;
  std::vector<Bytes> content, wanted;
};

static Bytes after(Machine& machine, const Case& c, std::vector<Bytes>& left) {
  const ProgramHead& head = c.program->head();
  std::vector<Aligned> memory;
  std::vector<Binding> args;
  for (size_t i = 0; i < head.arg_count; i++) {
    const Bytes& content = c.content[i];
    memory.emplace_back(content.size());
    memcpy(memory.back().at, content.data(), content.size());
    args.push_back({memory.back().at, content.size(), true});
  }
  Aligned workspace(head.workspace_bytes);
  const Trap trap = machine.run(*c.program, args, workspace.at);
  left.clear();
  for (size_t i = 0; i < head.arg_count; i++) left.emplace_back(args[i].address, args[i].address + args[i].bytes);
  const auto* bytes = reinterpret_cast<const uint8_t*>(&trap);
  return trap.code == TrapCode::NONE ? Bytes{} : Bytes(bytes, bytes + sizeof trap);
}

static std::vector<Case> cases_in(const std::string& folder) {
  std::vector<Case> cases;
  if (DIR* dir = opendir(folder.c_str())) {
    while (dirent* entry = readdir(dir)) {
      if (!std::string(entry->d_name).ends_with(".seed")) continue;
      std::ifstream in(folder + "/" + entry->d_name, std::ios::binary);
      const Bytes bytes{std::istreambuf_iterator<char>(in), {}};
      size_t at = 8;
      uint32_t contents;
      memcpy(&contents, bytes.data(), 4);
      auto text = [&] {
        uint32_t n;
        memcpy(&n, bytes.data() + at, 4);
        at += 4 + n;
        return Bytes(bytes.begin() + long(at - n), bytes.begin() + long(at));
      };
      Case c{entry->d_name, nullptr, {}, {}};
      const Bytes program = text();
      for (uint32_t i = 0; i < contents; i++) c.content.push_back(text());
      VerifyError error;
      c.program = VerifiedProgram::load(program.data(), program.size(), error);
      if (!c.program) printf("%s: refused\n", entry->d_name), exit(1);
      cases.push_back(std::move(c));
    }
    closedir(dir);
  }
  std::sort(cases.begin(), cases.end(), [](const Case& a, const Case& b) { return a.name < b.name; });
  return cases;
}

int main(int count, char** words) {
  if (count < 3) return printf("machines_stress FOLDER SECONDS [SEED]\n"), 1;
  std::vector<Case> cases = cases_in(words[1]);
  const double seconds = atof(words[2]);
  const uint32_t seed = count > 3 ? uint32_t(atoi(words[3])) : 1;
  Machine alone(find_target("baseline") ? *find_target("baseline") : best_target());
  for (Case& c : cases)
    if (!after(alone, c, c.wanted).empty()) return printf("%s: traps\n", c.name.c_str()), 1;
  if (cases.empty()) return printf("no programs in %s\n", words[1]), 1;
  cpu_set_t all, one;
  sched_getaffinity(0, sizeof all, &all);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && !CPU_COUNT(&one); cpu++)
    if (CPU_ISSET(cpu, &all)) CPU_SET(cpu, &one);
  sched_setaffinity(0, sizeof one, &one);  // of all threads from here on
  std::atomic<uint64_t> runs{0}, wrong{0}, cut{0};
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  auto calls = [&](uint32_t number) {
    std::mt19937 random(seed * 1000 + number);
    auto below = [&](size_t n) { return size_t(random() % n); };
    std::vector<Bytes> left;
    while (std::chrono::steady_clock::now() < end) {
      const Target& target = *targets()[below(targets().size())];
      const int threads = 2 + int(below(7));
      Machine machine(target, threads);
      for (size_t some = 1 + below(8); some > 0; some--) {
        const Case& c = cases[below(cases.size())];
        const int64_t parts = std::array{0, 2, 3, 7, 64}[below(5)];
        machine.cut_always(parts);
        const bool trapped = !after(machine, c, left).empty();
        runs++;
        for (size_t i = 0; i < left.size(); i++)
          if (trapped || left[i] != c.wanted[i]) {
            printf("%s: argument %zu %s, %s, %d threads, %d parts\n", c.name.c_str(), i, trapped ? "trapped" : "differs",
                   target.name, threads, int(parts));
            fflush(stdout);
            wrong++;
            break;
          }
      }
      cut += machine.sections_split();
    }
  };
  std::vector<std::thread> callers;
  for (uint32_t number = 0; number < 3; number++) callers.emplace_back(calls, number);
  for (std::thread& caller : callers) caller.join();
  printf("%lu runs of %zu programs, %lu sections in parts, %lu wrong\n", runs.load(), cases.size(), cut.load(), wrong.load());
  return wrong != 0;
}
