// Pictures to what a vision encoder takes: the steps of docs/bundle-format.md, "Images".
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Picture {
  int height, width;
  std::vector<uint8_t> rgb;  // [height, width, 3]

  uint8_t at(int row, int column, int channel) const { return rgb[(size_t(row) * width + column) * 3 + channel]; }
};

struct Pixels {
  std::vector<float> values;
  std::vector<int64_t> shape;  // of pixel_values
  int rows, columns;           // of image tokens
  std::vector<int64_t> grid;   // image_grid_thw; empty where all images have one size
};

// A binary PPM file (P6, 8 bits, no comments): `convert photo.jpg -auto-orient photo.ppm` writes one.
inline Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  int most = 0;
  Picture picture{};
  file >> magic >> picture.width >> picture.height >> most;
  file.get();
  if (!file || magic != "P6" || most != 255 || picture.width < 1 || picture.height < 1)
    throw std::runtime_error(path + " is no PPM picture (P6, 255)");
  picture.rgb.resize(size_t(picture.width) * picture.height * 3);
  if (!file.read(reinterpret_cast<char*>(picture.rgb.data()), picture.rgb.size()))
    throw std::runtime_error(path + " ends within the picture");
  return picture;
}

// What each pixel of a resized axis is made of: `weights` of the pixels from `first` on, divided by 2^bits.
struct Axis {
  int bits = 0;
  std::vector<int> first;
  std::vector<std::vector<int>> weights;
};

