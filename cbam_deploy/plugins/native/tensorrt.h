// The part of TensorRT's plugin interface that this library implements or calls, in our words.
//
// The order of virtual functions and the fields of structures are TensorRT's binary interface; they
// are the same in every release from 10.0 to 11.1, but for what is called at the end. With
// CBAM_DEPLOY_NVIDIA_HEADERS the library is compiled against NVIDIA's own headers instead, as a test
// does.
// https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/extending-custom-layers.html
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CBAM_DEPLOY_NVIDIA_HEADERS
#include <NvInferRuntime.h>
#else

struct CUstream_st;
using cudaStream_t = CUstream_st*;

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBF16 = 7 };
enum class TensorFormat : std::int32_t {
  kLINEAR = 0, kHWC8 = 2, kCHW32 = 5, kHWC = 8, kHWC16 = 11
};
enum class APILanguage : std::int32_t { kCPP = 0, kPYTHON = 1 };
enum class PluginFieldType : std::int32_t { kINT8 = 3, kINT32 = 5, kCHAR = 6, kUNKNOWN = 8 };
enum class TensorRTPhase : std::int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class PluginCapabilityType : std::int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };

struct InterfaceInfo {
  char const* kind;
  std::int32_t major;
  std::int32_t minor;
};

struct Dims64 {
  std::int32_t nbDims;
  std::int64_t d[8];
};
using Dims = Dims64;

struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;
};

struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min;
  Dims max;
  Dims opt;
};

// A dimension of a network that is not yet known; only ever passed on.
class IDimensionExpr;
class IExprBuilder;
struct DimsExprs {
  std::int32_t nbDims;
  IDimensionExpr const* d[8];
};

struct PluginField {
  AsciiChar const* name;
  void const* data;
  PluginFieldType type;
  std::int32_t length;  // elements
};

struct PluginFieldCollection {
  std::int32_t nbFields;
  PluginField const* fields;
};

class IPluginResourceContext;

class IVersionedInterface {
 public:
  virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
  virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
  virtual ~IVersionedInterface() noexcept = default;
};

class IPluginCapability : public IVersionedInterface {};

class IPluginV3 : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
  virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
  virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
  virtual AsciiChar const* getPluginName() const noexcept = 0;
  virtual AsciiChar const* getPluginVersion() const noexcept = 0;
  virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
  virtual std::int32_t configurePlugin(DynamicPluginTensorDesc const* in, std::int32_t nbInputs,
                                       DynamicPluginTensorDesc const* out,
                                       std::int32_t nbOutputs) noexcept = 0;
  virtual std::int32_t getOutputDataTypes(DataType* outputTypes, std::int32_t nbOutputs,
                                          DataType const* inputTypes,
                                          std::int32_t nbInputs) const noexcept = 0;
  virtual std::int32_t getOutputShapes(DimsExprs const* inputs, std::int32_t nbInputs,
                                       DimsExprs const* shapeInputs, std::int32_t nbShapeInputs,
                                       DimsExprs* outputs, std::int32_t nbOutputs,
                                       IExprBuilder& exprBuilder) noexcept = 0;
  virtual bool supportsFormatCombination(std::int32_t pos, DynamicPluginTensorDesc const* inOut,
                                         std::int32_t nbInputs,
                                         std::int32_t nbOutputs) noexcept = 0;
  virtual std::int32_t getNbOutputs() const noexcept = 0;
  virtual std::size_t getWorkspaceSize(DynamicPluginTensorDesc const*, std::int32_t,
                                       DynamicPluginTensorDesc const*,
                                       std::int32_t) const noexcept { return 0; }
  virtual std::int32_t getValidTactics(std::int32_t*, std::int32_t) noexcept { return 0; }
  virtual std::int32_t getNbTactics() noexcept { return 0; }
  virtual char const* getTimingCacheID() noexcept { return nullptr; }
  virtual std::int32_t getFormatCombinationLimit() noexcept { return 100; }
  virtual char const* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
  }
  virtual std::int32_t setTactic(std::int32_t) noexcept { return 0; }
  virtual std::int32_t onShapeChange(PluginTensorDesc const* in, std::int32_t nbInputs,
                                     PluginTensorDesc const* out,
                                     std::int32_t nbOutputs) noexcept = 0;
  virtual std::int32_t enqueue(PluginTensorDesc const* inputDesc,
                               PluginTensorDesc const* outputDesc, void const* const* inputs,
                               void* const* outputs, void* workspace,
                               cudaStream_t stream) noexcept = 0;
  virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
  virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginCreatorV3One : public IPluginCreatorInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"PLUGIN CREATOR_V3ONE", 1, 0};
  }
  virtual IPluginV3* createPlugin(AsciiChar const* name, PluginFieldCollection const* fc,
                                  TensorRTPhase phase) noexcept = 0;
  virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
  virtual AsciiChar const* getPluginName() const noexcept = 0;
  virtual AsciiChar const* getPluginVersion() const noexcept = 0;
  virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

}  // namespace nvinfer1

#endif  // CBAM_DEPLOY_NVIDIA_HEADERS

// What this library calls. The objects are TensorRT's own, and their functions are found by their
// places among the virtual ones, which differ between 10.x and 11.x.
namespace cbam_deploy::tensorrt {

struct Places {
  int log;                 // of ILogger: (severity, text)
  int register_creator;    // of IPluginRegistry: (IPluginCreatorInterface&, namespace)
  int get_creator;         // of IPluginRegistry: (name, version, namespace)
  int deregister_creator;  // of IPluginRegistry: (IPluginCreatorInterface const&)
};
inline constexpr Places kPlaces10{0, 12, 14, 15};
inline constexpr Places kPlaces11{4, 8, 10, 11};

inline constexpr std::int32_t kError = 1;  // ILogger::Severity

template <typename Result, typename... Arguments>
Result call(void* object, int place, Arguments... arguments) {
  using Function = Result (*)(void*, Arguments...);
  void** const functions = *static_cast<void***>(object);
  return reinterpret_cast<Function>(functions[place])(object, arguments...);
}

}  // namespace cbam_deploy::tensorrt
