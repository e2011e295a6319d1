// The gate's mathematics on one block's slice, shared by the staged and the fused kernels.
//
//   Mc = f(mixer(mean, max))       mean, max of x, or of x Ms, over positions
//   Ms = f(conv_k(descriptor))     descriptor of x, or of x Mc, over channels
//   y  = x Mc Ms, or x (Mc + Ms); with r added and an activation applied where there are any
//
// `Gate` (language.cuh) says which of these. With int8 maps x stands for x_scale times the integer,
// and so r and y: the scales are folded into the stored gates (`Gate::channel_unit`), and a vector
// of the map costs the same multiplications per element in every type.
#pragma once

#include "language.cuh"

namespace cbam {

// What `make gpu-check` leaves out, one at a time, to see what it takes: results mean nothing then.
// Everything is still read, but for weights and what y is made of, and all that blocks tell one
// another is sent.
enum class Phase { none, channel_statistics, mlp, position_statistics, convolution, output };
#ifndef CBAM_WITHOUT
#define CBAM_WITHOUT none
#endif
constexpr Phase kWithout = Phase::CBAM_WITHOUT;

// In place of a reduction of rows or columns: read, and emit statistics of nothing.
template <class Stat, class G, class Read, class Emit>
__device__ __forceinline__ void read_only(const Tile<G>& tile, int count, Read read, Emit emit) {
  typename G::Vector vectors[G::batch];
  for (int col = G::column_lane(); col < tile.cols; col += G::Q)
    for (int row = G::row_lane(); row < tile.rows; row += G::R * G::batch)
      read(row, G::R, col, vectors);
  for (int i = threadIdx.x; i < count; i += G::T) emit(i, Stat{}, Holder<1>{});
}

// Multiply a vector by the weight of its row, or by those of its elements' columns.
template <class G, bool by_row>
__device__ __forceinline__ void weigh(const float* weight, int row, int col,
                                      float (&values)[G::V]) {
  if constexpr (by_row) {
    const float of_row = weight[row];
#pragma unroll
    for (int i = 0; i < G::V; ++i) values[i] *= of_row;
  } else {
    const float* of_column = weight + col * G::V;
#pragma unroll
    for (int i = 0; i < G::V; ++i) values[i] *= of_column[i];
  }
}

// Statistics of each channel over the block's slice, of x times `weight` of its positions where it
// is `weighted`: `emit(channel, stat, holder)`, channels from 0.
template <bool weighted, class G, class Stat, class Read, class Emit>
__device__ __forceinline__ void reduce_channels(const Tile<G>& tile, const float* weight,
                                                Stat* scratch, Read read, Emit emit) {
  if constexpr (kWithout == Phase::channel_statistics)
    return read_only<Stat>(tile, G::rows_are_channels ? tile.rows : tile.cols * G::V, read, emit);
  const auto reduce = [&](const auto& weighed) {
    if constexpr (G::rows_are_channels) {
      reduce_rows<G, Stat>(tile.rows, tile.cols, read, weighed, emit);
    } else {
      reduce_columns<G>(tile.rows, tile.cols, scratch, read, weighed, emit);
    }
  };
  if constexpr (weighted) {
    reduce([=](int row, int col, float (&values)[G::V]) {
      weigh<G, !G::rows_are_channels>(weight, row, col, values);
      return G::V;
    });
  } else {
    reduce(AsTheyAre{});
  }
}

// Statistics of each position over all channels, of x times `weight` of them where it is
// `weighted`: `emit(position, stat, holder)`, positions from the slice's first.
template <bool weighted, class G, class Stat, class Read, class Emit>
__device__ __forceinline__ void reduce_positions(const Tile<G>& tile, int channels,
                                                 const float* weight, Stat* scratch, Read read,
                                                 Emit emit) {
  if constexpr (kWithout == Phase::position_statistics)
    return read_only<Stat>(tile, G::rows_are_channels ? tile.cols * G::V : tile.rows, read, emit);
  const auto weighed = [=](int row, int col, float (&values)[G::V]) {
    if constexpr (weighted) weigh<G, G::rows_are_channels>(weight, row, col, values);
    return G::padded && !G::rows_are_channels ? min(G::V, channels - col * G::V) : G::V;
  };
  if constexpr (G::rows_are_channels) {
    reduce_columns<G>(tile.rows, tile.cols, scratch, read, weighed, emit);
  } else {
    reduce_rows<G, Stat>(tile.rows, tile.cols, read, weighed, emit);
  }
}

// As `multiply_rows`, weights being read by V at a time.
template <int V, class Value, int threads, class ValueAt, class Emit>
__device__ __forceinline__ void multiply_rows_by(const float* weights, int stride, int rows,
                                                 int count, ValueAt value, Emit emit) {
  constexpr int together = 4;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int row = warp * together; row < rows; row += threads / kWarp * together) {
    // Behind the last row the last one stands in: what comes of it is not passed on.
    const float* from[together];
#pragma unroll
    for (int u = 0; u < together; ++u) from[u] = weights + size_t(min(row + u, rows - 1)) * stride;
    Value products[together];
#pragma unroll(V == 4 ? 2 : 1)
    for (int i = lane * V; i < count; i += kWarp * V) {
      float weight[together][V];
#pragma unroll
      for (int u = 0; u < together; ++u) Pack<float, V>::load_global(from[u] + i).unpack(weight[u]);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const Value here = value(i + v);
#pragma unroll
        for (int u = 0; u < together; ++u) products[u].add_product(weight[u][v], here);
      }
    }
    const Totals<kWarp - 1, together> totals(products);
#pragma unroll
    for (int i = 0; i < totals.left; ++i)
      if (row + totals.first + i < rows)
        emit(row + totals.first + i, products[i], totals.holder);
  }
}

