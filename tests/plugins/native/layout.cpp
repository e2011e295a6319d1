// Whether our declaration of TensorRT's plugin interface has the binary layout of NVIDIA's: sizes and
// offsets of what is passed, values of enumerators, places of virtual functions. Prints what differs.
#define nvinfer1 ours
#include "tensorrt.h"
#undef nvinfer1

#include <NvInferRuntime.h>

#include <cstdio>
#include <cstring>

namespace {

using namespace cbam_deploy::tensorrt;
bool same = true;

void compare(char const* what, long ours, long theirs) {
  if (ours == theirs) return;
  std::printf("%s: %ld here, %ld there\n", what, ours, theirs);
  same = false;
}

// Where a virtual function's address stands in the table of its class (Itanium ABI: one more than
// the offset in bytes).
template <typename Function>
long place(Function function) {
  long words[2];
  static_assert(sizeof function == sizeof words);
  std::memcpy(words, &function, sizeof words);
  return (words[0] - 1) / static_cast<long>(sizeof(void*));
}

#define SIZE(type) compare(#type, sizeof(ours::type), sizeof(nvinfer1::type))
#define FIELD(type, name) \
  compare(#type "." #name, offsetof(ours::type, name), offsetof(nvinfer1::type, name))
#define VALUE(type, name)                                       \
  compare(#type "::" #name, static_cast<long>(ours::type::name), \
          static_cast<long>(nvinfer1::type::name))
#define FUNCTION(type, name) \
  compare(#type "::" #name, place(&ours::type::name), place(&nvinfer1::type::name))

}  // namespace

int main() {
  SIZE(InterfaceInfo), FIELD(InterfaceInfo, kind), FIELD(InterfaceInfo, major);
  FIELD(InterfaceInfo, minor);
  SIZE(Dims), FIELD(Dims, nbDims), FIELD(Dims, d);
  SIZE(PluginTensorDesc), FIELD(PluginTensorDesc, dims), FIELD(PluginTensorDesc, type);
  FIELD(PluginTensorDesc, format), FIELD(PluginTensorDesc, scale);
  SIZE(DynamicPluginTensorDesc), FIELD(DynamicPluginTensorDesc, desc);
  FIELD(DynamicPluginTensorDesc, min), FIELD(DynamicPluginTensorDesc, max);
  FIELD(DynamicPluginTensorDesc, opt);
  SIZE(DimsExprs), FIELD(DimsExprs, nbDims), FIELD(DimsExprs, d);
  SIZE(PluginField), FIELD(PluginField, name), FIELD(PluginField, data), FIELD(PluginField, type);
  FIELD(PluginField, length);
  SIZE(PluginFieldCollection), FIELD(PluginFieldCollection, nbFields);
  FIELD(PluginFieldCollection, fields);
  SIZE(IPluginV3), SIZE(IPluginCapability), SIZE(IPluginCreatorV3One);

  VALUE(DataType, kFLOAT), VALUE(DataType, kHALF), VALUE(DataType, kINT8);
  VALUE(DataType, kINT32), VALUE(DataType, kBF16);
  VALUE(TensorFormat, kLINEAR), VALUE(TensorFormat, kHWC8), VALUE(TensorFormat, kCHW32);
  VALUE(TensorFormat, kHWC), VALUE(TensorFormat, kHWC16);
  VALUE(APILanguage, kCPP), VALUE(APILanguage, kPYTHON);
  VALUE(PluginFieldType, kINT8), VALUE(PluginFieldType, kINT32), VALUE(PluginFieldType, kCHAR);
  VALUE(PluginFieldType, kUNKNOWN);
  VALUE(TensorRTPhase, kBUILD), VALUE(TensorRTPhase, kRUNTIME);
  VALUE(PluginCapabilityType, kCORE), VALUE(PluginCapabilityType, kBUILD);
  VALUE(PluginCapabilityType, kRUNTIME);

  FUNCTION(IVersionedInterface, getAPILanguage), FUNCTION(IVersionedInterface, getInterfaceInfo);
  FUNCTION(IPluginV3, getCapabilityInterface), FUNCTION(IPluginV3, clone);
  FUNCTION(IPluginV3OneCore, getPluginName), FUNCTION(IPluginV3OneCore, getPluginVersion);
  FUNCTION(IPluginV3OneCore, getPluginNamespace);
  FUNCTION(IPluginV3OneBuild, configurePlugin), FUNCTION(IPluginV3OneBuild, getOutputDataTypes);
  FUNCTION(IPluginV3OneBuild, getOutputShapes);
  FUNCTION(IPluginV3OneBuild, supportsFormatCombination);
  FUNCTION(IPluginV3OneBuild, getNbOutputs), FUNCTION(IPluginV3OneBuild, getWorkspaceSize);
  FUNCTION(IPluginV3OneBuild, getValidTactics), FUNCTION(IPluginV3OneBuild, getNbTactics);
  FUNCTION(IPluginV3OneBuild, getTimingCacheID);
  FUNCTION(IPluginV3OneBuild, getFormatCombinationLimit);
  FUNCTION(IPluginV3OneBuild, getMetadataString);
  FUNCTION(IPluginV3OneRuntime, setTactic), FUNCTION(IPluginV3OneRuntime, onShapeChange);
  FUNCTION(IPluginV3OneRuntime, enqueue), FUNCTION(IPluginV3OneRuntime, attachToContext);
  FUNCTION(IPluginV3OneRuntime, getFieldsToSerialize);
  FUNCTION(IPluginCreatorV3One, createPlugin), FUNCTION(IPluginCreatorV3One, getFieldNames);
  FUNCTION(IPluginCreatorV3One, getPluginName), FUNCTION(IPluginCreatorV3One, getPluginVersion);
  FUNCTION(IPluginCreatorV3One, getPluginNamespace);

  Places const& places = NV_TENSORRT_MAJOR == 10 ? kPlaces10 : kPlaces11;
  using Registry = nvinfer1::IPluginRegistry;
  using Creator = nvinfer1::IPluginCreatorInterface;
  bool (Registry::*const take)(Creator&, char const*) noexcept = &Registry::registerCreator;
  bool (Registry::*const give)(Creator const&) noexcept = &Registry::deregisterCreator;
  compare("ILogger::log", places.log, place(&nvinfer1::ILogger::log));
  compare("IPluginRegistry::registerCreator", places.register_creator, place(take));
  compare("IPluginRegistry::getCreator", places.get_creator, place(&Registry::getCreator));
  compare("IPluginRegistry::deregisterCreator", places.deregister_creator, place(give));
  std::printf("TensorRT %d.%d\n", NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR);
  return same ? 0 : 1;
}
