// The staged gate: a few launches, for GPUs without clusters and for maps too large for the fused
// kernel. Between launches the statistics stand in device memory, a few floats per channel and per
// position; a launch sees all that the one before it wrote, so no block waits for another.
//
//   channel_statistics  x                 -> partials [N, splits, stored] of sum, maximum
//                       (x, pooled where the channel part sees x Ms)
//   channel_excitation  partials          -> Mc [N, stored]
//   spatial_statistics  x, (partials)     -> (Mc,) pooled [N, H W] of the descriptor
//                       (x, Mc where that is there already)
//   apply               x, (r, Mc, pooled)  -> y
//
// Which of these, and in which order, is for `stages.stages` to say. Where the spatial part sees
// x Mc, or both see x, one launch computes Mc and the descriptor, but for `Gate::excites_apart`.
//
// Bytes moved per image of S = C H W sizeof(Element) bytes: 3 S in and S out where the fused kernel
// moves S and S; 2 S in with one part alone. A batch that fits in L2 comes from device memory once.
//
// Every block works on one slice of one image: `positions_per_block` positions by
// `channels_per_block` channels (spatial_statistics: all channels). blockIdx.x counts channel
// splits fastest, then position splits, then images.
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

// Ms of the slice's positions, times `K::spatial_unit`, in shared memory. The convolution's window
// stands there too; of very wide maps, whose window does not fit, it is read where it is.
template <class G, class K>
__device__ __forceinline__ const float* spatial_gates_of_slice(
    Arena& arena, const Arguments<typename G::Element>& a, const Work& work) {
  using PositionStat = typename K::PositionStat;
  const Shape shape = a.shape();
  const Slice slice = work.slice;
  float* const gates = arena.take<float>(a.positions_per_block);
  float* const weight = arena.take<float>(K::spatial_weights);
  PositionStat* const shared_window = arena.take<PositionStat>(a.window_size);
  const int reach = halo<K>(shape), start = max(0, slice.p0 - reach);
  const int size = min(shape.positions(), slice.p1 + reach) - start;
  const PositionStat* const image_window = reinterpret_cast<const PositionStat*>(a.pooled) +
                                           size_t(work.image) * shape.positions() + start;
  for (int i = threadIdx.x; i < K::spatial_weights; i += G::T) weight[i] = __ldg(a.ws + i);
  const bool fits = size <= a.window_size;
  if (fits)
    for (int i = threadIdx.x; i < size; i += G::T) shared_window[i] = image_window[i];
  __syncthreads();
  const PositionStat* const window = fits ? shared_window : image_window;
  const float bias = __ldg(a.bs), unit_gate = K::spatial_unit(a.scales());
  for (int p = slice.p0 + threadIdx.x; p < slice.p1; p += G::T)
    gates[p - slice.p0] = spatial_gate<K>(shape, p, window, start, weight, bias) * unit_gate;
  __syncthreads();
  return gates;
}

template <class G, class K>
__device__ __forceinline__ void channel_statistics(const Arguments<typename G::Element>& a) {
  using Stat = typename K::ChannelStat;
  const Shape shape = a.shape();
  const Work work(shape, a.positions_per_block, a.channels_per_block);
  const Tile<G> tile(shape, work.image, work.slice);
  Arena arena;
  Stat* const scratch = arena.take<Stat>(G::channel_scratch);
  const float* spatial_gates = nullptr;
  if constexpr (K::channel_sees_gated) spatial_gates = spatial_gates_of_slice<G, K>(arena, a, work);
  Stat* const out =
      reinterpret_cast<Stat*>(a.partials) +
      (size_t(work.image) * work.position_splits + work.position_split) * shape.stored +
      work.slice.c0;
  reduce_channels<K::channel_sees_gated>(
      tile, spatial_gates, scratch,
      [&](int row, int step, int col, auto& vectors) { tile.read(a.x, row, step, col, vectors); },
      [&](int channel, const Stat& stat, auto holder) {
        if (holder.number == 0) out[channel] = stat;
      });
}

