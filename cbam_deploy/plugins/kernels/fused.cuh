// The fused gate: a cluster of thread blocks for each image, or one that goes on from image to
// image; each map is read once and written once.
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
// blocks wait for one another only as far as they need what the others send, and once before each
// image: no peer's memory may be written before the peer runs and has done with the image before.
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
// not once per block; and where it takes several images at a time, each phase for all of them, once
// for all. While later phases leave device memory idle, the residual is brought to L2.
//
// Where all of the slice is kept and the machine can, it is copied to shared memory in the
// background, in chunks that the first phase takes one by one. Of the first image all is under way
// from the start; of the next one a thread copies a vector as soon as it has read the one that
// stood there for the last time, so that device memory has no pause between images. Otherwise a
// slice is first brought to L2, and read by vectors of 16 bytes, 4 of them in flight per thread. A
// block waits for its cluster five times; with tiles of at most half the multiprocessor's shared
// memory a second block fills that time. Shared memory is accessed by 16-byte vectors of
// neighbouring lanes, free of bank conflicts. What all this comes to is for benchmarks/results to
// say.
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

// How many images a cluster takes at a time so that all have some: `most` at most.
template <int blocks, int most>
__device__ __forceinline__ int images_at_a_time(int batch) {
  const int clusters = gridDim.x / blocks;
  return most == 1 ? 1 : min(most, (batch + clusters - 1) / clusters);
}

