// Products of small matrices, each thread making one or four neighbouring outputs straight from memory.
//
//   C[m, n]  (= or +=)  bias[n] + sum over terms, over k, of a(m, k) b(k, n)
//
// Up to two terms, because the tangent of a product is a sum of two. A sum over k is folded from partial sums of kDepth,
// so that float32 errors stay small, and in this order whatever the number of threads.
#pragma once

#include "cuda/frame.cuh"

namespace metafast {
namespace METAFAST_ISA {

// Element (i, j) stands at data[i * row + j * column].
template <class T>
struct Strided {
  const T* data;
  int64_t row, column;
};

template <class T>
struct Product {
  Strided<T> a[2], b[2];
  int terms;
  const T* bias;               // [columns], or null
  T* c;                        // [m][ldc]
  int64_t m, columns, ldc, k;  // pads of C, from columns to ldc, become zero
  bool accumulate;

  MF_HD void add(Strided<T> left, Strided<T> right) {
    const int second = terms++;  // no array indexed by a variable: it would stand in memory
    if (second)
      a[1] = left, b[1] = right;
    else
      a[0] = left, b[0] = right;
  }
};

constexpr int64_t kProductDepth = 256;

template <class T, int WIDE>
__device__ void product_outputs(const Product<T>& p, const Block& block) {
  const uint32_t groups = uint32_t(p.ldc / WIDE);
  block.for_each(p.m * groups, [&](uint32_t item) {
    const int64_t m = item / groups, n = item % groups * WIDE;
    T total[WIDE];
    for (int j = 0; j < WIDE; ++j) total[j] = p.bias && n + j < p.columns ? p.bias[n + j] : T(0);
    METAFAST_ROLLED for (int term = 0; term < p.terms; ++term) {
      const Strided<T> a = term ? p.a[1] : p.a[0], b = term ? p.b[1] : p.b[0];
      const T* left = a.data + m * a.row;
      const T* right = b.data;
      uint32_t column[WIDE];  // in a pad the last column, for no branch
      for (int j = 0; j < WIDE; ++j) column[j] = uint32_t((n + j < p.columns ? n + j : p.columns - 1) * b.column);
      METAFAST_ROLLED for (int64_t k0 = 0; k0 < p.k; k0 += kProductDepth) {
        const int depth = int(k0 + kProductDepth < p.k ? kProductDepth : p.k - k0);
        T part[WIDE] = {};
        for (int k = 0; k < depth; ++k, left += a.column, right += b.row)
          for (int j = 0; j < WIDE; ++j) part[j] += *left * right[column[j]];
        for (int j = 0; j < WIDE; ++j) total[j] += part[j];
      }
    }
    T* out = p.c + m * p.ldc + n;
    for (int j = 0; j < WIDE; ++j) {
      const T value = n + j < p.columns ? total[j] : T(0);
      out[j] = p.accumulate ? out[j] + value : value;
    }
  });
}

template <class T>
__device__ void product(const Product<T>& p, const Block& block) {
  if (p.m * p.ldc >= int64_t(4) * block.threads * block.tiles)
    product_outputs<T, kDeviceLanes>(p, block);
  else
    product_outputs<T, 1>(p, block);
}

}  // namespace METAFAST_ISA
}  // namespace metafast
