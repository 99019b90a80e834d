// Vectors of floats as wide as the processor's, put in front of every source that is compiled here.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Bits __attribute__((vector_size(4 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(LANES)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

// The same where only the first half of a vector may be there: channels come in multiples of 8.
template <class V, class Number> inline V load(const Number* p, bool whole) {
  V v = {};
  if (whole) std::memcpy(&v, p, sizeof v);
  else std::memcpy(&v, p, sizeof v / 2);
  return v;
}
template <class V, class Number> inline void store(Number* p, V v, bool whole) {
  if (whole) std::memcpy(p, &v, sizeof v);
  else std::memcpy(p, &v, sizeof v / 2);
}

}  // namespace
