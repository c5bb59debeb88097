// Two-dimensional convolution of [C, H, W].
#pragma once

#include "program/index_tables.h"
#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

struct Conv2dNode {
  static bool fits(const NodeCheck& c) {
    const Shape &in = c.in(), &out = c.out();
    Step& s = c.s;
    c.demand(s.parameter[0] >= 0 && in.size() == 3 && out.size() == 3, "needs a weight and images");
    const Shape& weight = c.parameter_shapes[size_t(s.parameter[0])];
    c.demand(weight.size() == 4 && weight[0] == out[0] && weight[1] == in[0], "weight does not fit");
    s.kernel[0] = int32_t(weight[2]), s.kernel[1] = int32_t(weight[3]);
    c.pair("stride", s.stride, 1), c.pair("pad", s.pad, 0), c.pair("dilation", s.dilation, 1);
    bool fits = true;
    for (int i = 0; i < 2; ++i) {
      const int64_t span = in[size_t(i) + 1] + 2 * s.pad[i] - int64_t(s.dilation[i]) * (s.kernel[i] - 1) - 1;
      fits &= span >= 0 && out[size_t(i) + 1] == span / s.stride[i] + 1;
    }
    c.use(s.parameter[0], weight[0], weight[1], weight[2] * weight[3]);
    c.use(s.parameter[1], weight[0], 1, 1);
    return fits;
  }

  static void plan(const NodePlan& p) {
    if (p.for_device) return;
    Step& s = p.s;
    const Value &in = p.in(), &out = p.out();
    if (prefers_winograd(p)) {
      s.op = Op::kWinogradConv2d;
      const int64_t transformed = 16 * (int64_t(in.channels) * out.ld + int64_t(out.channels) * in.cold);
      s.saved = p.tape(transformed);
      s.saved_dot = p.tangent_tape(transformed);
      p.scratch(winograd_scratch(in.channels, in.ld, out.ld));
      p.scratch(winograd_scratch(out.channels, out.ld, in.cold));
      return;
    }
    make_conv_tables(p.batch, s);
    const int64_t packed = int64_t(s.kernel[0]) * s.kernel[1] * out.channels * in.cold;
    s.saved = p.tape(packed);
    s.saved_dot = p.tangent_tape(packed);
    const ConvTables& tables = s.conv;
    p.scratch(int64_t(tables.group) * tables.padded_height * tables.padded_width * in.ld);
    p.scratch(int64_t(tables.group) * tables.adjoint_height * tables.adjoint_width * out.ld);
  }

 private:
  // Winograd's transforms cost as much as some 20 channels' products, and odd images waste part of a tile: 3x3 outputs
  // (16 * 4 multiplications for 9 * 9) ran no faster than directly.
  static bool prefers_winograd(const NodePlan& p) {
    const Value &in = p.in(), &out = p.out();
    for (int i = 0; i < 2; ++i)
      if (p.s.kernel[i] != 3 || p.s.stride[i] != 1 || p.s.dilation[i] != 1 || p.s.pad[i] > 2) return false;
    const int64_t tiles = ((out.height + 1) / 2) * int64_t((out.width + 1) / 2);
    return in.ld % p.lanes == 0 && in.channels >= 16 && out.channels >= 16 && p.examples() * tiles >= 48 &&
           16 * tiles < 7 * out.rows;
  }
};

}  // namespace metafast
