// CUDA on C++20 threads: what the kernels of cbam_deploy/plugins/kernels need to run on a host.
//
// One std::thread per CUDA thread, a barrier for __syncthreads, another for the cluster barrier, a
// count of bytes for what blocks send each other and what is copied in the background, one
// allocation of exactly the launch's size for each block's shared memory, filled with NaN. So the
// sanitizers see what a GPU would do: AddressSanitizer a step outside a buffer or shared memory,
// ThreadSanitizer two threads on one address without a barrier between. Warp shuffles exchange
// values without ordering memory, as on the GPU: under ThreadSanitizer their atomics are relaxed,
// so that a missing barrier is not hidden by a shuffle nearby.
//
// A warp has CBAM_HOST_WARP lanes (default 8): the kernels take its size from `kWarp`, and blocks
// of 16 or 32 threads then have several warps.
#pragma once

#include <algorithm>
#include <atomic>
#include <barrier>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <latch>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include <pthread.h>

#define CBAM_DEPLOY_HOST
#define CBAM_CLUSTER(blocks)
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

#ifndef CBAM_HOST_WARP
#define CBAM_HOST_WARP 8
#endif

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };

struct __half { _Float16 value; };
inline float __half2float(__half v) { return static_cast<float>(v.value); }
inline __half __float2half_rn(float v) { return {static_cast<_Float16>(v)}; }

struct __nv_bfloat16 { std::uint16_t bits; };
inline float __bfloat162float(__nv_bfloat16 v) {
  return std::bit_cast<float>(std::uint32_t{v.bits} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
  const auto bits = std::bit_cast<std::uint32_t>(v);
  if (std::isnan(v)) return {0x7fff};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __int_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selectors) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= unsigned(bytes >> 8 * (selectors >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
  return std::max(a >> 16, b >> 16) << 16 | std::max(a & 0xffff, b & 0xffff);
}
inline int __dp4a(int a, int b, int sum) {
  const auto byte = [](int word, int i) { return static_cast<signed char>(word >> 8 * i); };
  for (int i = 0; i < 4; ++i) sum += byte(a, i) * byte(b, i);
  return sum;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
template <typename T>
T __ldg(const T* from) { return *from; }

namespace cuda_on_threads {

#ifdef __SANITIZE_THREAD__
constexpr auto kPublish = std::memory_order_relaxed, kObserve = std::memory_order_relaxed;
#else
constexpr auto kPublish = std::memory_order_acq_rel, kObserve = std::memory_order_acquire;
#endif

// Exchange between the lanes of a warp. Two sets of slots: a lane that runs ahead to the next
// exchange does not overwrite what a slow one has yet to read, and cannot get further ahead.
class Warp {
 public:
  float exchange(int lane, int other, float v) {
    const unsigned round = rounds_[lane]++;
    slots_[round % 2][lane].store(v, std::memory_order_relaxed);
    const unsigned all = (round + 1) * CBAM_HOST_WARP;
    const unsigned now = arrived_.fetch_add(1, kPublish) + 1;
#ifdef __SANITIZE_THREAD__
    // libstdc++ waits by way of atomics that all waiting threads share, which would order memory.
    while (arrived_.load(kObserve) < all) std::this_thread::yield();
    static_cast<void>(now);
#else
    if (now == all) arrived_.notify_all();
    for (unsigned seen; (seen = arrived_.load(kObserve)) < all;) arrived_.wait(seen, kObserve);
#endif
    return slots_[round % 2][other].load(std::memory_order_relaxed);
  }

 private:
  std::atomic<unsigned> arrived_ = 0;
  unsigned rounds_[CBAM_HOST_WARP] = {};
  std::atomic<float> slots_[2][CBAM_HOST_WARP];
};

// Exactly `bytes` bytes at a multiple of 16, all bits set: a NaN in every floating type.
struct Free { void operator()(unsigned char* p) const { std::free(p); } };
using Memory = std::unique_ptr<unsigned char, Free>;
inline Memory allocate(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes)) std::abort();
  std::memset(memory, 0xff, bytes);
  return Memory(static_cast<unsigned char*>(memory));
}

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "%s\n", why);
  std::abort();
}

// An mbarrier: arrivals in every turn, those and the bytes that are still to come in this one, and
// which turn it is. More bytes may have come than have been announced so far. Counting orders
// memory.
struct Turn {
  std::uint64_t arrivals : 20, to_arrive : 20;
  std::int64_t bytes : 23;
  std::uint64_t parity : 1;

