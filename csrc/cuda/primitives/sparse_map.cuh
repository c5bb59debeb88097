// Static linear maps by tables, of values or of a parameter: every thread sums the terms of an element.
#pragma once

#include "cuda/primitives/shape_and_sum.cuh"

namespace metafast {
namespace METAFAST_ISA {

// A source of a sparse map in this pass; null where a tangent is known to be zero. Elements from one example to the next.
template <class T>
struct SparseSource {
  const T* data;
  uint32_t each;

  __device__ SparseSource(const Frame<T>& f, const Node& node, int i) {
    const int p = node.parameter[0];
    if (p >= 0) {
      data = f.tangent_tape ? f.parameter_dot(p) : f.parameter(p);
      each = 0;
    } else {
      const Value& in = f.value(node.input[i]);
      data = plane_in(f, node.input[i]);
      each = in.shared ? 0u : uint32_t(in.rows * in.ld);
    }
  }
};

template <class T>
struct SparseMapForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value& out = f.value(node.output);
    const SparseRows& rows = node.map.terms;
    T* y = plane_out(f, node.output);
    block.for_each(f.rows(node.output) * out.ld, [&](uint32_t o) {
      const Divided at(o, out.rows * out.ld);
      T sum = T(0);
      for (int32_t k = rows.begin[at.rest]; k < rows.begin[at.rest + 1]; ++k) {
        const Divided from(uint32_t(rows.offset[k]), kNodeInputs);
        const SparseSource<T> source(f, node, int(from.rest));
        if (source.data) sum += T(rows.factor[k]) * source.data[at.quotient * source.each + from.quotient];
      }
      y[o] = sum;
    });
  }
};

// Of the input that is the argument, or the parameter.
template <class T>
struct SparseMapBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value& out = f.value(node.output);
    const int p = node.parameter[0], v = node.input[block.argument];
    const T* dy = cotangent_plane(f, node.output);
    T* dx = p < 0 ? cotangent_plane(f, v) : f.tangent_tape ? f.parameter_gradient_dot(p) : f.parameter_gradient(p);
    const int64_t size = p < 0 ? f.value(v).rows * f.value(v).ld_cotangent : f.parameter_plan(p).size;
    const bool shared = p >= 0 || f.value(v).shared;
    const uint32_t each = out.shared ? 0u : uint32_t(out.rows * out.ld_cotangent);
    const SparseRows& rows = node.map.adjoint[block.argument];
    block.for_each((shared ? 1 : f.examples()) * size, [&](uint32_t i) {
      const Divided at(i, size);
      const uint32_t first = shared ? 0 : at.quotient, last = shared ? uint32_t(f.examples(node.output)) : first + 1;
      T sum = T(0);
      for (uint32_t n = first; n < last; ++n)
        for (int32_t k = rows.begin[at.rest]; k < rows.begin[at.rest + 1]; ++k)
          sum += T(rows.factor[k]) * dy[n * each + uint32_t(rows.offset[k])];
      put(dx + i, sum, p < 0 ? node.input_mode[block.argument] : node.parameter_mode[0]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
