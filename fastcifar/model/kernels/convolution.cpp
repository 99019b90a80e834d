// 3x3 convolutions with padding 1 in float32 on a CPU, forward and backward, after Winograd.
//
// F(m, 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): a tile of m x m outputs comes
// from (m + 2) x (m + 2) inputs by Y = A^T [(G w G^T) * (B^T d B)] A, with as many multiplications as inputs: 36 for
// 4x4 outputs, where the definition takes 144. Over many tiles and channels the product in the middle is 36 matrix
// products. The gradients are the adjoints of the same maps.
//
// Where 4x4 tiles do not fill a map, the last of a line have 3 or 2 outputs: of the six points at which polynomials are
// evaluated (0, 1, -1, infinity, 2, -2, in this order) they take the first five or four, with the same G, and are no
// part of the matrix products of the others.
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

// Points on the edge of a tile and in all; tiles in a block, as many as were fastest for 24 to 128 channels (AVX2).
constexpr int EDGE = 6, POINTS = EDGE * EDGE, TILES = 48;

// For what is done to a tile: where its size is a constant, as that of a 4x4 tile is, loops are unrolled.
#define INLINE inline __attribute__((always_inline))

constexpr int padded(int channels) { return (channels + LANES - 1) / LANES * LANES; }

// Tiles on a line of outputs: `count` of `size` outputs each, from output `start` on.
struct Part {
  int start, count, size;

  int end() const { return start + count * size; }
};

// A line of outputs, cut into the tiles that take the fewest points: large ones, then small ones. With pooling a tile
// has an even size, and of an odd line the last output is not computed. A line of one output is a tile of two.
struct Line {
  Part large, small;

  Line(int length, bool pooled) {
    if (pooled) length = length / 2 * 2;
    const int tiles = (length + 3) / 4, spare = 4 * tiles - length;
    if (spare == 3 && tiles > 1) {  // 5 = 3 + 2, 9 = 3 + 3 + 3, 13 = 4 + 3 + 3 + 3
      large = tiles == 2 ? Part{0, 1, 3} : Part{0, tiles - 3, 4};
      small = tiles == 2 ? Part{3, 1, 2} : Part{4 * (tiles - 3), 3, 3};
    } else {
      const bool whole = spare == 0;
      large = Part{0, tiles - !whole, 4};
      small = Part{4 * (tiles - 1), !whole, spare == 1 ? 3 : 2};
    }
  }
  int tiles() const { return large.count + small.count; }
};

// Tiles of one height and one width.
struct Kind {
  Part rows, columns;

  int tiles() const { return rows.count * columns.count; }
  bool uses(int point) const { return point / EDGE < rows.size + 2 && point % EDGE < columns.size + 2; }
};

// One of them: its first output, and how many it has.
struct Tile {
  int row, column, rows, columns;
};

struct Range {
  int begin, end;
};

// How images are cut into tiles, and how many images a thread takes at once. The tiles of a block lie by kinds, in an
// order in which those that use a point follow each other.
struct Shape {
  int images, height, width;
  bool pooled;
  Kind kinds[4];
  int tiles, block, rows;

  Shape(int images, int height, int width, bool pooled, int threads)
      : images(images), height(height), width(width), pooled(pooled) {
    const Line down(height, pooled), across(width, pooled);
    kinds[0] = {down.small, across.large};
    kinds[1] = {down.large, across.large};
    kinds[2] = {down.large, across.small};
    kinds[3] = {down.small, across.small};
    tiles = down.tiles() * across.tiles();
    const int target = TILES / tiles > 0 ? TILES / tiles : 1;
    int blocks = (images + target - 1) / target;
    blocks = (blocks + threads - 1) / threads * threads;  // so that no thread waits for another
    block = (images + blocks - 1) / blocks;
    rows = (block * tiles + ROWS - 1) / ROWS * ROWS;
  }
  int blocks() const { return (images + block - 1) / block; }
  size_t inputs() const { return (size_t)height * width; }
  size_t outputs() const { return pooled ? (size_t)(height / 2) * (width / 2) : inputs(); }

