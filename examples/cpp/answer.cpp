// answer BUNDLE PICTURE.ppm [KERNELS] < IDS: answers a question about a picture, token ids in, token ids out.
//
// IDS are those of the rendered prompt, with one image token, from any tokenizer that reads the bundle's
// tokenizer.json. KERNELS is lensmith's library of kernels (runtimes/engines/kernels/kernels.so); without it ONNX
// Runtime's own do. Everything here follows from docs/bundle-format.md, for the dialect ort.
#include <onnxruntime_cxx_api.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <map>

#include "pixels.hpp"

namespace fs = std::filesystem;
using nlohmann::json;
using Ids = std::vector<int64_t>;

const int MOST_TOKENS = 64;  // of an answer
const Ort::MemoryInfo CPU = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);

template <typename T>
Ort::Value tensor(std::vector<T>& data, const std::vector<int64_t>& shape) {
  static T none{};  // ONNX Runtime wants an address for no values, too
  return Ort::Value::CreateTensor<T>(CPU, data.empty() ? &none : data.data(), data.size(), shape.data(), shape.size());
}

// What the encoder made of a picture. Of `deepstack` there are `taps` layers.
struct Features {
  int64_t tokens = 0, hidden = 0, taps = 0;
  std::vector<float> image, deepstack;  // [tokens, hidden], [taps, tokens, hidden]

  Features slice(int64_t begin, int64_t end) const {
    Features part{end - begin, hidden, taps, {}, {}};
    part.image.assign(image.begin() + begin * hidden, image.begin() + end * hidden);
    for (int64_t tap = 0; tap < taps; ++tap) {
      const auto rows = deepstack.begin() + tap * tokens * hidden;
      part.deepstack.insert(part.deepstack.end(), rows + begin * hidden, rows + end * hidden);
    }
    return part;
  }
};

Features encode(Ort::Session& encoder, Pixels pixels) {
  std::vector<const char*> inputs{"pixel_values"}, outputs{"image_features"};
  std::vector<Ort::Value> values;
  values.push_back(tensor(pixels.values, pixels.shape));
  if (!pixels.grid.empty()) {
    inputs.push_back("image_grid_thw");
    values.push_back(tensor(pixels.grid, {1, 3}));
  }
  if (encoder.GetOutputCount() > 1) outputs.push_back("deepstack_features");
  auto made = encoder.Run({}, inputs.data(), values.data(), values.size(), outputs.data(), outputs.size());
  const auto copy = [](const Ort::Value& value) {
    const float* data = value.GetTensorData<float>();
    return std::vector<float>(data, data + value.GetTensorTypeAndShapeInfo().GetElementCount());
  };
  const auto shape = made[0].GetTensorTypeAndShapeInfo().GetShape();
  Features features{shape[0], shape[1], 0, copy(made[0]), {}};
  if (made.size() > 1) {
    features.taps = made[1].GetTensorTypeAndShapeInfo().GetShape()[0];
    features.deepstack = copy(made[1]);
  }
  return features;
}

// Of states: bytes of a value, and the type.
const std::map<std::string, std::pair<size_t, ONNXTensorElementDataType>> TYPES = {
    {"FLOAT", {4, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}},
    {"FLOAT16", {2, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16}},
    {"INT8", {1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8}},
};

// The decoder with the states of one conversation, which each step changes in place.
class Conversation {
 public:
  Conversation(Ort::Session& decoder, const json& entry, int64_t capacity) : decoder(decoder), inputs(entry["inputs"]) {
    vocab = entry["outputs"]["logits"]["shape"][2];
    for (const auto& [name, port] : inputs.items()) {
      if (name.rfind("past", 0) != 0 || name == "past_lengths") continue;
      std::vector<int64_t> shape;
      for (const auto& size : port["shape"])
        shape.push_back(size == "batch" ? 1 : size == "capacity" ? capacity : size.get<int64_t>());
      const auto& [bytes, type] = TYPES.at(port["dtype"]);
      size_t count = bytes;
      for (int64_t size : shape) count *= size;
      auto& memory = states[name].memory;
      memory.resize(count);  // zeros
      states[name].value = Ort::Value::CreateTensor(CPU, memory.data(), count, shape.data(), shape.size(), type);
    }
  }

  // Appends tokens with their positions [axes, tokens] and image features; the most likely next token.
  int64_t append(Ids ids, Ids positions, Features features) {
    const int64_t seq = ids.size(), axes = positions.size() / seq;
    std::vector<int32_t> lengths{length};
    Ids one{1};
    std::vector<float> logits(vocab);
    std::map<std::string, Ort::Value> given;
    given.emplace("input_ids", tensor(ids, {1, seq}));
    given.emplace("position_ids", inputs["position_ids"]["shape"].size() == 3 ? tensor(positions, {axes, 1, seq})
                                                                              : tensor(positions, {1, seq}));
    given.emplace("past_lengths", tensor(lengths, {1}));
    given.emplace("num_logits", tensor(one, {1}));
    given.emplace("num_hidden_states", tensor(one, {1}));
    given.emplace("image_features", tensor(features.image, {features.tokens, features.hidden}));
    given.emplace("deepstack_features", tensor(features.deepstack, {features.taps, features.tokens, features.hidden}));

    Ort::IoBinding binding(decoder);
    for (const auto& [name, port] : inputs.items()) {
      if (!states.count(name)) binding.BindInput(name.c_str(), given.at(name));
    }
    for (auto& [name, state] : states) {  // past and present are the same memory
      binding.BindInput(name.c_str(), state.value);
      const size_t prefix = name.rfind("past_key_values.", 0) == 0 ? strlen("past_key_values.") : strlen("past.");
      binding.BindOutput(("present." + name.substr(prefix)).c_str(), state.value);
    }
    binding.BindOutput("logits", tensor(logits, {1, 1, vocab}));
    decoder.Run({}, binding);
    length += int32_t(seq);
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  }

