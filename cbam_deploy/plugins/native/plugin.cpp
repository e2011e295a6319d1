// TensorRT's plugin interface over `Gate`, its creator, and what a loader of plugins looks for.
//
// TensorRT may call from C, from Python and from threads of its own, so nothing is thrown: what
// fails is logged in a sentence and answered with null, false or a code other than zero.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gate.h"
#include "program.h"
#include "tensorrt.h"
#include "tensorrt_library.h"

namespace cbam_deploy {
namespace {

using namespace nvinfer1;

constexpr char const* kName = "FusedGate";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "cbam_deploy";
constexpr char const* kProgramField = "program";
constexpr char const* kImagesField = "images";
constexpr std::int32_t kDone = 0, kFailed = 1;
constexpr std::size_t kMostFieldBytes = std::numeric_limits<std::int32_t>::max();

void complain(std::string_view node, std::string_view fault) noexcept {
  try {
    tensorrt::log_error("cbam_deploy: " + std::string(node) + ": " + std::string(fault));
  } catch (std::exception const&) {
  }
}

// What `function` answers; `otherwise`, and a logged sentence, where it throws.
template <typename Result, typename Function>
Result guarded(std::string_view node, Result otherwise, Function const& function) noexcept {
  try {
    return function();
  } catch (std::exception const& error) {
    complain(node, error.what());
    return otherwise;
  }
}

class FusedGate final : public IPluginV3,
                        public IPluginV3OneCore,
                        public IPluginV3OneBuild,
                        public IPluginV3OneRuntime {
 public:
  explicit FusedGate(std::shared_ptr<Gate const> gate) : gate_(std::move(gate)) {}

  // ---- IPluginV3

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    switch (type) {
      case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
      case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
      case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
  }

  IPluginV3* clone() noexcept override {
    return guarded<IPluginV3*>(gate_->node, nullptr, [&] {
      auto copy = std::make_unique<FusedGate>(gate_);
      copy->type_ = type_;
      copy->layout_ = layout_;
      copy->tactic_ = tactic_;
      copy->capability_ = capability_;
      return copy.release();
    });
  }

  // ---- IPluginV3OneCore

  char const* getPluginName() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }

  // ---- IPluginV3OneBuild

  std::int32_t getNbOutputs() const noexcept override { return 1; }
  char const* getTimingCacheID() noexcept override { return gate_->identity.c_str(); }
  char const* getMetadataString() noexcept override { return gate_->program.gate.c_str(); }

  std::int32_t getOutputDataTypes(DataType* outputTypes, std::int32_t nbOutputs,
                                  DataType const* inputTypes,
                                  std::int32_t nbInputs) const noexcept override {
    if (!counts(nbInputs, nbOutputs)) return kFailed;
    outputTypes[0] = inputTypes[0];
    return kDone;
  }

  std::int32_t getOutputShapes(DimsExprs const* inputs, std::int32_t nbInputs, DimsExprs const*,
                               std::int32_t, DimsExprs* outputs, std::int32_t nbOutputs,
                               IExprBuilder&) noexcept override {
    if (!counts(nbInputs, nbOutputs)) return kFailed;
    outputs[0] = inputs[0];
    return kDone;
  }

  bool supportsFormatCombination(std::int32_t pos, DynamicPluginTensorDesc const* inOut,
                                 std::int32_t nbInputs, std::int32_t nbOutputs) noexcept override {
    return guarded(gate_->node, false, [&] {
      if (!counts(nbInputs, nbOutputs) || pos < 0 || pos > nbInputs) return false;
      auto const& asked = inOut[pos].desc;
      if (pos < nbInputs && !gate_->program.is_map[pos])
        return asked.type == DataType::kFLOAT && asked.format == TensorFormat::kLINEAR;
      auto const& first = inOut[0].desc;
      if (pos > 0) return asked.type == first.type && asked.format == first.format;
      return !tactics_for(static_cast<std::int32_t>(asked.type),
                          static_cast<std::int32_t>(asked.format))
                  .empty();
    });
  }

