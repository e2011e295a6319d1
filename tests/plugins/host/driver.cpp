// A stand-in for libcuda.so.1 whose GPUs are this machine: kernels run on C++20 threads.
//
// It has the functions that launching the gate's kernels needs, under the names by which
// cuda.bindings and the plugin library look them up, and is stricter than it has to be: no context,
// a module of another context, an unloaded one, too much shared memory, a grid that its clusters do
// not divide and a stream that it has not made are errors, and so is a byte written beside an
// allocation. KERNELS lists what it can launch, of DEFINITIONS: KERNEL(kernel, cluster, threads).
//
// Environment, where its GPU is to be another than an A100:
//   STAND_IN_GPUS=n             so many of them
//   STAND_IN_CAPABILITY=87      compute capability 8.7
//   STAND_IN_SHARED_BYTES=n     of one block, with opting in
//   STAND_IN_CLUSTER=n          blocks of the largest cluster that fits
//   STAND_IN_MULTIPROCESSORS=n  each of which runs one block at a time
//   STAND_IN_DRY=1              launches are checked, not carried out
//   STAND_IN_VERSION=12020      a driver of CUDA 12.2
//
// An image is anything that begins like an ELF file. One that goes on " sm_87" is refused as a GPU
// refuses foreign machine code; one that begins "// compute_87" stands for PTX.
#include "cuda_on_threads.hpp"

#include "fused.cuh"
#include "staged.cuh"

#include DEFINITIONS

#include <algorithm>
#include <functional>
#include <list>
#include <map>
#include <mutex>
#include <set>
#include <string>

