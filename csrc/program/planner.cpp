// Plans of a Program for batches of examples: fusions chosen, arrays laid out.
#include <algorithm>

#include "formulas/losses/list.h"
#include "program/nodes.h"

namespace metafast {
namespace {

int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Does it work in place: is its slope (formulas/functions) the same where the output stands for the input too?
bool slope_from_output(const Step& s) {
  return has(s.op, kSlopeFromOutput) || (has(s.op, kSlopeFromRising) && s.attribute[0] >= 0);
}

}  // namespace

std::vector<ParameterPlan> Program::parameter_plans(int lanes, bool rows) const {
  std::vector<ParameterPlan> plans;
  int64_t offset = 0;
  for (const ParameterInfo& p : parameters_) {
    const bool row = rows && p.row;
    const int32_t outputs = row ? p.inputs : p.outputs, inputs = row ? 1 : p.inputs;
    const int64_t ld = round_up(outputs, lanes), size = ld * inputs * p.taps;
    plans.push_back({offset, size, outputs, inputs, p.taps, int32_t(ld)});
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
  const auto allowed = [](const Step& s) { return has(s.op, kPackable); };
  return std::all_of(values_.begin(), values_.end(), flat) && std::all_of(steps_.begin(), steps_.end(), allowed);
}

// Makes one Batch, in stages of which each reads what those before it have left there.
class Program::Planner {
 public:
  Planner(const Program& program, const Key& key);
  std::shared_ptr<Batch> make();

 private:
  void take_shapes();
  void find_dependents();
  void count_readers();
  void place_values();
  void choose_first_form();
  void order_gradients();
  void merge_into_linear();
  void place_extras();

  int64_t size_of(Scope scope) const;
  bool in_place(const Step& pointwise) const;
  bool overwrites_activation(int value) const;
  bool cotangent_unread(const Step& writer) const;
  bool cotangent_cheap(int value) const;
  Value& value(int v) { return b_.value_list[size_t(v)]; }
  ParameterPlan& parameter(int p) { return b_.parameter_list[size_t(p)]; }
  static int64_t take(int64_t& top, int64_t n) { return NodePlan::take(top, n); }

  const Program& program_;
  const std::vector<Step>& steps_;  // of the program: forms and algorithms not chosen yet
  int64_t examples_;
  int lanes_;
  Scope gradient_, tangent_;
  bool input_gradient_, in_packs_, for_device_;
  FirstLinearForm first_form_;
  std::shared_ptr<Batch> made_ = std::make_shared<Batch>();
  Batch& b_ = *made_;
  std::vector<int> value_readers_, parameter_readers_;  // how often steps read each
  std::vector<const Step*> writer_, reader_;            // of each value; null for the input; the last
};

Program::Planner::Planner(const Program& program, const Key& key) : program_(program), steps_(program.steps_) {
  std::tie(examples_, lanes_, gradient_, tangent_, input_gradient_, first_form_, in_packs_, for_device_) = key;
}

std::shared_ptr<Program::Batch> Program::Planner::make() {
  b_.examples = examples_;
  b_.output = program_.output_;
  b_.loss = program_.loss_;
  b_.step_list = steps_;
  take_shapes();
  find_dependents();
  count_readers();
  place_values();
  choose_first_form();
  order_gradients();
  merge_into_linear();
  place_extras();
  b_.step_count = int32_t(b_.step_list.size());
  b_.value_count = int32_t(b_.value_list.size());
  b_.steps = b_.step_list.data();
  b_.values = b_.value_list.data();
  b_.parameters = b_.parameter_list.data();
  return made_;
}

int64_t Program::Planner::size_of(Scope scope) const {
  const int count = scope == Scope::kNone      ? 0
                    : scope == Scope::kAdapted ? program_.adapted_count_
                                               : program_.learnt_count_;
  if (count == 0) return 0;
  const ParameterPlan& last = b_.parameter_list[size_t(count) - 1];
  return last.offset + last.size;
}

// Shapes and leading dimensions.
void Program::Planner::take_shapes() {
  b_.parameter_list = program_.parameter_plans(lanes_, !for_device_);
  b_.adapted_size = size_of(Scope::kAdapted);
  b_.gradient_size = size_of(gradient_);
  b_.tangent_size = size_of(tangent_);
  for (size_t p = 0; p < b_.parameter_list.size(); ++p)
    b_.gradient_has_gaps |= !program_.parameters_[p].used && b_.parameter_list[p].offset < b_.gradient_size;

  for (const Shape& shape : program_.values_) {
    Value v{};
    v.channels = int32_t(shape.size() == 3 ? shape[0] : shape.back());
    v.height = int32_t(shape.size() == 3 ? shape[1] : 0);
    v.width = int32_t(shape.size() == 3 ? shape[2] : 0);
    v.rows = shape.size() == 3 ? shape[1] * shape[2] : shape.size() == 2 ? shape[0] : 1;
    v.ld = v.cold = int32_t(round_up(v.channels, lanes_));
    b_.value_list.push_back(v);
  }
  Value& input = value(0);
  const bool image = program_.values_[0].size() == 3;
  bool unpadded = true;
  for (const Step& s : steps_)
    for (int i : s.input) unpadded &= i != 0 || has(s.op, kReadsUnpadded);
  if (unpadded) input.ld = input.channels;
  b_.input_is_direct = in_packs_ || (unpadded && !(image && input.channels != 1));  // nothing is padded in packs
}

// Which values depend on what moves, and on what wants a gradient.
void Program::Planner::find_dependents() {
  value(0).has_cotangent = input_gradient_;
  for (const Step& s : steps_) {
    Value& out = value(s.output);
    for (int input : s.input)
      if (input >= 0) {
        out.has_tangent |= value(input).has_tangent;
        out.has_cotangent |= value(input).has_cotangent;
      }
    for (int p : s.parameter)
      if (p >= 0) {
        out.has_tangent |= parameter(p).offset < b_.tangent_size;
        out.has_cotangent |= parameter(p).offset < b_.gradient_size;
      }
  }
}

void Program::Planner::count_readers() {
  value_readers_.resize(b_.value_list.size());
  parameter_readers_.resize(b_.parameter_list.size());
  writer_.resize(b_.value_list.size());
  reader_.resize(b_.value_list.size());
  for (const Step& s : steps_) {
    for (int input : s.input)
      if (input >= 0) ++value_readers_[size_t(input)], reader_[size_t(input)] = &s;
    for (int p : s.parameter)
      if (p >= 0) ++parameter_readers_[size_t(p)];
    writer_[size_t(s.output)] = &s;
  }
}

// A pointwise step works in place if nobody else reads its input and the step that wrote that does not look back at it.
bool Program::Planner::in_place(const Step& s) const {
  const int value = s.input[0];
  const Step* writer = writer_[size_t(value)];
  return !for_device_ && slope_from_output(s) && value_readers_[size_t(value)] == 1 && value != b_.output && writer &&
         has(writer->op, kForgetsOutput);
}

// Without a tangent pass, a cotangent may overwrite its activation if the one step that reads it works in place and the
// one that wrote it does not look at it again.
bool Program::Planner::overwrites_activation(int value) const {
  if (for_device_ || b_.tangent_size != 0 || value == b_.output || value_readers_[size_t(value)] != 1) return false;
  for (const Step& s : steps_)
    for (int input : s.input)
      if (input == value && !has(s.op, kFreesInput)) return false;
  return has(writer_[size_t(value)]->op, kBilinear);
}

// A tangent pass multiplies the cotangent of a layer's output by tangents of its input, if that has any. A piecewise linear
// function hands on what it is not asked for.
bool Program::Planner::cotangent_unread(const Step& writer) const {
  const Value& in = b_.value_list[size_t(writer.input[0])];
  if (has(writer.op, kPiecewiseLinear)) return in.cotangent_unread;
  return has(writer.op, kBilinear) && !in.has_tangent && !in.has_cotangent;
}

// Made of the reader's by a multiplication or two for each element: sooner made again than fetched from a long tape.
bool Program::Planner::cotangent_cheap(int value) const {
  if (in_packs_ || value == b_.output || value_readers_[size_t(value)] != 1) return false;
  const Step& reader = *reader_[size_t(value)];
  return reader.op == Op::kLinear ? program_.parameters_[size_t(reader.parameter[0])].row
                                  : slope_from_output(reader) && !has(reader.op, kPiecewiseLinear);
}

void Program::Planner::place_values() {
  Value& input = value(0);
  if (!b_.input_is_direct) input.activation = take(b_.tape_size, examples_ * input.rows * input.ld);
  if (input.has_cotangent) {
    input.cotangent = take(b_.tape_size, examples_ * input.rows * input.cold);
    input.cotangent_dot = take(b_.tangent_size_total, examples_ * input.rows * input.cold);
  }
  for (const Step& s : steps_) {
    Value& v = value(s.output);
    const int64_t n = examples_ * v.rows;
    const Value* same = in_place(s) ? &value(s.input[0]) : nullptr;
    v.activation = same ? same->activation : take(b_.tape_size, n * v.ld);
    if (v.has_tangent) v.activation_dot = same ? same->activation_dot : take(b_.tangent_size_total, n * v.ld);
    if (!v.has_cotangent) continue;
    v.cotangent_unread = cotangent_unread(s);
    v.cotangent_dot = same ? same->cotangent_dot : take(b_.tangent_size_total, n * v.cold);
    if (same && has(s.op, kPiecewiseLinear)) {
      v.cotangent_passes = same->cotangent_passes;
      v.cotangent = same->cotangent;
    } else {
      v.cotangent_passes = !for_device_ && b_.tangent_size != 0 && (v.cotangent_unread || cotangent_cheap(s.output));
      v.cotangent = v.cotangent_passes                ? take(b_.passing_size, n * v.cold)
                    : overwrites_activation(s.output) ? v.activation
                                                      : take(b_.tape_size, n * v.cold);
    }
  }
  const Value& z = value(b_.output);
  b_.loss.saved = take(b_.tape_size, examples_);
  if (has(b_.loss.kind, kKeepsProbabilities)) b_.loss.kept = take(b_.tape_size, examples_ * z.cold);
  if (in_packs_) b_.scratch_size = examples_ * (5 * z.channels + 7);  // copies of one lane, padded: LossOnLanes
}

void Program::Planner::choose_first_form() {
  if (first_form_ == FirstLinearForm::kPlain) return;
  Step& first = b_.step_list[size_t(program_.first_layer_step() - steps_.data())];
  if (first_form_ == FirstLinearForm::kByGram) {
    first.op = Op::kFirstLinear;
    return;
  }
  for (Step& s : b_.step_list) {
    if (s.op != Op::kLinear) continue;
    const bool whole = value(s.input[0]).channels % lanes_ == 0;
    if (!whole || program_.parameters_[size_t(s.parameter[0])].row) continue;
    s.op = &s == &first ? Op::kGivenLinear : Op::kGivenHiddenLinear;
    ParameterPlan& weight = parameter(s.parameter[0]);
    weight.left = &s == &first, weight.direct = true;
  }
}

// The reverse pass writes a gradient where it comes to it first, and adds to it later.
void Program::Planner::order_gradients() {
  std::vector<bool> parameter_written(b_.parameter_list.size()), value_written(b_.value_list.size());
  const auto mode = [](bool wanted, std::vector<bool>& written, int i) {
    if (!wanted) return GradientMode::kIgnore;
    const bool before = written[size_t(i)];
    written[size_t(i)] = true;
    return before ? GradientMode::kAccumulate : GradientMode::kOverwrite;
  };
  for (auto s = b_.step_list.rbegin(); s != b_.step_list.rend(); ++s) {
    const bool reached = value(s->output).has_cotangent;
    for (int i = 0; i < 2; ++i) {
      const int v = s->input[i];
      s->input_mode[i] = mode(v >= 0 && reached && value(v).has_cotangent, value_written, v);
    }
    for (int i = 0; i < 4; ++i) {
      const int p = s->parameter[i];
      s->parameter_mode[i] = mode(p >= 0 && parameter(p).offset < b_.gradient_size, parameter_written, p);
    }
  }
}

// What the linear layers of packs do besides (cpu/primitives/packed_linear.h).
void Program::Planner::merge_into_linear() {
  if (!in_packs_) return;
  for (const Step& s : steps_)
    if (s.op == Op::kLinear) parameter(s.parameter[0]).read_once = parameter_readers_[size_t(s.parameter[0])] == 1;

  for (Step& s : b_.step_list) {
    if (s.op != Op::kRelu || !in_place(s) || s.output == b_.output || value_readers_[size_t(s.output)] != 1) continue;
    Step *writer = nullptr, *reader = nullptr;
    for (Step& other : b_.step_list) {
      if (other.output == s.input[0]) writer = &other;
      for (int input : other.input)
        if (input == s.output) reader = &other;
    }
    if (writer->op != Op::kLinear || reader->op != Op::kLinear) continue;
    writer->relu_follows = reader->relu_precedes = s.merged = true;
  }
}

void Program::Planner::place_extras() {
  for (Step& s : b_.step_list) {
    s.bias_cancels = s.output != b_.output;
    for (const Step& reader : steps_)
      for (int input : reader.input)
        if (input == s.output) s.bias_cancels &= has(reader.op, kSubtractsMean) && reader.training;
    if (has(s.op, kBilinear))
      b_.products += double(examples_) * double(value(s.output).rows) * double(parameter(s.parameter[0]).numel());
    const int in = s.input[0];
    s.after_relu = writer_[size_t(in)] && writer_[size_t(in)]->op == Op::kRelu;
    const bool into_relu =
        value_readers_[size_t(s.output)] == 1 && s.output != b_.output && reader_[size_t(s.output)]->op == Op::kRelu;
    s.shut_by = into_relu ? reader_[size_t(s.output)]->output : -1;
    s.again = value(in).cotangent_passes && cotangent_cheap(in) && !value(in).cotangent_unread;
    const bool row = s.parameter[0] >= 0 && program_.parameters_[size_t(s.parameter[0])].row;
    plan_node({b_, s, lanes_, for_device_, in_packs_, row});
  }
}

std::shared_ptr<const Program::Batch> Program::find_batch(const Key& key) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = batches_.find(key);
  if (found != batches_.end()) return found->second;
  if (batches_.size() >= 64) batches_.clear();  // whoever still uses one holds it
  return batches_[key] = Planner(*this, key).make();
}

}  // namespace metafast
