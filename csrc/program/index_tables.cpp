#include "program/index_tables.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "program/primitives.h"

namespace metafast {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("invalid Program: ") + message);
}

}  // namespace

void size_conv_buffers(Node& node, const Value& in) {
  ConvTables& c = node.conv;
  c.padded_height = in.height + 2 * node.pad[0];
  c.padded_width = in.width + 2 * node.pad[1];
  const int32_t reach_h = node.dilation[0] * (node.kernel[0] - 1), reach_w = node.dilation[1] * (node.kernel[1] - 1);
  c.adjoint_height = in.height + reach_h;
  c.adjoint_width = in.width + reach_w;
  c.adjoint_top = reach_h - node.pad[0];
  c.adjoint_left = reach_w - node.pad[1];
}

void make_conv_tables(Program::Plan& b, Node& node, const Value& in, const Value& out, int64_t groups) {
  size_conv_buffers(node, in);
  ConvTables& c = node.conv;
  // Enough pixels for tiles of full height, few enough images to stay in cache.
  c.group = int32_t(std::max<int64_t>(1, std::min<int64_t>(b.examples, 96 / std::min(out.rows, in.rows))));
  require(int64_t(c.group) * c.padded_height * c.padded_width * in.ld < std::numeric_limits<int32_t>::max() &&
              int64_t(c.group) * c.adjoint_height * c.adjoint_width * out.ld < std::numeric_limits<int32_t>::max(),
          "convolution: image too large");

  const auto keep = [&](std::vector<int32_t> table) {
    b.tables.push_back(std::move(table));
    return b.tables.back().data();
  };
  const auto pixels = [&](int64_t height, int64_t width, int64_t stride_h, int64_t stride_w, int64_t buffer_h,
                          int64_t buffer_w, int64_t ld) {
    std::vector<int32_t> table;
    for (int64_t image = 0; image < c.group; ++image)
      for (int64_t h = 0; h < height; ++h)
        for (int64_t w = 0; w < width; ++w)
          table.push_back(int32_t(((image * buffer_h + h * stride_h) * buffer_w + w * stride_w) * ld));
    return keep(std::move(table));
  };
  const auto taps = [&](int64_t buffer_w, int64_t channels, int64_t ld) {
    std::vector<int32_t> table;
    for (int64_t h = 0; h < node.kernel[0]; ++h)
      for (int64_t w = 0; w < node.kernel[1]; ++w)
        for (int64_t channel = 0; channel < channels; ++channel)
          table.push_back(int32_t((h * node.dilation[0] * buffer_w + w * node.dilation[1]) * ld + channel));
    return keep(std::move(table));
  };
  c.pixel = pixels(out.height, out.width, node.stride[0], node.stride[1], c.padded_height, c.padded_width, in.ld);
  c.tap = taps(c.padded_width, in.channels / groups, in.ld);
  c.adjoint_pixel = pixels(in.height, in.width, 1, 1, c.adjoint_height, c.adjoint_width, out.ld);
  c.adjoint_tap = taps(c.adjoint_width, out.channels / groups, out.ld);
}

void make_pool_windows(Program::Plan& b, Node& node) {
  const Value &in = b.value_list[size_t(node.input[0])], &out = b.value_list[size_t(node.output)];
  const bool adaptive = node.op == Op::kAdaptiveAvgPool2d;
  if (adaptive) node.dilation[0] = node.dilation[1] = 1;
  struct Range {
    int32_t begin, end;
    double length;
  };
  const auto range = [&](int axis, int64_t position, int64_t size, int64_t positions) -> Range {
    if (adaptive) {
      const int64_t begin = position * size / positions, end = ((position + 1) * size + positions - 1) / positions;
      return {int32_t(begin), int32_t(end), double(end - begin)};
    }
    const int64_t start = position * node.stride[axis] - node.pad[axis];
    const int64_t end = start + int64_t(node.dilation[axis]) * (node.kernel[axis] - 1) + 1;
    int64_t begin = start;
    while (begin < 0) begin += node.dilation[axis];
    const int64_t clipped = std::min(end, size);
    // Padding counts towards an average, but not what ceil_mode adds beyond it.
    const double length =
        node.attribute[0] != 0 ? double(std::min(end, size + node.pad[axis]) - start) : double(clipped - begin);
    require(begin < clipped, "pooling: a window lies outside the input");
    return {int32_t(begin), int32_t(clipped), length};
  };
  std::vector<PoolWindow> windows;
  for (int32_t h = 0; h < out.height; ++h)
    for (int32_t w = 0; w < out.width; ++w) {
      const Range rows = range(0, h, in.height, out.height), columns = range(1, w, in.width, out.width);
      windows.push_back({rows.begin, rows.end, columns.begin, columns.end, rows.length * columns.length});
    }
  b.pool_windows.push_back(std::move(windows));
  node.windows = b.pool_windows.back().data();
}

}  // namespace metafast
