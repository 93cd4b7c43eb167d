#include "stock_kernels.h"

#include <dlfcn.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include "failure.h"
#include "operators/table.h"

namespace flexmoe {
namespace {

constexpr char kLibrary[] = "libexecutorch_kernels_optimized.so";

std::mutex loading;
std::mutex running;

// Null if every operator has a kernel.
const std::string* find_missing(const std::vector<std::string>& operators) {
  for (const std::string& name : operators) {
    bool found = find_operator(name) != nullptr;
    for (const auto& kernel : executorch::runtime::get_registered_kernels()) {
      found = found || name == kernel.name_;
    }
    if (!found) return &name;
  }
  return nullptr;
}

// The library lies beside this module.
std::string library_path() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&library_path), &info) == 0) return kLibrary;
  const std::string module = info.dli_fname;
  return module.substr(0, module.rfind('/') + 1) + kLibrary;
}

}  // namespace

void load_stock_kernels(const std::vector<std::string>& operators) {
  const std::lock_guard<std::mutex> turn(loading);
  const std::string* missing = find_missing(operators);
  if (missing == nullptr) return;
  // Its kernels register themselves when it is loaded, and a second copy would abort the process:
  // the copy of the package `executorch`, if that was imported, has the same name and is the one.
  if (dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD) == nullptr &&
      dlopen(library_path().c_str(), RTLD_NOW) == nullptr) {
    fail("the program needs ExecuTorch's kernels, which cannot be loaded (%s); reinstall flexmoe",
         dlerror());
  }
  missing = find_missing(operators);
  if (missing != nullptr) {
    fail("the program uses operator %.60s, which ExecuTorch's kernel library does not have",
         missing->c_str());
  }
}

std::unique_lock<std::mutex> wait_for_stock_kernels() { return std::unique_lock(running); }

}  // namespace flexmoe
