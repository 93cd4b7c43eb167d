// Convolutions: forward, and the gradient of the input. Both are one thing: each pixel of the
// target is a sum over taps of (weights of the tap) x (a pixel of the source).
//
// The source is first brought into the layout [pixel][channel][image], for a band of rows and a
// block of images: then what a tap reads is a packed panel already, for every tap, stride, dilation
// and padding, and a pixel of the target is one tile per target channels, whose segments are the
// taps that hit the source. With few images the roles change: images are the rows of the tile, and
// target channels its columns.
//
// Scratch: the packed weights, and for each thread a band (384 KiB, or one row's sources if those
// need more) and the tiles of 32 pixels (at most 52 KiB). It does not grow with the batch.
#pragma once

#include "conv2d_tiles.h"
#include "depthwise.h"

namespace flexmoe::FLEXMOE_ISA {

constexpr int64_t kPixels = 32;  // computed before they are transposed to the target's layout

// What all items of one convolution share, and each thread's scratch. An item is a piece of the
// bands of a group of a block of images; its bands share the rows that they read, in a ring.
struct ConvolutionPlan {
  ConvolutionTiles tiles;
  Reaches rows, columns;
  Bands bands;
  int64_t pieces;
  int64_t panels, blocks;  // of target channels in a group; of images
  int64_t panel_floats;    // of packed weights
  int64_t band_floats, tile_floats, segment_count;
  float* weights;
  float* band;        // [threads, band_floats], a ring of bands.sources rows
  float* tile;        // [threads, tile_floats]
  Segment* segments;  // [threads, segment_count]
};

// Neighbouring taps that read neighbouring pixels make one segment. Returns the segments' number.
inline int64_t find_segments(const TapConvolution& conv, const ConvolutionPlan& plan,
                             int64_t pixel, Segment* segments) {
  const ConvolutionTiles& tiles = plan.tiles;
  const int64_t h = pixel / conv.w.target, w = pixel % conv.w.target;
  const int64_t channels = conv.source_channels;
  int64_t count = 0, next_tap = -1, next_source = -1;
  for (const Reach* r = plan.rows.begin(h); r != plan.rows.end(h); ++r) {
    const int64_t row = r->source % plan.bands.sources * conv.w.source;
    for (const Reach* c = plan.columns.begin(w); c != plan.columns.end(w); ++c) {
      const int64_t tap = r->tap * conv.w.kernel + c->tap;
      const int64_t source = row + c->source;
      if (tap == next_tap && source == next_source) {
        segments[count - 1].steps += channels;
      } else {
        const int64_t weight_at = tap * channels * tiles.channel_width;
        const int64_t source_at = source * channels * tiles.image_width;
        segments[count++] = tiles.images_are_columns ? Segment{weight_at, source_at, channels}
                                                     : Segment{source_at, weight_at, channels};
      }
      next_tap = tap + 1;
      next_source = source + 1;
    }
  }
  return count;
}

// A block of images of one group, brought to [pixel][channel][image]. Pixels are the outer loop:
// neighbouring channels are neighbours where they are written.
inline void arrange_source(const TapConvolution& conv, const ConvolutionPlan& plan, Band rows,
                           int64_t group, int64_t image, int64_t images, float* to) {
  const int64_t plane = conv.h.source * conv.w.source, channels = conv.source_channels;
  const int64_t image_floats = conv.groups * channels * plane, width = plan.tiles.image_width;
  const int64_t pixels = rows.size() * conv.w.source;
  const float* source = conv.source + image * image_floats + group * channels * plane +
                        rows.begin * conv.w.source;
  for (int64_t first = 0; first < pixels; first += kPixels) {
    for (int64_t c = 0; c < channels; ++c) {
      const float* from = source + c * plane + first;
      float* at = to + (first * channels + c) * width;
      transpose(
          images, min_of(kPixels, pixels - first), width,
          [=](int64_t r) { return from + r * image_floats; },
          [=](int64_t pixel) { return at + pixel * channels * width; });
    }
  }
}

// Writes the tiles of `pixels` pixels, [channel][image] or [image][channel], to the target.
inline void store_pixels(const TapConvolution& conv, const ConvolutionPlan& plan, int64_t pixel,
                         int64_t pixels, int64_t channel, int64_t channels, int64_t image,
                         int64_t images, const float* tiles) {
  const int64_t plane = conv.h.target * conv.w.target;
  const int64_t image_floats = conv.groups * conv.target_channels * plane;
  const bool images_are_columns = plan.tiles.images_are_columns;
  const int64_t rows = images_are_columns ? channels : images;
  const int64_t columns = images_are_columns ? images : channels;
  const int64_t row_floats = images_are_columns ? plane : image_floats;
  const int64_t column_floats = images_are_columns ? image_floats : plane;
  const int64_t width =
      images_are_columns ? plan.tiles.image_width : plan.tiles.channel_width;
  const int64_t height = images_are_columns ? plan.tiles.channels : plan.tiles.images;
  float* target = conv.target + image * image_floats + channel * plane + pixel;
  // Columns are the outer loop, so that few places far from each other are written at a time.
  for (int64_t column = 0; column < columns; column += kWidth) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* from = tiles + r * width + column;
      float* to = target + r * row_floats + column * column_floats;
      transpose(
          pixels, min_of(kWidth, columns - column), pixels,
          [=](int64_t p) { return from + p * height * width; },
          [=](int64_t j) { return to + j * column_floats; });
    }
  }
}