// The images that the cluster takes in its turn number `turn`. `whole`: all of every slice is kept
// in shared memory.
template <class G, class K, int blocks, bool whole, int most>
__device__ __forceinline__ void fused_images(const Arguments<typename G::Element>& a, int turn) {
  using Element = typename G::Element;
  using ChannelStat = typename K::ChannelStat;
  using PositionStat = typename K::PositionStat;
  const Shape shape = a.shape();
  const Scales scales = a.scales();
  const int positions = shape.positions(), channels = shape.channels;
  const int per_block = a.positions_per_block;
  const int rank = cluster_rank<blocks>(), clusters = gridDim.x / blocks;
  const int at_a_time = images_at_a_time<blocks, most>(a.batch);
  const int image = (blockIdx.x / blocks + turn * clusters) * at_a_time;
  const int images = most == 1 ? 1 : min(at_a_time, a.batch - image);
  const Slice slice{min(positions, rank * per_block), min(positions, (rank + 1) * per_block), 0,
                    shape.stored};
  static_assert(most == 1 || whole);
  Tile<G> first_tile(shape, image, slice);

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
  const int chunk_count = ((G::rows_are_channels ? shape.stored : per_block) - 1) / G::chunk + 1;
  Arrival* const chunks = arena.take<Arrival>(most * chunk_count);
  // Of each image, what each rank sends: [rank][own channel], and [rank][unit].
  const int sent = blocks * share, sent_units = blocks * a.hidden;
  const int width = K::has_channel ? K::width(a.hidden, channels) : 0;
  ChannelStat* const partials = arena.take<ChannelStat>(K::has_channel ? most * sent : 0);
  auto* const hidden_partials = arena.take<typename K::Pooled>(mlp ? most * sent_units : 0);
  auto* const hidden = arena.take<typename K::Hidden>(most * width);
  float* const weight = arena.take<float>(K::spatial_weights);
  float* const described = arena.take<float>(K::convolves_channels ? most * shape.stored : 0);
  PositionStat* const position_scratch =
      arena.take<PositionStat>(K::has_spatial ? G::position_scratch : 0);
  // The scratch of the channels' statistics lies where the later phases receive: no peer sends
  // there before it has had something from every block that these are part of. Where they come
  // second, the spatial gate is there already.
  Arena first_phase = arena;
  ChannelStat* const channel_scratch =
      first_phase.take<ChannelStat>(K::has_channel ? G::channel_scratch : 0);
  if constexpr (K::channel_sees_gated) arena = first_phase;
  float* const gate = arena.take<float>(K::has_channel ? most * shape.stored : 0);
  PositionStat* const window = arena.take<PositionStat>(K::has_spatial ? most * window_size : 0);
  float* const own_spatial_gate = arena.take<float>(K::has_spatial ? most * per_block : 0);
  arena.past(first_phase);
  first_tile.keep(arena.take<Element>(0), a.kept_rows);

  // Do something for each of the images: `act(number, its tile, its chunks)`.
  const size_t image_elements = size_t(shape.stored) * positions;
  const auto for_images = [&](auto act) {
#pragma unroll 1
    for (int m = 0; m < images; ++m)
      act(m, first_tile.of_image(m, image_elements), chunks + m * chunk_count);
  };

  // The first position of a block's window, and how many there are.
  const auto window_start = [=](int of) { return max(0, of * per_block - reach); };
  const auto window_length = [=](int of) {
    return min(positions, (of + 1) * per_block + reach) - window_start(of);
  };
  constexpr bool copies = kCopies && whole && sizeof(typename G::Vector) == 16;
  const unsigned parity = turn % 2;
  if (turn == 0) {
    if (threadIdx.x == 0) {
      if constexpr (blocks > 1)
        for (int i = 0; i < 4; ++i) prepare(arrivals + i, 1);
      if constexpr (copies)
        for (int i = 0; i < most * chunk_count; ++i)
          prepare(chunks + i, max(1, G::R * first_tile.cols));
      prepared<blocks>();
    }
    if constexpr (copies) {
      __syncthreads();
      for_images([&](int, const Tile<G>& tile, Arrival* own_chunks) {
        tile.copy_all(a.x, own_chunks);
      });
    }
    if constexpr (K::has_spatial) {
      for (int i = threadIdx.x; i < K::spatial_weights; i += G::T) weight[i] = __ldg(a.ws + i);
    }
  }
  if (blocks > 1 && threadIdx.x == 0) {
    if constexpr (K::has_channel) {
      expect(partials_there, images * own * blocks * sizeof(ChannelStat));
      expect(hidden_there, images * (mlp ? sent_units * sizeof(typename K::Pooled)
                                         : channels * sizeof(typename K::Hidden)));
      expect(gate_there, images * channels * sizeof(float));
    }
    if constexpr (K::has_spatial)
      expect(window_there, images * max(0, window_length(rank)) * sizeof(PositionStat));
  }
  announce<blocks>();
  if constexpr (!copies)
    for_images([&](int, const Tile<G>& tile, Arrival*) { tile.prefetch(a.x); });
  await_peers<blocks>();

  // How one of the images is read, for the first time and after that.
  const auto first_reading = [&](const Tile<G>& tile, Arrival* own_chunks) {
    return [=, &a](int row, int step, int col, auto& vectors) {
      if constexpr (copies) {
        tile.await_rows(row, step, own_chunks, parity);
        tile.read_kept(row, step, col, vectors);
      } else {
        tile.read_and_keep(a.x, row, step, col, vectors);
      }
    };
  };
  const auto later_reading = [&](const Tile<G>& tile, Arrival*) {
    return [=, &a](int row, int step, int col, auto& vectors) {
      if constexpr (whole) tile.read_kept(row, step, col, vectors);
      else tile.read_again(a.x, row, step, col, vectors);
    };
  };
  const auto prefetch_residual = [&] {
    if constexpr (K::residual) {
      if (!K::residual_may_be_x || a.r != a.x)
        for_images([&](int, const Tile<G>& tile, Arrival*) { tile.prefetch(a.r); });
    }
  };

  // Phases 1 and 2.
  const auto channel_part = [&](auto reading) {
    for_images([&](int m, const Tile<G>& tile, Arrival* own_chunks) {
      reduce_channels<K::channel_sees_gated>(
          tile, own_spatial_gate + m * per_block, channel_scratch, reading(tile, own_chunks),
          [&](int channel, const ChannelStat& stat, auto holder) {
            if (G::padded && channel >= channels) return;
            if (holder.number != 0) return;
            const int owner = channel / share;
            send<blocks>(partials + m * sent + rank * share + channel - owner * share, owner, stat,
                         partials_there);
          });
    });
    if constexpr (!K::channel_sees_gated) prefetch_residual();
    receive<blocks>(partials_there, parity);

    const auto factors = K::factors(K::channel_sees_gated ? 1.0f : scales.x, positions);
    for (int m = 0; m < images; ++m) {
      ChannelStat* const of_image = partials + m * sent;
      for (int c = threadIdx.x; c < own; c += G::T) {
        ChannelStat total = of_image[c];
        for (int from = 1; from < blocks; ++from) total.add(of_image[from * share + c]);
        if constexpr (mlp) {
          of_image[c] = total;
        } else {
          const auto in = channel_itself<K>(total, factors, positions);
          for (int to = 0; to < blocks; ++to)
            send<blocks>(hidden + m * width + first_own + c, to, in, hidden_there);
        }
      }
    }
    if constexpr (mlp) {
      __syncthreads();
      first_layer<K, G::T, most>(
          a.w0, a.hidden, channels, first_own, own, partials, positions,
          [&](int unit, const auto& in, auto holder) {
#pragma unroll
            for (int m = 0; m < most; ++m) {
              if (m >= images) break;
              const auto of_image = in.template part<typename K::Pooled>(m);
              for_peers<blocks>(holder, [&](int to) {
                send<blocks>(hidden_partials + m * sent_units + rank * a.hidden + unit, to,
                             of_image, hidden_there);
              });
            }
          },
          sent);
    }
    receive<blocks>(hidden_there, parity);
    if constexpr (mlp) {
      for (int m = 0; m < images; ++m) {
        const auto* const of_image = hidden_partials + m * sent_units;
        for (int unit = threadIdx.x; unit < a.hidden; unit += G::T) {
          auto in = of_image[unit];
          for (int from = 1; from < blocks; ++from) in.add(of_image[from * a.hidden + unit]);
          const auto passed_on = hidden_unit<K>(__ldg(a.b0 + unit), in, factors);
          hidden[m * width + unit] = passed_on;
        }
      }
      __syncthreads();
    }
    const float unit_gate = K::channel_unit(scales);
    second_layer<K, G::T, most>(
        a, first_own, own, hidden,
        [&](int channel, const auto& gates, auto holder) {
#pragma unroll
          for (int m = 0; m < most; ++m) {
            if (m >= images) break;
            const float scaled = gates.of[m] * unit_gate;
            for_peers<blocks>(holder, [&](int to) {
              send<blocks>(gate + m * shape.stored + channel, to, scaled, gate_there);
            });
          }
        },
        width);
    receive<blocks>(gate_there, parity);
  };

  // Phases 3 and 4.
  const auto spatial_part = [&](auto reading) {
    for_images([&](int m, const Tile<G>& tile, Arrival* own_chunks) {
      reduce_positions<K::spatial_sees_gated || K::convolves_channels>(
          tile, channels,
          channel_weights<K, G::T>(a, gate + m * shape.stored, described + m * shape.stored),
          position_scratch, reading(tile, own_chunks),
          [&](int own_position, const PositionStat& stat, auto holder) {
            const int p = slice.p0 + own_position;
            const PositionStat at_p = descriptor<K>(stat, channels, scales.x);
            for_peers<blocks>(holder, [&](int to) {
              const int at = p - window_start(to);
              if (at >= 0 && at < window_length(to))
                send<blocks>(window + m * window_size + at, to, at_p, window_there);
            });
          });
    });
    if constexpr (!K::has_channel || K::channel_sees_gated) prefetch_residual();
    receive<blocks>(window_there, parity);
    const int start = window_start(rank);
    const float bias = __ldg(a.bs), unit_gate = K::spatial_unit(scales);
    for (int m = 0; m < images; ++m)
      for (int p = slice.p0 + threadIdx.x; p < slice.p1; p += G::T)
        own_spatial_gate[m * per_block + p - slice.p0] =
            spatial_gate<K>(shape, p, window + m * window_size, start, weight, bias) * unit_gate;
    __syncthreads();
  };

  if constexpr (K::channel_sees_gated) {
    spatial_part(first_reading);
    channel_part(later_reading);
  } else if constexpr (!K::has_channel) {
    spatial_part(first_reading);
  } else {
    channel_part(first_reading);
    if constexpr (K::has_spatial) spatial_part(later_reading);
  }
  const int further = clusters * at_a_time;
  const Element* const next = a.x + further * image_elements;
  for_images([&](int m, const Tile<G>& tile, Arrival* own_chunks) {
    const bool last = image + m + further >= a.batch;
    write_gated<G, K>(
        tile, channels, gate + m * shape.stored, own_spatial_gate + m * per_block, scales,
        later_reading(tile, own_chunks),
        [&](int chunk, int row, int col) {
          if constexpr (copies) {
            if (!last) tile.copy_batch(next, row, col, own_chunks + chunk);
          }
        },
        a.x, a.r, a.y);
  });
}

// The one image whose number is the cluster's.
template <class G, class K, int blocks, bool whole>
__device__ __forceinline__ void fused_gate(const Arguments<typename G::Element>& a) {
  fused_images<G, K, blocks, whole, 1>(a, 0);
}

// All of the cluster's images, turn by turn.
template <class G, class K, int blocks, int most>
__device__ __forceinline__ void persistent_gate(const Arguments<typename G::Element>& a) {
  const int clusters = gridDim.x / blocks;
  const int at_a_time = images_at_a_time<blocks, most>(a.batch);
#pragma unroll 1
  for (int turn = 0; (int(blockIdx.x) / blocks + turn * clusters) * at_a_time < a.batch; ++turn) {
    // What follows from sizes is computed for every image: there are no registers to keep it in.
    Arguments<typename G::Element> anew = a;
    anew.channels = opaque(a.channels);
    anew.width = opaque(a.width);
    anew.positions_per_block = opaque(a.positions_per_block);
    fused_images<G, K, blocks, true, most>(anew, turn);
  }
}

}  // namespace cbam
