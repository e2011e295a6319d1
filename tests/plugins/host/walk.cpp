// Counts, by the kernels' own slices and tiles, how often the threads of a launch come to each
// element of an image. A line of standard input is one launch:
//
//   TILING CHANNELS STORED HEIGHT WIDTH POSITIONS_PER_BLOCK CHANNELS_PER_BLOCK
//
// TILING is an index into TILINGS, the list of types compiled in. A line of the output gives the
// fewest and the most visits of an element, and how many visits fell outside the image: in a walk
// by the launch's own lanes and one by those that reduce rows.
#include "cuda_on_threads.hpp"

#include "staged.cuh"

#include <algorithm>
#include <iostream>
#include <vector>

namespace {

struct Visits {
  std::vector<int> of;
  std::size_t outside = 0;
};

// By the lanes of `Lanes`, which are those of the tiling `G` or of its rows.
template <class G, class Lanes>
void walk_by(const cbam::Shape& shape, int positions_per_block, int channels_per_block,
             Visits& visits) {
  for (blockIdx.x = 0;; ++blockIdx.x) {
    const cbam::Work work(shape, positions_per_block, channels_per_block);
    if (work.image > 0) break;
    const cbam::Tile<G> tile(shape, work.image, work.slice);
    for (threadIdx.x = 0; threadIdx.x < G::T; ++threadIdx.x)
      for (int row = Lanes::row_lane(); row < tile.rows; row += Lanes::R)
        for (int col = Lanes::column_lane(); col < tile.cols; col += Lanes::Q)
          for (int i = 0; i < G::V; ++i) {
            const std::size_t at = tile.at(visits.of.data(), row, col) - visits.of.data() + i;
            if (at < visits.of.size()) ++visits.of[at];
            else ++visits.outside;
          }
  }
}

template <class G>
void walk(const cbam::Shape& shape, int positions_per_block, int channels_per_block) {
  Visits own{std::vector<int>(std::size_t(shape.stored) * shape.positions())}, of_rows = own;
  walk_by<G, G>(shape, positions_per_block, channels_per_block, own);
  walk_by<G, typename G::Rows>(shape, positions_per_block, channels_per_block, of_rows);
  own.of.insert(own.of.end(), of_rows.of.begin(), of_rows.of.end());
  const auto [fewest, most] = std::minmax_element(own.of.begin(), own.of.end());
  std::cout << *fewest << ' ' << *most << ' ' << own.outside + of_rows.outside << '\n';
}

using Walk = void (*)(const cbam::Shape&, int, int);
const Walk kWalks[] = {
#define TILING(...) walk<__VA_ARGS__>,
#include TILINGS
#undef TILING
};

}  // namespace

int main() {
  cbam::Shape shape;
  for (int walk, positions, channels; std::cin >> walk >> shape.channels >> shape.stored >>
                                      shape.height >> shape.width >> positions >> channels;)
    kWalks[walk](shape, positions, channels);
}
