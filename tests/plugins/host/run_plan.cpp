// Carries out launches described on standard input, on host buffers read from and saved to files.
//
//   buffer NAME BYTES FILE|-      take BYTES bytes from FILE; "-": start with all bits set (NaN)
//   launch KERNEL GRID CLUSTER THREADS SHARED_BYTES PROGRAMMATIC COUNT, then COUNT lines:
//   "buffer NAME" or "integer VALUE"
//   save NAME FILE
//
// KERNEL is an index into KERNELS, the list of the kernels that DEFINITIONS defines.
#include "cuda_on_threads.hpp"

#include "fused.cuh"
#include "staged.cuh"

#include DEFINITIONS

#include <cstdio>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <tuple>

namespace {

struct Buffer {
  std::size_t bytes;
  cuda_on_threads::Memory memory;
};

struct Argument {
  void* pointer = nullptr;
  int integer = 0;

  template <typename T>
  T as() const {
    if constexpr (std::is_pointer_v<T>) return static_cast<T>(pointer);
    else return integer;
  }
};

struct Configuration { int grid, cluster, threads; std::size_t shared_bytes; };
using Launcher = std::function<void(const Configuration&, const std::vector<Argument>&)>;

template <typename... Parameters, std::size_t... i>
Launcher launcher(void (*kernel)(Parameters...), std::index_sequence<i...>) {
  return [kernel](const Configuration& c, const std::vector<Argument>& arguments) {
    if (arguments.size() != sizeof...(Parameters)) throw std::runtime_error("argument count");
    cuda_on_threads::launch(c.grid, c.cluster, c.threads, c.shared_bytes,
                            [&] { kernel(arguments[i].template as<Parameters>()...); });
  };
}

template <typename... Parameters>
Launcher launcher(void (*kernel)(Parameters...)) {
  return launcher(kernel, std::index_sequence_for<Parameters...>{});
}

const std::vector<Launcher> kKernels = {
#define KERNEL(...) launcher(__VA_ARGS__),
#include KERNELS
#undef KERNEL
};

template <typename T>
T next() {
  T value;
  if (!(std::cin >> value)) throw std::runtime_error("unexpected end of the description");
  return value;
}

}  // namespace

int main() {
  std::map<std::string, Buffer> buffers;
  cuda_on_threads::Stream stream;
  for (std::string command; std::cin >> command;) {
    if (command == "buffer") {
      const auto name = next<std::string>();
      const auto bytes = next<std::size_t>();
      const auto file = next<std::string>();
      Buffer& buffer = buffers[name] = {bytes, cuda_on_threads::allocate(bytes)};
      char* memory = reinterpret_cast<char*>(buffer.memory.get());
      if (file != "-" && !std::ifstream(file, std::ios::binary).read(memory, bytes))
        throw std::runtime_error("cannot read " + file);
    } else if (command == "launch") {
      const int kernel = next<int>();
      Configuration c;
      c.grid = next<int>(), c.cluster = next<int>(), c.threads = next<int>();
      c.shared_bytes = next<std::size_t>();
      const bool programmatic = next<int>();
      std::vector<Argument> arguments(next<int>());
      for (Argument& argument : arguments) {
        if (next<std::string>() == "buffer")
          argument.pointer = buffers.at(next<std::string>()).memory.get();
        else
          argument.integer = next<int>();
      }
      stream.enqueue(programmatic, [=] { kKernels.at(kernel)(c, arguments); });
    } else {
      stream.wait();
      const Buffer& buffer = buffers.at(next<std::string>());
      std::ofstream(next<std::string>(), std::ios::binary)
          .write(reinterpret_cast<const char*>(buffer.memory.get()), buffer.bytes);
    }
  }
}
