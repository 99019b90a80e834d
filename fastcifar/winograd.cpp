// 3x3 convolutions with padding 1 in float32 on a CPU, forward and backward, after Winograd.
//
// F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a tile of 4x4 outputs comes
// from 6x6 inputs by Y = A^T [(G w G^T) * (B^T d B)] A, with 36 multiplications where the definition takes 144. Over many
// tiles and channels the product in the middle is 36 matrix products. The gradients are the adjoints of the same maps.
//
// Images lie as (N, H, W, C); filters as (3, 3, K, N), K the channels that are summed over. Channels are multiples of 8.
// Transformed data lie in panels of 8 channels, (36, C / 8, T, 8) for T tiles, so that every inner loop runs over whole
// vectors. A thread takes a block of images through all of its stages, while the block is in its caches.

#include <cstddef>
#include <cstdlib>
#include <cstring>

namespace {

typedef float Vec __attribute__((vector_size(32)));
constexpr int LANES = 8, ROWS = 6, POINTS = 36, TILES = 96;  // ROWS x 16 sums fill the registers of AVX2

inline Vec load(const float* p) { Vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// How images are cut into tiles, and how many images a thread takes at once.
struct Shape {
  int images, height, width, down, across, block, padded;

  Shape(int images, int height, int width, int threads)
      : images(images), height(height), width(width), down((height + 3) / 4), across((width + 3) / 4) {
    const int target = TILES / tiles() > 0 ? TILES / tiles() : 1;
    int blocks = (images + target - 1) / target;
    blocks = (blocks + threads - 1) / threads * threads;  // so that no thread waits for another
    block = (images + blocks - 1) / blocks;
    padded = (block * tiles() + ROWS - 1) / ROWS * ROWS;
  }
  int tiles() const { return down * across; }
  int blocks() const { return (images + block - 1) / block; }
  size_t pixels() const { return (size_t)height * width; }
};

// The one-dimensional maps, on vectors `s` and `t` apart.

inline void input(const Vec* d, int s, Vec* o, int t) {  // B^T: 6 to 6
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec a = d4 - 4.f * d2, b = d3 - 4.f * d1, c = d4 - d2, e = 2.f * (d3 - d1);
  o[0] = 4.f * d0 - 5.f * d2 + d4;
  o[t] = a + b, o[2 * t] = a - b, o[3 * t] = c + e, o[4 * t] = c - e;
  o[5 * t] = 4.f * d1 - 5.f * d3 + d5;
}

inline void input_adjoint(const Vec* d, int s, Vec* o, int t) {  // B: 6 to 6
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec p = d1 + d2, q = d1 - d2, r = d3 + d4, u = d3 - d4;
  o[0] = 4.f * d0;
  o[t] = -4.f * q - 2.f * u + 4.f * d5;
  o[2 * t] = -5.f * d0 - 4.f * p - r;
  o[3 * t] = q + 2.f * u - 5.f * d5;
  o[4 * t] = d0 + p + r;
  o[5 * t] = d5;
}

inline void output(const Vec* d, int s, Vec* o, int t) {  // A^T: 6 to 4
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec p = d1 + d2, q = d1 - d2, r = d3 + d4, u = d3 - d4;
  o[0] = d0 + p + r, o[t] = q + 2.f * u, o[2 * t] = p + 4.f * r, o[3 * t] = q + 8.f * u + d5;
}

inline void output_adjoint(const Vec* d, int s, Vec* o, int t) {  // A: 4 to 6
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s];
  const Vec e = d0 + d2, f = d1 + d3, g = d0 + 4.f * d2, h = 2.f * d1 + 8.f * d3;
  o[0] = d0, o[t] = e + f, o[2 * t] = e - f, o[3 * t] = g + h, o[4 * t] = g - h, o[5 * t] = d3;
}

inline void filter(const Vec* w, int s, Vec* o, int t) {  // G: 3 to 6
  const Vec w0 = w[0], w1 = w[s], w2 = w[2 * s];
  const Vec p = (w0 + w2) * (1.f / 6), q = w1 * (1.f / 6), r = w0 * (1.f / 24) + w2 * (1.f / 6), u = w1 * (1.f / 12);
  o[0] = w0 * .25f, o[t] = -p - q, o[2 * t] = q - p, o[3 * t] = r + u, o[4 * t] = r - u, o[5 * t] = w2;
}

inline void filter_adjoint(const Vec* d, int s, Vec* o, int t) {  // G^T: 6 to 3
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec p = d1 + d2, q = d1 - d2, r = d3 + d4, u = d3 - d4;
  o[0] = .25f * d0 - p * (1.f / 6) + r * (1.f / 24);
  o[t] = q * (-1.f / 6) + u * (1.f / 12);
  o[2 * t] = p * (-1.f / 6) + r * (1.f / 6) + d5;
}

// Tile t of a block, at row y and column x of the tiles of an image; `panels` is the block's transformed data.

// The 6x6 pixels of `image` (H, W, C) that a tile's outputs see, transformed; beyond the border they are zero.
void take_input(const Shape& shape, const float* image, int C, int y, int x, float* panels, int t) {
  static const float zeros[LANES] = {};
  const float* source[POINTS];
  int follow[POINTS];
  for (int i = 0; i < 6; i++) {
    for (int j = 0; j < 6; j++) {
      const int row = 4 * y - 1 + i, column = 4 * x - 1 + j;
      const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
      source[6 * i + j] = inside ? image + ((size_t)row * shape.width + column) * C : zeros;
      follow[6 * i + j] = inside;
    }
  }
  const size_t point = (size_t)shape.padded * C;
  for (int c = 0; c < C; c += LANES) {
    Vec d[POINTS], half[POINTS], o[6];
    for (int p = 0; p < POINTS; p++) d[p] = load(source[p] + follow[p] * c);
    for (int j = 0; j < 6; j++) input(d + j, 6, half + j, 6);
    float* to = panels + (size_t)c * shape.padded + (size_t)t * LANES;
    for (int i = 0; i < 6; i++) {
      input(half + 6 * i, 1, o, 1);
      for (int j = 0; j < 6; j++) store(to + (6 * i + j) * point, o[j]);
    }
  }
}

// Add a tile's gradient to the 6x6 pixels it came from: the adjoint of `take_input`.
void add_input(const Shape& shape, const float* panels, int t, float* image, int C, int y, int x) {
  const size_t point = (size_t)shape.padded * C;
  for (int c = 0; c < C; c += LANES) {
    Vec d[POINTS], half[POINTS], o[6];
    const float* from = panels + (size_t)c * shape.padded + (size_t)t * LANES;
    for (int p = 0; p < POINTS; p++) d[p] = load(from + p * point);
    for (int j = 0; j < 6; j++) input_adjoint(d + j, 6, half + j, 6);
    for (int i = 0; i < 6; i++) {
      const int row = 4 * y - 1 + i;
      if (row < 0 || row >= shape.height) continue;
      input_adjoint(half + 6 * i, 1, o, 1);
      for (int j = 0; j < 6; j++) {
        const int column = 4 * x - 1 + j;
        if (column < 0 || column >= shape.width) continue;
        float* to = image + ((size_t)row * shape.width + column) * C + c;
        store(to, load(to) + o[j]);
      }
    }
  }
}

// Write the 4x4 outputs of a tile, as far as they lie in the image.
void put_output(const Shape& shape, const float* panels, int t, float* image, int C, int y, int x) {
  const int rows = shape.height - 4 * y < 4 ? shape.height - 4 * y : 4;
  const int columns = shape.width - 4 * x < 4 ? shape.width - 4 * x : 4;
  const size_t point = (size_t)shape.padded * C;
  for (int c = 0; c < C; c += LANES) {
    Vec d[POINTS], half[24], o[4];
    const float* from = panels + (size_t)c * shape.padded + (size_t)t * LANES;
    for (int p = 0; p < POINTS; p++) d[p] = load(from + p * point);
    for (int j = 0; j < 6; j++) output(d + j, 6, half + j, 6);
    for (int i = 0; i < rows; i++) {
      output(half + 6 * i, 1, o, 1);
      float* to = image + ((size_t)(4 * y + i) * shape.width + 4 * x) * C + c;
      for (int j = 0; j < columns; j++) store(to + (size_t)j * C, o[j]);
    }
  }
}

// The gradient of a tile's outputs, transformed: the adjoint of `put_output`.
void take_gradient(const Shape& shape, const float* image, int C, int y, int x, float* panels, int t) {
  const int rows = shape.height - 4 * y < 4 ? shape.height - 4 * y : 4;
  const int columns = shape.width - 4 * x < 4 ? shape.width - 4 * x : 4;
  const size_t point = (size_t)shape.padded * C;
  for (int c = 0; c < C; c += LANES) {
    Vec d[16] = {}, half[24], o[6];
    for (int i = 0; i < rows; i++)
      for (int j = 0; j < columns; j++)
        d[4 * i + j] = load(image + ((size_t)(4 * y + i) * shape.width + 4 * x + j) * C + c);
    for (int j = 0; j < 4; j++) output_adjoint(d + j, 4, half + j, 4);
    float* to = panels + (size_t)c * shape.padded + (size_t)t * LANES;
    for (int i = 0; i < 6; i++) {
      output_adjoint(half + 4 * i, 1, o, 1);
      for (int j = 0; j < 6; j++) store(to + (6 * i + j) * point, o[j]);
    }
  }
}

// Matrix products on panels; W panels of the result at once.

// C (N / 8, T, 8) = A (K / 8, T, 8) B (N / 8, K, 8); T a multiple of ROWS.
template <int W> void multiply(const float* A, const float* B, float* C, int T, int K) {
  for (int t = 0; t < T; t += ROWS) {
    Vec sum[ROWS][W] = {};
    for (int k = 0; k < K; k += LANES) {
      const float* a = A + (size_t)k * T + (size_t)t * LANES;
      const float* b = B + (size_t)k * LANES;
#pragma GCC unroll 8
      for (int i = 0; i < LANES; i++, b += LANES) {
        Vec v[W];
        for (int w = 0; w < W; w++) v[w] = load(b + (size_t)w * K * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++)
          for (int w = 0; w < W; w++) sum[r][w] += a[r * LANES + i] * v[w];
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int w = 0; w < W; w++) store(C + ((size_t)w * T + t + r) * LANES, sum[r][w]);
  }
}

void multiply(const float* A, const float* B, float* C, int T, int K, int N) {
  int n = 0;
  for (; n + 2 * LANES <= N; n += 2 * LANES) multiply<2>(A, B + (size_t)n * K, C + (size_t)n * T, T, K);
  if (n < N) multiply<1>(A, B + (size_t)n * K, C + (size_t)n * T, T, K);
}

// C (N / 8, K, 8) += A^T B over the first `used` rows of A (K / 8, T, 8) and B (N / 8, T, 8).
template <int W> void accumulate(const float* A, const float* B, float* C, int used, int T, int K) {
  for (int k = 0; k < K; k += 4) {
    const float* a = A + (size_t)(k / LANES * LANES) * T + k % LANES;
    Vec sum[4][W];
    for (int r = 0; r < 4; r++)
      for (int w = 0; w < W; w++) sum[r][w] = load(C + ((size_t)w * K + k + r) * LANES);
#pragma GCC unroll 4
    for (int t = 0; t < used; t++) {
      Vec v[W];
      for (int w = 0; w < W; w++) v[w] = load(B + ((size_t)w * T + t) * LANES);
#pragma GCC unroll 4
      for (int r = 0; r < 4; r++)
        for (int w = 0; w < W; w++) sum[r][w] += a[(size_t)t * LANES + r] * v[w];
    }
    for (int r = 0; r < 4; r++)
      for (int w = 0; w < W; w++) store(C + ((size_t)w * K + k + r) * LANES, sum[r][w]);
  }
}

void accumulate(const float* A, const float* B, float* C, int used, int T, int K, int N) {
  int n = 0;
  for (; n + 2 * LANES <= N; n += 2 * LANES)
    accumulate<2>(A, B + (size_t)n * T, C + (size_t)n * K, used, T, K);
  if (n < N) accumulate<1>(A, B + (size_t)n * T, C + (size_t)n * K, used, T, K);
}

// Filters (3, 3, K, N), transformed to (36, N / 8, K, 8).
void take_filters(const float* w, float* panels, int K, int N, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; n += LANES) {
    for (int k = 0; k < K; k++) {
      Vec d[9], half[18], o[6];
      for (int p = 0; p < 9; p++) d[p] = load(w + ((size_t)p * K + k) * N + n);
      for (int j = 0; j < 3; j++) filter(d + j, 3, half + j, 3);
      for (int i = 0; i < 6; i++) {
        filter(half + 3 * i, 1, o, 1);
        for (int j = 0; j < 6; j++) store(panels + ((size_t)(6 * i + j) * N + n) * K + (size_t)k * LANES, o[j]);
      }
    }
  }
}

// The gradient of filters (3, 3, K, N) from the sum of all threads' transformed ones.
void put_filters(const float* parts, int threads, float* w, int K, int N) {
  const size_t part = (size_t)POINTS * K * N;
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; n += LANES) {
    for (int k = 0; k < K; k++) {
      Vec d[POINTS], half[18], o[3];
      for (int p = 0; p < POINTS; p++) {
        const float* from = parts + ((size_t)p * N + n) * K + (size_t)k * LANES;
        d[p] = load(from);
        for (int thread = 1; thread < threads; thread++) d[p] += load(from + thread * part);
      }
      for (int j = 0; j < 6; j++) filter_adjoint(d + j, 6, half + j, 6);
      for (int i = 0; i < 3; i++) {
        filter_adjoint(half + 6 * i, 1, o, 1);
        for (int j = 0; j < 3; j++) store(w + ((size_t)(3 * i + j) * K + k) * N + n, o[j]);
      }
    }
  }
}

