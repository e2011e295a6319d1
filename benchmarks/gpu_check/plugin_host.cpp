// Plays TensorRT's part for the plugin library, call by call: parser and builder, then engine and
// execution contexts. Takes commands from standard input, a line each:
//
//   say TEXT                  print the command
//   library FILE              load it, and take its creator
//   registry FILE LIBRARY     the same through TensorRT's registry (11.x), of the library FILE
//   images COUNT              images in the files of maps
//   map NAME FILE C H W       an input that is a feature map, in the order of the node's inputs
//   weight NAME FILE SIZE...  any other input
//   fields                    begin another set of fields
//   field NAME TYPE LENGTH FILE OFFSET BYTES    one field; FILE "-": no data
//   offers                    every combination of types and formats that the plugin supports
//   offers-anyhow             the same, without a CUDA context
//   build TYPE FORMAT MIN OPT MAX    an engine per tactic; the maps' type and format, batches
//   run TACTIC PREFIX CONTEXT...     run an engine in contexts, a thread each. CONTEXT is a list
//                             COUNT@FIRST,... of batches, images of the files; y goes to files
//                             PREFIX.CONTEXT.BATCH
//   save TACTIC PREFIX        an engine's fields, to files PREFIX.FIELD
//   engine TACTIC TYPE FORMAT WORKSPACE    the fields are those of an engine
//   parse                     a plugin from the fields, as the parser makes it; it stays
//   hold TACTIC               a plugin from an engine that has run once; it stays
//   again                     run the plugins on hold
//   release                   destroy all plugins that stayed
//   gpu NUMBER                have its context current
//   misuse NAME               a call that no TensorRT makes; "list" lists them
//   rehearse build|runtime    all of these, without memory or regard for what is answered
//   no-context                have no CUDA context current from here on
//
// What a plugin answers is printed; "refused WHAT" where it gives nothing or an error. The program
// fails where the plugin breaks the protocol itself, or gives different bits when run again.
//
// Compiled against our declaration of TensorRT's interface, or with CBAM_DEPLOY_NVIDIA_HEADERS
// against NVIDIA's. CUDA is the driver that dlopen finds: a GPU's, or a stand-in.
#include "tensorrt.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace nvinfer1;

