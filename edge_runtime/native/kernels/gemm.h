// Matrix products.
//
// Scratch: at most 416 KiB for a block of a, and 64 KiB for each thread, whatever the sizes.
#pragma once

#include "context.h"
#include "tile.h"
#include "transpose.h"

namespace flexmoe::FLEXMOE_ISA {

constexpr int64_t kBlockSteps = 512;            // of k, packed at once
constexpr int64_t kBlockRows = 16 * kTileRows;  // of a, packed at once

// An operand is read where it lies if its steps are close to each other, or if it is read once or
// twice only; far steps share few cache sets.
FLEXMOE_INLINE bool read_in_place(int64_t step, int64_t uses) { return uses <= 2 || step < 256; }

// Packs op(a)[row .. row + rows, k0 .. k0 + steps] as [tile][steps][height].
FLEXMOE_INLINE void pack_a(const Gemm& g, const float* a, int64_t row, int64_t rows, int64_t k0,
                           int64_t steps, int64_t height, float* packed) {
  for (int64_t i = 0; i < rows; i += height) {
    const int64_t tile = min_of(height, rows - i);
    float* to = packed + i * steps;
    if (g.transpose_a) {
      for (int64_t k = 0; k < steps; ++k) {
        const float* from = a + (k0 + k) * g.m + row + i;
        for (int64_t r = 0; r < tile; ++r) to[k * height + r] = from[r];
      }
    } else {
      const float* from = a + (row + i) * g.k + k0;
      transpose(
          tile, steps, height, [=](int64_t r) { return from + r * g.k; },
          [=](int64_t k) { return to + k * height; });
    }
  }
}

// Packs op(b)[k0 .. k0 + steps, column .. column + columns] as [steps][width], zeros after columns.
FLEXMOE_INLINE void pack_b(const Gemm& g, const float* b, int64_t column, int64_t columns,
                           int64_t k0, int64_t steps, int64_t width, float* packed) {
  if (g.transpose_b) {
    const float* from = b + column * g.k + k0;
    transpose(
        columns, steps, width, [=](int64_t j) { return from + j * g.k; },
        [=](int64_t k) { return packed + k * width; });
    return;
  }
  for (int64_t k = 0; k < steps; ++k) {
    const float* from = b + (k0 + k) * g.n + column;
    for (int64_t j = 0; j < width; j += kWidth) {
      const int64_t lanes = min_of(kWidth, max_of(0, columns - j));
      const Vec v = lanes == kWidth ? load(from + j) : load_partial(from + j, lanes);
      store(packed + k * width + j, v);
    }
  }
}

inline bool gemm(const Context& context, const Gemm& g, const float* a, const float* b,
                 const float* bias, float* c) {
  const int64_t height = tile_height(g.m);
  const int64_t tiles = ceil_div(g.m, height);
  const int64_t panels = ceil_div(g.n, kTileColumns);
  const int64_t block_steps = min_of(g.k, kBlockSteps);
  const int64_t block_rows = min_of(tiles, max_of(1, kBlockRows / height)) * height;
  const bool a_in_place = g.transpose_a && read_in_place(g.m, panels);
  const bool b_in_place = !g.transpose_b && read_in_place(g.n, tiles);

  const int64_t panel_floats = block_steps * kTileColumns;
  float* packed_a = a_in_place ? nullptr : take_floats(context, block_rows * block_steps);
  float* packed_b = take_floats(context, panel_floats * context.threads->count());
  if (!packed_b || (!packed_a && !a_in_place)) return false;
  if (context.measures) return true;

  // Runs once for k = 0 too, so that c gets its bias.
  for (int64_t k0 = 0; k0 == 0 || k0 < g.k; k0 += kBlockSteps) {
    const int64_t steps = min_of(kBlockSteps, g.k - k0);
    const Segment segment = {0, 0, steps};
    for (int64_t row = 0; row < g.m; row += block_rows) {
      const int64_t rows = min_of(block_rows, g.m - row);
      if (!a_in_place) pack_a(g, a, row, rows, k0, steps, height, packed_a);
      const double work = static_cast<double>(rows) * g.n * steps;
      share(context, panels, work, [&](int64_t panel, int thread) {
        const int64_t column = panel * kTileColumns;
        const int64_t columns = min_of(kTileColumns, g.n - column);
        const int64_t width = panel_width(columns);
        Tile tile = {};
        if (b_in_place && columns == width) {
          tile.b = b + k0 * g.n + column;
          tile.b_step = g.n;
        } else {
          float* packed = packed_b + thread * panel_floats;
          pack_b(g, b, column, columns, k0, steps, width, packed);
          tile.b = packed;
          tile.b_step = width;
        }
        tile.a_step = a_in_place ? g.m : height;
        tile.segments = &segment;
        tile.segment_count = 1;
        tile.c_step = g.n;
        tile.columns = columns;
        tile.column_bias = bias && k0 == 0 ? bias + column : nullptr;
        tile.accumulate = k0 > 0;
        tile.relu = g.relu && k0 + steps == g.k;
        for (int64_t i = 0; i < rows; i += height) {
          tile.a = a_in_place ? a + k0 * g.m + row + i : packed_a + i * steps;
          tile.c = c + (row + i) * g.n + column;
          compute_tile(min_of(height, rows - i), tile);
        }
      });
    }
  }
  return true;
}

}  // namespace flexmoe::FLEXMOE_ISA