float* reserve(size_t floats) { return static_cast<float*>(std::malloc(floats * sizeof(float))); }

// Call `work(panel offset t, image, y, x)` for every tile of the block's images.
template <class Work> void each_tile(const Shape& shape, int first, int last, Work work) {
  int t = 0;
  for (int image = first; image < last; image++)
    for (int y = 0; y < shape.down; y++)
      for (int x = 0; x < shape.across; x++) work(t++, (size_t)image * shape.pixels(), y, x);
}

// Share the blocks out to the threads: call `work(thread, input panels, output panels, first image, last image)`.
template <class Work> void each_block(const Shape& shape, float* scratch, int in, int out, int threads, Work work) {
  const size_t tiles = (size_t)POINTS * shape.padded;
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int thread = 0; thread < threads; thread++) {
    float* V = scratch + tiles * (in + out) * thread;
    for (int b = thread; b < shape.blocks(); b += threads) {
      const int first = b * shape.block, end = first + shape.block;
      work(thread, V, V + tiles * in, first, end < shape.images ? end : shape.images);
    }
  }
}

}  // namespace

// y (n, h, w, out) = x (n, h, w, in) convolved with filters (3, 3, in, out). Returns 1 where memory does not suffice.
extern "C" int convolve(const float* x, const float* filters, float* y, int n, int h, int w, int in, int out, int threads) {
  const Shape shape(n, h, w, threads);
  const size_t tiles = (size_t)POINTS * shape.padded;
  float* U = reserve((size_t)POINTS * in * out);
  float* scratch = reserve(tiles * (in + out) * threads);
  const bool enough = U && scratch;
  if (enough) {
    take_filters(filters, U, in, out, threads);
    each_block(shape, scratch, in, out, threads, [&](int, float* V, float* M, int first, int last) {
      each_tile(shape, first, last, [&](int t, size_t at, int row, int column) {
        take_input(shape, x + at * in, in, row, column, V, t);
      });
      for (size_t p = 0; p < POINTS; p++)
        multiply(V + p * shape.padded * in, U + p * in * out, M + p * shape.padded * out, shape.padded, in, out);
      each_tile(shape, first, last, [&](int t, size_t at, int row, int column) {
        put_output(shape, M, t, y + at * out, out, row, column);
      });
    });
  }
  std::free(U), std::free(scratch);
  return !enough;
}

