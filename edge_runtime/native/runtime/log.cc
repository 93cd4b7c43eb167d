#include "runtime/log.h"

#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

#include <atomic>

namespace flexmoe {
namespace {

namespace et = executorch::runtime;

std::atomic<pal_emit_log_message_method> emit_before{nullptr};
thread_local LogCapture* capture = nullptr;

void emit(et_timestamp_t timestamp, et_pal_log_level_t level, const char* file,
          const char* function, size_t line, const char* message, size_t length) {
  // Before it aborts the process, the runtime says why: that belongs on the console.
  if (capture == nullptr || level == kFatal) {
    if (const pal_emit_log_message_method before = emit_before) {
      before(timestamp, level, file, function, line, message, length);
    }
  } else if (level == kError) {
    capture->add(message, length);
  }
}

// Puts `emit` in place, which another module of this process may have done with its own. Without
// register_pal(), which complains on the console when it is called twice.
void route() {
  auto* pal = const_cast<et::PalImpl*>(et::get_pal_impl());
  // Read once: another thread may put `emit` there meanwhile, and `emit` must not call itself.
  const auto before = __atomic_load_n(&pal->emit_log_message, __ATOMIC_ACQUIRE);
  if (before == emit) return;
  emit_before = before;
  __atomic_store_n(&pal->emit_log_message, &emit, __ATOMIC_RELEASE);
}

}  // namespace

LogCapture::LogCapture() {
  et::runtime_init();
  route();
  capture = this;
}

LogCapture::~LogCapture() { capture = nullptr; }

void LogCapture::add(const char* message, size_t length) {
  if (cause_.empty()) cause_.assign(message, length);
}

}  // namespace flexmoe
