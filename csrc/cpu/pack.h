// Problem: where a network is small, a task does not fill the machine: 40 outputs are two and a half registers, one
//   output a sixteenth, and a product of ten rows is over before its accumulators are in place.
// Solution: as many tasks at a time as a register has lanes. A Pack is one number for each of them, and the engine, linear
//   layers and pointwise functions, written for a generic scalar T, run with T = Pack: nothing is padded or turned, and
//   every operation fills its register whatever the shapes are. The price is space: all arrays are as many times larger,
//   and must still fit in the cache. Losses other than squared error run as scalars, a lane after the other (passes.h).
// Bits: what a task comes to is the same in a lane as by itself, and so is the sum over tasks (add_groups, kernels.cpp).
// Usage: Pack<float> wherever float stands. Element<T> is float for both, kTasks<T> the number of lanes, or 1.
#pragma once

#include "../scalar.h"
#include "gemm.h"

namespace metafast {
namespace METAFAST_ISA {

template <class E>
struct Pack {
  Vector<E> v;

  Pack() = default;
  MF_HD Pack(Vector<E> lanes) : v(lanes) {}
  MF_HD Pack(float x) : v(E(x) - Vector<E>{}) {}  // minus, not plus, keeps -0
  MF_HD Pack(double x) : v(E(x) - Vector<E>{}) {}
  MF_HD Pack(int x) : Pack(E(x)) {}
  MF_HD Pack(int64_t x) : Pack(E(x)) {}

  MF_HD Pack& operator+=(Pack b) { return v += b.v, *this; }
  MF_HD Pack& operator-=(Pack b) { return v -= b.v, *this; }

  friend MF_HD Pack operator-(Pack a) { return -a.v; }
  friend MF_HD Pack operator+(Pack a, Pack b) { return a.v + b.v; }
  friend MF_HD Pack operator-(Pack a, Pack b) { return a.v - b.v; }
  friend MF_HD Pack operator*(Pack a, Pack b) { return a.v * b.v; }
  friend MF_HD Pack operator/(Pack a, Pack b) { return a.v / b.v; }
};

template <class T>
struct PackTraits {
  using Element = T;
  static constexpr int kTasks = 1;
};
template <class E>
struct PackTraits<Pack<E>> {
  using Element = E;
  static constexpr int kTasks = kLanes<E>;
};
template <class T>
using Element = typename PackTraits<T>::Element;
template <class T>
constexpr int kTasks = PackTraits<T>::kTasks;

// To gemm.h a pack is a register of one element.
template <class E>
struct VectorOf<Pack<E>> {
  typedef Pack<E> type;
  typedef Pack<E> unaligned;
};
template <class E>
constexpr bool kIsPack<Pack<E>> = true;
static_assert(kLanes<Pack<float>> == 1 && kLanes<Pack<double>> == 1, "a pack fills a register");

// multiply() of gemm.h for packs, with the same sums in the same order. A pack is as long as a cache line and used once for
// every task's ten or so rows: the first-level cache holds a block of kPackBlock of A while strips of B pass by, all as
// wide as registers allow or one pack narrower. Packs have no neighbours, so B may stand transposed, element (k, n) at
// k * ldb + n * stepb.
constexpr int64_t kPackBlock = 25600 / METAFAST_VECTOR_BYTES;
constexpr int kPackStrip = METAFAST_VECTOR_BYTES == 64 ? 5 : 3, kPackRows = METAFAST_VECTOR_BYTES == 64 ? 5 : 4;

template <class T>
static void multiply_packs(const Gather<T>& a, const T* b, int64_t ldb, int64_t stepb, T* c, int64_t ldc, int64_t m,
                           int64_t n, int64_t k, Start start, const T* bias = nullptr) {
  constexpr int W = kPackStrip, R = kPackRows;
  const int64_t depth = k < kDepth ? (k > 0 ? k : 1) : kDepth, fits = kPackBlock / depth, rows = fits > R ? fits : R;
  const int64_t blocks = k > 0 ? (k + kDepth - 1) / kDepth : 1;
  for (int64_t m0 = 0; m0 < m; m0 += rows) {
    const int64_t height = m - m0 < rows ? m - m0 : rows;
    const Gather<T> top{a.data + m0 * a.row_stride, nullptr, nullptr, a.row_stride, a.col_stride};
    const Product<T> p{top, b, c + m0 * ldc, ldb, ldc, bias, stepb};
    int64_t k0 = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k1 = k0 + (k - k0) / (blocks - block);
      const Start now = block == 0 ? start : Start::kAccumulate;
      int64_t j = 0;
      for (int64_t wide = n - (n + W - 1) / W * (W - 1); wide > 0; --wide, j += W)
        strip<T, W, R>(p, height, j, k0, k1, now);
      for (; j + W - 1 <= n; j += W - 1) strip<T, W - 1, R>(p, height, j, k0, k1, now);
      if constexpr (W > 3)
        for (; j + 2 <= n; j += 2) strip<T, 2, R>(p, height, j, k0, k1, now);
      for (; j < n; ++j) strip<T, 1, R>(p, height, j, k0, k1, now);
      k0 = k1;
    }
  }
}

// The number of task `lane` in a pack.
template <class E>
MF_HD E lane_of(Pack<E> x, int lane) {
  return x.v[lane];
}
template <class E>
MF_HD E lane_of(E x, int) {
  return x;
}
template <class E>
MF_HD void set_lane(Pack<E>& x, int lane, E value) {
  x.v[lane] = value;
}
template <class E>
MF_HD void set_lane(E& x, int, E value) {
  x = value;
}

// The sum over a register whose elements belong to one task.
template <class T>
MF_HD T sum_of(Vector<T> v) {
  if constexpr (kIsPack<T>) {
    return v;
  } else {
    T total = T(0);
    for (int lane = 0; lane < kLanes<T>; ++lane) total += v[lane];
    return total;
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
