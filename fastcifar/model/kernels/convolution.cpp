// 3x3 convolutions with padding 1 in float32 on a CPU, forward and backward, after Winograd.
//
// F(4x4, 3x3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a tile of 4x4 outputs
// comes from 6x6 inputs by Y = A^T [(G w G^T) * (B^T d B)] A, with 36 multiplications where the definition takes 144.
// Over many tiles and channels the product in the middle is 36 matrix products. The gradients are the adjoints of the
// same maps.
//
// Images lie as (N, H, W, C); filters as (3, 3, K, N), K the channels that are summed over. Channels are multiples
// of 8. Transformed data lie in panels of one vector of channels, (36, C / LANES, T, LANES) for T tiles, so that every
// inner loop runs over whole vectors; where the last of them is half empty, it holds zeros. A thread takes a block of
// images through all of its stages, while the block is in its caches.
//
// A convolution can end in the 2x2 maximum pooling behind it: the outputs, four times as many as their maxima, then
// never pass through memory, nor do their gradients; which of the four was the maximum is kept in a byte.

namespace {

#ifdef __AVX512F__
constexpr int ROWS = 12, COLUMNS = 8;
#else
constexpr int ROWS = 6, COLUMNS = 4;
#endif
// ROWS x 2 and COLUMNS x 2 vectors of sums: as many as the registers hold, and as hide the time of an addition.
constexpr int POINTS = 36, TILES = 96;

constexpr int padded(int channels) { return (channels + LANES - 1) / LANES * LANES; }

// How images are cut into tiles, and how many images a thread takes at once. Of an odd line that pooling drops nothing
// is computed.
struct Shape {
  int images, height, width;
  bool pooled;
  int down, across, block, rows;

  Shape(int images, int height, int width, bool pooled, int threads)
      : images(images), height(height), width(width), pooled(pooled) {
    down = ((pooled ? height / 2 * 2 : height) + 3) / 4;
    across = ((pooled ? width / 2 * 2 : width) + 3) / 4;
    const int target = TILES / tiles() > 0 ? TILES / tiles() : 1;
    int blocks = (images + target - 1) / target;
    blocks = (blocks + threads - 1) / threads * threads;  // so that no thread waits for another
    block = (images + blocks - 1) / blocks;
    rows = (block * tiles() + ROWS - 1) / ROWS * ROWS;
  }
  int tiles() const { return down * across; }
  int blocks() const { return (images + block - 1) / block; }
  size_t inputs() const { return (size_t)height * width; }
  size_t outputs() const { return pooled ? (size_t)(height / 2) * (width / 2) : inputs(); }
};

// The distance from a point's matrix of T x C numbers to the next point's; odd in vectors, or the 36 numbers
// that a tile's transform writes would all fall into the same few of its sets.
constexpr size_t stride(int T, int C) { return (size_t)T * C + (T * C / LANES % 2 ? 0 : LANES); }

// The one-dimensional maps, on vectors `s` and `t` apart.

inline void input(const Vec* d, int s, Vec* o, int t) {  // B^T: 6 to 6
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec a = d4 - 4.f * d2, b = d3 - 4.f * d1, c = d4 - d2, e = 2.f * (d3 - d1);
  o[0] = 4.f * d0 - 5.f * d2 + d4;
  o[t] = a + b;
  o[2 * t] = a - b;
  o[3 * t] = c + e;
  o[4 * t] = c - e;
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
  o[0] = d0 + p + r;
  o[t] = q + 2.f * u;
  o[2 * t] = p + 4.f * r;
  o[3 * t] = q + 8.f * u + d5;
}

inline void output_adjoint(const Vec* d, int s, Vec* o, int t) {  // A: 4 to 6
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s];
  const Vec e = d0 + d2, f = d1 + d3, g = d0 + 4.f * d2, h = 2.f * d1 + 8.f * d3;
  o[0] = d0;
  o[t] = e + f;
  o[2 * t] = e - f;
  o[3 * t] = g + h;
  o[4 * t] = g - h;
  o[5 * t] = d3;
}

