#include "runtime/engine.h"

#include <cstdlib>
#include <string>
#include <system_error>

#include "failure.h"

namespace flexmoe {
namespace {

constexpr char kVariable[] = "FLEXMOE_ISA";
thread_local const Engine* current = nullptr;

}  // namespace

const Kernels& choose_kernels() {
  const char* wanted = std::getenv(kVariable);
  std::string known;
  for (const Kernels* const* each = usable_kernels(); *each != nullptr; ++each) {
    if (wanted == nullptr || *wanted == '\0' || (*each)->isa == std::string(wanted)) return **each;
    known += std::string(known.empty() ? "" : ", ") + (*each)->isa;
  }
  fail("the environment's %s is '%.40s'; expected one that this machine can run: %s", kVariable,
       wanted, known.c_str());
}

void check_threads(int64_t count) {
  if (count >= 1 && count <= kMaxThreads) return;
  fail("expected 1 to %d threads, got %lld", kMaxThreads, static_cast<long long>(count));
}

std::unique_ptr<Threads> start_threads(int64_t count) {
  check_threads(count);
  try {
    return std::make_unique<Threads>(static_cast<int>(count));
  } catch (const std::system_error& error) {
    fail("cannot start %lld threads (%s); use fewer", static_cast<long long>(count), error.what());
  }
}

const Engine* current_engine() { return current; }

EngineScope::EngineScope(const Engine& engine) { current = &engine; }

EngineScope::~EngineScope() { current = nullptr; }

}  // namespace flexmoe