// Mc of channels [c0, c0 + count) of one image, by one block, from the partial statistics of
// `splits` blocks; `gate` receives it times `K::channel_unit`. `in_place` needs splits 1: the
// statistics are used where they stand, so that shared memory need not grow with the number of
// channels. Other mixers than the MLP keep what they see of every channel there in any case.
template <class K, int threads, bool in_place, class Element>
__device__ __forceinline__ void channel_gate_of_image(Arena& arena, const Arguments<Element>& a,
                                                      int image, int c0, int count, float* gate) {
  using Stat = typename K::ChannelStat;
  constexpr bool mlp = K::mixer == Mixer::mlp, sums_first = mlp && !in_place;
  const int channels = a.channels, positions = a.height * a.width;
  const Stat* const partials =
      reinterpret_cast<const Stat*>(a.partials) + size_t(image) * a.splits * a.stored;
  const Scales scales = a.scales();
  const auto factors = K::factors(K::channel_sees_gated ? 1.0f : scales.x, positions);
  auto* const hidden = arena.take<typename K::Hidden>(K::width(a.hidden, channels));
  Stat* const totals = arena.take<Stat>(sums_first ? channels : 0);
  if constexpr (sums_first || !mlp) {
    for (int c = threadIdx.x; c < channels; c += threads) {
      Stat total = partials[c];
      for (int split = 1; split < a.splits; ++split)
        total.add(partials[size_t(split) * a.stored + c]);
      if constexpr (mlp) {
        totals[c] = total;
      } else {
        const auto passed_on = channel_itself<K>(total, factors, positions);
        hidden[c] = passed_on;
      }
    }
    __syncthreads();
  }
  if constexpr (mlp) {
    first_layer<K, threads>(a.w0, a.hidden, channels, 0, channels, in_place ? partials : totals,
                            positions,
                            [&](int unit, const typename K::Pooled& in, auto holder) {
                              if (holder.number != 0) return;
                              const auto passed_on =
                                  hidden_unit<K>(__ldg(a.b0 + unit), in, factors);
                              hidden[unit] = passed_on;
                            });
    __syncthreads();
  }
  const float unit_gate = K::channel_unit(scales);
  second_layer<K, threads>(a, c0, count, hidden,
                           [&](int channel, const Values<1>& gates, auto holder) {
                             if (holder.number == 0) gate[channel] = gates.of[0] * unit_gate;
                           });
  __syncthreads();
}

// Every block of an image computes all of Mc, which is cheaper than one more launch; the first one
// also writes it out. With `in_place` an image has one block, see above.
template <class G, class K, bool in_place>
__device__ __forceinline__ void spatial_statistics(const Arguments<typename G::Element>& a) {
  using Stat = typename K::PositionStat;
  constexpr bool computes_mc = K::has_channel && !K::channel_sees_gated && !K::excites_apart;
  const Shape shape = a.shape();
  const Work work(shape, a.positions_per_block, shape.stored);
  const Tile<G> tile(shape, work.image, work.slice);
  Arena arena;
  Stat* const scratch = arena.take<Stat>(G::position_scratch);
  float* const described = arena.take<float>(K::convolves_channels ? shape.stored : 0);
  const float* gate = nullptr;
  if constexpr (computes_mc) {
    float* const gate_out = a.channel_gates + size_t(work.image) * shape.stored;
    float* const own_gate = in_place ? gate_out : arena.take<float>(shape.stored);
    channel_gate_of_image<K, G::T, in_place>(arena, a, work.image, 0, shape.channels, own_gate);
    if (!in_place && work.position_split == 0)
      for (int c = threadIdx.x; c < shape.channels; c += G::T) gate_out[c] = own_gate[c];
    gate = own_gate;
  } else if constexpr (K::spatial_sees_gated) {
    const float* const gate_in = a.channel_gates + size_t(work.image) * shape.stored;
    float* const own_gate = arena.take<float>(shape.stored);
    for (int c = threadIdx.x; c < shape.channels; c += G::T) own_gate[c] = gate_in[c];
    __syncthreads();
    gate = own_gate;
  }
  Stat* const out = reinterpret_cast<Stat*>(a.pooled) +
                    size_t(work.image) * shape.positions() + work.slice.p0;
  const float scale = a.scales().x;
  reduce_positions<K::spatial_sees_gated || K::convolves_channels>(
      tile, shape.channels, channel_weights<K, G::T>(a, gate, described), scratch,
      [&](int row, int step, int col, auto& vectors) { tile.read(a.x, row, step, col, vectors); },
      [&](int position, const Stat& stat, auto holder) {
        if (holder.number == 0) out[position] = descriptor<K>(stat, shape.channels, scale);
      });
}

// Grid: a block of `threads` for every `channels_per_block` channels of an image. Scales are read
// as of int8, which here are those of all types: no map is touched.
template <class K, int threads, bool in_place>
__device__ __forceinline__ void channel_excitation(const Arguments<signed char>& a) {
  const int parts = (a.channels + a.channels_per_block - 1) / a.channels_per_block;
  const int image = blockIdx.x / parts, c0 = blockIdx.x % parts * a.channels_per_block;
  const int count = min(a.channels_per_block, a.channels - c0);
  Arena arena;
  channel_gate_of_image<K, threads, in_place>(arena, a, image, c0, count,
                                              a.channel_gates + size_t(image) * a.stored);
}

template <class G, class K>
__device__ __forceinline__ void apply_gate(const Arguments<typename G::Element>& a) {
  const Shape shape = a.shape();
  const Work work(shape, a.positions_per_block, a.channels_per_block);
  const Tile<G> tile(shape, work.image, work.slice);
  Arena arena;
  const float* spatial_gates = nullptr;
  if constexpr (K::has_spatial) spatial_gates = spatial_gates_of_slice<G, K>(arena, a, work);
  const float* channel_gates = nullptr;
  if constexpr (K::has_channel)
    channel_gates = a.channel_gates + size_t(work.image) * shape.stored + work.slice.c0;
  write_gated<G, K>(
      tile, shape.channels - work.slice.c0, channel_gates, spatial_gates, a.scales(),
      [&](int row, int step, int col, auto& vectors) { tile.read(a.x, row, step, col, vectors); },
      [](int, int, int) {},
      a.x, a.r, a.y);
}

}  // namespace cbam
