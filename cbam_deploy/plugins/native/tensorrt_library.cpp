#include "tensorrt_library.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdio>

namespace cbam_deploy::tensorrt {
namespace {

constexpr char const* kLibraries[] = {"libnvinfer.so.11", "libnvinfer.so.10"};

std::atomic<bool> registered{false};

// A function of the libnvinfer that is in the process. Its name is asked for too: a library that
// was loaded with RTLD_LOCAL is not seen otherwise.
void* find(char const* name) {
  for (char const* library : kLibraries)
    if (void* const handle = dlopen(library, RTLD_NOW | RTLD_NOLOAD)) {
      void* const function = dlsym(handle, name);
      dlclose(handle);  // one count of several: it stays
      if (function) return function;
    }
  return dlsym(RTLD_DEFAULT, name);
}

// Null where there is no TensorRT, or one whose interface is not known.
Places const* places() {
  auto const version = reinterpret_cast<std::int32_t (*)()>(find("getInferLibVersion"));
  switch (version ? version() / 10000 : 0) {
    case 10: return &kPlaces10;
    case 11: return &kPlaces11;
    default: return nullptr;
  }
}

void* object(char const* function) {
  auto const get = reinterpret_cast<void* (*)()>(find(function));
  return get ? get() : nullptr;
}

}  // namespace

void log_error(std::string const& text) noexcept {
  auto const* const known = places();
  void* const logger = known ? object("getLogger") : nullptr;
  if (logger)
    call<void>(logger, known->log, kError, text.c_str());
  else
    std::fprintf(stderr, "%s\n", text.c_str());
}

void register_creator(nvinfer1::IPluginCreatorV3One& creator) noexcept {
  if (!find("getInferLibVersion"))
    for (char const* library : kLibraries)
      if (dlopen(library, RTLD_NOW)) break;
  auto const* const known = places();
  void* const registry = known ? object("getPluginRegistry") : nullptr;
  if (!registry) return;
  char const* const name_space = creator.getPluginNamespace();
  if (!call<void*>(registry, known->get_creator, creator.getPluginName(),
                   creator.getPluginVersion(), name_space))
    registered = call<bool, nvinfer1::IPluginCreatorInterface&>(
        registry, known->register_creator, creator, name_space);
}

void deregister_creator(nvinfer1::IPluginCreatorV3One& creator) noexcept {
  if (!registered.exchange(false)) return;
  auto const* const known = places();
  void* const registry = known ? object("getPluginRegistry") : nullptr;
  if (registry)
    call<bool, nvinfer1::IPluginCreatorInterface const&>(registry, known->deregister_creator,
                                                         creator);
}

}  // namespace cbam_deploy::tensorrt
