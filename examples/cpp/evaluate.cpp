// The same with a loop of its own: a progress line, and Ctrl-C, after which the pictures are written as far as they have
// come, as out/000000-unfinished.ppm.
//
//     sde-onnx embed -o evaluation.onnx --kind evaluation
//     evaluate [--steps 25] [--label 3] evaluation.onnx out/ 0 1 2    steps: of a file made with --max-steps
#include <algorithm>
#include <cmath>
#include <csignal>
#include <iostream>

#include "images.h"

namespace {
volatile std::sig_atomic_t interrupted = 0;

// x_mean float32 [N, C, H, W], clipped to [0, 1], as 8-bit [H, W, C] of one image; halves go to even, as in numpy.
std::vector<uint8_t> to_pixels(const float* x, const std::vector<int64_t>& shape) {
  const int64_t channels = shape[1], area = shape[2] * shape[3];
  std::vector<uint8_t> pixels(channels * area);
  for (int64_t channel = 0; channel < channels; ++channel)
    for (int64_t place = 0; place < area; ++place)
      pixels[place * channels + channel] = static_cast<uint8_t>(
          std::nearbyint(std::clamp(x[channel * area + place], 0.0f, 1.0f) * 255.0f));
  return pixels;
}
}  // namespace

int main(int argc, char** argv) try {
  auto options = take_options({{"--steps", ""}, {"--label", ""}, {"--mask", ""}, {"--measurement", ""},
                               {"--threads", "0"}}, argc, argv);
  if (argc < 4) {
    std::cerr << "usage: evaluate [--steps N] [--label N] [--mask FILE --measurement FILE] [--threads N] "
                 "EVALUATION.onnx PREFIX SEED...\n";
    return 2;
  }
  auto seeds = parse_seeds(argc - 3, argv + 3);
  auto env = open_environment("evaluate");
  auto session = open_session(env, argv[1], options["--threads"]);
  auto steps = number_of_steps(session, "evaluation", options["--steps"]);
  auto labels = labels_for(session, options["--label"], seeds.size());
  auto measurement = measurement_for(session, options["--mask"], options["--measurement"]);

  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> names;   // x, what the solver remembers, index, seed, perhaps others; then what comes out
  for (std::size_t i = 0; i < session.GetInputCount(); ++i)
    names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
  const std::size_t inputs = session.GetInputCount(), states = session.GetOutputCount() - 2;   // x_mean, remaining
  for (std::size_t i = 0; i < session.GetOutputCount(); ++i)
    names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
  std::vector<const char*> pointers;
  for (const auto& name : names) pointers.push_back(name.c_str());

  const int64_t count = static_cast<int64_t>(seeds.size()), one = 1;
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  shape[0] = count;
  std::vector<float> start(count * shape[1] * shape[2] * shape[3]);   // the first evaluation makes its own
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  std::vector<Ort::Value> values;
  for (std::size_t i = 0; i < states; ++i)
    values.push_back(Ort::Value::CreateTensor<float>(memory, start.data(), start.size(), shape.data(), shape.size()));

  std::signal(SIGINT, [](int) { interrupted = 1; });
  int64_t index = 0, remaining = 1;
  Ort::Value x_mean{nullptr};
  for (; remaining > 0 && !interrupted; ++index) {
    values.push_back(Ort::Value::CreateTensor<int64_t>(memory, &index, 1, &one, 1));
    values.push_back(Ort::Value::CreateTensor<int64_t>(memory, seeds.data(), seeds.size(), &count, 1));
    if (!labels.empty())
      values.push_back(Ort::Value::CreateTensor<int64_t>(memory, labels.data(), labels.size(), &count, 1));
    for (auto& picture : measurement) values.push_back(picture.tensor());
    if (inputs > values.size()) values.push_back(Ort::Value::CreateTensor<int64_t>(memory, &steps, 1, &one, 1));
    values = session.Run(Ort::RunOptions{}, pointers.data(), values.data(), values.size(), pointers.data() + inputs,
                         states + 2);
    remaining = *values.back().GetTensorData<int64_t>();
    values.pop_back();
    x_mean = std::move(values.back());
    values.pop_back();
    std::cerr << "\revaluation " << index + 1 << " of " << index + 1 + remaining << std::flush;
  }
  std::cerr << '\n';

  const float* x = x_mean ? x_mean.GetTensorData<float>() : start.data();
  for (int64_t i = 0; i < count; ++i)
    std::cout << write_picture(argv[2], seeds[i], to_pixels(x + i * start.size() / count, shape).data(), shape[2],
                               shape[3], shape[1], !interrupted)
              << '\n';
  if (interrupted) {
    std::cerr << "stopped after evaluation " << index << " of " << index + remaining << '\n';
    return 130;
  }
} catch (const std::exception& error) {
  std::cerr << "Error: " << first_line(error.what()) << '\n';
  return 1;
}
