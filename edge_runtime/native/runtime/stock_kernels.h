// ExecuTorch's own kernel library (10 MB): loaded when a program needs it, and not before.
#pragma once

#include <mutex>
#include <string>
#include <vector>

namespace flexmoe {

// Makes sure that these operators have kernels, ours apart; Failure names the first without. If the
// library is ours alone, its thread pool gets `threads`: there is one for the process, so the last
// call counts.
void load_stock_kernels(const std::vector<std::string>& operators, int threads);

// Those kernels share one thread pool: one run at a time.
std::unique_lock<std::mutex> wait_for_stock_kernels();

}  // namespace flexmoe
