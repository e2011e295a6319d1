// Stands in for libnvinfer.so.11. The plugin registry is that of TensorRT-RTX's library, a relative
// with the same interface; everything else of TensorRT is missing.
#include <dlfcn.h>
#include <stddef.h>

void* getPluginRegistry(void) {
  void* library = dlopen(REGISTRY_LIBRARY, RTLD_NOW);
  void* (*function)(void) = library ? (void* (*)(void))dlsym(library, "getPluginRegistry") : NULL;
  return function ? function() : NULL;
}

void* getBuilderPluginRegistry(int capability) { return NULL; }
void* createInferBuilder_INTERNAL(void* logger, int version) { return NULL; }
void* createInferRefitter_INTERNAL(void* engine, void* logger, int version) { return NULL; }
void* createInferRuntime_INTERNAL(void* logger, int version) { return NULL; }
