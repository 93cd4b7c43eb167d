// Chooses a table of kernels for the machine this runs on.
#include <cstdlib>
#include <cstring>

#include "kernels.h"

namespace flexmoe {

namespace baseline {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#elif defined(__aarch64__)
namespace neon {
extern const Kernels table;
}
#endif

namespace {

// The best first; null at the end.
struct Tables {
  const Kernels* usable[4] = {};
};

Tables usable_tables() {
  Tables tables;
  const Kernels** next = tables.usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    *next++ = &avx512::table;
  }
  if (has_avx2) *next++ = &avx2::table;
#elif defined(__aarch64__)
  *next++ = &neon::table;
#endif
  *next = &baseline::table;
  return tables;
}

}  // namespace

const Kernels* find_kernels(const char* isa) {
  static const Tables tables = usable_tables();
  if (!isa) isa = std::getenv("FLEXMOE_ISA");
  if (!isa || *isa == '\0') return tables.usable[0];
  for (const Kernels* const* table = tables.usable; *table; ++table) {
    if (std::strcmp((*table)->isa, isa) == 0) return *table;
  }
  return nullptr;
}

}  // namespace flexmoe
