// The TensorRT that this library is loaded beside: found in the process, never linked or loaded.
#pragma once

#include <string>

#include "tensorrt.h"

namespace cbam_deploy::tensorrt {

// Hands `text` to TensorRT's logger as an error; to stderr where there is none.
void log_error(std::string const& text) noexcept;

// Makes `creator` known to TensorRT's registry, if its version is known and its registry has none of
// this name. Where no TensorRT is in the process yet (LD_PRELOAD, Polygraphy's --plugins), the one
// that the loader finds is loaded, as it would be for a library that links it.
void register_creator(nvinfer1::IPluginCreatorV3One& creator) noexcept;

// Takes that back; nothing where `register_creator` did nothing.
void deregister_creator(nvinfer1::IPluginCreatorV3One& creator) noexcept;

}  // namespace cbam_deploy::tensorrt
