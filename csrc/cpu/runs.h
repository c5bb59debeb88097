// The tasks of a call that run alike, one by one or in packs, on the CPU: their plans, where all of it stands in the
// workspace, and their sums.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <vector>

#include "cpu/choices.h"
#include "cpu/dispatch.h"
#include "cpu/threads/pool.h"
#include "engine/call.h"
#include "engine/memory.h"

namespace metafast {

// What is summed over tasks is written per task for this many tasks at a time, and added up in task order.
// Not fewer, because all threads meet before it is added up.
constexpr int64_t kWaveBytes = int64_t(4) << 20;

// Fewer additions than this are done before a second thread has woken up.
constexpr int64_t kWorthSharing = 65536;

// Tasks [begin, end) of a call, `width` at a time.
struct Tasks {
  int width;
  int64_t begin, end;
};

template <class T>
class Runs {
 public:
  Runs(const Call& call, std::shared_ptr<const Program> program, const Tasks& tasks)
      : call_(call),
        shared_program_(std::move(program)),
        program_(*shared_program_),
        kernels_(kernels<T>()),
        tasks_(tasks),
        small_(could_run_in_packs(call, program_, kernels_.lanes, sizeof(T))) {
    plans_ = program_.parameter_plans(plan_lanes(), true);
    sources_.resize(plans_.size());
    vectors_.resize(call_.vectors.size());
    adapted_cotangent_.resize(call_.adapted_cotangent.size());
    adapted_.resize(call_.adapted.size());
    shared_gradient_.resize(size_t(program_.learnt_count()));
    own_gradient_.resize(size_t(program_.learnt_count()));
    fill_sizes();
    fill_rule();
    bind();
    choose_first_layer();
    make_batches();
    choose_wave();
  }
  Runs(const Runs&) = delete;
  Runs& operator=(const Runs&) = delete;

  int width() const { return tasks_.width; }
  int64_t count() const { return (tasks_.end - tasks_.begin + tasks_.width - 1) / tasks_.width; }
  int64_t wave() const { return wave_; }       // for so many there is room at a time
  int64_t elements() const { return total_; }  // of workspace

  // Multiply-adds of the longest forward pass.
  double multiply_adds() const {
    const auto of = [](const std::shared_ptr<const Program::Plan>& b) { return b ? b->multiply_adds : 0; };
    return std::max(of(support_), of(query_));
  }