namespace {

using Bytes = std::vector<char>;

// The plugin said no; the program goes on with the next command.
struct Refused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void require(bool holds, std::string const& what) {
  if (!holds) throw std::runtime_error(what);
}

void accept(std::int32_t code, std::string const& function) {
  if (code) throw Refused(function);
}

Bytes read(std::string const& name) {
  std::ifstream file(name, std::ios::binary);
  require(file.good(), "cannot read " + name);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

// The driver's functions by name.
class Cuda {
 public:
  template <typename... Parameters>
  void operator()(char const* name, Parameters... parameters) const {
    auto const function = reinterpret_cast<int (*)(Parameters...)>(dlsym(library_, name));
    require(function != nullptr, std::string("the driver has no ") + name);
    int const result = function(parameters...);
    require(result == 0, std::string(name) + " answers " + std::to_string(result));
  }

  // The context of GPU 0, current from here on, unless another was chosen.
  void begin() {
    if (!context_) choose(0);
  }

  void choose(int gpu) {
    if (!library_) library_ = dlopen("libcuda.so.1", RTLD_NOW);
    require(library_ != nullptr, "no libcuda.so.1");
    int device = 0;
    (*this)("cuInit", 0U);
    (*this)("cuDeviceGet", &device, gpu);
    (*this)("cuDevicePrimaryCtxRetain", &context_, device);
    enter();
  }

  void enter() const { (*this)("cuCtxSetCurrent", context_); }
  void leave() const { (*this)("cuCtxSetCurrent", static_cast<void*>(nullptr)); }

 private:
  void* library_ = nullptr;
  void* context_ = nullptr;
};
Cuda cuda;

// Device memory of exactly the size that is asked for, all bits set.
class Memory {
 public:
  explicit Memory(std::size_t bytes) : bytes_(bytes) {
    if (bytes) cuda("cuMemAlloc_v2", &address_, bytes);
    poison();
  }
  explicit Memory(Bytes const& from) : Memory(from.size()) {
    if (bytes_) cuda("cuMemcpyHtoD_v2", address_, static_cast<void const*>(from.data()), bytes_);
  }
  Memory(Memory&& other) noexcept : address_(other.address_), bytes_(other.bytes_) {
    other.address_ = 0;
  }
  ~Memory() { require(address_ == 0, "device memory was not given back"); }

  void poison() const {
    if (bytes_) cuda("cuMemsetD8_v2", address_, static_cast<unsigned char>(0xff), bytes_);
  }
  Bytes copy() const {
    Bytes to(bytes_);
    if (bytes_) cuda("cuMemcpyDtoH_v2", static_cast<void*>(to.data()), address_, bytes_);
    return to;
  }
  // Fails where somebody wrote beside it, if the driver notices.
  void free() {
    if (bytes_) cuda("cuMemFree_v2", address_);
    address_ = 0;
  }
  void* address() const { return reinterpret_cast<void*>(address_); }

 private:
  unsigned long long address_ = 0;
  std::size_t bytes_;
};

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
IPluginCreatorV3One* creator;
std::vector<Input> inputs;
std::int64_t images = 1;
std::vector<Field> fields;
std::map<std::int32_t, Engine> engines;
std::vector<Held> kept;

template <typename Interface>
Interface& capability(IPluginV3& plugin, PluginCapabilityType type, std::string const& kind) {
  IPluginCapability* const found = plugin.getCapabilityInterface(type);
  require(found != nullptr, "no interface " + kind);
  InterfaceInfo const info = found->getInterfaceInfo();
  require(info.kind == kind && info.major == 1 && info.minor == 0, "it is no " + kind);
  require(found->getAPILanguage() == APILanguage::kCPP, "its language is not C++");
  return *static_cast<Interface*>(found);
}

IPluginV3OneCore& core(IPluginV3& plugin) {
  return capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE, "PLUGIN_V3ONE_CORE");
}
IPluginV3OneBuild& builds(IPluginV3& plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD, "PLUGIN_V3ONE_BUILD");
}
IPluginV3OneRuntime& runs(IPluginV3& plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME,
                                         "PLUGIN_V3ONE_RUNTIME");
}

