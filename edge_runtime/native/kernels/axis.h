// One axis (height or width) of a convolution, seen from the tensor that is written: which taps of
// the kernel reach which of its indices, and from where in the tensor that is read.
#pragma once

#include "context.h"

namespace flexmoe::FLEXMOE_ISA {

struct Axis {
  int64_t target, source;  // sizes of what is written and what is read
  int64_t kernel, stride, padding, dilation;
  bool backward;  // writes the gradient of the input, reads the gradient of the output
};

// The index of the source, or -1. Sources ascend with taps: backward counts taps from the last.
FLEXMOE_INLINE int64_t source_of(const Axis& axis, int64_t target, int64_t tap) {
  int64_t source;
  if (axis.backward) {
    source = target + axis.padding - (axis.kernel - 1 - tap) * axis.dilation;
    if (source < 0 || source % axis.stride != 0) return -1;
    source /= axis.stride;
  } else {
    source = target * axis.stride - axis.padding + tap * axis.dilation;
  }
  return 0 <= source && source < axis.source ? source : -1;
}

struct Reach {
  int64_t tap, source;
};

// source_of as a table, without the taps that miss the source (the padding costs no arithmetic).
struct Reaches {
  int64_t* ends;  // [target]
  Reach* items;   // [target, kernel]
  int64_t kernel;

  const Reach* begin(int64_t target) const { return items + target * kernel; }
  const Reach* end(int64_t target) const { return items + ends[target]; }
};

inline bool find_reaches(const Context& context, const Axis& axis, Reaches* reaches) {
  const size_t target = static_cast<size_t>(axis.target), kernel = static_cast<size_t>(axis.kernel);
  reaches->kernel = axis.kernel;
  reaches->ends = static_cast<int64_t*>(context.workspace->take(target * sizeof(int64_t)));
  reaches->items = static_cast<Reach*>(context.workspace->take(target * kernel * sizeof(Reach)));
  if (!reaches->ends || !reaches->items) return false;
  for (int64_t i = 0; i < axis.target; ++i) {
    int64_t end = i * axis.kernel;
    for (int64_t tap = 0; tap < axis.kernel; ++tap) {
      const int64_t source = source_of(axis, i, tap);
      if (source >= 0) reaches->items[end++] = {tap, source};
    }
    reaches->ends[i] = end;
  }
  return true;
}

// The sources that targets [first, first + count) read: [begin, end), empty if none.
struct Band {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

FLEXMOE_INLINE Band band_of(const Reaches& reaches, int64_t first, int64_t count) {
  Band band = {INT64_MAX, 0};
  for (int64_t i = first; i < first + count; ++i) {
    if (reaches.begin(i) == reaches.end(i)) continue;
    band.begin = min_of(band.begin, reaches.begin(i)->source);
    band.end = max_of(band.end, reaches.end(i)[-1].source + 1);
  }
  return band.end == 0 ? Band{0, 0} : band;
}

// Targets are computed in bands of rows, so that what they read stays in the cache.
struct Bands {
  int64_t height;   // targets in a band; the last has what is left
  int64_t count;    // bands
  int64_t sources;  // at most, for one band
};

constexpr int64_t kBandFloats = 96 * 1024;

inline Bands cut_bands(const Axis& axis, const Reaches& reaches, int64_t floats_per_source,
                       int64_t at_least) {
  Bands bands = {axis.target, 1, 0};
  for (;;) {
    bands.count = ceil_div(axis.target, bands.height);
    bands.sources = 0;
    for (int64_t i = 0; i < axis.target; i += bands.height) {
      const Band band = band_of(reaches, i, min_of(bands.height, axis.target - i));
      bands.sources = max_of(bands.sources, band.size());
    }
    const bool fits = bands.sources * floats_per_source <= kBandFloats && bands.count >= at_least;
    if (fits || bands.height == 1) return bands;
    bands.height = ceil_div(bands.height, 2);
  }
}

}  // namespace flexmoe::FLEXMOE_ISA
