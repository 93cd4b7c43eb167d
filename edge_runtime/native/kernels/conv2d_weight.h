// The gradient of a convolution's weights.
//
// For one row of taps, dweight[(tap, channel)][out channel] is a product over all output pixels: x
// in the layout [row][padded column][channel] gives for each output pixel kernel_w * channels
// neighbouring floats, the rows of a tile; dy in the layout [pixel][out channel] gives its columns.
// So both are read as they lie, and each row of output pixels is one segment.
//
// Scratch: x and dy of a block of images (384 KiB, or one image if that needs more), and dweight.
#pragma once

#include "axis.h"
#include "depthwise.h"
#include "tile.h"
#include "transpose.h"

namespace flexmoe::FLEXMOE_ISA {

struct WeightGradient {
  Conv2d c;
  int64_t channels, out_channels;  // of a group
  int64_t padded_width;            // of x as arranged: what the taps reach, not more
  int64_t windows;                 // of taps: one for each row of taps, or for each tap if dilated
  int64_t window_rows;             // a window's taps x channels
  int64_t height, tiles;           // of a window's tiles
  int64_t panel_columns, panels;   // of a group's out channels
  int64_t width;                   // floats by which dy steps from pixel to pixel
  int64_t images;                  // of a block
  float* x;                        // [image][group][row][padded column][channel]
  float* dy;                       // [image][group][panel][pixel][width]
  float* sums;                     // [group][panel][window][window row][width]
  Segment* segments;               // [windows][image][out row]
  int64_t* segment_counts;         // [windows]

