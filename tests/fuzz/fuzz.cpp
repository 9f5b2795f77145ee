// The fuzzer: mutates programs by structure, verifies them, runs what passes (bench.h), and compares with what was promised.
//
// An execution is one mutant of a seed, or a seed itself (golden), which must pass and leave the bytes that the reference
// interpreter left. Before them come the corpus's programs that must be refused. The verifier sees the mutant's bytes in memory that ends where they end. Jobs are processes: one that
// dies, or hangs, is a violation like any other, and its execution is known.
//
// Execution n of seed number s depends on (s, n) alone: `--seed s --first n --executions 1` replays it. Job j of a run has the
// seed number s + j.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <fstream>
#include <iterator>
#include <sys/wait.h>
#include <unistd.h>
#if defined(FUZZ_WALKS)
#include "walk.h"
#else
#include "bench.h"
#endif
#include "mutate.h"

#if defined(FUZZ_COVERAGE)
extern "C" void __gcov_dump();
#endif
#if defined(FUZZ_PLANTS)
#include "planted.h"
int planted_bug = -1;
static bool before_a_job[PLANTS_MAX];
bool* planted_reached = before_a_job;
#endif

namespace fuzz {

constexpr char HELP[] =
    "fuzz CORPUS [option value]...\n"
    "  --seconds S       how long (20); --executions N: how many mutants a job instead\n"
    "  --jobs N          processes (1)\n"
    "  --seed N          seed number of job 0 (1); job j has N + j\n"
    "  --first N         number of the first execution (0)\n"
    "  --progress S      a line on stderr every S seconds (10; 0: none)\n"
    "  --json FILE       the result, as JSON\n"
    "  --dump FILE       writes every mutant and its verdict: u8 accepted, u32 length, bytes (one job)\n"
    "  --run 0           only verifies\n"
    "  --golden-every N  a seed itself every N executions; 0: all of them, first, in job 0\n"
    "  --plants N,N,...  hunts for each of these planted bugs in a process of its own, for --seconds of CPU time each; a line each\n";
constexpr int HANG_SECONDS = 60, PLANT_HANG_CPU_SECONDS = 10;
using Clock = std::chrono::steady_clock;
double since(Clock::time_point began) { return std::chrono::duration<double>(Clock::now() - began).count(); }
double cpu_seconds(clockid_t clock = CLOCK_PROCESS_CPUTIME_ID) {
  timespec t{};
  clock_gettime(clock, &t);
  return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

struct Options {
  std::string corpus;
  double seconds = 20, progress = 10;
  uint64_t executions = ~0ull, seed = 1, first = 0, golden_every = 0;
  int jobs = 1;
  const char* plants = nullptr;
  bool runs = true;
  const char *dump = nullptr, *json = nullptr;
};

struct Count {  // of one job, in shared memory: the job writes, its parent reads
  uint64_t executions, accepted, ran, golden, codes[64];
  uint64_t at;  // number of the execution at hand
  double seconds, cpu_seconds;
  char why[256], name[64];  // of a violation
#if defined(FUZZ_PLANTS)
  bool reached[PLANTS_MAX];
#endif
  void add(const Count& x) {
    executions += x.executions, accepted += x.accepted, ran += x.ran, golden += x.golden, cpu_seconds += x.cpu_seconds;
    for (int c = 0; c < 64; c++) codes[c] += x.codes[c];
  }
};

Bytes file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
// A seed file: u32 number of contents, u32 number of expected contents, then the program and those as u32 length, bytes.
std::vector<std::string> names_in(const std::string& folder, const char* ending) {
  std::vector<std::string> names;
  if (DIR* dir = opendir(folder.c_str())) {
    while (dirent* entry = readdir(dir))
      if (std::string(entry->d_name).ends_with(ending)) names.push_back(entry->d_name);
    closedir(dir);
  }
  std::sort(names.begin(), names.end());
  return names;
}
std::vector<Seed> read_corpus(const std::string& folder) {
  std::vector<Seed> seeds;
  for (auto& name : names_in(folder, ".seed")) {
    const auto bytes = file(folder + "/" + name);
    size_t at = 0;
    auto u32 = [&] { uint32_t x; memcpy(&x, bytes.data() + at, 4); at += 4; return x; };
    auto text = [&] { const uint32_t n = u32(); at += n; return Bytes(bytes.begin() + long(at - n), bytes.begin() + long(at)); };
    Seed seed{name, {}, {}, {}};
    const uint32_t contents = u32(), expected = u32();
    seed.program = text();
    for (uint32_t i = 0; i < contents; i++) seed.content.push_back(text());
    for (uint32_t i = 0; i < expected; i++) seed.expected.push_back(text());
    seeds.push_back(seed);
  }
  return seeds;
}

class Job {
 public:
  Job(const Options& options, const std::vector<Seed>& seeds, const std::vector<Tree>& trees, uint64_t number, Count& count)
      : options_(options), seeds_(seeds), trees_(trees), number_(options.seed + number), all_golden_(!options.golden_every && !number), count_(count) {
    auto family = [&](size_t i) { return seeds[i].name.substr(0, seeds[i].name.find('.')); };
    for (size_t i = 0; i < seeds.size(); i++)
      if (!i || family(i) != family(i - 1)) families_.emplace_back(i, i + 1);
      else families_.back().second++;
  }

  void run() {
    const auto began = Clock::now();
    FILE* dump = options_.dump ? fopen(options_.dump, "wb") : nullptr;
    if (all_golden_ && !options_.first && !options_.plants) refuse_broken();
    for (uint64_t n = options_.first; count_.executions < options_.executions; n++) {
      if (!(n & 63) && n != options_.first) {
        count_.seconds = since(began), count_.cpu_seconds = cpu_seconds();
        if ((options_.plants ? count_.cpu_seconds : count_.seconds) > options_.seconds) break;
      }
      count_.at = n;
      if (*count_.why) break;
      if (const std::string& why = execute(n, dump); !why.empty()) {
        snprintf(count_.why, sizeof count_.why, "%s", why.c_str());
        break;
      }
    }
    count_.seconds = since(began), count_.cpu_seconds = cpu_seconds();
    if (dump) fclose(dump);
  }

 private:
  // Any seed, or any of any family: the first part of its name.
  size_t mutated(Random& random) const {
    if (random.chance(50)) return size_t(random.below(int64_t(seeds_.size())));
    const auto& [begin, end] = families_[size_t(random.below(int64_t(families_.size())))];
    return begin + size_t(random.below(int64_t(end - begin)));
  }
  void refuse_broken() {
    for (auto& name : names_in(options_.corpus, ".refused")) {
      const Bytes program = file(options_.corpus + "/" + name);
      uint8_t* exact = exact_.place(program.size(), 8, 0);
      memcpy(exact, program.data(), program.size());
      VerifyFacts facts;
      snprintf(count_.name, sizeof count_.name, "%s", name.c_str());
      if (verify(exact, program.size(), facts).code == VerifyCode::OK) snprintf(count_.why, sizeof count_.why, "verifier: takes a broken program");
    }
  }
  const std::string& execute(uint64_t n, FILE* dump) {
    const uint64_t every = options_.golden_every, count = seeds_.size();
    const bool golden = every ? n % every == 0 && n / every < count : all_golden_ && n < count;
    Random random(number_ << 32 ^ n);
    const size_t chosen = !golden ? mutated(random) : every ? size_t(n / every * 7919 % count) : size_t(n);
    const Seed& seed = seeds_[chosen];
    const Bytes* bytes = &seed.program;
    if (!golden) {
      tree_ = trees_[chosen];
      Mutator(random, tree_, mutant_).run();
      bytes = &mutant_;
    }
    count_.executions++, count_.golden += golden;
    snprintf(count_.name, sizeof count_.name, "%s", seed.name.c_str());
    uint8_t* exact = exact_.place(bytes->size(), 8, 0);
    memcpy(exact, bytes->data(), bytes->size());
    VerifyFacts facts;
    VerifyError error = verify(exact, bytes->size(), facts);
    const bool accepted = error.code == VerifyCode::OK;
    count_.codes[std::min<uint32_t>(63, uint32_t(error.code))]++;
    if (dump) {
      const uint32_t length = uint32_t(bytes->size());
      fputc(accepted, dump), fwrite(&length, 4, 1, dump), fwrite(bytes->data(), 1, length, dump);
    }
    why_.clear();
    if (!accepted) {
      if (golden) why_ = "verifier: refuses a seed";
      return why_;
    }
    count_.accepted++;
    if (!options_.runs) return why_;
    const auto program = VerifiedProgram::load(bytes->data(), bytes->size(), error, &memory_);
    if (!program) return why_ = "verifier: two verdicts";
    if (!small(*program)) return why_;
    count_.ran++;
#if defined(FUZZ_WALKS)
    return walk_.run(*program, seed);
#else
    return bench_.run(*program, seed, golden, n);
#endif
  }

  const Options& options_;
  const std::vector<Seed>& seeds_;
  const std::vector<Tree>& trees_;
  const uint64_t number_;
  const bool all_golden_;
  std::vector<std::pair<size_t, size_t>> families_;
  Count& count_;
#if defined(FUZZ_WALKS)  // in the shadow machine alone: needs no kernels
  Walk walk_;
#else
  Bench bench_;
#endif
  ProgramMemory memory_;
  Guarded exact_{size_t(1) << 23};
  Tree tree_;
  Bytes mutant_;
  std::string why_;
};

// Runs in a process of its own; what it leaves is in `count`. Also a death and a hang is a violation.
void in_process(const Options& options, const std::vector<Seed>& seeds, const std::vector<Tree>& trees, uint64_t number, Count& count) {
#if defined(FUZZ_PLANTS)
  planted_reached = count.reached;
#endif
  {
    Job job(options, seeds, trees, number, count);
    job.run();
  }
#if defined(FUZZ_COVERAGE)
  __gcov_dump();
#endif
  _exit(0);
}

class Run {
 public:
  Run(const Options& options, std::vector<Seed> seeds) : options_(options), seeds_(std::move(seeds)) {
    for (const Seed& seed : seeds_) trees_.emplace_back(seed.program);
    const size_t jobs = size_t(std::max(options.jobs, 1));
    counts_ = static_cast<Count*>(mmap(nullptr, jobs * sizeof(Count), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    pids_.assign(jobs, 0), heard_.assign(jobs, {0, Clock::now(), 0});
  }

  int jobs() {
    const auto began = Clock::now();
    for (size_t j = 0; j < pids_.size(); j++) start(j, options_);
    double next = options_.progress;
    while (watch()) {
      usleep(50'000);
      if (!options_.progress || since(began) < next) continue;
      next += options_.progress;
      fprintf(stderr, "%s\n", line(since(began)).c_str());
    }
    const double time = since(began);
    FILE* out = options_.dump && !strcmp(options_.dump, "/dev/stdout") ? stderr : stdout;
    int violations = 0;
    for (size_t j = 0; j < pids_.size(); j++) {
      const Count& c = counts_[j];
      if (!*c.why) continue;
      violations++;
      fprintf(out, "VIOLATION seed %s: %s\n  replay: --seed %llu --first %llu --executions 1\n", c.name, c.why,
              (unsigned long long)(options_.seed + j), (unsigned long long)c.at);
    }
    fprintf(out, "%s\n", line(time).c_str());
#if defined(FUZZ_PLANTS)
    fprintf(out, "reached:");
    for (int plant = 0; plant < PLANTS_MAX; plant++)
      if (std::any_of(counts_, counts_ + pids_.size(), [&](const Count& c) { return c.reached[plant]; })) fprintf(out, " %d", plant);
    fprintf(out, "\n");
#endif
    if (options_.json) json(time, violations);
    return violations > 0;
  }

  int plants() {
    int missed = 0;
    for (const char* at = options_.plants; *at; at += *at == ',') {
      char* end;
      const int plant = int(strtol(at, &end, 10));
      if (end == at) break;
      at = end;
      memset(&counts_[0], 0, sizeof counts_[0]);
      Count& c = counts_[0];
#if defined(FUZZ_PLANTS)
      if (plant >= PLANTS_MAX) return fprintf(stderr, "fuzz: plants: number, got %d, allowed below %d\n", plant, PLANTS_MAX), 2;
      planted_bug = plant;
#endif
      start(0, options_);
      while (watch()) usleep(500);
      const bool found = *c.why;
      missed += !found;
#if defined(FUZZ_PLANTS)
      if (!found) snprintf(c.why, sizeof c.why, c.reached[plant] ? "reached, and not seen" : "never reached");
#endif
      printf("%d %d %llu %.3f %.3f %s\n", plant, found, (unsigned long long)c.executions, since(began_), c.cpu_seconds, c.why);
      fflush(stdout);
    }
    return missed > 0;
  }

 private:
  void start(size_t j, const Options& options) {
    began_ = Clock::now();
    heard_[j] = {0, began_, 0};
    if (!(pids_[j] = fork())) in_process(options, seeds_, trees_, j, counts_[j]);
  }
  bool watch() {  // whether a job is still there
    bool any = false;
    for (size_t j = 0; j < pids_.size(); j++) {
      if (!pids_[j]) continue;
      Count& c = counts_[j];
      int status;
      if (waitpid(pids_[j], &status, WNOHANG) == pids_[j]) {
        pids_[j] = 0;
        if (!*c.why && (!WIFEXITED(status) || WEXITSTATUS(status)))
          snprintf(c.why, sizeof c.why, "process: %s %d", WIFSIGNALED(status) ? "killed by signal" : "ended with status",
                   WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        continue;
      }
      any = true;
      clockid_t clock;
      const double cpu = clock_getcpuclockid(pids_[j], &clock) ? 0 : cpu_seconds(clock);
      if (heard_[j].executions != c.executions) heard_[j] = {c.executions, Clock::now(), cpu};
      else if ((!options_.dump && since(heard_[j].at) > HANG_SECONDS) ||  // whoever takes the mutants sets the pace
               (options_.plants && cpu - heard_[j].cpu > PLANT_HANG_CPU_SECONDS)) {
        snprintf(c.why, sizeof c.why, "process: one execution takes longer than %d s", options_.plants ? PLANT_HANG_CPU_SECONDS : HANG_SECONDS);
        kill(pids_[j], SIGKILL);
      }
    }
    return any;
  }
  Count total() const {
    Count sum{};
    for (size_t j = 0; j < pids_.size(); j++) sum.add(counts_[j]);
    return sum;
  }
  std::string line(double time) const {
    const Count c = total();
    char text[512];
    snprintf(text, sizeof text, "executions=%llu accepted=%.1f%% ran=%.1f%% golden=%llu seconds=%.1f per_second=%.0f per_cpu_second=%.0f seed=%llu jobs=%zu seeds=%zu",
             (unsigned long long)c.executions, 100.0 * double(c.accepted) / double(c.executions), 100.0 * double(c.ran) / double(c.executions),
             (unsigned long long)c.golden, time, double(c.executions) / time, double(c.executions) / c.cpu_seconds, (unsigned long long)options_.seed,
             pids_.size(), seeds_.size());
    return text;
  }
  void json(double time, int violations) const {
    const Count c = total();
    FILE* out = fopen(options_.json, "w");
    if (!out) return;
#if defined(FUZZ_SANITIZED)
    const char* build = "sanitized";
#else
    const char* build = "plain";
#endif
    fprintf(out, "{\"build\": \"%s\", \"executions\": %llu, \"accepted\": %llu, \"ran\": %llu, \"golden\": %llu, \"violations\": %d, \"seconds\": %.2f, "
                 "\"cpu_seconds\": %.2f, \"seed\": %llu, \"jobs\": %zu, \"seeds\": %zu, \"refused\": {",
            build, (unsigned long long)c.executions, (unsigned long long)c.accepted, (unsigned long long)c.ran, (unsigned long long)c.golden, violations,
            time, c.cpu_seconds, (unsigned long long)options_.seed, pids_.size(), seeds_.size());
    for (size_t i = 1; i < std::size(VerifyCode_NAMES); i++)
      fprintf(out, "%s\"%s\": %llu", i > 1 ? ", " : "", VerifyCode_NAMES[i], (unsigned long long)c.codes[i]);
    fprintf(out, "}}\n");
    fclose(out);
  }

  const Options& options_;
  std::vector<Seed> seeds_;
  std::vector<Tree> trees_;
  Count* counts_;
  std::vector<pid_t> pids_;
  struct Heard {  // executions, and since when there are so many
    uint64_t executions;
    Clock::time_point at;
    double cpu;
  };
  std::vector<Heard> heard_;
  Clock::time_point began_;
};

}  // namespace fuzz

int main(int count, char** values) {
  using namespace fuzz;
  Options o;
  for (int i = 1; i < count; i++)
    if (!strcmp(values[i], "--help")) return fputs(HELP, stdout), 0;
  if (count > 1) o.corpus = values[1];
  for (int i = 2; i < count; i += 2) {
    const std::string option = values[i];
    const char* value = i + 1 < count ? values[i + 1] : "";
    const auto number = strtoull(value, nullptr, 10);
    if (option == "--seconds") o.seconds = atof(value);
    else if (option == "--executions") o.executions = number, o.seconds = 1e9;
    else if (option == "--jobs") o.jobs = int(number);
    else if (option == "--seed") o.seed = number;
    else if (option == "--first") o.first = number;
    else if (option == "--progress") o.progress = atof(value);
    else if (option == "--json") o.json = value;
    else if (option == "--dump") o.dump = value;
    else if (option == "--run") o.runs = number;
    else if (option == "--golden-every") o.golden_every = number;
    else if (option == "--plants") o.plants = value;
    else return fprintf(stderr, "fuzz: options: unknown, got %s, allowed:\n%s", values[i], HELP), 2;
  }
  if (o.dump) o.jobs = 1;
  std::vector<Seed> seeds = read_corpus(o.corpus);
  if (seeds.empty()) return fprintf(stderr, "fuzz: corpus: no seeds, got %s, allowed a folder of .seed files\n", o.corpus.c_str()), 2;
  Run run(o, std::move(seeds));
  return o.plants ? run.plants() : run.jobs();
}
