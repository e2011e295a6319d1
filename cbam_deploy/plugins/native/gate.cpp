#include "gate.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace cbam_deploy {
namespace {

std::string sm(int capability) { return "sm_" + std::to_string(capability); }

cuda::LaunchConfig config_of(Launch const& launch, unsigned blocks, cuda::Stream stream,
                             cuda::LaunchAttribute* attribute) {
  cuda::LaunchConfig config{};
  config.grid[0] = blocks;
  config.block[0] = static_cast<unsigned>(launch.threads);
  config.grid[1] = config.grid[2] = config.block[1] = config.block[2] = 1;
  config.shared_bytes = static_cast<unsigned>(launch.shared_bytes);
  config.stream = stream;
  config.attributes = attribute;
  config.attribute_count = 1;
  return config;
}

int enqueue(cuda::Driver const& driver, cuda::Function function, Launch const& launch,
            unsigned blocks, cuda::Stream stream, void** arguments) {
  if (!launch.programmatic || !driver.cuLaunchKernelEx)
    return driver.cuLaunchKernel(function, blocks, 1, 1, static_cast<unsigned>(launch.threads), 1,
                                 1, static_cast<unsigned>(launch.shared_bytes), stream, arguments,
                                 nullptr);
  cuda::LaunchAttribute allowed{};
  allowed.id = cuda::kProgrammaticStreamSerialization;
  allowed.value[0] = 1;
  auto const config = config_of(launch, blocks, stream, &allowed);
  return driver.cuLaunchKernelEx(&config, function, arguments, nullptr);
}

// Blocks of `launch` that the GPU runs at the same time, as far as it matters. None where it has no
// room for one cluster: partitions of a GPU may have too few multiprocessors together.
std::int64_t running_blocks(Gpu const& gpu, cuda::Function function, Launch const& launch) {
  auto const& driver = *gpu.driver;
  if (launch.cluster == 1) {
    if (!launch.persistent) return kMostBlocks;
    int of_one = 0;
    driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
        &of_one, function, launch.threads, static_cast<std::size_t>(launch.shared_bytes));
    return std::int64_t{of_one} * gpu.multiprocessors;
  }
  if (!driver.cuOccupancyMaxActiveClusters) return 0;
  cuda::LaunchAttribute size{};
  size.id = cuda::kClusterDimension;
  size.value[0] = static_cast<unsigned>(launch.cluster);
  size.value[1] = size.value[2] = 1;
  auto const config =
      config_of(launch, static_cast<unsigned>(launch.blocks_per_image), nullptr, &size);
  int clusters = 0;
  if (driver.cuOccupancyMaxActiveClusters(&clusters, function, &config)) return 0;
  return std::int64_t{clusters} * launch.cluster;
}

}  // namespace

std::optional<Gpu> Gpu::current(std::string& fault) {
  auto const* const driver = cuda::Driver::get(fault);
  if (!driver) return std::nullopt;
  Gpu gpu{driver, nullptr, 0, 0, 0};
  int result = driver->cuCtxGetCurrent(&gpu.context);
  if (!result && !gpu.context) {
    fault = "no CUDA context is current in this thread";
    return std::nullopt;
  }
  int device = 0, major = 0, minor = 0;
  if (!result) result = driver->cuCtxGetDevice(&device);
  auto const ask = [&](int& value, int attribute) {
    if (!result) result = driver->cuDeviceGetAttribute(&value, attribute, device);
  };
  ask(major, cuda::kCapabilityMajor);
  ask(minor, cuda::kCapabilityMinor);
  ask(gpu.multiprocessors, cuda::kMultiprocessors);
  ask(gpu.shared_bytes, cuda::kOptInSharedBytes);
  if (result) {
    fault = driver->failure("asking for the current device", result);
    return std::nullopt;
  }
  gpu.capability = 10 * major + minor;
  return gpu;
}

Gate::Gate(std::string name, Program launches, char const* carried)
    : node(std::move(name)), program(std::move(launches)), images(program, carried) {
  Program unnamed = program;
  unnamed.gate.clear();
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (unsigned char const byte : write(unnamed)) hash = (hash ^ byte) * 0x100000001b3;
  identity = "cbam_deploy-" + std::to_string(hash);
}

