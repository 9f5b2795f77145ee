// The device's second thread under the thread sanitizer (scripts/threads_tsan --machines): two producers push programs, and what
// is none, into a ring each, a device takes them in their order, beside launches that begin and end at any moment. What the
// thread offers must be that message and no other; whatever it did not get to is verified by the device. No ring is written
// over: a message that is written over while it is copied is a race by design (EarlyVerifier finds it out).
//
//   early_stress FOLDER   (programs as tests/native/mixed_programs.py writes them)
#include <sched.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>
#include "early_verifier.h"

using namespace dvm;
using Bytes = std::vector<uint8_t>;

constexpr int RINGS = 2, ROUNDS = 60;

static std::vector<Bytes> programs_in(const char* folder) {
  std::vector<Bytes> programs;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream in(entry.path(), std::ios::binary);
    const Bytes bytes{std::istreambuf_iterator<char>(in), {}};
    uint32_t length;
    memcpy(&length, bytes.data() + 8, 4);
    programs.emplace_back(bytes.begin() + 12, bytes.begin() + 12 + length);
  }
  programs.emplace_back(200);  // none
  return programs;
}

int main(int count, char** words) {
  if (count < 2) return printf("early_stress FOLDER\n"), 1;
  const std::vector<Bytes> programs = programs_in(words[1]);
  size_t messages = 0;  // before the producer begins at the first bytes again
  for (size_t bytes = 0; (bytes += programs[messages % programs.size()].size() + 32) < Ring::HOT_BYTES;) messages++;
  std::vector<int> cpus;
  cpu_set_t all;
  sched_getaffinity(0, sizeof all, &all);
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &all)) cpus.push_back(cpu);
  uint64_t early = 0, late = 0;
  for (int round = 0; round < ROUNDS; round++) {
    const int page = make_memory("control", CONTROL_MAP_BYTES), records = make_memory("trace", Trace::MAP_BYTES);
    Control control(page);
    Trace trace(records);
    std::vector<Ring> rings;
    std::vector<std::thread> producers;
    for (int i = 0; i < RINGS; i++) {
      const int memory = make_memory("ring", 2 * Ring::HOT_BYTES);
      rings.emplace_back(memory);
      producers.emplace_back([&, i, memory] {
        Ring ring(memory);
        std::mt19937 random(uint32_t(round * RINGS + i));
        for (uint32_t number = 0; number < messages; number++) {
          const RingHead head{uint32_t(RingKind::PROGRAM), 0, number};
          if (!ring.append({reinterpret_cast<const uint8_t*>(&head), sizeof head}, programs[number % programs.size()])) abort();
          if (random() % 4 == 0) ring.publish(), control.wake_device();
          if (random() % 16 == 0) usleep(100);
        }
        ring.publish();
        control.wake_device();
        close(memory);
      });
    }
    {
      EarlyVerifier verifier(control, rings, trace, cpus);
      std::mt19937 random{uint32_t(round)};
      for (uint64_t taken[RINGS] = {}; taken[0] + taken[1] < RINGS * messages;) {
        verifier.begin();
        usleep(random() % 300);  // a launch
        verifier.end();
        for (int i = 0; i < RINGS; i++)
          for (size_t some = random() % 20; some > 0; some--) {
            const auto message = rings[size_t(i)].peek();
            if (!message) break;
            const Bytes& wanted = programs[taken[i]++ % programs.size()];
            const bool has = verifier.has(size_t(i), rings[size_t(i)].position());
            if (const auto verdict = verifier.take(size_t(i), rings[size_t(i)].position())) {
              const bool refused = wanted.size() == 200;
              if (refused ? bool(verdict->program) : memcmp(&verdict->program->head(), wanted.data(), wanted.size()) != 0)
                return printf("ring %d, message %lu: another program\n", i, taken[i]), 1;
              early++;
            } else if (has) {
              return printf("ring %d, message %lu: was there, and is not\n", i, taken[i]), 1;
            } else {
              late++;
            }
            rings[size_t(i)].consume();
          }
      }
    }
    for (std::thread& producer : producers) producer.join();
    close(page), close(records);
  }
  printf("%lu programs verified early, %lu not\n", early, late);
  return !early || !late;
}
