#include "call.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

#include "choices.h"
#include "cpu/crew.h"
#include "cpu/pool.h"
#include "dispatch.h"

namespace metafast {
namespace {

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

int64_t aligned(int64_t n) { return (n + 15) / 16 * 16; }

// What is summed over tasks is written per task for this many tasks at a time, and added up in task order.
constexpr int64_t kWaveBytes = int64_t(1) << 20;

// Memory::kAuto keeps the activations of all support passes while they take no more than this per thread.
constexpr int64_t kKeepBytes = int64_t(256) << 20;

// Fewer additions than this are done before a second thread has woken up.
constexpr int64_t kWorthSharing = 65536;

// Tasks whose forward passes take fewer multiply-adds share no loops: these are over before others have come.
constexpr double kWorthHelping = 1e6;

template <class T>
class CpuSession final : public Session {
 public:
  CpuSession(std::shared_ptr<const Program> program, Call c)
      : Session(std::move(c)), shared_program_(std::move(program)), program_(*shared_program_), kernels_(kernels<T>()) {
    check(call, program_);
    small_ = could_run_in_packs(call, program_, kernels_.lanes, sizeof(T));
    width_ = small_ && run_in_packs(call, program_, kernels_.lanes, sizeof(T)) ? kernels_.lanes : 1;
    runs_ = (call.tasks + width_ - 1) / width_;
    plans_ = program_.parameter_plans(plan_lanes(), true);
    sources_.resize(plans_.size());
    vectors_.resize(call.vectors.size());
    adapted_cotangent_.resize(call.adapted_cotangent.size());
    adapted_.resize(call.adapted.size());
    shared_gradient_.resize(size_t(program_.learnt_count()));
    own_gradient_.resize(size_t(program_.learnt_count()));
    fill_sizes();
    fill_rates();
    bind();
    choose_first_layer();
    choose_given();
    make_batches();
    choose_offers();
    lay_out();
  }

  int64_t bytes() const override { return (total_ + 16) * int64_t(sizeof(T)) + 64; }
  int64_t tasks_at_once() const override { return width_; }

  void run(Address workspace, void*) override {
    bind();
    T* base = at<T>((workspace + 63) / 64 * 64);
    job_.scratch = base + work_at_;
    job_.places = job_.scratch + job_.scratch_stride * width_ * call.threads;
    prepare(base);
    T* sums = base + sums_at_;
    const auto run_one = width_ > 1 ? kernels_.run_pack : kernels_.run_task;
    for (int64_t begin = 0; begin < runs_; begin += wave_) {
      const int64_t count = std::min(wave_, runs_ - begin);
      const int threads = offers_ == Crew::Offers::kNever ? int(std::min<int64_t>(call.threads, count)) : call.threads;
      Crew crew(threads, count, offers_);
      job_.helpers = crew.helpers();
      parallel(threads, [&](int thread) {
        crew.work(thread, [&](int64_t i) { run_one(job_, {begin + i, i, few_runs() ? i : thread, thread}); });
      });
      if (!job_.gradients) continue;
      add_up(sums, count, begin > 0);
    }
    finish(sums);
  }

 private:
  // Then each has a place of its own, else each thread.
  bool few_runs() const { return runs_ < call.threads; }

  // A pack has no pads.
  int plan_lanes() const { return width_ > 1 ? 1 : kernels_.lanes; }

  // In task order; threads share out the elements, so their number does not matter.
  void add_up(T* sums, int64_t count, bool accumulate) {
    const int64_t stride = job_.gradient_stride;
    const auto add = small_ && width_ == 1 ? kernels_.add_groups : kernels_.add_rows;
    if (count * stride < kWorthSharing) return add(job_.gradients, stride, count, 0, stride, accumulate, sums);
    const int64_t part = aligned((stride + call.threads - 1) / call.threads);
    std::atomic<int64_t> next{0};
    parallel(call.threads, [&](int) {
      for (int64_t i; (i = next.fetch_add(part, std::memory_order_relaxed)) < stride;)
        add(job_.gradients, stride, count, i, std::min(stride, i + part), accumulate, sums);
    });
  }

