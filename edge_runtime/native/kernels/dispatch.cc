// Chooses tables of kernels for the machine this runs on.
#include "kernels.h"

namespace flexmoe {

#if defined(__aarch64__)
namespace neon {
extern const Kernels kernels;
}
#else
namespace baseline {
extern const Kernels kernels;
}
#endif
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

struct Tables {
  const Kernels* usable[4] = {};
};

Tables find_tables() {
  Tables tables;
  const Kernels** next = tables.usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    *next++ = &avx512::kernels;
  }
  if (has_avx2) *next++ = &avx2::kernels;
#endif
#if defined(__aarch64__)
  *next = &neon::kernels;
#else
  *next = &baseline::kernels;
#endif
  return tables;
}

}  // namespace

const Kernels* const* usable_kernels() {
  static const Tables tables = find_tables();
  return tables.usable;
}

}  // namespace flexmoe
