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
//
// What a plugin answers is printed; "refused WHAT" where it gives nothing or an error. The program
// fails where the plugin breaks the protocol itself, or gives different bits when run again.
//
// Compiled against our declaration of TensorRT's interface, or with CBAM_DEPLOY_NVIDIA_HEADERS
// against NVIDIA's. CUDA is the driver that dlopen finds: a GPU's, or a stand-in.
#include "tensorrt.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <string>
#include <vector>

#include "cuda.h"
#include "engine.h"
#include "misuse.h"
#include "network.h"
#include "plugin.h"

namespace host {
namespace {

Bytes read(std::string const& name) {
  std::ifstream file(name, std::ios::binary);
  require(file.good(), "cannot read " + name);
  return Bytes(std::istreambuf_iterator<char>(file), {});
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
}  // namespace host

int main() {
  std::setvbuf(stdout, nullptr, _IOLBF, 1 << 16);
  try {
    for (std::string text; std::getline(std::cin, text);) {
      std::istringstream line(text);
      try {
        host::execute(line);
      } catch (host::Refused const& refused) {
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
