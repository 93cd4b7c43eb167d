// What went wrong, in one line for the user. In Python: edge_runtime.errors.ProgramError.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <stdexcept>

namespace flexmoe {

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws a Failure with this message (printf), which may quote what a damaged file holds.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  char message[600];
  va_list values;
  va_start(values, format);
  std::vsnprintf(message, sizeof message, format, values);
  va_end(values);
  for (char* c = message; *c != '\0'; ++c) {
    if (*c < ' ' || *c > '~') *c = '?';
  }
  throw Failure(message);
}

}  // namespace flexmoe
