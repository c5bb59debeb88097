// y = f(a, b), element by element of operands that broadcast: along the examples if a value is shared, along the rows if it
// has one, along the channels if it has one.
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct PairNode {
  static bool fits(const NodeCheck& c) {
    const auto rows = [](const Shape& s) { return s.size() == 3 ? s[1] * s[2] : s.size() == 2 ? s[0] : 1; };
    const auto channels = [](const Shape& s) { return s.size() == 3 ? s[0] : s.back(); };
    bool fits = true;
    for (int i = 0; i < 2; ++i) {
      const Shape &in = c.in(i), &out = c.out();
      fits &= rows(in) == 1 || (rows(in) == rows(out) && (in.size() == 3) == (out.size() == 3));
      fits &= channels(in) == 1 || channels(in) == channels(out);
    }
    return fits && (rows(c.in(0)) == rows(c.out()) || rows(c.in(1)) == rows(c.out())) &&
           (channels(c.in(0)) == channels(c.out()) || channels(c.in(1)) == channels(c.out()));
  }
  static void plan(const NodePlan& p) { p.scratch(std::max<int64_t>(p.out().ld, 256)); }
};

}  // namespace metafast
