#include "engine.h"

namespace flexmoe {

const Engine*& current_engine() {
  thread_local const Engine* engine = nullptr;
  return engine;
}

}  // namespace flexmoe
