#include "program.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

namespace cbam_deploy {
namespace {

constexpr std::size_t kMostInputs = 32;
constexpr std::int64_t kLargestInt = std::numeric_limits<std::int32_t>::max();  // bytes of a field too
constexpr std::string_view kBatch = "batch";
constexpr std::int64_t kSmallestInt = std::numeric_limits<std::int32_t>::min();

struct Name {
  std::string_view name;
  std::int32_t number;
};
constexpr Name kTypes[] = {{"float32", 0}, {"float16", 1}, {"int8", 2}, {"bfloat16", 7}};
constexpr Name kLayouts[] = {{"LINEAR", 0}, {"HWC8", 2}, {"CHW32", 5}, {"HWC", 8}, {"HWC16", 11}};

template <std::size_t n>
bool number_of(Name const (&names)[n], std::string_view name, std::int32_t& number) {
  for (auto const& one : names)
    if (one.name == name) return number = one.number, true;
  return false;
}

template <std::size_t n>
std::string_view name_of(Name const (&names)[n], std::int32_t number) {
  for (auto const& one : names)
    if (one.number == number) return one.name;
  return "?";
}

// A capability such as 87 is a chip of the Tegra line, whose machine code runs on no other.
bool is_tegra(int capability) {
  return capability == 72 || capability == 87 || capability == 101 || capability == 110;
}

bool runs_machine_code(int gpu, int code) {
  if (gpu == code) return true;
  return gpu / 10 == code / 10 && gpu > code && !is_tegra(gpu) && !is_tegra(code);
}

// The words of one line.
class Words {
 public:
  explicit Words(std::string_view line) : rest_(line) {}

  bool at_end() const { return rest_.empty(); }
  std::string_view rest() const { return rest_; }

  bool word(std::string_view& out) {
    std::size_t const end = std::min(rest_.find(' '), rest_.size());
    out = rest_.substr(0, end);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    return !out.empty();
  }

  template <typename Integer>
  bool number(Integer& out, std::int64_t least, std::int64_t most) {
    std::string_view text;
    std::int64_t value;
    if (!word(text) || !to_number(text, value) || value < least || value > most) return false;
    out = static_cast<Integer>(value);
    return true;
  }

  static bool to_number(std::string_view text, std::int64_t& value) {
    auto const [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
    return fault == std::errc() && end == text.data() + text.size();
  }

 private:
  std::string_view rest_;
};

class Parser {
 public:
  Parser(std::size_t carried, Program& program) : carried_(carried), program_(program) {}

  std::string parse(std::string_view text) {
    std::size_t line_number = 0;
    while (!text.empty()) {
      std::size_t const end = text.find('\n');
      if (end == std::string_view::npos) return "its last line is cut off";
      ++line_number;
      if (!line(text.substr(0, end), line_number == 1))
        return "line " + std::to_string(line_number) + " cannot be read: " +
               std::string(text.substr(0, std::min<std::size_t>(end, 80)));
      text.remove_prefix(end + 1);
    }
    return missing();
  }

 private:
  bool line(std::string_view text, bool first) {
    Words words(text);
    std::string_view key;
    if (!words.word(key)) return false;
    if (first) return key == "cbam_deploy" && (words.rest() == "1" || words.rest() == "2");
    if (key == "gate") return program_.gate = words.rest(), true;
    if (key == "inputs") return inputs(words);
    if (key == "maps") return maps(words);
    if (key == "sizes") return sizes(words);
    if (key == "image") return image(words);
    if (key == "target") return target(words);
    if (key == "format") return format(words);
    if (key == "tactic") return tactic(words);
    if (key == "buffer") return buffer(words);
    if (key == "launch") return launch(words);
    return false;
  }

  bool inputs(Words words) {
    std::string_view name;
    if (!program_.inputs.empty()) return false;
    while (words.word(name)) {
      if (input(name) >= 0 || is_taken(name) || program_.inputs.size() == kMostInputs) return false;
      program_.inputs.emplace_back(name);
    }
    program_.is_map.assign(program_.inputs.size(), false);
    return words.at_end() && !program_.inputs.empty();
  }

  bool maps(Words words) {
    std::string_view name;
    while (words.word(name)) {
      int const index = input(name);
      if (index < 0) return false;
      program_.is_map[index] = true;
    }
    return words.at_end() && !program_.is_map.empty() && program_.is_map[0];
  }

  bool sizes(Words words) {
    for (auto& size : program_.sizes)
      if (!words.number(size, 1, kLargestInt)) return false;
    return words.at_end();
  }

