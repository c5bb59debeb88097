// Between the user's layouts and the engine's: parameters [outputs, inputs, taps] to [taps][inputs][ld], values
// [channels, height, width] to [height * width][ld]. Pads are written as zero. Inside, elements stand `kStep` apart: next
// to each other, or in one lane of packs (pack.h), which have no pads, taps or images.
#pragma once

#include <string.h>

#include "core/isa.h"
#include "core/plan.h"
#include "cpu/kernels/transpose.h"

namespace metafast {
namespace METAFAST_ISA {

// Where the engine keeps row (input, tap) of a parameter that the user has as [outputs][inputs * taps].
template <class T>
struct TapRows {
  const ParameterPlan& p;
  T* data;
  T* operator()(int64_t row) const { return data + (row % p.taps * p.inputs + row / p.taps) * p.ld; }
};

// Where the user has what stands in row (input, tap) of `rows`, at an output.
static int64_t user_index(const ParameterPlan& p, int64_t rows, int64_t row, int64_t output) {
  return p.table ? row * p.outputs + output : output * rows + row;
}

template <class T, int kStep = 1>
static void parameter_in(const ParameterPlan& p, const T* user, T* out) {
  const int64_t rows = int64_t(p.inputs) * p.taps;
  if constexpr (kStep > 1) {
    for (int64_t o = 0; o < p.outputs; ++o)
      for (int64_t i = 0; i < rows; ++i) out[(i * p.outputs + o) * kStep] = user[user_index(p, rows, i, o)];
  } else if (rows == 1 || p.table) {
    for (int64_t i = 0; i < rows; ++i, user += p.outputs, out += p.ld) {
      memcpy(out, user, size_t(p.outputs) * sizeof(T));
      memset(out + p.outputs, 0, size_t(p.ld - p.outputs) * sizeof(T));
    }
  } else if (p.taps == 1) {
    transpose(user, rows, p.outputs, rows, out, p.ld);
  } else {
    transpose_rows<T>(Rows<const T>{user, rows}, p.outputs, rows, TapRows<T>{p, out}, p.ld);
  }
}

template <class T, int kStep = 1>
static void parameter_out(const ParameterPlan& p, const T* in, T* user) {
  const int64_t rows = int64_t(p.inputs) * p.taps;
  if constexpr (kStep > 1) {
    for (int64_t o = 0; o < p.outputs; ++o)
      for (int64_t i = 0; i < rows; ++i) user[user_index(p, rows, i, o)] = in[(i * p.outputs + o) * kStep];
  } else if (rows == 1 || p.table) {
    for (int64_t i = 0; i < rows; ++i, user += p.outputs, in += p.ld) memcpy(user, in, size_t(p.outputs) * sizeof(T));
  } else if (p.taps == 1) {
    transpose(in, p.ld, rows, p.outputs, user, rows);
  } else {
    transpose_rows<T>(TapRows<const T>{p, in}, rows, p.outputs, Rows<T>{user, rows}, rows);
  }
}

// Calls body(index in the user's [channels, height, width] or [rows, channels], index inside) for every element.
template <class Body>
static void for_elements(const Value& v, int64_t examples, int64_t ld, Body body) {
  const int64_t size = v.rows * v.channels;
  for (int64_t n = 0; n < examples; ++n)
    for (int64_t r = 0; r < v.rows; ++r)
      for (int64_t c = 0; c < v.channels; ++c)
        body(n * size + (v.height > 0 ? c * v.rows + r : r * v.channels + c), (n * v.rows + r) * ld + c);
}

template <class T, int kStep = 1>
static void value_in(const Value& v, int64_t examples, int64_t ld, const T* user, T* out) {
  if constexpr (kStep > 1) {
    for_elements(v, examples, ld, [&](int64_t from, int64_t to) { out[to * kStep] = user[from]; });
    return;
  }
  if (v.height > 0 && v.channels > 1) {
    const int64_t size = v.rows * v.channels;
    for (int64_t n = 0; n < examples; ++n)
      transpose(user + n * size, v.rows, v.channels, v.rows, out + n * v.rows * ld, ld);
    return;
  }
  for (int64_t r = 0; r < examples * v.rows; ++r) {
    memcpy(out + r * ld, user + r * v.channels, size_t(v.channels) * sizeof(T));
    memset(out + r * ld + v.channels, 0, size_t(ld - v.channels) * sizeof(T));
  }
}

// user = in, or user += sign * in.
template <class T, int kStep = 1>
static void value_out(const Value& v, int64_t examples, int64_t ld, const T* __restrict in, T* __restrict user) {
  for_elements(v, examples, ld, [&](int64_t to, int64_t from) { user[to] = in[from * kStep]; });
}
template <class T, int kStep = 1>
static void value_add(const Value& v, int64_t examples, int64_t ld, const T* __restrict in, T sign,
                      T* __restrict user) {
  for_elements(v, examples, ld, [&](int64_t to, int64_t from) { user[to] += sign * in[from * kStep]; });
}

// rows[i], rows[stride + i], ...: the sums of packs[i] over each group of its first `count` lanes.
template <class E, int kCount>
static void sum_lanes(const Pack<E, kCount>* packs, int count, int64_t n, int64_t stride, E* rows) {
  constexpr int G = kGroup<E>, S = Block<E>::kSize;
  static_assert(S == 1 || S == G, "a group is a row of a block");
  for (int begin = 0; begin < count; begin += G, rows += stride) {
    E ones[G];
    for (int lane = 0; lane < G; ++lane) ones[lane] = E(begin + lane < count);
    SmallPack<E> counts;
    memcpy(&counts, ones, sizeof ones);
    for (int64_t i = 0; i < n; i += S) {
      const int64_t some = n - i < S ? n - i : S;
      SmallPack<E> group[S];
#pragma GCC unroll 8
      for (int64_t j = 0; j < S; ++j) {
        memcpy(&group[j], reinterpret_cast<const E*>(packs + i + (j < some ? j : 0)) + begin, sizeof group[j]);
        group[j].v = counts.v > E(0) ? group[j].v : typename SmallPack<E>::Lanes{};
      }
      if constexpr (S == 1) {
        rows[i] = E(0);
        for (int lane = 0; lane < G; ++lane) rows[i] += group[0].v[lane];
      } else {
        typename Block<E>::Row block[S];
        memcpy(block, group, sizeof block);
        Block<E>::transpose(block);
#pragma GCC unroll 8
        for (int j = 1; j < S; ++j) block[0] += block[j];
        memcpy(rows + i, block, size_t(some) * sizeof(E));
      }
    }
  }
}

}  // namespace METAFAST_ISA
}  // namespace metafast
