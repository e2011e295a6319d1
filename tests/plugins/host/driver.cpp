// A stand-in for libcuda.so.1 whose one GPU is this machine: kernels run on C++20 threads.
//
// It has the functions that launching the gate's kernels needs, under the names by which
// cuda.bindings looks them up, and is stricter than it has to be: no context, too much shared
// memory and a grid that its clusters do not divide are errors, and so is a byte written beside an
// allocation. KERNELS lists what it can launch, of DEFINITIONS: KERNEL(kernel, cluster, threads).
#include "cuda_on_threads.hpp"

#include "fused.cuh"
#include "staged.cuh"

#include DEFINITIONS

#include <algorithm>
#include <functional>
#include <map>
#include <string>

namespace {

enum Result { kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kNotFound = 500,
              kLaunchFailed = 719 };

struct Launch { int grid; std::size_t shared_bytes; void** parameters; };

struct Function {
  int cluster, threads;
  std::function<void(const Function&, const Launch&)> run;
  int most_shared_bytes = 48 * 1024;
};

template <typename... Parameters, std::size_t... i>
auto runner(void (*kernel)(Parameters...), std::index_sequence<i...>) {
  return [kernel](const Function& function, const Launch& launch) {
    cuda_on_threads::launch(
        launch.grid, function.cluster, function.threads, launch.shared_bytes,
        [&] { kernel(*static_cast<Parameters*>(launch.parameters[i])...); });
  };
}

template <typename... Parameters>
auto runner(void (*kernel)(Parameters...)) {
  return runner(kernel, std::index_sequence_for<Parameters...>{});
}

std::map<std::string, Function> functions = {
#define KERNEL(name, cluster, threads) {#name, {cluster, threads, runner(name)}},
#include KERNELS
#undef KERNEL
};

// CUdevice_attribute: block's and multiprocessor's shared memory, multiprocessors, grid, capability.
// Those of an A100: its blocks run alone, where a cluster would take thousands of threads at a time.
constexpr int kBlockSharedBytes = 163 * 1024;
const std::map<int, int> kAttributes = {
    {97, kBlockSharedBytes}, {81, 164 * 1024}, {16, 108}, {5, 0x7fffffff}, {75, 8}, {76, 0}};

constexpr std::size_t kFence = 64;
constexpr unsigned char kFenceByte = 0xa5;
std::map<unsigned long long, std::size_t> allocations;
int context_of_device, module_of_image;
thread_local void* current;

unsigned char* memory(unsigned long long address) {
  return reinterpret_cast<unsigned char*>(address);
}

// Whether [address, address + bytes) lies in one allocation.
bool allocated(unsigned long long address, std::size_t bytes) {
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return false;
  const auto& [start, size] = *--after;
  return address + bytes <= start + size;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? kSuccess : kInvalidValue;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (!kAttributes.contains(attribute)) return kInvalidValue;
  *value = kAttributes.at(attribute);
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &context_of_device;
  return kSuccess;
}
int cuCtxGetCurrent(void** context) {
  *context = current;
  return kSuccess;
}
int cuCtxSetCurrent(void* context) {
  current = context;
  return kSuccess;
}
int cuCtxSynchronize() { return current ? kSuccess : kInvalidContext; }
int cuThreadExchangeStreamCaptureMode(int*) { return kSuccess; }

int cuModuleLoadData(void** module, const void* image) {
  if (!current) return kInvalidContext;
  *module = &module_of_image;
  return std::memcmp(image, "\x7f" "ELF", 4) == 0 ? kSuccess : kInvalidValue;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
  const auto found = functions.find(name);
  if (module != &module_of_image || found == functions.end()) return kNotFound;
  *function = &found->second;
  return kSuccess;
}
int cuFuncSetAttribute(void* function, int attribute, int value) {
  constexpr int kMaxDynamicSharedSizeBytes = 8;
  if (attribute != kMaxDynamicSharedSizeBytes || value > kBlockSharedBytes) return kInvalidValue;
  static_cast<Function*>(function)->most_shared_bytes = value;
  return kSuccess;
}
int cuLaunchKernel(void* which, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned threads,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                   void** parameters, void** extra) {
  const auto& function = *static_cast<Function*>(which);
  if (!current) return kInvalidContext;
  if (grid_y != 1 || grid_z != 1 || block_y != 1 || block_z != 1 || stream || extra ||
      static_cast<int>(threads) != function.threads || grid % function.cluster ||
      static_cast<int>(shared_bytes) > function.most_shared_bytes)
    return kInvalidValue;
  function.run(function, {static_cast<int>(grid), shared_bytes, parameters});
  return kSuccess;
}

int cuMemAlloc_v2(unsigned long long* address, std::size_t bytes) {
  if (!current) return kInvalidContext;
  unsigned char* start = cuda_on_threads::allocate(bytes + 2 * kFence).release();
  std::memset(start, kFenceByte, bytes + 2 * kFence);
  *address = reinterpret_cast<unsigned long long>(start + kFence);
  allocations[*address] = bytes;
  return kSuccess;
}
int cuMemFree_v2(unsigned long long address) {
  const auto found = allocations.find(address);
  if (found == allocations.end()) return kInvalidValue;
  unsigned char* const start = memory(address) - kFence;
  unsigned char* const end = memory(address) + found->second;
  const auto intact = [](unsigned char byte) { return byte == kFenceByte; };
  const bool whole = std::all_of(start, start + kFence, intact) &&
                     std::all_of(end, end + kFence, intact);
  allocations.erase(found);
  std::free(start);
  return whole ? kSuccess : kLaunchFailed;
}
int cuMemsetD8_v2(unsigned long long address, unsigned char value, std::size_t bytes) {
  if (!allocated(address, bytes)) return kInvalidValue;
  std::memset(memory(address), value, bytes);
  return kSuccess;
}
int cuMemcpyHtoD_v2(unsigned long long to, const void* from, std::size_t bytes) {
  if (!allocated(to, bytes)) return kInvalidValue;
  std::memcpy(memory(to), from, bytes);
  return kSuccess;
}
int cuMemcpyDtoH_v2(void* to, unsigned long long from, std::size_t bytes) {
  if (!allocated(from, bytes)) return kInvalidValue;
  std::memcpy(to, memory(from), bytes);
  return kSuccess;
}

}  // extern "C"
