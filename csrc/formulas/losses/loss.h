// What a loss of one example is (docs/maths.md, section 6). It supplies, for a generic scalar S,
//   value(z, target)          the loss of one example
//   gradient(z, target, g)    dl/dz_c for every output c, written through g(c, dl/dz_c)
//   target_gradient(...)      dl/dy_c, for losses with real targets
//   mass(z, target)           m, what the example counts in the divisor of a mean: 1, or the weight of its class
//   fits(z, target)           whether its classes exist
// and the passes follow: with S a dual number, the tangents of the same. A task's loss is
// L = sum_i w_i l_i / sum_i w_i m_i, with w = 1 where none are given. Host and device compile the same text; METAFAST_HD
// says so to nvcc and nothing to the others.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

#if defined(__CUDACC__)
#define METAFAST_HD __host__ __device__
#else
#define METAFAST_HD
#endif
#if defined(__CUDA_ARCH__)  // a few examples for each thread: unrolling gains nothing but code
#define METAFAST_LOOP _Pragma("unroll 1")
#else
#define METAFAST_LOOP
#endif

namespace metafast {
namespace METAFAST_ISA {

// Where element c stands among rows of `channels`, `ld` apart. Most often there is one row, and divisions are slow.
MF_HD int64_t place_of(int64_t c, int32_t channels, int64_t ld) {
  const uint32_t place = uint32_t(c), n = uint32_t(channels);  // 64-bit divisions are slower still, on a device very
  return place < n ? place : int64_t(place / n) * ld + place % n;
}

// The outputs of one example, as values or duals: element c stands at (position, channel) = (c / channels, c % channels).
template <class T>
struct Outputs {
  const T *value, *dot;
  T* kept;  // room for a number per output, from forward to the later passes
  int32_t channels, ld, ld_kept;
  int64_t rows, count;
  METAFAST_HD Outputs row(int64_t r) const {
    return {value + r * ld, dot ? dot + r * ld : nullptr, kept + r * ld_kept, channels, ld, ld_kept, 1, channels};
  }
  METAFAST_HD int64_t at(int64_t c) const { return place_of(c, channels, ld); }
  METAFAST_HD void get(int64_t c, T& out) const { out = value[at(c)]; }
  METAFAST_HD void get(int64_t c, Dual<T>& out) const { out = Dual<T>(value[at(c)], dot ? dot[at(c)] : T(0)); }
};

// Targets of one example: a class for each row, or reals that stand like the outputs.
template <class T>
struct Target {
  const int64_t* labels;  // or
  const T* real;
  int32_t channels, ld;
  METAFAST_HD int64_t label() const { return *labels; }  // of the only row
  METAFAST_HD Target row(int64_t r) const {
    return {labels ? labels + r : nullptr, real ? real + r * ld : nullptr, channels, ld};
  }
  METAFAST_HD T operator[](int64_t c) const { return real[place_of(c, channels, ld)]; }
};

// For losses to which every example is the same.
struct LossDefaults {
  static constexpr bool kHasMass = false;
  template <class Z, class Y>
  METAFAST_HD bool fits(const Z&, const Y&) const {
    return true;
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
