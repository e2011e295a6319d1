// The launch program of a fused gate, as the node's attribute `program` says it: which kernels to
// launch, on which GPUs, for which types and layouts of the maps. plugins/launch_program.py writes
// it. Nothing here knows CUDA or TensorRT; nothing is believed before `parse` has checked it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace cbam_deploy {

inline constexpr std::size_t kBufferAlignment = 256;
inline constexpr std::size_t kMostArguments = 64;  // of a kernel
inline constexpr std::int64_t kMostBlocks = 0x7fffffff;  // of a grid

// Machine code ("sm_87") or PTX ("compute_87") of one entry point.
struct Image {
  std::string entry;
  int capability;
  bool ptx;
  std::string key;  // hash of its bytes
  std::int64_t offset;  // into the node's images; -1 where another node carries it
  std::int64_t bytes;

  std::string target() const;
};

// A kernel's parameter: the address of a tensor or buffer, a number, or the number of images.
struct Argument {
  enum class Kind { kInput, kOutput, kBuffer, kNumber, kBatch } kind;
  std::int32_t value;  // index among the inputs or buffers, or the number
};

struct Launch {
  std::string entry;
  std::int32_t blocks_per_image, cluster, threads, shared_bytes;
  bool persistent;    // at most as many blocks as run at the same time
  bool programmatic;  // may start before the launch in front of it has ended
  std::vector<Argument> arguments;
};

struct Buffer {
  std::string name;
  std::int64_t bytes_per_image;
};

struct Tactic {
  std::int32_t number;
  std::vector<Buffer> buffers;
  std::vector<Launch> launches;

  // The largest batch whose grids can be launched.
  std::int64_t largest_batch() const;
  // Bytes of workspace for `batch` images, and where buffer `index` begins in it.
  std::size_t workspace(std::int64_t batch) const;
  std::size_t offset(std::size_t index, std::int64_t batch) const;
};

// Type and layout of the maps, by their numbers in TensorRT.
struct Format {
  std::int32_t type, layout;
  std::vector<Tactic> tactics;

  Tactic const* find(std::int32_t number) const;
};

// Launches planned within the limits of one compute capability, 87 for 8.7.
struct Target {
  int capability;
  std::vector<Format> formats;

  Format const* find(std::int32_t type, std::int32_t layout) const;
};

struct Program {
  std::string gate;
  std::vector<std::string> inputs;
  std::vector<bool> is_map;  // of each input
  std::int64_t sizes[3];     // C, H, W of x
  std::vector<Image> images;
  std::vector<Target> targets;

  // The launches for a GPU of compute capability `capability`; null where there are none.
  Target const* target(int capability) const;
  // Machine code of `entry` for that GPU, or else PTX that its driver can translate; or null.
  Image const* image(std::string_view entry, int capability) const;
  // "sm_87 and sm_89"
  std::string target_names() const;
};

// The program in `text`, whose node carries `carried` bytes of images. Returns what is wrong with
// it, or an empty string.
std::string parse(std::string_view text, std::size_t carried, Program& program);

// What `parse` reads. Offsets of images are written anew, in order, as if all were carried.
std::string write(Program const& program);

}  // namespace cbam_deploy