Plugin create(std::vector<Field> const& from, TensorRTPhase phase) {
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

Plugin cloned(IPluginV3& plugin) {
  Plugin copy(plugin.clone());
  if (!copy) throw Refused("clone");
  require(copy.get() != &plugin, "its clone is itself");
  return copy;
}

// TensorRT's object, which the plugin may keep and has no use for.
IPluginResourceContext* resource_context() {
  alignas(16) static char object[64];
  return reinterpret_cast<IPluginResourceContext*>(object);
}

Plugin attached(IPluginV3& plugin) {
  Plugin copy(runs(plugin).attachToContext(resource_context()));
  if (!copy) throw Refused("attachToContext");
  require(copy.get() != &plugin, "attachToContext gives the plugin itself");
  return copy;
}

Dims dimensions(Input const& input, std::int64_t batch) {
  Dims dims{};
  if (input.is_map) dims.d[dims.nbDims++] = batch;
  for (std::int64_t const size : input.sizes) dims.d[dims.nbDims++] = size;
  return dims;
}

// Inputs, then y, whose shape is that of the first input.
std::vector<Input const*> tensors() {
  std::vector<Input const*> all;
  for (Input const& input : inputs) all.push_back(&input);
  all.push_back(&inputs.at(0));
  return all;
}

std::vector<PluginTensorDesc> shapes(DataType type, TensorFormat format, std::int64_t batch) {
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

std::vector<DynamicPluginTensorDesc> ranges(DataType type, TensorFormat format, Profile profile) {
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

std::int32_t count() { return static_cast<std::int32_t>(inputs.size()); }

// What all positions from `position` on may be, in TensorRT's order: only what lies before a
// position is valid when it is asked for.
using Offer = std::vector<std::pair<int, int>>;
void search(IPluginV3OneBuild& plugin, Profile profile, Offer& so_far, std::vector<Offer>& found) {
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

std::vector<Offer> offers(IPluginV3& plugin, Profile profile) {
  Offer none;
  std::vector<Offer> found;
  search(builds(plugin), profile, none, found);
  require(static_cast<int>(found.size()) <= builds(plugin).getFormatCombinationLimit(),
          "more offers than its limit");
  return found;
}

void print(Offer const& offer) {
  std::cout << "offer";
  for (auto const& [type, format] : offer)
    std::cout << ' ' << kTypes[type] << ':' << kFormats[format];
  std::cout << '\n';
}

// Types and shapes of the output, as a network asks for them.
void describe_output(IPluginV3OneBuild& plugin, DataType type) {
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

std::vector<std::int32_t> tactics(IPluginV3OneBuild& plugin) {
  std::vector<std::int32_t> found(static_cast<std::size_t>(plugin.getNbTactics()));
  accept(plugin.getValidTactics(found.data(), static_cast<std::int32_t>(found.size())),
         "getValidTactics");
  auto sorted = found;
  std::sort(sorted.begin(), sorted.end());
  require(sorted.empty() || sorted.front() > 0, "a tactic is not positive");
  require(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(), "a tactic twice");
  return found;
}

std::vector<Field> serialized(IPluginV3OneRuntime& plugin) {
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
IPluginV3OneRuntime& prepare(Plugin& held, IPluginV3& plugin, std::int32_t tactic, int order,
                             std::vector<PluginTensorDesc> const& shapes) {
  if (order % 3 == 0) accept(runs(plugin).setTactic(tactic), "setTactic");
  held = attached(plugin);
  IPluginV3OneRuntime& runtime = runs(*held);
  if (order % 3 == 1) accept(runtime.setTactic(tactic), "setTactic");
  accept(runtime.onShapeChange(shapes.data(), count(), &shapes.back(), 1), "onShapeChange");
  if (order % 3 == 2) accept(runtime.setTactic(tactic), "setTactic");
  return runtime;
}

void build(DataType type, TensorFormat format, Profile profile) {
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
  std::size_t const workspace =
      builds(*profiled).getWorkspaceSize(wanted.data(), count(), &wanted.back(), 1);
  std::cout << "workspace " << workspace << '\n';
  auto const configured_anew = [&](std::int32_t tactic) {
    Plugin const again = cloned(*profiled);
    accept(runs(*again).setTactic(tactic), "setTactic");
    configure(*again);
    return builds(*again).getWorkspaceSize(wanted.data(), count(), &wanted.back(), 1);
  };
  auto const at_opt = shapes(type, format, profile.opt);
  void* stream = nullptr;
  cuda("cuStreamCreate", &stream, 1U);
  for (std::int32_t const tactic : tactics(builds(*profiled))) {
    {
      Plugin timed;
      IPluginV3OneRuntime& runtime = prepare(timed, *profiled, tactic, tactic, at_opt);
      Batch(profile.opt, 0, workspace).run(runtime, at_opt, stream);
    }
    require(configured_anew(tactic) == workspace, "the workspace is that of one tactic alone");
    Plugin chosen = cloned(*profiled);
    configure(*chosen);
    accept(runs(*chosen).setTactic(tactic), "setTactic");
    engines[tactic] = {type, format, serialized(runs(*chosen)), tactic, workspace};
    std::cout << "engine " << tactic;
    for (Field const& field : engines[tactic].fields)
      std::cout << ' ' << field.name << ' ' << field.length;
    std::cout << '\n';
  }
  cuda("cuStreamDestroy_v2", stream);
}

struct Part { std::int64_t size, first; };

std::vector<Part> parts(std::string const& text) {
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

void run(Engine const& engine, std::string const& prefix, std::vector<std::string> const& contexts) {
  cuda.begin();
  Plugin deserialized = create(engine.fields, TensorRTPhase::kRUNTIME);
  std::vector<Plugin> held(contexts.size());
  std::vector<std::function<void()>> tasks;
  for (std::size_t number = 0; number < contexts.size(); ++number) {
    std::vector<Part> const batches = parts(contexts[number]);
    auto const first = shapes(engine.type, engine.format, batches.at(0).size);
    // An engine without tactics of its own has the default one, 0; one may have them set or not.
    IPluginV3OneRuntime* runtime;
    if (number % 2) {
      held[number] = attached(*deserialized);
      runtime = &runs(*held[number]);
    } else {
      runtime = &prepare(held[number], *deserialized, engine.tactic, 1 + (number / 2) % 2, first);
    }
    tasks.push_back([=, &engine, &held] {
      cuda.enter();
      {  // another engine comes and goes meanwhile
        Plugin const other = create(engine.fields, TensorRTPhase::kRUNTIME);
        accept(runs(*other).onShapeChange(first.data(), count(), &first.back(), 1),
               "onShapeChange");
      }
      void* stream = nullptr;
      cuda("cuStreamCreate", &stream, 1U);
      for (std::size_t i = 0; i < batches.size(); ++i) {
        auto const now = shapes(engine.type, engine.format, batches[i].size);
        accept(runtime->onShapeChange(now.data(), count(), &now.back(), 1), "onShapeChange");
        Bytes const y = Batch(batches[i].size, batches[i].first, engine.workspace)
                            .run(*runtime, now, stream);
        std::ofstream(prefix + '.' + std::to_string(number) + '.' + std::to_string(i),
                      std::ios::binary)
            .write(y.data(), static_cast<std::streamsize>(y.size()));
      }
      cuda("cuStreamDestroy_v2", stream);
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
void run(Held& one) {
  auto const now = shapes(one.engine.type, one.engine.format, 1);
  accept(runs(*one.plugin).onShapeChange(now.data(), count(), &now.back(), 1), "onShapeChange");
  Batch(1, 0, one.engine.workspace).run(runs(*one.plugin), now, nullptr);
}

void save(Engine const& engine, std::string const& prefix) {
  for (Field const& field : engine.fields)
    std::ofstream(prefix + '.' + field.name, std::ios::binary)
        .write(field.data.data(), static_cast<std::streamsize>(field.data.size()));
}

// Every call with fields that may be anything. Nothing is launched that takes memory, so the driver
// has to be one that only checks.
void rehearse(TensorRTPhase phase) {
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
void misuse(std::string const& name) {
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

void describe_creator() {
  std::cout << "creator " << creator->getPluginNamespace() << ' ' << creator->getPluginName() << ' '
            << creator->getPluginVersion() << '\n';
  PluginFieldCollection const* const names = creator->getFieldNames();
  for (std::int32_t i = 0; i < names->nbFields; ++i)
    std::cout << "field " << names->fields[i].name << ' '
              << static_cast<std::int32_t>(names->fields[i].type) << '\n';
}

void take(IPluginCreatorInterface* found) {
  require(found != nullptr, "no creator");
  InterfaceInfo const info = found->getInterfaceInfo();
  require(!std::strcmp(info.kind, "PLUGIN CREATOR_V3ONE") && info.major == 1 && info.minor == 0,
          "the creator is of another kind");
  creator = static_cast<IPluginCreatorV3One*>(found);
  describe_creator();
}

void load(std::string const& file) {
  void* const library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  require(library != nullptr, library ? "" : dlerror());
  using GetCreators = IPluginCreatorInterface* const* (*)(std::int32_t&);
  auto const get = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  require(get != nullptr, "no getCreators");
  std::int32_t found = 0;
  IPluginCreatorInterface* const* const creators = get(found);
  require(found == 1, "not one creator");
  take(creators[0]);
}

void load(std::string const& registry, std::string const& file) {
  using cbam_deploy::tensorrt::call;
  constexpr int kLoadLibrary = 6, kGetCreator = 10;  // places in IPluginRegistry of 11.x
  void* const tensorrt = dlopen(registry.c_str(), RTLD_NOW | RTLD_LOCAL);
  require(tensorrt != nullptr, tensorrt ? "" : dlerror());
  auto const get = reinterpret_cast<void* (*)()>(dlsym(tensorrt, "getPluginRegistry"));
  require(get != nullptr, "no getPluginRegistry");
  require(call<void*>(get(), kLoadLibrary, file.c_str()) != nullptr, "loadLibrary gives null");
  take(call<IPluginCreatorInterface*>(get(), kGetCreator, "FusedGate", "1", "cbam_deploy"));
}

template <typename T>
T next(std::istream& line) {
  T value;
  require(static_cast<bool>(line >> value), "a word is missing");
  return value;
}

DataType type_in(std::istream& line) {
  return static_cast<DataType>(number_of(kTypes, next<std::string>(line)));
}

TensorFormat format_in(std::istream& line) {
  return static_cast<TensorFormat>(number_of(kFormats, next<std::string>(line)));
}

Field field(std::istream& line) {
  Field made;
  made.name = next<std::string>(line);
  if (made.name == "-") made.name.clear();
  made.type = static_cast<PluginFieldType>(next<std::int32_t>(line));
  made.length = next<std::int32_t>(line);
  auto const file = next<std::string>(line);
  auto const offset = next<std::size_t>(line), bytes = next<std::size_t>(line);
  made.has_data = file != "-";
  static std::string last;
  static Bytes content;
  if (made.has_data && file != last) content = read(last = file);
  if (made.has_data) {
    require(offset + bytes <= content.size(), "a field beyond its file");
    made.data.assign(content.begin() + offset, content.begin() + offset + bytes);
    made.data.shrink_to_fit();  // so that a sanitizer sees a step beyond
  }
  return made;
}

Input input(std::istream& line, bool is_map) {
  Input made;
  made.name = next<std::string>(line);
  made.is_map = is_map;
  made.data = read(next<std::string>(line));
  for (std::int64_t size; line >> size;) made.sizes.push_back(size);
  return made;
}

void execute(std::istringstream& line) {
  auto const command = next<std::string>(line);
  if (command == "library") return load(next<std::string>(line));
  if (command == "registry") {
    auto const registry = next<std::string>(line);
    return load(registry, next<std::string>(line));
  }
  if (command == "say") return void(std::cout << line.str() << std::endl);
  if (command == "images") return void(images = next<std::int64_t>(line));
  if (command == "map" || command == "weight")
    return inputs.push_back(input(line, command == "map"));
  if (command == "inputs") return inputs.clear();
  if (command == "fields") return fields.clear();
  if (command == "field") return fields.push_back(field(line));
  if (command == "no-context") return cuda.begin(), cuda.leave();
  if (command == "misuse") return misuse(next<std::string>(line));
  if (command == "rehearse")
    return rehearse(next<std::string>(line) == "build" ? TensorRTPhase::kBUILD
                                                       : TensorRTPhase::kRUNTIME);
  if (command == "offers" || command == "offers-anyhow") {
    if (command == "offers") cuda.begin();
    Plugin const plugin = create(fields, TensorRTPhase::kBUILD);
    auto const found = offers(*plugin, {1, 1, images});
    for (Offer const& offer : found) print(offer);
    return;
  }
  if (command == "parse")
    return kept.push_back({create(fields, TensorRTPhase::kBUILD), Engine{}});
  if (command == "release") return kept.clear();
  if (command == "gpu") return cuda.choose(next<int>(line));
  if (command == "again") {
    for (Held& one : kept)
      if (!one.engine.fields.empty()) run(one);
    std::cout << "ran again\n";
    return;
  }
  if (command == "build") {
    auto const type = type_in(line);
    auto const format = format_in(line);
    auto const min = next<std::int64_t>(line), opt = next<std::int64_t>(line);
    return build(type, format, {min, opt, next<std::int64_t>(line)});
  }
  auto const tactic = next<std::int32_t>(line);
  if (command == "engine") {
    auto const type = type_in(line);
    auto const format = format_in(line);
    engines[tactic] = {type, format, fields, tactic, next<std::size_t>(line)};
    return;
  }
  require(engines.count(tactic) == 1, "no such engine");
  Engine const& engine = engines[tactic];
  if (command == "save") return save(engine, next<std::string>(line));
  if (command == "hold") {
    cuda.begin();
    Held made{create(engine.fields, TensorRTPhase::kRUNTIME), engine};
    run(made);
    return kept.push_back(std::move(made));
  }
  require(command == "run", "no such command: " + command);
  auto const prefix = next<std::string>(line);
  run(engine, prefix, {std::istream_iterator<std::string>(line), {}});
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 16);
  try {
    for (std::string text; std::getline(std::cin, text);) {
      std::istringstream line(text);
      try {
        execute(line);
      } catch (Refused const& refused) {
        std::cout << "refused " << refused.what() << '\n';
      }
      std::cout.flush();
    }
  } catch (std::exception const& fault) {
    std::cout << "violation: " << fault.what() << std::endl;
    return 1;
  }
  return 0;
}
