// The gate's mathematics on one block's slice, shared by the staged and the fused kernels.
//
//   Mc = sigmoid(W1 relu(W0 mean + B0) + W1 relu(W0 max + B0) + 2 B1)
//                                                    mean, max of x over positions
//   Ms = sigmoid(conv_k([max, mean]) + BS)           max, mean of x Mc over channels
//   y  = x Mc Ms, or relu(x Mc Ms + r)
//
// (CBAM, Woo et al., ECCV 2018, equations 1 to 3; Squeeze-and-Excitation has the mean alone and no
// Ms.) With int8 maps x stands for x_scale times the integer, and so r and y: the channel gate is
// stored times x_scale, the spatial gate times 1 / y_scale, and a vector of the map costs the same
// two multiplications per element in every type.
#pragma once

#include "tile.cuh"

namespace cbam {

// Within 2^-21 of the true value: the relative error of __expf, about 1.2 |v| units in the last
// place, meets the factor Ms (1 - Ms), which falls faster.
__device__ __forceinline__ float sigmoid(float v) {
  return __fdividef(1.0f, 1.0f + __expf(-v));
}
// Keeps NaN, as PyTorch's relu does.
__device__ __forceinline__ float relu(float v) { return v < 0.0f ? 0.0f : v; }

// Per-tensor scales of int8 maps, 1 for other types. Kernels receive them as the bits of a float,
// since TensorRT passes an embedded kernel nothing but pointers and 32-bit integers.
struct Scales {
  float x = 1.0f, r = 1.0f, y = 1.0f;

  template <typename Element>
  __device__ __forceinline__ static Scales of(int x_bits, int r_bits, int y_bits) {
    if constexpr (sizeof(Element) > 1) return {};
    return {__int_as_float(x_bits), __int_as_float(r_bits), __int_as_float(y_bits)};
  }
};

// A hidden unit's input from the mean and from the maximum, before bias and scale.
struct alignas(8) Branches {
  float of_sum = 0.0f, of_max = 0.0f;

  __device__ __forceinline__ void add(const Branches& other) {
    of_sum += other.of_sum;
    of_max += other.of_max;
  }
};

// The channel gate's two layers: W0 [hidden, channels], B0, W1 [channels, hidden], B1.
struct Mlp {
  const float *w0, *b0, *w1, *b1;
  int channels, hidden;
};

// The spatial gate's k x k convolution: WS [1, 2, k, k] (maximum, then mean), BS [1].
struct Convolution {
  const float *weight, *bias;
};

// Sum and maximum per channel over the block's slice: `emit(channel, stat)`, channels from 0.
template <class G, class Read, class Emit>
__device__ __forceinline__ void reduce_channels(const Tile<G>& tile, Stat* scratch, Read read,
                                                   Emit emit) {
  const auto as_it_is = [](int, int, float (&)[G::V]) { return G::V; };
  if constexpr (G::rows_are_channels) {
    reduce_rows<G>(tile.rows, tile.cols, scratch, read, as_it_is, emit);
  } else {
    reduce_columns<G>(tile.rows, tile.cols, scratch, read, as_it_is, emit);
  }
}

// Sum and maximum of x Mc per position over all channels: `emit(position, stat)`, positions from
// the slice's first.
template <class G, class Read, class Emit>
__device__ __forceinline__ void reduce_positions(const Tile<G>& tile, int channels,
                                                   const float* channel_gate, Stat* scratch,
                                                   Read read, Emit emit) {
  if constexpr (G::rows_are_channels) {
    const auto weigh = [=](int row, int, float (&values)[G::V]) {
      const float gate = channel_gate[row];
#pragma unroll
      for (int i = 0; i < G::V; ++i) values[i] *= gate;
      return G::V;
    };
    reduce_columns<G>(tile.rows, tile.cols, scratch, read, weigh, emit);
  } else {
    const auto weigh = [=](int, int col, float (&values)[G::V]) {
      const float* gate = channel_gate + col * G::V;
#pragma unroll
      for (int i = 0; i < G::V; ++i) values[i] *= gate[i];
      return G::padded ? min(G::V, channels - col * G::V) : G::V;
    };
    reduce_rows<G>(tile.rows, tile.cols, scratch, read, weigh, emit);
  }
}

// First layer over channels [c0, c0 + count), whose sums and maxima are `pooled`: `emit(unit, in)`
// receives W0 sum and W0 max over these channels, once per hidden unit. One warp per unit.
template <int threads, class Emit>
__device__ __forceinline__ void hidden_layer(const Mlp& mlp, int c0, int count, const Stat* pooled,
                                             Emit emit) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  for (int unit = warp; unit < mlp.hidden; unit += threads / kWarp) {
    const float* weights = mlp.w0 + size_t(unit) * mlp.channels + c0;
    Branches in;
#pragma unroll 4
    for (int c = lane; c < count; c += kWarp) {
      const float weight = __ldg(weights + c);
      in.add({weight * pooled[c].sum, weight * pooled[c].max});
    }
#pragma unroll
    for (int bit = 1; bit < kWarp; bit *= 2)
      in.add({shuffle_xor(in.of_sum, bit), shuffle_xor(in.of_max, bit)});
    if (lane == 0) emit(unit, in);
  }
}

