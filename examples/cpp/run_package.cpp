// Runs an engine's .pt2 package without Python.
//
//   run_package PACKAGE OUTPUT_DIRECTORY SHAPE:DTYPE:FILE... [--device cuda] [--repeat N]
//
// Each input is a file of raw values, row by row, as 1x3x224x224:float32:image.bin. Outputs are written the same way, as output_0.bin,
// output_1.bin, ..., and named on standard output with their dtypes and shapes. docs/cpp.md says how to build it.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <numeric>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// torch/torch.h would do as well, and take four times as long to compile.
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

namespace {

const std::map<std::string, at::ScalarType> kDtypes = {
    {"float32", at::kFloat}, {"float16", at::kHalf}, {"bfloat16", at::kBFloat16}, {"float64", at::kDouble}, {"int64", at::kLong},
    {"int32", at::kInt},     {"int16", at::kShort},  {"int8", at::kChar},         {"uint8", at::kByte},     {"bool", at::kBool},
};

std::vector<std::string> split(const std::string& text, char separator, size_t parts) {
  std::vector<std::string> found;
  std::istringstream stream(text);
  std::string part;
  while (found.size() + 1 < parts && std::getline(stream, part, separator)) found.push_back(part);
  if (std::getline(stream, part, '\0')) found.push_back(part);
  return found;
}

// "1x3x224x224:float32:image.bin" -> the tensor in image.bin.
at::Tensor read_input(const std::string& argument) {
  const auto parts = split(argument, ':', 3);
  if (parts.size() != 3 || kDtypes.count(parts[1]) == 0) {
    throw std::invalid_argument(argument + ": expected SHAPE:DTYPE:FILE, as 1x3x224x224:float32:image.bin");
  }
  std::vector<int64_t> shape;
  for (const auto& size : split(parts[0], 'x', 64)) shape.push_back(std::stoll(size));
  at::Tensor tensor = at::empty(shape, at::TensorOptions(kDtypes.at(parts[1])));
  std::ifstream file(parts[2], std::ios::binary | std::ios::ate);
  if (!file) throw std::invalid_argument(parts[2] + ": cannot be read");
  if (static_cast<size_t>(file.tellg()) != tensor.nbytes()) {
    throw std::invalid_argument(parts[2] + ": expected " + std::to_string(tensor.nbytes()) + " bytes, got " + std::to_string(file.tellg()));
  }
  file.seekg(0);
  file.read(static_cast<char*>(tensor.data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  return tensor;
}

void write_output(const std::string& path, const at::Tensor& tensor) {
  std::ofstream file(path, std::ios::binary);
  file.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  if (!file.flush()) throw std::runtime_error(path + ": cannot be written");
}

std::string dtype_name(at::ScalarType dtype) {
  for (const auto& [name, value] : kDtypes) {
    if (value == dtype) return name;
  }
  return c10::toString(dtype);
}

int run(const std::vector<std::string>& arguments) {
  std::vector<std::string> words;
  std::map<std::string, std::string> options = {{"--device", "cpu"}, {"--repeat", "1"}};
  for (size_t i = 0; i < arguments.size(); ++i) {
    if (options.count(arguments[i]) != 0 && i + 1 < arguments.size()) {
      options[arguments[i]] = arguments[i + 1];
      ++i;
    } else {
      words.push_back(arguments[i]);
    }
  }
  if (words.size() < 3) {
    std::cerr << "usage: run_package PACKAGE OUTPUT_DIRECTORY SHAPE:DTYPE:FILE... [--device cuda] [--repeat N]\n";
    return 2;
  }
  const c10::Device device(options["--device"]);
  const int repeat = std::max(1, std::stoi(options["--repeat"]));

  const c10::InferenceMode no_autograd;
  std::vector<at::Tensor> inputs;
  for (size_t i = 2; i < words.size(); ++i) inputs.push_back(read_input(words[i]).to(device).contiguous());

  torch::inductor::AOTIModelPackageLoader package(words[0]);
  std::vector<at::Tensor> outputs;
  std::vector<double> times_ms;
  for (int i = 0; i < repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    outputs = package.run(inputs);
    // A copy to the CPU waits for the GPU, so that the time is the whole call's.
    for (auto& output : outputs) output = output.cpu();
    times_ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    const at::Tensor output = outputs[i].contiguous();
    const std::string name = "output_" + std::to_string(i);
    write_output(words[1] + "/" + name + ".bin", output);
    std::cout << name << ": " << dtype_name(output.scalar_type()) << " " << output.sizes() << "\n";
  }
  std::nth_element(times_ms.begin(), times_ms.begin() + repeat / 2, times_ms.end());
  std::cout << "median of " << repeat << " calls: " << times_ms[repeat / 2] << " ms\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << "run_package: " << error.what() << "\n";
    return 1;
  }
}