  std::int32_t configurePlugin(DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                               DynamicPluginTensorDesc const*,
                               std::int32_t nbOutputs) noexcept override {
    if (!counts(nbInputs, nbOutputs)) return kFailed;
    return guarded(gate_->node, kFailed, [&] {
      choose(in[0].desc);
      std::string unsaid;  // a builder without a GPU finds no tactics, and is told why then
      if (auto const gpu = Gpu::current(unsaid)) capability_ = gpu->capability;
      return kDone;
    });
  }

  std::int32_t getNbTactics() noexcept override {
    return guarded(gate_->node, std::int32_t{0}, [&] {
      return static_cast<std::int32_t>(tactics_for(type_, layout_).size());
    });
  }

  std::int32_t getValidTactics(std::int32_t* tactics, std::int32_t nbTactics) noexcept override {
    return guarded(gate_->node, kFailed, [&] {
      auto const numbers = tactics_for(type_, layout_);
      if (nbTactics != static_cast<std::int32_t>(numbers.size())) return kFailed;
      std::copy(numbers.begin(), numbers.end(), tactics);
      return kDone;
    });
  }

  // Enough for whatever an engine may launch, also on another GPU than it is built on.
  std::size_t getWorkspaceSize(DynamicPluginTensorDesc const* inputs, std::int32_t nbInputs,
                               DynamicPluginTensorDesc const*,
                               std::int32_t nbOutputs) const noexcept override {
    if (!counts(nbInputs, nbOutputs)) return 0;
    auto const batch = std::max(inputs[0].max.d[0], inputs[0].desc.dims.d[0]);
    std::size_t bytes = 0;
    for (auto const& target : gate_->program.targets)
      if (auto const* const format = target.find(type_, layout_))
        for (auto const& tactic : format->tactics)
          if (batch > 0)
            bytes = std::max(bytes, tactic.workspace(std::min(batch, tactic.largest_batch())));
    return bytes;
  }

  // ---- IPluginV3OneRuntime

  std::int32_t setTactic(std::int32_t tactic) noexcept override {
    tactic_ = tactic;
    loaded_.reset();
    return kDone;
  }

  std::int32_t onShapeChange(PluginTensorDesc const* in, std::int32_t nbInputs,
                             PluginTensorDesc const*, std::int32_t nbOutputs) noexcept override {
    return guarded(gate_->node, kFailed, [&] {
      if (!counts(nbInputs, nbOutputs)) return failed("it has other inputs");
      auto const& sizes = gate_->program.sizes;
      auto const& dims = in[0].dims;
      if (dims.nbDims != 4 || !std::equal(sizes, sizes + 3, dims.d + 1))
        return failed("lowered for maps of " + shape(sizes, 3) + ", given " +
                      shape(dims.d, std::clamp(dims.nbDims, 0, 8)));
      choose(in[0]);
      if (!prepare()) return kFailed;
      if (dims.d[0] < 0 || dims.d[0] > loaded_->tactic.largest_batch())
        return failed("a batch of " + std::to_string(dims.d[0]) + " images cannot be launched");
      return kDone;
    });
  }

