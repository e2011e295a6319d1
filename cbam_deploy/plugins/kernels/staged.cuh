// The staged gate: three launches, for GPUs without clusters and for maps too large for the fused
// kernel. Between launches the statistics stand in device memory, a few floats per channel and per
// position; a launch sees all that the one before it wrote, so no block waits for another.
//
//   1  channel_statistics  x                   -> partials [N, splits, stored] of (sum, max)
//   2  spatial_statistics  x, partials         -> Mc [N, stored], pooled [N, H W] of (mean, max)
//      channel_excitation  partials            -> Mc, where there is no spatial gate
//   3  apply_...           x, (r,) Mc, pooled  -> y
//
// Bytes moved per image of S = C H W sizeof(Element) bytes: 3 S in and S out where the fused kernel
// moves S and S; 2 S in without a spatial gate. A batch that fits in L2 comes from device memory
// once.
//
// Every block works on one slice of one image: `positions_per_block` positions by
// `channels_per_block` channels (launch 2: all channels). blockIdx.x counts channel splits fastest,
// then position splits, then images.
#pragma once

#include "gate.cuh"

namespace cbam {

// Which image and slice this block has.
struct Work {
  int image, position_split, position_splits;
  Slice slice;

  __device__ __forceinline__ Work(const Shape& shape, int positions_per_block,
                                  int channels_per_block) {
    const int positions = shape.positions();
    const int channel_splits = (shape.stored + channels_per_block - 1) / channels_per_block;
    position_splits = (positions + positions_per_block - 1) / positions_per_block;
    const int channel_split = blockIdx.x % channel_splits;
    position_split = blockIdx.x / channel_splits % position_splits;
    image = blockIdx.x / channel_splits / position_splits;
    slice.p0 = position_split * positions_per_block;
    slice.p1 = min(positions, slice.p0 + positions_per_block);
    slice.c0 = channel_split * channels_per_block;
    slice.c1 = min(shape.stored, slice.c0 + channels_per_block);
  }
};

template <class G>
__global__ void __launch_bounds__(G::T, 512 / G::T)
    channel_statistics(const typename G::Element* x, int channels, int stored, int height,
                       int width, int positions_per_block, int channels_per_block,
                       Stat* partials) {
  const Work work({channels, stored, height, width}, positions_per_block, channels_per_block);
  const Tile<G> tile({channels, stored, height, width}, work.image, work.slice);
  Arena arena;
  Stat* const scratch = arena.take<Stat>(G::channel_scratch);
  Stat* const out =
      partials + (size_t(work.image) * work.position_splits + work.position_split) * stored +
      work.slice.c0;
  reduce_channels(
      tile, scratch, [&](int row, int col, auto& vectors) { tile.read(x, row, col, vectors); },
      [&](int channel, const Stat& stat) { out[channel] = stat; });
}

// The channel gate of one image, by one block, from the partial statistics of `splits` blocks;
// `gate` receives Mc times `unit_gate`. `in_place` needs splits 1: the statistics are used where
// they stand, so that shared memory need not grow with the number of channels.
template <int threads, bool with_max, bool in_place>
__device__ __forceinline__ void channel_gate_of_image(Arena& arena, const Mlp& mlp, int stored,
                                                      int positions, int splits, float x_scale,
                                                      float unit_gate, const Stat* partials,
                                                      float* gate) {
  float* const hidden = arena.take<float>(mlp.hidden);
  Stat* const totals = arena.take<Stat>(in_place ? 0 : mlp.channels);
  if constexpr (!in_place) {
    for (int c = threadIdx.x; c < mlp.channels; c += threads) {
      Stat total = partials[c];
      for (int split = 1; split < splits; ++split) total.add(partials[size_t(split) * stored + c]);
      totals[c] = total;
    }
    __syncthreads();
  }
  hidden_layer<threads>(mlp, 0, mlp.channels, in_place ? partials : totals,
                        [&](int unit, const Branches& in) {
                          hidden[unit] = hidden_unit<with_max>(mlp, unit, in, x_scale, positions);
                        });
  __syncthreads();
  channel_gate<threads, with_max>(mlp, 0, mlp.channels, hidden, [&](int channel, float value) {
    gate[channel] = value * unit_gate;
  });
  __syncthreads();
}

// Every block of an image computes the whole channel gate, which is cheaper than one more launch;
// the first one also writes it out. With `in_place` an image has one block, see above.
template <class G, bool in_place>
__global__ void __launch_bounds__(G::T, 512 / G::T)
    spatial_statistics(const typename G::Element* x, const Stat* partials, const float* w0,
                       const float* b0, const float* w1, const float* b1, int channels, int stored,
                       int height, int width, int hidden, int positions_per_block, int splits,
                       int x_scale, float* channel_gates, Stat* pooled) {
  const Shape shape{channels, stored, height, width};
  const Work work(shape, positions_per_block, stored);
  const Tile<G> tile(shape, work.image, work.slice);
  const float scale = Scales::of<typename G::Element>(x_scale, x_scale, x_scale).x;
  float* const gate_out = channel_gates + size_t(work.image) * stored;
  Arena arena;
  Stat* const scratch = arena.take<Stat>(G::position_scratch);
  float* const gate = in_place ? gate_out : arena.take<float>(stored);
  channel_gate_of_image<G::T, true, in_place>(
      arena, {w0, b0, w1, b1, channels, hidden}, stored, shape.positions(), splits, scale, scale,
      partials + size_t(work.image) * splits * stored, gate);
  if (!in_place && work.position_split == 0)
    for (int c = threadIdx.x; c < channels; c += G::T) gate_out[c] = gate[c];
  Stat* const out = pooled + size_t(work.image) * shape.positions() + work.slice.p0;
  reduce_positions(
      tile, channels, gate, scratch,
      [&](int row, int col, auto& vectors) { tile.read(x, row, col, vectors); },
      [&](int position, const Stat& stat) {
        out[position] = {__fdividef(stat.sum, channels), stat.max};
      });
}

// Grid: one block of `threads` per image.
template <int threads, bool in_place>
__global__ void __launch_bounds__(threads, 512 / threads)
    channel_excitation(const Stat* partials, const float* w0, const float* b0, const float* w1,
                       const float* b1, int channels, int stored, int positions, int hidden,
                       int splits, int x_scale, int y_scale, float* channel_gates) {
  const float scale = __int_as_float(x_scale);
  Arena arena;
  channel_gate_of_image<threads, false, in_place>(
      arena, {w0, b0, w1, b1, channels, hidden}, stored, positions, splits, scale,
      __fdividef(scale, __int_as_float(y_scale)), partials + size_t(blockIdx.x) * splits * stored,
      channel_gates + size_t(blockIdx.x) * stored);
}

template <class G, int kernel_size, bool residual>
__device__ __forceinline__ void apply_gate(const typename G::Element* x,
                                           const typename G::Element* r,
                                           const float* channel_gates, const Stat* pooled,
                                           const Convolution& convolution, const Shape& shape,
                                           int positions_per_block, int channels_per_block,
                                           int window_size, const Scales& scales,
                                           typename G::Element* y) {
  constexpr bool spatial = kernel_size > 0;
  const Work work(shape, positions_per_block, channels_per_block);
  const Slice slice = work.slice;
  const Tile<G> tile(shape, work.image, slice);
  Arena arena;
  float* const own_spatial_gate = arena.take<float>(spatial ? positions_per_block : 0);
  if constexpr (spatial) {
    float* const weight = arena.take<float>(2 * kernel_size * kernel_size);
    Stat* const shared_window = arena.take<Stat>(window_size);
    const int reach = halo<kernel_size>(shape), start = max(0, slice.p0 - reach);
    const int size = min(shape.positions(), slice.p1 + reach) - start;
    const Stat* const image_window = pooled + size_t(work.image) * shape.positions() + start;
    for (int i = threadIdx.x; i < 2 * kernel_size * kernel_size; i += G::T)
      weight[i] = __ldg(convolution.weight + i);
    // Of very wide maps the window does not fit: those read it where it stands.
    const bool fits = size <= window_size;
    if (fits)
      for (int i = threadIdx.x; i < size; i += G::T) shared_window[i] = image_window[i];
    __syncthreads();
    const Stat* const window = fits ? shared_window : image_window;
    const float bias = __ldg(convolution.bias);
    for (int p = slice.p0 + threadIdx.x; p < slice.p1; p += G::T) {
      const float value = spatial_gate<kernel_size>(shape, p, window, start, weight, bias);
      own_spatial_gate[p - slice.p0] = __fdividef(value, scales.y);
    }
    __syncthreads();
  }
  write_gated<G, spatial, residual>(
      tile, shape.channels - slice.c0, channel_gates + size_t(work.image) * shape.stored + slice.c0,
      own_spatial_gate, __fdividef(scales.r, scales.y),
      [&](int row, int col, auto& vectors) { tile.read(x, row, col, vectors); }, r, y);
}

// The last launch, one entry point per ONNX operator. Parameters in TensorRT's order.

template <class G, int kernel_size>
__global__ void __launch_bounds__(G::T, 512 / G::T)
    apply_cbam(const typename G::Element* x, const float* channel_gates, const Stat* pooled,
               const float* ws, const float* bs, int channels, int stored, int height, int width,
               int positions_per_block, int channels_per_block, int window_size, int x_scale,
               int r_scale, int y_scale, typename G::Element* y) {
  apply_gate<G, kernel_size, false>(x, nullptr, channel_gates, pooled, {ws, bs},
                                    {channels, stored, height, width}, positions_per_block,
                                    channels_per_block, window_size,
                                    Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

template <class G, int kernel_size>
__global__ void __launch_bounds__(G::T, 512 / G::T)
    apply_cbam_add_relu(const typename G::Element* x, const typename G::Element* r,
                        const float* channel_gates, const Stat* pooled, const float* ws,
                        const float* bs, int channels, int stored, int height, int width,
                        int positions_per_block, int channels_per_block, int window_size,
                        int x_scale, int r_scale, int y_scale, typename G::Element* y) {
  apply_gate<G, kernel_size, true>(x, r, channel_gates, pooled, {ws, bs},
                                   {channels, stored, height, width}, positions_per_block,
                                   channels_per_block, window_size,
                                   Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

template <class G>
__global__ void __launch_bounds__(G::T, 512 / G::T)
    apply_se(const typename G::Element* x, const float* channel_gates, int channels, int stored,
             int height, int width, int positions_per_block, int channels_per_block, int x_scale,
             int r_scale, int y_scale, typename G::Element* y) {
  apply_gate<G, 0, false>(x, nullptr, channel_gates, nullptr, {}, {channels, stored, height, width},
                          positions_per_block, channels_per_block, 0,
                          Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

template <class G>
__global__ void __launch_bounds__(G::T, 512 / G::T)
    apply_se_add_relu(const typename G::Element* x, const typename G::Element* r,
                      const float* channel_gates, int channels, int stored, int height, int width,
                      int positions_per_block, int channels_per_block, int x_scale, int r_scale,
                      int y_scale, typename G::Element* y) {
  apply_gate<G, 0, true>(x, r, channel_gates, nullptr, {}, {channels, stored, height, width},
                         positions_per_block, channels_per_block, 0,
                         Scales::of<typename G::Element>(x_scale, r_scale, y_scale), y);
}

}  // namespace cbam
