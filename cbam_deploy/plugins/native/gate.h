// One fused gate on GPUs: which of its launches suit the current one, and carrying them out.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "driver.h"
#include "modules.h"
#include "program.h"

namespace cbam_deploy {

// The GPU of the calling thread's current context.
struct Gpu {
  cuda::Driver const* driver;
  cuda::Context context;
  int capability, shared_bytes;

  static std::optional<Gpu> current(std::string& fault);
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
};

// One tactic's kernels, loaded into one context.
class LoadedTactic {
 public:
  // Null, and why in `fault`, where this GPU cannot launch it: no image, too little shared memory,
  // or no room for its clusters.
  static std::shared_ptr<LoadedTactic const> load(Gate const& gate, Gpu const& gpu,
                                                  Tactic const& tactic, std::string& fault);

  cuda::Context context() const { return gpu_.context; }
  std::int32_t number() const { return tactic_.number; }
  bool is_current() const;

  // Enqueues the kernels for `batch` images. Returns what went wrong, or an empty string.
  std::string launch(std::int64_t batch, void const* const* inputs, void* y, void* workspace,
                     cuda::Stream stream) const;

 private:
  LoadedTactic(Gpu const& gpu, Tactic const& tactic) : gpu_(gpu), tactic_(tactic) {}

  Gpu const gpu_;
  Tactic const& tactic_;  // of the gate's program
  std::vector<std::shared_ptr<Kernel const>> kernels_;
};

}  // namespace cbam_deploy