  std::int32_t enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*,
                       void const* const* inputs, void* const* outputs, void* workspace,
                       cudaStream_t stream) noexcept override {
    return guarded(gate_->node, kFailed, [&] {
      auto const batch = inputDesc[0].dims.d[0];
      if (batch == 0) return kDone;
      if (!prepare()) return kFailed;
      auto const fault = loaded_->launch(batch, inputs, outputs[0], workspace,
                                         reinterpret_cast<cuda::Stream>(stream));
      return fault.empty() ? kDone : failed(fault);
    });
  }

  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    return guarded<PluginFieldCollection const*>(gate_->node, nullptr, [&] {
      auto const program = reduced();
      images_.clear();
      for (auto const& image : program.images) {
        auto const bytes = gate_->images.find(image);
        if (!bytes) {
          complain(gate_->node, "the kernel " + image.entry + " lies in a gate that is not here");
          return static_cast<PluginFieldCollection const*>(nullptr);
        }
        images_.insert(images_.end(), bytes->begin(), bytes->begin() + image.bytes);
      }
      text_ = write(program);
      if (std::max(text_.size(), images_.size()) > kMostFieldBytes) {
        complain(gate_->node, "its kernels are too large for a field");
        return static_cast<PluginFieldCollection const*>(nullptr);
      }
      fields_[0] = {kProgramField, text_.data(), PluginFieldType::kCHAR,
                    static_cast<std::int32_t>(text_.size())};
      fields_[1] = {kImagesField, images_.data(), PluginFieldType::kINT8,
                    static_cast<std::int32_t>(images_.size())};
      collection_ = {2, fields_};
      return static_cast<PluginFieldCollection const*>(&collection_);
    });
  }

 private:
  std::int32_t failed(std::string const& fault) const {
    complain(gate_->node, fault);
    return kFailed;
  }

  bool counts(std::int32_t inputs, std::int32_t outputs) const noexcept {
    return inputs == static_cast<std::int32_t>(gate_->program.inputs.size()) && outputs == 1;
  }

  static std::string shape(std::int64_t const* sizes, int count) {
    std::string text;
    for (int index = 0; index < count; ++index)
      text += (index ? "x" : "") + std::to_string(sizes[index]);
    return text;
  }

  void choose(PluginTensorDesc const& x) noexcept {
    auto const type = static_cast<std::int32_t>(x.type);
    auto const layout = static_cast<std::int32_t>(x.format);
    if (type != type_ || layout != layout_) loaded_.reset();
    type_ = type;
    layout_ = layout;
  }

  // Numbers of the tactics that the current GPU can launch. Why there are none is said once.
  std::vector<std::int32_t> tactics_for(std::int32_t type, std::int32_t layout) {
    std::vector<std::int32_t> numbers;
    std::string fault;
    if (auto const gpu = Gpu::current(fault)) {
      std::string unknown;  // every format is asked for, also those that no gate has
      if (auto const* const format = gate_->format(*gpu, type, layout, unknown)) {
        for (auto const& tactic : format->tactics)
          if (gate_->load(*gpu, tactic, fault)) numbers.push_back(tactic.number);
      } else if (!gate_->program.target(gpu->capability)) {
        fault = unknown;
      }
    }
    if (numbers.empty() && !fault.empty() && fault != said_) failed(said_ = fault);
    return numbers;
  }

  // Loads the chosen tactic into the current context; of an engine that was built for another GPU,
  // the first that this one can launch.
  bool prepare() {
    if (loaded_ && loaded_->is_current()) return true;
    loaded_.reset();
    std::string fault;
    auto const gpu = Gpu::current(fault);
    auto const* const format = gpu ? gate_->format(*gpu, type_, layout_, fault) : nullptr;
    if (!format) return failed(fault), false;
    if (auto const* const tactic = format->find(tactic_))
      loaded_ = gate_->load(*gpu, *tactic, fault);
    for (auto one = format->tactics.begin(); !loaded_ && one != format->tactics.end(); ++one)
      loaded_ = gate_->load(*gpu, *one, fault);
    if (!loaded_) failed(fault);
    return loaded_ != nullptr;
  }

  // Whether an engine needs `tactic`: of the GPU it is built on, only the chosen one.
  bool serialized(Target const& target, Tactic const& tactic) const {
    auto const* const own = capability_ ? gate_->program.target(capability_) : nullptr;
    auto const* const format = own ? own->find(type_, layout_) : nullptr;
    return &target != own || !format || !format->find(tactic_) || tactic.number == tactic_;
  }

  // The program with what an engine needs alone.
  Program reduced() const {
    auto const& whole = gate_->program;
    Program program = whole;
    program.images.clear();
    program.targets.clear();
    std::vector<std::string> entries;
    for (auto const& target : whole.targets) {
      Target kept{target.capability, {}};
      for (auto const& format : target.formats) {
        if (type_ >= 0 && (format.type != type_ || format.layout != layout_)) continue;
        kept.formats.push_back({format.type, format.layout, {}});
        for (auto const& tactic : format.tactics) {
          if (!serialized(target, tactic)) continue;
          kept.formats.back().tactics.push_back(tactic);
          for (auto const& launch : tactic.launches) entries.push_back(launch.entry);
        }
      }
      if (!kept.formats.empty()) program.targets.push_back(std::move(kept));
    }
    for (auto const& image : whole.images)
      if (std::find(entries.begin(), entries.end(), image.entry) != entries.end())
        program.images.push_back(image);
    return program;
  }

  std::shared_ptr<Gate const> const gate_;
  std::int32_t type_ = -1, layout_ = -1;  // of the maps; -1 before TensorRT has chosen
  std::int32_t tactic_ = 0;               // its number; 0 before TensorRT has chosen
  int capability_ = 0;                    // of the GPU that an engine is built on
  std::shared_ptr<LoadedTactic const> loaded_;
  std::string said_;
  std::string text_;
  std::vector<char> images_;
  PluginField fields_[2];
  PluginFieldCollection collection_{};
};

