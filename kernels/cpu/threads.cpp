#include "kernels/threads.h"

#include <omp.h>
#include <sched.h>

#include "core/base/error.h"

namespace ttt::kernels {

void set_num_threads(int num_threads) {
  TTT_CHECK(num_threads >= 1, "{} threads", num_threads);
  omp_set_num_threads(num_threads);
}

int num_threads() { return omp_get_max_threads(); }

int num_usable_processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return CPU_COUNT(&set);
}

}  // namespace ttt::kernels