  // The tiles of so many images that use a point.
  Range using_point(int point, int count) const {
    Range range = {0, 0};
    int t = 0;
    for (const Kind& kind : kinds) {
      const int end = t + count * kind.tiles();
      if (kind.uses(point) && end > t) range = {range.end ? range.begin : t, end};
      t = end;
    }
    return range;
  }
};

// The distance from a point's matrix of T x C numbers to the next point's; odd in vectors, or the 36 numbers
// that a tile's transform writes would all fall into the same few of its sets.
constexpr size_t stride(int T, int C) { return (size_t)T * C + (T * C / LANES % 2 ? 0 : LANES); }

// The one-dimensional maps of tiles with M outputs, on vectors `s` and `t` apart.

template <int M> inline void input(const Vec* d, int s, Vec* o, int t) {  // B^T: M + 2 to M + 2
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s];
  if (M == 2) {
    o[0] = 4.f * (d0 - d2);
    o[t] = -3.f * (d1 + d2);
    o[2 * t] = 3.f * (d1 - d2);
    o[3 * t] = d3 - d1;
  } else if (M == 3) {
    const Vec d4 = d[4 * s], a = d3 - d1, b = 2.f * d1;
    o[0] = 4.f * (d0 - d2) + 2.f * a;
    o[t] = 3.f * (d3 - d2 - b);
    o[2 * t] = d3 - 3.f * d2 + b;
    o[3 * t] = d4 - d2 - 2.f * a;
    o[4 * t] = 4.f * a;
  } else {
    const Vec d4 = d[4 * s], d5 = d[5 * s];
    const Vec a = d4 - 4.f * d2, b = d3 - 4.f * d1, c = d4 - d2, e = 2.f * (d3 - d1);
    o[0] = 4.f * d0 - 5.f * d2 + d4;
    o[t] = a + b;
    o[2 * t] = a - b;
    o[3 * t] = 4.f * d1 - 5.f * d3 + d5;
    o[4 * t] = c + e;
    o[5 * t] = c - e;
  }
}

template <int M> inline void input_adjoint(const Vec* d, int s, Vec* o, int t) {  // B: M + 2 to M + 2
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], p = d1 + d2, q = d1 - d2;
  if (M == 2) {
    o[0] = 4.f * d0;
    o[t] = -3.f * q - d3;
    o[2 * t] = -4.f * d0 - 3.f * p;
    o[3 * t] = d3;
  } else if (M == 3) {
    const Vec d4 = d[4 * s], a = 2.f * (d0 - d3) + 4.f * d4;
    o[0] = 4.f * d0;
    o[t] = 2.f * d2 - 6.f * d1 - a;
    o[2 * t] = -4.f * d0 - 3.f * p - d3;
    o[3 * t] = a + 3.f * d1 + d2;
    o[4 * t] = d3;
  } else {
    const Vec d4 = d[4 * s], d5 = d[5 * s], r = d4 + d5, u = d4 - d5;
    o[0] = 4.f * d0;
    o[t] = -4.f * q - 2.f * u + 4.f * d3;
    o[2 * t] = -5.f * d0 - 4.f * p - r;
    o[3 * t] = q + 2.f * u - 5.f * d3;
    o[4 * t] = d0 + p + r;
    o[5 * t] = d3;
  }
}

template <int M> inline void output(const Vec* d, int s, Vec* o, int t) {  // A^T: M + 2 to M
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], p = d1 + d2, q = d1 - d2;
  if (M == 2) {
    o[0] = d0 + p;
    o[t] = q + d3;
  } else if (M == 3) {
    const Vec d4 = d[4 * s];
    o[0] = d0 + p + d4;
    o[t] = q + 2.f * d4;
    o[2 * t] = p + 4.f * d4 + d3;
  } else {
    const Vec d4 = d[4 * s], d5 = d[5 * s], r = d4 + d5, u = d4 - d5;
    o[0] = d0 + p + r;
    o[t] = q + 2.f * u;
    o[2 * t] = p + 4.f * r;
    o[3 * t] = q + 8.f * u + d3;
  }
}

