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
// every task's ten or so rows: what a row of tiles reads of A stays in the first-level cache while B passes by. Packs have
// no neighbours, so B may stand transposed, element (k, n) at k * ldb + n * stepb.
constexpr int kPackWidth = METAFAST_VECTOR_BYTES == 64 ? 5 : 3, kPackHeight = METAFAST_VECTOR_BYTES == 64 ? 5 : 4;

// `count` tiles, side by side.
template <class T, int MR, int NR>
static void tiles_abreast(const Product<T>& p, int64_t m, int64_t n, int64_t count, int64_t k0, int64_t k1,
                          Start start) {
  for (; count > 0; --count, n += NR) tile<T, MR, NR, false>(p, m, n, k0, k1, start);
}

// MR rows, in tiles that are all as wide as registers allow or one pack narrower.
template <class T, int MR>
static void row_of_tiles(const Product<T>& p, int64_t m, int64_t width, int64_t k0, int64_t k1, Start start) {
  constexpr int W = kPackWidth;
  const int64_t widest = width - (width + W - 1) / W * (W - 1), wide = widest > 0 ? widest : 0;
  int64_t n = wide * W;
  tiles_abreast<T, MR, W>(p, m, 0, wide, k0, k1, start);
  const int64_t narrow = (width - n) / (W - 1);
  tiles_abreast<T, MR, W - 1>(p, m, n, narrow, k0, k1, start);
  n += narrow * (W - 1);
  if constexpr (W > 3)
    if (n + 2 <= width) tiles_abreast<T, MR, 2>(p, m, n, 1, k0, k1, start), n += 2;
  tiles_abreast<T, MR, 1>(p, m, n, width - n, k0, k1, start);
}

template <class T>
static void multiply_packs(const Gather<T>& a, const T* b, int64_t ldb, int64_t stepb, T* c, int64_t ldc, int64_t m,
                           int64_t n, int64_t k, Start start, const T* bias = nullptr) {
  const Product<T> p{a, b, c, ldb, ldc, bias, stepb};
  const int64_t blocks = k > 0 ? (k + kDepth - 1) / kDepth : 1, count = (m + kPackHeight - 1) / kPackHeight;
  int64_t k0 = 0;
  for (int64_t block = 0; block < blocks; ++block, start = Start::kAccumulate) {
    const int64_t k1 = k0 + quotient(k - k0, blocks - block);
    int64_t m0 = 0;
    for (int64_t left = count; left > 0; --left) {  // nearly equal heights
      const int64_t height = quotient(m - m0 + left - 1, left);
      switch (height) {
        case 1: row_of_tiles<T, 1>(p, m0, n, k0, k1, start); break;
        case 2: row_of_tiles<T, 2>(p, m0, n, k0, k1, start); break;
        case 3: row_of_tiles<T, 3>(p, m0, n, k0, k1, start); break;
        case 4: row_of_tiles<T, 4>(p, m0, n, k0, k1, start); break;
        default: row_of_tiles<T, kPackHeight>(p, m0, n, k0, k1, start);
      }
      m0 += height;
    }
    k0 = k1;
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
