// The gate language: what a gate is made of, as compile-time choices, and what follows from each.
//
// `Gate` is the C++ side of `gates.description.GateSpec` with what `gates.operators.GateOperator`
// adds: `plugins.entries.gate_type` writes one from the other. A kernel is compiled for one
// `Gate`; what this gate does not have costs it nothing.
#pragma once

#include "tile.cuh"

namespace cbam {

enum class Order { channel_spatial, spatial_channel, parallel, sum, channel, spatial };
enum class Pool { avg, max, avg_max };
enum class Mixer { mlp, linear, conv };
enum class Join { logits, gates, pools };
enum class Descriptor { pool, avg, max, conv1x1, none };
enum class Function { none, relu, leaky_relu, silu, gelu, hard_swish, sigmoid, hard_sigmoid };

// Within 2^-21 of the true value: the relative error of __expf, about 1.2 |v| units in the last
// place, meets the factor Ms (1 - Ms), which falls faster.
__device__ __forceinline__ float sigmoid(float v) {
  return __fdividef(1.0f, 1.0f + __expf(-v));
}

// clip(v / 6 + 1/2, 0, 1); keeps NaN.
__device__ __forceinline__ float hard_sigmoid(float v) {
  const float line = v * (1.0f / 6.0f) + 0.5f;
  return line < 0.0f ? 0.0f : line > 1.0f ? 1.0f : line;
}

// A product with one of the two above is within 2^-21 |v|; so is GELU, whose erff is off by two
// units in the last place. ReLU and leaky ReLU keep NaN, as PyTorch's do.
template <Function function>
__device__ __forceinline__ float apply(float v) {
  if constexpr (function == Function::relu) {
    return max_or_nan(v, 0.0f);
  } else if constexpr (function == Function::leaky_relu) {
    return v < 0.0f ? 0.01f * v : v;
  } else if constexpr (function == Function::silu) {
    return v * sigmoid(v);
  } else if constexpr (function == Function::gelu) {
    return v * (0.5f + 0.5f * erff(v * 0.70710678f));
  } else if constexpr (function == Function::hard_swish) {
    return v * hard_sigmoid(v);
  } else if constexpr (function == Function::sigmoid) {
    return sigmoid(v);
  } else if constexpr (function == Function::hard_sigmoid) {
    return hard_sigmoid(v);
  } else {
    static_assert(function == Function::none, "a function without a formula");
    return v;
  }
}

// One value for each of the branches in which the channel part computes.
template <int count_>
struct alignas(4 * count_) Values {
  static constexpr int count = count_;
  float of[count_] = {};

  __device__ __forceinline__ void add(const Values& other) {
#pragma unroll
    for (int i = 0; i < count; ++i) of[i] += other.of[i];
  }
  __device__ __forceinline__ void add_product(float weight, const Values& other) {
#pragma unroll
    for (int i = 0; i < count; ++i) of[i] += weight * other.of[i];
  }
  // Number `number` of the parts that `Part` is one of, such as what belongs to one of some images.
  template <class Part>
  __device__ __forceinline__ Part part(int number) const {
    Part part;
#pragma unroll
    for (int i = 0; i < Part::count; ++i) part.of[i] = of[number * Part::count + i];
    return part;
  }
  template <class Part>
  __device__ __forceinline__ void set_part(int number, const Part& part) {
#pragma unroll
    for (int i = 0; i < Part::count; ++i) of[number * Part::count + i] = part.of[i];
  }
  // Those of the lane whose number differs in the bits of `mask`.
  __device__ __forceinline__ Values shuffled(int mask) const {
    Values other;
#pragma unroll
    for (int i = 0; i < count; ++i) other.of[i] = shuffle_xor(of[i], mask);
    return other;
  }
};

// Per-tensor scales of int8 maps, 1 for other types. Kernels receive them as the bits of a float,
// since TensorRT passes an embedded kernel nothing but pointers and 32-bit integers.
struct Scales {
  float x = 1.0f, r = 1.0f, y = 1.0f;
};

// `kernel_size` is the spatial convolution's, `taps` that of the mixer `conv`; 0 without one.
template <Order order_, Pool pool, Mixer mixer_, Function activation_, Join join,
          Function channel_gate_, int taps_, Descriptor descriptor_, Function spatial_gate_,
          int kernel_size_, bool residual_, Function last_>
struct Gate {
  static constexpr Order order = order_;
  static constexpr Mixer mixer = mixer_;
  static constexpr Function activation = activation_, channel_gate = channel_gate_;
  static constexpr Function spatial_gate = spatial_gate_, last = last_;
  static constexpr Descriptor descriptor = descriptor_;
  static constexpr int taps = taps_, kernel_size = kernel_size_;
  static constexpr bool residual = residual_;

  static constexpr bool has_channel = order != Order::spatial;
  static constexpr bool has_spatial = order != Order::channel;
  // Which part sees the map that the other has gated.
  static constexpr bool spatial_sees_gated = order == Order::channel_spatial;
  static constexpr bool channel_sees_gated = order == Order::spatial_channel;

