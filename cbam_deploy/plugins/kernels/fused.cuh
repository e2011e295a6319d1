// The fused gate: one cluster of thread blocks per image, the map read once and written once.
//
// Bytes moved through device memory per image of S = C H W sizeof(Element) bytes: S in and S out,
// with a residual 2 S in, where op by op the gate reads 8 S to 10 S and writes 4 S. The gate's
// weights, 8 C C/r bytes, come from L2. To get there each of the cluster's 1, 2, 4 or 8 blocks
// takes a run of positions of all channels and keeps it in shared memory. What does not fit is read
// again, from L2 as a rule: it was read microseconds ago.
//
// Between the phases only statistics travel, through distributed shared memory. Each exchange
// *writes into its reader's memory*, so that no block waits for a remote read, and counts down a
// barrier there: how many bytes come is known beforehand (`Arrival`). So no fence is needed, and
// blocks wait for one another only as far as they need what the others send, and once at the start:
// no peer's memory may be written before the peer runs.
//
//   1   sum and maximum per channel of the own positions  -> to the block that owns the channel
//   2a  W0 times those of the own channels, or where      -> to every block, 2 C/r floats, or C
//       there is no first layer, these themselves
//   2b  Mc of the own channels                            -> to every block
//   3   descriptor of x Mc, or of x, per own position     -> to the blocks whose convolution looks
//                                                            there
//   4   convolution, gate function                        stays
//   5   y, with the residual and the last activation      -> written
//
// Of gates with one part, 1 and 2, or 3 and 4, are left out; where the spatial part comes first, 3
// and 4 do, and 1 sees x Ms. In 2 the blocks share the work, so the cluster reads the weights once,
// not once per block. While later phases leave device memory idle, the residual is brought to L2.
//
// Where all of the slice is kept and the machine can, it is copied to shared memory in the
// background, in chunks that the first phase takes one by one: all of it is under way from the
// start. Otherwise it is first brought to L2, and read by vectors of 16 bytes, 4 of them in flight
// per thread. A block waits for its cluster four times; with tiles of at most half the
// multiprocessor's shared memory a second block fills that time. Shared memory is accessed by
// 16-byte vectors of neighbouring lanes, free of bank conflicts. What all this comes to is for
// benchmarks/results to say.
#pragma once

#include "gate.cuh"

