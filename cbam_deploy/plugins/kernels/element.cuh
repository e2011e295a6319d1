// Element types of the feature map: vector loads and stores, conversion to and from float.
//
// Arithmetic is float throughout. An int8 element converts to its plain integer value; the
// per-tensor scales are folded into the gate (gate.cuh), so the map is never rescaled by itself.
#pragma once

#include "device.cuh"

namespace cbam {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(signed char v) { return static_cast<float>(v); }

// Round to nearest even, overflow as the type has it: infinity, and saturation for int8.
__device__ __forceinline__ void from_float(float v, float& out) { out = v; }
__device__ __forceinline__ void from_float(float v, __half& out) { out = __float2half_rn(v); }
__device__ __forceinline__ void from_float(float v, __nv_bfloat16& out) {
  out = __float2bfloat16_rn(v);
}
__device__ __forceinline__ void from_float(float v, signed char& out) {
  // Adding 1.5 * 2^23 leaves the integer nearest to a small float in the low bits of the sum.
  const float clamped = fminf(fmaxf(v, -128.0f), 127.0f);
  out = static_cast<signed char>(__float_as_int(clamped + 12582912.0f));
}

// The machine word that moves `bytes` bytes in one access.
template <int bytes> struct WordOf;
template <> struct WordOf<1> { using type = unsigned char; };
template <> struct WordOf<2> { using type = unsigned short; };
template <> struct WordOf<4> { using type = unsigned int; };
template <> struct WordOf<8> { using type = uint2; };
template <> struct WordOf<16> { using type = uint4; };

// `count` adjacent elements, moved as one word. Addresses are multiples of the word's size.
template <typename Element, int count>
struct Pack {
  using Word = typename WordOf<sizeof(Element) * count>::type;
  Word word;

  __device__ __forceinline__ static Pack load_global(const Element* from) {
    return {__ldg(reinterpret_cast<const Word*>(from))};
  }
  __device__ __forceinline__ static Pack load_shared(const Element* from) {
    return {*reinterpret_cast<const Word*>(from)};
  }
  __device__ __forceinline__ void store(Element* to) const {
    *reinterpret_cast<Word*>(to) = word;
  }
  __device__ __forceinline__ void unpack(float (&values)[count]) const {
    Element elements[count];
    memcpy(elements, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] = to_float(elements[i]);
  }
  __device__ __forceinline__ static Pack of(const float (&values)[count]) {
    Element elements[count];
#pragma unroll
    for (int i = 0; i < count; ++i) from_float(values[i], elements[i]);
    Pack pack;
    memcpy(&pack.word, elements, sizeof(pack.word));
    return pack;
  }
};

}  // namespace cbam
