// ExecuTorch's messages: to the caller instead of the console while one of our calls runs.
#pragma once

#include <string>

namespace flexmoe {

// Keeps the messages of this thread while it lives. One at a time.
class LogCapture {
 public:
  LogCapture();
  ~LogCapture();
  LogCapture(const LogCapture&) = delete;
  LogCapture& operator=(const LogCapture&) = delete;

  // The first error: the cause, where the others are what followed. Empty if there was none.
  const std::string& cause() const { return cause_; }
  void add(const char* message, size_t length);

 private:
  std::string cause_;
};

}  // namespace flexmoe
