// What a normalisation computes of one set of elements that it averages over, or of one element: shared by the CPU's loops
// and the device's threads. A set is a channel at all positions of all examples (BatchNorm), or a group of channels of one
// example at one position or all (LayerNorm, RMSNorm, GroupNorm, InstanceNorm). S is a real number, a dual number, or on
// the CPU a vector of either's numbers.
#pragma once

#include "core/plan.h"
#include "core/scalar.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
MF_HD T inverse_deviation(const Node& node, T variance) {
  return T(1) / sqrt(variance + T(node.attribute[0]));
}

// The tangent of 1 / sqrt(var + eps), where var' = 2 covariance, the average of (x - mean) x'.
template <class T>
MF_HD T inverse_deviation_tangent(T inverse, T covariance) {
  return -inverse * inverse * inverse * covariance;
}

// Joins the mean and the sum of squared deviations of `more` rows to those of the `rows` before, by Chan, Golub and
// LeVeque's update, which unlike a sum of squares cancels nothing.
template <class T, class S>
MF_HD void join_moments(S& mean, S& squares, T rows, S mean_more, S squares_more, T more) {
  const T share = more / (rows + more);
  const S gap = mean_more - mean;
  mean += gap * share;
  squares += squares_more + gap * gap * (share * rows);
}

template <class S>
MF_HD S normalised(S x, S mean, S inverse) {
  return (x - mean) * inverse;
}

template <class S>
MF_HD S normalised(S x, S mean, S scale, S shift) {
  return (x - mean) * scale + shift;
}

// With averages over the set, which are zero if the statistics are constants; that of dy is also where no mean is subtracted.
// gamma is in the scale if it is the same for all of the set, and otherwise in dy.
template <class S>
MF_HD S normalised_input_gradient(S dy, S xhat, S scale, S mean_dy, S mean_dy_xhat) {
  return scale * (dy - mean_dy - xhat * mean_dy_xhat);
}

// The sets of a normalisation of each example by itself. A span is a stretch of rows whose groups of channels are one set
// each: one row of a value of rows, all of an image.
struct NormSets {
  int64_t positions, spans;  // rows of a span
  int32_t groups, width;     // channels of a group
  MF_HD NormSets(const Node& node, const Value& v, int64_t examples)
      : positions(v.height > 0 ? v.rows : 1),
        spans(examples * v.rows / positions),
        groups(node.groups),
        width(v.channels / node.groups) {}
  MF_HD int64_t count() const { return spans * groups; }
  MF_HD int64_t size() const { return positions * width; }
};

// A channel's parameter and its tangent, where there are such.
template <class T>
MF_HD Dual<T> channel(const T* value, const T* dot, int64_t c, T otherwise) {
  return {value ? value[c] : otherwise, dot ? dot[c] : T(0)};
}

// The winner of a window so far: the first of the greatest z, and the x it came from. A NaN wins nothing.
template <class S>
MF_HD void challenge(S x, S z, S& peak, S& best) {
  peak = z > best ? x : peak;
  best = z > best ? z : best;
}

// The output of a window whose greatest z is `best`, and its peak: NaN where the ReLU is inactive.
template <class S>
MF_HD S opened(S best) {
  return best < S{} ? S{} : best;
}
template <class T, class S>
MF_HD S peak_if_open(S peak, S best) {
  return best > S{} ? peak : S{} + T(__builtin_nan(""));
}

}  // namespace METAFAST_ISA
}  // namespace metafast