  int64_t x_floats() const { return c.groups * c.height * padded_width * channels; }
  int64_t dy_floats() const { return c.groups * panels * c.out_h * c.out_w * width; }
};

inline void arrange_x(const WeightGradient& g, const float* x, float* to) {
  const Conv2d& c = g.c;
  const int64_t columns = min_of(c.width, g.padded_width - c.padding_w);
  const int64_t row_floats = g.padded_width * g.channels;
  for (int64_t row = 0; row < c.groups * c.height; ++row) {
    float* at = to + row * row_floats;
    const float* from = x + (row / c.height * g.channels * c.height + row % c.height) * c.width;
    const int64_t left = min_of(c.padding_w, g.padded_width) * g.channels;
    for (int64_t i = 0; i < left; ++i) at[i] = 0.0f;
    for (int64_t i = left + max_of(0, columns) * g.channels; i < row_floats; ++i) at[i] = 0.0f;
    if (g.channels <= 4) {
      interleave(g.channels, columns, from, c.height * c.width, at + left);
      continue;
    }
    transpose(
        g.channels, columns, g.channels, [=](int64_t r) { return from + r * c.height * c.width; },
        [=](int64_t j) { return at + left + j * g.channels; });
  }
}

inline void arrange_dy(const WeightGradient& g, const float* dy, float* to) {
  const int64_t plane = g.c.out_h * g.c.out_w;
  for (int64_t item = 0; item < g.c.groups * g.panels; ++item) {
    const int64_t channel = item % g.panels * g.panel_columns;
    const int64_t count = min_of(g.panel_columns, g.out_channels - channel);
    const float* from = dy + (item / g.panels * g.out_channels + channel) * plane;
    float* at = to + item * plane * g.width;
    transpose(
        count, plane, g.width, [=](int64_t r) { return from + r * plane; },
        [=](int64_t pixel) { return at + pixel * g.width; });
  }
}

// The runs of output pixels that a window sees, for group 0 and panel 0; the others are shifted.
inline void find_window_segments(const WeightGradient& g, int64_t window, int64_t images) {
  const Conv2d& c = g.c;
  const int64_t per_row = g.windows / c.kernel_h;
  const int64_t kh = window / per_row, kw = window % per_row;
  Segment* segments = g.segments + window * g.images * c.out_h;
  int64_t count = 0;
  for (int64_t n = 0; n < images; ++n) {
    for (int64_t oh = 0; oh < c.out_h; ++oh) {
      const int64_t row = oh * c.stride_h - c.padding_h + kh * c.dilation_h;
      if (row < 0 || row >= c.height) continue;
      const int64_t pixel = row * g.padded_width + kw * c.dilation_w;
      segments[count++] = {n * g.x_floats() + pixel * g.channels,
                           n * g.dy_floats() + oh * c.out_w * g.width, c.out_w};
    }
  }
  g.segment_counts[window] = count;
}

inline void add_window_tile(const WeightGradient& g, int64_t item, bool first) {
  const Conv2d& c = g.c;
  const int64_t row = item % g.tiles * g.height;
  const int64_t window = item / g.tiles % g.windows;
  const int64_t panel = item / g.tiles / g.windows;  // of all groups
  Tile tile = {};
  tile.a = g.x + panel / g.panels * c.height * g.padded_width * g.channels + row;
  tile.b = g.dy + panel * c.out_h * c.out_w * g.width;
  tile.a_step = c.stride_w * g.channels;
  tile.b_step = g.width;
  tile.segments = g.segments + window * g.images * c.out_h;
  tile.segment_count = g.segment_counts[window];
  tile.c = g.sums + ((panel * g.windows + window) * g.window_rows + row) * g.width;
  tile.c_step = g.width;
  tile.columns = min_of(g.width, g.out_channels - panel % g.panels * g.panel_columns);
  tile.accumulate = !first;
  compute_tile(min_of(g.height, g.window_rows - row), tile);
}

inline void store_weights(const WeightGradient& g, int64_t panel, float* dweight) {
  const int64_t taps = g.c.kernel_h * g.c.kernel_w, rows = g.channels * taps;
  const int64_t channel = panel % g.panels * g.panel_columns;
  const float* from = g.sums + panel * rows * g.width;
  float* to = dweight + (panel / g.panels * g.out_channels + channel) * rows;
  transpose(
      rows, min_of(g.panel_columns, g.out_channels - channel), rows,
      [=](int64_t i) { return from + (i % taps * g.channels + i / taps) * g.width; },
      [=](int64_t o) { return to + o * rows; });
}

inline bool plan_weight_gradient(const Context& context, const Conv2d& c, WeightGradient* plan) {
  WeightGradient& g = *plan;
  g.c = c;
  g.channels = c.in_channels / c.groups;
  g.out_channels = c.out_channels / c.groups;
  g.padded_width = (c.out_w - 1) * c.stride_w + (c.kernel_w - 1) * c.dilation_w + 1;
  g.windows = c.dilation_w == 1 ? c.kernel_h : c.kernel_h * c.kernel_w;
  g.window_rows = c.dilation_w == 1 ? c.kernel_w * g.channels : g.channels;
  g.height = tile_height(g.window_rows);
  g.tiles = ceil_div(g.window_rows, g.height);
  g.panel_columns = min_of(kTileColumns, g.out_channels);
  g.panels = ceil_div(g.out_channels, g.panel_columns);
  g.width = panel_width(g.panel_columns);
  g.images = max_of(1, min_of(c.batch, kBandFloats / (g.x_floats() + g.dy_floats())));
  g.x = take_floats(context, g.images * g.x_floats());
  g.dy = take_floats(context, g.images * g.dy_floats());
  g.sums = take_floats(context, c.groups * g.panels * g.windows * g.window_rows * g.width);
  const size_t windows = static_cast<size_t>(g.windows);
  const size_t rows = static_cast<size_t>(g.images * c.out_h);
  g.segments = static_cast<Segment*>(context.workspace->take(windows * rows * sizeof(Segment)));
  g.segment_counts = static_cast<int64_t*>(context.workspace->take(windows * sizeof(int64_t)));
  return g.x && g.dy && g.sums && g.segments && g.segment_counts;
}

inline bool conv2d_backward_weight(const Context& context, const Conv2d& c, const float* dy,
                                   const float* x, float* dweight) {
  if (is_depthwise(c)) return depthwise_backward_weight(context, c, dy, x, dweight);
  WeightGradient g;
  if (!plan_weight_gradient(context, c, &g)) return false;
  if (context.measures) return true;
  const double image_work = static_cast<double>(c.out_channels) * g.channels * c.kernel_h *
                            c.kernel_w * c.out_h * c.out_w;
  // Runs once for an empty batch too, so that dweight becomes 0.
  for (int64_t image = 0; image == 0 || image < c.batch; image += g.images) {
    const int64_t images = min_of(g.images, c.batch - image);
    share(context, images, image_work * images, [&](int64_t i, int) {
      const int64_t n = image + i;
      arrange_x(g, x + n * c.in_channels * c.height * c.width, g.x + i * g.x_floats());
      arrange_dy(g, dy + n * c.out_channels * c.out_h * c.out_w, g.dy + i * g.dy_floats());
    });
    for (int64_t window = 0; window < g.windows; ++window) find_window_segments(g, window, images);
    share(context, c.groups * g.panels * g.windows * g.tiles, image_work * images,
          [&](int64_t item, int) { add_window_tile(g, item, image == 0); });
  }
  for (int64_t panel = 0; panel < c.groups * g.panels; ++panel) store_weights(g, panel, dweight);
  return true;
}

}  // namespace flexmoe::FLEXMOE_ISA
