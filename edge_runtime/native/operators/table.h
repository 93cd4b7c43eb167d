// All operators of docs/native.md, as ExecuTorch calls them.
#pragma once

#include <executorch/runtime/kernel/operator_registry.h>

#include <string>

namespace flexmoe {

struct Operator {
  const char* name;       // with its namespace and ".out"
  const char* arguments;  // as in signatures.h
  executorch::runtime::OpFunction run;
};

// Null if there is none of that name.
const Operator* find_operator(const std::string& name);

}  // namespace flexmoe
