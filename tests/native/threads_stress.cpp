// The pool under the thread sanitizer: jobs of all sizes, threads that sleep, spin, are late, and end.
// Every part writes plain memory that the caller reads after the job, so a missing order of memory is a reported race.
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include "threads.h"

struct Job {
  std::vector<int> runs, by;
};

static void run_part(void* job, int thread, int64_t part) {
  Job& j = *static_cast<Job*>(job);
  j.runs[size_t(part)]++, j.by[size_t(part)] = thread;
}

int main() {
  unsigned seed = 1;
  int64_t elsewhere = 0, all = 0;
  for (int threads : {1, 2, 3, 8}) {
    dvm::ThreadPool pool(threads);
    for (int i = 0; i < 3000; i++) {
      const int64_t parts = rand_r(&seed) % (i % 50 ? 20 : 3000);
      Job job{std::vector<int>(size_t(parts)), std::vector<int>(size_t(parts))};
      if (rand_r(&seed) % 200 == 0) usleep(300);  // they fall asleep
      if (rand_r(&seed) % 3 == 0) pool.wake();
      pool.run(parts, run_part, &job, rand_r(&seed) % 2);
      for (int64_t part = 0; part < parts; part++) {
        if (job.runs[size_t(part)] != 1)
          return printf("part %ld of %ld ran %d times\n", long(part), long(parts), job.runs[size_t(part)]), 1;
        elsewhere += job.by[size_t(part)] != 0;
      }
      all += parts;
    }
  }
  for (int i = 0; i < 200; i++) dvm::ThreadPool ends_at_once(4);
  printf("%ld parts, %ld of them not on the caller's thread\n", long(all), long(elsewhere));
  return elsewhere == 0;
}
