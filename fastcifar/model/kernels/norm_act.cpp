// What stands between convolutions in float32 on a CPU: batch normalisation with the activation behind it, and
// activations alone, each pass over the memory once where it can. Images lie as (N, H, W, C), channels in multiples
// of 8.

namespace {

constexpr int BLOCK = 32;  // pixels whose channels are summed in floats, while they are in the nearest cache

constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
constexpr float ROUND = 12582912.f;  // 1.5 * 2^23: a small number added to it loses its fraction

// e^x for -80 <= x <= 0: 2^k times the Taylor series of what is left, |r| <= ln(2) / 2.
inline Vec exponential(Vec x) {
  const Vec k = (x * LOG2_E + ROUND) - ROUND;
  const Vec r = x - k * LN2_HIGH - k * LN2_LOW;
  const Vec series =
      1.f + r * (1.f + r * (1.f / 2 + r * (1.f / 6 + r * (1.f / 24 + r * (1.f / 120 + r * (1.f / 720))))));
  return series * (Vec)((__builtin_convertvector(k, Bits) + 127) << 23);
}

struct Pair {
  Vec first, second;
};

// p(x) of a polynomial with these coefficients, the constant first.
template <int N> inline Vec polynomial(const float (&coefficients)[N], Vec x) {
  Vec sum = Vec{} + coefficients[N - 1];
  for (int i = N - 2; i >= 0; i--) sum = coefficients[i] + x * sum;
  return sum;
}

// 1/2 + z P(z^2) / Q(z^2): what has this symmetry, without an exponential.
template <int N, int M> inline Vec symmetric(Vec z, const float (&P)[N], const float (&Q)[M]) {
  const Vec square = z * z;
  return .5f + z * polynomial(P, square) / polynomial(Q, square);
}

inline Vec at_least(Vec x, float least) { return x < least ? Vec{} + least : x; }
inline Vec at_most(Vec x, float most) { return x > most ? Vec{} + most : x; }

// Activations, each with its slope.

// x times the share of a normal distribution below x. The fractions are minimax fits (linearised least squares with
// Lawson's weights) up to where the share is 0 or 1: the share to 5e-7 / max(1, |x|), the slope to 1.1e-7, apart from
// rounding.
struct Gelu {
  static Vec value(Vec x) {
    constexpr float P[] = {.398939729f, .0938275605f, .00835791044f, 7.76128843e-4f, 1.00190118e-5f, -2.75689107e-8f};
    constexpr float Q[] = {1.f, .401819676f, .0629832298f, .00532497233f, 2.65690382e-4f};
    const Vec low = at_least(x, -5.4f);
    return low * symmetric(at_most(low, 5.4f), P, Q);
  }
  static Vec slope(Vec x) {
    constexpr float P[] = {.797885358f, -.0309753101f, .014226065f, 1.97522604e-5f, 3.58992729e-5f, 1.92166979e-7f};
    constexpr float Q[] = {1.f, .294519633f, .0409837589f, .00352263916f, 1.92052074e-4f, 8.92816115e-6f};
    return symmetric(at_most(at_least(x, -5.6f), 5.6f), P, Q);
  }
};

struct Silu {
  static Vec sigmoid(Vec x) {
    const Vec least = Vec{} - 80.f, negative = x < 0.f ? x : -x, e = exponential(negative < least ? least : negative);
    return (x < 0.f ? e : Vec{} + 1.f) / (1.f + e);
  }
  static Vec value(Vec x) { return x * sigmoid(x); }
  static Vec slope(Vec x) {
    const Vec share = sigmoid(x);
    return share * (1.f + x * (1.f - share));
  }
};

template <class Act> void activate(const float* x, float* y, long count, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < count; i += LANES) {
    const bool whole = i + LANES <= count;
    store(y + i, Act::value(load<Vec>(x + i, whole)), whole);
  }
}

template <class Act> void activate_backward(const float* x, const float* dy, float* dx, long count, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < count; i += LANES) {
    const bool whole = i + LANES <= count;
    store(dx + i, load<Vec>(dy + i, whole) * Act::slope(load<Vec>(x + i, whole)), whole);
  }
}

// Two sums over all pixels for each channel: `terms(pixel, c, whole)` gives the two numbers of a vector of channels.
// Summed in floats over a block, in doubles over blocks and threads. Returns false where memory does not suffice.
template <class Terms> bool sum_pixels(long pixels, int channels, double* sums, int threads, Terms terms) {
  double* parts = static_cast<double*>(std::calloc((size_t)2 * channels * threads, sizeof(double)));
  if (!parts) return false;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int thread = 0; thread < threads; thread++) {
    double* part = parts + (size_t)2 * channels * thread;
    const long first = pixels * thread / threads, last = pixels * (thread + 1) / threads;
    for (long block = first; block < last; block += BLOCK) {
      const long end = block + BLOCK < last ? block + BLOCK : last;
      for (int c = 0; c < channels; c += LANES) {
        const bool whole = c + LANES <= channels;
        Vec one = {}, other = {};
        for (long pixel = block; pixel < end; pixel++) {
          const Pair found = terms(pixel, c, whole);
          one += found.first;
          other += found.second;
        }
        for (int lane = 0; lane < (whole ? LANES : LANES / 2); lane++) {
          part[c + lane] += one[lane];
          part[channels + c + lane] += other[lane];
        }
      }
    }
  }
  for (int i = 0; i < 2 * channels; i++) {
    sums[i] = 0;
    for (int thread = 0; thread < threads; thread++) sums[i] += parts[(size_t)2 * channels * thread + i];
  }
  std::free(parts);
  return true;
}

