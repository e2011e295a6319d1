// Counts, by the kernels' own slices and tiles, how often the threads of a launch come to each
// element of an image. A line of standard input is one launch:
//
//   TILING CHANNELS STORED HEIGHT WIDTH POSITIONS_PER_BLOCK CHANNELS_PER_BLOCK
//
// TILING is an index into TILINGS, the list of types compiled in. A line of the output gives the
// fewest and the most visits of an element, and how many visits fell outside the image.
#include "cuda_on_threads.hpp"

#include "staged.cuh"

#include <algorithm>
#include <iostream>
#include <vector>

namespace {

template <class G>
void walk(const cbam::Shape& shape, int positions_per_block, int channels_per_block) {
  std::vector<int> visits(std::size_t(shape.stored) * shape.positions());
  std::size_t outside = 0;
  for (blockIdx.x = 0;; ++blockIdx.x) {
    const cbam::Work work(shape, positions_per_block, channels_per_block);
    if (work.image > 0) break;
    const cbam::Tile<G> tile(shape, work.image, work.slice);
    for (threadIdx.x = 0; threadIdx.x < G::T; ++threadIdx.x)
      for (int row = G::row_lane(); row < tile.rows; row += G::R)
        for (int col = G::column_lane(); col < tile.cols; col += G::Q)
          for (int i = 0; i < G::V; ++i) {
            const std::size_t at = tile.at(row, col) + i;
            if (at < visits.size()) ++visits[at];
            else ++outside;
          }
  }
  const auto [fewest, most] = std::minmax_element(visits.begin(), visits.end());
  std::cout << *fewest << ' ' << *most << ' ' << outside << '\n';
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
