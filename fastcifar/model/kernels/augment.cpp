// Training images on a CPU in one pass: gathered, moved, mirrored, normalised,
// jittered, cut out and made smaller, each while it is in the nearest cache.

namespace {

constexpr int SIDE = 32, PLANES = 3;

inline int reflect(int position) {  // at the outermost pixel, which is not repeated
  const int last = SIDE - 1, inside = position < 0 ? -position : position;
  return last - (inside > last ? inside - last : last - inside);
}

}  // namespace

// out (count, side, side, 3) from the rows `index` of images (N, 3, 32, 32). A
// pixel becomes (pixel * scale + offset + brightness) * contrast; what may
// happen to an image is null where it does not. `weights` (32, 32) makes of a
// line of 32 pixels one of `side`, zeros behind it; null where side is 32.
extern "C" void augment(const uint8_t* images, const int64_t* index, const uint8_t* flip, const int64_t* shift,
                        const int64_t* box, const float* brightness, const float* contrast, const float* scale,
                        const float* offset, const float* weights, float* out, int count, int cutout, int side,
                        int threads) {
#pragma omp parallel for num_threads(threads)
  for (int i = 0; i < count; i++) {
    const uint8_t* image = images + (size_t)index[i] * PLANES * SIDE * SIDE;
    float* to = out + (size_t)i * side * side * PLANES;
    const int down = shift ? shift[2 * i] : 0, right = shift ? shift[2 * i + 1] : 0;
    const int top = box ? box[2 * i] : SIDE, left = box ? box[2 * i + 1] : SIDE;
    int columns[SIDE];
    for (int x = 0; x < SIDE; x++) columns[x] = reflect((flip && flip[i] ? SIDE - 1 - x : x) + right);
    for (int plane = 0; plane < PLANES; plane++) {
      float pixels[SIDE][SIDE];
      const float factor = contrast ? contrast[i] : 1.f, more = offset[plane] + (brightness ? brightness[i] : 0.f);
      for (int y = 0; y < SIDE; y++) {
        const uint8_t* line = image + (plane * SIDE + reflect(y + down)) * SIDE;
        for (int x = 0; x < SIDE; x++) pixels[y][x] = (line[columns[x]] * scale[plane] + more) * factor;
        if (y >= top && y < top + cutout)
          for (int x = left; x < left + cutout; x++) pixels[y][x] = 0;
      }
      if (!weights) {
        for (int y = 0; y < SIDE; y++)
          for (int x = 0; x < SIDE; x++) to[(y * SIDE + x) * PLANES + plane] = pixels[y][x];
        continue;
      }
      for (int y = 0; y < side; y++) {
        float line[SIDE] = {};
        for (int k = 0; k < SIDE; k++) {
          const float weight = weights[k * SIDE + y];
          if (weight == 0) continue;
          for (int x = 0; x < SIDE; x++) line[x] += weight * pixels[k][x];
        }
        float made[SIDE] = {};
        for (int k = 0; k < SIDE; k++)
          for (int x = 0; x < SIDE; x++) made[x] += weights[k * SIDE + x] * line[k];
        for (int x = 0; x < side; x++) to[(y * side + x) * PLANES + plane] = made[x];
      }
    }
  }
}
