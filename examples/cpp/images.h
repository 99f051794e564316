// What both programs share: seeds from the command line, pictures to files, what a file says of itself.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

// The 64 bits of each seed, 0 to 2^64 - 1, as the int64 that the graph takes.
inline std::vector<int64_t> parse_seeds(int count, char** words) {
  std::vector<int64_t> seeds;
  for (int i = 0; i < count; ++i) {
    const std::string word = words[i];
    if (word.empty() || word.find_first_not_of("0123456789") != std::string::npos)
      throw std::runtime_error("seed '" + word + "' is not a whole number from 0 to 2^64 - 1");
    try {
      seeds.push_back(static_cast<int64_t>(std::stoull(word)));
    } catch (const std::out_of_range&) {
      throw std::runtime_error("seed '" + word + "' does not fit 64 bits");
    }
  }
  if (seeds.empty()) throw std::runtime_error("no seeds: at least one is needed, one for each image");
  return seeds;
}

// One picture, `channels` 1 or 3 bytes a pixel, as PREFIX000007.pgm or .ppm.
inline std::string write_picture(const std::string& prefix, int64_t seed, const uint8_t* pixels, int64_t height,
                                 int64_t width, int64_t channels) {
  if (channels != 1 && channels != 3) throw std::runtime_error("pictures of 1 or 3 channels only");
  std::string number = std::to_string(static_cast<uint64_t>(seed));
  if (number.size() < 6) number.insert(0, 6 - number.size(), '0');
  const std::string path = prefix + number + (channels == 3 ? ".ppm" : ".pgm");
  std::ofstream file(path, std::ios::binary);
  file << (channels == 3 ? "P6 " : "P5 ") << width << ' ' << height << " 255\n";
  file.write(reinterpret_cast<const char*>(pixels), height * width * channels);
  if (!file) throw std::runtime_error(path + " cannot be written");
  return path;
}

// `NAME VALUE` at the front of the command line, taken off it; an empty string if it is not there.
inline std::string take_option(const std::string& name, int& count, char**& words) {
  if (count < 3 || words[1] != name) return "";
  const std::string value = words[2];
  count -= 2;
  words += 2;
  return value;
}

// The label of every image, of a file that has such an input; one value for each seed, or none.
inline std::vector<int64_t> labels_for(const Ort::Session& session, const std::string& asked, std::size_t images) {
  Ort::AllocatorWithDefaultOptions allocator;
  bool has_labels = false;
  for (std::size_t i = 0; i < session.GetInputCount(); ++i)
    has_labels |= std::string(session.GetInputNameAllocated(i, allocator).get()) == "label";
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("sde_onnx", allocator);
  const std::string json = text ? text.get() : "";
  const auto place = json.find("\"labels\": ");
  const int64_t classes = has_labels && place != std::string::npos ? std::stoll(json.substr(place + 10)) : 0;
  if (!has_labels && asked.empty()) return {};
  if (!has_labels) throw std::runtime_error("the file has no labels: leave --label out");
  if (asked.empty() && json.find("\"label_optional\": true") != std::string::npos)
    return std::vector<int64_t>(images, -1);
  for (int64_t label = 0; label < classes; ++label)
    if (asked == std::to_string(label)) return std::vector<int64_t>(images, label);
  throw std::runtime_error("label is '" + asked + "', expected 0 to " + std::to_string(classes - 1));
}

// How many steps to make: as asked, or what the file's metadata says, as JSON under `sde_onnx_sampler`; the file must be
// of the kind, and of the format that these programs know.
inline int64_t number_of_steps(const Ort::Session& session, const std::string& kind, const std::string& asked) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated("sde_onnx_sampler", allocator);
  const std::string json = text ? text.get() : "";
  if (json.find("\"kind\": \"" + kind + "\"") == std::string::npos)
    throw std::runtime_error("the file is no " + kind + ": make one with `sde-onnx embed MODEL -o FILE --kind " + kind +
                             "`");
  const auto number = [&](const std::string& name) -> int64_t {
    const std::string key = "\"" + name + "\": ";
    const auto place = json.find(key);
    return place == std::string::npos ? 0 : std::stoll(json.substr(place + key.size()));
  };
  if (number("format") != 2)
    throw std::runtime_error("the file has sampler format " + std::to_string(number("format")) + ", this program knows 2: "
                             "make it again with `sde-onnx embed`");
  const int64_t steps = number("steps"), most = number("max_steps");
  if (asked.empty() || asked == std::to_string(steps)) return steps;
  if (most == 0)
    throw std::runtime_error("the file makes " + std::to_string(steps) + " steps, no other number: make one with "
                             "`sde-onnx embed --max-steps`");
  for (int64_t count = number("min_steps"); count <= most; ++count)
    if (asked == std::to_string(count)) return count;
  throw std::runtime_error("steps is '" + asked + "', expected " + std::to_string(number("min_steps")) + " to " +
                           std::to_string(most));
}

inline Ort::Session open_session(Ort::Env& env, const char* path) try {
  Ort::SessionOptions options;
  return Ort::Session(env, path, options);
} catch (const Ort::Exception& error) {
  if (error.GetOrtErrorCode() != ORT_NOT_IMPLEMENTED) throw;
  throw std::runtime_error(std::string(path) + " is for CUDA or another device, not for this one: " + error.what());
}

// One line, whatever is in the message.
inline std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }
