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

// Whether a launch may start before the one in front of it has ended, where the host asks for that:
// programmatic dependent launch.
#if __CUDA_ARCH__ >= 900
constexpr bool kOverlaps = true;
#else
constexpr bool kOverlaps = false;
#endif

// Let blocks of the next launch start once all of this one's have said so.
__device__ __forceinline__ void allow_next_launch() {
  if constexpr (kOverlaps) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Wait until the launch in front of this one has ended, and all that it wrote is there.
__device__ __forceinline__ void await_previous_launch() {
  if constexpr (kOverlaps) asm volatile("griddepcontrol.wait;" ::: "memory");
}

// Rank of this block in its cluster of `blocks`.
template <int blocks>
__device__ __forceinline__ int cluster_rank() {
  if constexpr (blocks == 1) return 0;
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Four integers as signed bytes, the first one lowest; beyond what a byte holds they saturate.
__device__ __forceinline__ unsigned saturated_bytes(int a, int b, int c, int d) {
  unsigned high, bytes;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(d), "r"(c));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(bytes) : "r"(b), "r"(a), "r"(high));
  return bytes;
}

// Whether shared memory can be filled from device memory in the background.
#if __CUDA_ARCH__ >= 900
constexpr bool kCopies = true;
#else
constexpr bool kCopies = false;
#endif

// `v`, of which the compiler no longer knows that it is the same every time.
__device__ __forceinline__ int opaque(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// What a block waits for, turn after turn: that a number of arrivals have been counted, and that as
// many bytes as these said have come into its shared memory from the blocks of its cluster, itself
// among them. An mbarrier. `parity` is 0 for the first turn and every other one after it.
struct alignas(8) Arrival {
  unsigned long long state;
};

template <typename T>
__device__ __forceinline__ unsigned shared_address(T* own) {
  return static_cast<unsigned>(__cvta_generic_to_shared(own));
}

// Have it count `arrivals` in every turn. By one thread of the block, which calls `prepared` after
// the last one.
__device__ __forceinline__ void prepare(Arrival* arrival, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
               :: "r"(shared_address(arrival)), "r"(arrivals) : "memory");
}
template <int blocks>
__device__ __forceinline__ void prepared() {
  if constexpr (blocks > 1)
    asm volatile("fence.mbarrier_init.release.cluster;\n\t"
                 "fence.proxy.async.shared::cta;" ::: "memory");
}

// An arrival that says how many bytes come in this turn.
__device__ __forceinline__ void expect(Arrival* arrival, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :: "r"(shared_address(arrival)), "r"(bytes) : "memory");
}

// Tell the cluster's other threads that this one has done with all that they have sent. Without
// release: all of it has been read, as what came of it has been stored or sent since, and nothing
// that was written is for them; a release would wait for the stores of y.
template <int blocks>
__device__ __forceinline__ void announce() {
  if constexpr (blocks > 1) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

// Wait until all of them have said so: only then may anything be sent.
template <int blocks>
__device__ __forceinline__ void await_peers() {
  if constexpr (blocks > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  else __syncthreads();
}

// Store `value`, of 4 or 8 bytes, to block `rank` of the cluster, where `own` is in this one.
template <int blocks, typename T>
__device__ __forceinline__ void send(T* own, int rank, const T& value, Arrival* arrival) {
  if constexpr (blocks == 1) {
    *own = value;
  } else {
    unsigned to, counted;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(shared_address(own)), "r"(rank));
    asm("mapa.shared::cluster.u32 %0, %1, %2;"
        : "=r"(counted) : "r"(shared_address(arrival)), "r"(rank));
    if constexpr (sizeof(T) == 8) {
      unsigned long long bits;
      memcpy(&bits, &value, 8);
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];"
                   :: "r"(to), "l"(bits), "r"(counted) : "memory");
    } else {
      static_assert(sizeof(T) == 4);
      unsigned bits;
      memcpy(&bits, &value, 4);
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
                   :: "r"(to), "r"(bits), "r"(counted) : "memory");
    }
  }
}

// Wait until a turn is over that the block's own threads count.
__device__ __forceinline__ void await(Arrival* arrival, unsigned parity) {
  asm volatile("{\n\t.reg .pred there;\n"
               "again:\n\t"
               "mbarrier.try_wait.parity.shared::cta.b64 there, [%0], %1;\n\t"
               "@!there bra again;\n\t}"
               :: "r"(shared_address(arrival)), "r"(parity) : "memory");
}

// Barrier of the block's threads, after which also all that the cluster's blocks send is there.
template <int blocks>
__device__ __forceinline__ void receive(Arrival* arrival, unsigned parity) {
  __syncthreads();
  if constexpr (blocks > 1) {
    asm volatile("{\n\t.reg .pred there;\n"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 there, [%0], %1;\n\t"
                 "@!there bra again;\n\t}"
                 :: "r"(shared_address(arrival)), "r"(parity) : "memory");
  }
}

// Copy 16 bytes from device memory to shared memory in the background.
__device__ __forceinline__ void copy(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :: "r"(shared_address(to)), "l"(from) : "memory");
}
// An arrival once all that this thread copies is there.
__device__ __forceinline__ void arrive_with_copies(Arrival* arrival) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
               :: "r"(shared_address(arrival)) : "memory");
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

#if __CUDA_ARCH__ >= 900
constexpr int kLongestPrefetch = 1 << 30;
#else
constexpr int kLongestPrefetch = 128;
#endif

// Ask for `bytes` bytes from `address` to be brought from device memory to L2: more than a cache
// line only of and in 16-byte units, and at most `kLongestPrefetch`.
template <bool line>
__device__ __forceinline__ void prefetch_to_l2(const void* address, int bytes) {
  if constexpr (line) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
  } else {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes));
  }
}

}  // namespace cbam

#endif  // CBAM_DEPLOY_HOST