inline void filter(const Vec* w, int s, Vec* o, int t) {  // G: 3 to 6
  const Vec w0 = w[0], w1 = w[s], w2 = w[2 * s];
  const Vec p = (w0 + w2) * (1.f / 6), q = w1 * (1.f / 6), r = w0 * (1.f / 24) + w2 * (1.f / 6), u = w1 * (1.f / 12);
  o[0] = w0 * .25f;
  o[t] = -p - q;
  o[2 * t] = q - p;
  o[3 * t] = r + u;
  o[4 * t] = r - u;
  o[5 * t] = w2;
}

inline void filter_adjoint(const Vec* d, int s, Vec* o, int t) {  // G^T: 6 to 3
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec p = d1 + d2, q = d1 - d2, r = d3 + d4, u = d3 - d4;
  o[0] = .25f * d0 - p * (1.f / 6) + r * (1.f / 24);
  o[t] = q * (-1.f / 6) + u * (1.f / 12);
  o[2 * t] = p * (-1.f / 6) + r * (1.f / 6) + d5;
}

// Tile t of a block, at row y and column x of the tiles of an image; `panels` is the block's transformed data.

// The 6x6 pixels of `image` (H, W, C) that a tile's outputs see, transformed; beyond the border they are `zeros` (C).
void take_input(const Shape& shape, const float* image, const float* zeros, int C, int y, int x, float* panels, int t) {
  const float* source[POINTS];
  for (int i = 0; i < 6; i++) {
    for (int j = 0; j < 6; j++) {
      const int row = 4 * y - 1 + i, column = 4 * x - 1 + j;
      const bool inside = row >= 0 && row < shape.height && column >= 0 && column < shape.width;
      source[6 * i + j] = inside ? image + ((size_t)row * shape.width + column) * C : zeros;
    }
  }
  const size_t point = stride(shape.rows, padded(C));
  for (int c = 0; c < C; c += LANES) {
    const bool whole = c + LANES <= C;
    Vec d[6], half[POINTS], o[6];
    for (int j = 0; j < 6; j++) {
      for (int i = 0; i < 6; i++) d[i] = load<Vec>(source[6 * i + j] + c, whole);
      input(d, 1, half + j, 6);
    }
    float* to = panels + (size_t)c * shape.rows + (size_t)t * LANES;
    for (int i = 0; i < 6; i++) {
      input(half + 6 * i, 1, o, 1);
      for (int j = 0; j < 6; j++) store(to + (6 * i + j) * point, o[j]);
    }
  }
}

// Add a tile's gradient to the 6x6 pixels it came from: the adjoint of `take_input`.
void add_input(const Shape& shape, const float* panels, int t, float* image, int C, int y, int x) {
  const size_t point = stride(shape.rows, padded(C));
  for (int c = 0; c < C; c += LANES) {
    const bool whole = c + LANES <= C;
    Vec d[6], half[POINTS], o[6];
    const float* from = panels + (size_t)c * shape.rows + (size_t)t * LANES;
    for (int j = 0; j < 6; j++) {
      for (int i = 0; i < 6; i++) d[i] = load(from + (6 * i + j) * point);
      input_adjoint(d, 1, half + j, 6);
    }
    for (int i = 0; i < 6; i++) {
      const int row = 4 * y - 1 + i;
      if (row < 0 || row >= shape.height) continue;
      input_adjoint(half + 6 * i, 1, o, 1);
      for (int j = 0; j < 6; j++) {
        const int column = 4 * x - 1 + j;
        if (column < 0 || column >= shape.width) continue;
        float* to = image + ((size_t)row * shape.width + column) * C + c;
        store(to, load<Vec>(to, whole) + o[j], whole);
      }
    }
  }
}

