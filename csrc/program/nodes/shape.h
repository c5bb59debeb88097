// Poolings and rearrangements.
#pragma once

#include "program/index_tables.h"
#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct AdaptiveAvgPool2dNode {
  static bool fits(const NodeCheck& c) { return c.in().size() == 3 && c.out().size() == 3 && c.in()[0] == c.out()[0]; }
  static void plan(const NodePlan& p) { make_pool_windows(p.plan, p.node); }
};

struct AvgPool2dNode : AdaptiveAvgPool2dNode {
  static bool fits(const NodeCheck& c) {
    Node& node = c.node;
    c.pair("kernel", node.kernel, 1), c.pair("stride", node.stride, 1), c.pair("pad", node.pad, 0);
    c.pair("dilation", node.dilation, 1);
    node.attribute[0] = c.attribute("count_include_pad", 1);
    return AdaptiveAvgPool2dNode::fits(c);
  }
};

struct MaxPool2dNode : AvgPool2dNode {
  static void plan(const NodePlan& p) {
    p.node.saved = p.tape(p.examples() * p.out().rows * p.out().ld);
    AvgPool2dNode::plan(p);
  }
};

struct FlattenNode {
  static bool fits(const NodeCheck& c) { return c.out().size() == 1 && product(c.in()) == c.out()[0]; }
  static void plan(const NodePlan&) {}
};

}  // namespace metafast
