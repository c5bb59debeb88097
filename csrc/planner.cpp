// Plans of a Program for batches of examples: fusions chosen, arrays laid out, index tables made.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "program.h"

namespace metafast {
namespace {

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(std::string("invalid Program: ") + message);
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Winograd's transforms cost as much as some 20 channels' products, and odd images waste part of a tile: 3x3 outputs
// (16 * 4 multiplications for 9 * 9) ran no faster than directly.
bool prefers_winograd(const Step& s, const Value& in, const Value& out, int64_t examples, int lanes) {
  for (int i = 0; i < 2; ++i)
    if (s.kernel[i] != 3 || s.stride[i] != 1 || s.dilation[i] != 1 || s.pad[i] > 2) return false;
  const int64_t tiles = ((out.height + 1) / 2) * int64_t((out.width + 1) / 2);
  return in.ld % lanes == 0 && in.channels >= 16 && out.channels >= 16 && examples * tiles >= 48 &&
         16 * tiles < 7 * out.rows;
}

bool reads_unpadded(Op op) { return op == Op::kLinear || op == Op::kConv2d; }

bool is_pointwise(Op op) { return op >= Op::kRelu && op <= Op::kSoftplus; }

// Is the slope (functions.h) the same where the output stands for the input too?
bool slope_from_output(const Step& s) {
  const bool rises = s.attribute[0] >= 0;  // alpha, or the slope below zero
  return s.op == Op::kRelu || s.op == Op::kTanh || s.op == Op::kSigmoid ||
         ((s.op == Op::kLeakyRelu || s.op == Op::kElu) && rises);
}

// Is it constant between kinks, so that no tangent asks for the output's cotangent?
bool is_straight(Op op) { return op == Op::kRelu || op == Op::kLeakyRelu; }

}  // namespace

std::vector<ParameterPlan> Program::parameter_plans(int lanes) const {
  std::vector<ParameterPlan> plans;
  int64_t offset = 0;
  for (const ParameterInfo& p : parameters_) {
    const int64_t ld = round_up(p.outputs, lanes), size = ld * p.inputs * p.taps;
    plans.push_back({offset, size, p.outputs, p.inputs, p.taps, int32_t(ld)});
    offset += size;
  }
  return plans;
}

std::shared_ptr<const Program::Batch> Program::batch(int64_t examples, int lanes, Scope gradient, Scope tangent,
                                                     bool input_gradient, FirstLinearForm first, bool packed) const {
  return find_batch({examples, lanes, gradient, tangent, input_gradient, first, packed, false});
}

std::shared_ptr<const Program::Batch> Program::device_batch(int64_t examples, int lanes, Scope gradient, Scope tangent,
                                                            bool input_gradient) const {
  return find_batch({examples, lanes, gradient, tangent, input_gradient, FirstLinearForm::kPlain, false, true});
}

bool Program::packable() const {
  const auto flat = [](const Shape& shape) { return shape.size() == 1; };
  const auto mixes = [](const Step& s) {
    return s.op == Op::kConv2d || s.op == Op::kBatchNorm || s.op == Op::kMaxPool2d || s.op == Op::kAvgPool2d ||
           s.op == Op::kFlatten || s.op == Op::kBatchNormReluPool;
  };
  return std::all_of(values_.begin(), values_.end(), flat) && std::none_of(steps_.begin(), steps_.end(), mixes);
}

std::shared_ptr<const Program::Batch> Program::find_batch(const Key& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = batches_.find(key);
  if (found != batches_.end()) return found->second;
  if (batches_.size() >= 64) batches_.clear();  // whoever still uses one holds it
  return batches_[key] = make_batch(key);
}

std::shared_ptr<Program::Batch> Program::make_batch(const Key& key) const {
  const auto [examples_, lanes, gradient, tangent, input_gradient, first_form, packed, on_device] = key;
  const int64_t examples = examples_;  // lambdas cannot capture structured bindings
  const bool for_device = on_device, in_packs = packed;
  auto made = std::make_shared<Batch>();
  Batch& b = *made;
  b.examples = examples;
  b.output = output_;
  b.loss = loss_;
  b.parameter_list = parameter_plans(lanes);
  const auto size_of = [&](Scope scope) {
    const int count = scope == Scope::kNone ? 0 : scope == Scope::kAdapted ? adapted_count_ : learnt_count_;
    return count == 0 ? int64_t(0)
                      : b.parameter_list[size_t(count) - 1].offset + b.parameter_list[size_t(count) - 1].size;
  };
  b.adapted_size = size_of(Scope::kAdapted);
  b.gradient_size = size_of(gradient);
  b.tangent_size = size_of(tangent);
  for (size_t p = 0; p < parameters_.size(); ++p)
    b.gradient_has_gaps |= !parameters_[p].used && b.parameter_list[p].offset < b.gradient_size;

  // Shapes and leading dimensions.
  bool unpadded = true;
  for (const Step& s : steps_)
    for (int input : s.input) unpadded &= input != 0 || reads_unpadded(s.op);
  b.input_is_direct = unpadded;
  if (values_[0].size() == 3 && values_[0][0] != 1) b.input_is_direct = false;
  if (in_packs) b.input_is_direct = true;  // nothing is padded
  for (const Shape& shape : values_) {
    Value v{};
    v.channels = int32_t(shape.size() == 3 ? shape[0] : shape.back());
    v.height = int32_t(shape.size() == 3 ? shape[1] : 0);
    v.width = int32_t(shape.size() == 3 ? shape[2] : 0);
    v.rows = shape.size() == 3 ? shape[1] * shape[2] : shape.size() == 2 ? shape[0] : 1;
    v.ld = v.cold = int32_t(round_up(v.channels, lanes));
    b.value_list.push_back(v);
  }
  if (unpadded) b.value_list[0].ld = b.value_list[0].channels;

  // Which values depend on what moves, and on what wants a gradient.
  b.value_list[0].has_cotangent = input_gradient;
  for (const Step& s : steps_) {
    Value& out = b.value_list[size_t(s.output)];
    for (int input : s.input)
      if (input >= 0) {
        out.has_tangent |= b.value_list[size_t(input)].has_tangent;
        out.has_cotangent |= b.value_list[size_t(input)].has_cotangent;
      }
    for (int p : s.parameter)
      if (p >= 0) {
        out.has_tangent |= b.parameter_list[size_t(p)].offset < b.tangent_size;
        out.has_cotangent |= b.parameter_list[size_t(p)].offset < b.gradient_size;
      }
  }

  // Offsets.
  const auto take = [](int64_t& top, int64_t n) {
    const int64_t at = top;
    top += round_up(n, 16);
    return at;
  };
  // Without a tangent pass, a cotangent may overwrite its activation if the one step that reads it works in place and
  // the one that wrote it does not look at it again.
  const auto overwrites = [&](int value) {
    int readers = 0;
    bool in_place = !for_device && b.tangent_size == 0 && value != output_;
    for (const Step& s : steps_) {
      for (int input : s.input)
        if (input == value) ++readers, in_place &= s.op == Op::kBatchNormReluPool;
      if (s.output == value) in_place &= reads_unpadded(s.op);
    }
    return in_place && readers == 1 && value != 0;
  };
  // A pointwise step works in place if nobody else reads its input and the step that wrote that does not look back at it.
  const auto in_place = [&](const Step& s) {
    const int value = s.input[0];
    int readers = 0;
    bool writer_looks_back = value == 0;
    for (const Step& other : steps_) {
      for (int input : other.input) readers += input == value;
      if (other.output == value) writer_looks_back |= is_pointwise(other.op);
    }
    return !for_device && slope_from_output(s) && readers == 1 && value != output_ && !writer_looks_back;
  };
  Value& input = b.value_list[0];
  if (!b.input_is_direct) input.activation = take(b.tape_size, examples * input.rows * input.ld);
  if (input.has_cotangent) {
    input.cotangent = take(b.tape_size, examples * input.rows * input.cold);
    input.cotangent_dot = take(b.tangent_size_total, examples * input.rows * input.cold);
  }
  for (const Step& s : steps_) {
    Value& v = b.value_list[size_t(s.output)];
    const int64_t n = examples * v.rows;
    const Value* same = in_place(s) ? &b.value_list[size_t(s.input[0])] : nullptr;
    v.activation = same ? same->activation : take(b.tape_size, n * v.ld);
    if (v.has_tangent) v.activation_dot = same ? same->activation_dot : take(b.tangent_size_total, n * v.ld);
    if (!v.has_cotangent) continue;
    v.cotangent_dot = same ? same->cotangent_dot : take(b.tangent_size_total, n * v.cold);
    v.cotangent = same && is_straight(s.op) ? same->cotangent
                  : overwrites(s.output)    ? v.activation
                                            : take(b.tape_size, n * v.cold);
  }
  b.loss.saved = take(b.tape_size, examples);
  const Value& z = b.value_list[size_t(output_)];
  b.loss.kept = take(b.tape_size, examples * z.cold);
  if (in_packs) b.scratch_size = examples * (5 * z.channels + 7);  // copies of one lane, padded: LossOnLanes

  std::vector<bool> parameter_written(parameters_.size(), false), value_written(values_.size(), false);
  b.step_list = steps_;
  if (first_form != FirstLinearForm::kPlain) {
    Step& first = b.step_list[size_t(first_layer_step() - steps_.data())];
    first.op = first_form == FirstLinearForm::kByGram ? Op::kFirstLinear : Op::kGivenLinear;
  }
  for (auto s = b.step_list.rbegin(); s != b.step_list.rend(); ++s) {
    const Value& out = b.value_list[size_t(s->output)];
    for (int i = 0; i < 2; ++i) {
      const int v = s->input[i];
      s->input_mode[i] = GradientMode::kIgnore;
      if (v < 0 || !out.has_cotangent || !b.value_list[size_t(v)].has_cotangent) continue;
      s->input_mode[i] = value_written[size_t(v)] ? GradientMode::kAccumulate : GradientMode::kOverwrite;
      value_written[size_t(v)] = true;
    }
    for (int i = 0; i < 4; ++i) {
      const int p = s->parameter[i];
      s->parameter_mode[i] = GradientMode::kIgnore;
      if (p < 0 || b.parameter_list[size_t(p)].offset >= b.gradient_size) continue;
      s->parameter_mode[i] = parameter_written[size_t(p)] ? GradientMode::kAccumulate : GradientMode::kOverwrite;
      parameter_written[size_t(p)] = true;
    }
  }

  for (const Step& s : steps_) {
    if (s.op != Op::kLinear) continue;
    int readers = 0;
    for (const Step& other : steps_)
      for (int p : other.parameter) readers += p == s.parameter[0];
    b.parameter_list[size_t(s.parameter[0])].read_once = readers == 1;
  }

  for (Step& s : b.step_list) {
    if (!in_packs || s.op != Op::kRelu || !in_place(s) || s.output == output_) continue;
    Step *writer = nullptr, *reader = nullptr;
    int readers = 0;
    for (Step& other : b.step_list) {
      if (other.output == s.input[0]) writer = &other;
      for (int input : other.input)
        if (input == s.output) reader = &other, ++readers;
    }
    if (!writer || readers != 1 || writer->op != Op::kLinear || reader->op != Op::kLinear) continue;
    writer->relu_follows = reader->relu_precedes = s.merged = true;
  }

  for (Step& s : b.step_list) {
    s.bias_cancels = s.output != output_;
    for (const Step& reader : steps_)
      for (int input : reader.input)
        if (input == s.output) s.bias_cancels &= reader.training && reader.op != Op::kAvgPool2d;
    const Value &in = b.value_list[size_t(s.input[0])], &out = b.value_list[size_t(s.output)];
    switch (s.op) {
      case Op::kLinear:
        if (for_device || in_packs) break;
        b.scratch_size = std::max<int64_t>(b.scratch_size, in.ld);
        s.saved = take(b.tape_size, int64_t(out.channels) * in.cold);
        s.saved_dot = take(b.tangent_size_total, int64_t(out.channels) * in.cold);
        break;
      case Op::kConv2d: {
        if (for_device) break;
        if (prefers_winograd(s, in, out, b.examples, lanes)) {
          s.op = Op::kWinogradConv2d;
          const int64_t transformed = 16 * (int64_t(in.channels) * out.ld + int64_t(out.channels) * in.cold);
          s.saved = take(b.tape_size, transformed);
          s.saved_dot = take(b.tangent_size_total, transformed);
          b.scratch_size = std::max({b.scratch_size, winograd_scratch(in.channels, in.ld, out.ld),
                                     winograd_scratch(out.channels, out.ld, in.cold)});
          break;
        }
        make_conv_tables(b, s);
        const int64_t packed = int64_t(s.kernel[0]) * s.kernel[1] * out.channels * in.cold;
        s.saved = take(b.tape_size, packed);
        s.saved_dot = take(b.tangent_size_total, packed);
        const ConvTables& c = s.conv;
        b.scratch_size = std::max({b.scratch_size, int64_t(c.group) * c.padded_height * c.padded_width * in.ld,
                                   int64_t(c.group) * c.adjoint_height * c.adjoint_width * out.ld});
        break;
      }
      case Op::kBatchNorm:
        s.saved = take(b.tape_size, 4 * out.ld);
        s.saved_dot = take(b.tangent_size_total, 2 * out.ld);
        b.scratch_size = std::max(b.scratch_size, int64_t(4) * out.ld);
        break;
      case Op::kBatchNormReluPool:
        s.saved = take(b.tape_size, 4 * out.ld + examples * out.rows * out.ld);
        s.saved_dot = take(b.tangent_size_total, 2 * out.ld + examples * out.rows * out.ld);
        b.scratch_size = std::max(b.scratch_size, int64_t(7) * out.ld);
        break;
      case Op::kMaxPool2d: s.saved = take(b.tape_size, examples * out.rows * out.ld); [[fallthrough]];
      case Op::kAvgPool2d: make_pool_windows(b, s); break;
      default: break;
    }
  }

  b.step_count = int32_t(b.step_list.size());
  b.value_count = int32_t(b.value_list.size());
  b.steps = b.step_list.data();
  b.values = b.value_list.data();
  b.parameters = b.parameter_list.data();
  return made;
}

void Program::make_conv_tables(Batch& b, Step& s) const {
  const Value &in = b.value_list[size_t(s.input[0])], &out = b.value_list[size_t(s.output)];
  ConvTables& c = s.conv;
  // Enough pixels for tiles of full height, few enough images to stay in cache.
  c.group = int32_t(std::max<int64_t>(1, std::min<int64_t>(b.examples, 96 / std::min(out.rows, in.rows))));
  c.padded_height = in.height + 2 * s.pad[0];
  c.padded_width = in.width + 2 * s.pad[1];
  const int32_t reach_h = s.dilation[0] * (s.kernel[0] - 1), reach_w = s.dilation[1] * (s.kernel[1] - 1);
  c.adjoint_height = in.height + reach_h;
  c.adjoint_width = in.width + reach_w;
  c.adjoint_top = reach_h - s.pad[0];
  c.adjoint_left = reach_w - s.pad[1];
  require(int64_t(c.group) * c.padded_height * c.padded_width * in.ld < std::numeric_limits<int32_t>::max() &&
              int64_t(c.group) * c.adjoint_height * c.adjoint_width * out.ld < std::numeric_limits<int32_t>::max(),
          "conv2d: image too large");

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
    for (int64_t h = 0; h < s.kernel[0]; ++h)
      for (int64_t w = 0; w < s.kernel[1]; ++w)
        for (int64_t channel = 0; channel < channels; ++channel)
          table.push_back(int32_t((h * s.dilation[0] * buffer_w + w * s.dilation[1]) * ld + channel));
    return keep(std::move(table));
  };
  c.pixel = pixels(out.height, out.width, s.stride[0], s.stride[1], c.padded_height, c.padded_width, in.ld);
  c.tap = taps(c.padded_width, in.channels, in.ld);
  c.adjoint_pixel = pixels(in.height, in.width, 1, 1, c.adjoint_height, c.adjoint_width, out.ld);
  c.adjoint_tap = taps(c.adjoint_width, out.channels, out.ld);
}

void Program::make_pool_windows(Batch& b, Step& s) const {
  const Value &in = b.value_list[size_t(s.input[0])], &out = b.value_list[size_t(s.output)];
  const bool adaptive = s.training;
  if (adaptive) s.dilation[0] = s.dilation[1] = 1;
  struct Range {
    int32_t begin, end;
    double length;
  };
  const auto range = [&](int axis, int64_t position, int64_t size, int64_t positions) -> Range {
    if (adaptive) {
      const int64_t begin = position * size / positions, end = ((position + 1) * size + positions - 1) / positions;
      return {int32_t(begin), int32_t(end), double(end - begin)};
    }
    const int64_t start = position * s.stride[axis] - s.pad[axis];
    const int64_t end = start + int64_t(s.dilation[axis]) * (s.kernel[axis] - 1) + 1;
    int64_t begin = start;
    while (begin < 0) begin += s.dilation[axis];
    const int64_t clipped = std::min(end, size);
    // Padding counts towards an average, but not what ceil_mode adds beyond it.
    const double length =
        s.attribute[0] != 0 ? double(std::min(end, size + s.pad[axis]) - start) : double(clipped - begin);
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
  s.windows = b.pool_windows.back().data();
}

}  // namespace metafast
