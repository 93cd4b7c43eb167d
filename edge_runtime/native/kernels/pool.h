// Pools over the planes of [batch, channels, height, width].
#pragma once

#include "kernels.h"
#include "pointwise.h"

namespace flexmoe::FLEXMOE_ISA {

inline void fill(int64_t size, float value, float* x) {
  for_vectors(size, [=](int64_t i, auto lanes) { store_lanes(x + i, lanes, splat(value)); });
}

inline void mean_pool(int64_t planes, int64_t plane, const float* x, float* y) {
  for (int64_t i = 0; i < planes; ++i) {
    y[i] = static_cast<float>(sum_of(x + i * plane, plane) / static_cast<double>(plane));
  }
}

inline void mean_pool_backward(int64_t planes, int64_t plane, const float* dy, float* dx) {
  for (int64_t i = 0; i < planes; ++i) {
    fill(plane, dy[i] / static_cast<float>(plane), dx + i * plane);
  }
}

// The outputs of one axis, [begin, end), in whose windows tap `tap` lies inside of the input.
struct Span {
  int64_t begin, end;
};

FLEXMOE_INLINE Span span(int64_t tap, int64_t stride, int64_t padding, int64_t dilation,
                         int64_t size, int64_t outputs) {
  const int64_t start = tap * dilation - padding;  // where the first window has this tap
  const int64_t begin = start < 0 ? ceil_div(-start, stride) : 0;
  const int64_t end = start < size ? (size - 1 - start) / stride + 1 : 0;
  return {min_of(begin, outputs), min_of(end, outputs)};
}

// For each row of outputs: before(row), with the place of its first output; then, tap after tap of
// their windows, body(output, place, n): n outputs from `output` on have this tap at the inputs
// place, place + stride_w, ...; then after(row).
template <class Before, class Body, class After>
FLEXMOE_INLINE void for_taps(const Pool2d& p, int64_t dilation_h, int64_t dilation_w,
                             const Before& before, const Body& body, const After& after) {
  for (int64_t oh = 0; oh < p.out_h; ++oh) {
    const int64_t row = oh * p.out_w;
    before(row);
    for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
      const int64_t h = oh * p.stride_h - p.padding_h + kh * dilation_h;
      if (h < 0 || h >= p.height) continue;
      for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
        const Span s = span(kw, p.stride_w, p.padding_w, dilation_w, p.width, p.out_w);
        if (s.begin >= s.end) continue;
        const int64_t w = s.begin * p.stride_w - p.padding_w + kw * dilation_w;
        body(row + s.begin, h * p.width + w, s.end - s.begin);
      }
    }
    after(row);
  }
}

inline void avg_pool2d(const Pool2d& p, const float* x, float* y) {
  const float area = static_cast<float>(p.kernel_h * p.kernel_w);
  const int64_t stride = p.stride_w;
  for (int64_t i = 0; i < p.batch * p.channels; ++i) {
    for_taps(
        p, 1, 1, [=](int64_t row) { fill(p.out_w, 0.0f, y + row); },
        [=](int64_t output, int64_t place, int64_t n) {
          for (int64_t j = 0; j < n; ++j) y[output + j] += x[place + j * stride];
        },
        [=](int64_t row) {
          for (int64_t j = 0; j < p.out_w; ++j) y[row + j] /= area;
        });
    x += p.height * p.width;
    y += p.out_h * p.out_w;
  }
}

inline void avg_pool2d_backward(const Pool2d& p, const float* dy, float* dx) {
  const float area = static_cast<float>(p.kernel_h * p.kernel_w);
  const int64_t stride = p.stride_w;
  fill(p.batch * p.channels * p.height * p.width, 0.0f, dx);
  for (int64_t i = 0; i < p.batch * p.channels; ++i) {
    for_taps(
        p, 1, 1, [](int64_t) {},
        [=](int64_t output, int64_t place, int64_t n) {
          for (int64_t j = 0; j < n; ++j) dx[place + j * stride] += dy[output + j] / area;
        },
        [](int64_t) {});
    dx += p.height * p.width;
    dy += p.out_h * p.out_w;
  }
}

// NaN counts as the largest; of equals the first wins, of NaNs the last (as torch). A window of
// padding only (possible with dilation) gives -infinity and the index -1.
inline void max_pool2d(const Pool2d& p, const float* x, float* y, int64_t* indices) {
  const int64_t stride = p.stride_w;
  for (int64_t i = 0; i < p.batch * p.channels; ++i) {
    for_taps(
        p, p.dilation_h, p.dilation_w,
        [=](int64_t row) {
          fill(p.out_w, -__builtin_inff(), y + row);
          for (int64_t j = 0; j < p.out_w; ++j) indices[row + j] = -1;
        },
        [=](int64_t output, int64_t place, int64_t n) {
          for (int64_t j = 0; j < n; ++j) {
            const float value = x[place + j * stride];
            const float best = y[output + j];
            const int64_t index = indices[output + j];
            // Without branches: which value is the largest cannot be predicted.
            const bool larger = (value > best) | (value != value) | (index < 0);
            y[output + j] = larger ? value : best;
            indices[output + j] = larger ? place + j * stride : index;
          }
        },
        [](int64_t) {});
    x += p.height * p.width;
    y += p.out_h * p.out_w;
    indices += p.out_h * p.out_w;
  }
}

// Only the sizes of `p` count. An index outside of the plane takes no gradient.
inline void max_pool2d_backward(const Pool2d& p, const float* dy, const int64_t* indices,
                                float* dx) {
  const int64_t plane = p.height * p.width;
  const int64_t outputs = p.out_h * p.out_w;
  fill(p.batch * p.channels * plane, 0.0f, dx);
  for (int64_t i = 0; i < p.batch * p.channels; ++i) {
    for (int64_t o = 0; o < outputs; ++o) {
      const int64_t index = indices[o];
      if (index >= 0 && index < plane) dx[index] += dy[o];
    }
    dx += plane;
    dy += outputs;
    indices += outputs;
  }
}

}  // namespace flexmoe::FLEXMOE_ISA
