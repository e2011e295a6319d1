// What the kernels ask of the machine beyond plain C++: the warp, the cluster, shared memory.
//
// Everything that needs PTX stands here and nowhere else. A build for the host (tests/plugins/host)
// defines CBAM_DEPLOY_HOST and supplies the same names on C++20 threads.
#pragma once

#ifndef CBAM_DEPLOY_HOST

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#if __CUDA_ARCH__ >= 900
#define CBAM_CLUSTER(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define CBAM_CLUSTER(blocks)
#endif

namespace cbam {

constexpr int kWarp = 32;

// The block's dynamic shared memory, 16-byte aligned.
__device__ __forceinline__ unsigned char* dynamic_shared() {
  extern __shared__ uint4 bytes[];
  return reinterpret_cast<unsigned char*>(bytes);
}

// The value `v` of the lane whose number differs in the bits of `mask`; every lane must call it.
__device__ __forceinline__ float shuffle_xor(float v, int mask) {
  return __shfl_xor_sync(0xffffffffu, v, mask);
}

// Rank of this block in its cluster of `blocks`.
template <int blocks>
__device__ __forceinline__ int cluster_rank() {
  if constexpr (blocks == 1) return 0;
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Barrier of all threads of the cluster; orders shared memory, the peers' included.
template <int blocks>
__device__ __forceinline__ void cluster_sync() {
  if constexpr (blocks == 1) {
    __syncthreads();
  } else {
    asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;"
                 ::: "memory");
  }
}

// Where `own`, an address in this block's shared memory, lies in block `rank` of the cluster.
template <int blocks, typename T>
__device__ __forceinline__ T* cluster_peer(T* own, int rank) {
  if constexpr (blocks == 1) return own;
  unsigned long long peer;
  asm("mapa.u64 %0, %1, %2;"
      : "=l"(peer) : "l"(reinterpret_cast<unsigned long long>(own)), "r"(rank));
  return reinterpret_cast<T*>(peer);
}

// The larger of two values; NaN if either is NaN, as PyTorch's amax has it.
__device__ __forceinline__ float max_or_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float larger;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(larger) : "f"(a), "f"(b));
  return larger;
#else
  return a > b || a != a ? a : b;
#endif
}

// Ask for the cache line of `address` to be brought from device memory to L2.
__device__ __forceinline__ void prefetch_to_l2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

}  // namespace cbam

#endif  // CBAM_DEPLOY_HOST