namespace {

enum Result { kSuccess = 0, kInvalidValue = 1, kInvalidContext = 201, kNoBinary = 209,
              kInvalidPtx = 218, kInvalidHandle = 400, kNotFound = 500, kLaunchFailed = 719,
              kInvalidCluster = 912 };

int setting(const char* name, int otherwise) {
  const char* const text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

const int kGpus = setting("STAND_IN_GPUS", 1);
const int kCapability = setting("STAND_IN_CAPABILITY", 80);
const int kBlockSharedBytes = setting("STAND_IN_SHARED_BYTES", 163 * 1024);
const int kLargestCluster = setting("STAND_IN_CLUSTER", 8);
const int kMultiprocessors = setting("STAND_IN_MULTIPROCESSORS", 108);
const bool kDry = setting("STAND_IN_DRY", 0);
const int kVersion = setting("STAND_IN_VERSION", 13000);
// CUdevice_attribute: block's and multiprocessor's shared memory, multiprocessors, grid, capability.
// Those of an A100: its blocks run alone, where a cluster would take thousands of threads at a time.
const std::map<int, int> kAttributes = {{97, kBlockSharedBytes}, {81, 164 * 1024}, {16, kMultiprocessors},
                                        {5, 0x7fffffff}, {75, kCapability / 10},
                                        {76, kCapability % 10}};

struct Launch { int grid; std::size_t shared_bytes; void** parameters; };

struct Kernel {
  int cluster, threads;
  bool programmatic;
  std::function<void(const Kernel&, const Launch&)> run;
};

template <typename... Parameters, std::size_t... i>
auto runner(void (*kernel)(Parameters...), std::index_sequence<i...>) {
  return [kernel](const Kernel& of, const Launch& launch) {
    cuda_on_threads::launch(
        launch.grid, of.cluster, of.threads, launch.shared_bytes,
        [&] { kernel(*static_cast<Parameters*>(launch.parameters[i])...); });
  };
}

template <typename... Parameters>
auto runner(void (*kernel)(Parameters...)) {
  return runner(kernel, std::index_sequence_for<Parameters...>{});
}

const std::map<std::string, Kernel> kernels = {
#define KERNEL(name, cluster, threads) \
  {#name, {cluster, threads, std::strstr(#name, "_programmatic_") != nullptr, runner(name)}},
#include KERNELS
#undef KERNEL
};

struct Context { int device; };
struct Module;
struct Function { const Kernel* kernel; Module* module; int most_shared_bytes = 48 * 1024; };
struct Module { Context* context; std::list<Function> functions; };

constexpr std::size_t kFence = 64;
constexpr unsigned char kFenceByte = 0xa5;

// What the calling threads share, under one lock; a kernel runs without it.
std::mutex lock;
Context contexts[16];
std::list<Module> modules;
std::set<void*> streams;
std::map<unsigned long long, std::size_t> allocations;
thread_local std::vector<Context*> stack;

Context* current() { return stack.empty() ? nullptr : stack.back(); }

unsigned char* memory(unsigned long long address) {
  return reinterpret_cast<unsigned char*>(address);
}

// Whether [address, address + bytes) lies in one allocation.
bool allocated(unsigned long long address, std::size_t bytes) {
  const std::lock_guard held(lock);
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return false;
  const auto& [start, size] = *--after;
  return address + bytes <= start + size;
}

// The function behind a handle, if it may be used here and now; under the lock.
Function* function_of(void* handle) {
  for (Module& module : modules)
    for (Function& function : module.functions)
      if (&function == handle) return module.context == current() ? &function : nullptr;
  return nullptr;
}

int check_image(const char* image) {
  constexpr char kPtx[] = "// compute_";
  if (std::strncmp(image, kPtx, sizeof kPtx - 1) == 0)
    return std::atoi(image + sizeof kPtx - 1) <= kCapability ? kSuccess : kInvalidPtx;
  if (std::memcmp(image, "\x7f" "ELF", 4) != 0) return kInvalidValue;
  if (std::memcmp(image + 4, " sm_", 4) != 0) return kSuccess;
  const int made_for = std::atoi(image + 8);
  const bool runs = made_for / 10 == kCapability / 10 && made_for <= kCapability;
  return runs ? kSuccess : kNoBinary;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return kSuccess; }
int cuGetErrorName(int error, const char** name) {
  static const std::map<int, const char*> names = {
      {kSuccess, "CUDA_SUCCESS"}, {kInvalidValue, "CUDA_ERROR_INVALID_VALUE"},
      {kInvalidContext, "CUDA_ERROR_INVALID_CONTEXT"}, {kNoBinary, "CUDA_ERROR_NO_BINARY_FOR_GPU"},
      {kInvalidPtx, "CUDA_ERROR_INVALID_PTX"}, {kInvalidHandle, "CUDA_ERROR_INVALID_HANDLE"},
      {kNotFound, "CUDA_ERROR_NOT_FOUND"}, {kLaunchFailed, "CUDA_ERROR_LAUNCH_FAILED"},
      {kInvalidCluster, "CUDA_ERROR_INVALID_CLUSTER_SIZE"}};
  const auto found = names.find(error);
  *name = found == names.end() ? nullptr : found->second;
  return *name ? kSuccess : kInvalidValue;
}
int cuDriverGetVersion(int* version) {
  *version = kVersion;
  return kSuccess;
}
int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal >= 0 && ordinal < kGpus ? kSuccess : kInvalidValue;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  if (!kAttributes.contains(attribute)) return kInvalidValue;
  *value = kAttributes.at(attribute);
  return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
  const std::lock_guard held(lock);
  contexts[device].device = device;
  *context = &contexts[device];
  return kSuccess;
}
int cuCtxGetCurrent(void** context) {
  *context = current();
  return kSuccess;
}
int cuCtxGetDevice(int* device) {
  if (!current()) return kInvalidContext;
  *device = current()->device;
  return kSuccess;
}
int cuCtxSetCurrent(void* context) {
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(static_cast<Context*>(context));
  return kSuccess;
}
int cuCtxPushCurrent_v2(void* context) {
  if (!context) return kInvalidContext;
  stack.push_back(static_cast<Context*>(context));
  return kSuccess;
}
int cuCtxPopCurrent_v2(void** context) {
  if (!current()) return kInvalidContext;
  if (context) *context = current();
  stack.pop_back();
  return kSuccess;
}
int cuCtxSynchronize() { return current() ? kSuccess : kInvalidContext; }
int cuThreadExchangeStreamCaptureMode(int*) { return kSuccess; }

int cuStreamCreate(void** stream, unsigned) {
  if (!current()) return kInvalidContext;
  const std::lock_guard held(lock);
  *stream = new int(current()->device);
  streams.insert(*stream);
  return kSuccess;
}
int cuStreamSynchronize(void* stream) {
  const std::lock_guard held(lock);
  return !stream || streams.contains(stream) ? kSuccess : kInvalidHandle;
}
int cuStreamDestroy_v2(void* stream) {
  const std::lock_guard held(lock);
  if (!streams.erase(stream)) return kInvalidHandle;
  delete static_cast<int*>(stream);
  return kSuccess;
}

int cuModuleLoadData(void** module, const void* image) {
  if (!current()) return kInvalidContext;
  if (const int bad = check_image(static_cast<const char*>(image))) return bad;
  const std::lock_guard held(lock);
  *module = &modules.emplace_back(Module{current(), {}});
  return kSuccess;
}
int cuModuleUnload(void* which) {
  const std::lock_guard held(lock);
  const auto found = std::find_if(modules.begin(), modules.end(),
                                  [&](const Module& module) { return &module == which; });
  if (found == modules.end()) return kInvalidHandle;
  if (found->context != current()) return kInvalidContext;
  modules.erase(found);
  return kSuccess;
}
int cuModuleGetFunction(void** function, void* which, const char* name) {
  const std::lock_guard held(lock);
  const auto kernel = kernels.find(name);
  for (Module& module : modules) {
    if (&module != which) continue;
    if (kernel == kernels.end()) return kNotFound;
    *function = &module.functions.emplace_back(Function{&kernel->second, &module});
    return kSuccess;
  }
  return kInvalidHandle;
}
int cuFuncSetAttribute(void* handle, int attribute, int value) {
  constexpr int kMaxDynamicSharedSizeBytes = 8;
  const std::lock_guard held(lock);
  Function* const function = function_of(handle);
  if (!function) return kInvalidHandle;
  if (attribute != kMaxDynamicSharedSizeBytes || value > kBlockSharedBytes) return kInvalidValue;
  function->most_shared_bytes = value;
  return kSuccess;
}

// CUlaunchAttribute and CUlaunchConfig. A kernel's cluster is fixed in the kernel; an attribute may
// name it again.
struct LaunchAttribute { int id; alignas(8) unsigned value[16]; };
struct LaunchConfig {
  unsigned grid, grid_y, grid_z, threads, block_y, block_z, shared_bytes;
  void* stream;
  const LaunchAttribute* attributes;
  unsigned attribute_count;
};
bool names_cluster(const LaunchAttribute& attribute, int blocks) {
  constexpr int kClusterDimension = 4;
  return attribute.id == kClusterDimension && static_cast<int>(attribute.value[0]) == blocks &&
         attribute.value[1] == 1 && attribute.value[2] == 1;
}
int cuOccupancyMaxActiveClusters(int* clusters, void* handle, const LaunchConfig* config) {
  const std::lock_guard held(lock);
  const Function* const function = function_of(handle);
  if (!function) return kInvalidHandle;
  const Kernel& kernel = *function->kernel;
  if (config->grid % kernel.cluster || !config->grid || config->attribute_count > 1 ||
      (config->attribute_count && !names_cluster(*config->attributes, kernel.cluster)) ||
      static_cast<int>(config->threads) != kernel.threads ||
      static_cast<int>(config->shared_bytes) > function->most_shared_bytes)
    return kInvalidValue;
  if (kernel.cluster == 1 || kCapability < 90) return kInvalidCluster;
  *clusters = kernel.cluster <= kLargestCluster ? kMultiprocessors / kernel.cluster : 0;
  return kSuccess;
}
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads,
                                                std::size_t shared_bytes) {
  const std::lock_guard held(lock);
  const Function* const function = function_of(handle);
  if (!function) return kInvalidHandle;
  if (threads != function->kernel->threads ||
      static_cast<int>(shared_bytes) > function->most_shared_bytes)
    return kInvalidValue;
  *blocks = 1;
  return kSuccess;
}
// Kernels that may start before the launch in front of them has ended have names that say so: they
// have to be launched like that where the driver can, and no others may be.
int checked_launch(void* handle, const LaunchConfig& config, bool programmatic, void** parameters) {
  if (!current()) return kInvalidContext;
  const Kernel* kernel;
  {
    const std::lock_guard held(lock);
    const Function* const function = function_of(handle);
    if (!function || (config.stream && !streams.contains(config.stream))) return kInvalidHandle;
    kernel = function->kernel;
    if (config.grid_y != 1 || config.grid_z != 1 || config.block_y != 1 || config.block_z != 1 ||
        !config.grid || config.grid > 0x7fffffff ||
        static_cast<int>(config.threads) != kernel->threads || config.grid % kernel->cluster ||
        static_cast<int>(config.shared_bytes) > function->most_shared_bytes)
      return kInvalidValue;
    if (kernel->cluster > kLargestCluster) return kInvalidCluster;
    const bool allowed = kCapability >= 90 && kVersion >= 12030;
    if (programmatic ? !kernel->programmatic || !allowed : kernel->programmatic && allowed)
      return kInvalidValue;
  }
  if (!kDry) kernel->run(*kernel, {static_cast<int>(config.grid), config.shared_bytes, parameters});
  return kSuccess;
}
int cuLaunchKernelEx(const LaunchConfig* config, void* handle, void** parameters, void** extra) {
  constexpr int kProgrammaticStreamSerialization = 6;
  const LaunchAttribute* const attribute = config->attributes;
  if (extra || config->attribute_count != 1 || attribute->value[0] != 1 ||
      attribute->id != kProgrammaticStreamSerialization)
    return kInvalidValue;
  return checked_launch(handle, *config, true, parameters);
}
int cuLaunchKernel(void* handle, unsigned grid, unsigned grid_y, unsigned grid_z, unsigned threads,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                   void** parameters, void** extra) {
  if (extra) return kInvalidValue;
  const LaunchConfig config{grid,    grid_y,  grid_z,       threads, block_y,
                            block_z, shared_bytes, stream, nullptr, 0};
  return checked_launch(handle, config, false, parameters);
}

int cuMemAlloc_v2(unsigned long long* address, std::size_t bytes) {
  if (!current()) return kInvalidContext;
  unsigned char* start = cuda_on_threads::allocate(bytes + 2 * kFence).release();
  std::memset(start, kFenceByte, bytes + 2 * kFence);
  *address = reinterpret_cast<unsigned long long>(start + kFence);
  const std::lock_guard held(lock);
  allocations[*address] = bytes;
  return kSuccess;
}
int cuMemFree_v2(unsigned long long address) {
  const std::lock_guard held(lock);
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