template <int M> inline void output_adjoint(const Vec* d, int s, Vec* o, int t) {  // A: M to M + 2
  const Vec d0 = d[0], d1 = d[s];
  if (M == 2) {
    o[0] = d0;
    o[t] = d0 + d1;
    o[2 * t] = d0 - d1;
    o[3 * t] = d1;
  } else if (M == 3) {
    const Vec d2 = d[2 * s], e = d0 + d2;
    o[0] = d0;
    o[t] = e + d1;
    o[2 * t] = e - d1;
    o[3 * t] = d2;
    o[4 * t] = d0 + 2.f * d1 + 4.f * d2;
  } else {
    const Vec d2 = d[2 * s], d3 = d[3 * s];
    const Vec e = d0 + d2, f = d1 + d3, g = d0 + 4.f * d2, h = 2.f * d1 + 8.f * d3;
    o[0] = d0;
    o[t] = e + f;
    o[2 * t] = e - f;
    o[3 * t] = d3;
    o[4 * t] = g + h;
    o[5 * t] = g - h;
  }
}

inline void filter(const Vec* w, int s, Vec* o, int t) {  // G: 3 to 6
  const Vec w0 = w[0], w1 = w[s], w2 = w[2 * s];
  const Vec p = (w0 + w2) * (1.f / 6), q = w1 * (1.f / 6), r = w0 * (1.f / 24) + w2 * (1.f / 6), u = w1 * (1.f / 12);
  o[0] = w0 * .25f;
  o[t] = -p - q;
  o[2 * t] = q - p;
  o[3 * t] = w2;
  o[4 * t] = r + u;
  o[5 * t] = r - u;
}

inline void filter_adjoint(const Vec* d, int s, Vec* o, int t) {  // G^T: 6 to 3
  const Vec d0 = d[0], d1 = d[s], d2 = d[2 * s], d3 = d[3 * s], d4 = d[4 * s], d5 = d[5 * s];
  const Vec p = d1 + d2, q = d1 - d2, r = d4 + d5, u = d4 - d5;
  o[0] = .25f * d0 - p * (1.f / 6) + r * (1.f / 24);
  o[t] = q * (-1.f / 6) + u * (1.f / 12);
  o[2 * t] = p * (-1.f / 6) + r * (1.f / 6) + d3;
}

template <int M> struct Size {
  static constexpr int outputs = M, points = M + 2;
};

// Call `work` with the number of a tile's outputs on a line as a constant.
template <class Work> inline void with_size(int outputs, Work work) {
  if (outputs == 4) work(Size<4>());
  else if (outputs == 3) work(Size<3>());
  else work(Size<2>());
}

// Tile t of a block; `panels` is the block's transformed data.

// The pixels of `image` (H, W, C) that a tile's outputs see, transformed; beyond the border they are `zeros` (C).
INLINE void take_input(const Shape& shape, const float* image, const float* zeros, int C, Tile tile, float* panels,
                       int t) {
  const float* source[POINTS];
  for (int i = 0; i < tile.rows + 2; i++) {
    for (int j = 0; j < tile.columns + 2; j++) {
      const int y = tile.row - 1 + i, x = tile.column - 1 + j;
      const bool inside = y >= 0 && y < shape.height && x >= 0 && x < shape.width;
      source[EDGE * i + j] = inside ? image + ((size_t)y * shape.width + x) * C : zeros;
    }
  }
  const size_t point = stride(shape.rows, padded(C));
  for (int c = 0; c < C; c += LANES) {
    const bool whole = c + LANES <= C;
    Vec half[POINTS];
    with_size(tile.rows, [&](auto size) {
      Vec d[size.points];
      for (int j = 0; j < tile.columns + 2; j++) {
        for (int i = 0; i < size.points; i++) d[i] = load<Vec>(source[EDGE * i + j] + c, whole);
        input<size.outputs>(d, 1, half + j, EDGE);
      }
    });
    float* to = panels + (size_t)c * shape.rows + (size_t)t * LANES;
    with_size(tile.columns, [&](auto size) {
      Vec o[size.points];
      for (int i = 0; i < tile.rows + 2; i++) {
        input<size.outputs>(half + EDGE * i, 1, o, 1);
        for (int j = 0; j < size.points; j++) store(to + (EDGE * i + j) * point, o[j]);
      }
    });
  }
}

