// Pointwise functions: one kernel per pass for all of them, since memory is what bounds it.
#pragma once

#include "cuda/frame.cuh"
#include "formulas/functions/list.h"
#include "program/primitives.h"

namespace metafast {
namespace METAFAST_ISA {

template <class Body>
static __device__ void with_function(const Step& s, Body body) {
  switch (s.op) {
#define METAFAST_CASE(NAME, ...) \
  case Op::k##NAME: body(NAME(s)); break;
    METAFAST_POINTWISE(METAFAST_CASE)
#undef METAFAST_CASE
    default: break;
  }
}

template <class T>
static __device__ int64_t activation_count(const Frame<T>& f, const Step& s) {
  return f.rows(s.output) * f.value(s.output).ld;
}

template <class T>
struct ActivationForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const T* x = f.activation(s.input[0]);
    T* y = f.activation_out(s.output);
    with_function(s, [&](auto function) {
      block.for_each(activation_count(f, s), [&](uint32_t i) { y[i] = function.value(x[i]); });
    });
  }
};

template <class T>
struct ActivationBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const T *x = f.activation(s.input[0]), *y = f.activation(s.output), *dy = f.cotangent(s.output);
    T* dx = f.cotangent(s.input[0]);
    with_function(s, [&](auto function) {
      block.for_each(activation_count(f, s),
                     [&](uint32_t i) { put(dx + i, function.slope(x[i], y[i]) * dy[i], s.input_mode[0]); });
    });
  }
};

template <class T>
struct ActivationTangentForward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const T *x = f.activation(s.input[0]), *y = f.activation(s.output), *x_dot = f.activation_dot(s.input[0]);
    T* y_dot = f.activation_dot(s.output);
    with_function(s, [&](auto function) {
      block.for_each(activation_count(f, s), [&](uint32_t i) { y_dot[i] = function.slope(x[i], y[i]) * x_dot[i]; });
    });
  }
};

template <class T>
struct ActivationTangentBackward : PhaseDefaults {
  static __device__ void run(const Frame<T>& f, const Step& s, const Block& block) {
    const T *x = f.activation(s.input[0]), *y = f.activation(s.output), *dy = f.cotangent(s.output);
    const T *x_dot = f.activation_dot(s.input[0]), *y_dot = f.activation_dot(s.output);
    const T* dy_dot = f.cotangent_dot(s.output);
    T* dx_dot = f.cotangent_dot(s.input[0]);
    with_function(s, [&](auto function) {
      block.for_each(activation_count(f, s), [&](uint32_t i) {
        Dual<T> slope(T(0));
        if (x_dot)
          slope = function.slope(Dual<T>(x[i], x_dot[i]), Dual<T>(y[i], y_dot[i]));
        else
          slope.v = function.slope(x[i], y[i]);
        const T value = x_dot ? slope.v * dy_dot[i] + slope.d * dy[i] : slope.v * dy_dot[i];
        put(dx_dot + i, value, s.input_mode[0]);
      });
    });
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
