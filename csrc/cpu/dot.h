// Problem: a product with a weight as the user has it, [outputs][inputs], needs it transposed for gemm.h, and where the
//   weight is used once, turning it takes as long as the product.
// Solution: C[m, n] = bias[n] + sum_k A[m, k] B[n, k] as inner products along k, which is contiguous in both: a tile of
//   kDotRows of A by kDotColumns of B, each sum in a register of its own until the end.
// Usage: multiply_rows(a, lda, b, ldb, c, ldc, m, n, k, start, bias), k a multiple of kLanes<T>.
#pragma once

#include "transpose.h"

namespace metafast {
namespace METAFAST_ISA {

// 24 sums in AVX-512's 32 registers, 12 in 16.
constexpr int kDotRows = METAFAST_VECTOR_BYTES == 64 ? 6 : 3, kDotColumns = 4;

// Depth of a block: its rows of B stay in the first-level cache while all rows of A pass by. Deep, because at its end each
// sum is added up over a register.
template <class T>
constexpr int64_t kDotDepth = 4096 / sizeof(T);

// sums[j] = the sum over the elements of rows[j]: pairs of rows are added half to half until one is left, by half of the
// shuffles that turning them would take.
template <class T>
inline __attribute__((always_inline)) void sum_tree(const Vector<T>* rows, T* sums) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    Vector<T> pair[4], quad[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Vector<T> a = rows[2 * i], b = rows[2 * i + 1];
      pair[i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
                __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const Vector<T> a = pair[2 * i], b = pair[2 * i + 1];
      quad[i] = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
                __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    }
    const Vector<T> all =
        __builtin_shufflevector(quad[0], quad[1], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23) +
        __builtin_shufflevector(quad[0], quad[1], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    typename Block<T>::Row half[2];
    memcpy(half, &all, sizeof all);
    half[0] += half[1];
    memcpy(sums, &half[0], sizeof half[0]);
    return;
  }
#endif
  sum_rows<T>(rows, sums);
}

// `ahead`, if not null, is a row that will be wanted next: weights of many tasks come from memory.
template <class T, int MR>
static void dot_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t columns, T* c, int64_t ldc, int64_t k,
                     Start start, const T* bias, const T* ahead) {
  constexpr int L = kLanes<T>, NC = kDotColumns, S = Block<T>::kSize, kSums = (MR * NC + S - 1) / S * S;
  const T* row[NC];  // where B ends, its last row stands for those that are not there
#pragma GCC unroll 4
  for (int j = 0; j < NC; ++j) row[j] = b + (j < columns ? j : columns - 1) * ldb;
  Vector<T> sum[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = Vector<T>{};
  for (int64_t p = 0; p < k; p += L) {
    Vector<T> x[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) x[i] = load(a + i * lda + p);
    if (ahead) __builtin_prefetch(ahead + p);
#pragma GCC unroll 4
    for (int j = 0; j < NC; ++j) {
      Vector<T> y = load(row[j] + p);
#if defined(__x86_64__)  // in a register: GCC loads it anew for each multiplication, and loads then set the pace
      __asm__("" : "+v"(y));
#endif
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) sum[i * NC + j] += x[i] * y;
    }
  }
  T sums[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; i += S) sum_tree<T>(sum + i, sums + i);
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    T *of_row = sums + i * NC, *out = c + i * ldc;
    const T* before = start == Start::kBias ? bias : out;
    const auto finish = [&](int64_t count) {
      if (start != Start::kZero)
        for (int64_t j = 0; j < count; ++j) of_row[j] += before[j];
      for (int64_t j = 0; j < count; ++j) out[j] = of_row[j];
    };
    columns == NC ? finish(NC) : finish(columns);  // a constant number becomes a vector
  }
}

template <class T>
static void multiply_rows(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m, int64_t n,
                          int64_t k, Start start, const T* bias) {
  constexpr int NC = kDotColumns, L = kLanes<T>;
  const int64_t blocks = (k + kDotDepth<T> - 1) / kDotDepth<T>;
  for (int64_t j = 0; j < n; j += NC) {
    const int64_t columns = n - j < NC ? n - j : NC;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = k / L * block / blocks * L, depth = k / L * (block + 1) / blocks * L - k0;
      const bool last = block + 1 == blocks;
      const int64_t next_columns = n - j - NC < NC ? n - j - NC : NC;
      const T* ahead = last ? b + (j + NC) * ldb : b + j * ldb + k0 + depth;
      int64_t rows_ahead = last ? next_columns : columns;
      int64_t i = 0;
      const auto run = [&](auto tile, int64_t height) {
        for (; i + height <= m; i += height, ahead += ldb, --rows_ahead)
          tile(a + i * lda + k0, lda, b + j * ldb + k0, ldb, columns, c + i * ldc + j, ldc, depth,
               block == 0 ? start : Start::kAccumulate, bias ? bias + j : nullptr, rows_ahead > 0 ? ahead : nullptr);
      };
      if constexpr (kDotRows > 3) run(dot_tile<T, kDotRows>, kDotRows);
      run(dot_tile<T, 3>, 3);
      run(dot_tile<T, 2>, 2);
      run(dot_tile<T, 1>, 1);
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
