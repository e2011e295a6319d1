// The fused gate: one cluster of thread blocks per image, the map read once and written once.
//
// Bytes moved through device memory per image of S = C H W sizeof(Element) bytes: S in and S out,
// with a residual 2 S in, where op by op the gate reads 8 S to 10 S and writes 4 S. The gate's
// weights, 8 C C/r bytes, come from L2. To get there each of the cluster's 1, 2, 4 or 8 blocks
// takes a run of positions of all channels and keeps it in shared memory; 16-byte vectors in and
// out, every thread reading back only what it wrote. What does not fit is read again, from L2 as a
// rule: it was read microseconds ago.
//
// Between the phases only statistics travel, through distributed shared memory. Each exchange
// *writes into its reader's memory* and ends with a cluster barrier, so that no block waits for a
// remote read:
//
//   1   sum and maximum per channel of the own positions  -> to the block that owns the channel
//   2a  W0 times the own channels' sums and maxima        -> to every block, 2 C/r floats
//   2b  Mc of the own channels                            -> to every block
//   3   maximum and mean of x Mc per own position         -> to the blocks whose convolution looks
//                                                            there
//   4   convolution, sigmoid, y = x Mc Ms (+ r, ReLU)     -> written
//
// In 2 the blocks share the work, so the cluster reads the weights once, not once per block. While
// phases 2 and 3 leave device memory idle, the residual is brought to L2.
//
// A block waits for its cluster four times, and meanwhile its memory pipes rest. With tiles of at
// most half the multiprocessor's shared memory a second block fills that time; the geometry prefers
// the smallest cluster for which this holds. In flight while reading: 4 vectors of 16 bytes per
// thread, 32 KiB per multiprocessor of 512 threads, which at 4.8 TB/s over 132 multiprocessors
// covers 0.9 us of latency. Shared memory is accessed by 16-byte vectors of neighbouring lanes,
// free of bank conflicts. What all this comes to is for benchmarks/results to say.
#pragma once

#include "gate.cuh"