// The mean and the (biased) variance of each channel, about the first pixel so that large means cost no digits.
bool measure(const float* x, float* mean, float* variance, long pixels, int channels, int threads) {
  double* sums = static_cast<double*>(std::malloc((size_t)2 * channels * sizeof(double)));
  const bool enough = sums && sum_pixels(pixels, channels, sums, threads, [&](long pixel, int c, bool whole) {
    const Vec v = load<Vec>(x + pixel * channels + c, whole) - load<Vec>(x + c, whole);
    return Pair{v, v * v};
  });
  for (int c = 0; c < channels && enough; c++) {
    const double about = sums[c] / pixels;
    mean[c] = x[c] + about;
    variance[c] = sums[channels + c] / pixels - about * about;
    if (variance[c] < 0) variance[c] = 0;
  }
  std::free(sums);
  return enough;
}

template <class Act>
void transform(const float* x, const float* scale, const float* shift, float* y, long pixels, int channels,
               int threads) {
#pragma omp parallel for num_threads(threads)
  for (long pixel = 0; pixel < pixels; pixel++) {
    for (int c = 0; c < channels; c += LANES) {
      const bool whole = c + LANES <= channels;
      const Vec v = load<Vec>(x + pixel * channels + c, whole);
      store(y + pixel * channels + c, Act::value(v * load<Vec>(scale + c, whole) + load<Vec>(shift + c, whole)), whole);
    }
  }
}

template <class Act>
bool transform_backward(const float* x, const float* scale, const float* shift, const float* bias, const float* dy,
                        float* dx, float* dbias, long pixels, int channels, int threads) {
  double* sums = static_cast<double*>(std::malloc((size_t)2 * channels * sizeof(double)));
  float* means = static_cast<float*>(std::malloc((size_t)2 * channels * sizeof(float)));
  // The gradient of the normalised pixels, and what these were.
  const auto inner = [&](long pixel, int c, bool whole) {
    const Vec v =
        load<Vec>(x + pixel * channels + c, whole) * load<Vec>(scale + c, whole) + load<Vec>(shift + c, whole);
    return Pair{load<Vec>(dy + pixel * channels + c, whole) * Act::slope(v), v - load<Vec>(bias + c, whole)};
  };
  const bool enough = sums && means && sum_pixels(pixels, channels, sums, threads, [&](long pixel, int c, bool whole) {
    const Pair found = inner(pixel, c, whole);
    return Pair{found.first, found.first * found.second};
  });
  if (enough) {
    for (int c = 0; c < channels; c++) dbias[c] = sums[c];
    for (int i = 0; i < 2 * channels; i++) means[i] = sums[i] / pixels;
#pragma omp parallel for num_threads(threads)
    for (long pixel = 0; pixel < pixels; pixel++) {
      for (int c = 0; c < channels; c += LANES) {
        const bool whole = c + LANES <= channels;
        const Pair found = inner(pixel, c, whole);
        const Vec left =
            found.first - load<Vec>(means + c, whole) - found.second * load<Vec>(means + channels + c, whole);
        store(dx + pixel * channels + c, load<Vec>(scale + c, whole) * left, whole);
      }
    }
  }
  std::free(sums);
  std::free(means);
  return enough;
}

// Call `work` with the activation of that number: 0 GELU, 1 SiLU.
template <class Work> auto with(int activation, Work work) { return activation ? work(Silu{}) : work(Gelu{}); }

}  // namespace

// Each returns 1 where memory does not suffice, else 0.

// y = the activation of x.
extern "C" int activation(int kind, const float* x, float* y, long count, int threads) {
  with(kind, [&](auto act) { activate<decltype(act)>(x, y, count, threads); });
  return 0;
}

// dx from dy.
extern "C" int activation_backward(int kind, const float* x, const float* dy, float* dx, long count, int threads) {
  with(kind, [&](auto act) { activate_backward<decltype(act)>(x, dy, dx, count, threads); });
  return 0;
}

// The mean and the variance of each channel of x (pixels, channels).
extern "C" int statistics(const float* x, float* mean, float* variance, long pixels, int channels, int threads) {
  return !measure(x, mean, variance, pixels, channels, threads);
}

// y = the activation of x * scale + shift, which are (channels).
extern "C" int scale_shift(int kind, const float* x, const float* scale, const float* shift, float* y, long pixels,
                           int channels, int threads) {
  with(kind, [&](auto act) { transform<decltype(act)>(x, scale, shift, y, pixels, channels, threads); });
  return 0;
}

// dx and dbias from dy, where scale and shift come from the statistics of x and the bias: shift = bias - mean * scale.
extern "C" int normalized_backward(int kind, const float* x, const float* scale, const float* shift, const float* bias,
                                   const float* dy, float* dx, float* dbias, long pixels, int channels, int threads) {
  return !with(kind, [&](auto act) {
    return transform_backward<decltype(act)>(x, scale, shift, bias, dy, dx, dbias, pixels, channels, threads);
  });
}
