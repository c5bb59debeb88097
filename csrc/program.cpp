#include "program.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace metafast {
namespace {

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument("invalid Program: " + message); }
void require(bool condition, const std::string& message) {
  if (!condition) fail(message);
}

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

int64_t product(const Shape& shape) {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

struct OpInfo {
  const char* name;
  Op op;
  int inputs, parameters;
};
const OpInfo kOps[] = {
    {"linear", Op::kLinear, 1, 2},
    {"conv2d", Op::kConv2d, 1, 2},
    {"batch_norm", Op::kBatchNorm, 1, 4},
    {"relu", Op::kRelu, 1, 0},
    {"leaky_relu", Op::kLeakyRelu, 1, 0},
    {"elu", Op::kElu, 1, 0},
    {"silu", Op::kSilu, 1, 0},
    {"gelu", Op::kGelu, 1, 0},
    {"gelu_tanh", Op::kGeluTanh, 1, 0},
    {"tanh", Op::kTanh, 1, 0},
    {"sigmoid", Op::kSigmoid, 1, 0},
    {"softplus", Op::kSoftplus, 1, 0},
    {"max_pool2d", Op::kMaxPool2d, 1, 0},
    {"avg_pool2d", Op::kAvgPool2d, 1, 0},
    {"adaptive_avg_pool2d", Op::kAvgPool2d, 1, 0},
    {"flatten", Op::kFlatten, 1, 0},
    {"add", Op::kAdd, 2, 0},
};

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

}  // namespace

Program::Program(std::vector<Shape> values, const std::vector<std::pair<Shape, Role>>& parameters,
                 const std::vector<StepDescription>& steps, const std::string& loss,
                 const std::map<std::string, double>& loss_attributes)
    : values_(std::move(values)) {
  require(!values_.empty(), "no values");
  for (const Shape& shape : values_) {
    require(shape.size() >= 1 && shape.size() <= 3,
            "a value has " + std::to_string(shape.size()) + " dimensions, not 1 to 3");
    for (int64_t d : shape) require(d > 0 && d < (int64_t(1) << 31), "a value has an empty dimension");
    require(product(shape) < (int64_t(1) << 31), "a value is too large");
  }
  stored_at_.resize(parameters.size());
  for (Role role : {Role::kAdapted, Role::kMeta, Role::kConstant}) {
    for (size_t i = 0; i < parameters.size(); ++i)
      if (parameters[i].second == role) {
        stored_at_[i] = int(parameters_.size());
        const int64_t n = product(parameters[i].first);
        require(n > 0 && n < (int64_t(1) << 31), "parameter " + std::to_string(i) + " is empty or too large");
        parameters_.push_back({n, int32_t(n), 1, 1, false});
        parameter_shapes_.push_back(parameters[i].first);
      }
    if (role == Role::kAdapted) adapted_count_ = int(parameters_.size());
    if (role == Role::kMeta) learnt_count_ = int(parameters_.size());
  }
  for (const StepDescription& step : steps) add_step(step);
  output_ = steps.empty() ? 0 : steps.back().output;

  const std::pair<const char*, LossKind> kinds[] = {
      {"", LossKind::kNone},       {"cross_entropy", LossKind::kCrossEntropy},
      {"mse", LossKind::kMse},     {"bce_with_logits", LossKind::kBceWithLogits},
      {"huber", LossKind::kHuber}, {"multi_margin", LossKind::kMultiMargin}};
  bool known = false;
  for (const auto& kind : kinds)
    if (loss == kind.first) loss_.kind = kind.second, known = true;
  require(known, "unknown loss " + loss);
  const char* names[][2] = {{"label_smoothing", ""}, {"delta", ""}, {"p", "margin"}};
  const auto& name = names[loss_.kind == LossKind::kCrossEntropy ? 0 : loss_.kind == LossKind::kHuber ? 1 : 2];
  for (int i = 0; i < 2; ++i) {
    const auto found = loss_attributes.find(name[i]);
    if (found != loss_attributes.end()) loss_.attribute[i] = found->second;
  }
  drop_dead_steps();
  drop_leading_flatten();
  fuse_norm_pools();
}