  static constexpr bool both_pools = pool == Pool::avg_max;
  using ChannelStat = Stat<pool != Pool::max, pool != Pool::avg>;
  // Two pools go through the first layer side by side, and through the second one where each has a
  // gate of its own; otherwise, the second being linear, they are added before it.
  static constexpr int branches = both_pools && join != Join::pools ? 2 : 1;
  static constexpr int logits = both_pools && join == Join::gates ? 2 : 1;
  static constexpr float biases = both_pools && join == Join::logits ? 2.0f : 1.0f;
  using Pooled = Values<branches>;
  using Hidden = Values<logits>;

  // Maximum and mean where the descriptor is both, otherwise one; a 1x1 convolution is a sum.
  using PositionStat = Stat<descriptor != Descriptor::max,
                            descriptor == Descriptor::pool || descriptor == Descriptor::max>;
  static constexpr int described = descriptor == Descriptor::pool ? 2 : 1;
  static constexpr int kernel_area = kernel_size * kernel_size;
  static constexpr int spatial_weights = has_spatial ? described * kernel_area : 0;
  static constexpr bool convolves_channels = descriptor == Descriptor::conv1x1;

  // x + gate(x) is common, and r is then not read. In front of an activation stands a shortcut of
  // the network, which is another map: those kernels spare the registers.
  static constexpr bool residual_may_be_x = residual && last == Function::none;

  // Whether y's scale may be divided out before the last activation: it then passes through.
  static constexpr bool last_is_homogeneous =
      last == Function::none || last == Function::relu || last == Function::leaky_relu;

  // What is in front of the second layer: the hidden units, or the channels themselves.
  __device__ __forceinline__ static int width(int hidden, int channels) {
    return mixer == Mixer::mlp ? hidden : channels;
  }

  // A channel's statistic as the first layer sees it, but for `factors`.
  __device__ __forceinline__ static Pooled pooled(const ChannelStat& stat, int positions) {
    if constexpr (branches == 2) return {{stat.sum, stat.max}};
    else if constexpr (both_pools)
      return {{stat.sum * __fdividef(0.5f, positions) + 0.5f * stat.max}};
    else if constexpr (pool == Pool::avg) return {{stat.sum}};
    else return {{stat.max}};
  }
  // What makes real values of them; `scale` is that of the elements.
  __device__ __forceinline__ static Pooled factors(float scale, int positions) {
    if constexpr (branches == 2) return {{__fdividef(scale, positions), scale}};
    else if constexpr (pool == Pool::avg) return {{__fdividef(scale, positions)}};
    else return {{scale}};
  }
  // What the second layer sees of all branches.
  __device__ __forceinline__ static Hidden hidden(const Pooled& in) {
    if constexpr (branches == 2 && logits == 1) return {{in.of[0] + in.of[1]}};
    else return in;
  }

  // What the stored gates hold besides Mc and Ms, so that y follows from x's integers by them
  // alone: x's scale in the first that the map meets, one over y's in the last.
  __device__ __forceinline__ static float y_scale(const Scales& scales) {
    return last_is_homogeneous ? scales.y : 1.0f;
  }
  __device__ __forceinline__ static float channel_unit(const Scales& scales) {
    if constexpr (order == Order::channel_spatial || order == Order::parallel) return scales.x;
    const float x = order == Order::spatial_channel ? 1.0f : scales.x;
    return __fdividef(x, y_scale(scales));
  }
  __device__ __forceinline__ static float spatial_unit(const Scales& scales) {
    if constexpr (order == Order::spatial_channel) return scales.x;
    const bool alone = order == Order::spatial || order == Order::sum;
    return __fdividef(alone ? scales.x : 1.0f, y_scale(scales));
  }
};

// Everything that a kernel may be given; its entry point sets what it takes (`plugins.entries`).
template <typename Element>
struct Arguments {
  const Element *x = nullptr, *r = nullptr;
  const float *w0 = nullptr, *b0 = nullptr;  // [hidden, C], [hidden]
  const float *w1 = nullptr, *b1 = nullptr;  // [C, hidden or C], [C]
  const float *wc = nullptr, *bc = nullptr;  // [taps], [1]
  const float* wd = nullptr;                 // [C]
  const float *ws = nullptr, *bs = nullptr;  // [described, k, k] (maximum, mean), [1]
  float *partials = nullptr, *channel_gates = nullptr, *pooled = nullptr;  // see staged.cuh
  Element* y = nullptr;
  int channels = 0, stored = 0, height = 0, width = 0, hidden = 0;
  int positions_per_block = 0, channels_per_block = 0, splits = 0, kept_rows = 0, window_size = 0;
  int batch = 0;
  int x_scale = 0x3f800000, r_scale = 0x3f800000, y_scale = 0x3f800000;

  __device__ __forceinline__ Shape shape() const { return {channels, stored, height, width}; }
  __device__ __forceinline__ Scales scales() const {
    if constexpr (sizeof(Element) > 1) return {};
    return {__int_as_float(x_scale), __int_as_float(r_scale), __int_as_float(y_scale)};
  }
};

}  // namespace cbam
