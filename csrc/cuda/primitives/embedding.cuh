// Rows of a table, by their numbers. One that there is not makes the task NaN. A thread sums what belongs to an element of
// the table, and it is the thread of the first row of the output that names it, so that no pass walks over rows that nobody
// names. From there it goes along a chain of those that name the same, in their order, which is found once for all channels.
#pragma once

#include "cuda/primitives/shape_and_sum.cuh"
#include "cuda/task.cuh"

namespace metafast {
namespace METAFAST_ISA {

// The row of the table, or of the identity, that row `at` of the output is; kPad if there is none.
template <class T>
static __device__ uint32_t row_of_table(const Frame<T>& f, const Node& node, uint32_t at) {
  const Value& in = f.value(node.input[0]);
  const Divided place(at, in.channels);
  const T row = f.activation(node.input[0])[place.quotient * uint32_t(in.ld) + place.rest];
  const int p = node.parameter[0];
  const int32_t rows = p >= 0 ? f.parameter_plan(p).inputs : f.value(node.output).channels;
  return row >= T(0) && row < T(rows) ? uint32_t(row) : kPad;
}

template <class T>
struct EmbeddingForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const uint32_t ld = uint32_t(f.value(node.output).ld);
    const int p = node.parameter[0];
    const T* w = f.tangent_tape ? f.parameter_dot(p) : f.parameter(p);
    const uint32_t zero = f.tangent_tape ? uint32_t(int32_t(node.attribute[0])) : kPad;  // the row of the padding
    const bool identity = p < 0 && !f.tangent_tape;
    T* y = plane_out(f, node.output);
    block.for_each(f.rows(node.output) * ld, [&](uint32_t o) {
      const Divided at(o, ld);
      const uint32_t row = row_of_table(f, node, at.quotient);
      y[o] = row == kPad        ? T(__builtin_nan(""))
             : identity         ? T(at.rest == row)
             : w && row != zero ? w[row * ld + at.rest]
                                : T(0);
    });
  }
};

// Argument 1: the cotangent of the numbers; else the gradient of the table.
template <class T>
struct EmbeddingClear : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const int v = node.input[0], p = node.parameter[0];
    T* out = block.argument   ? cotangent_plane(f, v)
             : f.tangent_tape ? f.parameter_gradient_dot(p)
                              : f.parameter_gradient(p);
    block.for_each(block.argument ? f.rows(v) * f.value(v).ld_cotangent : f.parameter_plan(p).size,
                   [&](uint32_t i) { out[i] = T(0); });
  }
};

// In scratch, for each row of the output: the next one that names the same row of the table, or their number if there is
// none; with kLater if one before it names that row too.
template <class T>
struct EmbeddingChains : PhaseDefaults {
  using Int = typename Bits<T>::Int;
  static constexpr Int kLater = Int(1) << 30;
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const uint32_t rows = uint32_t(f.rows(node.output));
    Int* chains = reinterpret_cast<Int*>(f.scratch);
    block.for_each(rows, [&](uint32_t at) {
      const uint32_t row = row_of_table(f, node, at);
      uint32_t next = at + 1, before = 0;
      while (next < rows && row_of_table(f, node, next) != row) ++next;
      while (before < at && row_of_table(f, node, before) != row) ++before;
      chains[at] = Int(next) | (before < at ? kLater : Int(0));
    });
  }
};

template <class T>
struct EmbeddingBackward : PhaseDefaults {
  using Int = typename Bits<T>::Int;
  static constexpr Int kLater = EmbeddingChains<T>::kLater;
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const int p = node.parameter[0];
    const uint32_t ld = uint32_t(f.value(node.output).ld_cotangent), rows = uint32_t(f.rows(node.output));
    const T* dy = cotangent_plane(f, node.output);
    T* dw = f.tangent_tape ? f.parameter_gradient_dot(p) : f.parameter_gradient(p);
    const int32_t padding = int32_t(node.attribute[0]);
    const Int* chains = reinterpret_cast<const Int*>(f.scratch);
    block.for_each(int64_t(rows) * ld, [&](uint32_t i) {
      const Divided at(i, ld);
      const uint32_t row = row_of_table(f, node, at.quotient);
      if (row == kPad || int32_t(row) == padding || (chains[at.quotient] & kLater)) return;
      T sum = T(0);
      for (uint32_t from = at.quotient; from < rows; from = uint32_t(chains[from] & ~kLater))
        sum += dy[from * ld + at.rest];
      put(dw + row * ld + at.rest, sum, node.parameter_mode[0]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
