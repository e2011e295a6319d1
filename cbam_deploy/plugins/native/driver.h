// The few functions of the CUDA driver that launching kernels takes, found when they are first
// needed: the library itself links no CUDA. https://docs.nvidia.com/cuda/cuda-driver-api
#pragma once

#include <cstddef>
#include <string>

extern "C" {
struct CUctx_st;
struct CUmod_st;
struct CUfunc_st;
struct CUstream_st;
}

namespace cbam_deploy::cuda {

using Context = CUctx_st*;
using Module = CUmod_st*;
using Function = CUfunc_st*;
using Stream = CUstream_st*;

enum Attribute {
  kCapabilityMajor = 75,
  kCapabilityMinor = 76,
  kMultiprocessors = 16,
  kOptInSharedBytes = 97,  // of one block
};
// CUfunction_attribute
inline constexpr int kMaxDynamicSharedBytes = 8;
inline constexpr int kNonPortableClusterSizeAllowed = 14;
inline constexpr int kPortableCluster = 8;
inline constexpr int kDefaultSharedBytes = 48 * 1024;

// CUlaunchAttribute and CUlaunchConfig.
struct LaunchAttribute {
  int id;
  char padding[4];
  unsigned value[16];
};
inline constexpr int kClusterDimension = 4;
inline constexpr int kProgrammaticStreamSerialization = 6;
inline constexpr int kProgrammaticCapture = 12030;  // the first driver whose graphs hold such launches

struct LaunchConfig {
  unsigned grid[3];
  unsigned block[3];
  unsigned shared_bytes;
  Stream stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};

struct Driver {
  int (*cuInit)(unsigned);
  int (*cuCtxGetCurrent)(Context*);
  int (*cuCtxPushCurrent_v2)(Context);
  int (*cuCtxPopCurrent_v2)(Context*);
  int (*cuCtxGetDevice)(int*);
  int (*cuDeviceGetAttribute)(int*, int, int);
  int (*cuModuleLoadData)(Module*, void const*);
  int (*cuModuleUnload)(Module);
  int (*cuModuleGetFunction)(Function*, Module, char const*);
  int (*cuFuncSetAttribute)(Function, int, int);
  int (*cuLaunchKernel)(Function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, Stream, void**, void**);
  int (*cuLaunchKernelEx)(LaunchConfig const*, Function, void**, void**);  // null before CUDA 12.3
  int (*cuGetErrorName)(int, char const**);
  int (*cuThreadExchangeStreamCaptureMode)(int*);
  int (*cuOccupancyMaxActiveBlocksPerMultiprocessor)(int*, Function, int, std::size_t);
  int (*cuOccupancyMaxActiveClusters)(int*, Function, LaunchConfig const*);  // null before CUDA 11.8

  // Null, and why in `fault`, where there is no usable driver.
  static Driver const* get(std::string& fault);

  // "cuModuleLoadData answers CUDA_ERROR_..."
  std::string failure(char const* function, int result) const;
};

}  // namespace cbam_deploy::cuda
