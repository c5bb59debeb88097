// Problem: the input gradient of a linear layer needs its weight transposed, once per inner step, and on small layers
//   a scalar transpose takes longer than the product it serves.
// Solution: blocks of 8 x 8 floats or 4 x 4 doubles in registers, by shuffles within and across 128-bit halves.
// Usage: transpose(in, ld_in, rows, columns, out, ld_out), or transpose_rows where rows stand in another order.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/pack.h"

namespace metafast {
namespace METAFAST_ISA {

// One element at a time where nothing better follows.
template <class T>
struct Block {
  static constexpr int kSize = 1;
  typedef T Row;
  static void transpose(Row (&)[1]) {}
};

#if defined(__AVX__)
typedef float Float8 __attribute__((vector_size(32)));
typedef double Double4 __attribute__((vector_size(32)));

template <>
struct Block<float> {
  static constexpr int kSize = 8;
  typedef Float8 Row;
  static inline __attribute__((always_inline)) void transpose(Row (&r)[8]) {
    Row pair[8], quad[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      pair[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
      pair[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const Row a = pair[4 * i + j], b = pair[4 * i + j + 2];
        quad[4 * i + 2 * j] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
        quad[4 * i + 2 * j + 1] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
      }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = __builtin_shufflevector(quad[i], quad[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
      r[i + 4] = __builtin_shufflevector(quad[i], quad[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
    }
  }
};

template <>
struct Block<double> {
  static constexpr int kSize = 4;
  typedef Double4 Row;
  static inline __attribute__((always_inline)) void transpose(Row (&r)[4]) {
    const Row a = __builtin_shufflevector(r[0], r[1], 0, 4, 2, 6), b = __builtin_shufflevector(r[0], r[1], 1, 5, 3, 7);
    const Row c = __builtin_shufflevector(r[2], r[3], 0, 4, 2, 6), d = __builtin_shufflevector(r[2], r[3], 1, 5, 3, 7);
    r[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    r[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    r[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    r[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
  }
};
#endif

// sums[j] = the sum over the elements of rows[j], for as many rows as a Block has: folded to its width, transposed, added up.
template <class E>
inline __attribute__((always_inline)) void sum_rows(const Vector<E>* rows, E* sums) {
  using B = Block<E>;
  constexpr int S = B::kSize, kParts = kLanes<E> / S;
  if constexpr (S == 1) {
    sums[0] = sum_of<E>(rows[0]);
  } else {
    typename B::Row folded[S];
#pragma GCC unroll 8
    for (int j = 0; j < S; ++j) {
      typename B::Row parts[kParts];
      memcpy(parts, &rows[j], sizeof rows[j]);
      folded[j] = parts[0];
      for (int part = 1; part < kParts; ++part) folded[j] += parts[part];
    }
    B::transpose(folded);
#pragma GCC unroll 8
    for (int j = 1; j < S; ++j) folded[0] += folded[j];
    memcpy(sums, folded, sizeof folded[0]);
  }
}

// The rows of a matrix: where row i begins.
template <class T>
struct Rows {
  T* data;
  int64_t ld;
  T* operator()(int64_t i) const { return data + i * ld; }
};

template <class T>
static void zero_pads(T* row, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i) row[i] = T(0);
}

// out(j)[i] = in(i)[j] for i < rows, j < columns; out(j)[i] = 0 for rows <= i < width. Whole rows of out are finished
// before the next begin, two blocks at a time, so that both sides use each cache line while it is near. Of a small matrix
// out is near anyway, and in is read in the order in which it stands, which the hardware foresees.
template <class T, class In, class Out>
static void transpose_rows(In in, int64_t rows, int64_t columns, Out out, int64_t width) {
  using B = Block<T>;
  constexpr int64_t S = B::kSize, kPrefetch = 16 * S, kSmall = 16 * 1024 / int64_t(sizeof(T));
  const int64_t whole = rows / S * S, band = rows * columns <= kSmall ? columns : 2 * S;
  for (int64_t j1 = 0; j1 < columns; j1 += band) {
    const int64_t j2 = j1 + band < columns ? j1 + band : columns;
    for (int64_t i0 = 0; i0 < whole; i0 += S) {
      // Rows far apart are more streams than the hardware follows by itself.
      if (j1 + kPrefetch < columns)
        for (int64_t i = 0; i < S; ++i) __builtin_prefetch(in(i0 + i) + j1 + kPrefetch);
      for (int64_t j0 = j1; j0 < j2; j0 += S) {
        typename B::Row block[S];
        if (j0 + S <= j2) {
#pragma GCC unroll 8
          for (int64_t i = 0; i < S; ++i) memcpy(&block[i], in(i0 + i) + j0, sizeof block[i]);
          B::transpose(block);
#pragma GCC unroll 8
          for (int64_t j = 0; j < S; ++j) memcpy(out(j0 + j) + i0, &block[j], sizeof block[j]);
        } else {
          for (int64_t j = j0; j < j2; ++j)
            for (int64_t i = i0; i < i0 + S; ++i) out(j)[i] = in(i)[j];
        }
      }
    }
    for (int64_t j = j1; j < j2; ++j) {
      for (int64_t i = whole; i < rows; ++i) out(j)[i] = in(i)[j];
      zero_pads(out(j), rows, width);
    }
  }
}

// out[j][i] = in[i][j] for i < rows, j < columns; pads of out are zero.
template <class T>
static void transpose(const T* in, int64_t ld_in, int64_t rows, int64_t columns, T* out, int64_t ld_out) {
  transpose_rows<T>(Rows<const T>{in, ld_in}, rows, columns, Rows<T>{out, ld_out}, ld_out);
}

}  // namespace METAFAST_ISA
}  // namespace metafast
