// Engines: how the builder makes them, and how execution contexts run them.
#pragma once

#include "tensorrt.h"

#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <iostream>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cuda.h"
#include "network.h"
#include "plugin.h"

namespace host {

// A run of some images of the files: buffers of exactly their sizes, all else NaN.
class Batch {
 public:
  Batch(std::int64_t size, std::int64_t first, std::size_t workspace) : workspace_(workspace) {
    for (Input const& input : inputs) {
      auto const bytes = static_cast<std::int64_t>(input.data.size()) / images;
      auto const begin = input.data.begin() + first * bytes;
      given_.emplace_back(input.is_map ? Bytes(begin, begin + size * bytes) : input.data);
    }
    made_.emplace_back(inputs[0].data.size() / static_cast<std::size_t>(images) *
                       static_cast<std::size_t>(size));
  }

  // The same bits each of two times.
  Bytes run(IPluginV3OneRuntime& plugin, std::vector<PluginTensorDesc> const& shapes,
            void* stream) {
    std::vector<void const*> from;
    for (Memory const& one : given_) from.push_back(one.address());
    void* const to[] = {made_[0].address()};
    Bytes results[2];
    for (Bytes& result : results) {
      made_[0].poison();
      workspace_.poison();
      cuda("cuCtxSynchronize");
      std::int32_t const code =
          plugin.enqueue(shapes.data(), &shapes.back(), from.data(), to, workspace_.address(),
                         static_cast<cudaStream_t>(stream));
      cuda("cuStreamSynchronize", stream);
      if (code) free();
      accept(code, "enqueue");
      result = made_[0].copy();
    }
    free();
    require(results[0] == results[1], "two runs give different bits");
    return results[0];
  }

 private:
  void free() {
    for (Memory& one : given_) one.free();
    for (Memory& one : made_) one.free();
    workspace_.free();
  }

  std::vector<Memory> given_, made_;
  Memory workspace_;
};

// Whether the tactic is set before a plugin is attached, after it, or after its shapes are known:
// the documentation leaves that open.
inline IPluginV3OneRuntime& prepare(Plugin& held, IPluginV3& plugin, std::int32_t tactic, int order,
                                    std::vector<PluginTensorDesc> const& shapes) {
  if (order % 3 == 0) accept(runs(plugin).setTactic(tactic), "setTactic");
  held = attached(plugin);
  IPluginV3OneRuntime& runtime = runs(*held);
  if (order % 3 == 1) accept(runtime.setTactic(tactic), "setTactic");
  accept(runtime.onShapeChange(shapes.data(), count(), &shapes.back(), 1), "onShapeChange");
  if (order % 3 == 2) accept(runtime.setTactic(tactic), "setTactic");
  return runtime;
}

inline void build(DataType type, TensorFormat format, Profile profile) {
  engines.clear();
  cuda.begin();
  Plugin parsed = create(fields, TensorRTPhase::kBUILD);
  Plugin of_network = cloned(*parsed);
  parsed.reset();
  describe_output(builds(*of_network), type);
  auto const wanted = ranges(type, format, profile);
  for (std::int32_t position = 0; position <= count(); ++position)
    if (!builds(*of_network).supportsFormatCombination(position, wanted.data(), count(), 1))
      throw Refused("supportsFormatCombination " + std::to_string(position));
  Plugin profiled = cloned(*of_network);
  char const* const id = builds(*profiled).getTimingCacheID();
  require(id && std::string(id) == builds(*of_network).getTimingCacheID(), "timing cache id");
  std::cout << "timing cache id " << id << '\n';
  char const* const metadata = builds(*profiled).getMetadataString();
  std::cout << "metadata " << (metadata ? metadata : "-") << '\n';
  auto const configure = [&](IPluginV3& plugin) {
    accept(builds(plugin).configurePlugin(wanted.data(), count(), &wanted.back(), 1),
           "configurePlugin");
  };
  configure(*profiled);
  auto const workspace_of = [&](IPluginV3& plugin) {
    return builds(plugin).getWorkspaceSize(wanted.data(), count(), &wanted.back(), 1);
  };
  std::size_t const workspace = workspace_of(*profiled);
  std::cout << "workspace " << workspace << '\n';
  auto const at_opt = shapes(type, format, profile.opt);
  Stream const stream;
  auto const numbers = tactics(builds(*profiled));
  require(tactics(builds(*cloned(*profiled))) == numbers, "a clone has other tactics");
  for (std::int32_t const tactic : numbers) {
    {
      Plugin timed;
      IPluginV3OneRuntime& runtime = prepare(timed, *profiled, tactic, tactic, at_opt);
      Batch(profile.opt, 0, workspace).run(runtime, at_opt, stream.handle());
    }
    Plugin const chosen = cloned(*profiled), again = cloned(*profiled);
    accept(runs(*chosen).setTactic(tactic), "setTactic");
    accept(runs(*again).setTactic(tactic), "setTactic");
    configure(*again);
    require(workspace_of(*again) == workspace, "the workspace is that of one tactic alone");
    engines[tactic] = {type, format, serialized(runs(*chosen)), tactic, workspace};
    Plugin const copy = cloned(*chosen);
    for (IPluginV3* const same : {again.get(), copy.get()})
      require(serialized(runs(*same)) == engines[tactic].fields, "a clone has other fields");
    std::cout << "engine " << tactic;
    for (Field const& field : engines[tactic].fields)
      std::cout << ' ' << field.name << ' ' << field.length;
    std::cout << '\n';
  }
}

// Where threads wait for each other, so that what each does next is in no order.
class Gathering {
 public:
  explicit Gathering(std::size_t threads) : missing_(threads) {}

