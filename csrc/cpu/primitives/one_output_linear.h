// y = x w + b with one output, behind another layer. As a column W would fill one lane of each register; it stands as a row
// (ParameterPlan), whose product with rows of x is sums along both, and nothing is ever transposed.
#pragma once

#include "cpu/kernels/transpose.h"
#include "cpu/primitives/bilinear.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct OneOutputLinear : Bilinear<T, OneOutputLinear<T>> {
  using Bilinear<T, OneOutputLinear<T>>::in_line;

  // Partial sums by the place in a register, folded by sum_rows: inner_products of cpu/kernels/pack_gemm.h adds in the same order.
  static void product(const Frame<T>& f, const Node& node, const T* x, const T* w, T* y, Start start, const T* bias) {
    constexpr int L = kLanes<T>, S = Block<T>::kSize;
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const int64_t rows = f.rows(node.output), whole = in.channels / L * L;
    T ones[L];
    for (int lane = 0; lane < L; ++lane) ones[lane] = T(lane < in.channels - whole);
    const auto rest = load(ones) > Vector<T>{};
    for (int64_t r = 0; r < rows; r += S) {
      const T* row[S];  // where x ends, its last row stands for those that are not there
      Vector<T> sum[S] = {};
#pragma GCC unroll 8
      for (int j = 0; j < S; ++j) row[j] = x + (r + j < rows ? r + j : rows - 1) * in.ld;
      for (int64_t i = 0; i < whole; i += L) {
        const Vector<T> factor = load(w + i);
#pragma GCC unroll 8
        for (int j = 0; j < S; ++j) sum[j] += load(row[j] + i) * factor;
      }
      if (whole < in.channels) {
        const Vector<T> factor = load(w + whole);
#pragma GCC unroll 8
        for (int j = 0; j < S; ++j) sum[j] += (rest ? load(row[j] + whole) : Vector<T>{}) * factor;
      }
      T sums[S];
      sum_rows<T>(sum, sums);
      for (int64_t j = 0; j < S && r + j < rows; ++j) {
        T* to = y + (r + j) * out.ld;
        Vector<T> one{};
        one[0] = sums[j] + (start == Start::kBias ? bias[0] : start == Start::kAccumulate ? to[0] : T(0));
        store(to, one);
      }
    }
  }

  static void weight_gradient(const Frame<T>& f, const Node& node, const T* x, const T* dy, T* dw, Start start) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    multiply<T>({dy, nullptr, nullptr, 1, out.ld}, x, in.ld, dw, in.ld, 1, in.ld, f.rows(node.output), in_line(start));
    zero_pads(dw, in.channels, in.ld);
  }

  static const T* transpose_weight(const Frame<T>&, const Node&, const T* w, T*) { return w; }
  static const T* transposed(const Frame<T>& f, const Node& node) { return f.parameter(node.parameter[0]); }

  static void input_gradient(const Frame<T>& f, const Node& node, const T* dy, const T* w, T* dx, Start start) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    multiply<T>({dy, nullptr, nullptr, out.ld, 1}, w, in.ld_cotangent, dx, in.ld_cotangent, f.rows(node.output),
                in.ld_cotangent, 1, in_line(start));
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
