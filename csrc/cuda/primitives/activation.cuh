// Pointwise functions: one kernel per pass for all of them, since memory is what bounds it.
#pragma once

#include "cuda/frame.cuh"
#include "formulas/functions/list.h"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

template <class Body>
static __device__ void with_function(const Node& node, Body body) {
  switch (node.op) {
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: body(NAME(node)); break;
    METAFAST_POINTWISE(METAFAST_CASE)
#undef METAFAST_CASE
    default: break;
  }
}

// Whether element i of the output is a pad that must be kept at zero.
template <class T>
static __device__ bool is_cleared(const Frame<T>& f, const Node& node, uint32_t i) {
  const Value& v = f.value(node.output);
  return has(node.op, kUnbounded) && i % uint32_t(v.ld) >= uint32_t(v.channels);
}

template <class T>
static __device__ int64_t activation_count(const Frame<T>& f, const Node& node) {
  return f.rows(node.output) * f.value(node.output).ld;
}

template <class T>
struct ActivationForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T* x = f.activation(node.input[0]);
    T* y = f.activation_out(node.output);
    with_function(node, [&](auto function) {
      block.for_each(activation_count(f, node),
                     [&](uint32_t i) { y[i] = is_cleared(f, node, i) ? T(0) : function.value(x[i]); });
    });
  }
};

template <class T>
struct ActivationBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *x = f.activation(node.input[0]), *y = f.activation(node.output), *dy = f.cotangent(node.output);
    T* dx = f.cotangent(node.input[0]);
    with_function(node, [&](auto function) {
      block.for_each(activation_count(f, node), [&](uint32_t i) {
        const T value = is_cleared(f, node, i) ? T(0) : function.slope(x[i], y[i]) * dy[i];
        put(dx + i, value, node.input_mode[0]);
      });
    });
  }
};

template <class T>
struct ActivationTangentForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *x = f.activation(node.input[0]), *y = f.activation(node.output), *x_dot = f.activation_dot(node.input[0]);
    T* y_dot = f.activation_dot(node.output);
    with_function(node, [&](auto function) {
      block.for_each(activation_count(f, node), [&](uint32_t i) {
        y_dot[i] = is_cleared(f, node, i) ? T(0) : function.slope(x[i], y[i]) * x_dot[i];
      });
    });
  }
};

template <class T>
struct ActivationTangentBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Node& node, const Block& block) {
    const T *x = f.activation(node.input[0]), *y = f.activation(node.output), *dy = f.cotangent(node.output);
    const T *x_dot = f.activation_dot(node.input[0]), *y_dot = f.activation_dot(node.output);
    const T* dy_dot = f.cotangent_dot(node.output);
    T* dx_dot = f.cotangent_dot(node.input[0]);
    with_function(node, [&](auto function) {
      block.for_each(activation_count(f, node), [&](uint32_t i) {
        Dual<T> slope(T(0));
        if (x_dot)
          slope = function.slope(Dual<T>(x[i], x_dot[i]), Dual<T>(y[i], y_dot[i]));
        else
          slope.v = function.slope(x[i], y[i]);
        const T value = x_dot ? slope.v * dy_dot[i] + slope.d * dy[i] : slope.v * dy_dot[i];
        put(dx_dot + i, is_cleared(f, node, i) ? T(0) : value, node.input_mode[0]);
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