  static Turn of(unsigned long long state) { return std::bit_cast<Turn>(state); }
};
static_assert(sizeof(Turn) == 8);
inline void count(unsigned long long& state, int arrivals, int bytes) {
  const std::atomic_ref counted(state);
  for (auto before = counted.load();;) {
    Turn now = Turn::of(before);
    if (now.to_arrive < unsigned(arrivals)) fail("more arrivals than there are to be");
    now.to_arrive -= arrivals, now.bytes += bytes;
    if (now.to_arrive == 0 && now.bytes < 0) fail("more bytes came than were expected");
    if (now.to_arrive == 0 && now.bytes == 0) now.to_arrive = now.arrivals, now.parity ^= 1;
    if (counted.compare_exchange_weak(before, std::bit_cast<unsigned long long>(now))) return;
  }
}
inline void wait(unsigned long long& state, unsigned parity) {
  using namespace std::chrono_literals;
  for (auto waited = 0us; Turn::of(std::atomic_ref(state).load()).parity == parity;
       waited += 100us) {
    if (waited > 60s) fail("less came than was expected");
    std::this_thread::sleep_for(100us);
  }
}

// For the threads of a block. std::barrier would order memory between blocks as well.
class Barrier {
 public:
  explicit Barrier(int threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  Barrier(const Barrier&) = delete;
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  void arrive_and_wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

struct Block {
  Block(int threads, std::size_t shared_bytes, int number)
      : number(number), barrier(threads), warps(threads / CBAM_HOST_WARP),
        shared(allocate(shared_bytes)) {}

  int number;
  bool announced = false;  // not atomic: who asks without a barrier in between is in a race
  Barrier barrier;
  std::vector<Warp> warps;
  Memory shared;
};

struct Cluster {
  explicit Cluster(int threads) : barrier(threads) {}
  std::deque<Block> blocks;
  std::barrier<> barrier;
};

// The barrier that the kernels leave out, of those that a test has given numbers; -1: none.
inline const int omitted_barrier =
    std::getenv("CBAM_HOST_OMIT") ? std::atoi(std::getenv("CBAM_HOST_OMIT")) : -1;

struct Index { int x; };
inline thread_local Cluster* cluster;
inline thread_local Block* block;
inline thread_local int rank;
inline thread_local std::optional<std::barrier<>::arrival_token> announcement;
inline thread_local std::vector<std::pair<void*, const void*>> copies;
inline thread_local std::vector<std::jthread> background;

// The end of the launch in front of the one that a thread belongs to, where that did not wait.
inline thread_local std::latch* previous_launch = nullptr;

// Launches one after the other, but for those that are programmatic: they run at the same time as
// what is in front of them, from the start.
class Stream {
 public:
  template <class Run>
  void enqueue(bool programmatic, Run run) {
    if (!programmatic) wait();
    std::latch* const before = programmatic && !ends_.empty() ? &ends_.back() : nullptr;
    std::latch& end = ends_.emplace_back(1);
    running_.emplace_back([before, &end, run] {
      previous_launch = before;
      run();
      end.count_down();
    });
  }
  void wait() { running_.clear(); }

 private:
  std::deque<std::latch> ends_;
  std::vector<std::jthread> running_;
};

// Run `kernel`, a callable, over a grid; clusters one after the other.
template <class Kernel>
void launch(int grid, int cluster_size, int threads, std::size_t shared_bytes, Kernel kernel);

}  // namespace cuda_on_threads

inline thread_local cuda_on_threads::Index threadIdx, blockIdx, gridDim;
inline void __syncthreads() { cuda_on_threads::block->barrier.arrive_and_wait(); }

namespace cbam {

constexpr int kWarp = CBAM_HOST_WARP;

inline unsigned char* dynamic_shared() { return cuda_on_threads::block->shared.get(); }

inline float shuffle_xor(float v, int mask) {
  const int lane = threadIdx.x % kWarp;
  return cuda_on_threads::block->warps[threadIdx.x / kWarp].exchange(lane, lane ^ mask, v);
}

constexpr bool kOverlaps = true;
inline void allow_next_launch() {}
inline void await_previous_launch() {
  if (cuda_on_threads::previous_launch) cuda_on_threads::previous_launch->wait();
}

template <int blocks>
int cluster_rank() { return cuda_on_threads::rank; }

inline int opaque(int v) { return v; }

struct alignas(8) Arrival { unsigned long long state; };

inline void prepare(Arrival* arrival, int arrivals) {
  if (arrivals < 1) cuda_on_threads::fail("a barrier for nobody");
  const auto count = static_cast<std::uint64_t>(arrivals);
  arrival->state = std::bit_cast<unsigned long long>(cuda_on_threads::Turn{count, count, 0, 0});
}
template <int blocks>
void prepared() {}
inline void expect(Arrival* arrival, int bytes) {
  cuda_on_threads::count(arrival->state, 1, bytes);
}

template <int blocks>
void announce() {
  if constexpr (blocks == 1) return;
  if (threadIdx.x == 0) cuda_on_threads::block->announced = true;
  cuda_on_threads::announcement = cuda_on_threads::cluster->barrier.arrive();
}

template <int blocks>
void await_peers() {
  if constexpr (blocks == 1) __syncthreads();
  else cuda_on_threads::cluster->barrier.wait(std::move(*cuda_on_threads::announcement));
}

template <int blocks, typename T>
void send(T* own, int rank, const T& value, Arrival* arrival) {
  if constexpr (blocks == 1) {
    *own = value;
  } else {
    const cuda_on_threads::Block& to = cuda_on_threads::cluster->blocks[rank];
    if (!to.announced) cuda_on_threads::fail("sent to a peer before it runs");
    const auto peer = [&](auto* here) {
      const auto offset = reinterpret_cast<unsigned char*>(here) - dynamic_shared();
      return reinterpret_cast<decltype(here)>(to.shared.get() + offset);
    };
    *peer(own) = value;
    cuda_on_threads::count(peer(arrival)->state, 0, -int(sizeof(T)));
  }
}

inline void await(Arrival* arrival, unsigned parity) {
  cuda_on_threads::wait(arrival->state, parity);
}

template <int blocks>
void receive(Arrival* arrival, unsigned parity) {
  __syncthreads();
  if constexpr (blocks > 1) await(arrival, parity);
}

constexpr bool kCopies = true;

// Copies in the background are done by threads of their own: whoever reads without waiting for one
// is in a race with it.
inline void copy(void* to, const void* from) {
  const auto aligned = [](const void* at) { return reinterpret_cast<std::size_t>(at) % 16 == 0; };
  if (!aligned(to) || !aligned(from)) cuda_on_threads::fail("a copy that is not aligned");
  cuda_on_threads::copies.emplace_back(to, from);
}
inline void arrive_with_copies(Arrival* arrival) {
  cuda_on_threads::background.emplace_back([arrival, copies = std::move(cuda_on_threads::copies)] {
    for (const auto& [to, from] : copies) std::memcpy(to, from, 16);
    cuda_on_threads::count(arrival->state, 1, 0);
  });
  cuda_on_threads::copies.clear();
}

inline float max_or_nan(float a, float b) { return a > b || a != a ? a : b; }

inline unsigned saturated_bytes(int a, int b, int c, int d) {
  unsigned bytes = 0;
  for (int v : {d, c, b, a}) bytes = bytes << 8 | (std::clamp(v, -128, 127) & 0xff);
  return bytes;
}

constexpr int kLongestPrefetch = 1 << 30;

// A prefetch outside the tensor is harmless on the GPU, but a mistake: let the sanitizer see it.
template <bool line>
void prefetch_to_l2(const void* address, int bytes) {
  const auto* const from = static_cast<const volatile char*>(address);
  [[maybe_unused]] const volatile char first = from[0], last = from[line ? 0 : bytes - 1];
}

}  // namespace cbam

template <class Kernel>
void cuda_on_threads::launch(int grid, int cluster_size, int threads, std::size_t shared_bytes,
                             Kernel kernel) {
  for (int first = 0; first < grid; first += cluster_size) {
    Cluster now(threads * cluster_size);
    for (int i = 0; i < cluster_size; ++i)
      now.blocks.emplace_back(threads, shared_bytes, first + i);
    std::vector<std::jthread> running;
    std::latch* const before = previous_launch;
    // The first one of a block, which prepares its barriers, last: who does not wait is early.
    for (int i = threads * cluster_size - 1; i >= 0; --i) {
      running.emplace_back([&, i] {
        previous_launch = before;
        cluster = &now, rank = i / threads, block = &now.blocks[rank];
        gridDim.x = grid, blockIdx.x = block->number, threadIdx.x = i % threads;
        kernel();
        background.clear();
      });
    }
  }
}