  void fill_sizes() {
    job_.tasks = call.tasks;
    job_.steps = int32_t(call.steps);
    job_.first_order = call.first_order;
    job_.sweep = call.sweep;
    job_.hessian_vector = call.hessian_vector;
    job_.has_query = bool(call.query);
    job_.parameter_count = program_.parameter_count();
    job_.learnt_count = program_.learnt_count();
    job_.adapted_count = program_.adapted_count();
    const auto size = [&](int count) {
      return count == 0 ? 0 : plans_[size_t(count) - 1].offset + plans_[size_t(count) - 1].size;
    };
    job_.parameter_size = size(job_.parameter_count);
    job_.learnt_size = size(job_.learnt_count);
    job_.adapted_size = size(job_.adapted_count);
    job_.parameters = plans_.data();
    job_.sources = sources_.data();
    for (const Tensor& parameter : call.parameters) job_.own_initial |= parameter.own;
    const auto strides = [&](const std::optional<SetTensors>& from, Examples<T>& to) {
      if (!from) return;
      const int64_t n = from->examples, x = n * program_.input_size();
      const int64_t y = from->y_is_class ? n : n * program_.output_size();
      const int64_t steps = from->stepwise ? call.steps : 1;
      to.y_is_class = from->y_is_class;
      to.x_task_stride = x * steps, to.y_task_stride = y * steps, to.w_task_stride = n * steps;
      if (from->stepwise) to.x_step_stride = x, to.y_step_stride = y, to.w_step_stride = n;
    };
    strides(call.support, job_.support);
    strides(call.query, job_.query);
  }