namespace cbam {

// What all four gates do. `kernel_size` 0: channel gate only (Squeeze-and-Excitation).
template <class G, int blocks, int kernel_size, bool residual>
__device__ __forceinline__ void fused_gate(const typename G::Element* x,
                                           const typename G::Element* r, const Mlp& mlp,
                                           const Convolution& convolution, const Shape& shape,
                                           int positions_per_block, int kept_rows,
                                           const Scales& scales, typename G::Element* y) {
  constexpr bool spatial = kernel_size > 0;
  const int positions = shape.positions(), channels = shape.channels;
  const int rank = cluster_rank<blocks>(), image = blockIdx.x / blocks;
  const Slice slice{min(positions, rank * positions_per_block),
                    min(positions, (rank + 1) * positions_per_block), 0, shape.stored};
  Tile<G> tile(shape, image, slice);

  // Channels this block owns in the channel gate's two layers.
  const int share = (channels + blocks - 1) / blocks;
  const int first_own = min(channels, rank * share);
  const int own = min(channels, first_own + share) - first_own;

  const int reach = halo<kernel_size>(shape);
  const int window_size = min(positions, positions_per_block + 2 * reach);

  Arena arena;
  // What each rank sends: [rank][own channel], and [rank][unit].
  Stat* const partials = arena.take<Stat>(blocks * share);
  Branches* const hidden_partials = arena.take<Branches>(blocks * mlp.hidden);
  float* const hidden = arena.take<float>(mlp.hidden);
  float* const weight = arena.take<float>(2 * kernel_size * kernel_size);
  Stat* const position_scratch = arena.take<Stat>(spatial ? G::position_scratch : 0);
  // Phase 1's scratch lies where the later phases receive: no peer sends there before all blocks
  // have left phase 1.
  Arena first_phase = arena;
  Stat* const channel_scratch = first_phase.take<Stat>(G::channel_scratch);
  float* const gate = arena.take<float>(shape.stored);
  Stat* const window = arena.take<Stat>(spatial ? window_size : 0);
  float* const own_spatial_gate = arena.take<float>(spatial ? positions_per_block : 0);
  arena.past(first_phase);
  tile.keep(arena.take<typename G::Element>(0), kept_rows);

  if constexpr (spatial) {
    for (int i = threadIdx.x; i < 2 * kernel_size * kernel_size; i += G::T)
      weight[i] = __ldg(convolution.weight + i);
  }
  // No peer's memory may be written before the peer runs.
  if constexpr (blocks > 1) cluster_sync<blocks>();

  // Phase 1.
  reduce_channels(
      tile, channel_scratch,
      [&](int row, int col, auto& vectors) { tile.read_and_keep(x, row, col, vectors); },
      [&](int channel, const Stat& stat) {
        if (G::padded && channel >= channels) return;
        const int owner = channel / share;
        cluster_peer<blocks>(partials, owner)[rank * share + channel - owner * share] = stat;
      });
  if constexpr (residual) tile.prefetch(r);
  cluster_sync<blocks>();

  // Phase 2.
  for (int c = threadIdx.x; c < own; c += G::T) {
    Stat total = partials[c];
    for (int from = 1; from < blocks; ++from) total.add(partials[from * share + c]);
    partials[c] = total;
  }
  __syncthreads();
  hidden_layer<G::T>(mlp, first_own, own, partials, [&](int unit, const Branches& in) {
    for (int to = 0; to < blocks; ++to)
      cluster_peer<blocks>(hidden_partials, to)[rank * mlp.hidden + unit] = in;
  });
  cluster_sync<blocks>();
  for (int unit = threadIdx.x; unit < mlp.hidden; unit += G::T) {
    Branches in = hidden_partials[unit];
    for (int from = 1; from < blocks; ++from) in.add(hidden_partials[from * mlp.hidden + unit]);
    hidden[unit] = hidden_unit<spatial>(mlp, unit, in, scales.x, positions);
  }
  __syncthreads();
  // The stored gate takes x from its integers, and to y's where no spatial gate follows.
  const float unit_gate = spatial ? scales.x : __fdividef(scales.x, scales.y);
  channel_gate<G::T, spatial>(mlp, first_own, own, hidden, [&](int channel, float value) {
    for (int to = 0; to < blocks; ++to)
      cluster_peer<blocks>(gate, to)[channel] = value * unit_gate;
  });
  cluster_sync<blocks>();

  // Phases 3 and 4.
  const auto read_again = [&](int row, int col, auto& vectors) {
    tile.read_again(x, row, col, vectors);
  };
  if constexpr (spatial) {
    reduce_positions(
        tile, channels, gate, position_scratch, read_again,
        [&](int own_position, const Stat& stat) {
          const int p = slice.p0 + own_position;
          const Stat pooled{__fdividef(stat.sum, channels), stat.max};
          const int first = max(0, p - reach) / positions_per_block;
          const int last = min(positions - 1, p + reach) / positions_per_block;
          for (int to = first; to <= last; ++to) {
            const int start = max(0, to * positions_per_block - reach);
            cluster_peer<blocks>(window, to)[p - start] = pooled;
          }
        });
    cluster_sync<blocks>();
    const int start = max(0, rank * positions_per_block - reach);
    const float bias = __ldg(convolution.bias);
    for (int p = slice.p0 + threadIdx.x; p < slice.p1; p += G::T) {
      const float value = spatial_gate<kernel_size>(shape, p, window, start, weight, bias);
      own_spatial_gate[p - slice.p0] = __fdividef(value, scales.y);
    }
    __syncthreads();
  }
  write_gated<G, spatial, residual>(tile, channels, gate, own_spatial_gate,
                                    __fdividef(scales.r, scales.y), read_again, r, y);
}

// The entry points, one per ONNX operator. Parameters in TensorRT's order: inputs as the operator
// has them, 32-bit integers, output. Grid: images times `blocks`. launches.py describes the launch.

template <class G, int blocks, int kernel_size>
__global__ void CBAM_CLUSTER(blocks) __launch_bounds__(G::T, 512 / G::T)
    cbam_gate(const typename G::Element* x, const float* w0, const float* b0, const float* w1,
              const float* b1, const float* ws, const float* bs, int channels, int stored,
              int height, int width, int hidden, int positions_per_block, int kept_rows,
              int x_scale, int r_scale, int y_scale, typename G::Element* y) {
  fused_gate<G, blocks, kernel_size, false>(
      x, nullptr, {w0, b0, w1, b1, channels, hidden}, {ws, bs}, {channels, stored, height, width},
      positions_per_block, kept_rows,
      Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

template <class G, int blocks, int kernel_size>
__global__ void CBAM_CLUSTER(blocks) __launch_bounds__(G::T, 512 / G::T)
    cbam_gate_add_relu(const typename G::Element* x, const typename G::Element* r, const float* w0,
                       const float* b0, const float* w1, const float* b1, const float* ws,
                       const float* bs, int channels, int stored, int height, int width, int hidden,
                       int positions_per_block, int kept_rows, int x_scale, int r_scale,
                       int y_scale, typename G::Element* y) {
  fused_gate<G, blocks, kernel_size, true>(
      x, r, {w0, b0, w1, b1, channels, hidden}, {ws, bs}, {channels, stored, height, width},
      positions_per_block, kept_rows,
      Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

template <class G, int blocks>
__global__ void CBAM_CLUSTER(blocks) __launch_bounds__(G::T, 512 / G::T)
    se_gate(const typename G::Element* x, const float* w0, const float* b0, const float* w1,
            const float* b1, int channels, int stored, int height, int width, int hidden,
            int positions_per_block, int kept_rows, int x_scale, int r_scale, int y_scale,
            typename G::Element* y) {
  fused_gate<G, blocks, 0, false>(
      x, nullptr, {w0, b0, w1, b1, channels, hidden}, {}, {channels, stored, height, width},
      positions_per_block, kept_rows,
      Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

template <class G, int blocks>
__global__ void CBAM_CLUSTER(blocks) __launch_bounds__(G::T, 512 / G::T)
    se_gate_add_relu(const typename G::Element* x, const typename G::Element* r, const float* w0,
                     const float* b0, const float* w1, const float* b1, int channels, int stored,
                     int height, int width, int hidden, int positions_per_block, int kept_rows,
                     int x_scale, int r_scale, int y_scale, typename G::Element* y) {
  fused_gate<G, blocks, 0, true>(
      x, r, {w0, b0, w1, b1, channels, hidden}, {}, {channels, stored, height, width},
      positions_per_block, kept_rows,
      Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

}  // namespace cbam