// Products of `rows` rows of weights [rows, stride] with `count` values, `value(i)`: `emit(row,
// product, holder)` is called by every lane that holds the product in the end. A warp takes four
// rows at once, as lanes can then share sums and values; all lanes must call.
template <class Value, int threads, class ValueAt, class Emit>
__device__ __forceinline__ void multiply_rows(const float* weights, int stride, int rows, int count,
                                              ValueAt value, Emit emit) {
  if constexpr (kWithout == Phase::mlp) {
    for (int row = threadIdx.x; row < rows; row += threads) emit(row, Value{}, Holder<1>{});
    return;
  }
  const bool in_fours = (stride | count) % 4 == 0 && reinterpret_cast<size_t>(weights) % 16 == 0;
  if (in_fours) multiply_rows_by<4, Value, threads>(weights, stride, rows, count, value, emit);
  else multiply_rows_by<1, Value, threads>(weights, stride, rows, count, value, emit);
}

// Ask for `count` weights of each of `rows` rows, [rows, stride], to be brought to L2.
template <int threads>
__device__ __forceinline__ void prefetch_rows(const float* weights, int stride, int rows,
                                              int count) {
  constexpr int line = 128 / sizeof(float);
  const int lines = (count + line - 1) / line;
  for (int i = threadIdx.x; i < rows * lines; i += threads)
    prefetch_to_l2<true>(weights + size_t(i / lines) * stride + i % lines * line, 128);
}

// First layer over channels [c0, c0 + count) with the statistics of some images, each `apart` from
// the next: `emit(unit, in, holder)` receives W0 times these, for each hidden unit, before factors
// and bias, as parts of `in`. Weights are read once for all images.
template <class K, int threads, int images = 1, class Emit>
__device__ __forceinline__ void first_layer(const float* w0, int hidden, int channels, int c0,
                                            int count, const typename K::ChannelStat* stats,
                                            int positions, Emit emit, int apart = 0) {
  using All = Values<images * K::Pooled::count>;
  multiply_rows<All, threads>(
      w0 + c0, channels, hidden, count,
      [&](int c) {
        All all;
#pragma unroll
        for (int m = 0; m < images; ++m)
          all.set_part(m, K::pooled(stats[m * apart + c], positions));
        return all;
      },
      emit);
}

// What a hidden unit passes on, `in` being complete: summed over all channels. Callers store it
// from a variable: GCC's ThreadSanitizer, which the host tests rely on, misses a call's result.
template <class K>
__device__ __forceinline__ typename K::Hidden hidden_unit(float bias, typename K::Pooled in,
                                                          const typename K::Pooled& factors) {
#pragma unroll
  for (int i = 0; i < K::branches; ++i)
    in.of[i] = apply<K::activation>(in.of[i] * factors.of[i] + bias);
  return K::hidden(in);
}

// What a channel passes on where there is no first layer.
template <class K>
__device__ __forceinline__ typename K::Hidden channel_itself(const typename K::ChannelStat& stat,
                                                             const typename K::Pooled& factors,
                                                             int positions) {
  typename K::Pooled in = K::pooled(stat, positions);
#pragma unroll
  for (int i = 0; i < K::branches; ++i) in.of[i] *= factors.of[i];
  return K::hidden(in);
}

