// Classify images in C++, with libtorch and a file that takes raw images:
//
//     cnndeploy export lenet.pt --format torchscript --input image
//     ./classify lenet.torchscript shoe.pgm bag.pgm
//
// The images are 8-bit binary PGM files without comments, of any size. The labels are in the model file. build.sh
// compiles this against the libtorch in a Python environment's torch package.

#include <torch/script.h>

#include <cstdint>
#include <fstream>
#include <iostream>
#include <regex>
#include <stdexcept>
#include <string>
#include <vector>

// Reads a binary PGM file as uint8 (1, height, width).
at::Tensor read_pgm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be opened");
  std::string magic;
  int64_t width = 0, height = 0, largest = 0;
  if (!(file >> magic >> width >> height >> largest) || magic != "P5" || largest != 255)
    throw std::runtime_error(path + " is not an 8-bit binary PGM file without comments");
  if (width < 1 || height < 1 || width > 8192 || height > 8192)
    throw std::runtime_error(path + " has a side of less than 1 or more than 8192 pixels");
  file.get();  // one white space ends the header
  at::Tensor image = at::empty({1, height, width}, at::kByte);
  if (!file.read(reinterpret_cast<char*>(image.data_ptr<uint8_t>()), height * width))
    throw std::runtime_error(path + " ends before its last pixel");
  return image;
}

// Returns the strings under a key of the manifest, which is JSON; an app that has a JSON library uses that.
std::vector<std::string> strings_under(const std::string& key, const std::string& manifest) {
  std::smatch list;
  std::regex_search(manifest, list, std::regex("\"" + key + "\": \\[([^\\]]*)\\]"));
  const std::string items = list[1];
  const std::regex item("\"([^\"]*)\"");
  std::vector<std::string> strings;
  for (std::sregex_iterator each(items.begin(), items.end(), item), end; each != end; ++each)
    strings.push_back((*each)[1]);
  return strings;
}

int run(const std::string& model_path, const std::vector<std::string>& image_paths) {
  torch::jit::ExtraFilesMap extra{{"cnndeploy_manifest.json", ""}};
  torch::jit::Module model = torch::jit::load(model_path, at::kCPU, extra);
  const std::string manifest = extra.at("cnndeploy_manifest.json");
  if (manifest.find("\"dtype\": \"uint8\"") == std::string::npos)
    throw std::runtime_error(model_path + " takes no raw images; export it with --input image");
  const auto labels = strings_under("labels", manifest);
  c10::InferenceMode no_gradients;
  for (const std::string& path : image_paths) {
    const auto outputs = model.forward({read_pgm(path)}).toTuple();  // logits and probabilities
    const auto [probability, number] = outputs->elements()[1].toTensor()[0].max(0);
    std::cout << path << ": " << labels.at(number.item<int64_t>()) << " " << probability.item<float>() << "\n";
  }
  return 0;
}

int main(int count, char** arguments) {
  if (count < 3) {
    std::cerr << "usage: " << arguments[0] << " MODEL IMAGE.pgm ...\n";
    return 2;
  }
  try {
    return run(arguments[1], {arguments + 2, arguments + count});
  } catch (const c10::Error& error) {
    std::cerr << "Error: " << error.what_without_backtrace() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "Error: " << error.what() << "\n";
    return 1;
  }
}
