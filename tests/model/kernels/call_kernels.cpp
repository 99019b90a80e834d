// Calls every C++ kernel on numbers from a file and writes what they make to another: call_kernels INPUTS OUTPUTS.
// Compiled behind the sources of the kernels, for a processor that runs it by itself or in an emulator.

#include <cstdio>
#include <vector>

namespace {

std::FILE *given, *made;
constexpr int THREADS = 2;

template <class Number> std::vector<Number> take(size_t count) {
  std::vector<Number> numbers(count);
  if (std::fread(numbers.data(), sizeof(Number), count, given) != count) std::exit(2);
  return numbers;
}

void put(const std::vector<float>& numbers) {
  if (std::fwrite(numbers.data(), sizeof(float), numbers.size(), made) != numbers.size()) std::exit(3);
}

void put(const std::vector<uint8_t>& bytes) { put(std::vector<float>(bytes.begin(), bytes.end())); }

void convolutions(int n, int h, int w, int in, int out, bool pooled) {
  const size_t to = pooled ? (size_t)n * (h / 2) * (w / 2) * out : (size_t)n * h * w * out;
  const auto x = take<float>((size_t)n * h * w * in), filters = take<float>(9 * in * out);
  const auto adjoint = take<float>(9 * in * out), dy = take<float>(to);
  std::vector<float> y(to), dx(x.size()), df(filters.size());
  std::vector<uint8_t> chosen(pooled ? to : 0);
  uint8_t* which = pooled ? chosen.data() : nullptr;
  if (convolve(x.data(), filters.data(), y.data(), which, n, h, w, in, out, THREADS)) std::exit(4);
  if (convolve_backward(x.data(), adjoint.data(), dy.data(), which, dx.data(), df.data(), n, h, w, in, out, THREADS))
    std::exit(4);
  for (const auto& each : {y, dx, df}) put(each);
  put(chosen);
}

void norms(int kind, long pixels, int channels) {
  const long count = pixels * channels;
  const auto x = take<float>(count), dy = take<float>(count), scale = take<float>(channels);
  const auto shift = take<float>(channels), bias = take<float>(channels);
  std::vector<float> y(count), dx(count), mean(channels), variance(channels), dbias(channels);
  activation(kind, x.data(), y.data(), count, THREADS);
  activation_backward(kind, x.data(), dy.data(), dx.data(), count, THREADS);
  for (const auto& each : {y, dx}) put(each);
  if (statistics(x.data(), mean.data(), variance.data(), pixels, channels, THREADS)) std::exit(4);
  scale_shift(kind, x.data(), scale.data(), shift.data(), y.data(), pixels, channels, THREADS);
  if (normalized_backward(kind, x.data(), scale.data(), shift.data(), bias.data(), dy.data(), dx.data(), dbias.data(),
                          pixels, channels, THREADS))
    std::exit(4);
  for (const auto& each : {mean, variance, y, dx, dbias}) put(each);
}

void images(int rows, int count, int side, bool changed) {
  const auto data = take<uint8_t>((size_t)rows * 3 * 32 * 32), flip = take<uint8_t>(count);
  const auto index = take<int64_t>(count), shift = take<int64_t>(2 * count), box = take<int64_t>(2 * count);
  const auto brightness = take<float>(count), contrast = take<float>(count), scale = take<float>(3);
  const auto offset = take<float>(3), weights = take<float>(32 * 32);
  std::vector<float> out((size_t)count * side * side * 3);
  augment(data.data(), index.data(), changed ? flip.data() : nullptr, changed ? shift.data() : nullptr,
          changed ? box.data() : nullptr, changed ? brightness.data() : nullptr, changed ? contrast.data() : nullptr,
          scale.data(), offset.data(), side == 32 ? nullptr : weights.data(), out.data(), count, 8, side, THREADS);
  put(out);
}

}  // namespace

int main(int count, char** names) {
  if (count != 3 || !(given = std::fopen(names[1], "rb")) || !(made = std::fopen(names[2], "wb"))) return 1;
  convolutions(5, 7, 6, 16, 40, false);
  convolutions(5, 7, 6, 16, 40, true);
  convolutions(2, 15, 15, 24, 8, true);
  norms(0, 77, 24);
  norms(1, 77, 24);
  images(4, 6, 32, false);
  images(4, 6, 32, true);
  images(4, 6, 24, true);
  return std::fgetc(given) == EOF && std::fclose(made) == 0 ? 0 : 5;
}
