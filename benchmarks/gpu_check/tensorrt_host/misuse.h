// What no TensorRT does: fields that may be anything, and calls that make no sense.
#pragma once

#include "tensorrt.h"

#include <cstdint>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "engine.h"

namespace host {

// Every call with fields that may be anything. Nothing is launched that takes memory, so the driver
// has to be one that only checks.
inline void rehearse(TensorRTPhase phase) {
  cuda.begin();
  Plugin plugin = create(fields, phase);
  Profile const profile{1, 2, 4};
  std::size_t enqueued = 0;
  std::string refused;
  for (Offer const& offer : offers(*plugin, profile)) {
    auto const type = static_cast<DataType>(offer[0].first);
    auto const format = static_cast<TensorFormat>(offer[0].second);
    try {
      describe_output(builds(*plugin), type);
      auto const wanted = ranges(type, format, profile);
      accept(builds(*plugin).configurePlugin(wanted.data(), count(), &wanted.back(), 1),
             "configurePlugin");
      builds(*plugin).getWorkspaceSize(wanted.data(), count(), &wanted.back(), 1);
      auto const now = shapes(type, format, profile.max);
      std::vector<void const*> from(inputs.size(), &now);
      void* const to[] = {&enqueued};
      for (std::int32_t const tactic : tactics(builds(*plugin))) {
        Plugin held;
        IPluginV3OneRuntime& runtime = prepare(held, *plugin, tactic, tactic, now);
        accept(runtime.enqueue(now.data(), &now.back(), from.data(), to, nullptr, nullptr),
               "enqueue");
        auto const again = create(serialized(runtime), TensorRTPhase::kRUNTIME);
        accept(runs(*again).onShapeChange(now.data(), count(), &now.back(), 1), "onShapeChange");
        ++enqueued;
      }
    } catch (Refused const& no) {
      refused = no.what();
    }
  }
  if (!enqueued) throw Refused(refused.empty() ? "supportsFormatCombination" : refused);
  std::cout << "works\n";
}

// Calls that no TensorRT makes, but a plugin must outlive; what they answer is printed.
inline void misuse(std::string const& name) {
  require(!engines.empty(), "no engine was built");
  Engine const& engine = engines.begin()->second;
  Plugin const plugin = create(engine.fields, TensorRTPhase::kRUNTIME);
  IPluginV3OneRuntime& runtime = runs(*plugin);
  auto now = shapes(engine.type, engine.format, 1);
  auto const change = [&](std::int32_t of_inputs, std::int32_t of_outputs) {
    return runtime.onShapeChange(now.data(), of_inputs, &now.back(), of_outputs);
  };
  std::vector<void const*> const from(inputs.size(), &now);
  void* const to[] = {&now};
  auto const enqueue = [&] {
    return runtime.enqueue(now.data(), &now.back(), from.data(), to, nullptr, nullptr);
  };
  auto const batch = [&](std::int64_t size) {
    now = shapes(engine.type, engine.format, size);
    std::int32_t const code = change(count(), 1);
    return code ? code : enqueue();
  };
  std::map<std::string, std::function<std::int32_t()>> const calls = {
      {"another-height", [&] { return ++now[0].dims.d[2], change(count(), 1); }},
      {"another-channel-count", [&] { return --now[0].dims.d[1], change(count(), 1); }},
      {"three-dimensions", [&] { return now[0].dims.nbDims = 3, change(count(), 1); }},
      {"no-dimensions", [&] { return now[0].dims.nbDims = 0, change(count(), 1); }},
      {"unknown-dimensions", [&] { return now[0].dims.nbDims = -1, change(count(), 1); }},
      {"a-hundred-dimensions", [&] { return now[0].dims.nbDims = 100, change(count(), 1); }},
      {"free-batch", [&] { return batch(-1); }},
      {"huge-batch", [&] { return batch(std::int64_t{1} << 40); }},
      {"boundless-batch", [&] { return batch(INT64_MAX); }},
      {"empty-batch", [&] { return batch(0); }},
      {"fewer-inputs", [&] { return change(count() - 1, 1); }},
      {"no-inputs", [&] { return change(0, 1); }},
      {"negative-inputs", [&] { return change(-1, 1); }},
      {"two-outputs", [&] { return change(count(), 2); }},
      {"another-type", [&] { return now[0].type = DataType::kINT32, change(count(), 1); }},
      {"another-layout",
       [&] { return now[0].format = static_cast<TensorFormat>(4), change(count(), 1); }},
      {"unknown-type", [&] { return now[0].type = DataType(kUndefined), change(count(), 1); }},
      {"no-shapes", [&] { return enqueue(); }},
      {"unknown-tactic",
       [&] { return runtime.setTactic(kUndefined) || change(count(), 1) || enqueue(); }},
      {"negative-tactic", [&] { return runtime.setTactic(-1) || change(count(), 1) || enqueue(); }},
      {"unknown-capability",
       [&] { return !plugin->getCapabilityInterface(PluginCapabilityType(kUndefined)); }},
      {"position-beyond",
       [&] {
         auto const wanted = ranges(engine.type, engine.format, {1, 1, 1});
         auto& builder = builds(*plugin);
         return !builder.supportsFormatCombination(count() + 1, wanted.data(), count(), 1) &&
                !builder.supportsFormatCombination(-1, wanted.data(), count(), 1) &&
                !builder.supportsFormatCombination(0, wanted.data(), count() - 1, 1);
       }},
      {"too-few-tactics",
       [&] {
         std::int32_t none = 0;
         auto const wanted = ranges(engine.type, engine.format, {1, 1, 1});
         auto& builder = builds(*plugin);
         builder.configurePlugin(wanted.data(), count(), &wanted.back(), 1);
         return builder.getValidTactics(&none, 0);
       }},
      {"changed-without-context",
       [&] { return cuda.leave(), change(count(), 1); }},
      {"enqueued-without-context",
       [&] { return change(count(), 1) ? -1 : (cuda.leave(), enqueue()); }},
  };
  if (name == "list") {
    for (auto const& call : calls) std::cout << call.first << '\n';
    return;
  }
  std::int32_t const code = calls.at(name)();
  std::cout << name << " answers " << code << '\n';
  cuda.enter();
}

}  // namespace host
