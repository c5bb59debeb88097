// Sums and rearrangements. Their tangents are the same maps on the tangent planes, so a phase works on values or, once
// tangents exist, on tangents.
#pragma once

#include "cuda/primitives/columns.cuh"
#include "formulas/windows.h"

namespace metafast {
namespace METAFAST_ISA {

// The planes that a linear map works on in this pass.
template <class T>
static __device__ const T* plane_in(const Frame<T>& f, int v) {
  return f.tangent_tape ? f.activation_dot(v) : f.activation(v);
}
template <class T>
static __device__ T* plane_out(const Frame<T>& f, int v) {
  return f.tangent_tape ? f.activation_dot(v) : f.activation_out(v);
}
template <class T>
static __device__ T* cotangent_plane(const Frame<T>& f, int v) {
  return f.tangent_tape ? f.cotangent_dot(v) : f.cotangent(v);
}

template <class T>
struct FlattenForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* x = plane_in(f, node.input[0]);
    T* y = plane_out(f, node.output);
    block.for_each(f.examples() * out.ld, [&](uint32_t o) {
      const Divided at(o, out.ld), inside(at.rest, in.height > 0 ? in.rows : in.channels);
      const uint32_t r = in.height > 0 ? inside.rest : inside.quotient;
      const uint32_t c = in.height > 0 ? inside.quotient : inside.rest;
      y[o] = at.rest < uint32_t(out.channels) ? x[(at.quotient * uint32_t(in.rows) + r) * uint32_t(in.ld) + c] : T(0);
    });
  }
};

template <class T>
struct FlattenBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const Value &in = f.value(node.input[0]), &out = f.value(node.output);
    const T* dy = cotangent_plane(f, node.output);
    T* dx = cotangent_plane(f, node.input[0]);
    block.for_each(f.rows(node.input[0]) * in.ld, [&](uint32_t i) {
      const Divided at(i, in.ld), row(at.quotient, in.rows);
      const T value = at.rest < uint32_t(in.channels)
                          ? dy[row.quotient * uint32_t(out.ld) + flattened(in, row.rest, at.rest)]
                          : T(0);
      put(dx + i, value, node.input_mode[0]);
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
