// Kernel images and the modules loaded from them, shared by all gates of the process.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "driver.h"
#include "program.h"

namespace cbam_deploy {

// An image, and a zero byte behind it: PTX is text that has to end.
using Bytes = std::shared_ptr<std::vector<char> const>;

// The bytes of a program's images by their keys. Of a network's gates, which share kernels, only
// the first that uses an image carries it: what one node brings is found by all that come later,
// for as long as one gate holds it.
class Images {
 public:
  // Takes those that `carried` holds, and those that other gates have brought.
  Images(Program const& program, char const* carried);

  // Null where no gate has brought it.
  Bytes find(Image const& image) const;

 private:
  mutable std::map<std::string, Bytes> held_;
};

// A kernel of a module that is loaded into a context for as long as someone holds this.
class Kernel {
 public:
  Kernel(cuda::Driver const& driver, cuda::Context context, cuda::Module module)
      : driver_(driver), context_(context), module_(module) {}
  Kernel(Kernel const&) = delete;
  Kernel& operator=(Kernel const&) = delete;
  ~Kernel();

  // Allows launches with so many bytes of dynamic shared memory in clusters of so many blocks.
  // Returns what the driver says against it, or an empty string. Callable from several threads.
  std::string allow(std::int32_t shared_bytes, std::int32_t cluster) const;

  cuda::Function function = nullptr;

 private:
  cuda::Driver const& driver_;
  cuda::Context const context_;
  cuda::Module const module_;
  mutable std::mutex mutex_;
  mutable std::int32_t shared_bytes_ = cuda::kDefaultSharedBytes;  // the most that was allowed
};

// `entry` of `image` in the current context `context`; null, and why in `fault`, where it does not
// load.
std::shared_ptr<Kernel const> load(cuda::Driver const& driver, cuda::Context context,
                                   Image const& image, Bytes const& bytes, std::string& fault);

}  // namespace cbam_deploy
