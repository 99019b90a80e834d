// GELU and 2x2 maximum pooling in float32 on a CPU, forward and backward, at the speed of the memory.
//
// Images lie as (N, H, W, C), channels in multiples of 8.

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace {

typedef float Vec __attribute__((vector_size(32)));
typedef int32_t Bits __attribute__((vector_size(32)));
constexpr int LANES = 8;

inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

constexpr float SQRT_HALF = 0.70710678f, DENSITY_AT_0 = 0.39894228f;
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

// e^(-x^2 / 2), and the share of a normal distribution below x, to an absolute 1e-7.
struct Normal {
  Vec density, below;
};

inline Normal normal(Vec x) {  // Abramowitz and Stegun, "Handbook of Mathematical Functions", 7.1.26
  const Vec z = x < 0.f ? -x : x, power = -.5f * x * x, least = Vec{} - 80.f;
  const Vec e = exponential(power < least ? least : power), t = 1.f / (1.f + .3275911f * SQRT_HALF * z);
  const Vec series = t * (.254829592f + t * (-.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
  const Vec tail = .5f * series * e;
  return {e, x < 0.f ? tail : 1.f - tail};
}

inline Vec larger(Vec a, Vec b) { return (a > b) | (a != a) ? a : b; }  // a number that is none comes through

// The maximum of a square: `a` its upper two pixels of c channels, `b` its lower two.
inline Vec largest(const float* a, const float* b, int c) {
  return larger(larger(load(b + c), load(b)), larger(load(a + c), load(a)));
}

}  // namespace

// y = x * (share of a normal distribution below x).
extern "C" void gelu(const float* x, float* y, long count, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < count; i += LANES) store(y + i, load(x + i) * normal(load(x + i)).below);
}

extern "C" void gelu_backward(const float* x, const float* dy, float* dx, long count, int threads) {
#pragma omp parallel for num_threads(threads)
  for (long i = 0; i < count; i += LANES) {
    const Vec at = load(x + i);
    const Normal found = normal(at);
    store(dx + i, load(dy + i) * (found.below + at * DENSITY_AT_0 * found.density));
  }
}

// y (n, h / 2, w / 2, c): the maxima of the 2x2 squares of x (n, h, w, c).
extern "C" void pool(const float* x, float* y, int n, int h, int w, int c, int threads) {
  const int down = h / 2, across = w / 2;
#pragma omp parallel for num_threads(threads)
  for (int line = 0; line < n * down; line++) {
    const float* upper = x + ((size_t)(line / down) * h + line % down * 2) * w * c;
    for (int column = 0; column < across; column++) {
      const float *a = upper + (size_t)2 * column * c, *b = a + (size_t)w * c;
      float* to = y + ((size_t)line * across + column) * c;
      for (int i = 0; i < c; i += LANES) store(to + i, largest(a + i, b + i, c));
    }
  }
}

// dx (n, h, w, c): dy where x is the first maximum of its square, by rows, and zero elsewhere.
extern "C" void pool_backward(const float* x, const float* dy, float* dx, int n, int h, int w, int c, int threads) {
  const int down = h / 2, across = w / 2;
  const size_t row = (size_t)w * c;
  const Vec zero = {};
#pragma omp parallel for num_threads(threads)
  for (int image = 0; image < n; image++) {
    const float* from = x + (size_t)image * h * row;
    float* to = dx + (size_t)image * h * row;
    for (int line = 0; line < down; line++) {
      for (int column = 0; column < across; column++) {
        const size_t at = (size_t)2 * line * row + (size_t)2 * column * c;
        const float *a = from + at, *b = a + row, *grad = dy + (((size_t)image * down + line) * across + column) * c;
        float *da = to + at, *db = da + row;
        for (int i = 0; i < c; i += LANES) {
          const Vec most = largest(a + i, b + i, c), g = load(grad + i);
          const Bits first = load(a + i) == most, second = ~first & (load(a + c + i) == most);
          const Bits third = ~(first | second) & (load(b + i) == most), fourth = ~(first | second | third);
          store(da + i, first ? g : zero), store(da + c + i, second ? g : zero);
          store(db + i, third ? g : zero), store(db + c + i, fourth ? g : zero);
        }
      }
      if (w % 2) {  // the last column belongs to no square
        std::memset(to + (2 * line + 1) * row - c, 0, c * sizeof(float));
        std::memset(to + (2 * line + 2) * row - c, 0, c * sizeof(float));
      }
    }
    if (h % 2) std::memset(to + (h - 1) * row, 0, row * sizeof(float));
  }
}