// Computes rows [first, first + count) of the target from the ring.
inline void convolve_band(const TapConvolution& conv, const ConvolutionPlan& plan, int64_t first,
                          int64_t count, int64_t group, int64_t image, int64_t images,
                          int64_t thread) {
  const ConvolutionTiles& tiles = plan.tiles;
  const float* band = plan.band + thread * plan.band_floats;
  float* out = plan.tile + thread * plan.tile_floats;
  Segment* segments = plan.segments + thread * plan.segment_count;
  const int64_t height = tiles.images_are_columns ? tiles.channels : tiles.images;
  Tile tile = {};
  tile.a_step = tiles.images_are_columns ? tiles.channel_width : tiles.image_width;
  tile.b_step = tiles.images_are_columns ? tiles.image_width : tiles.channel_width;
  tile.c_step = tile.b_step;
  tile.relu = conv.relu;
  const int64_t last = (first + count) * conv.w.target;
  for (int64_t pixel = first * conv.w.target; pixel < last; pixel += kPixels) {
    const int64_t pixels = min_of(kPixels, last - pixel);
    int64_t segment_counts[kPixels];
    for (int64_t p = 0; p < pixels; ++p) {
      segment_counts[p] = find_segments(conv, plan, pixel + p, segments + p * conv.taps());
    }
    for (int64_t panel = 0; panel < plan.panels; ++panel) {
      const int64_t channel = panel * tiles.channels;
      const int64_t channels = min_of(tiles.channels, conv.target_channels - channel);
      const int64_t channel_of_all = group * conv.target_channels + channel;
      const float* weights = plan.weights + (group * plan.panels + panel) * plan.panel_floats;
      const float* bias = conv.bias ? conv.bias + channel_of_all : nullptr;
      tile.a = tiles.images_are_columns ? weights : band;
      tile.b = tiles.images_are_columns ? band : weights;
      tile.row_bias = tiles.images_are_columns ? bias : nullptr;
      tile.column_bias = tiles.images_are_columns ? nullptr : bias;
      tile.columns = tiles.images_are_columns ? images : channels;
      for (int64_t p = 0; p < pixels; ++p) {
        tile.segments = segments + p * conv.taps();
        tile.segment_count = segment_counts[p];
        tile.c = out + p * height * tile.c_step;
        compute_tile(tiles.images_are_columns ? channels : images, tile);
      }
      store_pixels(conv, plan, pixel, pixels, channel_of_all, channels, image, images, out);
    }
  }
}

inline void convolve_piece(const TapConvolution& conv, const ConvolutionPlan& plan, int64_t item,
                           int64_t thread) {
  const int64_t piece = item % plan.pieces;
  const int64_t group = item / plan.pieces % conv.groups;
  const int64_t image = item / plan.pieces / conv.groups * plan.tiles.images;
  const int64_t images = min_of(plan.tiles.images, conv.batch - image);
  const int64_t ring = plan.bands.sources;
  const int64_t row_floats = conv.w.source * conv.source_channels * plan.tiles.image_width;
  float* band = plan.band + thread * plan.band_floats;
  Band held = {0, 0};  // the source's rows that the ring has
  const int64_t last_band = (piece + 1) * plan.bands.count / plan.pieces;
  for (int64_t i = piece * plan.bands.count / plan.pieces; i < last_band; ++i) {
    const int64_t first = i * plan.bands.height;
    const int64_t count = min_of(plan.bands.height, conv.h.target - first);
    const Band rows = band_of(plan.rows, first, count);
    // Usually the next rows are more of the same; dilation and padding can ask for earlier ones.
    if (rows.begin < held.begin || rows.begin > held.end) held = {rows.begin, rows.begin};
    int64_t row = held.end;
    while (row < rows.end) {
      const int64_t end = min_of(rows.end, row + ring - row % ring);
      arrange_source(conv, plan, {row, end}, group, image, images, band + row % ring * row_floats);
      row = end;
    }
    held.end = row;
    held.begin = max_of(held.begin, held.end - ring);
    convolve_band(conv, plan, first, count, group, image, images, thread);
  }
}