// Add a tile's gradient to the pixels it came from: the adjoint of `take_input`.
INLINE void add_input(const Shape& shape, const float* panels, int t, float* image, int C, Tile tile) {
  const size_t point = stride(shape.rows, padded(C));
  for (int c = 0; c < C; c += LANES) {
    const bool whole = c + LANES <= C;
    const float* from = panels + (size_t)c * shape.rows + (size_t)t * LANES;
    Vec half[POINTS];
    with_size(tile.rows, [&](auto size) {
      Vec d[size.points];
      for (int j = 0; j < tile.columns + 2; j++) {
        for (int i = 0; i < size.points; i++) d[i] = load(from + (EDGE * i + j) * point);
        input_adjoint<size.outputs>(d, 1, half + j, EDGE);
      }
    });
    with_size(tile.columns, [&](auto size) {
      Vec o[size.points];
      for (int i = 0; i < tile.rows + 2; i++) {
        const int y = tile.row - 1 + i;
        if (y < 0 || y >= shape.height) continue;
        input_adjoint<size.outputs>(half + EDGE * i, 1, o, 1);
        for (int j = 0; j < size.points; j++) {
          const int x = tile.column - 1 + j;
          if (x < 0 || x >= shape.width) continue;
          float* to = image + ((size_t)y * shape.width + x) * C + c;
          store(to, load<Vec>(to, whole) + o[j], whole);
        }
      }
    });
  }
}

// The outputs of a tile for one vector of channels, rows of EDGE.
INLINE void outputs(const float* from, size_t point, Tile tile, Vec* o) {
  Vec half[POINTS];
  with_size(tile.rows, [&](auto size) {
    Vec d[size.points];
    for (int j = 0; j < tile.columns + 2; j++) {
      for (int i = 0; i < size.points; i++) d[i] = load(from + (EDGE * i + j) * point);
      output<size.outputs>(d, 1, half + j, EDGE);
    }
  });
  with_size(tile.columns, [&](auto size) {
    for (int i = 0; i < tile.rows; i++) output<size.outputs>(half + EDGE * i, 1, o + EDGE * i, 1);
  });
}

inline int smaller(int a, int b) { return a < b ? a : b; }

// Write the outputs of a tile, as far as they lie in the image.
INLINE void put_output(const Shape& shape, const float* panels, int t, float* image, int C, Tile tile) {
  const int rows = smaller(tile.rows, shape.height - tile.row);
  const int columns = smaller(tile.columns, shape.width - tile.column);
  for (int c = 0; c < C; c += LANES) {
    Vec o[POINTS];
    outputs(panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)), tile, o);
    for (int i = 0; i < rows; i++) {
      float* to = image + ((size_t)(tile.row + i) * shape.width + tile.column) * C + c;
      for (int j = 0; j < columns; j++) store(to + (size_t)j * C, o[EDGE * i + j], c + LANES <= C);
    }
  }
}

inline Vec larger(Vec a, Vec b) { return ((a > b) | (a != a)) ? a : b; }  // a number that is none comes through

// Write the maxima of a tile's 2x2 squares, and which of the four each one was: the first, by rows, of several.
INLINE void put_maxima(const Shape& shape, const float* panels, int t, float* image, uint8_t* chosen, int C,
                       Tile tile) {
  for (int c = 0; c < C; c += LANES) {
    Vec o[POINTS];
    outputs(panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)), tile, o);
    for (int i = 0; i < tile.rows; i += 2) {
      for (int j = 0; j < tile.columns; j += 2) {
        const Vec *v = o + EDGE * i + j, *w = v + EDGE;
        const Vec most = larger(larger(w[1], w[0]), larger(v[1], v[0]));
        const Bits which = v[0] == most ? Bits{} : v[1] == most ? Bits{} + 1 : w[0] == most ? Bits{} + 2 : Bits{} + 3;
        const size_t to = ((size_t)((tile.row + i) / 2) * (shape.width / 2) + (tile.column + j) / 2) * C + c;
        store(image + to, most, c + LANES <= C);
        store(chosen + to, __builtin_convertvector(which, Bytes), c + LANES <= C);
      }
    }
  }
}