// What a hidden unit passes on, `in` being complete: summed over all channels. The second layer
// is linear, so both branches are added before it.
template <bool with_max>
__device__ __forceinline__ float hidden_unit(const Mlp& mlp, int unit, const Branches& in,
                                             float x_scale, int positions) {
  const float bias = __ldg(mlp.b0 + unit);
  const float of_mean = relu(in.of_sum * __fdividef(x_scale, positions) + bias);
  return with_max ? of_mean + relu(in.of_max * x_scale + bias) : of_mean;
}

// Second layer and sigmoid for channels [c0, c0 + count): `emit(channel, gate)`, channels from 0.
// One warp per channel.
template <int threads, bool with_max, class Emit>
__device__ __forceinline__ void channel_gate(const Mlp& mlp, int c0, int count, const float* hidden,
                                             Emit emit) {
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
#pragma unroll 4
  for (int c = c0 + warp; c < c0 + count; c += threads / kWarp) {
    const float* weights = mlp.w1 + size_t(c) * mlp.hidden;
    float sum = 0.0f;
    for (int unit = lane; unit < mlp.hidden; unit += kWarp)
      sum += __ldg(weights + unit) * hidden[unit];
#pragma unroll
    for (int bit = 1; bit < kWarp; bit *= 2) sum += shuffle_xor(sum, bit);
    if (lane == 0) emit(c, sigmoid(sum + (with_max ? 2.0f : 1.0f) * __ldg(mlp.b1 + c)));
  }
}

// Positions on either side of a slice that its convolution looks at.
template <int kernel_size>
__device__ __forceinline__ int halo(const Shape& shape) {
  return kernel_size / 2 * (shape.width + 1);
}

// Spatial gate at position `p`. `window[q]` holds maximum and mean (as sum) at position
// `window_start + q`; `weight` is WS.
template <int kernel_size>
__device__ __forceinline__ float spatial_gate(const Shape& shape, int p, const Stat* window,
                                              int window_start, const float* weight, float bias) {
  constexpr int reach = kernel_size / 2, taps = kernel_size * kernel_size;
  const int y = p / shape.width, x = p % shape.width;
  float sum = bias;
  for (int dy = -reach; dy <= reach; ++dy) {
    if (y + dy < 0 || y + dy >= shape.height) continue;
    const Stat* line = window + (p + dy * shape.width - window_start);
    const float* line_weight = weight + (dy + reach) * kernel_size + reach;
#pragma unroll
    for (int dx = -reach; dx <= reach; ++dx) {
      if (x + dx < 0 || x + dx >= shape.width) continue;
      sum += line_weight[dx] * line[dx].max + line_weight[taps + dx] * line[dx].sum;
    }
  }
  return sigmoid(sum);
}

// Write y over the block's slice. `channel_gate` is indexed by channels and `spatial_gate` by
// positions, both from the slice's first; `r_ratio` is r_scale / y_scale.
template <class G, bool spatial, bool residual, class Read>
__device__ __forceinline__ void write_gated(const Tile<G>& tile, int channels,
                                            const float* channel_gate, const float* spatial_gate,
                                            float r_ratio, Read read, const typename G::Element* r,
                                            typename G::Element* y) {
  using Vector = typename G::Vector;
  const int row_lane = G::row_lane();
  for (int col = G::column_lane(); col < tile.cols; col += G::Q) {
    float column_gate[G::V];
#pragma unroll
    for (int i = 0; i < G::V; ++i) {
      const int at = col * G::V + i;
      if constexpr (G::rows_are_channels) {
        column_gate[i] = spatial ? spatial_gate[at] : 1.0f;
      } else {
        column_gate[i] = G::padded && at >= channels ? 0.0f : channel_gate[at];
      }
    }
    for (int base = row_lane; base < tile.rows; base += G::R * G::batch) {
      Vector xs[G::batch], rs[G::batch];
      read(base, col, xs);
      if constexpr (residual) tile.read(r, base, col, rs);
#pragma unroll
      for (int u = 0; u < G::batch; ++u) {
        const int row = base + u * G::R;
        if (row >= tile.rows) break;
        float row_gate = 1.0f;
        if constexpr (G::rows_are_channels) {
          row_gate = channel_gate[row];
        } else if constexpr (spatial) {
          row_gate = spatial_gate[row];
        }
        float values[G::V], others[G::V];
        xs[u].unpack(values);
        if constexpr (residual) rs[u].unpack(others);
#pragma unroll
        for (int i = 0; i < G::V; ++i) {
          const float outer = G::rows_are_channels ? row_gate : column_gate[i];
          const float inner = G::rows_are_channels ? column_gate[i] : row_gate;
          values[i] = values[i] * outer * inner;
          if constexpr (residual) values[i] = relu(values[i] + others[i] * r_ratio);
          if (G::padded && col * G::V + i >= channels) values[i] = 0.0f;
        }
        Vector::of(values).store(y + tile.at(row, col));
      }
    }
  }
}

// Hands out dynamic shared memory, each piece 16-byte aligned; geometry.py counts the same bytes.
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
