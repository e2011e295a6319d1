// Stands in for libnvonnxparser.so.11, so that TensorRT's Python bindings load. It can do nothing.
#include <stddef.h>

void* createNvOnnxParser_INTERNAL(void* network, void* logger, int version) { return NULL; }
void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int version) {
  return NULL;
}
int getNvOnnxParserVersion(void) { return 0; }