// The gradients of a tile's outputs, rows of EDGE, for one vector of channels, transformed.
INLINE void put_gradient(const Vec* d, float* to, size_t point, Tile tile) {
  Vec half[POINTS];
  with_size(tile.rows, [&](auto size) {
    for (int j = 0; j < tile.columns; j++) output_adjoint<size.outputs>(d + j, EDGE, half + j, EDGE);
  });
  with_size(tile.columns, [&](auto size) {
    Vec o[size.points];
    for (int i = 0; i < tile.rows + 2; i++) {
      output_adjoint<size.outputs>(half + EDGE * i, 1, o, 1);
      for (int j = 0; j < size.points; j++) store(to + (EDGE * i + j) * point, o[j]);
    }
  });
}

// The gradient of a tile's outputs, transformed: the adjoint of `put_output`.
INLINE void take_gradient(const Shape& shape, const float* image, int C, Tile tile, float* panels, int t) {
  const int rows = smaller(tile.rows, shape.height - tile.row);
  const int columns = smaller(tile.columns, shape.width - tile.column);
  for (int c = 0; c < C; c += LANES) {
    Vec d[POINTS] = {};
    for (int i = 0; i < rows; i++) {
      const float* from = image + ((size_t)(tile.row + i) * shape.width + tile.column) * C + c;
      for (int j = 0; j < columns; j++) d[EDGE * i + j] = load<Vec>(from + (size_t)j * C, c + LANES <= C);
    }
    put_gradient(d, panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)), tile);
  }
}

// The same from the gradient of the maxima, each of which goes to the output that it was.
INLINE void take_maxima_gradient(const Shape& shape, const float* image, const uint8_t* chosen, int C, Tile tile,
                                 float* panels, int t) {
  for (int c = 0; c < C; c += LANES) {
    Vec d[POINTS];
    for (int i = 0; i < tile.rows; i += 2) {
      for (int j = 0; j < tile.columns; j += 2) {
        const size_t from = ((size_t)((tile.row + i) / 2) * (shape.width / 2) + (tile.column + j) / 2) * C + c;
        const Vec gradient = load<Vec>(image + from, c + LANES <= C);
        const Bits which = __builtin_convertvector(load<Bytes>(chosen + from, c + LANES <= C), Bits);
        Vec *v = d + EDGE * i + j, *w = v + EDGE;
        v[0] = which == 0 ? gradient : Vec{};
        v[1] = which == 1 ? gradient : Vec{};
        w[0] = which == 2 ? gradient : Vec{};
        w[1] = which == 3 ? gradient : Vec{};
      }
    }
    put_gradient(d, panels + (size_t)c * shape.rows + (size_t)t * LANES, stride(shape.rows, padded(C)), tile);
  }
}

// Matrix products on panels; W panels of the result at once.

