// Two-dimensional convolution of [C, H, W].
#pragma once

#include "program/index_tables.h"
#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct Conv2dNode {
  static bool fits(const NodeCheck& c) {
    const Shape &in = c.in(), &out = c.out();
    Node& node = c.node;
    c.demand(node.parameter[0] >= 0 && in.size() == 3 && out.size() == 3, "needs a weight and images");
    const Shape& weight = c.parameter_shapes[size_t(node.parameter[0])];
    c.demand(weight.size() == 4 && weight[0] == out[0] && weight[1] == in[0], "weight does not fit");
    node.kernel[0] = int32_t(weight[2]), node.kernel[1] = int32_t(weight[3]);
    c.pair("stride", node.stride, 1), c.pair("pad", node.pad, 0), c.pair("dilation", node.dilation, 1);
    bool fits = true;
    for (int i = 0; i < 2; ++i) {
      const int64_t span = in[size_t(i) + 1] + 2 * node.pad[i] - int64_t(node.dilation[i]) * (node.kernel[i] - 1) - 1;
      fits &= span >= 0 && out[size_t(i) + 1] == span / node.stride[i] + 1;
    }
    c.use(node.parameter[0], weight[0], weight[1], weight[2] * weight[3]);
    c.use(node.parameter[1], weight[0], 1, 1);
    return fits;
  }

  static void plan(const NodePlan& p) {
    if (p.for_device) return;
    Node& node = p.node;
    const Value &in = p.in(), &out = p.out();
    if (prefers_winograd(p)) {
      node.op = Op::kWinogradConv2d;
      const int64_t transformed = 16 * (int64_t(in.channels) * out.ld + int64_t(out.channels) * in.ld_cotangent);
      node.saved = p.tape(transformed);
      node.saved_dot = p.tangent_tape(transformed);
      p.scratch(winograd_scratch(in.channels, in.ld, out.ld));
      p.scratch(winograd_scratch(out.channels, out.ld, in.ld_cotangent));
      return;
    }
    make_conv_tables(p.plan, node);
    const int64_t packed = int64_t(node.kernel[0]) * node.kernel[1] * out.channels * in.ld_cotangent;
    node.saved = p.tape(packed);
    node.saved_dot = p.tangent_tape(packed);
    const ConvTables& tables = node.conv;
    p.scratch(int64_t(tables.group) * tables.padded_height * tables.padded_width * in.ld);
    p.scratch(int64_t(tables.group) * tables.adjoint_height * tables.adjoint_width * out.ld);
  }

 private:
  // Winograd's transforms cost as much as some 20 channels' products, and odd images waste part of a tile: 3x3 outputs
  // (16 * 4 multiplications for 9 * 9) ran no faster than directly.
  static bool prefers_winograd(const NodePlan& p) {
    const Value &in = p.in(), &out = p.out();
    for (int i = 0; i < 2; ++i)
      if (p.node.kernel[i] != 3 || p.node.stride[i] != 1 || p.node.dilation[i] != 1 || p.node.pad[i] > 2) return false;
    const int64_t tiles = ((out.height + 1) / 2) * int64_t((out.width + 1) / 2);
    return in.ld % p.lanes == 0 && in.channels >= 16 && out.channels >= 16 && p.examples() * tiles >= 48 &&
           16 * tiles < 7 * out.rows;
  }
};

}  // namespace metafast