// The 4x4 outputs of a tile for one vector of channels.
inline void outputs(const float* from, size_t point, Vec* o) {
  Vec d[6], half[24];
  for (int j = 0; j < 6; j++) {
    for (int i = 0; i < 6; i++) d[i] = load(from + (6 * i + j) * point);
    output(d, 1, half + j, 6);
  }
  for (int i = 0; i < 4; i++) output(half + 6 * i, 1, o + 4 * i, 1);
}

// Write the 4x4 outputs of a tile, as far as they lie in the image.
void put_output(const Shape& shape, const float* panels, int t, float* image, int C, int y, int x) {
  const int rows = shape.height - 4 * y < 4 ? shape.height - 4 * y : 4;
  const int columns = shape.width - 4 * x < 4 ? shape.width - 4 * x : 4;
  for (int c = 0; c < C; c += LANES) {
    Vec o[16];
    outputs(panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)), o);
    for (int i = 0; i < rows; i++) {
      float* to = image + ((size_t)(4 * y + i) * shape.width + 4 * x) * C + c;
      for (int j = 0; j < columns; j++) store(to + (size_t)j * C, o[4 * i + j], c + LANES <= C);
    }
  }
}

inline Vec larger(Vec a, Vec b) { return ((a > b) | (a != a)) ? a : b; }  // a number that is none comes through

// Write the maxima of a tile's 2x2 squares, as far as they lie in the pooled image, and which of the four each one was:
// the first, by rows, of several.
void put_maxima(const Shape& shape, const float* panels, int t, float* image, uint8_t* chosen, int C, int y, int x) {
  const int height = shape.height / 2, width = shape.width / 2;
  for (int c = 0; c < C; c += LANES) {
    Vec o[16];
    outputs(panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)), o);
    for (int row = 2 * y; row < 2 * y + 2 && row < height; row++) {
      for (int column = 2 * x; column < 2 * x + 2 && column < width; column++) {
        const Vec* v = o + 8 * (row % 2) + 2 * (column % 2);
        const Vec most = larger(larger(v[5], v[4]), larger(v[1], v[0]));
        const Bits which = v[0] == most ? Bits{} : v[1] == most ? Bits{} + 1 : v[4] == most ? Bits{} + 2 : Bits{} + 3;
        const size_t to = ((size_t)row * width + column) * C + c;
        store(image + to, most, c + LANES <= C);
        store(chosen + to, __builtin_convertvector(which, Bytes), c + LANES <= C);
      }
    }
  }
}

// The gradients of a tile's 4x4 outputs for one vector of channels, transformed.
inline void put_gradient(const Vec* d, float* to, size_t point) {
  Vec half[24], o[6];
  for (int j = 0; j < 4; j++) output_adjoint(d + j, 4, half + j, 4);
  for (int i = 0; i < 6; i++) {
    output_adjoint(half + 4 * i, 1, o, 1);
    for (int j = 0; j < 6; j++) store(to + (6 * i + j) * point, o[j]);
  }
}

// The gradient of a tile's outputs, transformed: the adjoint of `put_output`.
void take_gradient(const Shape& shape, const float* image, int C, int y, int x, float* panels, int t) {
  const int rows = shape.height - 4 * y < 4 ? shape.height - 4 * y : 4;
  const int columns = shape.width - 4 * x < 4 ? shape.width - 4 * x : 4;
  for (int c = 0; c < C; c += LANES) {
    Vec d[16] = {};
    for (int i = 0; i < rows; i++) {
      const float* from = image + ((size_t)(4 * y + i) * shape.width + 4 * x) * C + c;
      for (int j = 0; j < columns; j++) d[4 * i + j] = load<Vec>(from + (size_t)j * C, c + LANES <= C);
    }
    put_gradient(d, panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)));
  }
}

