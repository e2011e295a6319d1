// Stands in for a libnvinfer whose version is VERSION. Its registry and its logger know which of
// their functions is called by its place in the table alone, and say so.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define PLACES(P) P(0) P(1) P(2) P(3) P(4) P(5) P(6) P(7) P(8) P(9) P(10) P(11) P(12) P(13) P(14) P(15)

#define REGISTRY(n)                                                \
  static intptr_t registry##n(void* self, void* first, char* last) { \
    printf("registry %d\n", n);                                    \
    return n == REGISTER;                                          \
  }
PLACES(REGISTRY)
#define LOGGER(n)                                                         \
  static void logger##n(void* self, int32_t severity, char const* text) { \
    printf("logger %d %d %s\n", n, severity, text);                       \
  }
PLACES(LOGGER)

#define NAME_REGISTRY(n) registry##n,
#define NAME_LOGGER(n) logger##n,
static void* registry_table[] = {PLACES(NAME_REGISTRY)};
static void* logger_table[] = {PLACES(NAME_LOGGER)};
static void* registry = registry_table;
static void* logger = logger_table;

static void end_registry(void) { printf("registry gone\n"); }

void* getPluginRegistry(void) {
  static int used;
  if (!used++) atexit(end_registry);  // as a static object inside the function would end
  return &registry;
}
void* getLogger(void) { return &logger; }
int32_t getInferLibVersion(void) { return VERSION; }
