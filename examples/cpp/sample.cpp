// Seeds in, pictures out, from a file that `sde-onnx embed` made:
//
//     sample [--steps 25] [--label 3] sampler.onnx out/ 0 1 2         steps: of a file made with --max-steps
//     sample --mask known.pgm --measurement torn.ppm restore.onnx out/ 0 1 2    of one made with --operator mask
//
// Images are made 64 at a time (--batch), on all cores (--threads).
#include <algorithm>
#include <iostream>

#include "images.h"

int main(int argc, char** argv) try {
  auto options = take_options({{"--steps", ""}, {"--label", ""}, {"--mask", ""}, {"--measurement", ""},
                               {"--batch", "64"}, {"--threads", "0"}}, argc, argv);
  if (argc < 4) {
    std::cerr << "usage: sample [--steps N] [--label N] [--mask FILE --measurement FILE] [--batch N] [--threads N] "
                 "SAMPLER.onnx PREFIX SEED...\n";
    return 2;
  }
  auto seeds = parse_seeds(argc - 3, argv + 3);
  const auto at_a_time = static_cast<std::size_t>(whole_number("batch", options["--batch"], 1, 1 << 20));
  auto env = open_environment("sample");
  auto session = open_session(env, argv[1], options["--threads"]);
  auto steps = number_of_steps(session, "sampler", options["--steps"]);
  auto labels = labels_for(session, options["--label"], seeds.size());
  auto measurement = measurement_for(session, options["--mask"], options["--measurement"]);
  const bool asks = input_place(session, "steps") >= 0;

  const int64_t one = 1;
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  for (std::size_t first = 0; first < seeds.size(); first += at_a_time) {
    const int64_t count = static_cast<int64_t>(std::min(at_a_time, seeds.size() - first));
    std::vector<Ort::Value> inputs;
    inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory, seeds.data() + first, count, &count, 1));
    std::vector<const char*> input_names{"seed"};
    if (!labels.empty()) {
      inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory, labels.data() + first, count, &count, 1));
      input_names.push_back("label");
    }
    for (std::size_t i = 0; i < measurement.size(); ++i) {
      inputs.push_back(measurement[i].tensor());
      input_names.push_back(i == 0 ? "mask" : "measurement");
    }
    if (asks) {
      inputs.push_back(Ort::Value::CreateTensor<int64_t>(memory, &steps, 1, &one, 1));
      input_names.push_back("steps");
    }
    const char* const output_names[] = {"image"};
    const auto results = session.Run(Ort::RunOptions{}, input_names.data(), inputs.data(), inputs.size(), output_names,
                                     1);

    const auto size = results[0].GetTensorTypeAndShapeInfo().GetShape();   // [N, H, W, C]
    const auto* pixels = results[0].GetTensorData<uint8_t>();
    for (int64_t i = 0; i < count; ++i)
      std::cout << write_picture(argv[2], seeds[first + i], pixels + i * size[1] * size[2] * size[3], size[1], size[2],
                                 size[3])
                << '\n';
    if (seeds.size() > at_a_time)
      std::cerr << '\r' << first + count << " of " << seeds.size() << " images" << std::flush;
  }
  if (seeds.size() > at_a_time) std::cerr << '\n';
  std::cout << seeds.size() << " images, " << steps << " steps\n";
} catch (const std::exception& error) {
  std::cerr << "Error: " << first_line(error.what()) << '\n';
  return 1;
}
