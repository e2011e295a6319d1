// Stands in for libnvinfer.so.11. The plugin registry is that of TensorRT-RTX's library, a relative
// with the same interface; everything else of TensorRT is missing.
#include <dlfcn.h>
#include <stddef.h>

static void* answer(const char* name) {
  void* library = dlopen(REGISTRY_LIBRARY, RTLD_NOW);
  void* (*function)(void) = library ? (void* (*)(void))dlsym(library, name) : NULL;
  return function ? function() : NULL;
}

void* getPluginRegistry(void) { return answer("getPluginRegistry"); }
void* getLogger(void) { return answer("getLogger"); }
int getInferLibVersion(void) { return 110400; }

void* getBuilderPluginRegistry(int capability) { return NULL; }
void* createInferBuilder_INTERNAL(void* logger, int version) { return NULL; }
void* createInferRefitter_INTERNAL(void* engine, void* logger, int version) { return NULL; }
void* createInferRuntime_INTERNAL(void* logger, int version) { return NULL; }