  void wait() {
    std::unique_lock lock(mutex_);
    if (--missing_ == 0) all_here_.notify_all();
    all_here_.wait(lock, [&] { return missing_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_here_;
  std::size_t missing_;
};

struct Part { std::int64_t size, first; };

inline std::vector<Part> parts(std::string const& text) {
  std::vector<Part> found;
  std::istringstream stream(text);
  for (std::string one; std::getline(stream, one, ',');) {
    Part part{};
    require(std::sscanf(one.c_str(), "%ld@%ld", &part.size, &part.first) == 2, "parts: " + text);
    require(part.first + part.size <= images, "no such images: " + text);
    found.push_back(part);
  }
  return found;
}

inline void run(Engine const& engine, std::string const& prefix,
                std::vector<std::string> const& contexts) {
  cuda.begin();
  Plugin deserialized = create(engine.fields, TensorRTPhase::kRUNTIME);
  std::vector<Plugin> held(contexts.size());
  std::vector<std::function<void()>> tasks;
  Gathering gathering(contexts.size());
  for (std::size_t number = 0; number < contexts.size(); ++number) {
    std::vector<Part> const batches = parts(contexts[number]);
    auto const first = shapes(engine.type, engine.format, batches.at(0).size);
    held[number] = attached(*deserialized);
    IPluginV3OneRuntime* const runtime = &runs(*held[number]);
    tasks.push_back([=, &engine, &gathering, &held] {
      cuda.enter();
      Stream const stream;
      std::exception_ptr fault;
      try {
        // Whether a tactic is set anew for an engine, the documentation leaves open.
        if (number % 2) accept(runtime->setTactic(engine.tactic), "setTactic");
        // Another engine comes and goes meanwhile.
        Plugin const other = create(engine.fields, TensorRTPhase::kRUNTIME);
        accept(runs(*other).onShapeChange(first.data(), count(), &first.back(), 1),
               "onShapeChange");
      } catch (...) {
        fault = std::current_exception();
      }
      gathering.wait();
      if (fault) std::rethrow_exception(fault);
      for (std::size_t i = 0; i < batches.size(); ++i) {
        auto const now = shapes(engine.type, engine.format, batches[i].size);
        accept(runtime->onShapeChange(now.data(), count(), &now.back(), 1), "onShapeChange");
        Bytes const y = Batch(batches[i].size, batches[i].first, engine.workspace)
                            .run(*runtime, now, stream.handle());
        std::ofstream(prefix + '.' + std::to_string(number) + '.' + std::to_string(i),
                      std::ios::binary)
            .write(y.data(), static_cast<std::streamsize>(y.size()));
      }
      held[number].reset();
    });
  }
  // The engine may go before its contexts do.
  if (contexts.size() > 1) deserialized.reset();
  std::vector<std::exception_ptr> faults(tasks.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < tasks.size(); ++i)
    threads.emplace_back([&, i] {
      try {
        tasks[i]();
      } catch (...) {
        faults[i] = std::current_exception();
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (std::exception_ptr const& fault : faults)
    if (fault) std::rethrow_exception(fault);
  std::cout << "ran " << engine.tactic << '\n';
}

// One image through a plugin that a script holds.
inline void run(Held& one) {
  auto const now = shapes(one.engine.type, one.engine.format, 1);
  accept(runs(*one.plugin).onShapeChange(now.data(), count(), &now.back(), 1), "onShapeChange");
  Batch(1, 0, one.engine.workspace).run(runs(*one.plugin), now, nullptr);
}

inline void save(Engine const& engine, std::string const& prefix) {
  for (Field const& field : engine.fields)
    std::ofstream(prefix + '.' + field.name, std::ios::binary)
        .write(field.data.data(), static_cast<std::streamsize>(field.data.size()));
}

}  // namespace host
