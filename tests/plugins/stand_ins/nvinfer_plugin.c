// Stands in for libnvinfer_plugin.so.11, so that TensorRT's Python bindings load. It has no plugins.
#include <stdbool.h>

bool initLibNvInferPlugins(void* logger, const char* space) { return true; }