void Program::use_parameter(int parameter, int64_t outputs, int64_t inputs, int64_t taps, const std::string& where) {
  if (parameter < 0) return;
  ParameterInfo& info = parameters_[size_t(parameter)];
  require(info.numel == outputs * inputs * taps, where + ": a parameter has the wrong size");
  require(!info.used || (info.outputs == outputs && info.inputs == inputs && info.taps == taps),
          where + ": a tied parameter is used in two different layouts");
  info = {info.numel, int32_t(outputs), int32_t(inputs), int32_t(taps), true};
}

void Program::add_step(const StepDescription& d) {
  const OpInfo* info = nullptr;
  for (const OpInfo& candidate : kOps)
    if (d.op == candidate.name) info = &candidate;
  require(info, "unknown op " + d.op);
  const int count = int(values_.size());
  require(int(d.inputs.size()) == info->inputs, d.op + ": wrong number of inputs");
  require(d.output > 0 && d.output < count, d.op + ": output out of range");
  Step s{};
  s.op = info->op;
  s.output = d.output;
  s.input[0] = s.input[1] = -1;
  for (size_t i = 0; i < d.inputs.size(); ++i) {
    bool written = d.inputs[i] == 0;
    for (const Step& earlier : steps_) written |= earlier.output == d.inputs[i];
    require(written, d.op + ": reads a value that no earlier step writes");
    s.input[i] = d.inputs[i];
  }
  for (const Step& earlier : steps_) require(earlier.output != d.output, d.op + ": writes a value twice");
  require(int(d.parameters.size()) <= info->parameters, d.op + ": too many parameters");
  for (int i = 0; i < 4; ++i) s.parameter[i] = -1;
  for (size_t i = 0; i < d.parameters.size(); ++i) {
    require(d.parameters[i] >= -1 && d.parameters[i] < int(parameters_.size()), d.op + ": parameter out of range");
    if (d.parameters[i] >= 0) s.parameter[i] = stored_at_[size_t(d.parameters[i])];
  }
  const auto attribute = [&](const char* name, double otherwise) {
    const auto found = d.attributes.find(name);
    return found == d.attributes.end() ? otherwise : found->second;
  };
  const auto pair = [&](const char* name, int32_t* out, double otherwise) {
    out[0] = int32_t(attribute((std::string(name) + "_h").c_str(), otherwise));
    out[1] = int32_t(attribute((std::string(name) + "_w").c_str(), otherwise));
    require(out[0] >= (otherwise > 0) && out[1] >= (otherwise > 0) && out[0] < 65536 && out[1] < 65536,
            d.op + ": " + name + " out of range");
  };

  const Shape &in = values_[size_t(d.inputs[0])], &out = values_[size_t(d.output)];
  bool fits = false;
  switch (s.op) {
    case Op::kLinear:
      require(s.parameter[0] >= 0 && in.size() <= 2, "linear: needs a weight and inputs of one or two dimensions");
      fits = in.size() == out.size() && (in.size() == 1 || in[0] == out[0]);
      use_parameter(s.parameter[0], out.back(), in.back(), 1, d.op);
      use_parameter(s.parameter[1], out.back(), 1, 1, d.op);
      break;
    case Op::kConv2d: {
      require(s.parameter[0] >= 0 && in.size() == 3 && out.size() == 3, "conv2d: needs a weight and images");
      const Shape& weight = parameter_shapes_[size_t(s.parameter[0])];
      require(weight.size() == 4 && weight[0] == out[0] && weight[1] == in[0], "conv2d: weight does not fit");
      s.kernel[0] = int32_t(weight[2]), s.kernel[1] = int32_t(weight[3]);
      pair("stride", s.stride, 1), pair("pad", s.pad, 0), pair("dilation", s.dilation, 1);
      fits = true;
      for (int i = 0; i < 2; ++i) {
        const int64_t span = in[size_t(i) + 1] + 2 * s.pad[i] - int64_t(s.dilation[i]) * (s.kernel[i] - 1) - 1;
        fits &= span >= 0 && out[size_t(i) + 1] == span / s.stride[i] + 1;
      }
      use_parameter(s.parameter[0], weight[0], weight[1], weight[2] * weight[3], d.op);
      use_parameter(s.parameter[1], weight[0], 1, 1, d.op);
      break;
    }
    case Op::kBatchNorm: {
      fits = in == out && in.size() != 2;
      const int64_t channels = in[0];
      for (int i = 0; i < 4; ++i) use_parameter(s.parameter[i], channels, 1, 1, d.op);
      s.attribute[0] = attribute("eps", 1e-5);
      s.training = attribute("training", 1) != 0;
      require(s.training || (s.parameter[2] >= learnt_count_ && s.parameter[3] >= learnt_count_),
              "batch_norm: evaluation needs constant running statistics");
      break;
    }
    case Op::kMaxPool2d:
    case Op::kAvgPool2d: {
      fits = in.size() == 3 && out.size() == 3 && in[0] == out[0];
      s.training = d.op == "adaptive_avg_pool2d";  // here: windows follow from the output's shape
      if (s.training) break;
      pair("kernel", s.kernel, 1), pair("stride", s.stride, 1), pair("pad", s.pad, 0), pair("dilation", s.dilation, 1);
      s.attribute[0] = attribute("count_include_pad", 1);
      break;
    }
    case Op::kFlatten: fits = out.size() == 1 && product(in) == out[0]; break;
    case Op::kAdd: fits = in == out && values_[size_t(d.inputs[1])] == out; break;
    case Op::kLeakyRelu: fits = in == out, s.attribute[0] = attribute("slope", 0.01); break;
    case Op::kElu: fits = in == out, s.attribute[0] = attribute("alpha", 1); break;
    case Op::kSoftplus:
      fits = in == out, s.attribute[0] = attribute("beta", 1), s.attribute[1] = attribute("threshold", 20);
      break;
    default: fits = in == out; break;
  }
  require(fits, d.op + ": shapes do not fit together");
  steps_.push_back(s);
}

