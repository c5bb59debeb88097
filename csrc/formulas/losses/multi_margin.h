// The margin of a class: sum over c != label of max(0, margin - z_label + z_c)^p / outputs, p = 1 or 2.
#pragma once

#include "formulas/losses/classes.h"

namespace metafast {
namespace METAFAST_ISA {

template <class T>
struct MultiMarginOfRow : RowDefaults<T> {
  bool squared;
  T margin;
  METAFAST_HD explicit MultiMarginOfRow(const LossPlan& plan)
      : squared(plan.attribute[0] == 2), margin(T(plan.attribute[1])) {}
  template <class S>
  METAFAST_HD S value(const Outputs<T>& z, const Target<T>& y, const ClassWeights<T>&) const {
    S sum(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) if (c != y.label()) {
      const S gap = excess<S>(z, y, c);
      if (!(value_of(gap) <= 0)) sum += squared ? gap * gap : gap;
    }
    return sum / S(T(z.count));
  }
  template <class S, class Put>
  METAFAST_HD void gradient(const Outputs<T>& z, const Target<T>& y, const ClassWeights<T>&, Put put) const {
    S total(0);
    METAFAST_LOOP for (int64_t c = 0; c < z.count; ++c) if (c != y.label()) {
      const S gap = excess<S>(z, y, c);
      const S active = squared ? S(T(2)) * gap : S(T(1));
      const S slope = (!(value_of(gap) <= 0) ? active : S(0)) / S(T(z.count));
      total += slope;
      put(c, slope);
    }
    put(y.label(), -total);
  }
  template <class S, class Put>
  METAFAST_HD void target_gradient(const Outputs<T>&, const Target<T>&, const ClassWeights<T>&, Put) const {}

 private:
  template <class S>
  METAFAST_HD S excess(const Outputs<T>& z, const Target<T>& y, int64_t c) const {
    S zc, zy;
    z.get(c, zc), z.get(y.label(), zy);
    return S(margin) - zy + zc;
  }
};

template <class T>
using MultiMargin = Classes<T, MultiMarginOfRow<T>>;

}  // namespace METAFAST_ISA
}  // namespace metafast
