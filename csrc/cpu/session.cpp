#include "cpu/session.h"

#include <algorithm>

#include "cpu/choices.h"
#include "cpu/runs.h"
#include "cpu/threads/work_stealing.h"
#include "cpu/threads/wrap_around.h"

namespace metafast {
namespace {

// Tasks whose forward passes take fewer multiply-adds share no loops: these are over before others have come.
constexpr double kWorthHelping = 1e6;

template <class T>
class CpuSession final : public Session {
 public:
  CpuSession(std::shared_ptr<const Program> program, Call c) : Session(std::move(c)) {
    check(call, *program);
    stages_ = stages();
    const Kernels<T>& k = kernels<T>();
    const Division division = divide(call, *program, {k.lanes, k.group, k.small_packs_pay}, sizeof(T));
    runs_ = std::make_unique<Runs<T>>(call, program, Tasks{division.width, 0, division.packed});
    if (division.packed < call.tasks)
      rest_ = std::make_unique<Runs<T>>(call, program, Tasks{1, division.packed, call.tasks});
    offers_ = offers();
    if (sliced()) slices_ = wrap_around(call.threads, runs_->count(), stages_, division.rest);
    runs_->lay_out(slices_.migrated);
    if (rest_) rest_->lay_out(0);
  }

  int64_t bytes() const override {
    return (runs_->elements() + (rest_ ? rest_->elements() : 0)) * int64_t(sizeof(T)) + 64;
  }
  int64_t tasks_at_once() const override { return runs_->width(); }
  int64_t migrated() const override { return slices_.migrated; }

  void run(Address workspace, void*, const std::function<void()>& overlapped) override {
    T* base = at<T>((workspace + 63) / 64 * 64);
    runs_->prepare(base);
    if (rest_) rest_->prepare(base + runs_->elements());
    if (slices_.all.empty())
      in_waves(overlapped);
    else
      in_slices(overlapped);
    runs_->finish();
    if (rest_) {
      rest_->resume();
      rest_->add_up(0, rest_->count(), true);
      rest_->finish();
    }
    if (!call.loss) return;
    T total = T(0);
    for (int64_t t = 0; t < call.tasks; ++t) total += at<T>(call.task_loss)[t];
    *at<T>(call.loss) = total / T(call.tasks);
  }

 private:
  // About how long each stage of a run takes: inner steps, query, reverse steps.
  std::vector<double> stages() const {
    const int32_t steps = int32_t(call.steps);
    std::vector<double> times(size_t(call.estimator.stages(steps, call.sweep)), 1);
    for (size_t i = size_t(steps) + 1; i < times.size(); ++i) times[i] = call.is_second_order() ? 2 : 0.1;
    return times;
  }

  WorkStealing::Offers offers() const {
    if (runs_->width() > 1 || call.sharing == Choice::kNever) return WorkStealing::Offers::kNever;
    if (call.sharing == Choice::kAlways) return WorkStealing::Offers::kAll;
    return runs_->multiply_adds() >= kWorthHelping ? WorkStealing::Offers::kToIdle : WorkStealing::Offers::kNever;
  }

  // Whether runs of one wave would not come out even, or there are two sorts of them.
  bool sliced() const {
    const int64_t runs = runs_->count(), threads = call.threads;
    const bool uneven = runs > threads && runs < kFewRuns * threads && runs % threads > 0;
    return rest_ || (uneven && runs <= runs_->wave() && offers_ == WorkStealing::Offers::kNever);
  }

  void in_waves(const std::function<void()>& overlapped) {
    const int64_t runs = runs_->count(), wave = runs_->wave();
    const auto all_stages = int32_t(stages_.size());
    for (int64_t begin = 0; begin < runs; begin += wave) {
      const int64_t count = std::min(wave, runs - begin);
      const int threads =
          offers_ == WorkStealing::Offers::kNever ? int(std::min<int64_t>(call.threads, count)) : call.threads;
      WorkStealing stealing(threads, count, offers_, backward_);
      runs_->let_help(stealing.helpers());
      parallel(threads, [&](int thread) {
        if (thread == 0 && begin == 0) overlapped();
        stealing.work(thread, [&](int64_t row) { runs_->run(begin + row, row, thread, 0, all_stages); });
      });
      runs_->add_up(begin, count, begin > 0);
    }
    backward_ = !backward_;
  }

  void in_slices(const std::function<void()>& overlapped) {
    WrapAround schedule(slices_, rest_ ? rest_->count() : 0, backward_);
    const auto run = [&](const Slice& slice, int thread) {
      const int64_t migrated =
          backward_ && slice.migrated >= 0 ? slices_.migrated - 1 - slice.migrated : slice.migrated;
      runs_->run(slice.run, slice.run, thread, slice.begin, slice.end, migrated);
    };
    parallel(call.threads, [&](int thread) {
      if (thread == 0) overlapped();
      schedule.work(
          thread, [&](const Slice& slice) { run(slice, thread); },
          [&](int64_t i) { rest_->run(i, i, thread, 0, int32_t(stages_.size())); });
    });
    backward_ = !backward_;
    runs_->add_up(0, runs_->count(), false);
  }

  std::vector<double> stages_;
  std::unique_ptr<Runs<T>> runs_, rest_;
  WorkStealing::Offers offers_ = WorkStealing::Offers::kNever;
  Slices slices_;
  bool backward_ = false;  // the next call, so that it begins with what the caches still hold
};

}  // namespace

std::unique_ptr<Session> make_cpu_session(std::shared_ptr<const Program> program, Call call, bool is_double) {
  if (is_double) return std::make_unique<CpuSession<double>>(std::move(program), std::move(call));
  return std::make_unique<CpuSession<float>>(std::move(program), std::move(call));
}

}  // namespace metafast