template <class K>
__device__ __forceinline__ float channel_gate(typename K::Hidden logits, float bias) {
  float gate = apply<K::channel_gate>(logits.of[0] + K::biases * bias);
  if constexpr (K::logits == 2) gate += apply<K::channel_gate>(logits.of[1] + bias);
  return gate;
}

// Second layer and gate function for channels [c0, c0 + count) of some images, `hidden` of each
// being `apart` from the next one's: `emit(channel, gates, holder)`, channels from 0.
template <class K, int threads, int images = 1, class Element, class Emit>
__device__ __forceinline__ void second_layer(const Arguments<Element>& a, int c0, int count,
                                             const typename K::Hidden* hidden, Emit emit,
                                             int apart = 0) {
  using All = Values<images * K::Hidden::count>;
  const auto seen = [&](int at) {
    All all;
#pragma unroll
    for (int m = 0; m < images; ++m) all.set_part(m, hidden[m * apart + at]);
    return all;
  };
  const auto gates = [&](const All& sums, float bias) {
    Values<images> gates;
#pragma unroll
    for (int m = 0; m < images; ++m)
      gates.of[m] = channel_gate<K>(sums.template part<typename K::Hidden>(m), bias);
    return gates;
  };
  if constexpr (K::mixer == Mixer::conv) {
    const float bias = __ldg(a.bc);
    for (int c = c0 + threadIdx.x; c < c0 + count; c += threads) {
      All sum;
#pragma unroll
      for (int tap = 0; tap < K::taps; ++tap) {
        const int from = c + tap - K::taps / 2;
        if (from >= 0 && from < a.channels) sum.add_product(__ldg(a.wc + tap), seen(from));
      }
      emit(c, gates(sum, bias), Holder<1>{});
    }
  } else {
    const int width = K::width(a.hidden, a.channels);
    multiply_rows<All, threads>(a.w1 + size_t(c0) * width, width, count, width, seen,
                                [&](int row, const All& sums, auto holder) {
                                  emit(c0 + row, gates(sums, __ldg(a.b1 + c0 + row)), holder);
                                });
  }
}

// What each channel counts for in the descriptor of a position: nullptr where all count as they
// are. `described`: one float per stored channel of shared memory, where there is a 1x1
// convolution. All threads must call.
template <class K, int threads, class Element>
__device__ __forceinline__ const float* channel_weights(const Arguments<Element>& a,
                                                        const float* gate, float* described) {
  if constexpr (K::convolves_channels) {
    for (int c = threadIdx.x; c < a.channels; c += threads)
      described[c] = __ldg(a.wd + c) * (K::spatial_sees_gated ? gate[c] : 1.0f);
    __syncthreads();
    return described;
  } else {
    return K::spatial_sees_gated ? gate : nullptr;
  }
}

// A position's descriptor as the convolution sees it; `scale` is that of the elements.
template <class K>
__device__ __forceinline__ typename K::PositionStat descriptor(typename K::PositionStat stat,
                                                               int channels, float scale) {
  constexpr bool is_max = K::descriptor == Descriptor::max;
  if constexpr (!is_max && !K::convolves_channels) stat.sum *= __fdividef(1.0f, channels);
  if constexpr (!K::spatial_sees_gated) {
    if constexpr (!is_max) stat.sum *= scale;
    if constexpr (is_max || K::described == 2) stat.max *= scale;
  }
  return stat;
}

// Positions on either side of a slice that its convolution looks at.
template <class K>
__device__ __forceinline__ int halo(const Shape& shape) {
  return K::kernel_size / 2 * (shape.width + 1);
}

// Ms at position `p`. `window[q]` is the descriptor at position `window_start + q`; `weight` is WS.
template <class K>
__device__ __forceinline__ float spatial_gate(const Shape& shape, int p,
                                              const typename K::PositionStat* window,
                                              int window_start, const float* weight, float bias) {
  if constexpr (kWithout == Phase::convolution) return bias;
  constexpr int reach = K::kernel_size / 2;
  const int y = p / shape.width, x = p % shape.width;
  float sum = bias;
  for (int dy = -reach; dy <= reach; ++dy) {
    if (y + dy < 0 || y + dy >= shape.height) continue;
    const typename K::PositionStat* line = window + (p + dy * shape.width - window_start);
    const float* line_weight = weight + (dy + reach) * K::kernel_size + reach;
#pragma unroll
    for (int dx = -reach; dx <= reach; ++dx) {
      if (x + dx < 0 || x + dx >= shape.width) continue;
      if constexpr (K::described == 2)
        sum += line_weight[dx] * line[dx].max + line_weight[K::kernel_area + dx] * line[dx].sum;
      else if constexpr (K::descriptor == Descriptor::max) sum += line_weight[dx] * line[dx].max;
      else sum += line_weight[dx] * line[dx].sum;
    }
  }
  return apply<K::spatial_gate>(sum);
}

