// The whole library as one source: half the compiler's time, and a smaller file.
#include "driver.cpp"
#include "gate.cpp"
#include "modules.cpp"
#include "plugin.cpp"
#include "program.cpp"
#include "tensorrt_library.cpp"
