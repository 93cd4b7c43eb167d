#include "kernels/geometry.h"
#include "operators/operators.h"

namespace flexmoe::operators {
namespace {

using Size = int64_t[4];

// The window of a pool: its dilation too if it has one.
Window read_window(Arguments& arguments, bool dilated) {
  Window window{{}, {}, {}, {1, 1}};
  arguments.integers(window.kernel, 1, kMaxStep);
  arguments.integers(window.stride, 1, kMaxStep);
  arguments.integers(window.padding, 0, kMaxStep);
  if (dilated) arguments.integers(window.dilation, 1, kMaxStep);
  return window;
}

// The geometry of pooling `size` [N,C,H,W]; fails the call if it is none.
Pool2d read_pool(Arguments& arguments, const Size& size, const Window& window) {
  Pool2d pool{};
  const char* reason = make_pool2d(size, window, &pool);
  arguments.require(reason == nullptr, reason);
  return pool;
}

template <class T>
bool is_output(const TensorView<T>& dy, const Pool2d& pool) {
  return dy[0] == pool.batch && dy[1] == pool.channels && dy[2] == pool.out_h &&
         dy[3] == pool.out_w;
}

}  // namespace

void mean_pool(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("mean_pool", context, stack);
  const auto x = arguments.floats(4);
  if (!arguments.ready()) return;
  float* y = arguments.output({x[0], x[1]});
  if (!arguments.ready()) return;
  KernelCall(context)->mean_pool(x[0] * x[1], x[2] * x[3], x.data, y);
}

void mean_pool_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("mean_pool_backward", context, stack);
  const auto dy = arguments.floats(2);
  Size size;
  arguments.integers(size, 1, INT32_MAX);
  if (!arguments.ready()) return;
  arguments.require(dy[0] == size[0] && dy[1] == size[1], "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  KernelCall(context)->mean_pool_backward(size[0] * size[1], size[2] * size[3], dy.data, dx);
}

void avg_pool2d(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("avg_pool2d", context, stack);
  const auto x = arguments.floats(4);
  const Window window = read_window(arguments, false);
  if (!arguments.ready()) return;
  const Pool2d pool = read_pool(arguments, {x[0], x[1], x[2], x[3]}, window);
  float* y = arguments.output({pool.batch, pool.channels, pool.out_h, pool.out_w});
  if (!arguments.ready()) return;
  KernelCall(context)->avg_pool2d(pool, x.data, y);
}

void avg_pool2d_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("avg_pool2d_backward", context, stack);
  const auto dy = arguments.floats(4);
  Size size;
  arguments.integers(size, 1, INT32_MAX);
  const Window window = read_window(arguments, false);
  if (!arguments.ready()) return;
  const Pool2d pool = read_pool(arguments, size, window);
  arguments.require(is_output(dy, pool), "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  KernelCall(context)->avg_pool2d_backward(pool, dy.data, dx);
}

void max_pool2d(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("max_pool2d", context, stack);
  const auto x = arguments.floats(4);
  const Window window = read_window(arguments, true);
  if (!arguments.ready()) return;
  const Pool2d pool = read_pool(arguments, {x[0], x[1], x[2], x[3]}, window);
  float* y = arguments.output({pool.batch, pool.channels, pool.out_h, pool.out_w});
  int64_t* indices = arguments.long_output({pool.batch, pool.channels, pool.out_h, pool.out_w});
  if (!arguments.ready()) return;
  KernelCall(context)->max_pool2d(pool, x.data, y, indices);
}

void max_pool2d_backward(KernelRuntimeContext& context, Stack stack) {
  Arguments arguments("max_pool2d_backward", context, stack);
  const auto dy = arguments.floats(4);
  const auto indices = arguments.longs(4);
  Size size;
  arguments.integers(size, 1, INT32_MAX);
  if (!arguments.ready()) return;
  Pool2d pool{};
  pool.batch = size[0];
  pool.channels = size[1];
  pool.height = size[2];
  pool.width = size[3];
  pool.out_h = dy[2];
  pool.out_w = dy[3];
  arguments.require(is_output(dy, pool) && is_output(indices, pool), "the gradient does not fit");
  float* dx = arguments.output({size[0], size[1], size[2], size[3]});
  if (!arguments.ready()) return;
  for (int64_t i = 0; i < indices.count(); ++i) {
    const int64_t index = indices.data[i];
    // -1: a window of padding only.
    arguments.require(-1 <= index && index < size[2] * size[3], "an index out of range");
  }
  if (!arguments.ready()) return;
  KernelCall(context)->max_pool2d_backward(pool, dy.data, indices.data, dx);
}

}  // namespace flexmoe::operators
