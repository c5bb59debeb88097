// Static linear maps by tables: rearrangements, parts, concatenation, padding, sums and means over axes, upsampling.
#pragma once

#include <string.h>

#include "cpu/frame.h"

namespace metafast {
namespace METAFAST_ISA {

// A table's runs on arrays of T. `each_*`: elements from one example to the next, 0 where all have one array.
template <class T>
struct SparseRuns {
  // y (+)= A x for examples [begin, end), of the runs that read source `input`.
  METAFAST_OUTLINED static void apply(const SparseTables& map, int input, const T* x, int64_t each_x, T* y,
                                      int64_t each_y, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t i = 0; i < map.run_count; ++i) {
        const MapRun& run = map.runs[i];
        if (run.input == input)
          move(run, x + n * each_x + run.from, run.stride, y + n * each_y + run.to, 1, map.assigns);
      }
  }
  METAFAST_OUTLINED static void adjoint(const SparseTables& map, int input, const T* dy, int64_t each_y, T* dx,
                                        int64_t each_x, int64_t begin, int64_t end, bool assigns) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t i = 0; i < map.run_count; ++i) {
        const MapRun& run = map.adjoint_runs[i];
        if (run.input == input) move(run, dy + n * each_y + run.to, 1, dx + n * each_x + run.from, run.stride, assigns);
      }
  }

 private:
  static void move(const MapRun& run, const T* from, int64_t from_stride, T* to, int64_t to_stride, bool assign) {
    if (run.factor == 1) {
      if (from_stride == 1 && to_stride == 1) return assign ? copy(from, to, run.count) : add(from, to, run.count);
      if (assign)
        for (int64_t i = 0; i < run.count; ++i) to[i * to_stride] = from[i * from_stride];
      else
        for (int64_t i = 0; i < run.count; ++i) to[i * to_stride] += from[i * from_stride];
      return;
    }
    const T factor = T(run.factor);
    for (int64_t i = 0; i < run.count; ++i) {
      const T sum = factor * from[i * from_stride];
      to[i * to_stride] = assign ? sum : to[i * to_stride] + sum;
    }
  }
  static void copy(const T* __restrict from, T* __restrict to, int64_t n) { memcpy(to, from, size_t(n) * sizeof(T)); }
  static void add(const T* __restrict from, T* __restrict to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }
};

template <class T>
struct SparseMap {
  static void forward(const Frame<T>& f, const Node& node) {
    const int inputs = count(node);
    const T* x[kNodeInputs];
    for (int i = 0; i < inputs; ++i) x[i] = f.activation(node.input[i]);
    apply(f, node, x, f.activation_out(node.output));
  }
  static void backward(const Frame<T>& f, const Node& node) {
    for (int i = 0; i < count(node); ++i)
      if (wanted(node.input_mode[i])) adjoint(f, node, i, f.cotangent(node.output), f.cotangent(node.input[i]));
  }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    const T* x_dot[kNodeInputs];
    for (int i = 0; i < count(node); ++i) x_dot[i] = f.activation_dot(node.input[i]);
    apply(f, node, x_dot, f.activation_dot(node.output));
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    for (int i = 0; i < count(node); ++i)
      if (wanted(node.input_mode[i])) adjoint(f, node, i, f.cotangent_dot(node.output), f.cotangent_dot(node.input[i]));
  }

 private:
  static int count(const Node& node) {
    int n = 0;
    while (n < kNodeInputs && node.input[n] >= 0) ++n;
    return n;
  }
  static int64_t each(const Frame<T>& f, int v, int64_t ld) { return f.value(v).shared ? 0 : f.value(v).rows * ld; }

  // A source that is null is zero.
  static void apply(const Frame<T>& f, const Node& node, const T* const* x, T* y) {
    const Value& out = f.value(node.output);
    const int64_t size = out.rows * out.ld;
    f.share(f.examples(node.output), size + node.map.term_count, [&](int64_t begin, int64_t end, T*) {
      memset(y + begin * size, 0, size_t((end - begin) * size) * sizeof(T));
      for (int i = 0; i < count(node); ++i)
        if (x[i])
          SparseRuns<T>::apply(node.map, i, x[i], each(f, node.input[i], f.value(node.input[i]).ld), y, size, begin,
                               end);
    });
  }

  // One array of a value that examples share is summed over them by one thread.
  static void adjoint(const Frame<T>& f, const Node& node, int i, const T* dy, T* dx) {
    const Value &in = f.value(node.input[i]), &out = f.value(node.output);
    const int64_t size = in.rows * in.ld_cotangent, each_y = each(f, node.output, out.ld_cotangent);
    const bool keep = node.input_mode[i] == GradientMode::kAccumulate, sums = in.shared && !out.shared;
    const bool assigns = node.map.adjoint_assigns && !keep && !sums;
    const auto part = [&](int64_t begin, int64_t end) {
      SparseRuns<T>::adjoint(node.map, i, dy, each_y, dx, in.shared ? 0 : size, begin, end, assigns);
    };
    if (!keep && in.shared) memset(dx, 0, size_t(size) * sizeof(T));
    if (in.shared) return part(0, f.examples(node.output));
    f.share(f.examples(node.output), size + node.map.term_count, [&](int64_t begin, int64_t end, T*) {
      if (!keep) memset(dx + begin * size, 0, size_t((end - begin) * size) * sizeof(T));
      part(begin, end);
    });
  }
};

// What a table takes of a parameter, as a value that all examples share.
template <class T>
struct ParameterValue {
  static void forward(const Frame<T>& f, const Node& node) {
    apply(f, node, f.parameter(node.parameter[0]), f.activation_out(node.output));
  }
  static void backward(const Frame<T>& f, const Node& node) {
    if (f.makes_gradient(node, 0)) adjoint(f, node, f.cotangent(node.output), f.parameter_gradient(node.parameter[0]));
  }
  static void tangent_forward(const Frame<T>& f, const Node& node) {
    apply(f, node, f.parameter_dot(node.parameter[0]), f.activation_dot(node.output));
  }
  static void tangent_backward(const Frame<T>& f, const Node& node) {
    if (wanted(node.parameter_mode[0]))
      adjoint(f, node, f.cotangent_dot(node.output), f.parameter_gradient_dot(node.parameter[0]));
  }

 private:
  static void apply(const Frame<T>& f, const Node& node, const T* w, T* y) {
    const Value& out = f.value(node.output);
    memset(y, 0, size_t(out.rows * out.ld) * sizeof(T));
    SparseRuns<T>::apply(node.map, 0, w, 0, y, 0, 0, 1);
  }
  static void adjoint(const Frame<T>& f, const Node& node, const T* dy, T* dw) {
    const bool keep = node.parameter_mode[0] == GradientMode::kAccumulate;
    if (!keep) memset(dw, 0, size_t(f.parameter_plan(node.parameter[0]).size) * sizeof(T));
    SparseRuns<T>::adjoint(node.map, 0, dy, 0, dw, 0, 0, 1, node.map.adjoint_assigns && !keep);
  }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
