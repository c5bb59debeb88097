// Problem: a product with a weight as the user has it, [outputs][inputs], needs it transposed for gemm.h, and where the
//   weight is used once, transposing it takes as long as the product.
// Solution: C[m, n] = bias[n] + sum_k A[m, k] B[n, k] as inner products along k, which is contiguous in both: a tile of
//   kDotRows of A by kDotColumns of B, each sum in a register of its own until the end.
//   Where most of C will be multiplied by zero, by a ReLU's slope, for instance, only the rest is computed: a row of B with
//   those rows of A, at most kChosenRows at a time, that it is wanted for.
// Usage: multiply_rows(a, lda, b, ldb, c, ldc, m, n, k, start, bias);
//   multiply_chosen_rows(wanted, ldw, ...), start being kZero or kBias and k a multiple of kLanes<T>.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/kernels/dot_loop.h"
#include "cpu/kernels/transpose.h"
#include "cpu/kernels/zeros.h"

namespace metafast {
namespace METAFAST_ISA {

// 24 sums in AVX-512's 32 registers, 12 in 16.
constexpr int kDotRows = METAFAST_VECTOR_BYTES == 64 ? 6 : 3, kDotColumns = 4;

// Depth of a block: its rows of B stay in the first-level cache while all rows of A pass by. Deep, because at its end each
// sum is added up over a register.
template <class T>
constexpr int64_t kDotDepth = 4096 / sizeof(T);

#if defined(__AVX__)
// Lane i of one of the two registers that a level of sum_tree makes of two of L lanes and adds up: within groups of four,
// lanes of both in turn, then pairs of both in turn; then whole groups.
constexpr int tree_lane(int level, int half, int i, int L) {
  return level == 0   ? i / 4 * 4 + i / 2 % 2 + 2 * half + i % 2 * L
         : level == 1 ? i / 4 * 4 + i % 2 + 2 * half + i / 2 % 2 * L
                      : i % 4 + 4 * (i / 8 + L / 8 * half) + i / 4 % 2 * L;
}

template <int Level, int... I>
inline __attribute__((always_inline)) Vector<float> add_halves(Vector<float> a, Vector<float> b,
                                                               std::integer_sequence<int, I...>) {
  constexpr int L = sizeof...(I);
  return __builtin_shufflevector(a, b, tree_lane(Level, 0, I, L)...) +
         __builtin_shufflevector(a, b, tree_lane(Level, 1, I, L)...);
}
#endif

// sums[j] = the sum over the elements of rows[j]: pairs of rows are added half to half until one is left, by half of the
// shuffles that transposing them would take.
template <class T>
inline __attribute__((always_inline)) void sum_tree(const Vector<T>* rows, T* sums) {
#if defined(__AVX__)
  if constexpr (sizeof(T) == 4) {
    constexpr std::make_integer_sequence<int, kLanes<T>> lanes{};
    Vector<T> pair[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) pair[i] = add_halves<0>(rows[2 * i], rows[2 * i + 1], lanes);
    const Vector<T> quad[2] = {add_halves<1>(pair[0], pair[1], lanes), add_halves<1>(pair[2], pair[3], lanes)};
    const Vector<T> all = add_halves<2>(quad[0], quad[1], lanes);
    typename Block<T>::Row part[kLanes<T> / 8];
    memcpy(part, &all, sizeof all);
    for (int i = 1; i < kLanes<T> / 8; ++i) part[0] += part[i];
    memcpy(sums, &part[0], sizeof part[0]);
    return;
  }
#endif
  sum_rows<T>(rows, sums);
}

// `upcoming`, if not null, is a row that will be wanted next: weights of many tasks come from memory.
template <class T, int MR>
static void dot_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t columns, T* c, int64_t ldc, int64_t k,
                     Start start, const T* bias, const T* upcoming) {
  constexpr int L = kLanes<T>, NC = kDotColumns, S = Block<T>::kSize, kSums = (MR * NC + S - 1) / S * S;
  const T* row[NC];  // where B ends, its last row stands for those that are not there
#pragma GCC unroll 4
  for (int j = 0; j < NC; ++j) row[j] = b + (j < columns ? j : columns - 1) * ldb;
  Vector<T> sum[kSums];
#pragma GCC unroll 24
  for (int i = 0; i < kSums; ++i) sum[i] = Vector<T>{};
  const auto add = [&](const T* first, int64_t step, auto of_b) __attribute__((always_inline)) {
    Vector<T> x[MR];
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i) x[i] = load(first + i * step);
#pragma GCC unroll 4
    for (int j = 0; j < NC; ++j) {
      Vector<T> y = load(of_b(j));
#if defined(__x86_64__)  // in a register: GCC loads it anew for each multiplication, and loads then set the pace
      __asm__("" : "+v"(y));
#endif
#pragma GCC unroll 8
      for (int i = 0; i < MR; ++i) sum[i * NC + j] += x[i] * y;
    }
  };
  const int64_t whole = k / L * L;
  int64_t p = 0;
  if constexpr (kDotLoop<MR>) p = dot_loop(a, lda, row, whole, sum, upcoming);
  if constexpr (MR < 3) {
    if (!upcoming)
#pragma GCC unroll 4
      for (; p < whole; p += L) add(a + p, lda, [&](int j) { return row[j] + p; });
  }
  for (; p < whole; p += L) {
    if (upcoming) __builtin_prefetch(upcoming + p);
    add(a + p, lda, [&](int j) { return row[j] + p; });
  }
  if (whole < k) {
    T rest[MR + NC][L] = {};
    for (int i = 0; i < MR; ++i) memcpy(rest[i], a + i * lda + whole, size_t(k - whole) * sizeof(T));
    for (int j = 0; j < NC; ++j) memcpy(rest[MR + j], row[j] + whole, size_t(k - whole) * sizeof(T));
    add(rest[0], L, [&](int j) { return rest[MR + j]; });
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

// `later`, if not null, is a matrix like B that will be wanted soon, and comes from memory too.
template <class T>
static void multiply_rows(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc, int64_t m, int64_t n,
                          int64_t k, Start start, const T* bias, const T* later = nullptr) {
  constexpr int NC = kDotColumns, L = kLanes<T>;
  const int64_t blocks = (k + kDotDepth<T> - 1) / kDotDepth<T>;
  for (int64_t j = 0; j < n; j += NC) {
    const int64_t columns = n - j < NC ? n - j : NC;
    for (int64_t block = 0; block < blocks; ++block) {
      const bool last = block + 1 == blocks;
      const int64_t k0 = k / L * block / blocks * L, depth = (last ? k : k / L * (block + 1) / blocks * L) - k0;
      const int64_t next_columns = n - j - NC < NC ? n - j - NC : NC;
      const T* upcoming = last ? b + (j + NC) * ldb : b + j * ldb + k0 + depth;
      int64_t rows_upcoming = last ? next_columns : columns, rows_later = later ? columns : 0;
      const T* of_later = later ? later + j * ldb + k0 : nullptr;
      int64_t i = 0;
      const auto run = [&](auto tile, int64_t height) {
        for (; i + height <= m; i += height) {
          const T* fetched = nullptr;
          if (rows_upcoming > 0)
            fetched = upcoming, upcoming += ldb, --rows_upcoming;
          else if (rows_later > 0)
            fetched = of_later, of_later += ldb, --rows_later;
          tile(a + i * lda + k0, lda, b + j * ldb + k0, ldb, columns, c + i * ldc + j, ldc, depth,
               block == 0 ? start : Start::kAccumulate, bias ? bias + j : nullptr, fetched);
        }
      };
      if constexpr (kDotRows > 3) run(dot_tile<T, kDotRows>, kDotRows);
      run(dot_tile<T, 3>, 3);
      run(dot_tile<T, 2>, 2);
      run(dot_tile<T, 1>, 1);
    }
  }
}

// Rows of A that are tried with a row of B, each sum in a register, and the depth at which all of them stay in the
// first-level cache. So many that half of them keep the multipliers busy; of 16 registers more are seldom wanted.
constexpr int64_t kChosenRows = 17;
template <class T>
constexpr int64_t kChosenDepth = 27 * 1024 / int64_t(kChosenRows * sizeof(T));

// A row of B is loaded for fewer multiply-adds than in tiles, and every sum is added up over a register: measured.
inline bool chosen_rows_pay(int64_t chosen, int64_t m, int64_t n, int64_t k) {
  return 8 * chosen <= 5 * m * n && m >= 16 && k >= 256;
}

// Which of up to kChosenRows rows of A each of up to 64 rows of B is wanted with; those wanted with as many stand together
// in `order`, because a loop whose length changes from time to time is guessed wrongly.
struct Chosen {
  uint64_t rows[64];
  int32_t order[64];
};

// Of as many columns as a register has lanes, rows [begin, end), of which there are at most 64: bits[c], bit r - begin.
template <class T>
inline void nonzero_columns(const T* x, int64_t ld, int64_t begin, int64_t end, uint64_t* bits) {
  using Lanes = decltype(Vector<T>{} != Vector<T>{});
  using Lane = decltype(Lanes{}[0] + 0);
  constexpr int64_t kBits = 8 * sizeof(T);
  for (int64_t c = 0; c < kLanes<T>; ++c) bits[c] = 0;
  for (int64_t first = begin; first < end; first += kBits) {
    Lanes found{};
    const int64_t last = first + kBits < end ? first + kBits : end;
    for (int64_t r = first; r < last; ++r)
      found |= (load(x + r * ld) != Vector<T>{}) & Lane(uint64_t(1) << (r - first));
    for (int64_t c = 0; c < kLanes<T>; ++c)
      bits[c] |= (uint64_t(found[c]) & (~uint64_t(0) >> (64 - kBits))) << (first - begin);
  }
}

template <class T>
static void choose(const T* wanted, int64_t ldw, int64_t m, int64_t n, Chosen& chosen) {
  int32_t at[kChosenRows + 2] = {};
  for (int64_t j = 0; j < n; j += kLanes<T>) nonzero_columns(wanted + j, ldw, 0, m, chosen.rows + j);
  for (int64_t j = 0; j < n; ++j) ++at[__builtin_popcountll(chosen.rows[j]) + 1];
  for (int64_t r = 0; r < kChosenRows; ++r) at[r + 1] += at[r];
  for (int64_t j = 0; j < n; ++j) chosen.order[at[__builtin_popcountll(chosen.rows[j])]++] = int32_t(j);
}

// Rows of B that are wanted with R rows of A: c[i, j] += the products of depths 0 .. k. `fetch`: B comes from memory.
template <class T, int R>
METAFAST_OUTLINED static void chosen_tile(const T* a, int64_t lda, const T* b, int64_t ldb, T* c, int64_t ldc,
                                          int64_t k, const Chosen* chosen, const int32_t* order, int64_t count,
                                          bool fetch) {
  constexpr int L = kLanes<T>, S = Block<T>::kSize, kSums = (R + S - 1) / S * S;
  for (int64_t e = 0; e < count; ++e) {
    const T *row[R], *y = b + order[e] * ldb;
    uint64_t left = chosen->rows[order[e]];
#pragma GCC unroll 32
    for (int i = 0; i < R; ++i, left &= left - 1) row[i] = a + __builtin_ctzll(left) * lda;
    const T* upcoming = fetch && e + 2 < count ? b + order[e + 2] * ldb : nullptr;
    Vector<T> sum[kSums];
#pragma GCC unroll 32
    for (int i = 0; i < kSums; ++i) sum[i] = Vector<T>{};
    const auto add = [&](int64_t p, auto registers) __attribute__((always_inline)) {
      constexpr int W = decltype(registers)::value;
      Vector<T> factor[W];
#pragma GCC unroll 2
      for (int w = 0; w < W; ++w) {
        factor[w] = load(y + p + w * L);
#if defined(__x86_64__)  // in a register, as in dot_tile
        __asm__("" : "+v"(factor[w]));
#endif
      }
      if (upcoming)
        __builtin_prefetch(upcoming + p);  // where a register is a line, every second one: all are no quicker
#pragma GCC unroll 32
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 2
        for (int w = 0; w < W; ++w) sum[i] += factor[w] * load(row[i] + p + w * L);
    };
    int64_t p = 0;  // two at a time, because loads of one cache line do not get into each other's way
    for (; p + 2 * L <= k; p += 2 * L) add(p, std::integral_constant<int, 2>{});
    for (; p < k; p += L) add(p, std::integral_constant<int, 1>{});
    T sums[kSums];
    left = chosen->rows[order[e]];
#pragma GCC unroll 32
    for (int i = 0; i < kSums; i += S) sum_tree<T>(sum + i, sums + i);
#pragma GCC unroll 32
    for (int i = 0; i < R; ++i, left &= left - 1) c[__builtin_ctzll(left) * ldc + order[e]] += sums[i];
  }
}

// chosen_tile<T, rows>(of_tile...)
template <class T, int R = kChosenRows, class... Arguments>
static void chosen_tiles(int64_t rows, Arguments... of_tile) {
  if (rows == R)
    chosen_tile<T, R>(of_tile...);
  else if constexpr (R > 1)
    chosen_tiles<T, R - 1>(rows, of_tile...);
}

// C = multiply_rows(...) where `wanted`, [m][ldw], is not zero, zero elsewhere. ldw and ldc are whole vectors, pads of both zero.
template <class T>
static void multiply_chosen_rows(const T* wanted, int64_t ldw, const T* a, int64_t lda, const T* b, int64_t ldb, T* c,
                                 int64_t ldc, int64_t m, int64_t n, int64_t k, const T* bias) {
  constexpr int L = kLanes<T>;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < ldc; j += L) {
      Vector<T> start{};
      if (bias) start = load(wanted + i * ldw + j) != start ? load(bias + j) : start;
      store(c + i * ldc + j, start);
    }
  const int64_t blocks = (k + kChosenDepth<T> - 1) / kChosenDepth<T>, parts = (m + kChosenRows - 1) / kChosenRows;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t i = m * part / parts, height = m * (part + 1) / parts - i;
    for (int64_t j = 0; j < n; j += 64) {
      const int64_t width = n - j < 64 ? n - j : 64;
      Chosen chosen;
      choose(wanted + i * ldw + j, ldw, height, width, chosen);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t k0 = k / L * block / blocks * L, depth = k / L * (block + 1) / blocks * L - k0;
        const auto rows_of = [&](int64_t e) { return __builtin_popcountll(chosen.rows[chosen.order[e]]); };
        for (int64_t e = 0, next; e < width; e = next) {
          for (next = e + 1; next < width && rows_of(next) == rows_of(e);) ++next;
          chosen_tiles<T>(rows_of(e), a + i * lda + k0, lda, b + j * ldb + k0, ldb, c + i * ldc + j, ldc, depth,
                          &chosen, &chosen.order[e], next - e, part == 0);
        }
      }
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