class Creator final : public IPluginCreatorV3One {
 public:
  char const* getPluginName() const noexcept override { return kName; }
  char const* getPluginVersion() const noexcept override { return kVersion; }
  char const* getPluginNamespace() const noexcept override { return kNamespace; }
  PluginFieldCollection const* getFieldNames() noexcept override { return &names_; }

  IPluginV3* createPlugin(char const* name, PluginFieldCollection const* given,
                          TensorRTPhase) noexcept override {
    std::string_view const node = name && *name ? name : kName;
    return guarded<IPluginV3*>(node, nullptr, [&]() -> IPluginV3* {
      auto const* const text = find(given, kProgramField, PluginFieldType::kCHAR);
      if (!text) return complain(node, "it has no launch program"), nullptr;
      auto const* const images = find(given, kImagesField, PluginFieldType::kINT8);
      auto const carried = images ? static_cast<std::size_t>(images->length) : 0;
      Program program;
      std::string_view words(static_cast<char const*>(text->data),
                             static_cast<std::size_t>(text->length));
      if (words.back() == '\0') words.remove_suffix(1);  // some count the end of a string too
      auto const fault = parse(words, carried, program);
      if (!fault.empty()) return complain(node, "its launch program is damaged: " + fault), nullptr;
      return new FusedGate(std::make_shared<Gate const>(
          std::string(node), std::move(program), images ? static_cast<char const*>(images->data) : nullptr));
    });
  }

 private:
  // A field of `given` with something in it; null where there is none of this name and type.
  static PluginField const* find(PluginFieldCollection const* given, char const* name,
                                 PluginFieldType type) {
    if (!given || !given->fields) return nullptr;
    for (std::int32_t index = 0; index < given->nbFields; ++index) {
      auto const& field = given->fields[index];
      if (field.name && !std::strcmp(field.name, name) && field.type == type && field.data &&
          field.length > 0)
        return &field;
    }
    return nullptr;
  }

  PluginField const fields_[2] = {{kProgramField, nullptr, PluginFieldType::kCHAR, 0},
                                  {kImagesField, nullptr, PluginFieldType::kINT8, 0}};
  PluginFieldCollection const names_{2, fields_};
};

Creator& creator() noexcept {
  static auto* const one = new Creator;  // TensorRT may ask after static objects are gone
  return *one;
}

// A library that is only loaded (dlopen, LD_PRELOAD) has to register itself; `getCreators` is asked
// by TensorRT's own loader, which then registers it, and takes it back with the library.
// A static object that is made after TensorRT's registry was found goes before it at exit.
struct Registration {
  Registration() { tensorrt::register_creator(creator()); }
  ~Registration() { tensorrt::deregister_creator(creator()); }
};
__attribute__((constructor)) void on_load() { static Registration const registration; }

}  // namespace
}  // namespace cbam_deploy

extern "C" {

__attribute__((visibility("default"))) nvinfer1::IPluginCreatorInterface* const* getCreators(
    std::int32_t& nbCreators) {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&cbam_deploy::creator()};
  cbam_deploy::tensorrt::deregister_creator(cbam_deploy::creator());
  nbCreators = 1;
  return creators;
}

// TensorRT's loader asks for it. The logger is found with each message instead.
__attribute__((visibility("default"))) void setLoggerFinder(void*) {}

}  // extern "C"