// Write y over the block's slice. `channel_gate` is indexed by channels and `spatial_gate` by
// positions, both from the slice's first. `and_then(chunk, row, col)` is called when a batch of x
// has been read, by every thread in every chunk whose column is not behind the last.
template <class G, class K, class Read, class Then>
__device__ __forceinline__ void write_gated(const Tile<G>& tile, int channels,
                                            const float* channel_gate, const float* spatial_gate,
                                            const Scales& scales, Read read, Then and_then,
                                            const typename G::Element* x,
                                            const typename G::Element* r,
                                            typename G::Element* y) {
  using Vector = typename G::Vector;
  const float r_ratio = __fdividef(scales.r, K::y_scale(scales));
  const float y_unit = K::last_is_homogeneous ? 1.0f : __fdividef(1.0f, scales.y);
  // ReLU is saturation to [0, 127].
  constexpr bool saturation_is_last = Vector::is_bytes && K::last == Function::relu;
  const int row_lane = G::row_lane();
  for (int col = G::column_lane(); col < tile.cols; col += G::Q) {
    float column_gate[G::V];
#pragma unroll
    for (int i = 0; i < G::V; ++i) {
      const int at = col * G::V + i;
      if constexpr (G::rows_are_channels) {
        column_gate[i] = K::has_spatial ? spatial_gate[at] : 1.0f;
      } else {
        column_gate[i] = 1.0f;
        if (G::padded && at >= channels) column_gate[i] = 0.0f;
        else if constexpr (K::has_channel) column_gate[i] = channel_gate[at];
      }
    }
    for (int chunk = 0; chunk * G::chunk < tile.rows; ++chunk) {
      const int base = chunk * G::chunk + row_lane;
      typename G::Element* const to = tile.at(y, base, col);
      Vector xs[G::batch], rs[G::batch];
      read(base, G::R, col, xs);
      and_then(chunk, base, col);
      if constexpr (kWithout == Phase::output) continue;
      if constexpr (K::residual) {
        if (!K::residual_may_be_x || r != x) {
          tile.read(r, base, G::R, col, rs);
        } else {
#pragma unroll
          for (int u = 0; u < G::batch; ++u) rs[u] = xs[u];
        }
      }
#pragma unroll
      for (int u = 0; u < G::batch; ++u) {
        const int row = base + u * G::R;
        if (row >= tile.rows) break;
        float row_gate = 1.0f;
        if constexpr (G::rows_are_channels) {
          if constexpr (K::has_channel) row_gate = channel_gate[row];
        } else if constexpr (K::has_spatial) {
          row_gate = spatial_gate[row];
        }
        float values[G::V], others[G::V];
        xs[u].unpack(values);
        if constexpr (K::residual) rs[u].unpack(others);
#pragma unroll
        for (int i = 0; i < G::V; ++i) {
          if constexpr (K::order == Order::sum) {
            values[i] *= row_gate + column_gate[i];
          } else {
            const float outer = G::rows_are_channels ? row_gate : column_gate[i];
            const float inner = G::rows_are_channels ? column_gate[i] : row_gate;
            values[i] = values[i] * outer * inner;
          }
          if constexpr (K::residual) values[i] += others[i] * r_ratio;
          if constexpr (!saturation_is_last) values[i] = apply<K::last>(values[i]) * y_unit;
          if (G::padded && col * G::V + i >= channels) values[i] = 0.0f;
        }
        Vector::template of<saturation_is_last ? 0 : -128>(values).store(
            to + u * (G::R * tile.row_stride));
      }
    }
  }
}

// Hands out dynamic shared memory, each piece 16-byte aligned; shared_memory.py counts the same bytes.
class Arena {
 public:
  template <typename T>
  __device__ __forceinline__ T* take(int count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += (count * sizeof(T) + 15) / 16 * 16;
    return piece;
  }

  // Continue where `other`, started from a copy of this arena, ends, if that is further on.
  __device__ __forceinline__ void past(const Arena& other) {
    if (other.next_ > next_) next_ = other.next_;
  }

 private:
  unsigned char* next_ = dynamic_shared();
};

}  // namespace cbam
