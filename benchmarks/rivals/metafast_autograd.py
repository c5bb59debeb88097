"""metafast as it drops into a training loop: the learner's loss and torch's own backward."""

from __future__ import annotations

import torch

from benchmarks.rivals import Forms
from benchmarks.rivals.metafast import learner
from benchmarks.workloads import Problem


def meta_gradient(problem: Problem) -> Forms:
    maml = learner(problem)
    parameters = list(maml.parameters())
    return {"": lambda: torch.autograd.grad(maml(problem.support, problem.query).loss, parameters)}