  bool image(Words words) {
    Image one;
    std::string_view entry, target, key, offset;
    if (!words.word(entry) || !words.word(target) || !words.word(key) || !words.word(offset))
      return false;
    one.ptx = target.substr(0, 8) == "compute_";
    if (!one.ptx && target.substr(0, 3) != "sm_") return false;
    std::int64_t capability;
    if (!Words::to_number(target.substr(one.ptx ? 8 : 3), capability) || capability < 10 ||
        capability > 999 || !words.number(one.bytes, 1, kLargestInt) || !words.at_end())
      return false;
    one.capability = static_cast<int>(capability);
    one.offset = -1;
    if (offset != "-") {
      std::int64_t const space = static_cast<std::int64_t>(carried_) - one.bytes;
      if (!Words::to_number(offset, one.offset) || one.offset < 0 || one.offset > space)
        return false;
    }
    one.entry = entry;
    one.key = key;
    program_.images.push_back(std::move(one));
    return true;
  }

  bool target(Words words) {
    Target one;
    if (!words.number(one.capability, 10, 999) || !words.at_end()) return false;
    for (auto const& other : program_.targets)
      if (other.capability == one.capability) return false;
    program_.targets.push_back(std::move(one));
    return true;
  }

  bool format(Words words) {
    std::string_view type, layout;
    Format one;
    if (program_.targets.empty() || !words.word(type) || !words.word(layout) || !words.at_end() ||
        !number_of(kTypes, type, one.type) || !number_of(kLayouts, layout, one.layout) ||
        program_.targets.back().find(one.type, one.layout))
      return false;
    program_.targets.back().formats.push_back(std::move(one));
    return true;
  }

  bool tactic(Words words) {
    Tactic one;
    if (program_.targets.empty() || program_.targets.back().formats.empty() ||
        !words.number(one.number, 1, kLargestInt) || !words.at_end())
      return false;
    auto& format = program_.targets.back().formats.back();
    if (format.find(one.number)) return false;
    format.tactics.push_back(std::move(one));
    return true;
  }

  bool buffer(Words words) {
    std::string_view name;
    Buffer one;
    Tactic* const tactic = current();
    if (!tactic || !words.word(name) || !words.number(one.bytes_per_image, 1, kLargestInt) ||
        !words.at_end() || input(name) >= 0 || is_taken(name) || buffer(*tactic, name) >= 0)
      return false;
    one.name = name;
    tactic->buffers.push_back(std::move(one));
    return true;
  }

  bool launch(Words words) {
    std::string_view entry, word;
    Launch one;
    Tactic* const tactic = current();
    if (!tactic || !words.word(entry) || !words.number(one.blocks_per_image, 1, kLargestInt) ||
        !words.number(one.cluster, 1, 64) || !words.number(one.threads, 1, 1024) ||
        !words.number(one.shared_bytes, 0, 1 << 24) || !words.word(word) ||
        one.blocks_per_image % one.cluster)
      return false;
    one.persistent = word == "persistent";
    if (one.persistent && !words.word(word)) return false;
    // Kernels wait for the launch in front of them on GPUs of compute capability 9.0 and later; it
    // has to be one of the gate's, which has itself waited for all before it.
    one.programmatic = word == "programmatic" && program_.targets.back().capability >= 90 &&
                       !tactic->launches.empty();
    if (one.programmatic && !words.word(word)) return false;
    if (word != ":") return false;
    while (words.word(word)) {
      Argument argument;
      if (one.arguments.size() == kMostArguments || !this->argument(*tactic, word, argument))
        return false;
      one.arguments.push_back(argument);
    }
    one.entry = entry;
    tactic->launches.push_back(std::move(one));
    return words.at_end();
  }

  bool argument(Tactic const& tactic, std::string_view word, Argument& out) const {
    std::int64_t number;
    if (Words::to_number(word, number)) {
      out = {Argument::Kind::kNumber, static_cast<std::int32_t>(number)};
      return number >= kSmallestInt && number <= kLargestInt;
    }
    if (word == "y") return out = {Argument::Kind::kOutput, 0}, true;
    if (word == kBatch) return out = {Argument::Kind::kBatch, 0}, true;
    if (int const index = input(word); index >= 0)
      return out = {Argument::Kind::kInput, index}, true;
    int const index = buffer(tactic, word);
    return out = {Argument::Kind::kBuffer, index}, index >= 0;
  }

  // What a program must have and this one lacks.
  std::string missing() const {
    if (program_.inputs.empty()) return "it names no inputs";
    if (!program_.is_map[0]) return "its first input is no map";
    if (program_.sizes[0] == 0) return "it names no sizes";
    if (program_.targets.empty()) return "it has launches for no GPU";
    for (auto const& target : program_.targets) {
      if (target.formats.empty()) return "a target has no format";
      for (auto const& format : target.formats) {
        if (format.tactics.empty()) return "a format has no tactic";
        for (auto const& tactic : format.tactics)
          if (tactic.launches.empty()) return "a tactic has no launch";
      }
    }
    return {};
  }

  Tactic* current() {
    if (program_.targets.empty() || program_.targets.back().formats.empty()) return nullptr;
    auto& tactics = program_.targets.back().formats.back().tactics;
    return tactics.empty() ? nullptr : &tactics.back();
  }

  static bool is_taken(std::string_view name) { return name == "y" || name == kBatch; }

