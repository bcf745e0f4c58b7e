#pragma once

// How losses of rows of logits share their rows among threads.

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/cpu_buffer.h"
#include "common/row_layout.h"
#include "ops/cpu/row_tiles.h"

namespace fedkern {

// Each group's rows are worked on in blocks of about kBlockElements elements, a thread taking no
// less than kThreadElements of them. A block's sum is taken in row order, then the blocks' sums in
// block order, so the threads that ran them do not show in the result.
constexpr int64_t kBlockElements = 16384, kThreadElements = 32768;

struct Blocks {
  int64_t groups;
  int64_t rows;  // of a group
  int64_t block_rows;
  int64_t of_group;

  Blocks(int64_t groups, int64_t rows, int64_t num_classes) : groups(groups), rows(rows) {
    block_rows = std::max<int64_t>(1, kBlockElements / num_classes);
    if (block_rows > kMostTileRows) block_rows -= block_rows % kMostTileRows;  // whole tiles
    block_rows = std::clamp<int64_t>(rows, 1, block_rows);
    of_group = (rows + block_rows - 1) / block_rows;
  }
};

// sums[g] = the sum over the blocks of group g of work(g, begin, end, scratch), which looks at
// row_elements elements for each of the rows [begin, end) and may use scratch_size elements of
// scratch memory.
template <typename T, typename Work>
void sum_over_blocks(const Blocks& blocks, int64_t row_elements, int64_t scratch_size, double* sums,
                     const Work& work) {
  const int64_t total = blocks.groups * blocks.of_group;
  const int64_t grain = std::max<int64_t>(1, kThreadElements / (blocks.block_rows * row_elements));
  CpuBuffer<double, 64> of_block(total);
  at::parallel_for(0, total, grain, [&](int64_t first, int64_t last) {
    CpuBuffer<T, kRowTileBytes / sizeof(T)> scratch(scratch_size);
    for (int64_t i = first; i < last; ++i) {
      const int64_t group = i / blocks.of_group;
      const int64_t begin = i % blocks.of_group * blocks.block_rows;
      of_block[i] =
          work(group, begin, std::min(blocks.rows, begin + blocks.block_rows), scratch.data());
    }
  });
  std::fill_n(sums, blocks.groups, 0);
  for (int64_t i = 0; i < total; ++i) sums[i / blocks.of_group] += of_block[i];
}

// Samples of one position each are the positions of one sample: columns may lie next to each other.
inline RowLayout with_positions(RowLayout layout) {
  if (layout.positions == 1) {
    layout.positions = std::exchange(layout.samples, 1);
    layout.position_stride = layout.batch_stride;
  }
  return layout;
}

}  // namespace fedkern
