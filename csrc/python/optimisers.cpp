#include "python/optimisers.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/threads/pool.h"
#include "python/tensors.h"

namespace py = pybind11;

namespace metafast {

namespace {

constexpr int64_t kChunk = 1 << 14;           // elements that a thread takes at a time
constexpr int64_t kWorthReleasing = 1 << 14;  // other Python threads may run meanwhile

// Thrown inside this file alone: torch has to take the step.
struct NotOurs {};

// Borrowed; null where there is none.
PyObject* item(PyObject* dictionary, PyObject* name) {
  PyObject* const found = PyDict_GetItemWithError(dictionary, name);
  if (!found && PyErr_Occurred()) throw py::error_already_set();
  return found;
}

// Keys of groups and states, interned once: a small step takes less than to make them.
struct Names {
  static PyObject* made(const char* name) { return PyUnicode_InternFromString(name); }
  PyObject *params = made("params"), *lr = made("lr"), *weight_decay = made("weight_decay"), *eps = made("eps"),
           *betas = made("betas"), *momentum = made("momentum"), *dampening = made("dampening"),
           *nesterov = made("nesterov"), *maximize = made("maximize"), *amsgrad = made("amsgrad"),
           *decoupled_weight_decay = made("decoupled_weight_decay"), *momentum_buffer = made("momentum_buffer"),
           *step = made("step"), *grad = made("grad");
  PyObject* moments[3] = {made("exp_avg"), made("exp_avg_sq"), made("max_exp_avg_sq")};
  PyObject* asks_for_torch[4] = {made("foreach"), made("fused"), made("capturable"), made("differentiable")};
};

const Names& names() {
  static const Names all;
  return all;
}

double as_number(PyObject* value) {
  if (!value) throw NotOurs{};
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  const py::object made = owned(PyNumber_Float(value));  // of an integer, or a tensor of one element
  return PyFloat_AS_DOUBLE(made.ptr());
}

double number(PyObject* group, PyObject* name) { return as_number(item(group, name)); }

bool flag(PyObject* group, PyObject* name) {
  PyObject* const found = item(group, name);
  if (!found || found == Py_None || found == Py_False) return false;
  const int is = PyObject_IsTrue(found);
  if (is < 0) throw py::error_already_set();
  return is;
}

// A tensor with a gradient, and what an optimiser keeps of it: places that are null where it keeps less.
struct Moved {
  bool is_double;
  int64_t count;
  const void* gradient;
  void *theta, *state[3];
  Elements step;  // how many were taken, as a tensor of one element; no data where nobody counts
};

// All that is done happens to what is held here: Python code, which another thread may run meanwhile, can drop the tensors.
struct Gathered {
  std::vector<py::object> held;
  py::list moved;
  int64_t count = 0;

  Elements of(PyObject* tensor) {
    const std::optional<Elements> found = tensor ? elements(tensor) : std::nullopt;
    if (!found) throw NotOurs{};
    held.push_back(py::reinterpret_borrow<py::object>(tensor));
    return *found;
  }

  // The parameter with its gradient; nothing if it has none.
  std::optional<Moved> of_parameter(PyObject* parameter) {
    const py::object gradient = owned(PyObject_GetAttr(parameter, names().grad));
    if (gradient.is_none()) return std::nullopt;
    const Elements p = of(parameter), g = of(gradient.ptr());
    if (p.count != g.count || p.is_double != g.is_double) throw NotOurs{};
    moved.append(py::handle(parameter));
    count += p.count;
    return Moved{p.is_double, p.count, g.data, p.data, {}, {}};
  }