inline double cubic(double x) {
  x = std::abs(x);
  if (x < 1) return ((-0.5 + 2) * x - (-0.5 + 3)) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

inline Axis axis_weights(int from, int to) {
  const double scale = double(from) / to, reach = 2 * std::max(scale, 1.0);
  const double shrink = scale >= 1 ? 1 / scale : 1;
  Axis axis;
  double largest = 0;
  std::vector<std::vector<double>> exact;
  for (int i = 0; i < to; ++i) {
    const double center = scale * (i + 0.5);
    const int begin = std::max(int(center - reach + 0.5), 0), end = std::min(int(center + reach + 0.5), from);
    std::vector<double> weights;
    double sum = 0;
    for (int x = begin; x < end; ++x) sum += weights.emplace_back(cubic((x - center + 0.5) * shrink));
    for (double& weight : weights) largest = std::max(largest, weight /= sum);
    axis.first.push_back(begin);
    exact.push_back(weights);
  }
  while (axis.bits < 22 && int(0.5 + largest * (1 << (axis.bits + 1))) < 1 << 15) ++axis.bits;
  for (const auto& row : exact) {
    auto& whole = axis.weights.emplace_back();
    for (double weight : row) whole.push_back(int(weight * (1 << axis.bits) + std::copysign(0.5, weight)));
  }
  return axis;
}

inline uint8_t rounded(int64_t sum, int bits) {
  return uint8_t(std::clamp<int64_t>((sum + (int64_t(1) << bits >> 1)) >> bits, 0, 255));
}

// First along the width, then along the height, each rounded to 8 bits; a side that stays is not touched.
inline Picture resize(Picture in, int height, int width) {
  for (bool across : {true, false}) {
    const int from = across ? in.width : in.height, to = across ? width : height;
    if (from == to) continue;
    const Axis axis = axis_weights(from, to);
    Picture out{across ? in.height : to, across ? to : in.width, {}};
    out.rgb.reserve(size_t(out.height) * out.width * 3);
    for (int row = 0; row < out.height; ++row)
      for (int column = 0; column < out.width; ++column)
        for (int channel = 0; channel < 3; ++channel) {
          const int i = across ? column : row, first = axis.first[i];
          int64_t sum = 0;
          for (int tap = 0; tap < int(axis.weights[i].size()); ++tap)
            sum += int64_t(axis.weights[i][tap]) *
                   (across ? in.at(row, first + tap, channel) : in.at(first + tap, column, channel));
          out.rgb.push_back(rounded(sum, axis.bits));
        }
    in = std::move(out);
  }
  return in;
}

// The value of a byte: (byte - mean / r) / (std / r), in float32. Without a mean it is byte * r.
struct Values {
  bool centred;
  float factor, mean[3] = {}, std[3] = {};

  explicit Values(const nlohmann::json& spec) : centred(!spec["mean"].is_null()) {
    const double rescale = spec["rescale_factor"].is_null() ? 1 : spec["rescale_factor"].get<double>();
    factor = float(rescale);
    for (int channel = 0; channel < 3 && centred; ++channel) {
      mean[channel] = spec["mean"][channel].get<float>() * float(1 / rescale);
      std[channel] = spec["std"][channel].get<float>() * float(1 / rescale);
    }
  }
  float operator()(uint8_t byte, int channel) const {
    return centred ? (byte - mean[channel]) / std[channel] : byte * factor;
  }
};

// `kind: patches`: resized to whole tokens within the range of areas, cut by blocks of merge_size x merge_size patches.
inline Pixels patches_of(const Picture& picture, const nlohmann::json& spec, const nlohmann::json& limits) {
  const int p = spec["patch_size"], t = spec["temporal_patch_size"], m = spec["merge_size"], f = p * m;
  const double h = picture.height, w = picture.width, least = limits["min_pixels"], most = limits["max_pixels"];
  double H = std::nearbyint(h / f) * f, W = std::nearbyint(w / f) * f;  // halves to even
  if (H * W > most) {
    const double b = std::sqrt(h * w / most);
    H = std::max(1.0, std::floor(h / b / f)) * f, W = std::max(1.0, std::floor(w / b / f)) * f;
  } else if (H * W < least) {
    const double b = std::sqrt(least / (h * w));
    H = std::ceil(h * b / f) * f, W = std::ceil(w * b / f) * f;
  }
  const Picture sized = resize(picture, int(H), int(W));
  const Values value(spec);
  Pixels made{{}, {}, int(H) / f, int(W) / f, {1, int64_t(H) / p, int64_t(W) / p}};
  for (int block = 0; block < made.rows * made.columns; ++block)
    for (int within = 0; within < m * m; ++within) {
      const int top = block / made.columns * f + within / m * p, left = block % made.columns * f + within % m * p;
      for (int channel = 0; channel < 3; ++channel)
        for (int step = 0; step < t; ++step)  // a still image fills them all
          for (int pixel = 0; pixel < p * p; ++pixel)
            made.values.push_back(value(sized.at(top + pixel / p, left + pixel % p, channel), channel));
    }
  made.shape = {made.grid[1] * made.grid[2], 3 * t * p * p};
  return made;
}

// `kind: crop`: resized, then the centre; what is missing is black. Its tokens lie in a row.
inline Pixels crop_of(const Picture& picture, const nlohmann::json& spec) {
  int height = picture.height, width = picture.width;
  if (!spec["shortest_edge"].is_null()) {
    const int edge = spec["shortest_edge"],
              longest = int(double(edge) * std::max(height, width) / std::min(height, width));
    height = picture.width <= picture.height ? longest : edge;
    width = picture.width <= picture.height ? edge : longest;
  } else if (!spec["resized"].is_null()) {
    height = spec["resized"][0], width = spec["resized"][1];
  }
  const Picture sized = resize(picture, height, width);
  if (!spec["cropped"].is_null()) height = spec["cropped"][0], width = spec["cropped"][1];
  const auto begin = [](int found, int wanted) {
    return found >= wanted ? (found - wanted) / 2 : -((wanted - found) / 2);
  };
  const int top = begin(sized.height, height), left = begin(sized.width, width);
  const Values value(spec);
  Pixels made{{}, {1, 3, height, width}, 1, spec["image_tokens"], {}};
  for (int channel = 0; channel < 3; ++channel)
    for (int row = top; row < top + height; ++row)
      for (int column = left; column < left + width; ++column) {
        const bool inside = row >= 0 && row < sized.height && column >= 0 && column < sized.width;
        made.values.push_back(value(inside ? sized.at(row, column, channel) : 0, channel));
      }
  return made;
}

inline Pixels pixels_of(const Picture& picture, const nlohmann::json& manifest) {
  const auto& spec = manifest["image"];
  const std::string kind = spec.value("kind", "patches");
  if (std::max(picture.height, picture.width) > 200 * std::min(picture.height, picture.width))
    throw std::runtime_error("one side of the picture is more than 200 times the other");
  if (kind == "patches") return patches_of(picture, spec, manifest["limits"]);
  if (kind == "crop") return crop_of(picture, spec);
  throw std::runtime_error("pictures of kind " + kind + " are not read by this example");
}