 private:
  struct State {
    std::vector<char> memory;
    Ort::Value value{nullptr};
  };
  Ort::Session& decoder;
  json inputs;
  std::map<std::string, State> states;
  int64_t vocab;
  int32_t length = 0;
};

// The prompt with as many image tokens as the picture has, and the position of each on every axis.
struct Prompt {
  Ids ids, rows[3];
  int64_t image_begin = 0, image_end = 0, next = 0;  // `next`: the position behind the prompt

  Prompt(const Ids& given, int64_t image_token, const Pixels& pixels, bool mrope) {
    for (int64_t id : given) {
      if (id != image_token) {
        add(id, next, next, next);
        ++next;
        continue;
      }
      image_begin = ids.size();
      for (int i = 0; i < pixels.rows * pixels.columns; ++i) {
        if (mrope)
          add(id, next, next + i / pixels.columns, next + i % pixels.columns);
        else
          add(id, next + i, next + i, next + i);
      }
      image_end = ids.size();
      next += mrope ? std::max(pixels.rows, pixels.columns) : image_end - image_begin;
    }
  }
  void add(int64_t id, int64_t time, int64_t height, int64_t width) {
    ids.push_back(id), rows[0].push_back(time), rows[1].push_back(height), rows[2].push_back(width);
  }
  Ids positions(int64_t begin, int64_t end, int axes) const {
    Ids part;
    for (int axis = 0; axis < axes; ++axis)
      part.insert(part.end(), rows[axis].begin() + begin, rows[axis].begin() + end);
    return part;
  }
};

Ids answer(const fs::path& folder, const std::string& picture, const char* kernels, const Ids& given) {
  const json manifest = json::parse(std::ifstream(folder / "lensmith.json"));
  if (manifest["format_version"] != 1) throw std::runtime_error("this example knows bundles of format version 1");
  const json &graphs = manifest["graphs"], &prompt_spec = manifest["prompt"];

  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "answer");
  Ort::SessionOptions options;
  options.AddConfigEntry("session.x64quantprecision", "1");  // products of 8 bits are exact without VNNI, too
  if (kernels) options.RegisterCustomOpsLibrary(fs::path(kernels).c_str());
  // Sessions map the data files beside the graphs by themselves.
  Ort::Session encoder(env, (folder / graphs["vision_encoder"]["file"].get<std::string>()).c_str(), options);
  Ort::Session decoder(env, (folder / graphs["decoder"]["file"].get<std::string>()).c_str(), options);

  const Pixels pixels = pixels_of(read_ppm(picture), manifest);
  const Features features = encode(encoder, pixels);
  const int64_t image_token = prompt_spec["token_ids"][prompt_spec["tokens"]["image_token"].get<std::string>()];
  if (std::count(given.begin(), given.end(), image_token) != 1)
    throw std::runtime_error("expected ids with one image token");
  const int axes = graphs["decoder"]["inputs"]["position_ids"]["shape"].size() == 3 ? 3 : 1;
  Prompt prompt(given, image_token, pixels, axes == 3);
  const int64_t tokens = prompt.ids.size(), context = manifest["limits"]["context"];
  if (tokens >= context) throw std::runtime_error("the prompt is longer than the context");
  Conversation conversation(decoder, graphs["decoder"], std::min(context, tokens + MOST_TOKENS));

  int64_t id = 0;
  const int64_t chunk = manifest["options"]["prefill_chunk"];
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, tokens);
    const auto inside = [&](int64_t place) { return std::clamp(place, begin, end); };
    const int64_t first = inside(prompt.image_begin), last = inside(prompt.image_end);
    const int64_t before = first - prompt.image_begin;  // features of earlier pieces
    const Features part = first < last ? features.slice(before, before + last - first) : features.slice(0, 0);
    id = conversation.append({prompt.ids.begin() + begin, prompt.ids.begin() + end}, prompt.positions(begin, end, axes),
                             part);
  }
  Ids made{id};
  const Ids ends = prompt_spec["eos_token_ids"];
  while (std::find(ends.begin(), ends.end(), id) == ends.end() && made.size() < MOST_TOKENS &&
         tokens + int64_t(made.size()) < context) {
    id = conversation.append({id}, Ids(axes, prompt.next++), features.slice(0, 0));
    made.push_back(id);
  }
  return made;
}

// ONNX Runtime 1.31 and later report to their maker otherwise.
void keep_quiet() {
#ifdef _WIN32
  if (!std::getenv("ORT_DISABLE_TELEMETRY")) _putenv("ORT_DISABLE_TELEMETRY=1");
#else
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
#endif
}

int main(int count, char** arguments) {
  keep_quiet();
  if (count < 3 || count > 4) {
    std::cerr << "answer BUNDLE PICTURE.ppm [KERNELS] < IDS\n";
    return 2;
  }
  try {
    const Ids ids{std::istream_iterator<int64_t>(std::cin), {}};
    for (int64_t id : answer(arguments[1], arguments[2], count > 3 ? arguments[3] : nullptr, ids))
      std::cout << id << ' ';
    std::cout << '\n';
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