  // Runs that migrate from thread to thread (cpu/threads/wrap_around.h) have places of their own: `migrated` is their number.
  void lay_out(int64_t migrated) {
    work_at_ = lay_out_shared_memory();  // so far elements; what follows counts packs

    ThreadLayout& l = job_.layout;
    int64_t total = 0;
    const auto take = [&](int64_t n) {
      const int64_t at = total;
      total += aligned(n);
      return at;
    };
    l.tape_stride = support_ ? aligned(support_->tape_size) : 0;
    const KeptSteps& kept = job_.kept = keep_steps(call_, l.tape_stride * tasks_.width * int64_t(sizeof(T)));
    l.initial = take(job_.own_initial || tasks_.width > 1 ? job_.parameter_size : 0);
    const int64_t states = job_.state_count * job_.adapted_size;
    l.trajectory_stride = job_.adapted_size + (kept.states ? states : 0);
    l.state = take(kept.states ? 0 : states);
    l.trajectory = take(kept.theta_count(job_.steps) * l.trajectory_stride);
    l.state_bar = take(states);
    l.start_bar = take(job_.uses_start ? job_.adapted_size : 0);
    l.link = take(job_.link_count > 1 ? 2 * job_.link_count * job_.adapted_size : 0);
    l.gradient_stride = job_.learnt_size;
    l.gradient = take(std::max(kept.gradients, 1) * l.gradient_stride);
    l.gradient_dot = take(job_.learnt_size);
    l.vector = take(job_.learnt_size);
    l.meta_gradient = take(sums_ && tasks_.width == 1 ? 0 : job_.gradient_stride);
    if (job_.first.parameter >= 0) lay_out_first_layer(take);
    const auto targets = [&](const std::shared_ptr<const Program::Plan>& b) {
      return b ? b->examples * b->values[b->output].rows * b->values[b->output].ld_cotangent : 0;
    };
    const auto examples = [&](const std::shared_ptr<const Program::Plan>& b) { return b ? b->examples : 0; };
    l.targets = take(std::max(targets(support_), targets(query_)));
    l.target_gradient = take(std::max(targets(support_), targets(query_)));
    l.weight_gradient = take(std::max(examples(support_), examples(query_)));
    const auto packs = [&](const std::shared_ptr<const Program::Plan>& b) {
      return b && tasks_.width > 1 ? b->examples * (b->values[0].channels + b->values[b->output].channels + 1) : 0;
    };
    l.support_packs = take(packs(support_));
    l.query_packs = take(packs(query_));
    l.tapes = take(kept.tapes * l.tape_stride);
    const bool per_step = kept.tapes > 1 && job_.want_hyper_gradient && job_.first.parameter >= 0;
    l.transient_stride = per_step ? aligned(support_->transient_size) : 0;
    l.transient =
        take(support_ ? support_->transient_size + (call_.steps > 0 ? call_.steps - 1 : 0) * l.transient_stride : 0);
    // The query's tape is no longer needed when the first tangent is.
    const int64_t last =
        std::max(support_ && call_.sweep ? support_->tangent_size_total : 0, query_ ? query_->tape_size : 0);
    l.tangent_tape = l.query_tape = take(last);
    const int64_t scratch = std::max(support_ ? support_->scratch_size : 0, query_ ? query_->scratch_size : 0);
    constexpr int64_t kOff = 16;  // a power of two, so that places do not fall on the same cache sets
    l.total = total + kOff;
    job_.scratch_stride = aligned(scratch) + kOff;
    const int64_t places = std::min<int64_t>(count(), call_.threads) + migrated;
    total_ = work_at_ + (job_.scratch_stride * call_.threads + l.total * places) * tasks_.width + kOff;
  }

  // Takes over the addresses of a call.
  void prepare(T* workspace) {
    bind();
    job_.seed = call_.seed ? *at<const uint64_t>(call_.seed) : 0;
    base_ = workspace;
    job_.scratch = base_ + work_at_;
    job_.places = job_.scratch + job_.scratch_stride * tasks_.width * call_.threads;
    job_.gradients = sums_ ? base_ + waves_at_ : nullptr;
    lay_out_shared(base_);
  }

  void let_help(const Helpers& helpers) { job_.helpers = helpers; }

  // Stages [begin, end) of a run that is the `row`-th of its wave and, unless negative, the `migrated`-th that migrates.
  void run(int64_t run, int64_t row, int thread, int32_t begin, int32_t end, int64_t migrated = -1) const {
    const int64_t threads = call_.threads, place = migrated >= 0       ? threads + migrated
                                                   : count() < threads ? run
                                                                       : thread;
    const WorkItem item{tasks_.begin / tasks_.width + run, row * rows_per_run(), place, thread, begin, end};
    if (tasks_.width == 1) return kernels_.run_task(job_, item);
    (tasks_.width == kernels_.lanes ? kernels_.run_pack : kernels_.run_group)(job_, item);
  }

  // Adds what `runs` runs from `begin` have left, in order, to the sums; threads share out the elements, so their number does
  // not matter.
  void add_up(int64_t begin, int64_t runs, bool accumulate) const {
    if (!sums_) return;
    const int64_t tasks = std::min(runs * tasks_.width, tasks_.end - tasks_.begin - begin * tasks_.width);
    const int64_t rows = tasks_.width == 1 ? tasks : (tasks + kernels_.group - 1) / kernels_.group;
    T* const sums = base_ + sums_at_;
    const int64_t stride = job_.gradient_stride;
    const auto add = in_groups() ? kernels_.add_groups : kernels_.add_rows;
    if (rows * stride < kWorthSharing) return add(job_.gradients, stride, rows, 0, stride, accumulate, sums);
    const int64_t part = aligned((stride + call_.threads - 1) / call_.threads);
    std::atomic<int64_t> next{0};
    parallel(call_.threads, [&](int) {
      for (int64_t i; (i = next.fetch_add(part, std::memory_order_relaxed)) < stride;)
        add(job_.gradients, stride, rows, i, std::min(stride, i + part), accumulate, sums);
    });
  }

