// Static linear maps by a table of elements, of values or of a parameter (core/plan.h, MapRun).
#pragma once

#include "program/node_check.h"
#include "program/node_plan.h"
#include "program/sparse_tables.h"

namespace metafast {

struct SparseMapNode {
  static bool fits(const NodeCheck& c) {
    int64_t sources = 0;
    for (int i = 0; i < kNodeInputs && c.node.input[i] >= 0; ++i) sources += product(c.in(i));
    return check(c, sources);
  }
  static void plan(const NodePlan& p) { make_sparse_tables(p.plan, p.node, *p.description, p.for_device); }

 protected:
  static bool check(const NodeCheck& c, int64_t sources) {
    const auto& [table, factors] = std::tie(c.description.table, c.description.factors);
    const int64_t size = product(c.out());
    c.demand(!table.empty() && int64_t(table.size()) % size == 0, "its table does not fit the output");
    c.demand(factors.empty() || factors.size() == table.size(), "its factors do not fit the table");
    for (int32_t from : table) c.demand(from >= -1 && from < sources, "its table names an element that is not there");
    return true;
  }
};

// A parameter as a value, or what a table takes of it. It fits any way in which other nodes use the parameter.
struct ParameterValueNode : SparseMapNode {
  static bool fits(const NodeCheck& c) {
    c.demand(c.node.parameter[0] >= 0, "needs a parameter");
    return check(c, product(c.parameter_shapes[size_t(c.node.parameter[0])]));
  }
};

}  // namespace metafast
