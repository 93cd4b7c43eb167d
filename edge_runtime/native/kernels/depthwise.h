// Depthwise convolutions: one input channel and one output channel in each group.
//
// Planes are brought into the layout [pixel][kWidth channels], so that the lanes are channels, and
// brought back 16 pixels at a time.
//
// Scratch: the packed weights, and for each thread a band of rows of kWidth channels (384 KiB, or
// one row's sources if those need more).
#pragma once

#include "axis.h"
#include "transpose.h"

namespace flexmoe::FLEXMOE_ISA {

FLEXMOE_INLINE bool is_depthwise(const Conv2d& c) {
  return c.groups > 1 && c.in_channels == c.groups && c.out_channels == c.groups;
}

struct DepthwiseConvolution {
  int64_t batch, channels;
  Axis h, w;
  bool relu;
  const float* source;
  const float* weight;
  const float* bias;
  float* target;
};

constexpr int64_t kDepthwisePixels = 16;

// Brings rows [row, row + rows) of `count` planes to [pixel][kWidth], zeros after `count`.
FLEXMOE_INLINE void arrange_planes(const float* planes, int64_t plane, int64_t width, int64_t row,
                                   int64_t rows, int64_t count, float* to) {
  const float* from = planes + row * width;
  transpose(
      count, rows * width, kWidth, [=](int64_t r) { return from + r * plane; },
      [=](int64_t pixel) { return to + pixel * kWidth; });
}

// [tap][kWidth] for `count` channels; backward counts taps from the last, as Axis does.
inline void pack_depthwise_weights(const DepthwiseConvolution& conv, int64_t channel, int64_t count,
                                   float* packed) {
  const int64_t taps = conv.h.kernel * conv.w.kernel;
  const float* from = conv.weight + channel * taps;
  const bool backward = conv.h.backward;
  transpose(
      count, taps, kWidth, [=](int64_t r) { return from + r * taps; },
      [=](int64_t tap) { return packed + (backward ? taps - 1 - tap : tap) * kWidth; });
}

FLEXMOE_INLINE Vec sum_taps(const DepthwiseConvolution& conv, const Reaches& rows,
                            const Reaches& columns, int64_t pixel, int64_t first_row,
                            const float* band, const float* weights, Vec sum) {
  const int64_t h = pixel / conv.w.target, w = pixel % conv.w.target;
  for (const Reach* r = rows.begin(h); r != rows.end(h); ++r) {
    const float* row = band + (r->source - first_row) * conv.w.source * kWidth;
    const float* row_weights = weights + r->tap * conv.w.kernel * kWidth;
    for (const Reach* c = columns.begin(w); c != columns.end(w); ++c) {
      sum = fma(load(row + c->source * kWidth), load(row_weights + c->tap * kWidth), sum);
    }
  }
  return sum;
}

inline bool convolve_depthwise(const Context& context, const DepthwiseConvolution& conv) {
  const int64_t taps = conv.h.kernel * conv.w.kernel;
  const int64_t blocks = ceil_div(conv.channels, kWidth);
  Reaches rows, columns;
  if (!find_reaches(context, conv.h, &rows)) return false;
  if (!find_reaches(context, conv.w, &columns)) return false;
  const Bands bands = cut_bands(conv.h, rows, conv.w.source * kWidth, 1);
  const int64_t band_floats = bands.sources * conv.w.source * kWidth;
  float* weights = take_floats(context, blocks * taps * kWidth);
  float* all_bands = take_floats(context, band_floats * context.threads->count());
  if (!weights || !all_bands) return false;
  if (context.measures) return true;

  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t channel = block * kWidth;
    pack_depthwise_weights(conv, channel, min_of(kWidth, conv.channels - channel),
                           weights + channel * taps);
  }
  const int64_t source_plane = conv.h.source * conv.w.source;
  const int64_t target_plane = conv.h.target * conv.w.target;
  const double work = static_cast<double>(conv.batch) * conv.channels * taps * target_plane;
  const auto run = [&](int64_t item, int thread) {
    const int64_t first = item % bands.count * bands.height;
    const int64_t count = min_of(bands.height, conv.h.target - first);
    const int64_t channel = item / bands.count % blocks * kWidth;
    const int64_t channels = min_of(kWidth, conv.channels - channel);
    const int64_t plane = item / bands.count / blocks * conv.channels + channel;
    const Band reach = band_of(rows, first, count);
    float* band = all_bands + thread * band_floats;
    arrange_planes(conv.source + plane * source_plane, source_plane, conv.w.source, reach.begin,
                   reach.size(), channels, band);
    const Vec bias = conv.bias ? load_partial(conv.bias + channel, channels) : zeros();
    const int64_t last = (first + count) * conv.w.target;
    for (int64_t pixel = first * conv.w.target; pixel < last; pixel += kDepthwisePixels) {
      const int64_t pixels = min_of(kDepthwisePixels, last - pixel);
      float sums[kDepthwisePixels * kWidth];
      for (int64_t p = 0; p < pixels; ++p) {
        const Vec sum = sum_taps(conv, rows, columns, pixel + p, reach.begin, band,
                                 weights + channel * taps, bias);
        store(sums + p * kWidth, conv.relu ? rectify(sum) : sum);
      }
      float* to = conv.target + plane * target_plane + pixel;
      transpose(
          pixels, channels, pixels, [&](int64_t p) { return sums + p * kWidth; },
          [=](int64_t j) { return to + j * target_plane; });
    }
  };
  share(context, conv.batch * blocks * bands.count, work, run);
  return true;
}

