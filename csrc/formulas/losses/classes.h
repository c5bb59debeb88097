// Losses of a class among the channels of each row, such as a pixel. An example's loss is the mean over its rows, or the
// sum; rows of the class that is ignored count nothing, and weights of classes count in the divisor too. Row states, for
// one row with the weights,
//   value, gradient, target_gradient, as formulas/losses/loss.h says
//   ignore(z)                 what forward leaves to the later passes
//   ignored_gradient(z, g)    zeros, or NaN where torch has it
#pragma once

#include "formulas/losses/loss.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct ClassWeights {
  const double* of_class;  // null: all 1
  METAFAST_HD T operator[](int64_t c) const { return of_class ? T(of_class[c]) : T(1); }
};

// For rows of which nothing is seen where they are ignored.
template <class T>
struct RowDefaults {
  METAFAST_HD void ignore(const Outputs<T>&) const {}
  template <class S, class Put>
  METAFAST_HD void ignored_gradient(const Outputs<T>&, Put) const {}
};

template <class T, class Row>
struct Classes {
  static constexpr bool kHasMass = true;
  Row row;
  ClassWeights<T> weights;
  int64_t ignored;
  bool sums;
  METAFAST_HD explicit Classes(const LossPlan& plan)
      : row(plan), weights{plan.class_weights}, ignored(plan.ignored), sums(plan.sums) {}

  METAFAST_HD bool fits(const Outputs<T>& z, const Target<T>& y) const {
    bool all = true;
    if (!y.labels) return all;
    METAFAST_LOOP for (int64_t r = 0; r < z.rows; ++r) {
      const int64_t label = y.labels[r];
      all &= label == ignored || (label >= 0 && label < z.channels);
    }
    return all;
  }
  METAFAST_HD T mass(const Outputs<T>& z, const Target<T>& y) const {
    if (!y.labels) return sums ? T(z.rows) : T(1);
    T sum = T(0);
    METAFAST_LOOP for (int64_t r = 0; r < z.rows; ++r) {
      if (counts(y, r)) sum += weights[y.labels[r]];
    }
    return sum / divisor(z);
  }
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y) const {
    S sum(0);
    METAFAST_LOOP for (int64_t r = 0; r < z.rows; ++r) {
      if (counts(y, r))
        sum += row.template value<S>(z.row(r), y.row(r), weights);
      else
        row.ignore(z.row(r));
    }
    return sum / S(divisor(z));
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    const S share(T(1) / divisor(z));
    METAFAST_LOOP for (int64_t r = 0; r < z.rows; ++r) {
      const auto put_row = [&](int64_t c, S g) { put(r * z.channels + c, share * g); };
      if (counts(y, r))
        row.template gradient<S>(z.row(r), y.row(r), weights, put_row);
      else
        row.template ignored_gradient<S>(z.row(r), put_row);
    }
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>& z, const Target<T>& y, Put put) const {
    const S share(T(1) / divisor(z));
    METAFAST_LOOP for (int64_t r = 0; r < z.rows; ++r) {
      const auto put_row = [&](int64_t c, S g) { put(r * z.channels + c, share * g); };
      row.template target_gradient<S>(z.row(r), y.row(r), weights, put_row);
    }
  }

 private:
  METAFAST_HD bool counts(const Target<T>& y, int64_t r) const { return !y.labels || y.labels[r] != ignored; }
  METAFAST_HD T divisor(const Outputs<T>& z) const { return sums ? T(1) : T(z.rows); }
};

}  // namespace METAFAST_ISA
}  // namespace metafast