void Program::drop_dead_steps() {
  std::vector<bool> live(values_.size(), false);
  live[size_t(output_)] = true;
  std::vector<Step> kept;
  for (auto s = steps_.rbegin(); s != steps_.rend(); ++s) {
    if (!live[size_t(s->output)]) continue;
    for (int input : s->input)
      if (input >= 0) live[size_t(input)] = true;
    kept.push_back(*s);
  }
  std::reverse(kept.begin(), kept.end());
  steps_ = kept;
  for (ParameterInfo& p : parameters_) p.used = false;
  for (const Step& s : steps_)
    for (int p : s.parameter)
      if (p >= 0) parameters_[size_t(p)].used = true;
}

// The user's memory already is the flattened input, whatever its shape.
void Program::drop_leading_flatten() {
  if (steps_.empty() || steps_[0].op != Op::kFlatten || steps_[0].input[0] != 0) return;
  for (size_t i = 1; i < steps_.size(); ++i)
    if (steps_[i].input[0] == 0 || steps_[i].input[1] == 0) return;
  const int flat = steps_[0].output;
  values_[0] = values_[size_t(flat)];
  steps_.erase(steps_.begin());
  for (Step& s : steps_)
    for (int& input : s.input)
      if (input == flat) input = 0;
  if (output_ == flat) output_ = 0;
}

// BatchNorm on batch statistics, ReLU and 2x2 max-pooling in a row, where nobody else reads what lies between.
void Program::fuse_norm_pools() {
  const auto only_reader = [&](const Step& from, const Step& to) {
    int readers = from.output == output_;
    for (const Step& s : steps_)
      for (int input : s.input) readers += input == from.output;
    return readers == 1 && to.input[0] == from.output;
  };
  for (size_t i = 0; i + 2 < steps_.size(); ++i) {
    Step &norm = steps_[i], &relu = steps_[i + 1], &pool = steps_[i + 2];
    if (norm.op != Op::kBatchNorm || !norm.training || relu.op != Op::kRelu || pool.op != Op::kMaxPool2d) continue;
    if (!only_reader(norm, relu) || !only_reader(relu, pool)) continue;
    const Shape &in = values_[size_t(pool.input[0])], &out = values_[size_t(pool.output)];
    bool halves = true;
    for (int axis = 0; axis < 2; ++axis)
      halves &= pool.kernel[axis] == 2 && pool.stride[axis] == 2 && pool.pad[axis] == 0 && pool.dilation[axis] == 1 &&
                out[size_t(axis) + 1] == in[size_t(axis) + 1] / 2;
    if (!halves) continue;
    norm.op = Op::kBatchNormReluPool;
    norm.output = pool.output;
    steps_.erase(steps_.begin() + int64_t(i) + 1, steps_.begin() + int64_t(i) + 3);
  }
}