  void choose_first_layer() {
    FirstLayerPlan& first = job_.first;
    first = FirstLayerPlan{};
    first.parameter = -1;
    if (small_ || !first_layer_by_gram(call, program_)) return;
    const Step* step = program_.first_layer_step();
    const Shape& in = program_.value_shape(0);
    const int64_t rows = in.size() == 2 ? in[0] : 1;
    first.parameter = step->parameter[0];
    first.output = step->output;
    first.inputs = int32_t(in.back());
    first.ld = plans_[size_t(first.parameter)].ld;
    first.support_rows = rows * call.support->examples;
    first.query_rows = rows * call.query->examples;
    first.ld_rows = int32_t((first.support_rows + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes);
  }

  // Whether a Hessian-vector product leaves the first layer's weight where the user has it: where nothing else is done with
  // it, and rows are whole vectors.
  void choose_given() {
    job_.given = -1;
    const Step* step = program_.first_layer_step();
    const bool only_product = call.hessian_vector && !call.loss_cotangent && call.loss_cotangent_all == 0;
    if (!step || !only_product || small_ || call.support->dx) return;
    const Shape& in = program_.value_shape(0);
    const int32_t weight = step->parameter[0];
    if (in.size() == 1 && in[0] % kernels_.lanes == 0 && has_own_gradient(weight)) job_.given = weight;
  }

  // Does each task have a gradient of its own for a learnt parameter?
  bool has_own_gradient(int32_t stored) const {
    size_t learnt = 0;
    for (int i = 0; i < program_.parameter_count(); ++i) {
      if (program_.stored_at(i) == stored) return learnt < call.gradients.size() && call.gradients[learnt].own;
      learnt += program_.stored_at(i) < program_.learnt_count();
    }
    return false;
  }

  void make_batches() {
    const FirstLinearForm first = job_.first.parameter >= 0 ? FirstLinearForm::kByGram
                                  : job_.given >= 0         ? FirstLinearForm::kAsGiven
                                                            : FirstLinearForm::kPlain;
    const bool packed = width_ > 1;
    const int lanes = plan_lanes();
    // The inner loop itself wants gradients of the adapted parameters only; the reverse sweep those of all.
    const bool second_order = call.hessian_vector || (call.sweep && !call.first_order);
    if (call.support) {
      support_ = program_.batch(call.support->examples, lanes, second_order ? Scope::kLearnt : Scope::kAdapted,
                                !second_order         ? Scope::kNone
                                : call.hessian_vector ? Scope::kLearnt
                                                      : Scope::kAdapted,
                                second_order && call.support->dx, first, packed);
      job_.support_plan = support_.get();
    } else if (call.steps > 0) {
      throw std::invalid_argument("native call: inner steps without a support set");
    }
    if (call.query) {
      query_ = program_.batch(call.query->examples, lanes, call.sweep ? Scope::kLearnt : Scope::kNone, Scope::kNone,
                              call.sweep && call.query->dx, first, packed);
      job_.query_plan = query_.get();
    }
  }

  void choose_offers() {
    if (width_ > 1 || call.sharing == Choice::kNever) return;
    const auto products = [](const std::shared_ptr<const Program::Batch>& b) { return b ? b->products : 0; };
    if (call.sharing == Choice::kAlways)
      offers_ = Crew::Offers::kAll;
    else if (std::max(products(support_), products(query_)) >= kWorthHelping)
      offers_ = Crew::Offers::kToIdle;
  }

  void fill_rates() {
    const size_t count = size_t(job_.adapted_count);
    elementwise_.assign(count, nullptr);
    elementwise_stride_.assign(count, 0);
    rate_offset_.assign(count, 0);
    job_.rate_size = call.steps * job_.adapted_count;
    for (size_t a = 0; a < call.elementwise.size() && a < count; ++a) {
      if (!call.elementwise[a].data) continue;
      const bool per_step = call.elementwise[a].own;
      rate_offset_[a] = job_.rate_size;
      elementwise_stride_[a] = per_step ? plans_[a].size : 0;
      job_.rate_size += plans_[a].size * (per_step ? call.steps : 1);
    }
    job_.elementwise = elementwise_.data();
    job_.elementwise_stride = elementwise_stride_.data();
    job_.rate_offset = rate_offset_.data();
    job_.want_rate_gradient = wants_rate_gradient(call);
    job_.loss_cotangent_all = T(call.loss_cotangent_all);
    job_.vectors = vectors_.data();
    job_.adapted_cotangent = adapted_cotangent_.empty() ? nullptr : adapted_cotangent_.data();
    job_.adapted = adapted_.empty() ? nullptr : adapted_.data();
    job_.own_gradient = own_gradient_.data();
    for (const Tensor& gradient : call.gradients) sums_ |= !gradient.own;
    sums_ = call.sweep && (sums_ || job_.want_rate_gradient);
  }

  // Takes over the addresses of a call.
  void bind() {
    const auto numel = [&](int stored) { return plans_[size_t(stored)].numel(); };
    const auto source = [&](const Tensor& t, int stored) {
      return ParameterSource<T>{at<const T>(t.data), t.own ? numel(stored) : 0};
    };
    size_t learnt = 0;
    for (int i = 0; i < program_.parameter_count(); ++i) {
      const int stored = program_.stored_at(i);
      sources_[size_t(stored)] = source(call.parameters[size_t(i)], stored);
      if (stored >= job_.learnt_count) continue;
      if (!call.vectors.empty()) vectors_[size_t(stored)] = source(call.vectors[learnt], stored);
      if (!call.gradients.empty()) {
        const Tensor& gradient = call.gradients[learnt];
        (gradient.own ? own_gradient_ : shared_gradient_)[size_t(stored)] = at<T>(gradient.data);
      }
      ++learnt;
    }
    for (size_t a = 0; a < adapted_.size(); ++a) adapted_[a] = at<T>(call.adapted[a]);
    for (size_t a = 0; a < adapted_cotangent_.size(); ++a)
      adapted_cotangent_[a] = {at<const T>(call.adapted_cotangent[a]), 0};
    const auto set = [](const std::optional<SetTensors>& from, Examples<T>& to) {
      if (!from) return;
      to.x = at<const T>(from->x), to.y = at<const void>(from->y), to.w = at<const T>(from->w);
      to.dx = at<T>(from->dx), to.dy = at<T>(from->dy), to.dw = at<T>(from->dw);
    };
    set(call.support, job_.support);
    set(call.query, job_.query);
    job_.rate_table = at<const T>(call.rate_table);
    job_.loss_cotangent = at<const T>(call.loss_cotangent);
    job_.logits_cotangent = at<const T>(call.logits_cotangent);
    job_.support_loss = at<T>(call.support_loss);
    job_.task_loss = at<T>(call.task_loss);
    job_.logits = at<T>(call.logits);
  }

  void lay_out() {
    int64_t total = 0;
    const auto take = [&](int64_t n) {
      const int64_t at = total;
      total += aligned(n);
      return at;
    };
    shared_at_ = take(job_.parameter_size);
    elementwise_at_ = take(job_.rate_size);
    const int64_t block = aligned(std::max<int64_t>(1, job_.learnt_size + job_.rate_size));
    sums_at_ = take(block);
    wave_ = runs_;
    job_.gradient_stride = block;
    if (sums_) {
      wave_ = std::clamp<int64_t>(kWaveBytes / (block * int64_t(sizeof(T))), std::min<int64_t>(runs_, 4 * call.threads),
                                  runs_);
      // Whole groups of a sum.
      if (small_ && width_ == 1) wave_ = (wave_ + kernels_.lanes - 1) / kernels_.lanes * kernels_.lanes;
      waves_at_ = take(wave_ * block);
    }
    work_at_ = total;  // so far elements; what follows counts packs

    ThreadLayout& l = job_.layout;
    total = 0;
    l.tape_stride = support_ ? aligned(support_->tape_size) : 0;
    const int64_t tapes = l.tape_stride * std::max<int64_t>(call.steps, 1);
    job_.keep = call.memory == Memory::kKeep || (call.memory == Memory::kAuto && call.sweep && !call.first_order &&
                                                 tapes * width_ * int64_t(sizeof(T)) <= kKeepBytes);
    l.initial = take(job_.own_initial || width_ > 1 ? job_.parameter_size : 0);
    l.trajectory = take(call.steps * job_.adapted_size);
    l.gradient_stride = job_.want_rate_gradient ? job_.learnt_size : 0;
    l.gradient = take(job_.learnt_size + (call.steps > 0 ? call.steps - 1 : 0) * l.gradient_stride);
    l.gradient_dot = take(job_.learnt_size);
    l.vector = take(job_.learnt_size);
    l.meta_gradient = take(sums_ && width_ == 1 ? 0 : block);
    if (FirstLayerPlan& first = job_.first; first.parameter >= 0) {
      const int64_t size = first.support_rows * first.ld;
      first.x_transposed = take(int64_t(first.inputs) * first.ld_rows);
      first.gram = take(first.support_rows * first.ld_rows);
      first.cross = take(first.query_rows * first.ld_rows);
      first.steps = call.steps;
      first.changes = job_.keep ? 1 : call.steps;
      first.change = take(first.changes * size);
      for (int64_t* array : {&first.query_start, &first.query_change}) *array = take(first.query_rows * first.ld);
      for (int64_t* array : {&first.start, &first.moved, &first.mu_start, &first.mu_change, &first.swept})
        *array = take(size);
    }
    const auto targets = [&](const std::shared_ptr<const Program::Batch>& b) {
      return b ? b->examples * b->values[b->output].rows * b->values[b->output].cold : 0;
    };
    const auto examples = [&](const std::shared_ptr<const Program::Batch>& b) { return b ? b->examples : 0; };
    l.targets = take(std::max(targets(support_), targets(query_)));
    l.target_gradient = take(std::max(targets(support_), targets(query_)));
    l.weight_gradient = take(std::max(examples(support_), examples(query_)));
    const auto packs = [&](const std::shared_ptr<const Program::Batch>& b) {
      return b && width_ > 1 ? b->examples * (b->values[0].channels + b->values[b->output].channels + 1) : 0;
    };
    l.support_packs = take(packs(support_));
    l.query_packs = take(packs(query_));
    l.tapes = take(job_.keep ? tapes : l.tape_stride);
    const bool per_step = job_.keep && job_.want_rate_gradient && job_.first.parameter >= 0;
    l.passing_stride = per_step ? aligned(support_->passing_size) : 0;
    l.passing = take(support_ ? support_->passing_size + (call.steps > 0 ? call.steps - 1 : 0) * l.passing_stride : 0);
    // The query's tape is no longer needed when the first tangent is.
    const int64_t last =
        std::max(support_ && call.sweep ? support_->tangent_size_total : 0, query_ ? query_->tape_size : 0);
    l.tangent_tape = l.query_tape = take(last);
    const int64_t scratch = std::max(support_ ? support_->scratch_size : 0, query_ ? query_->scratch_size : 0);
    constexpr int64_t kOff = 16;  // a power of two, so that places do not fall on the same cache sets
    l.total = total + kOff;
    job_.scratch_stride = aligned(scratch) + kOff;
    total_ =
        work_at_ + (job_.scratch_stride * call.threads + l.total * std::min<int64_t>(runs_, call.threads)) * width_;
  }

  void prepare(T* base) {
    T* shared = base + shared_at_;
    for (size_t p = 0; p < plans_.size(); ++p)
      if (sources_[p].task_stride == 0) kernels_.parameter_in(plans_[p], sources_[p].data, shared + plans_[p].offset);
    if (job_.own_initial)
      for (size_t p = 0; p < plans_.size(); ++p)
        if (sources_[p].task_stride != 0) std::memset(shared + plans_[p].offset, 0, size_t(plans_[p].size) * sizeof(T));
    job_.shared_initial = shared;
    for (size_t a = 0; a < elementwise_.size(); ++a) {
      if (a >= call.elementwise.size() || !call.elementwise[a].data) continue;
      T* inside = base + elementwise_at_ + rate_offset_[a] - call.steps * job_.adapted_count;
      elementwise_[a] = inside;
      const int64_t steps = elementwise_stride_[a] ? call.steps : 1;
      for (int64_t k = 0; k < steps; ++k)
        kernels_.parameter_in(plans_[a], at<const T>(call.elementwise[a].data) + k * plans_[a].numel(),
                              inside + k * plans_[a].size);
    }
    job_.gradients = sums_ ? base + waves_at_ : nullptr;
  }

  void finish(const T* sums) {
    if (call.loss) {
      T total = T(0);
      for (int64_t t = 0; t < call.tasks; ++t) total += job_.task_loss[t];
      *at<T>(call.loss) = total / T(call.tasks);
    }
    if (!sums_) return;
    for (size_t p = 0; p < shared_gradient_.size(); ++p)
      if (shared_gradient_[p]) kernels_.parameter_out(plans_[p], sums + plans_[p].offset, shared_gradient_[p]);
    if (!job_.want_rate_gradient) return;
    const T* rates = sums + job_.learnt_size;
    if (call.rate_table_gradient)
      std::memcpy(at<T>(call.rate_table_gradient), rates, size_t(call.steps * job_.adapted_count) * sizeof(T));
    for (size_t a = 0; a < call.elementwise_gradient.size(); ++a) {
      if (!call.elementwise_gradient[a]) continue;
      const int64_t steps = elementwise_stride_[a] ? call.steps : 1;
      for (int64_t k = 0; k < steps; ++k)
        kernels_.parameter_out(plans_[a], rates + rate_offset_[a] + k * plans_[a].size,
                               at<T>(call.elementwise_gradient[a]) + k * plans_[a].numel());
    }
  }

  const std::shared_ptr<const Program> shared_program_;
  const Program& program_;
  const Kernels<T>& kernels_;
  Job<T> job_{};
  std::vector<ParameterPlan> plans_;
  std::vector<ParameterSource<T>> sources_, vectors_, adapted_cotangent_;
  std::vector<const T*> elementwise_;
  std::vector<int64_t> elementwise_stride_, rate_offset_;
  std::vector<T*> adapted_, shared_gradient_, own_gradient_;
  std::shared_ptr<const Program::Batch> support_, query_;
  int64_t width_ = 1, runs_ = 0;  // tasks at a time, and how many times
  int64_t shared_at_ = 0, elementwise_at_ = 0, sums_at_ = 0, waves_at_ = 0, work_at_ = 0, total_ = 0, wave_ = 0;
  bool sums_ = false, small_ = false;
  Crew::Offers offers_ = Crew::Offers::kNever;
};

}  // namespace

void check(const Call& call, const Program& program) {
  const auto none_or = [](size_t size, int count) { return size == 0 || int(size) == count; };
  const int learnt = program.learnt_count(), adapted = program.adapted_count();
  const bool fits = call.tasks > 0 && call.steps >= 0 && call.threads > 0 &&
                    int(call.parameters.size()) == program.parameter_count() && none_or(call.vectors.size(), learnt) &&
                    none_or(call.gradients.size(), learnt) && none_or(call.elementwise.size(), adapted) &&
                    none_or(call.adapted.size(), adapted) && none_or(call.elementwise_gradient.size(), adapted) &&
                    none_or(call.adapted_cotangent.size(), adapted) && (call.sweep || call.gradients.empty()) &&
                    (!call.hessian_vector || !call.vectors.empty());
  if (!fits) throw std::invalid_argument("native call: inconsistent sizes");
}

std::vector<Address*> Call::inputs() {
  std::vector<Address*> all;
  for (Tensor& t : parameters) all.push_back(&t.data);
  for (Tensor& t : vectors) all.push_back(&t.data);
  all.push_back(&rate_table);
  for (Tensor& t : elementwise) all.push_back(&t.data);
  for (auto* set : {&support, &query})
    if (*set) all.insert(all.end(), {&(*set)->x, &(*set)->y, &(*set)->w});
  all.insert(all.end(), {&loss_cotangent, &logits_cotangent});
  for (Address& a : adapted_cotangent) all.push_back(&a);
  return all;
}

std::vector<Address*> Call::outputs() {
  std::vector<Address*> all{&support_loss, &task_loss, &loss, &logits};
  for (Address& a : adapted) all.push_back(&a);
  for (Tensor& t : gradients) all.push_back(&t.data);
  all.push_back(&rate_table_gradient);
  for (Address& a : elementwise_gradient) all.push_back(&a);
  for (auto* set : {&support, &query})
    if (*set) all.insert(all.end(), {&(*set)->dx, &(*set)->dy, &(*set)->dw});
  return all;
}

std::unique_ptr<Session> Session::make(std::shared_ptr<const Program> program, Call call, bool is_double) {
  if (is_double) return std::make_unique<CpuSession<double>>(std::move(program), std::move(call));
  return std::make_unique<CpuSession<float>>(std::move(program), std::move(call));
}

}  // namespace metafast
