// Single calls of the plugin's interfaces, each with what the protocol asks of its answer.
#pragma once

#include "tensorrt.h"

#include <algorithm>
#include <cstring>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "network.h"

namespace host {

// The plugin said no; the program goes on with the next command.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void accept(std::int32_t code, std::string const& function) {
  if (code) throw Refused(function);
}

template <typename Interface>
Interface& capability(IPluginV3& plugin, PluginCapabilityType type, std::string const& kind) {
  IPluginCapability* const found = plugin.getCapabilityInterface(type);
  require(found != nullptr, "no interface " + kind);
  InterfaceInfo const info = found->getInterfaceInfo();
  require(info.kind == kind && info.major == 1 && info.minor == 0, "it is no " + kind);
  require(found->getAPILanguage() == APILanguage::kCPP, "its language is not C++");
  return *static_cast<Interface*>(found);
}

inline IPluginV3OneCore& core(IPluginV3& plugin) {
  return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE");
}
inline IPluginV3OneBuild& builds(IPluginV3& plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD");
}
inline IPluginV3OneRuntime& runs(IPluginV3& plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME,
                                         "PLUGIN_V3ONE_RUNTIME");
}

inline Plugin create(std::vector<Field> const& from, TensorRTPhase phase) {
  std::vector<PluginField> given;
  for (Field const& field : from)
    given.push_back({field.name.empty() ? nullptr : field.name.c_str(),
                     field.has_data ? field.data.data() : nullptr, field.type, field.length});
  PluginFieldCollection const collection{static_cast<std::int32_t>(given.size()), given.data()};
  Plugin plugin(creator->createPlugin("a gate", &collection, phase));
  if (!plugin) throw Refused("createPlugin");
  InterfaceInfo const info = plugin->getInterfaceInfo();
  require(!std::strcmp(info.kind, "PLUGIN") && info.major == 1, "it is no plugin");
  require(!std::strcmp(core(*plugin).getPluginName(), creator->getPluginName()) &&
          !std::strcmp(core(*plugin).getPluginVersion(), creator->getPluginVersion()) &&
          !std::strcmp(core(*plugin).getPluginNamespace(), creator->getPluginNamespace()),
          "creator and plugin differ in name");
  return plugin;
}

inline Plugin cloned(IPluginV3& plugin) {
  Plugin copy(plugin.clone());
  if (!copy) throw Refused("clone");
  require(copy.get() != &plugin, "its clone is itself");
  return copy;
}

// TensorRT's object, which the plugin may keep and has no use for.
inline IPluginResourceContext* resource_context() {
  alignas(16) static char object[64];
  return reinterpret_cast<IPluginResourceContext*>(object);
}

inline Plugin attached(IPluginV3& plugin) {
  Plugin copy(runs(plugin).attachToContext(resource_context()));
  if (!copy) throw Refused("attachToContext");
  require(copy.get() != &plugin, "attachToContext gives the plugin itself");
  return copy;
}

// What all positions from `position` on may be, in TensorRT's order: only what lies before a
// position is valid when it is asked for.
using Offer = std::vector<std::pair<int, int>>;
inline void search(IPluginV3OneBuild& plugin, Profile profile, Offer& so_far,
                   std::vector<Offer>& found) {
  std::size_t const position = so_far.size();
  if (position == inputs.size() + 1) return found.push_back(so_far);
  auto tensors = ranges(DataType::kFLOAT, TensorFormat::kLINEAR, profile);
  for (std::size_t i = 0; i < position; ++i) {
    tensors[i].desc.type = static_cast<DataType>(so_far[i].first);
    tensors[i].desc.format = static_cast<TensorFormat>(so_far[i].second);
  }
  for (std::size_t i = position + 1; i < tensors.size(); ++i)
    std::memset(static_cast<void*>(&tensors[i]), kUndefined & 0xff, sizeof tensors[i]);
  for (int type = 0; type < static_cast<int>(std::size(kTypes)); ++type)
    for (int format = 0; format < static_cast<int>(std::size(kFormats)); ++format) {
      tensors[position].desc.type = static_cast<DataType>(type);
      tensors[position].desc.format = static_cast<TensorFormat>(format);
      if (!plugin.supportsFormatCombination(static_cast<std::int32_t>(position), tensors.data(),
                                            count(), 1))
        continue;
      so_far.emplace_back(type, format);
      search(plugin, profile, so_far, found);
      so_far.pop_back();
    }
}

inline std::vector<Offer> offers(IPluginV3& plugin, Profile profile) {
  Offer none;
  std::vector<Offer> found;
  search(builds(plugin), profile, none, found);
  require(static_cast<int>(found.size()) <= builds(plugin).getFormatCombinationLimit(),
          "more offers than its limit");
  return found;
}

inline void print(Offer const& offer) {
  std::cout << "offer";
  for (auto const& [type, format] : offer)
    std::cout << ' ' << kTypes[type] << ':' << kFormats[format];
  std::cout << '\n';
}

// Types and shapes of the output, as a network asks for them.
inline void describe_output(IPluginV3OneBuild& plugin, DataType type) {
  require(plugin.getNbOutputs() == 1, "not one output");
  std::vector<DataType> types;
  for (Input const& input : inputs) types.push_back(input.is_map ? type : DataType::kFLOAT);
  DataType output = DataType::kINT32;
  accept(plugin.getOutputDataTypes(&output, 1, types.data(), count()), "getOutputDataTypes");
  require(output == type, "the output's type is not that of the first input");
  // Expressions are TensorRT's: a plugin passes them on, so any addresses will do.
  static char expression[64], builder[64];
  std::vector<DimsExprs> given;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    DimsExprs dims{};
    dims.nbDims = dimensions(inputs[i], 1).nbDims;
    for (int axis = 0; axis < dims.nbDims; ++axis)
      dims.d[axis] = reinterpret_cast<IDimensionExpr const*>(&expression[(4 * i + axis) % 64]);
    given.push_back(dims);
  }
  DimsExprs made{};
  accept(plugin.getOutputShapes(given.data(), count(), nullptr, 0, &made, 1,
                                *reinterpret_cast<IExprBuilder*>(builder)),
         "getOutputShapes");
  require(made.nbDims == given[0].nbDims &&
          std::equal(made.d, made.d + made.nbDims, given[0].d), "y has not the shape of x");
}

inline std::vector<std::int32_t> tactics(IPluginV3OneBuild& plugin) {
  std::vector<std::int32_t> found(static_cast<std::size_t>(plugin.getNbTactics()));
  accept(plugin.getValidTactics(found.data(), static_cast<std::int32_t>(found.size())),
         "getValidTactics");
  auto sorted = found;
  std::sort(sorted.begin(), sorted.end());
  require(sorted.empty() || sorted.front() > 0, "a tactic is not positive");
  require(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "a tactic twice");
  return found;
}

inline std::vector<Field> serialized(IPluginV3OneRuntime& plugin) {
  PluginFieldCollection const* const collection = plugin.getFieldsToSerialize();
  if (!collection) throw Refused("getFieldsToSerialize");
  std::vector<Field> copied;
  for (std::int32_t i = 0; i < collection->nbFields; ++i) {
    PluginField const& field = collection->fields[i];
    require(field.type == PluginFieldType::kCHAR || field.type == PluginFieldType::kINT8 ||
            field.type == PluginFieldType::kUNKNOWN, "a serialized field is not of bytes");
    char const* const data = static_cast<char const*>(field.data);
    copied.push_back({field.name, field.type, field.length, true, {data, data + field.length}});
  }
  return copied;
}

}  // namespace host
