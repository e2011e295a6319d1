// Element types of the feature map: vector loads and stores, conversion to and from float.
//
// Arithmetic is float throughout, but for statistics of int8 maps that nothing weighs: those are
// counted in integers (tile.cuh). An int8 element converts to its plain integer value; the
// per-tensor scales are folded into the gate (gate.cuh), so the map is never rescaled by itself.
//
// The instruction that converts an integer runs at an eighth of the others' rate. Four bytes at a
// time, bytes are moved into the low bits of floats of known exponent instead, and back.
#pragma once

#include "device.cuh"

namespace cbam {

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(__half v) { return __half2float(v); }
__device__ __forceinline__ float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float to_float(signed char v) { return static_cast<float>(v); }

template <typename Element> constexpr bool is_int8 = false;
template <> inline constexpr bool is_int8<signed char> = true;

// Round to nearest even, overflow as the type has it: infinity, and saturation for int8.
__device__ __forceinline__ void from_float(float v, float& out) { out = v; }
__device__ __forceinline__ void from_float(float v, __half& out) { out = __float2half_rn(v); }
__device__ __forceinline__ void from_float(float v, __nv_bfloat16& out) {
  out = __float2bfloat16_rn(v);
}
__device__ __forceinline__ unsigned int8_in_low_byte(float v) {
  // Adding 1.5 * 2^23 leaves the integer nearest to a small float in the low bits of the sum.
  return __float_as_int(fminf(fmaxf(v, -128.0f), 127.0f) + 12582912.0f);
}
__device__ __forceinline__ void from_float(float v, signed char& out) {
  out = static_cast<signed char>(int8_in_low_byte(v));
}

// The machine word that moves `bytes` bytes in one access.
template <int bytes> struct WordOf;
template <> struct WordOf<1> { using type = unsigned char; };
template <> struct WordOf<2> { using type = unsigned short; };
template <> struct WordOf<4> { using type = unsigned int; };
template <> struct WordOf<8> { using type = uint2; };
template <> struct WordOf<16> { using type = uint4; };

// 2^23: of the floats from here to twice that, the low 23 bits are an integer.
constexpr unsigned kIntegerBits = 0x4b000000;
constexpr float kIntegerBase = 8388608.0f;

constexpr float kByteBias = 128.0f;
constexpr float kSmallest = 1.40129846e-45f;  // 2^-149

// Of four unsigned bytes, the first and third, and the others, each in a half of the word.
__device__ __forceinline__ unsigned even_bytes(unsigned bytes) { return bytes & 0x00ff00ffu; }
__device__ __forceinline__ unsigned odd_bytes(unsigned bytes) {
  return __byte_perm(bytes, 0, 0x4341);
}

// The float of the unsigned byte `i` of `bytes`, or of the unsigned half `i` of `halves`, plus
// `kIntegerBase`.
__device__ __forceinline__ float byte_over_base(unsigned bytes, int i) {
  return __int_as_float(__byte_perm(bytes, kIntegerBits, 0x7540 + i));
}
__device__ __forceinline__ float half_over_base(unsigned halves, int i) {
  return __int_as_float(__byte_perm(halves, kIntegerBits, i ? 0x7532 : 0x7510));
}

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
  // Whether these are int8 elements, four in each of some 32-bit words.
  static constexpr bool is_bytes = is_int8<Element> && count % 4 == 0;
  static constexpr int words = (sizeof(Word) + 3) / 4;
  // Those words, of unsigned bytes that are 128 more than the elements.
  __device__ __forceinline__ void biased(unsigned (&bytes)[words]) const {
    memcpy(bytes, &word, sizeof(word));
#pragma unroll
    for (int i = 0; i < words; ++i) bytes[i] ^= 0x80808080u;
  }

  __device__ __forceinline__ void unpack(float (&values)[count]) const {
    if constexpr (is_bytes) {
      unsigned bytes[words];
      biased(bytes);
#pragma unroll
      for (int i = 0; i < count; ++i)
        values[i] = byte_over_base(bytes[i / 4], i % 4) - (kIntegerBase + kByteBias);
    } else {
      Element elements[count];
      memcpy(elements, &word, sizeof(word));
#pragma unroll
      for (int i = 0; i < count; ++i) values[i] = to_float(elements[i]);
    }
  }

  // int8 elements saturate to [`least`, 127].
  template <int least = -128>
  __device__ __forceinline__ static Pack of(const float (&values)[count]) {
    Pack pack;
    if constexpr (is_bytes) {
      unsigned bytes[words];
#pragma unroll
      for (int i = 0; i < words; ++i) {
        const float* const four = values + 4 * i;
        if constexpr (least == 0) {
          // Multiples of the smallest float are integers in its bits.
          int bits[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) bits[j] = __float_as_int(fmaxf(four[j], 0.0f) * kSmallest);
          bytes[i] = saturated_bytes(bits[0], bits[1], bits[2], bits[3]);
        } else {
          unsigned low[4];
#pragma unroll
          for (int j = 0; j < 4; ++j) low[j] = int8_in_low_byte(four[j]);
          bytes[i] = __byte_perm(__byte_perm(low[0], low[1], 0x0040),
                                 __byte_perm(low[2], low[3], 0x0040), 0x5410);
        }
      }
      memcpy(&pack.word, bytes, sizeof(pack.word));
    } else {
      Element elements[count];
#pragma unroll
      for (int i = 0; i < count; ++i) from_float(values[i], elements[i]);
      memcpy(&pack.word, elements, sizeof(pack.word));
    }
    return pack;
  }
};

}  // namespace cbam
