// The passes of a loss over a batch of examples.
#pragma once

#include "cpu/frame.h"
#include "formulas/losses/list.h"

namespace metafast {
namespace METAFAST_ISA {

// A batch's targets as the engine has laid them out.
template <class T>
struct Targets {
  const int64_t* labels;  // [N, rows], or
  const T* real;
  int64_t real_stride, real_ld;  // of an example, of a row
  const T* weights;              // [N] or null
};

// What the loss reads and leaves: outputs [N, rows, ld] and their tangent or null; the loss of each example; what it keeps
// of each output, [N, rows, ld_cotangent].
template <class T>
struct LossArrays {
  const T *z, *z_dot;
  T *each, *kept;
};

// What the loss writes besides the cotangent of the outputs; null if unwanted.
template <class T>
struct TargetGradients {
  T *dy, *dw;  // like Targets::real and ::weights
};

template <class T, class L>
struct LossPasses {
  const L loss;
  const Reduction reduction;
  const Value& z;
  const int64_t n;
  const LossArrays<T> arrays;
  const Targets<T>& targets;

  Outputs<T> outputs(int64_t i) const {
    const int64_t at = i * z.rows * z.ld;
    return {arrays.z + at,
            arrays.z_dot ? arrays.z_dot + at : nullptr,
            arrays.kept + i * z.rows * z.ld_cotangent,
            z.channels,
            z.ld,
            z.ld_cotangent,
            z.rows,
            z.rows * z.channels};
  }
  Target<T> target(int64_t i) const {
    if (targets.labels) return {targets.labels + i * z.rows, nullptr, z.channels, z.ld_cotangent};
    return {nullptr, targets.real + i * targets.real_stride, z.channels, int32_t(targets.real_ld)};
  }
  T weight(int64_t i) const { return targets.weights ? targets.weights[i] : T(1); }
  // What the weighted sum of losses is divided by.
  T divisor() const {
    if (reduction == Reduction::kSum) return T(1);
    const bool weighted = reduction == Reduction::kWeightedMean && targets.weights;
    if (!L::kHasMass && !weighted) return T(n);
    T sum = T(0);
    for (int64_t i = 0; i < n; ++i) sum += weighted ? weight(i) * mass(i) : mass(i);
    return sum;
  }

  // Leaves each example's loss in the tape and returns L.
  METAFAST_ONE_LOOP T forward() const {
    T* each = arrays.each;
    T sum = T(0);
    for (int64_t i = 0; i < n; ++i) {
      each[i] = loss.template value<T>(outputs(i), target(i));
      sum += weight(i) * each[i];
    }
    return sum / divisor();
  }

  // Writes the cotangent of the outputs for a cotangent `seed` of L, whose value this is; pads zero. With S dual, the
  // tangents of the same.
  template <class S>
  METAFAST_ONE_LOOP void reverse(T seed, T* dz, const TargetGradients<T>& out, S value) const {
    const T unit = seed / divisor();
    // dL/dw_i = (l_i - level m_i) / divisor: a divisor that is the sum of weights depends on w_i as well.
    const S level = reduction == Reduction::kWeightedMean ? value : S(T(0));
    for (int64_t i = 0; i < n; ++i) {
      const Outputs<T> zi = outputs(i);
      const Target<T> yi = target(i);
      const T scale = unit * weight(i);
      T* dzi = dz + i * z.rows * z.ld_cotangent;
      for (int64_t e = 0; e < z.rows * z.ld_cotangent; ++e) dzi[e] = T(0);
      loss.template gradient<S>(zi, yi, [&](int64_t c, S g) { *place(dzi, c) = scale * part(g); });
      if (out.dy)
        loss.template target_gradient<S>(
            zi, yi, [&](int64_t c, S g) { *place(out.dy + i * z.rows * z.ld_cotangent, c) = scale * part(g); });
      if (out.dw) out.dw[i] = unit * part(loss.template value<S>(zi, yi) - level * S(mass(i)));
    }
  }

  // d L / d eps along the tangent of the outputs.
  METAFAST_ONE_LOOP T value_tangent() const {
    T sum = T(0);
    for (int64_t i = 0; i < n; ++i) sum += weight(i) * loss.template value<Dual<T>>(outputs(i), target(i)).d;
    return sum / divisor();
  }

 private:
  T mass(int64_t i) const {
    if constexpr (L::kHasMass)
      return loss.mass(outputs(i), target(i));
    else
      return T(1);
  }
  T* place(T* base, int64_t c) const { return base + place_of(c, z.channels, z.ld_cotangent); }
  static T part(T a) { return a; }
  static T part(Dual<T> a) { return a.d; }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
