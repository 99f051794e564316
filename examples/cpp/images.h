// What both programs share: seeds from the command line, pictures from and to files, what a file says of itself.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
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

// One picture, `channels` 1 or 3 bytes a pixel, as PREFIX000007.pgm or .ppm; one that is not finished under a name that
// says so.
inline std::string write_picture(const std::string& prefix, int64_t seed, const uint8_t* pixels, int64_t height,
                                 int64_t width, int64_t channels, bool finished = true) {
  if (channels != 1 && channels != 3) throw std::runtime_error("pictures of 1 or 3 channels only");
  std::string number = std::to_string(static_cast<uint64_t>(seed));
  if (number.size() < 6) number.insert(0, 6 - number.size(), '0');
  const std::string path = prefix + number + (finished ? "" : "-unfinished") + (channels == 3 ? ".ppm" : ".pgm");
  std::ofstream file(path, std::ios::binary);
  file << (channels == 3 ? "P6 " : "P5 ") << width << ' ' << height << " 255\n";
  file.write(reinterpret_cast<const char*>(pixels), height * width * channels);
  if (!file) throw std::runtime_error(path + " cannot be written");
  return path;
}

// A picture as an input of the graph.
struct Picture {
  std::vector<float> values;    // in [0, 1]
  std::vector<int64_t> shape;   // [1, C, H, W]

  Ort::Value tensor() {   // of the values where they are
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    return Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
  }
};

// A .pgm or .ppm of 8 bits, such as write_picture makes.
inline Picture read_picture(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be read");
  std::string kind, words[3];
  file >> kind;
  for (auto& word : words)
    while (file >> word && word[0] == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  file.get();
  const bool digits = (words[0] + words[1]).find_first_not_of("0123456789") == std::string::npos;
  if (!file || (kind != "P5" && kind != "P6") || words[2] != "255" || !digits || (words[0] + words[1]).size() > 10)
    throw std::runtime_error(path + " is no binary .pgm or .ppm of 8 bits");
  const int64_t channels = kind == "P6" ? 3 : 1, width = std::stoll(words[0]), height = std::stoll(words[1]);
  const std::string pixels{std::istreambuf_iterator<char>(file), {}};
  const int64_t area = width * height;
  if (static_cast<int64_t>(pixels.size()) < channels * area) throw std::runtime_error(path + " ends too early");
  Picture picture{std::vector<float>(channels * area), {1, channels, height, width}};
  for (int64_t i = 0; i < channels * area; ++i)   // [H, W, C] to [C, H, W]
    picture.values[i % channels * area + i / channels] = static_cast<float>(static_cast<uint8_t>(pixels[i]) / 255.0);
  return picture;
}

// Options at the front of the command line, `NAME VALUE`, taken off it; those that are not there stay as they come.
inline std::map<std::string, std::string> take_options(std::map<std::string, std::string> options, int& count,
                                                       char**& words) {
  for (; count >= 3 && options.count(words[1]) > 0; count -= 2, words += 2) options[words[1]] = words[2];
  return options;
}

inline std::string size_text(const std::vector<int64_t>& shape) {
  return std::to_string(shape[1]) + ", " + std::to_string(shape[2]) + ", " + std::to_string(shape[3]);
}

// Where an input is among those of a file, or -1.
inline int64_t input_place(const Ort::Session& session, const std::string& name) {
  Ort::AllocatorWithDefaultOptions allocator;
  for (std::size_t i = 0; i < session.GetInputCount(); ++i)
    if (session.GetInputNameAllocated(i, allocator).get() == name) return static_cast<int64_t>(i);
  return -1;
}

// The label of every image, of a file that has such an input; one value for each seed, or none.
inline std::vector<int64_t> labels_for(const Ort::Session& session, const std::string& asked, std::size_t images) {
  Ort::AllocatorWithDefaultOptions allocator;
  const bool has_labels = input_place(session, "label") >= 0;
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

// The mask, which is white where a pixel is known, and the measurement, both for all images, of a file that has such
// inputs; nothing of another.
inline std::vector<Picture> measurement_for(const Ort::Session& session, const std::string& mask,
                                            const std::string& measurement) {
  const int64_t place = input_place(session, "measurement");
  if (place < 0 && mask.empty() && measurement.empty()) return {};
  if (place < 0)
    throw std::runtime_error("the file restores nothing: make one with `sde-onnx embed MODEL -o FILE --operator mask`");
  if (mask.empty() || measurement.empty())
    throw std::runtime_error("the file restores pictures: give --mask FILE and --measurement FILE");
  const auto shape = session.GetInputTypeInfo(place).GetTensorTypeAndShapeInfo().GetShape();
  std::vector<Picture> pictures;
  for (const auto& path : {mask, measurement}) {
    pictures.push_back(read_picture(path));
    const auto& size = pictures.back().shape;
    const bool gray_mask = pictures.size() == 1 && size[1] == 1;
    if ((size[1] != shape[1] && !gray_mask) || size[2] != shape[2] || size[3] != shape[3])
      throw std::runtime_error(path + " has size [C, H, W] " + size_text(size) + ", the file takes " + size_text(shape));
  }
  return pictures;
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
  if (number("format") != 2 && number("format") != 3)   // 3 has an operator
    throw std::runtime_error("the file has sampler format " + std::to_string(number("format")) + ", this program knows 2 "
                             "and 3: make it again with `sde-onnx embed`");
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

// A whole number as typed, from `least` to `most`.
inline int64_t whole_number(const std::string& name, const std::string& word, int64_t least, int64_t most) {
  const bool digits = !word.empty() && word.size() < 18 && word.find_first_not_of("0123456789") == std::string::npos;
  const int64_t number = digits ? std::stoll(word) : least - 1;
  if (number < least || number > most)
    throw std::runtime_error(name + " is '" + word + "', expected " + std::to_string(least) + " to " +
                             std::to_string(most));
  return number;
}

// ONNX Runtime's environment. From 1.29 on it sends telemetry, unless a variable says not to before it starts.
inline Ort::Env open_environment(const char* name) {
#ifdef _WIN32
  if (std::getenv("ORT_DISABLE_TELEMETRY") == nullptr) _putenv_s("ORT_DISABLE_TELEMETRY", "1");
#else
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
  return Ort::Env(ORT_LOGGING_LEVEL_ERROR, name);
}

// A file ready to run on so many threads; 0: one a core.
inline Ort::Session open_session(Ort::Env& env, const char* path, const std::string& threads) try {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(static_cast<int>(whole_number("threads", threads, 0, 1024)));
  return Ort::Session(env, path, options);
} catch (const Ort::Exception& error) {
  if (error.GetOrtErrorCode() != ORT_NOT_IMPLEMENTED) throw;
  throw std::runtime_error(std::string(path) + " is for CUDA or another device, not for this one: " + error.what());
}

// One line, whatever is in the message.
inline std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }
