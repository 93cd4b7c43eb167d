// What a convolution does in tiles: how images and channels lie in them, and the weights packed so.
#pragma once

#include "axis.h"
#include "tile.h"
#include "transpose.h"

namespace flexmoe::FLEXMOE_ISA {

// A convolution, or the gradient of its input: each pixel of the target is a sum over taps.
struct TapConvolution {
  int64_t batch, groups;
  int64_t target_channels, source_channels;  // of a group
  Axis h, w;
  bool relu;
  const float* source;
  const float* weight;
  const float* bias;
  float* target;

  int64_t taps() const { return h.kernel * w.kernel; }
};

// How images and target channels lie in tiles.
struct ConvolutionTiles {
  bool images_are_columns;
  int64_t images;         // of a block, at most
  int64_t channels;       // target channels of a panel of weights, at most
  int64_t image_width;    // floats by which the source steps from channel to channel
  int64_t channel_width;  // floats by which the weights step from source channel to source channel
};

inline ConvolutionTiles choose_tiles(const TapConvolution& conv) {
  // The lanes that work, of those that run, times the additions under way: 16 keep the multipliers
  // busy, and fewer also mean more loads for each.
  const auto used = [](int64_t columns, int64_t rows) {
    const double lanes = static_cast<double>(columns) / round_up(columns, kWidth);
    return lanes * min_of(16, tile_height(rows) * (columns > kWidth ? 2 : 1));
  };
  const bool columns =
      used(conv.batch, conv.target_channels) >= used(conv.target_channels, conv.batch);
  ConvolutionTiles tiles = {};
  tiles.images_are_columns = columns;
  if (columns) {
    tiles.images = min_of(kTileColumns, conv.batch);
    tiles.image_width = panel_width(tiles.images);
    tiles.channels = tiles.channel_width = tile_height(conv.target_channels);
  } else {
    tiles.images = tiles.image_width = tile_height(conv.batch);
    tiles.channels = min_of(kTileColumns, conv.target_channels);
    tiles.channel_width = panel_width(tiles.channels);
  }
  return tiles;
}

// Packs the weights of `count` target channels of a group, from `first`: [tap][source channel]
// [channel_width], zeros after `count`.
inline void pack_weights(const TapConvolution& conv, const ConvolutionTiles& tiles, int64_t group,
                         int64_t first, int64_t count, float* packed) {
  const int64_t taps = conv.taps(), sources = conv.source_channels, width = tiles.channel_width;
  if (!conv.h.backward) {
    const float* from = conv.weight + (group * conv.target_channels + first) * sources * taps;
    transpose(
        count, sources * taps, width, [=](int64_t r) { return from + r * sources * taps; },
        [=](int64_t j) { return packed + (j % taps * sources + j / taps) * width; });
    return;
  }
  for (int64_t s = 0; s < sources; ++s) {
    const float* from =
        conv.weight + ((group * sources + s) * conv.target_channels + first) * taps;
    if (taps == 1) {
      for (int64_t i = 0; i < width; ++i) packed[s * width + i] = i < count ? from[i] : 0.0f;
      continue;
    }
    transpose(
        count, taps, width, [=](int64_t r) { return from + r * taps; },
        [=](int64_t tap) { return packed + ((taps - 1 - tap) * sources + s) * width; });
  }
}

}  // namespace flexmoe::FLEXMOE_ISA