  // Writes the sums where the user wants them; or goes on from those that are there.
  void finish() const {
    each_sum([&](const ParameterPlan& p, T* sum, T* user) { kernels_.parameter_out(p, sum, user); });
    each_table([&](T* sum, T* user, size_t bytes) { std::memcpy(user, sum, bytes); });
  }
  void resume() const {
    each_sum([&](const ParameterPlan& p, T* sum, T* user) { kernels_.parameter_in(p, user, sum); });
    each_table([&](T* sum, const T* user, size_t bytes) { std::memcpy(sum, user, bytes); });
  }

 private:
  // What all runs share, in elements; returns how many.
  int64_t lay_out_shared_memory() {
    int64_t total = 0;
    const auto take = [&](int64_t n) {
      const int64_t at = total;
      total += aligned(n);
      return at;
    };
    shared_at_ = take(job_.parameter_size);
    hypers_at_ = take(hypers_.values_size);
    const int64_t block = job_.gradient_stride;
    sums_at_ = take(block);
    if (sums_) waves_at_ = take(wave_ * rows_per_run() * block);
    return total;
  }

  // `take(n)` gives the place of n elements of a run's memory.
  template <class Take>
  void lay_out_first_layer(const Take& take) {
    FirstLayerPlan& first = job_.first;
    const KeptSteps& kept = job_.kept;
    const int64_t size = first.support_rows * first.ld;
    first.gram = take(first.support_rows * first.support_rows);
    first.cross = take(first.query_rows * first.support_rows);
    first.steps = call_.steps;
    first.changes = kept.tapes > 1 || call_.steps == 1 ? 1 : kept.every ? kept.every : call_.steps;
    first.change = take(first.changes * size);
    for (int64_t* array : {&first.query_start, &first.query_change}) *array = take(first.query_rows * first.ld);
    first.states = take(2 * job_.state_count * size);
    first.direction = take(job_.descent ? 0 : size);
    first.checkpoints = take(kept.every ? call_.steps / kept.every * (1 + job_.state_count) * size : 0);
    first.numbers = take((call_.steps + 2) * (1 + job_.state_count));
    for (int64_t* array : {&first.start, &first.coordinates, &first.mu_start, &first.mu_change, &first.coordinate_bars})
      *array = take(size);
  }

  // A pack has no pads.
  int plan_lanes() const { return tasks_.width > 1 ? 1 : kernels_.lanes; }
  // Rows of what is summed: of a task, or of each group in a pack.
  int64_t rows_per_run() const { return tasks_.width > 1 ? tasks_.width / kernels_.group : 1; }
  bool in_groups() const { return small_ && tasks_.width == 1; }

  template <class Body>
  void each_sum(Body body) const {
    if (!sums_) return;
    for (size_t p = 0; p < shared_gradient_.size(); ++p)
      if (shared_gradient_[p]) body(plans_[p], base_ + sums_at_ + plans_[p].offset, shared_gradient_[p]);
    for (size_t h = 0; h < hypers_.hypers.size(); ++h) {
      const std::vector<Address>& user = call_.hypers[h].elementwise_gradient;
      if (user.empty()) continue;
      each_hyper_array(hypers_.hypers[h], hypers_.hypers[h].gradient, plans_, call_.steps,
                       [&](size_t a, int64_t inside, int64_t outside) {
                         if (user[a]) body(plans_[a], hyper_sums() + inside, at<T>(user[a]) + outside);
                       });
    }
  }

  T* hyper_sums() const { return base_ + sums_at_ + job_.learnt_size; }
  template <class Body>
  void each_table(Body body) const {
    if (!sums_) return;
    for (size_t h = 0; h < hypers_.hypers.size(); ++h)
      if (call_.hypers[h].table_gradient)
        body(hyper_sums() + hypers_.hypers[h].table_gradient, at<T>(call_.hypers[h].table_gradient),
             size_t(call_.steps * job_.adapted_count) * sizeof(T));
  }

