#include "driver.h"

#include <dlfcn.h>

#include <type_traits>

namespace cbam_deploy::cuda {
namespace {

struct Loaded {
  Driver driver{};
  std::string fault;

  Loaded() {
    void* const library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      char const* const reason = dlerror();
      fault = std::string("NVIDIA's driver cannot be loaded: ") + (reason ? reason : "?");
      return;
    }
    auto const find = [&](auto& function, char const* name, bool needed = true) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function && needed) fault = std::string("NVIDIA's driver has no ") + name;
    };
#define FIND(name) find(driver.name, #name)
    FIND(cuInit);
    FIND(cuCtxGetCurrent);
    FIND(cuCtxPushCurrent_v2);
    FIND(cuCtxPopCurrent_v2);
    FIND(cuCtxGetDevice);
    FIND(cuDeviceGetAttribute);
    FIND(cuModuleLoadData);
    FIND(cuModuleUnload);
    FIND(cuModuleGetFunction);
    FIND(cuFuncSetAttribute);
    FIND(cuLaunchKernel);
    FIND(cuOccupancyMaxActiveBlocksPerMultiprocessor);
    FIND(cuGetErrorName);
    FIND(cuThreadExchangeStreamCaptureMode);
#undef FIND
    find(driver.cuOccupancyMaxActiveClusters, "cuOccupancyMaxActiveClusters", false);
    find(driver.cuLaunchKernelEx, "cuLaunchKernelEx", false);
    int (*version_of)(int*) = nullptr;
    find(version_of, "cuDriverGetVersion", false);
    if (fault.empty())
      if (int const result = driver.cuInit(0)) fault = driver.failure("cuInit", result);
    int version = 0;
    if (!version_of || version_of(&version) || version < kProgrammaticCapture)
      driver.cuLaunchKernelEx = nullptr;
  }
};

}  // namespace

Driver const* Driver::get(std::string& fault) {
  static auto const* const loaded = new Loaded;  // gates may outlive what static objects do
  if (loaded->fault.empty()) return &loaded->driver;
  fault = loaded->fault;
  return nullptr;
}

std::string Driver::failure(char const* function, int result) const {
  char const* name = nullptr;
  if (cuGetErrorName(result, &name) || !name) name = "an unknown error";
  return std::string(function) + " answers " + name + " (" + std::to_string(result) + ")";
}

}  // namespace cbam_deploy::cuda