  // Adds a tensor like the parameter to what is kept of it.
  void keep(Moved& parameter, int place, PyObject* tensor) {
    const Elements e = of(tensor);
    if (e.count != parameter.count || e.is_double != parameter.is_double) throw NotOurs{};
    parameter.state[place] = e.data;
  }
};

// What the state holds of a parameter.
PyObject* kept_of(const py::dict& state, PyObject* parameter) {
  PyObject* const found = item(state.ptr(), parameter);
  if (!found || !PyDict_Check(found)) throw NotOurs{};
  return found;
}

// Calls visit(group, parameters) for every group that leaves the choice of an implementation to us.
template <class Visit>
void each_group(const py::list& groups, Visit visit) {
  for (py::handle group : groups) {
    if (!PyDict_Check(group.ptr())) throw NotOurs{};
    for (PyObject* asks : names().asks_for_torch)
      if (flag(group.ptr(), asks)) throw NotOurs{};
    PyObject* const parameters = item(group.ptr(), names().params);
    if (!parameters || !PyList_Check(parameters)) throw NotOurs{};
    visit(group.ptr(), py::reinterpret_borrow<py::list>(parameters));
  }
}

// Calls part(begin, count) for parts of all elements, on several threads where there are many.
template <class Part>
void in_parts(int64_t count, int threads, Part part) {
  const int useful = int(std::min<int64_t>(threads, count / kChunk));
  if (useful < 2) return part(int64_t(0), count);
  std::atomic<int64_t> next{0};
  parallel(useful, [&](int) {
    for (int64_t at; (at = next.fetch_add(kChunk)) < count;) part(at, std::min(kChunk, count - at));
  });
}

// take(moved), one after another, for one may be listed twice. The result of both entry points.
template <class Each, class Take>
py::object step(const std::vector<Each>& all, Gathered& gathered, Take take) {
  std::unique_ptr<py::gil_scoped_release> others_may_run;
  if (gathered.count > kWorthReleasing) others_may_run = std::make_unique<py::gil_scoped_release>();
  for (const Each& each : all) take(each);
  others_may_run.reset();
  return std::move(gathered.moved);
}

template <class T>
void adam(const AdamStep& s, const Moved& p, int threads) {
  in_parts(p.count, threads, [&](int64_t at, int64_t n) {
    const auto part = [&](void* whole) { return whole ? static_cast<T*>(whole) + at : nullptr; };
    kernels<T>().adam(s, static_cast<const T*>(p.gradient) + at, n, part(p.theta), part(p.state[0]), part(p.state[1]),
                      part(p.state[2]));
  });
}

template <class T>
void sgd(const SgdStep& s, const Moved& p, int threads) {
  in_parts(p.count, threads, [&](int64_t at, int64_t n) {
    const auto part = [&](void* whole) { return whole ? static_cast<T*>(whole) + at : nullptr; };
    kernels<T>().sgd(s, static_cast<const T*>(p.gradient) + at, n, part(p.theta), part(p.state[0]));
  });
}

struct AdamMove {
  Moved parameter;
  AdamStep settings;  // without corrections of bias
};

struct SgdMove {
  Moved parameter;
  SgdStep settings;
};

double count_one(const Elements& step) {
  if (step.is_double) return *static_cast<double*>(step.data) += 1;
  return *static_cast<float*>(step.data) += 1;
}

std::vector<AdamMove> gather_adam(const py::list& groups, const py::dict& state, Gathered& gathered) {
  std::vector<AdamMove> all;
  each_group(groups, [&](PyObject* group, const py::list& parameters) {
    PyObject* const betas = item(group, names().betas);
    if (!betas || !PyTuple_Check(betas) || PyTuple_GET_SIZE(betas) != 2) throw NotOurs{};
    const double rate = number(group, names().lr), decay = number(group, names().weight_decay);
    const bool decoupled = flag(group, names().decoupled_weight_decay), amsgrad = flag(group, names().amsgrad);
    const AdamStep settings{flag(group, names().maximize) ? -1.0 : 1.0,
                            decoupled ? 0.0 : decay,
                            decoupled ? 1 - rate * decay : 1.0,
                            as_number(PyTuple_GET_ITEM(betas, 0)),
                            as_number(PyTuple_GET_ITEM(betas, 1)),
                            rate,
                            1.0,
                            number(group, names().eps)};
    for (py::handle parameter : parameters) {
      std::optional<Moved> p = gathered.of_parameter(parameter.ptr());
      if (!p) continue;
      PyObject* const kept = kept_of(state, parameter.ptr());
      for (int i = 0; i < 2 + amsgrad; ++i) gathered.keep(*p, i, item(kept, names().moments[i]));
      p->step = gathered.of(item(kept, names().step));
      if (p->step.count != 1) throw NotOurs{};
      all.push_back({*p, settings});
    }
  });
  return all;
}

std::vector<SgdMove> gather_sgd(const py::list& groups, const py::dict& state, Gathered& gathered) {
  std::vector<SgdMove> all;
  each_group(groups, [&](PyObject* group, const py::list& parameters) {
    const double momentum = number(group, names().momentum);
    const SgdStep settings{flag(group, names().maximize) ? -1.0 : 1.0,
                           number(group, names().weight_decay),
                           number(group, names().lr),
                           momentum,
                           1 - number(group, names().dampening),
                           flag(group, names().nesterov)};
    for (py::handle parameter : parameters) {
      std::optional<Moved> p = gathered.of_parameter(parameter.ptr());
      if (!p) continue;
      if (momentum != 0) gathered.keep(*p, 0, item(kept_of(state, parameter.ptr()), names().momentum_buffer));
      all.push_back({*p, settings});
    }
  });
  return all;
}

}  // namespace

py::object adam_step(const py::list& groups, const py::dict& state, int threads) {
  Gathered gathered;
  std::vector<AdamMove> all;
  try {
    all = gather_adam(groups, state, gathered);
  } catch (const NotOurs&) {
    return py::none();
  }
  AdamStep corrected{};
  double beta1 = 0, beta2 = 0, steps = 0;  // that `corrected` belongs to
  return step(all, gathered, [&](const AdamMove& move) {
    const double taken = count_one(move.parameter.step);
    const AdamStep& s = move.settings;
    if (s.beta1 != beta1 || s.beta2 != beta2 || taken != steps) {
      beta1 = s.beta1, beta2 = s.beta2, steps = taken;
      corrected.rate = 1 - std::pow(beta1, steps), corrected.root = std::sqrt(1 - std::pow(beta2, steps));
    }
    AdamStep now = s;
    now.rate /= corrected.rate, now.root = corrected.root;
    (move.parameter.is_double ? adam<double> : adam<float>)(now, move.parameter, threads);
  });
}

py::object sgd_step(const py::list& groups, const py::dict& state, int threads) {
  Gathered gathered;
  std::vector<SgdMove> all;
  try {
    all = gather_sgd(groups, state, gathered);
  } catch (const NotOurs&) {
    return py::none();
  }
  return step(all, gathered, [&](const SgdMove& move) {
    (move.parameter.is_double ? sgd<double> : sgd<float>)(move.settings, move.parameter, threads);
  });
}

}  // namespace metafast
