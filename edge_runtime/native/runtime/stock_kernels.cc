#include "runtime/stock_kernels.h"

#include <dlfcn.h>
#include <executorch/runtime/kernel/operator_registry.h>

#include <cstdint>

#include "failure.h"
#include "operators/table.h"
#include "runtime/log.h"

namespace flexmoe {
namespace {

constexpr char kLibrary[] = "libexecutorch_kernels_optimized.so";

std::mutex loading;
std::mutex running;
void* library = nullptr;  // null if somebody else in this process loaded it

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

// Otherwise the pool has a thread for each core of the machine. Its functions
// (extension/threadpool/threadpool.h) are exported, but the package does not bring their header.
void resize_pool(int threads) {
  using GetPool = void* (*)();
  using GetCount = size_t (*)(const void* pool);
  using Resize = bool (*)(void* pool, uint32_t threads);
  const auto get_pool = reinterpret_cast<GetPool>(
      dlsym(library, "_ZN10executorch9extension10threadpool14get_threadpoolEv"));
  const auto get_count = reinterpret_cast<GetCount>(
      dlsym(library, "_ZNK10executorch9extension10threadpool10ThreadPool16get_thread_countEv"));
  const auto resize = reinterpret_cast<Resize>(dlsym(
      library,
      "_ZN10executorch9extension10threadpool10ThreadPool24_unsafe_reset_threadpoolEj"));
  if (get_pool == nullptr || get_count == nullptr || resize == nullptr) return;
  const std::lock_guard<std::mutex> turn(running);  // nobody may use it meanwhile
  const LogCapture quiet;  // it tells the console about the machine when it starts
  void* pool = get_pool();
  if (pool != nullptr && get_count(pool) != static_cast<size_t>(threads)) {
    resize(pool, static_cast<uint32_t>(threads));
  }
}

// Its kernels register themselves when it is loaded, and a second copy would abort the process: the
// copy of the package `executorch`, if that was imported, has the same name and is the one.
void load_library() {
  if (dlopen(kLibrary, RTLD_NOW | RTLD_NOLOAD) != nullptr) return;
  library = dlopen(library_path().c_str(), RTLD_NOW);
  if (library == nullptr) {
    fail("the program needs ExecuTorch's kernels, which cannot be loaded (%s); reinstall flexmoe",
         dlerror());
  }
}

}  // namespace

void load_stock_kernels(const std::vector<std::string>& operators, int threads) {
  const std::lock_guard<std::mutex> turn(loading);
  if (find_missing(operators) != nullptr) load_library();
  const std::string* missing = find_missing(operators);
  if (missing != nullptr) {
    fail("the program uses operator %.60s, which ExecuTorch's kernel library does not have",
         missing->c_str());
  }
  if (library != nullptr) resize_pool(threads);
}

std::unique_lock<std::mutex> wait_for_stock_kernels() { return std::unique_lock(running); }

}  // namespace flexmoe
