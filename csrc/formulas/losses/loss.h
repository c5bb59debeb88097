// What a loss of one example is (docs/maths.md, section 6). It supplies, for a generic scalar S,
//   value(z, target)          the loss of one example
//   gradient(z, target, g)    dl/dz_c for every output c, written through g(c, dl/dz_c)
//   target_gradient(...)      dl/dy_c, for losses with real targets
// and the passes follow: with S a dual number, the tangents of the same. A task's loss is L = sum_i w_i l_i / sum_i w_i,
// with w = 1 where none are given. Host and device compile the same text; METAFAST_HD says so to nvcc and nothing to the
// others.
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
  T* kept;  // cross-entropy's, at one position: room for a number per output, from forward to the later passes
  int32_t channels, ld;
  int64_t count;
  METAFAST_HD int64_t at(int64_t c) const { return place_of(c, channels, ld); }
  METAFAST_HD void get(int64_t c, T& out) const { out = value[at(c)]; }
  METAFAST_HD void get(int64_t c, Dual<T>& out) const { out = Dual<T>(value[at(c)], dot ? dot[at(c)] : T(0)); }
};

// Targets of one example: a class, or reals that stand like the outputs.
template <class T>
struct Target {
  int64_t label;  // -1: real targets
  const T* real;
  int32_t channels, ld;
  METAFAST_HD T operator[](int64_t c) const { return real[place_of(c, channels, ld)]; }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
