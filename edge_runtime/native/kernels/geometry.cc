#include "geometry.h"

namespace flexmoe {
namespace {

bool within(int64_t low, const int64_t (&numbers)[2]) {
  return numbers[0] >= low && numbers[1] >= low && numbers[0] <= kMaxStep &&
         numbers[1] <= kMaxStep;
}

// How often the window fits each axis of `size`.
const char* count_windows(const int64_t* size, const Window& window, int64_t (&out)[2]) {
  if (!within(1, window.stride) || !within(0, window.padding) || !within(1, window.dilation)) {
    return "stride and dilation must be 1 to 65536, padding 0 to 65536";
  }
  for (int i = 0; i < 2; ++i) {
    if (window.kernel[i] < 1) return "a kernel must be 1 or more";
    const int64_t room =
        size[i] + 2 * window.padding[i] - window.dilation[i] * (window.kernel[i] - 1) - 1;
    if (room < 0) return "the kernel is larger than the padded input";
    out[i] = room / window.stride[i] + 1;
  }
  return nullptr;
}

}  // namespace

const char* make_conv2d(const int64_t (&x)[4], const int64_t (&weight)[4], Window window,
                        int64_t groups, Conv2d* conv) {
  if (groups < 1 || x[1] < 1 || weight[0] < 1 || x[1] % groups != 0 || weight[0] % groups != 0 ||
      weight[1] != x[1] / groups) {
    return "channels, weight and groups do not fit";
  }
  int64_t out[2];
  for (int i = 0; i < 2; ++i) window.kernel[i] = weight[2 + i];
  if (const char* reason = count_windows(x + 2, window, out)) return reason;
  for (int i = 0; i < 2; ++i) {
    const int64_t longest = out[i] > x[2 + i] ? out[i] : x[2 + i];
    if (weight[2 + i] > kMaxTaps || longest > kMaxTaps || longest * weight[2 + i] > kMaxTaps) {
      return "the image and the kernel are too long";
    }
  }
  *conv = {x[0],
           x[1],
           x[2],
           x[3],
           weight[0],
           weight[2],
           weight[3],
           window.stride[0],
           window.stride[1],
           window.padding[0],
           window.padding[1],
           window.dilation[0],
           window.dilation[1],
           groups,
           out[0],
           out[1],
           false};
  return nullptr;
}

const char* make_pool2d(const int64_t (&x)[4], const Window& window, Pool2d* pool) {
  int64_t out[2];
  if (!within(1, window.kernel)) return "a pool's kernel must be 1 to 65536";
  if (const char* reason = count_windows(x + 2, window, out)) return reason;
  for (int i = 0; i < 2; ++i) {
    // As in torch; more padding would give windows without a single pixel.
    if (2 * window.padding[i] > window.kernel[i]) {
      return "a pool's padding must be at most half of its kernel";
    }
  }
  *pool = {x[0],
           x[1],
           x[2],
           x[3],
           window.kernel[0],
           window.kernel[1],
           window.stride[0],
           window.stride[1],
           window.padding[0],
           window.padding[1],
           window.dilation[0],
           window.dilation[1],
           out[0],
           out[1]};
  return nullptr;
}

}  // namespace flexmoe
