// y = A B, matrix by matrix of `batches`: A is [batches * M, K], B [batches * K, N] or, with `transposed_b`,
// [batches * N, K], and y [batches * M, N].
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct MatmulNode {
  static bool fits(const NodeCheck& c) {
    const Shape &a = c.in(0), &b = c.in(1), &y = c.out();
    c.demand(a.size() <= 2 && b.size() <= 2 && y.size() <= 2, "needs values of one or two dimensions");
    const auto rows = [](const Shape& s) { return s.size() == 2 ? s[0] : int64_t(1); };
    const int64_t batches = int64_t(c.attribute("batches", 1)), depth = a.back(), columns = y.back();
    const bool transposed = c.attribute("transposed_b", 0) != 0;
    c.demand(batches > 0 && rows(y) % batches == 0, "its batches do not fit the output");
    c.node.attribute[0] = double(batches), c.node.attribute[1] = transposed;
    return rows(a) == rows(y) && rows(b) == batches * (transposed ? columns : depth) &&
           b.back() == (transposed ? depth : columns);
  }

  static void plan(const NodePlan& p) {
    const Value &a = p.in(0), &b = p.in(1), &y = p.out();
    const int64_t examples = y.shared ? 1 : p.examples();
    p.plan.multiply_adds += double(examples * y.rows) * double(y.channels) * double(a.channels);
    if (p.for_device) return;
    const bool transposed = p.node.attribute[1] != 0;
    const int64_t room = transposed ? int64_t(a.channels) * y.ld : int64_t(y.channels) * a.ld_cotangent;
    p.scratch(room);
    if (!b.shared || p.node.attribute[0] > 1) return;  // one product of all examples' rows
    p.node.recomputes_transpose = p.second_order();
    p.node.saved = p.second_order() ? p.transient(room) : p.tape(room);
  }
};

}  // namespace metafast