int64_t Program::input_size() const { return product(values_[0]); }
int64_t Program::output_size() const { return product(values_[size_t(output_)]); }

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
                                                     bool input_gradient, bool first_layer) const {
  const Key key{examples, lanes, gradient, tangent, input_gradient, first_layer};
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = batches_.find(key);
  if (found != batches_.end()) return found->second;
  if (batches_.size() >= 64) batches_.clear();  // whoever still uses one holds it
  return batches_[key] = make_batch(examples, lanes, gradient, tangent, input_gradient, first_layer);
}

const Step* Program::first_layer_step() const {
  const Step* found = nullptr;
  for (const Step& s : steps_)
    if (s.input[0] == 0 || s.input[1] == 0) {
      if (found || s.op != Op::kLinear || s.parameter[0] >= adapted_count_) return nullptr;
      found = &s;
    }
  if (!found) return nullptr;
  for (const Step& s : steps_)
    for (int i = 0; i < 4; ++i)
      if (s.parameter[i] == found->parameter[0] && !(&s == found && i == 0)) return nullptr;
  return found;
}

std::shared_ptr<Program::Batch> Program::make_batch(int64_t examples, int lanes, Scope gradient, Scope tangent,
                                                    bool input_gradient, bool first_layer) const {
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
    bool in_place = b.tangent_size == 0 && value != output_;
    for (const Step& s : steps_) {
      for (int input : s.input)
        if (input == value) ++readers, in_place &= s.op == Op::kBatchNormReluPool;
      if (s.output == value) in_place &= reads_unpadded(s.op);
    }
    return in_place && readers == 1 && value != 0;
  };
  for (size_t i = 0; i < b.value_list.size(); ++i) {
    Value& v = b.value_list[i];
    const bool live =
        i == 0 || std::any_of(steps_.begin(), steps_.end(), [&](const Step& s) { return s.output == int(i); });
    if (!live) continue;
    const int64_t n = examples * v.rows;
    if (i > 0 || !b.input_is_direct) v.activation = take(b.tape_size, n * v.ld);
    if (v.has_cotangent) v.cotangent = overwrites(int(i)) ? v.activation : take(b.tape_size, n * v.cold);
    if (v.has_tangent) v.activation_dot = take(b.tangent_size_total, n * v.ld);
    if (v.has_cotangent) v.cotangent_dot = take(b.tangent_size_total, n * v.cold);
  }
  b.loss.saved = take(b.tape_size, examples);
  b.loss.kept = take(b.tape_size, examples * b.value_list[size_t(output_)].cold);

  std::vector<bool> parameter_written(parameters_.size(), false), value_written(values_.size(), false);
  b.step_list = steps_;
  if (first_layer) {
    Step& first = b.step_list[size_t(first_layer_step() - steps_.data())];
    first.op = Op::kFirstLinear;
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

  for (Step& s : b.step_list) {
    s.bias_cancels = s.output != output_;
    for (const Step& reader : steps_)
      for (int input : reader.input)
        if (input == s.output) s.bias_cancels &= reader.training && reader.op != Op::kAvgPool2d;
    const Value &in = b.value_list[size_t(s.input[0])], &out = b.value_list[size_t(s.output)];
    switch (s.op) {
      case Op::kLinear:
        s.saved = take(b.tape_size, int64_t(out.channels) * in.cold);
        s.saved_dot = take(b.tangent_size_total, int64_t(out.channels) * in.cold);
        break;
      case Op::kConv2d: {
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