namespace cbam {

// Call `send(to)` for every block of the cluster, once among the lanes that hold what is sent.
template <int blocks, class Holder, class Send>
__device__ __forceinline__ void for_peers(const Holder& holder, Send send) {
#pragma unroll
  for (int i = 0; i < blocks; i += Holder::count) {
    const int to = i + holder.number;
    if (blocks % Holder::count == 0 || to < blocks) send(to);
  }
}

// `whole`: all of every slice is kept in shared memory.
template <class G, class K, int blocks, bool whole>
__device__ __forceinline__ void fused_gate(const Arguments<typename G::Element>& a) {
  using Element = typename G::Element;
  using ChannelStat = typename K::ChannelStat;
  using PositionStat = typename K::PositionStat;
  const Shape shape = a.shape();
  const Scales scales = a.scales();
  const int positions = shape.positions(), channels = shape.channels;
  const int per_block = a.positions_per_block;
  const int rank = cluster_rank<blocks>(), image = blockIdx.x / blocks;
  const Slice slice{min(positions, rank * per_block), min(positions, (rank + 1) * per_block), 0,
                    shape.stored};
  Tile<G> tile(shape, image, slice);

  // Channels whose gates this block computes.
  const int share = (channels + blocks - 1) / blocks;
  const int first_own = min(channels, rank * share);
  const int own = min(channels, first_own + share) - first_own;

  const int reach = halo<K>(shape);
  const int window_size = min(positions, per_block + 2 * reach);

  constexpr bool mlp = K::has_channel && K::mixer == Mixer::mlp;
  Arena arena;
  Arrival* const arrivals = arena.take<Arrival>(blocks > 1 ? 4 : 0);
  Arrival *const partials_there = arrivals, *const hidden_there = arrivals + 1;
  Arrival *const gate_there = arrivals + 2, *const window_there = arrivals + 3;
  Arrival* const chunks =
      arena.take<Arrival>(((G::rows_are_channels ? shape.stored : per_block) - 1) / G::chunk + 1);
  // What each rank sends: [rank][own channel], and [rank][unit].
  ChannelStat* const partials = arena.take<ChannelStat>(K::has_channel ? blocks * share : 0);
  auto* const hidden_partials = arena.take<typename K::Pooled>(mlp ? blocks * a.hidden : 0);
  auto* const hidden = arena.take<typename K::Hidden>(
      K::has_channel ? K::width(a.hidden, channels) : 0);
  float* const weight = arena.take<float>(K::spatial_weights);
  float* const described = arena.take<float>(K::convolves_channels ? shape.stored : 0);
  PositionStat* const position_scratch =
      arena.take<PositionStat>(K::has_spatial ? G::position_scratch : 0);
  // The scratch of the channels' statistics lies where the later phases receive: no peer sends
  // there before it has had something from every block that these are part of. Where they come
  // second, the spatial gate is there already.
  Arena first_phase = arena;
  ChannelStat* const channel_scratch =
      first_phase.take<ChannelStat>(K::has_channel ? G::channel_scratch : 0);
  if constexpr (K::channel_sees_gated) arena = first_phase;
  float* const gate = arena.take<float>(K::has_channel ? shape.stored : 0);
  PositionStat* const window = arena.take<PositionStat>(K::has_spatial ? window_size : 0);
  float* const own_spatial_gate = arena.take<float>(K::has_spatial ? per_block : 0);
  arena.past(first_phase);
  tile.keep(arena.take<Element>(0), a.kept_rows);

  // The first position of a block's window, and how many there are.
  const auto window_start = [=](int of) { return max(0, of * per_block - reach); };
  const auto window_length = [=](int of) {
    return min(positions, (of + 1) * per_block + reach) - window_start(of);
  };
  constexpr bool copies = kCopies && whole && sizeof(typename G::Vector) == 16;
  if (threadIdx.x == 0) {
    if constexpr (blocks > 1 && K::has_channel) {
      expect(partials_there, own * blocks * sizeof(ChannelStat));
      expect(hidden_there, mlp ? blocks * a.hidden * sizeof(typename K::Pooled)
                               : channels * sizeof(typename K::Hidden));
      expect(gate_there, channels * sizeof(float));
    }
    if constexpr (blocks > 1 && K::has_spatial)
      expect(window_there, max(0, window_length(rank)) * sizeof(PositionStat));
    if constexpr (copies)
      tile.for_chunks([&](int chunk, int bytes) { expect(chunks + chunk, bytes); });
    if constexpr (blocks > 1 || copies) expected();
  }
  announce<blocks>();
  if constexpr (copies) {
    __syncthreads();
    tile.copy_all(a.x, chunks);
  } else {
    tile.prefetch(a.x);
  }
  if constexpr (K::has_spatial) {
    for (int i = threadIdx.x; i < K::spatial_weights; i += G::T) weight[i] = __ldg(a.ws + i);
  }
  await_peers<blocks>();

  const auto read_first = [&](int row, int step, int col, auto& vectors) {
    if constexpr (copies) {
      tile.await_rows(row, step, chunks);
      tile.read_kept(row, step, col, vectors);
    } else {
      tile.read_and_keep(a.x, row, step, col, vectors);
    }
  };
  const auto read_again = [&](int row, int step, int col, auto& vectors) {
    if constexpr (whole) tile.read_kept(row, step, col, vectors);
    else tile.read_again(a.x, row, step, col, vectors);
  };
  const auto prefetch_residual = [&] {
    if constexpr (K::residual) {
      if (!K::residual_may_be_x || a.r != a.x) tile.prefetch(a.r);
    }
  };

  // Phases 1 and 2.
  const auto channel_part = [&](auto read) {
    reduce_channels<K::channel_sees_gated>(
        tile, own_spatial_gate, channel_scratch, read,
        [&](int channel, const ChannelStat& stat, auto holder) {
          if (G::padded && channel >= channels) return;
          if (holder.number != 0) return;
          const int owner = channel / share;
          send<blocks>(partials + rank * share + channel - owner * share, owner, stat,
                       partials_there);
        });
    if constexpr (!K::channel_sees_gated) prefetch_residual();
    receive<blocks>(partials_there);

    const auto factors = K::factors(K::channel_sees_gated ? 1.0f : scales.x, positions);
    for (int c = threadIdx.x; c < own; c += G::T) {
      ChannelStat total = partials[c];
      for (int from = 1; from < blocks; ++from) total.add(partials[from * share + c]);
      if constexpr (mlp) {
        partials[c] = total;
      } else {
        const auto in = channel_itself<K>(total, factors, positions);
        for (int to = 0; to < blocks; ++to)
          send<blocks>(hidden + first_own + c, to, in, hidden_there);
      }
    }
    if constexpr (mlp) {
      __syncthreads();
      first_layer<K, G::T>(a.w0, a.hidden, channels, first_own, own, partials, positions,
                           [&](int unit, const typename K::Pooled& in, auto holder) {
                             for_peers<blocks>(holder, [&](int to) {
                               send<blocks>(hidden_partials + rank * a.hidden + unit, to, in,
                                            hidden_there);
                             });
                           });
    }
    receive<blocks>(hidden_there);
    if constexpr (mlp) {
      for (int unit = threadIdx.x; unit < a.hidden; unit += G::T) {
        auto in = hidden_partials[unit];
        for (int from = 1; from < blocks; ++from) in.add(hidden_partials[from * a.hidden + unit]);
        const auto passed_on = hidden_unit<K>(__ldg(a.b0 + unit), in, factors);
        hidden[unit] = passed_on;
      }
      __syncthreads();
    }
    const float unit_gate = K::channel_unit(scales);
    second_layer<K, G::T>(a, first_own, own, hidden, [&](int channel, float value, auto holder) {
      const float scaled = value * unit_gate;
      for_peers<blocks>(holder,
                        [&](int to) { send<blocks>(gate + channel, to, scaled, gate_there); });
    });
    receive<blocks>(gate_there);
  };

  // Phases 3 and 4.
  const auto spatial_part = [&](auto read) {
    reduce_positions<K::spatial_sees_gated || K::convolves_channels>(
        tile, channels, channel_weights<K, G::T>(a, gate, described), position_scratch, read,
        [&](int own_position, const PositionStat& stat, auto holder) {
          const int p = slice.p0 + own_position;
          const PositionStat at_p = descriptor<K>(stat, channels, scales.x);
          for_peers<blocks>(holder, [&](int to) {
            const int at = p - window_start(to);
            if (at >= 0 && at < window_length(to))
              send<blocks>(window + at, to, at_p, window_there);
          });
        });
    if constexpr (!K::has_channel || K::channel_sees_gated) prefetch_residual();
    receive<blocks>(window_there);
    const int start = window_start(rank);
    const float bias = __ldg(a.bs), unit_gate = K::spatial_unit(scales);
    for (int p = slice.p0 + threadIdx.x; p < slice.p1; p += G::T)
      own_spatial_gate[p - slice.p0] =
          spatial_gate<K>(shape, p, window, start, weight, bias) * unit_gate;
    __syncthreads();
  };

  if constexpr (K::channel_sees_gated) {
    spatial_part(read_first);
    channel_part(read_again);
  } else if constexpr (!K::has_channel) {
    spatial_part(read_first);
  } else {
    channel_part(read_first);
    if constexpr (K::has_spatial) spatial_part(read_again);
  }
  write_gated<G, K>(tile, channels, gate, own_spatial_gate, scales, read_again, a.x, a.r, a.y);
}

}  // namespace cbam
