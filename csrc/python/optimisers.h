// Steps of optimisers on tensors where torch keeps them: in the param_groups and the state of a torch.optim.Optimizer.
#pragma once

#include <pybind11/pybind11.h>

namespace metafast {

// The parameters that have a gradient, which have been moved. None, and nothing done, where torch has to take the step: its
// state is not made yet, or something is no contiguous float32 or float64 tensor on the CPU, or a group asks for one of torch's
// own implementations.
pybind11::object adam_step(const pybind11::list& groups, const pybind11::dict& state, int threads);
pybind11::object sgd_step(const pybind11::list& groups, const pybind11::dict& state, int threads);

}  // namespace metafast