// From dy (n, h, w, out): the gradients dx (n, h, w, in), by filters laid out (3, 3, out, in), and df (3, 3, in, out);
// either may be null. Returns 1 where memory does not suffice.
extern "C" int convolve_backward(const float* x, const float* filters, const float* dy, float* dx, float* df, int n,
                                 int h, int w, int in, int out, int threads) {
  const Shape shape(n, h, w, threads);
  const size_t tiles = (size_t)POINTS * shape.padded, weights = (size_t)POINTS * in * out;
  float* U = dx ? reserve(weights) : nullptr;
  float* D = df ? static_cast<float*>(std::calloc(weights * threads, sizeof(float))) : nullptr;
  float* scratch = reserve(tiles * (in + out) * threads);
  const bool enough = (U || !dx) && (D || !df) && scratch;
  if (enough) {
    if (dx) take_filters(filters, U, out, in, threads);
    each_block(shape, scratch, in, out, threads, [&](int thread, float* V, float* Y, int first, int last) {
      each_tile(shape, first, last, [&](int t, size_t at, int row, int column) {
        if (df) take_input(shape, x + at * in, in, row, column, V, t);
        take_gradient(shape, dy + at * out, out, row, column, Y, t);
      });
      const int used = (last - first) * shape.tiles(), T = shape.padded;
      for (size_t p = 0; p < POINTS; p++) {
        float *v = V + p * T * in, *g = Y + p * T * out;
        if (df) accumulate(v, g, D + thread * weights + p * in * out, used, T, in, out);
        if (dx) multiply(g, U + p * in * out, v, T, out, in);  // in the place of the input, which is done with
      }
      if (!dx) return;
      std::memset(dx + first * shape.pixels() * in, 0, (last - first) * shape.pixels() * in * sizeof(float));
      each_tile(shape, first, last, [&](int t, size_t at, int row, int column) {
        add_input(shape, V, t, dx + at * in, in, row, column);
      });
    });
    if (df) put_filters(D, threads, df, in, out);
  }
  std::free(U), std::free(D), std::free(scratch);
  return !enough;
}
