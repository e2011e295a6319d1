// The TensorRT that this library is loaded beside: found in the process, never linked or loaded.
#pragma once

#include <string>

#include "tensorrt.h"

namespace cbam_deploy::tensorrt {

// Hands `text` to TensorRT's logger; to stderr where there is none.
void log(Severity severity, std::string const& text) noexcept;

// Makes `creator` known to TensorRT's registry, if a TensorRT of a known version is in the process
// and its registry has none of this name. Where LD_PRELOAD names this library, nothing else is in
// the process yet, and TensorRT is loaded, as it would be for a library that links it.
void register_creator(nvinfer1::IPluginCreatorV3One& creator) noexcept;

// Takes that back; nothing where `register_creator` did nothing.
void deregister_creator(nvinfer1::IPluginCreatorV3One& creator) noexcept;

}  // namespace cbam_deploy::tensorrt