  void fill_sizes() {
    hypers_ = lay_out_hypers(call_, plans_, program_.adapted_count());
    static_cast<CallShape&>(job_) = shape_of(call_, program_, plans_, hypers_);
    job_.tasks = tasks_.end;
    job_.has_query = bool(call_.query);
    job_.parameters = plans_.data();
    job_.sources = sources_.data();
  }

  void choose_first_layer() {
    FirstLayerPlan& first = job_.first;
    first = FirstLayerPlan{};
    first.parameter = -1;
    if (small_ || !first_layer_by_gram(call_, program_)) return;
    const Node* node = program_.first_layer_node();
    const Shape& in = program_.value_shape(0);
    const int64_t rows = in.size() == 2 ? in[0] : 1;
    first.parameter = node->parameter[0];
    first.output = node->output;
    first.inputs = int32_t(in.back());
    first.ld = plans_[size_t(first.parameter)].ld;
    first.support_rows = rows * call_.support->examples;
    first.query_rows = rows * call_.query->examples;
  }

  // Whether a Hessian-vector product leaves weights where the user has them: where nothing else is done with them, and rows
  // are whole vectors.
  bool leaves_weights() const {
    const bool only_product = call_.is_hessian_vector() && !call_.loss_cotangent && call_.loss_cotangent_all == 0;
    if (!program_.first_layer_node() || !only_product || small_ || call_.support->dx) return false;
    const Shape& in = program_.value_shape(0);
    return in.size() == 1 && in[0] % kernels_.lanes == 0 &&
           std::all_of(call_.gradients.begin(), call_.gradients.end(), [](const Tensor& g) { return g.own && g.data; });
  }

  void make_batches() {
    const FirstLinearForm first = job_.first.parameter >= 0 ? FirstLinearForm::kByGram
                                  : leaves_weights()        ? FirstLinearForm::kInUserLayout
                                                            : FirstLinearForm::kPlain;
    const bool packed = tasks_.width > 1;
    const int lanes = plan_lanes();
    // The inner loop itself wants gradients of the adapted parameters only; the reverse sweep those of all.
    const bool second_order = call_.sweep && call_.is_second_order();
    if (call_.support) {
      support_ = program_.plan(call_.support->examples, lanes, second_order ? Scope::kLearnt : Scope::kAdapted,
                               !second_order               ? Scope::kNone
                               : call_.is_hessian_vector() ? Scope::kLearnt
                                                           : Scope::kAdapted,
                               second_order && call_.support->dx, first, packed);
      job_.support_plan = support_.get();
    } else if (call_.steps > 0) {
      throw std::invalid_argument("native call: inner steps without a support set");
    }
    if (call_.query) {
      query_ = program_.plan(call_.query->examples, lanes, call_.sweep ? Scope::kLearnt : Scope::kNone, Scope::kNone,
                             call_.sweep && call_.query->dx, first, packed);
      job_.query_plan = query_.get();
    }
  }

  void choose_wave() {
    job_.gradient_stride = aligned(std::max<int64_t>(1, job_.learnt_size + job_.hyper_size));
    wave_ = count();
    if (!sums_) return;
    // Slices (cpu/threads/wrap_around.h) come in no waves: few packs do, and so do the tasks that fill none.
    const int64_t few =
        tasks_.width > 1 ? kFewRuns * call_.threads : std::max<int64_t>(4 * call_.threads, kernels_.lanes);
    wave_ = std::min(wave_,
                     std::max<int64_t>(few, kWaveBytes / (job_.gradient_stride * rows_per_run() * int64_t(sizeof(T)))));
    if (in_groups()) wave_ = (wave_ + kernels_.group - 1) / kernels_.group * kernels_.group;
  }