Format const* Gate::format(Gpu const& gpu, std::int32_t type, std::int32_t layout,
                           std::string& fault) const {
  auto const* const target = program.target(gpu.capability);
  if (!target) {
    fault = "kernels for " + program.target_names() + ", this GPU is " + sm(gpu.capability) +
            "; lower again with --target " + sm(gpu.capability);
    return nullptr;
  }
  auto const* const format = target->find(type, layout);
  if (!format) fault = "there are no kernels for maps of this type and layout";
  return format;
}

std::shared_ptr<LoadedTactic const> Gate::load(Gpu const& gpu, Tactic const& tactic,
                                               std::string& fault) const {
  std::lock_guard const lock(mutex_);
  auto& loaded = loaded_[{gpu.context, &tactic}];
  if (!loaded) loaded = load_anew(gpu, tactic, fault);
  return loaded;
}

std::shared_ptr<LoadedTactic const> Gate::load_anew(Gpu const& gpu, Tactic const& tactic,
                                                    std::string& fault) const {
  auto loaded = std::make_shared<LoadedTactic>(gpu, tactic);
  for (auto const& launch : tactic.launches) {
    auto const* const image = program.image(launch.entry, gpu.capability);
    if (!image) {
      fault = "kernels for " + program.target_names() + " do not run on this GPU, " +
              sm(gpu.capability) + "; lower again with --target " + sm(gpu.capability);
      return nullptr;
    }
    if (launch.shared_bytes > gpu.shared_bytes) {
      fault = launch.entry + " needs " + std::to_string(launch.shared_bytes) +
              " bytes of shared memory, this GPU has " + std::to_string(gpu.shared_bytes) +
              "; lower again with --target " + sm(gpu.capability);
      return nullptr;
    }
    auto const bytes = images.find(*image);
    if (!bytes) {
      fault = "the kernel " + launch.entry +
              " lies in another gate of the same network, which is not here; lower this file anew";
      return nullptr;
    }
    auto kernel = cbam_deploy::load(*gpu.driver, gpu.context, *image, bytes, fault);
    if (!kernel) return nullptr;
    fault = kernel->allow(launch.shared_bytes, launch.cluster);
    if (!fault.empty()) return nullptr;
    auto const running = running_blocks(gpu, kernel->function, launch);
    if (running == 0) {
      fault = "this GPU, or the part of it that is given, has no room for clusters of " +
              std::to_string(launch.cluster) + " blocks";
      return nullptr;
    }
    loaded->running_blocks.push_back(running);
    loaded->kernels.push_back(std::move(kernel));
  }
  return loaded;
}

bool LoadedTactic::is_current() const {
  cuda::Context context = nullptr;
  return !gpu.driver->cuCtxGetCurrent(&context) && context == gpu.context;
}

std::string LoadedTactic::launch(std::int64_t batch, void const* const* inputs, void* y,
                                 void* workspace, cuda::Stream stream) const {
  union Value {
    void const* address;
    std::int32_t number;
  };
  if (batch < 0 || batch > tactic.largest_batch())
    return "a batch of " + std::to_string(batch) + " images needs a larger grid than there is";
  Value values[kMostArguments];
  void* addresses[kMostArguments];
  for (std::size_t index = 0; index < kernels.size(); ++index) {
    auto const& launch = tactic.launches[index];
    for (std::size_t at = 0; at < launch.arguments.size(); ++at) {
      auto const& argument = launch.arguments[at];
      switch (argument.kind) {
        case Argument::Kind::kInput: values[at].address = inputs[argument.value]; break;
        case Argument::Kind::kOutput: values[at].address = y; break;
        case Argument::Kind::kBuffer:
          values[at].address =
              static_cast<char*>(workspace) + tactic.offset(argument.value, batch);
          break;
        case Argument::Kind::kNumber: values[at].number = argument.value; break;
        case Argument::Kind::kBatch: values[at].number = static_cast<std::int32_t>(batch); break;
      }
      addresses[at] = &values[at];
    }
    std::int64_t blocks = launch.blocks_per_image * batch;
    if (launch.persistent) blocks = std::min(blocks, running_blocks[index]);
    int const result = enqueue(*gpu.driver, kernels[index]->function, launch,
                               static_cast<unsigned>(blocks), stream, addresses);
    if (result) return gpu.driver->failure("cuLaunchKernel", result) + " for " + launch.entry;
  }
  return {};
}

}  // namespace cbam_deploy
