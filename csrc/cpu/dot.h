// Problem: a product with a weight as the user has it, [outputs][inputs], needs it transposed for gemm.h, and where the
//   weight is used once, turning it takes as long as the product.
// Solution: C[m, n] = bias[n] + sum_k A[m, k] B[n, k] as inner products along k, which is contiguous in both: a tile of
//   rows of A by as many rows of B as a Block has, each sum in a register of its own until the end.
// Usage: multiply_rows(a, lda, b, ldb, c, ldc, m, n, k, start, bias), k a multiple of kLanes<T>.
#pragma once

#include "transpose.h"

namespace metafast {
namespace METAFAST_ISA {

// Registers: 3 by 8 sums of AVX-512's 32, 1 by 8 of AVX2's 16.
template <class T>
constexpr int kDotRows = METAFAST_VECTOR_BYTES == 64 ? 3 : 1;

// Depth of a block: its rows of B stay in the first-level cache while all rows of A pass by.
template <class T>
constexpr int64_t kDotDepth = 28 * kLanes<T>;

// `ahead`, if not null, is a row that will be wanted next: weights of many tasks come from memory.
template <class T, int MR>
static void dot_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t columns, T* c, int64_t ldc, int64_t k,
                     Start start, const T* bias, const T* ahead) {
  constexpr int L = kLanes<T>, S = Block<T>::kSize;
  const T* row[S];  // where B ends, its last row stands for those that are not there
#pragma GCC unroll 8
  for (int j = 0; j < S; ++j) row[j] = b + (j < columns ? j : columns - 1) * ldb;
  Vector<T> sum[MR][S];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < S; ++j) sum[i][j] = Vector<T>{};
  for (int64_t p = 0; p < k; p += L) {
    Vector<T> x[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) x[i] = load(a + i * lda + p);
    if (ahead) __builtin_prefetch(ahead + p);
#pragma GCC unroll 8
    for (int j = 0; j < S; ++j) {
      Vector<T> y = load(row[j] + p);
#if defined(__x86_64__)  // in a register: GCC loads it anew for each multiplication, and loads then set the pace
      __asm__("" : "+v"(y));
#endif
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) sum[i][j] += x[i] * y;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i) {
    T sums[S];
    sum_rows<T>(sum[i], sums);
    T* out = c + i * ldc;
    const T* before = start == Start::kBias ? bias : out;
    const auto finish = [&](int64_t count) {
      if (start != Start::kZero)
        for (int64_t j = 0; j < count; ++j) sums[j] += before[j];
      for (int64_t j = 0; j < count; ++j) out[j] = sums[j];
    };
    columns == S ? finish(S) : finish(columns);  // a constant number becomes a vector
  }
}

template <class T>
static void multiply_rows(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m, int64_t n,
                          int64_t k, Start start, const T* bias) {
  constexpr int S = Block<T>::kSize, L = kLanes<T>, MR = kDotRows<T>;
  const int64_t blocks = (k + kDotDepth<T> - 1) / kDotDepth<T>;
  for (int64_t j = 0; j < n; j += S) {
    const int64_t columns = n - j < S ? n - j : S;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t k0 = k / L * block / blocks * L, depth = k / L * (block + 1) / blocks * L - k0;
      const bool last = block + 1 == blocks;
      const int64_t next_columns = n - j - S < S ? n - j - S : S;
      const T* ahead = last ? b + (j + S) * ldb : b + j * ldb + k0 + depth;
      int64_t rows_ahead = last ? next_columns : columns;
      const auto run = [&](auto tile, int64_t i) {
        tile(a + i * lda + k0, lda, b + j * ldb + k0, ldb, columns, c + i * ldc + j, ldc, depth,
             block == 0 ? start : Start::kAccumulate, bias ? bias + j : nullptr, rows_ahead > 0 ? ahead : nullptr);
        ahead += ldb, --rows_ahead;
      };
      int64_t i = 0;
      for (; i + MR <= m; i += MR) run(dot_tile<T, MR>, i);
      if (m - i == 2) run(dot_tile<T, 2>, i);
      if (m - i == 1) run(dot_tile<T, 1>, i);
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
