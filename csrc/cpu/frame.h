// Where the arrays of one pass over a Program stand: what a primitive sees.
//
// A primitive is a struct with four static functions of (const Frame&, const Node&):
//   forward           writes the output's activation
//   backward          reads the output's cotangent; writes those of its inputs and parameters
//   tangent_forward   writes the tangent of the output's activation
//   tangent_backward  writes the tangents of what backward writes
// The tangent passes read the activations and cotangents that the first two left in the tape; cotangents only where
// they are read and not sooner recomputed (Value::cotangent_is_transient).
#pragma once

#include <stddef.h>

#include "core/philox.h"
#include "core/scalar.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/pack.h"
#include "cpu/threads/prefetch.h"
#include "cpu/threads/share.h"
#include "engine/job.h"

namespace metafast {
namespace METAFAST_ISA {

// What the gradients of the first `count` parameters are for, if for nothing else: to = from - rate * gradient.
template <class T>
struct FusedStep {
  const T* from;
  T* to;
  const Element<T>* rates;
  int32_t count;
};

// X W of a kFirstLinear, or its tangent: factor * (weight * start + change).
template <class T>
struct FirstProduct {
  const T *start, *change;
  T weight, factor;
};

template <class T>
struct Frame {
  const BatchPlan* plan;
  T *tape, *tangent_tape;
  const T* x;                // activations of value 0 if the plan says they are read in place
  const T *initial, *theta;  // all parameters at step 0; the adapted ones at this step
  FirstProduct<T> first, first_dot;
  const Job<Element<T>>* job;  // for what is read and written as the user has it
  int64_t task;
  RandomKey random;
  const T* vector;             // tangent of the parameters, or null
  T *gradient, *gradient_dot;  // of the learnt parameters; null where only those of the values are wanted
  bool only_adapted;           // a step of the inner loop reads no other gradient
  T* transient;                // what need not last
  T* scratch;                  // for what is not shared
  Sharing<T> share;
  FusedStep<T> fused;
  Prefetcher* prefetcher;  // of what the next step will work on, or null

  void prefetch() const {
    if (prefetcher) prefetcher->fetch();
  }
  int64_t examples() const { return plan->examples; }
  const Value& value(int v) const { return plan->values[v]; }
  int64_t examples(int v) const { return plan->values[v].shared ? 1 : plan->examples; }
  int64_t rows(int v) const { return examples(v) * plan->values[v].rows; }

  const T* activation(int v) const { return v == 0 && plan->input_in_place ? x : tape + plan->values[v].activation; }
  T* activation_out(int v) const { return tape + plan->values[v].activation; }
  T* cotangent(int v) const {
    return (plan->values[v].cotangent_is_transient ? transient : tape) + plan->values[v].cotangent;
  }
  // Does nobody ask for it, there being no gradients to be made?
  bool cotangent_unread(int v) const { return !gradient && plan->values[v].cotangent_unread; }
  // Null where the tangent is known to be zero.
  T* activation_dot(int v) const {
    return plan->values[v].has_tangent ? tangent_tape + plan->values[v].activation_dot : nullptr;
  }
  T* cotangent_dot(int v) const { return tangent_tape + plan->values[v].cotangent_dot; }

  const ParameterPlan& parameter_plan(int p) const { return plan->parameters[p]; }
  const T* parameter(int p) const {
    if (p < 0) return nullptr;
    const int64_t offset = plan->parameters[p].offset;
    return offset < plan->adapted_size ? theta + offset : initial + offset;
  }
  const T* parameter_dot(int p) const {
    if (p < 0 || plan->parameters[p].offset >= plan->tangent_size) return nullptr;
    return vector + plan->parameters[p].offset;
  }
  // Whether the primitive that makes the gradient of p takes its step instead of writing it.
  bool takes_step(int p) const {
    return kIsPack<T> && p < fused.count && plan->parameters[p].read_once && plan->examples <= kDepth;
  }
  // A parameter of a Hessian-vector product, its vector and the result, as the user has them.
  const T* user(int p) const { return user(job->sources[p]); }
  const T* user_dot(int p) const { return user(job->vectors[p]); }
  T* user_gradient_dot(int p) const {
    return reinterpret_cast<T*>(job->own_gradient[p] + task * parameter_plan(p).numel());
  }
  // Is the gradient of the node's parameter i to be made?
  bool makes_gradient(const Node& node, int i) const {
    if (!gradient || node.parameter_mode[i] == GradientMode::kIgnore) return false;
    return !only_adapted || plan->parameters[node.parameter[i]].offset < plan->adapted_size;
  }
  T* parameter_gradient(int p) const { return gradient + plan->parameters[p].offset; }
  T* parameter_gradient_dot(int p) const { return gradient_dot + plan->parameters[p].offset; }

 private:
  const T* user(const ParameterSource<Element<T>>& source) const {  // packs have no use for it
    return reinterpret_cast<const T*>(source.data + task * source.task_stride);
  }
};

inline bool wanted(GradientMode mode) { return mode != GradientMode::kIgnore; }

// How a product begins when it is the first of several into the same array.
inline Start begin_with(GradientMode mode) {
  return mode == GradientMode::kAccumulate ? Start::kAccumulate : Start::kZero;
}

template <class T>
inline void put(T* out, T value, GradientMode mode) {
  *out = mode == GradientMode::kAccumulate ? *out + value : value;
}

}  // namespace METAFAST_ISA
}  // namespace metafast
