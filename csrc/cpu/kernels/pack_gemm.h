// Products of packs (pack.h): multiply() of gemm.h, with the same sums in the same order.
//
// A pack is as long as a cache line and used once for every task's ten or so rows: what a row of tiles reads of A stays in
// the first-level cache while B passes by. Packs have no neighbours, so B may stand transposed.
#pragma once

#include "cpu/kernels/pack.h"
#include "cpu/kernels/transpose.h"

namespace metafast {
namespace METAFAST_ISA {

// The sum over t of A_t B_t, A being m x k and B k x n. It goes to C (see Start), or C becomes from - rate * sum. What goes to
// C may be closed where a gate, like C, is not positive, or clipped from below at zero: the slope and the value of ReLU.
template <class T>
struct PackProduct {
  int64_t m, n, k;
  int32_t row, col;    // of A, from m to m + 1 and from k to k + 1
  int64_t ldb, stepb;  // of B, from k to k + 1 and from n to n + 1
  T* c;
  int64_t ldc;
  Start start;
  const T* bias = nullptr;
  int terms = 0;
  const T *a[2] = {}, *b[2] = {};
  const T* from = nullptr;  // like C
  T rate = T(0);
  const T* gate = nullptr;
  bool clip = false;
  bool inner = false;  // n is 1, and sums are made as in one_output_linear.h