  void fill_rule() {
    for (const HyperLayout& h : hypers_.hypers) each_.emplace_back(h.values.size(), nullptr);
    for (size_t h = 0; h < each_.size(); ++h) {
      const HyperLayout& layout = hypers_.hypers[h];
      hyper_plans_.push_back({nullptr, each_[h].data(), layout.stride.data(), layout.wanted, layout.elementwise,
                              layout.table_gradient, layout.gradient.data()});
    }
    job_.links = call_.links.data();
    job_.hypers = hyper_plans_.data();
    job_.loss_cotangent_all = T(call_.loss_cotangent_all);
    job_.vectors = vectors_.data();
    job_.adapted_cotangent = adapted_cotangent_.empty() ? nullptr : adapted_cotangent_.data();
    job_.adapted = adapted_.empty() ? nullptr : adapted_.data();
    job_.own_gradient = own_gradient_.data();
    for (const Tensor& gradient : call_.gradients) sums_ |= !gradient.own;
    sums_ = call_.sweep && (sums_ || job_.want_hyper_gradient);
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
      sources_[size_t(stored)] = source(call_.parameters[size_t(i)], stored);
      if (stored >= job_.learnt_count) continue;
      if (!call_.vectors.empty()) vectors_[size_t(stored)] = source(call_.vectors[learnt], stored);
      if (!call_.gradients.empty()) {
        const Tensor& gradient = call_.gradients[learnt];
        (gradient.own ? own_gradient_ : shared_gradient_)[size_t(stored)] = at<T>(gradient.data);
      }
      ++learnt;
    }
    for (size_t a = 0; a < adapted_.size(); ++a) adapted_[a] = at<T>(call_.adapted[a]);
    for (size_t a = 0; a < adapted_cotangent_.size(); ++a)
      adapted_cotangent_[a] = at<const T>(call_.adapted_cotangent[a]);
    job_.support = examples_of<T>(call_.support, program_, call_.steps);
    job_.query = examples_of<T>(call_.query, program_, call_.steps);
    for (size_t h = 0; h < hyper_plans_.size(); ++h) hyper_plans_[h].table = at<const T>(call_.hypers[h].table);
    job_.loss_cotangent = at<const T>(call_.loss_cotangent);
    job_.logits_cotangent = at<const T>(call_.logits_cotangent);
    job_.support_loss = at<T>(call_.support_loss);
    job_.task_loss = at<T>(call_.task_loss);
    job_.logits = at<T>(call_.logits);
  }

  void lay_out_shared(T* base) {
    T* shared = base + shared_at_;
    for (size_t p = 0; p < plans_.size(); ++p)
      if (sources_[p].task_stride == 0) kernels_.parameter_in(plans_[p], sources_[p].data, shared + plans_[p].offset);
    job_.shared_initial = shared;
    for (size_t h = 0; h < hypers_.hypers.size(); ++h) {
      const HyperLayout& layout = hypers_.hypers[h];
      T* values = base + hypers_at_;
      each_hyper_array(layout, layout.values, plans_, call_.steps, [&](size_t a, int64_t inside, int64_t outside) {
        kernels_.parameter_in(plans_[a], at<const T>(call_.hypers[h].elementwise[a].data) + outside, values + inside);
      });
      for (size_t a = 0; a < layout.values.size(); ++a)
        if (layout.values[a] >= 0) each_[h][a] = values + layout.values[a];
    }
  }

  const Call& call_;
  const std::shared_ptr<const Program> shared_program_;
  const Program& program_;
  const Kernels<T>& kernels_;
  const Tasks tasks_;
  const bool small_;  // sums are made of sums over groups of tasks (cpu/choices.h)
  Job<T> job_{};
  std::vector<ParameterPlan> plans_;
  std::vector<ParameterSource<T>> sources_, vectors_;
  HypersLayout hypers_;
  std::vector<HyperPlan<T>> hyper_plans_;
  std::vector<const T*> adapted_cotangent_;
  std::vector<std::vector<const T*>> each_;  // of each hyper-parameter, per adapted parameter
  std::vector<T*> adapted_, shared_gradient_, own_gradient_;
  std::shared_ptr<const Program::Plan> support_, query_;
  int64_t shared_at_ = 0, hypers_at_ = 0, sums_at_ = 0, waves_at_ = 0, work_at_ = 0, total_ = 0, wave_ = 0;
  bool sums_ = false;
  T* base_ = nullptr;
};

}  // namespace metafast
