// Two-dimensional convolution of [C, H, W], in groups or not, and the transposed convolution. A weight of three axes is one
// of height 1.
#pragma once

#include "program/index_tables.h"
#include "program/node_check.h"
#include "program/node_plan.h"

namespace metafast {

// A convolution from images of the shape of `large` to those of `small`; a transposed one leads back.
struct ConvFit {
  // Whether a weight [small channels, large ones of a group, kernel] and the settings fit. Of a transposed convolution the
  // settings do not say how large its result is: it only must reach so far that nothing is cut off.
  static bool fits(const NodeCheck& c, const Shape& large, const Shape& small, bool transposed) {
    Node& node = c.node;
    c.demand(node.parameter[0] >= 0 && large.size() == 3 && small.size() == 3, "needs a weight and images");
    const Shape& weight = c.parameter_shapes[size_t(node.parameter[0])];
    c.demand((weight.size() == 3 || weight.size() == 4) && weight[0] == small[0] && large[0] % weight[1] == 0 &&
                 small[0] % (large[0] / weight[1]) == 0,
             "weight does not fit");
    node.kernel[0] = weight.size() == 4 ? int32_t(weight[2]) : 1, node.kernel[1] = int32_t(weight.back());
    c.pair("stride", node.stride, 1), c.pair("pad", node.pad, 0), c.pair("dilation", node.dilation, 1);
    bool fits = true;
    for (int i = 0; i < 2; ++i) {
      const int64_t span =
          large[size_t(i) + 1] + 2 * node.pad[i] - int64_t(node.dilation[i]) * (node.kernel[i] - 1) - 1;
      const int64_t last = (small[size_t(i) + 1] - 1) * node.stride[i];
      fits &= span >= last && (transposed || span < last + node.stride[i]);
    }
    c.use(node.parameter[0], weight[0], weight[1], int64_t(node.kernel[0]) * node.kernel[1]);
    c.use(node.parameter[1], c.out()[0], 1, 1);
    return fits;
  }

  static int64_t groups(const NodePlan& p, const Value& large) { return large.channels / p.weight().inputs; }

  // Whether groups are done element by element, and not as products: on the CPU those that are not whole vectors.
  static bool by_elements(const NodePlan& p, const Value& large, const Value& small) {
    const int64_t n = groups(p, large);
    return n > 1 && (p.for_device || large.channels / n % p.lanes != 0 || small.channels / n % p.lanes != 0);
  }

  // Buffers, tables for products, and the elements of W as the adjoint takes it.
  static int64_t plan(const NodePlan& p, const Value& large, const Value& small) {
    Node& node = p.node;
    const int64_t n = groups(p, large);
    const bool by_elements = ConvFit::by_elements(p, large, small);
    if (by_elements)
      size_conv_buffers(node, large);
    else
      make_conv_tables(p.plan, node, large, small, n);
    const ConvTables& c = node.conv;
    const int64_t padded = int64_t(c.padded_height) * c.padded_width;
    p.scratch(by_elements ? padded * small.ld_cotangent : c.group * padded * large.ld);
    return int64_t(node.kernel[0]) * node.kernel[1] * (small.channels / n) * large.ld_cotangent;
  }
  // The buffers of the adjoint, and what stands behind them.
  static void plan_adjoint(const NodePlan& p, const Value& large, const Value& small, int64_t behind) {
    ConvTables& c = p.node.conv;
    c.adjoint_columns = int32_t(adjoint_columns(p, large));
    if (c.adjoint_columns) return p.scratch(c.group * small.rows * c.adjoint_columns + p.lanes + behind);
    const int64_t size = int64_t(c.adjoint_height) * c.adjoint_width;
    p.scratch((by_elements(p, large, small) ? size * large.ld_cotangent : c.group * size * small.ld) + behind);
  }

 private:
  // Few channels fill a part of a vector, and so do the columns of the adjoint's product, for each tap.
  static int64_t adjoint_columns(const NodePlan& p, const Value& large) {
    const int64_t taps = int64_t(p.node.kernel[0]) * p.node.kernel[1];
    const int64_t columns = (taps * large.channels + p.lanes - 1) / p.lanes * p.lanes;
    const bool pays = !p.for_device && groups(p, large) == 1 && p.node.stride[0] == 1 && p.node.stride[1] == 1 &&
                      large.ld_cotangent == p.lanes && 2 * columns <= taps * p.lanes;
    return pays ? columns : 0;
  }
};

struct Conv2dNode {
  static bool fits(const NodeCheck& c) { return ConvFit::fits(c, c.in(), c.out(), false); }

  static void plan(const NodePlan& p) {
    Node& node = p.node;
    const Value &in = p.in(), &out = p.out();
    if (ConvFit::by_elements(p, in, out)) node.op = Op::kGroupedConv2d;
    if (p.for_device) return;
    if (ConvFit::groups(p, in) == 1 && prefers_winograd(p)) {
      node.op = Op::kWinogradConv2d;
      const int64_t transformed = 16 * (int64_t(in.channels) * out.ld + int64_t(out.channels) * in.ld_cotangent);
      node.saved = p.tape(transformed);
      node.saved_dot = p.tangent_tape(transformed);
      p.scratch(winograd_scratch(in.channels, in.ld, out.ld));
      p.scratch(winograd_scratch(out.channels, out.ld, in.ld_cotangent));
      return;
    }
    const int64_t flipped = ConvFit::plan(p, in, out);
    node.saved = p.tape(flipped);
    node.saved_dot = p.tangent_tape(flipped);
    ConvFit::plan_adjoint(p, in, out, 0);
  }

 private:
  // Winograd's transforms cost as much as some 20 channels' products, and odd images waste part of a tile: 3x3 outputs
  // (16 * 4 multiplications for 9 * 9) ran no faster than directly.
  static bool prefers_winograd(const NodePlan& p) {
    const Value &in = p.in(), &out = p.out();
    for (int i = 0; i < 2; ++i)
      if (p.node.kernel[i] != 3 || p.node.stride[i] != 1 || p.node.dilation[i] != 1 || p.node.pad[i] > 2) return false;
    const int64_t tiles = ((out.height + 1) / 2) * int64_t((out.width + 1) / 2);
    return in.ld % p.lanes == 0 && in.channels >= 16 && out.channels >= 16 && p.examples() * tiles >= 20 &&
           16 * tiles < 7 * out.rows;
  }
};

struct ConvTranspose2dNode {
  static bool fits(const NodeCheck& c) { return ConvFit::fits(c, c.out(), c.in(), true); }

  static void plan(const NodePlan& p) {
    if (ConvFit::by_elements(p, p.out(), p.in())) p.node.op = Op::kGroupedConvTranspose2d;
    if (p.for_device) return;
    const int64_t flipped = ConvFit::plan(p, p.out(), p.in());
    ConvFit::plan_adjoint(p, p.out(), p.in(), flipped);
  }
};

}  // namespace metafast