inline bool convolve(const Context& context, const TapConvolution& conv) {
  if (conv.batch == 0 || conv.target_channels == 0) return true;
  ConvolutionPlan plan = {};
  const ConvolutionTiles& tiles = plan.tiles = choose_tiles(conv);
  if (!find_reaches(context, conv.h, &plan.rows)) return false;
  if (!find_reaches(context, conv.w, &plan.columns)) return false;
  plan.panels = ceil_div(conv.target_channels, tiles.channels);
  plan.blocks = ceil_div(conv.batch, tiles.images);
  const int64_t threads = context.threads->count();
  const int64_t row_floats = conv.w.source * conv.source_channels * tiles.image_width;
  // More items than threads, so that none waits long for the last.
  const int64_t pieces = threads == 1 ? 1 : ceil_div(4 * threads, plan.blocks * conv.groups);
  plan.bands = cut_bands(conv.h, plan.rows, row_floats, pieces);
  plan.pieces = min_of(pieces, plan.bands.count);
  const int64_t height = tiles.images_are_columns ? tiles.channels : tiles.images;
  const int64_t width = tiles.images_are_columns ? tiles.image_width : tiles.channel_width;
  plan.panel_floats = conv.taps() * conv.source_channels * tiles.channel_width;
  plan.band_floats = round_up(plan.bands.sources * row_floats, kWidth);
  plan.tile_floats = kPixels * height * width;
  plan.segment_count = kPixels * conv.taps();
  plan.weights = take_floats(context, conv.groups * plan.panels * plan.panel_floats);
  plan.band = take_floats(context, threads * plan.band_floats);
  plan.tile = take_floats(context, threads * plan.tile_floats);
  plan.segments = static_cast<Segment*>(context.workspace->take(
      static_cast<size_t>(threads * plan.segment_count) * sizeof(Segment)));
  if (!plan.weights || !plan.band || !plan.tile || !plan.segments) return false;
  if (context.measures) return true;

  const double work = static_cast<double>(conv.batch) * conv.groups * conv.target_channels *
                      conv.source_channels * conv.taps() * conv.h.target * conv.w.target;
  share(context, conv.groups * plan.panels, work, [&](int64_t item, int) {
    const int64_t channel = item % plan.panels * tiles.channels;
    pack_weights(conv, tiles, item / plan.panels, channel,
                 min_of(tiles.channels, conv.target_channels - channel),
                 plan.weights + item * plan.panel_floats);
  });
  share(context, plan.blocks * conv.groups * plan.pieces, work,
        [&](int64_t item, int thread) { convolve_piece(conv, plan, item, thread); });
  return true;
}

inline bool conv2d(const Context& context, const Conv2d& c, const float* x, const float* weight,
                   const float* bias, float* y) {
  const Axis h = {c.out_h, c.height, c.kernel_h, c.stride_h, c.padding_h, c.dilation_h, false};
  const Axis w = {c.out_w, c.width, c.kernel_w, c.stride_w, c.padding_w, c.dilation_w, false};
  if (is_depthwise(c)) {
    return convolve_depthwise(context, {c.batch, c.groups, h, w, c.relu, x, weight, bias, y});
  }
  return convolve(context, {c.batch, c.groups, c.out_channels / c.groups, c.in_channels / c.groups,
                            h, w, c.relu, x, weight, bias, y});
}

inline bool conv2d_backward_input(const Context& context, const Conv2d& c, const float* dy,
                                  const float* weight, float* dx) {
  const Axis h = {c.height, c.out_h, c.kernel_h, c.stride_h, c.padding_h, c.dilation_h, true};
  const Axis w = {c.width, c.out_w, c.kernel_w, c.stride_w, c.padding_w, c.dilation_w, true};
  if (is_depthwise(c)) {
    return convolve_depthwise(context, {c.batch, c.groups, h, w, false, dy, weight, nullptr, dx});
  }
  return convolve(context, {c.batch, c.groups, c.in_channels / c.groups, c.out_channels / c.groups,
                            h, w, false, dy, weight, nullptr, dx});
}

}  // namespace flexmoe::FLEXMOE_ISA
