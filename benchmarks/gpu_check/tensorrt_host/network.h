// What TensorRT knows of a network with one plugin node: its inputs, fields, shapes and formats.
#pragma once

#include "tensorrt.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cuda.h"

namespace host {

using namespace nvinfer1;

struct Input {
  std::string name;
  bool is_map;
  Bytes data;
  std::vector<std::int64_t> sizes;  // without the batch
};

struct Field {
  std::string name;
  PluginFieldType type;
  std::int32_t length;
  bool has_data;
  Bytes data;

  bool operator==(Field const& other) const {
    return name == other.name && type == other.type && length == other.length &&
           has_data == other.has_data && data == other.data;
  }
};

struct Engine {
  DataType type;
  TensorFormat format;
  std::vector<Field> fields;
  std::int32_t tactic;
  std::size_t workspace;
};

constexpr char const* kTypes[] = {"float32", "float16", "int8", "int32", "bool", "uint8", "fp8",
                                  "bfloat16", "int64", "int4"};
constexpr char const* kFormats[] = {"LINEAR", "CHW2", "HWC8", "CHW4", "CHW16", "CHW32", "DHWC8",
                                    "CDHW32", "HWC", "DLA_LINEAR", "DLA_HWC4", "HWC16", "DHWC"};
constexpr int kUndefined = 0x7f7f7f7f;

template <std::size_t n>
int number_of(char const* const (&names)[n], std::string const& name) {
  auto const found = std::find(names, names + n, name);
  require(found != names + n, "no such name: " + name);
  return static_cast<int>(found - names);
}

using Plugin = std::unique_ptr<IPluginV3>;

struct Held {
  Plugin plugin;
  Engine engine;  // without fields: the plugin is not to be run
};

// Everything that a script has made so far.
inline IPluginCreatorV3One* creator;
inline std::vector<Input> inputs;
inline std::int64_t images = 1;
inline std::vector<Field> fields;
inline std::map<std::int32_t, Engine> engines;
inline std::vector<Held> kept;

inline Dims dimensions(Input const& input, std::int64_t batch) {
  Dims dims{};
  if (input.is_map) dims.d[dims.nbDims++] = batch;
  for (std::int64_t const size : input.sizes) dims.d[dims.nbDims++] = size;
  return dims;
}

// Inputs, then y, whose shape is that of the first input.
inline std::vector<Input const*> tensors() {
  std::vector<Input const*> all;
  for (Input const& input : inputs) all.push_back(&input);
  all.push_back(&inputs.at(0));
  return all;
}

inline std::vector<PluginTensorDesc> shapes(DataType type, TensorFormat format,
                                            std::int64_t batch) {
  std::vector<PluginTensorDesc> made;
  for (Input const* const one : tensors()) {
    PluginTensorDesc desc{};
    desc.dims = dimensions(*one, batch);
    desc.type = one->is_map ? type : DataType::kFLOAT;
    desc.format = one->is_map ? format : TensorFormat::kLINEAR;
    desc.scale = 1.0F;
    made.push_back(desc);
  }
  return made;
}

struct Profile { std::int64_t min, opt, max; };

inline std::vector<DynamicPluginTensorDesc> ranges(DataType type, TensorFormat format,
                                                   Profile profile) {
  std::vector<DynamicPluginTensorDesc> made;
  auto const free = shapes(type, format, -1);
  auto const all = tensors();
  for (std::size_t i = 0; i < all.size(); ++i) {
    DynamicPluginTensorDesc range{};
    range.desc = free[i];
    range.min = dimensions(*all[i], profile.min);
    range.opt = dimensions(*all[i], profile.opt);
    range.max = dimensions(*all[i], profile.max);
    made.push_back(range);
  }
  return made;
}

inline std::int32_t count() { return static_cast<std::int32_t>(inputs.size()); }

}  // namespace host
