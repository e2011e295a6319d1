// One fused gate on GPUs: which of its launches suit the current one, and carrying them out.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"
#include "modules.h"
#include "program.h"

namespace cbam_deploy {

// The GPU of the calling thread's current context.
struct Gpu {
  cuda::Driver const* driver;
  cuda::Context context;
  int capability, multiprocessors, shared_bytes;

  static std::optional<Gpu> current(std::string& fault);
};

// One tactic's kernels, loaded into one context.
struct LoadedTactic {
  Gpu gpu;
  Tactic const& tactic;  // of the gate's program
  std::vector<std::shared_ptr<Kernel const>> kernels;
  std::vector<std::int64_t> running_blocks;  // of each launch, that the GPU runs at the same time

  LoadedTactic(Gpu const& on, Tactic const& of) : gpu(on), tactic(of) {}

  // Whether the calling thread's context is the one it was loaded into.
  bool is_current() const;

  // Enqueues the kernels for `batch` images. Returns what went wrong, or an empty string.
  std::string launch(std::int64_t batch, void const* const* inputs, void* y, void* workspace,
                     cuda::Stream stream) const;
};

// A gate's launch program and its images; what a plugin and its clones have in common.
struct Gate {
  std::string node;  // its name in the network
  Program program;
  Images images;
  std::string identity;  // equal where the launches are, whatever the node

  Gate(std::string name, Program launches, char const* carried);

  // The format of the maps for this GPU; null, and why in `fault`, where there is none.
  Format const* format(Gpu const& gpu, std::int32_t type, std::int32_t layout,
                       std::string& fault) const;

  // `tactic` in the current context; null, and why in `fault`, where this GPU cannot launch it: no
  // image, too little shared memory, or no room for its clusters. Callable from several threads.
  std::shared_ptr<LoadedTactic const> load(Gpu const& gpu, Tactic const& tactic,
                                           std::string& fault) const;

 private:
  std::shared_ptr<LoadedTactic const> load_anew(Gpu const& gpu, Tactic const& tactic,
                                                std::string& fault) const;

  mutable std::mutex mutex_;
  mutable std::map<std::pair<cuda::Context, Tactic const*>, std::shared_ptr<LoadedTactic const>>
      loaded_;
};

}  // namespace cbam_deploy
