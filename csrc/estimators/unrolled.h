// What an estimator is: the order in which a machine does its stages. A machine is whoever does them: a CPU thread with a
// task or a pack of tasks (cpu/machine.h), or a recorder that writes down a GPU's phases (cuda/schedule.cpp). This text
// exists once.
//
// What an estimator may ask of a machine M:
//   steps()                       K, and argument(), which the estimator knows the meaning of
//   linearise(k), step(k)         loss and gradient at theta_k, which leave a tape; the rule's step to theta_{k+1}
//   query()                       the query loss; with a sweep, lambda becomes its gradient
//   replay(k)                     whatever a sweep reads of step k stands where it did after linearise(k)
//   step_adjoint(k)               the rule's adjoint: lambda, sigma, v, the bars of hyper-parameters
//   product(k)                    lambda += H_k v, and the gradients of the data
//   hessian_vector()              on the support set, v given by the caller
//
// An estimator states
//   kSecondOrder                  whether it asks for products
//   reverse_steps(K, argument)            how many of the last steps it goes back through
//   stage(m, i)                   its i-th stage: most are a loop unrolled, of steps, query and steps backwards.
#pragma once

#include <stdint.h>

#include "core/isa.h"

namespace metafast {

// Stage i of K steps, the query, and back(k) for the last steps, the latest first.
template <class M, class Back>
void unrolled(M& m, int32_t i, Back back) {
  const int32_t steps = m.steps();
  if (i < steps) return m.linearise(i), m.step(i);
  if (i == steps) return m.query();
  back(2 * steps - i);
}

}  // namespace metafast
