// The staged gate: a few launches, for GPUs without clusters, for maps too large for the fused
// kernel, and for few images, which are then spread over the whole GPU. Between launches the
// statistics stand in device memory, a few floats per channel and per position; what a launch reads
// of these is there once `await_previous_launch` returns. Where the GPU can (`kOverlaps`), blocks
// start before that, as soon as those of the launch before all run, and have brought to L2 what
// they need by then: weights, the residual. Every block of every launch waits, so that one that has
// waited for the launch before it has waited for all.
//
//   channel_statistics  x                 -> partials [N, splits, stored] of sum, maximum
//                       (x, pooled where the channel part sees x Ms)
//     or with `first_layer`               -> partials [N, splits, hidden], W0 times these
//   channel_excitation  partials          -> Mc [N, stored]
//   spatial_statistics  x, (partials)     -> (Mc,) pooled [N, H W] of the descriptor
//                       (x, Mc where that is there already)
//   apply               x, (r, Mc, pooled)  -> y
//
// Which of these, and in which order, is for `stages.stages` to say. Where the spatial part sees
// x Mc, or both see x, one launch can compute Mc and the descriptor: every block then reads all of
// the weights, where two launches split them among their blocks.
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
  int image, position_split, position_splits, channel_split, channel_splits;
  Slice slice;

  __device__ __forceinline__ Work(const Shape& shape, int positions_per_block,
                                  int channels_per_block) {
    const int positions = shape.positions();
    channel_splits = (shape.stored + channels_per_block - 1) / channels_per_block;
    position_splits = (positions + positions_per_block - 1) / positions_per_block;
    channel_split = blockIdx.x % channel_splits;
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

// With `first_layer` a block sees all positions of its channels, and passes on what the hidden units
// get from these instead of their statistics.
template <class G, class K, bool first_layer>
__device__ __forceinline__ void channel_statistics(const Arguments<typename G::Element>& a) {
  using Stat = typename K::ChannelStat;
  const Shape shape = a.shape();
  const Work work(shape, a.positions_per_block, a.channels_per_block);
  const Tile<G> tile(shape, work.image, work.slice);
  const int c0 = work.slice.c0, count = min(shape.channels, work.slice.c1) - c0;
  Arena arena;
  Stat* const scratch = arena.take<Stat>(G::channel_scratch);
  Stat* const stats = arena.take<Stat>(first_layer ? a.channels_per_block : 0);
  allow_next_launch();
  if constexpr (first_layer) prefetch_rows<G::T>(a.w0 + c0, shape.channels, a.hidden, count);
  await_previous_launch();
  const float* spatial_gates = nullptr;
  if constexpr (K::channel_sees_gated) spatial_gates = spatial_gates_of_slice<G, K>(arena, a, work);
  Stat* const out =
      first_layer ? stats
                  : reinterpret_cast<Stat*>(a.partials) +
                        (size_t(work.image) * work.position_splits + work.position_split) *
                            shape.stored + c0;
  reduce_channels<K::channel_sees_gated>(
      tile, spatial_gates, scratch,
      [&](int row, int step, int col, auto& vectors) { tile.read(a.x, row, step, col, vectors); },
      [&](int channel, const Stat& stat, auto holder) {
        if (holder.number == 0) out[channel] = stat;
      });
  if constexpr (first_layer) {
    __syncthreads();
    auto* const units = reinterpret_cast<typename K::Pooled*>(a.partials) +
                        (size_t(work.image) * work.channel_splits + work.channel_split) * a.hidden;
    cbam::first_layer<K, G::T>(a.w0, a.hidden, shape.channels, c0, count, stats, shape.positions(),
                               [&](int unit, const typename K::Pooled& in, auto holder) {
                                 if (holder.number == 0) units[unit] = in;
                               });
  }
}

// Of what `splits` blocks passed on for an image, `of_block` values each, the sums of the first
// `count`: `emit(i, sum)`. All threads must call.
template <int threads, class Value, class Emit>
__device__ __forceinline__ void sum_splits(const float* partials, int image, int splits,
                                           int of_block, int count, Emit emit) {
  const Value* const from = reinterpret_cast<const Value*>(partials) +
                            size_t(image) * splits * of_block;
  for (int i = threadIdx.x; i < count; i += threads) {
    Value total = from[i];
    for (int split = 1; split < splits; ++split) total.add(from[size_t(split) * of_block + i]);
    emit(i, total);
  }
  __syncthreads();
}

// Mc of channels [c0, c0 + count) of one image, by one block, from what `splits` blocks passed on;
// `gate` receives it times `K::channel_unit`.
template <class K, int threads, bool after_first_layer, class Element>
__device__ __forceinline__ void channel_gate_of_image(Arena& arena, const Arguments<Element>& a,
                                                      int image, int c0, int count, float* gate) {
  using Stat = typename K::ChannelStat;
  using Pooled = typename K::Pooled;
  constexpr bool both_layers = K::mixer == Mixer::mlp && !after_first_layer;
  const int channels = a.channels, positions = a.height * a.width;
  const Scales scales = a.scales();
  const auto factors = K::factors(K::channel_sees_gated ? 1.0f : scales.x, positions);
  auto* const hidden = arena.take<typename K::Hidden>(K::width(a.hidden, channels));
  Stat* const totals = arena.take<Stat>(both_layers ? channels : 0);
  const auto pass_on = [&](int unit, const Pooled& in) {
    const auto passed_on = hidden_unit<K>(__ldg(a.b0 + unit), in, factors);
    hidden[unit] = passed_on;
  };
  if constexpr (after_first_layer) {
    sum_splits<threads, Pooled>(a.partials, image, a.splits, a.hidden, a.hidden, pass_on);
  } else if constexpr (both_layers) {
    sum_splits<threads, Stat>(a.partials, image, a.splits, a.stored, channels,
                              [&](int c, const Stat& total) { totals[c] = total; });
    first_layer<K, threads>(a.w0, a.hidden, channels, 0, channels, totals, positions,
                            [&](int unit, const Pooled& in, auto holder) {
                              if (holder.number == 0) pass_on(unit, in);
                            });
    __syncthreads();
  } else {
    sum_splits<threads, Stat>(a.partials, image, a.splits, a.stored, channels,
                              [&](int c, const Stat& total) {
                                const auto passed_on = channel_itself<K>(total, factors, positions);
                                hidden[c] = passed_on;
                              });
  }
  const float unit_gate = K::channel_unit(scales);
  second_layer<K, threads>(a, c0, count, hidden,
                           [&](int channel, const Values<1>& gates, auto holder) {
                             if (holder.number == 0) gate[channel] = gates.of[0] * unit_gate;
                           });
  __syncthreads();
}

// Where Mc is not there yet (`excites`) every block of an image computes all of it, which for few
// weights is cheaper than one more launch; the first one also writes it out.
template <class G, class K, bool excites>
__device__ __forceinline__ void spatial_statistics(const Arguments<typename G::Element>& a) {
  using Stat = typename K::PositionStat;
  const Shape shape = a.shape();
  const Work work(shape, a.positions_per_block, shape.stored);
  const Tile<G> tile(shape, work.image, work.slice);
  Arena arena;
  Stat* const scratch = arena.take<Stat>(G::position_scratch);
  float* const described = arena.take<float>(K::convolves_channels ? shape.stored : 0);
  allow_next_launch();
  if constexpr (excites && K::mixer == Mixer::mlp) {
    if (blockIdx.x == 0) {
      prefetch_rows<G::T>(a.w0, shape.channels, a.hidden, shape.channels);
      prefetch_rows<G::T>(a.w1, a.hidden, shape.channels, a.hidden);
    }
  }
  await_previous_launch();
  const float* gate = nullptr;
  if constexpr (excites) {
    float* const gate_out = a.channel_gates + size_t(work.image) * shape.stored;
    float* const own_gate = arena.take<float>(shape.stored);
    channel_gate_of_image<K, G::T, false>(arena, a, work.image, 0, shape.channels, own_gate);
    if (work.position_split == 0)
      for (int c = threadIdx.x; c < shape.channels; c += G::T) gate_out[c] = own_gate[c];
    gate = own_gate;
  } else if constexpr (K::spatial_sees_gated) {
    gate = a.channel_gates + size_t(work.image) * shape.stored;
  }
  Stat* const out = reinterpret_cast<Stat*>(a.pooled) +
                    size_t(work.image) * shape.positions() + work.slice.p0;
  const float scale = a.scales().x;
  reduce_positions<K::spatial_sees_gated || K::convolves_channels>(
      tile, shape.channels, channel_weights<K, G::T>(a, gate, described), scratch,
      [&](int row, int step, int col, auto& vectors) { tile.read(a.x, row, step, col, vectors); },
      [&](int position, const Stat& stat, auto holder) {
        if (holder.number != 0) return;
        const Stat at_position = descriptor<K>(stat, shape.channels, scale);
        out[position] = at_position;
      });
}

// Grid: a block of `threads` for every `channels_per_block` channels of an image. Scales are read
// as of int8, which here are those of all types: no map is touched.
template <class K, int threads, bool after_first_layer>
__device__ __forceinline__ void channel_excitation(const Arguments<signed char>& a) {
  const int parts = (a.channels + a.channels_per_block - 1) / a.channels_per_block;
  const int image = blockIdx.x / parts, c0 = blockIdx.x % parts * a.channels_per_block;
  const int count = min(a.channels_per_block, a.channels - c0);
  Arena arena;
  allow_next_launch();
  if constexpr (K::mixer == Mixer::mlp && !after_first_layer)
    prefetch_rows<threads>(a.w0, a.channels, a.hidden, a.channels);
  if constexpr (K::mixer != Mixer::conv) {
    const int width = K::width(a.hidden, a.channels);
    prefetch_rows<threads>(a.w1 + size_t(c0) * width, width, count, width);
  }
  await_previous_launch();
  channel_gate_of_image<K, threads, after_first_layer>(
      arena, a, image, c0, count, a.channel_gates + size_t(image) * a.stored);
}

template <class G, class K>
__device__ __forceinline__ void apply_gate(const Arguments<typename G::Element>& a) {
  const Shape shape = a.shape();
  const Work work(shape, a.positions_per_block, a.channels_per_block);
  const Tile<G> tile(shape, work.image, work.slice);
  Arena arena;
  if constexpr (K::residual && kOverlaps) tile.template prefetch<true>(a.r);
  await_previous_launch();
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