// C (N / LANES, T, LANES) = A (K / LANES, T, LANES) B (N / LANES, K, LANES) in the rows of a range, which is widened to
// multiples of ROWS, as T is.
template <int W> void multiply(const float* A, const float* B, float* C, Range range, int T, int K) {
  for (int t = range.begin / ROWS * ROWS; t < range.end; t += ROWS) {
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

void multiply(const float* A, const float* B, float* C, Range range, int T, int K, int N) {
  int n = 0;
  for (; n + 2 * LANES <= N; n += 2 * LANES) multiply<2>(A, B + (size_t)n * K, C + (size_t)n * T, range, T, K);
  if (n < N) multiply<1>(A, B + (size_t)n * K, C + (size_t)n * T, range, T, K);
}

// C (N / LANES, K, LANES) += A^T B over the rows of a range of A (K / LANES, T, LANES) and B (N / LANES, T, LANES).
template <int W> void accumulate(const float* A, const float* B, float* C, Range range, int T, int K) {
  for (int k = 0; k < K; k += COLUMNS) {
    const float* a = A + (size_t)(k / LANES * LANES) * T + k % LANES;
    Vec sum[COLUMNS][W];
    for (int r = 0; r < COLUMNS; r++)
      for (int w = 0; w < W; w++) sum[r][w] = load(C + ((size_t)w * K + k + r) * LANES);
#pragma GCC unroll 4
    for (int t = range.begin; t < range.end; t++) {
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

void accumulate(const float* A, const float* B, float* C, Range range, int T, int K, int N) {
  int n = 0;
  for (; n + 2 * LANES <= N; n += 2 * LANES) accumulate<2>(A, B + (size_t)n * T, C + (size_t)n * K, range, T, K);
  if (n < N) accumulate<1>(A, B + (size_t)n * T, C + (size_t)n * K, range, T, K);
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

// Call `work(tile t of the block, image, tile)` for every tile of the block's images.
template <class Work> void each_tile(const Shape& shape, int first, int last, Work work) {
  int t = 0;
  for (const Kind& kind : shape.kinds) {
    const Part rows = kind.rows, columns = kind.columns;
    for (int image = first; image < last; image++)
      for (int y = rows.start; y < rows.end(); y += rows.size)
        for (int x = columns.start; x < columns.end(); x += columns.size) {
          if (rows.size == 4 && columns.size == 4) work(t++, (size_t)image, Tile{y, x, 4, 4});
          else work(t++, (size_t)image, Tile{y, x, rows.size, columns.size});
        }
  }
}

// Zeros in every thread's panels of C channels, `apart` from the next one's, before the first block: the products read
// rows that no tile writes, and what happened to lie there could be numbers so small that the processor takes a hundred
// times as long for them.
void clear(const Shape& shape, float* panels, size_t apart, int C, int threads) {
#pragma omp parallel for num_threads(threads)
  for (int thread = 0; thread < threads; thread++)
    std::memset(panels + apart * thread, 0, POINTS * stride(shape.rows, padded(C)) * sizeof(float));
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
    clear(shape, all, scratch, in, threads);
    each_block(shape, threads, [&](int thread, int first, int last) {
      float *V = all + scratch * thread, *M = V + POINTS * V_point;
      each_tile(shape, first, last,
                [&](int t, size_t image, Tile tile) { take_input(shape, x + image * from, zeros, in, tile, V, t); });
      for (int p = 0; p < POINTS; p++) {
        const Range range = shape.using_point(p, last - first);
        multiply(V + p * V_point, U + p * U_point, M + p * M_point, range, T, I, O);
      }
      each_tile(shape, first, last, [&](int t, size_t image, Tile tile) {
        if (chosen) put_maxima(shape, M, t, y + image * to, chosen + image * to, out, tile);
        else put_output(shape, M, t, y + image * to, out, tile);
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
    clear(shape, all + POINTS * V_point, scratch, out, threads);
    each_block(shape, threads, [&](int thread, int first, int last) {
      float *V = all + scratch * thread, *Y = V + POINTS * V_point;
      each_tile(shape, first, last, [&](int t, size_t image, Tile tile) {
        if (df) take_input(shape, x + image * to, zeros, in, tile, V, t);
        if (chosen) take_maxima_gradient(shape, dy + image * from, chosen + image * from, out, tile, Y, t);
        else take_gradient(shape, dy + image * from, out, tile, Y, t);
      });
      for (int p = 0; p < POINTS; p++) {
        const Range range = shape.using_point(p, last - first);
        float *v = V + p * V_point, *g = Y + p * Y_point;
        if (df) accumulate(v, g, D + thread * weights + p * D_point, range, T, I, O);
        if (dx) multiply(g, U + p * U_point, v, range, T, O, I);  // in the place of the input, which is done with
      }
      if (!dx) return;
      std::memset(dx + first * to, 0, (last - first) * to * sizeof(float));
      each_tile(shape, first, last,
                [&](int t, size_t image, Tile tile) { add_input(shape, V, t, dx + image * to, in, tile); });
    });
    if (df) put_filters(D, threads, df, in, out);
  }
  std::free(U);
  std::free(D);
  std::free(all);
  std::free(zeros);
  return !enough;
}
