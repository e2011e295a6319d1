#include "modules.h"

#include <iterator>
#include <utility>

namespace cbam_deploy {
namespace {

constexpr int kCaptureRelaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

// What the gates of this process hold, found by key; never destroyed, as gates may outlive main.
template <typename Key, typename Value>
struct Shared {
  std::mutex mutex;
  std::map<Key, std::weak_ptr<Value const>> values;

  std::shared_ptr<Value const> find(Key const& key) {
    auto const found = values.find(key);
    return found == values.end() ? nullptr : found->second.lock();
  }

  void forget_expired() {
    for (auto one = values.begin(); one != values.end();)
      one = one->second.expired() ? values.erase(one) : std::next(one);
  }
};

Shared<std::string, std::vector<char>>& images() {
  static auto* const shared = new Shared<std::string, std::vector<char>>;
  return *shared;
}

bool fits(Bytes const& bytes, Image const& image) {
  return bytes && static_cast<std::int64_t>(bytes->size()) == image.bytes + 1;
}

using Place = std::pair<cuda::Context, std::pair<std::string, std::string>>;

Shared<Place, Kernel>& kernels() {
  static auto* const shared = new Shared<Place, Kernel>;
  return *shared;
}

}  // namespace

Images::Images(Program const& program, char const* carried) {
  auto& shared = images();
  std::lock_guard const lock(shared.mutex);
  shared.forget_expired();
  for (auto const& image : program.images) {
    Bytes bytes = shared.find(image.key);
    if (image.offset >= 0 && !fits(bytes, image)) {
      char const* const start = carried + image.offset;
      auto copy = std::make_shared<std::vector<char>>(start, start + image.bytes);
      copy->push_back('\0');
      shared.values[image.key] = bytes = std::move(copy);
    }
    if (bytes) held_[image.key] = std::move(bytes);
  }
}

Bytes Images::find(Image const& image) const {
  auto& shared = images();
  std::lock_guard const lock(shared.mutex);
  auto& held = held_[image.key];
  if (!held) held = shared.find(image.key);
  return fits(held, image) ? held : nullptr;
}

Kernel::~Kernel() {
  // A context that is gone has taken its modules along, and the driver says so.
  if (driver_.cuCtxPushCurrent_v2(context_)) return;
  driver_.cuModuleUnload(module_);
  cuda::Context popped;
  driver_.cuCtxPopCurrent_v2(&popped);
}

std::string Kernel::allow(std::int32_t shared_bytes, std::int32_t cluster) const {
  std::lock_guard const lock(mutex_);
  int result = 0;
  if (shared_bytes > shared_bytes_) {
    result = driver_.cuFuncSetAttribute(function, cuda::kMaxDynamicSharedBytes, shared_bytes);
    if (!result) shared_bytes_ = shared_bytes;
  }
  if (!result && cluster > cuda::kPortableCluster)
    result = driver_.cuFuncSetAttribute(function, cuda::kNonPortableClusterSizeAllowed, 1);
  return result ? driver_.failure("cuFuncSetAttribute", result) : std::string();
}

std::shared_ptr<Kernel const> load(cuda::Driver const& driver, cuda::Context context,
                                   Image const& image, Bytes const& bytes, std::string& fault) {
  auto& shared = kernels();
  Place const place{context, {image.key, image.entry}};
  std::lock_guard const lock(shared.mutex);
  if (auto found = shared.find(place)) return found;
  shared.forget_expired();
  // Loading is allowed even where this thread's stream is being captured: nothing waits for it.
  int mode = kCaptureRelaxed;
  driver.cuThreadExchangeStreamCaptureMode(&mode);
  cuda::Module module = nullptr;
  int result = driver.cuModuleLoadData(&module, bytes->data());
  char const* called = "cuModuleLoadData";
  std::shared_ptr<Kernel> kernel;
  if (!result) {
    kernel = std::make_shared<Kernel>(driver, context, module);
    result = driver.cuModuleGetFunction(&kernel->function, module, image.entry.c_str());
    called = "cuModuleGetFunction";
  }
  driver.cuThreadExchangeStreamCaptureMode(&mode);
  if (result) {
    fault = driver.failure(called, result) + " for " + image.entry + " (" + image.target() + ")";
    return nullptr;
  }
  shared.values[place] = kernel;
  return kernel;
}

}  // namespace cbam_deploy