  int input(std::string_view name) const {
    auto const& names = program_.inputs;
    auto const found = std::find(names.begin(), names.end(), name);
    return found == names.end() ? -1 : static_cast<int>(found - names.begin());
  }

  static int buffer(Tactic const& tactic, std::string_view name) {
    for (std::size_t index = 0; index < tactic.buffers.size(); ++index)
      if (tactic.buffers[index].name == name) return static_cast<int>(index);
    return -1;
  }

  std::size_t const carried_;
  Program& program_;
};

}  // namespace

std::string Image::target() const { return (ptx ? "compute_" : "sm_") + std::to_string(capability); }

std::int64_t Tactic::largest_batch() const {
  std::int64_t most = kMostBlocks;
  for (auto const& launch : launches)
    if (!launch.persistent) most = std::min(most, kMostBlocks / launch.blocks_per_image);
  return most;
}

std::size_t Tactic::offset(std::size_t index, std::int64_t batch) const {
  std::size_t offset = 0;
  for (std::size_t before = 0; before < index; ++before) {
    auto const bytes = static_cast<std::size_t>(buffers[before].bytes_per_image * batch);
    offset += (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
  }
  return offset;
}

std::size_t Tactic::workspace(std::int64_t batch) const { return offset(buffers.size(), batch); }

Tactic const* Format::find(std::int32_t number) const {
  for (auto const& tactic : tactics)
    if (tactic.number == number) return &tactic;
  return nullptr;
}

Format const* Target::find(std::int32_t type, std::int32_t layout) const {
  for (auto const& format : formats)
    if (format.type == type && format.layout == layout) return &format;
  return nullptr;
}

Target const* Program::target(int capability) const {
  Target const* best = nullptr;
  for (auto const& target : targets)
    if (target.capability <= capability && (!best || target.capability > best->capability))
      best = &target;
  return best;
}

Image const* Program::image(std::string_view entry, int capability) const {
  Image const* best = nullptr;
  for (auto const& image : images) {
    bool const runs = image.ptx ? image.capability <= capability
                                : runs_machine_code(capability, image.capability);
    if (image.entry != entry || !runs) continue;
    auto const rank = [](Image const& one) { return std::pair(!one.ptx, one.capability); };
    if (!best || rank(image) > rank(*best)) best = &image;
  }
  return best;
}

std::string Program::target_names() const {
  std::string names;
  for (auto const& target : targets) {
    if (!names.empty()) names += &target == &targets.back() ? " and " : ", ";
    names += "sm_" + std::to_string(target.capability);
  }
  return names;
}

std::string parse(std::string_view text, std::size_t carried, Program& program) {
  program = Program{};
  return Parser(carried, program).parse(text);
}

std::string write(Program const& program) {
  std::string text = "cbam_deploy 2\n";
  auto const add = [&](auto const&... words) {
    ((text += words, text += ' '), ...);
    text.back() = '\n';
  };
  auto const join = [](auto const& words) {
    std::string joined;
    for (auto const& word : words) joined += (joined.empty() ? "" : " ") + std::string(word);
    return joined;
  };
  auto const digits = [](std::int64_t number) { return std::to_string(number); };
  std::vector<std::string> maps;
  for (std::size_t index = 0; index < program.inputs.size(); ++index)
    if (program.is_map[index]) maps.push_back(program.inputs[index]);
  add("gate", program.gate);
  add("inputs", join(program.inputs));
  add("maps", join(maps));
  add("sizes", digits(program.sizes[0]), digits(program.sizes[1]), digits(program.sizes[2]));
  std::int64_t offset = 0;
  for (auto const& image : program.images) {
    add("image", image.entry, image.target(), image.key, digits(offset), digits(image.bytes));
    offset += image.bytes;
  }
  for (auto const& target : program.targets) {
    add("target", digits(target.capability));
    for (auto const& format : target.formats) {
      add("format", name_of(kTypes, format.type), name_of(kLayouts, format.layout));
      for (auto const& tactic : format.tactics) {
        add("tactic", digits(tactic.number));
        for (auto const& buffer : tactic.buffers)
          add("buffer", buffer.name, digits(buffer.bytes_per_image));
        for (auto const& launch : tactic.launches) {
          std::vector<std::string> words;
          for (auto const& argument : launch.arguments) switch (argument.kind) {
              case Argument::Kind::kInput: words.push_back(program.inputs[argument.value]); break;
              case Argument::Kind::kBuffer:
                words.push_back(tactic.buffers[argument.value].name);
                break;
              case Argument::Kind::kOutput: words.push_back("y"); break;
              case Argument::Kind::kBatch: words.emplace_back(kBatch); break;
              case Argument::Kind::kNumber: words.push_back(digits(argument.value)); break;
            }
          add("launch", launch.entry, digits(launch.blocks_per_image), digits(launch.cluster),
              digits(launch.threads), digits(launch.shared_bytes),
              std::string(launch.persistent ? "persistent " : "") +
                  (launch.programmatic ? "programmatic :" : ":"),
              join(words));
        }
      }
    }
  }
  return text;
}

}  // namespace cbam_deploy
