// The CUDA driver that dlopen finds, a GPU's or a stand-in, and device memory.
#pragma once

#include <dlfcn.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <vector>

namespace host {

using Bytes = std::vector<char>;

inline void require(bool holds, std::string const& what) {
  if (!holds) throw std::runtime_error(what);
}

// The driver's functions by name.
class Cuda {
 public:
  template <typename... Parameters>
  void operator()(char const* name, Parameters... parameters) const {
    auto const function = reinterpret_cast<int (*)(Parameters...)>(dlsym(library_, name));
    require(function != nullptr, std::string("the driver has no ") + name);
    int const result = function(parameters...);
    require(result == 0, std::string(name) + " answers " + std::to_string(result));
  }

  // The context of GPU 0, current from here on, unless another was chosen.
  void begin() {
    if (!context_) choose(0);
  }

  void choose(int gpu) {
    if (!library_) library_ = dlopen("libcuda.so.1", RTLD_NOW);
    require(library_ != nullptr, "no libcuda.so.1");
    int device = 0;
    (*this)("cuInit", 0U);
    (*this)("cuDeviceGet", &device, gpu);
    (*this)("cuDevicePrimaryCtxRetain", &context_, device);
    enter();
  }

  void enter() const { (*this)("cuCtxSetCurrent", context_); }
  void leave() const { (*this)("cuCtxSetCurrent", static_cast<void*>(nullptr)); }

 private:
  void* library_ = nullptr;
  void* context_ = nullptr;
};
inline Cuda cuda;

// A stream that waits for no other.
class Stream {
 public:
  Stream() { cuda("cuStreamCreate", &handle_, 1U); }
  Stream(Stream const&) = delete;
  Stream& operator=(Stream const&) = delete;
  ~Stream() { cuda("cuStreamDestroy_v2", handle_); }

  void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// Device memory of exactly the size that is asked for, all bits set.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    if (bytes) cuda("cuMemAlloc_v2", &address_, bytes);
    poison();
  }
  explicit Memory(Bytes const& from) : Memory(from.size()) {
    if (bytes_) cuda("cuMemcpyHtoD_v2", address_, static_cast<void const*>(from.data()), bytes_);
  }
  Memory(Memory&& other) noexcept : address_(other.address_), bytes_(other.bytes_) {
    other.address_ = 0;
  }

  void poison() const {
    if (bytes_) cuda("cuMemsetD8_v2", address_, static_cast<unsigned char>(0xff), bytes_);
  }
  Bytes copy() const {
    Bytes to(bytes_);
    if (bytes_) cuda("cuMemcpyDtoH_v2", static_cast<void*>(to.data()), address_, bytes_);
    return to;
  }
  // Fails where somebody wrote beside it, if the driver notices.
  void free() {
    if (bytes_) cuda("cuMemFree_v2", address_);
    address_ = 0;
  }
  void* address() const { return reinterpret_cast<void*>(address_); }

 private:
  unsigned long long address_ = 0;
  std::size_t bytes_;
};

}  // namespace host