// The same from the gradient of the maxima, each of which goes to the output that it was.
void take_maxima_gradient(const Shape& shape, const float* image, const uint8_t* chosen, int C, int y, int x,
                          float* panels, int t) {
  const int height = shape.height / 2, width = shape.width / 2;
  for (int c = 0; c < C; c += LANES) {
    Vec d[16] = {};
    for (int row = 2 * y; row < 2 * y + 2 && row < height; row++) {
      for (int column = 2 * x; column < 2 * x + 2 && column < width; column++) {
        const size_t from = ((size_t)row * width + column) * C + c;
        const Vec gradient = load<Vec>(image + from, c + LANES <= C);
        const Bits which = __builtin_convertvector(load<Bytes>(chosen + from, c + LANES <= C), Bits);
        Vec* v = d + 8 * (row % 2) + 2 * (column % 2);
        v[0] = which == 0 ? gradient : Vec{};
        v[1] = which == 1 ? gradient : Vec{};
        v[4] = which == 2 ? gradient : Vec{};
        v[5] = which == 3 ? gradient : Vec{};
      }
    }
    put_gradient(d, panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)));
  }
}

// Matrix products on panels; W panels of the result at once.

// C (N / LANES, T, LANES) = A (K / LANES, T, LANES) B (N / LANES, K, LANES); T a multiple of ROWS.
template <int W> void multiply(const float* A, const float* B, float* C, int T, int K) {
  for (int t = 0; t < T; t += ROWS) {
    Vec sum[ROWS][W] = {};
    for (int k = 0; k < K; k += LANES) {
      const float* a = A + (size_t)k * T + (size_t)t * LANES;
      const float* b = B + (size_t)k * LANES;
#pragma GCC unroll 4
      for (int i = 0; i < LANES; i++, b += LANES) {
        Vec v[W];
        for (int w = 0; w < W; w++) v[w] = load(b + (size_t)w * K * LANES);
#pragma GCC unroll 12
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

// C (N / LANES, K, LANES) += A^T B over the first `used` rows of A (K / LANES, T, LANES) and B (N / LANES, T, LANES).
template <int W> void accumulate(const float* A, const float* B, float* C, int used, int T, int K) {
  for (int k = 0; k < K; k += COLUMNS) {
    const float* a = A + (size_t)(k / LANES * LANES) * T + k % LANES;
    Vec sum[COLUMNS][W];
    for (int r = 0; r < COLUMNS; r++)
      for (int w = 0; w < W; w++) sum[r][w] = load(C + ((size_t)w * K + k + r) * LANES);
#pragma GCC unroll 4
    for (int t = 0; t < used; t++) {
      Vec v[W];
      for (int w = 0; w < W; w++) v[w] = load(B + ((size_t)w * T + t) * LANES);
#pragma GCC unroll 8
      for (int r = 0; r < COLUMNS; r++)
        for (int w = 0; w < W; w++) sum[r][w] += a[(size_t)t * LANES + r] * v[w];
    }
    for (int r = 0; r < COLUMNS; r++)
      for (int w = 0; w < W; w++) store(C + ((size_t)w * K + k + r) * LANES, sum[r][w]);
  }
}

void accumulate(const float* A, const float* B, float* C, int used, int T, int K, int N) {
  int n = 0;
  for (; n + 2 * LANES <= N; n += 2 * LANES) accumulate<2>(A, B + (size_t)n * T, C + (size_t)n * K, used, T, K);
  if (n < N) accumulate<1>(A, B + (size_t)n * T, C + (size_t)n * K, used, T, K);
}

// Filters (3, 3, K, N), transformed to (36, N / LANES, K, LANES), with zeros where channels are padded.
void take_filters(const float* w, float* panels, int K, int N, int threads) {
  const size_t point = stride(padded(K), padded(N));
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; n += LANES) {
    const bool whole = n + LANES <= N;
    for (int k = 0; k < padded(K); k++) {
      Vec d[9] = {}, half[18], o[6];
      for (int p = 0; p < 9 && k < K; p++) d[p] = load<Vec>(w + ((size_t)p * K + k) * N + n, whole);
      for (int j = 0; j < 3; j++) filter(d + j, 3, half + j, 3);
      float* to = panels + (size_t)n * padded(K) + (size_t)k * LANES;
      for (int i = 0; i < 6; i++) {
        filter(half + 3 * i, 1, o, 1);
        for (int j = 0; j < 6; j++) store(to + (6 * i + j) * point, o[j]);
      }
    }
  }
}

// The gradient of filters (3, 3, K, N) from the sum of all threads' transformed ones.
void put_filters(const float* parts, int threads, float* w, int K, int N) {
  const size_t point = stride(padded(K), padded(N)), part = POINTS * point;
#pragma omp parallel for num_threads(threads)
  for (int n = 0; n < N; n += LANES) {
    const bool whole = n + LANES <= N;
    for (int k = 0; k < K; k++) {
      Vec d[POINTS], half[18], o[3];
      for (int p = 0; p < POINTS; p++) {
        const float* from = parts + p * point + (size_t)n * padded(K) + (size_t)k * LANES;
        d[p] = load(from);
        for (int thread = 1; thread < threads; thread++) d[p] += load(from + thread * part);
      }
      for (int j = 0; j < 6; j++) filter_adjoint(d + j, 6, half + j, 6);
      for (int i = 0; i < 3; i++) {
        filter_adjoint(half + 6 * i, 1, o, 1);
        for (int j = 0; j < 3; j++) store(w + ((size_t)(3 * i + j) * K + k) * N + n, o[j], whole);
      }
    }
  }
}

float* reserve(size_t floats) {
  return static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
}

float* reserve_zeros(size_t floats) {
  float* zeros = reserve(floats);
  if (zeros) std::memset(zeros, 0, floats * sizeof(float));
  return zeros;
}

// Call `work(tile t, image, y, x)` for every tile of the block's images.
template <class Work> void each_tile(const Shape& shape, int first, int last, Work work) {
  int t = 0;
  for (int image = first; image < last; image++)
    for (int y = 0; y < shape.down; y++)
      for (int x = 0; x < shape.across; x++) work(t++, (size_t)image, y, x);
}

// Zeros in the rows of panels of C channels that not every block fills: what happened to lie there could be numbers so
// small that the processor takes a hundred times as long for them.
void clear_rest(const Shape& shape, float* panels, int C) {
  const int last = shape.images % shape.block, used = (last ? last : shape.block) * shape.tiles();
  for (int p = 0; p < POINTS; p++)
    for (int c = 0; c < padded(C); c += LANES)
      std::memset(panels + p * stride(shape.rows, padded(C)) + (size_t)c * shape.rows + (size_t)used * LANES, 0,
                  sizeof(Vec) * (shape.rows - used));
}

// Share the blocks out to the threads: call `work(thread, first image, last image)`.
template <class Work> void each_block(const Shape& shape, int threads, Work work) {
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int thread = 0; thread < threads; thread++) {
    for (int b = thread; b < shape.blocks(); b += threads) {
      const int first = b * shape.block, end = first + shape.block;
      work(thread, first, end < shape.images ? end : shape.images);
    }
  }
}

}  // namespace

// y (n, h, w, out) = x (n, h, w, in) convolved with filters (3, 3, in, out); with `chosen`, not null, y and it are the
// maxima of 2x2 squares (n, h / 2, w / 2, out) and which of the four they were. There are images, and with pooling at
// least 2x2 pixels. Returns 1 where memory does not suffice.
extern "C" int convolve(const float* x, const float* filters, float* y, uint8_t* chosen, int n, int h, int w, int in,
                        int out, int threads) {
  const Shape shape(n, h, w, chosen != nullptr, threads);
  const int T = shape.rows, I = padded(in), O = padded(out);
  const size_t V_point = stride(T, I), M_point = stride(T, O), U_point = stride(I, O);
  const size_t scratch = POINTS * (V_point + M_point), from = shape.inputs() * in, to = shape.outputs() * out;
  float *U = reserve(POINTS * U_point), *all = reserve(scratch * threads), *zeros = reserve_zeros(in);
  const bool enough = U && all && zeros;
  if (enough) {
    take_filters(filters, U, in, out, threads);
    for (int thread = 0; thread < threads; thread++) clear_rest(shape, all + scratch * thread, in);
    each_block(shape, threads, [&](int thread, int first, int last) {
      float *V = all + scratch * thread, *M = V + POINTS * V_point;
      each_tile(shape, first, last, [&](int t, size_t image, int row, int column) {
        take_input(shape, x + image * from, zeros, in, row, column, V, t);
      });
      for (int p = 0; p < POINTS; p++) multiply(V + p * V_point, U + p * U_point, M + p * M_point, T, I, O);
      each_tile(shape, first, last, [&](int t, size_t image, int row, int column) {
        if (chosen) put_maxima(shape, M, t, y + image * to, chosen + image * to, out, row, column);
        else put_output(shape, M, t, y + image * to, out, row, column);
      });
    });
  }
  std::free(U);
  std::free(all);
  std::free(zeros);
  return !enough;
}

// From dy, laid out like the y of `convolve`, and its `chosen`: the gradients dx (n, h, w, in), by filters laid out
// (3, 3, out, in), and df (3, 3, in, out); either may be null. Returns 1 where memory does not suffice.
extern "C" int convolve_backward(const float* x, const float* filters, const float* dy, const uint8_t* chosen,
                                 float* dx, float* df, int n, int h, int w, int in, int out, int threads) {
  const Shape shape(n, h, w, chosen != nullptr, threads);
  const int T = shape.rows, I = padded(in), O = padded(out);
  const size_t V_point = stride(T, I), Y_point = stride(T, O), U_point = stride(O, I), D_point = stride(I, O);
  const size_t scratch = POINTS * (V_point + Y_point), weights = POINTS * D_point;
  const size_t to = shape.inputs() * in, from = shape.outputs() * out;
  float* U = dx ? reserve(POINTS * U_point) : nullptr;
  float* D = df ? reserve_zeros(weights * threads) : nullptr;
  float *all = reserve(scratch * threads), *zeros = reserve_zeros(in);
  const bool enough = (U || !dx) && (D || !df) && all && zeros;
  if (enough) {
    if (dx) take_filters(filters, U, out, in, threads);
    for (int thread = 0; thread < threads; thread++) clear_rest(shape, all + scratch * thread + POINTS * V_point, out);
    each_block(shape, threads, [&](int thread, int first, int last) {
      float *V = all + scratch * thread, *Y = V + POINTS * V_point;
      each_tile(shape, first, last, [&](int t, size_t image, int row, int column) {
        if (df) take_input(shape, x + image * to, zeros, in, row, column, V, t);
        if (chosen) take_maxima_gradient(shape, dy + image * from, chosen + image * from, out, row, column, Y, t);
        else take_gradient(shape, dy + image * from, out, row, column, Y, t);
      });
      const int used = (last - first) * shape.tiles();
      for (int p = 0; p < POINTS; p++) {
        float *v = V + p * V_point, *g = Y + p * Y_point;
        if (df) accumulate(v, g, D + thread * weights + p * D_point, used, T, I, O);
        if (dx) multiply(g, U + p * U_point, v, T, O, I);  // in the place of the input, which is done with
      }
      if (!dx) return;
      std::memset(dx + first * to, 0, (last - first) * to * sizeof(float));
      each_tile(shape, first, last, [&](int t, size_t image, int row, int column) {
        add_input(shape, V, t, dx + image * to, in, row, column);
      });
    });
    if (df) put_filters(D, threads, df, in, out);
  }
  std::free(U);
  std::free(D);
  std::free(all);
  std::free(zeros);
  return !enough;
}