  // A product of which a factor is missing is zero.
  void add(const T* one, const T* other) {
    if (one && other) a[terms] = one, b[terms] = other, ++terms;
  }
};

// The value of ReLU, and its slope at `gate` times x, as in functions.h.
template <class E, int kCount>
MF_HD Pack<E, kCount> clipped(Pack<E, kCount> x) {
  const typename Pack<E, kCount>::Lanes zero{};
  return x.v < zero ? zero : x.v;
}
template <class E, int kCount>
MF_HD Pack<E, kCount> gated(Pack<E, kCount> x, Pack<E, kCount> gate) {
  const typename Pack<E, kCount>::Lanes zero{};
  return (gate.v > zero ? E(1) - zero : zero) * x.v;
}

constexpr int kPackWidth = METAFAST_VECTOR_BYTES == 64 ? 5 : 3, kPackHeight = METAFAST_VECTOR_BYTES == 64 ? 5 : 4;

// `count` tiles, side by side. A tile of small depth is over soon: what tiles have in common is read before the loop, because
// the compiler must take their stores for stores to `p`.
template <class T, int MR, int NR>
static void pack_tiles(const PackProduct<T>& p, int64_t m, int64_t n, int64_t count) {
  if (count <= 0) return;
  const Start start = p.start;
  const int terms = p.terms;
  const int64_t ldb = p.ldb, stepb = p.stepb, ldc = p.ldc, k = p.k;
  const int64_t next_a = terms > 1 ? p.a[1] - p.a[0] : 0, next_b = terms > 1 ? p.b[1] - p.b[0] : 0;
  const T* b = p.b[0] + n * stepb;
  const Gather<T> rows{p.a[0] + m * p.row, nullptr, nullptr, p.row, p.col};
  const bool plain = !p.from && !p.gate && !p.clip && start != Start::kAccumulate;
  T* c = p.c + m * ldc + n;
  for (; count > 0; --count, n += NR, b += NR * stepb, c += NR) {
    Vector<T> acc[MR][NR] = {};
    if (start == Start::kBias)
      with<T, MR, NR>(acc, p.bias + n, 0, [](T, T x) { return x; });
    else if (start == Start::kContinue)
      with<T, MR, NR>(acc, c, ldc, [](T, T x) { return x; });
    Gather<T> a = rows;
    const T* from_b = b;
    for (int t = 0; t < terms; ++t, a.data += next_a, from_b += next_b)
      add_products<T, MR, NR, false>(acc, a, 0, from_b, ldb, stepb, 0, k);
    if (!plain) {
      const auto at = [&](const T* array) { return array + (c - p.c); };
      if (p.from) with<T, MR, NR>(acc, at(p.from), ldc, [&](T sum, T x) { return x - p.rate * sum; });
      if (start == Start::kAccumulate) with<T, MR, NR>(acc, c, ldc, [](T sum, T x) { return sum + x; });
      if (p.gate) with<T, MR, NR>(acc, at(p.gate), ldc, [](T sum, T x) { return gated(sum, x); });
      if (p.clip) with<T, MR, NR>(acc, c, ldc, [](T sum, T) { return clipped(sum); });
    }
    put<T, MR, NR>(acc, c, ldc);
  }
}

// MR rows, in tiles that are all as wide as registers allow or one pack narrower.
template <class T, int MR>
static void row_of_tiles(const PackProduct<T>& p, int64_t m) {
  constexpr int W = kPackWidth;
  const int64_t widest = p.n - (p.n + W - 1) / W * (W - 1), wide = widest > 0 ? widest : 0;
  int64_t n = wide * W;
  pack_tiles<T, MR, W>(p, m, 0, wide);
  const int64_t narrow = (p.n - n) / (W - 1);
  pack_tiles<T, MR, W - 1>(p, m, n, narrow);
  n += narrow * (W - 1);
  if constexpr (W > 3)
    if (n + 2 <= p.n) pack_tiles<T, MR, 2>(p, m, n, 1), n += 2;
  pack_tiles<T, MR, 1>(p, m, n, p.n - n);
}

// Depth one, the outer products about layers of one unit: over sooner than a tile has begun.
template <class T>
static void outer_product(const PackProduct<T>& p) {
  const T *a1 = p.terms > 1 ? p.a[1] : nullptr, *b1 = p.terms > 1 ? p.b[1] : nullptr;
  for (int64_t i = 0; i < p.m; ++i) {
    const T x0 = p.a[0][i * p.row], x1 = a1 ? a1[i * p.row] : T(0);
    const T* gate = p.gate ? p.gate + i * p.ldc : nullptr;
    T* c = p.c + i * p.ldc;
    for (int64_t j = 0; j < p.n; ++j) {
      T sum = p.start == Start::kBias ? p.bias[j] : T(0);
      sum += x0 * p.b[0][j * p.stepb];
      if (a1) sum += x1 * b1[j * p.stepb];
      if (gate) sum = gated(sum, gate[j]);
      c[j] = p.clip ? clipped(sum) : sum;
    }
  }
}

// Starts from zero or a bias.
template <class T>
static void inner_products(const PackProduct<T>& p) {
  constexpr int L = kLanes<Element<T>>, S = Block<Element<T>>::kSize;
  for (int64_t i = 0; i < p.m; ++i) {
    T* c = p.c + i * p.ldc;
    T total = p.start == Start::kBias ? p.bias[0] : T(0);
    for (int t = 0; t < p.terms; ++t) {
      const T *a = p.a[t] + i * p.row, *b = p.b[t];
      T part[L] = {};
      for (int64_t k = 0; k < p.k; k += L)
#pragma GCC unroll 16
        for (int j = 0; j < L; ++j)
          if (k + j < p.k) part[j] += a[(k + j) * p.col] * b[(k + j) * p.ldb];
#pragma GCC unroll 16
      for (int j = S; j < L; ++j) part[j % S] += part[j];
#pragma GCC unroll 16
      for (int j = 1; j < S; ++j) part[0] += part[j];
      total += part[0];
    }
    if (p.gate) total = gated(total, p.gate[i * p.ldc]);
    *c = p.clip ? clipped(total) : total;
  }
}

template <class T>
static void rows_of_tiles(const PackProduct<T>& p) {
  if (p.k == 1 && !p.from && (p.start == Start::kZero || p.start == Start::kBias)) return outer_product(p);
  int64_t m = 0;
  for (int64_t left = (p.m + kPackHeight - 1) / kPackHeight; left > 0; --left) {  // nearly equal heights
    const int64_t height = quotient(p.m - m + left - 1, left);
    switch (height) {
      case 1: row_of_tiles<T, 1>(p, m); break;
      case 2: row_of_tiles<T, 2>(p, m); break;
      case 3: row_of_tiles<T, 3>(p, m); break;
      case 4: row_of_tiles<T, 4>(p, m); break;
      default: row_of_tiles<T, kPackHeight>(p, m);
    }
    m += height;
  }
}

// Long sums take two products one after the other, and must not have a `from`.
template <class T>
METAFAST_OUTLINED static void multiply_packs(const PackProduct<T>& p) {
  if (p.inner) return inner_products(p);
  if (p.terms > 0 && p.k <= kDepth) return rows_of_tiles(p);
  PackProduct<T> part = p;
  if (p.terms == 0) {
    part.k = 0, part.add(p.c, p.c);
    return rows_of_tiles(part);
  }
  part.terms = 1, part.gate = nullptr, part.clip = false;
  const int64_t blocks = (p.k + kDepth - 1) / kDepth;
  for (int t = 0; t < p.terms; ++t) {
    part.a[0] = p.a[t], part.b[0] = p.b[t];
    int64_t left = p.k;
    for (int64_t block = 0; block < blocks; ++block, part.start = Start::kAccumulate) {
      part.k = quotient(left, blocks - block);
      if (part.k == left && t + 1 == p.terms) part.gate = p.gate, part.clip = p.clip;
      rows_of_tiles(part);
      part.a[0] += part.k * p.col, part.b[0] += part.k * p.ldb;
      left -= part.k;
    }
    part.start = Start::kContinue;
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