// Adds what one tap gets from rows [first, first + count) of dy to sums[tap].
inline void add_depthwise_tap(const Conv2d& c, int64_t kh, int64_t kw, int64_t first, int64_t count,
                              Band rows, const float* x, const float* dy, float* sums) {
  constexpr int kChains = 4;  // so that additions do not wait for each other
  Vec chains[kChains] = {};
  // The columns of dy whose source for this tap lies in the image.
  const int64_t shift = c.padding_w - kw * c.dilation_w;
  const int64_t begin = shift > 0 ? ceil_div(shift, c.stride_w) : 0;
  const int64_t reach = c.width - 1 + shift;
  const int64_t end = reach < 0 ? 0 : min_of(c.out_w, reach / c.stride_w + 1);
  for (int64_t oh = first; oh < first + count; ++oh) {
    const int64_t h = oh * c.stride_h - c.padding_h + kh * c.dilation_h;
    if (h < 0 || h >= c.height) continue;
    const float* gradient = dy + (oh - first) * c.out_w * kWidth;
    const float* image = x + ((h - rows.begin) * c.width - shift) * kWidth;
    int64_t ow = begin;
    for (; ow + kChains <= end; ow += kChains) {
#pragma GCC unroll 4
      for (int i = 0; i < kChains; ++i) {
        chains[i] = fma(load(gradient + (ow + i) * kWidth),
                        load(image + (ow + i) * c.stride_w * kWidth), chains[i]);
      }
    }
    for (; ow < end; ++ow) {
      chains[0] = fma(load(gradient + ow * kWidth), load(image + ow * c.stride_w * kWidth),
                      chains[0]);
    }
  }
  float* sum = sums + (kh * c.kernel_w + kw) * kWidth;
  store(sum, load(sum) + ((chains[0] + chains[1]) + (chains[2] + chains[3])));
}

inline bool depthwise_backward_weight(const Context& context, const Conv2d& c, const float* dy,
                                      const float* x, float* dweight) {
  const Axis h = {c.out_h, c.height, c.kernel_h, c.stride_h, c.padding_h, c.dilation_h, false};
  const int64_t taps = c.kernel_h * c.kernel_w, threads = context.threads->count();
  Reaches rows;
  if (!find_reaches(context, h, &rows)) return false;
  const Bands bands = cut_bands(h, rows, c.width * kWidth, 1);
  const int64_t x_floats = bands.sources * c.width * kWidth;
  const int64_t dy_floats = bands.height * c.out_w * kWidth;
  float* all_x = take_floats(context, threads * x_floats);
  float* all_dy = take_floats(context, threads * dy_floats);
  float* all_sums = take_floats(context, threads * taps * kWidth);
  if (!all_x || !all_dy || !all_sums) return false;
  if (context.measures) return true;

  const int64_t x_plane = c.height * c.width, dy_plane = c.out_h * c.out_w;
  const double work = static_cast<double>(c.batch) * c.groups * taps * dy_plane;
  share(context, ceil_div(c.groups, kWidth), work, [&](int64_t block, int thread) {
    const int64_t channel = block * kWidth;
    const int64_t channels = min_of(kWidth, c.groups - channel);
    float* band_x = all_x + thread * x_floats;
    float* band_dy = all_dy + thread * dy_floats;
    float* sums = all_sums + thread * taps * kWidth;
    for (int64_t i = 0; i < taps; ++i) store(sums + i * kWidth, zeros());
    for (int64_t n = 0; n < c.batch; ++n) {
      const int64_t plane = n * c.groups + channel;
      for (int64_t first = 0; first < c.out_h; first += bands.height) {
        const int64_t count = min_of(bands.height, c.out_h - first);
        const Band reach = band_of(rows, first, count);
        arrange_planes(x + plane * x_plane, x_plane, c.width, reach.begin, reach.size(), channels,
                       band_x);
        arrange_planes(dy + plane * dy_plane, dy_plane, c.out_w, first, count, channels, band_dy);
        for (int64_t tap = 0; tap < taps; ++tap) {
          add_depthwise_tap(c, tap / c.kernel_w, tap % c.kernel_w, first, count, reach, band_x,
                            band_dy, sums);
        }
      }
    }
    float* to = dweight + channel * taps;
    transpose(
        taps, channels, taps, [=](int64_t tap) { return sums + tap * kWidth; },
        [=](int64_t j) { return to + j * taps; });
  });
  return true;
}

}  // namespace flexmoe::FLEXMOE_ISA
