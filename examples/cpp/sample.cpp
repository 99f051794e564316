// Seeds in, pictures out, from a file that `sde-onnx embed` made:
//
//     sample sampler.onnx out/ 0 1 2
#include <iostream>

#include "images.h"

int main(int argc, char** argv) try {
  if (argc < 4) {
    std::cerr << "usage: sample SAMPLER.onnx PREFIX SEED...\n";
    return 2;
  }
  auto seeds = parse_seeds(argc - 3, argv + 3);
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "sample");
  auto session = open_session(env, argv[1]);
  const auto steps = sampler_number(session, "sampler", "steps");

  const int64_t shape[] = {static_cast<int64_t>(seeds.size())};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const auto input = Ort::Value::CreateTensor<int64_t>(memory, seeds.data(), seeds.size(), shape, 1);
  const char* const input_names[] = {"seed"};
  const char* const output_names[] = {"image"};
  const auto results = session.Run(Ort::RunOptions{}, input_names, &input, 1, output_names, 1);

  const auto size = results[0].GetTensorTypeAndShapeInfo().GetShape();   // [N, H, W, C]
  const auto* pixels = results[0].GetTensorData<uint8_t>();
  for (std::size_t i = 0; i < seeds.size(); ++i)
    std::cout << write_picture(argv[2], seeds[i], pixels + i * size[1] * size[2] * size[3], size[1], size[2], size[3])
              << '\n';
  std::cout << seeds.size() << " images, " << steps << " steps\n";
} catch (const std::exception& error) {
  std::cerr << "Error: " << first_line(error.what()) << '\n';
  return 1;
}
