"""Cases for rules and estimators: every pair of options stands together in one of them, and how either side runs it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import metafast as mf
import oracle
import oracle_rules
from covering import covering
from judge import Tensors, pull_back
from metafast.engine import device, native
from models import C, L, frozen, mlp, seq
from problems import make as make_problem
from row import Row

# ----------------------------------------------------------------------------------------------------------- the tables

Hypers = Mapping[str, Any]


@dataclass(frozen=True)
class RuleCase:
    build: Callable[..., mf.Rule]  # from hyper-parameters by name, and per_step of the optimiser
    links: tuple[str, ...]  # of oracle_rules
    hypers: Mapping[str, float]


MOMENTUM = dict(lr=0.1, momentum=0.75, dampening=0.0, weight_decay=0.0)
ADAM = dict(lr=0.05, beta1=0.75, beta2=0.875, eps=1e-3, weight_decay=0.0)


def sgd(h: Hypers, **options: Any) -> mf.Rule:
    return mf.SGD(*[h[name] for name in ("lr", "momentum", "dampening")], weight_decay=h["weight_decay"], **options)


def adam(h: Hypers, make: Callable[..., mf.Rule] = mf.Adam, **options: Any) -> mf.Rule:
    return make(h["lr"], (h["beta1"], h["beta2"]), h["eps"], h["weight_decay"], **options)


RULES: dict[str, RuleCase] = {
    "sgd": RuleCase(lambda h, **o: mf.SGD(h["lr"], **o), ("sgd",), dict(lr=0.3)),
    "momentum": RuleCase(sgd, ("momentum",), MOMENTUM),
    "nesterov": RuleCase(
        lambda h, **o: sgd({**h, "dampening": 0}, nesterov=True, **o), ("nesterov",), MOMENTUM | dict(weight_decay=0.1)
    ),
    "dampening": RuleCase(sgd, ("momentum",), MOMENTUM | dict(dampening=0.25, weight_decay=0.05)),
    "adam": RuleCase(adam, ("adam",), ADAM | dict(weight_decay=0.1)),
    "adamw": RuleCase(lambda h, **o: adam(h, mf.AdamW, **o), ("adamw",), ADAM | dict(weight_decay=0.2)),
    "amsgrad": RuleCase(lambda h, **o: adam(h, amsgrad=True, **o), ("amsgrad",), ADAM),
    "adam_detached": RuleCase(lambda h, **o: adam(h, detach_denominator=True, **o), ("adam_detached",), ADAM),
    "clip_norm, adam": RuleCase(
        lambda h, **o: mf.chain(mf.clip_norm(h["clip_norm"]), adam(h, **o)),
        ("clip_norm", "adam"),
        ADAM | dict(clip_norm=0.25),
    ),
    "clip_value, momentum": RuleCase(
        lambda h, **o: mf.chain(mf.clip_value(h["clip_value"]), sgd(h, **o)),
        ("clip_value", "momentum"),
        MOMENTUM | dict(clip_value=0.0625),
    ),
    "proximal, sgd": RuleCase(
        lambda h, **o: mf.chain(mf.proximal(h["proximal"]), mf.SGD(h["lr"], **o)),
        ("proximal", "sgd"),
        dict(lr=0.3, proximal=0.5),
    ),
    "sgd, soft_threshold": RuleCase(
        lambda h, **o: mf.chain(mf.SGD(h["lr"], **o), mf.soft_threshold(h["soft_threshold"])),
        ("sgd", "soft_threshold"),
        dict(lr=0.3, soft_threshold=0.02),
    ),
    "clip_norm, proximal, adam, soft_threshold": RuleCase(
        lambda h, **o: mf.chain(
            mf.clip_norm(h["clip_norm"]),
            mf.proximal(h["proximal"]),
            adam(h, **o),
            mf.soft_threshold(h["soft_threshold"]),
        ),
        ("clip_norm", "proximal", "adam", "soft_threshold"),
        ADAM | dict(clip_norm=0.25, proximal=0.5, soft_threshold=0.02),
    ),
}

ESTIMATORS: dict[str, tuple[Any, tuple[str, int]]] = {
    "exact": (mf.Exact(), ("exact", 0)),
    "first_order": (mf.FirstOrder(), ("first_order", 0)),
    "truncated1": (mf.Truncated(1), ("truncated", 1)),
    "truncated2": (mf.Truncated(2), ("truncated", 2)),
}

MEMORY: dict[str, Any] = {
    "keep": "keep",
    "recompute": "recompute",
    "auto": "auto",
    "checkpoint": mf.Checkpoint(),
    "checkpoint1": mf.Checkpoint(1),
    "checkpoint2": mf.Checkpoint(2),
}

FORMS = ("numbers", "[]", "[steps]", "tensor", "element", "per_step tensor", "per_step element")

MODELS: dict[str, Row] = {
    row.name: row
    for row in [
        Row("mlp", mlp),
        Row(
            "conv",
            lambda: seq(
                C(2, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), L(12, 3)
            ),
            (2, 4, 4),
            loss="cross_entropy",
        ),
        Row("weighted", lambda: mlp(3, 4, 2, nn.Sigmoid), weighted=True, tasks=3),
        Row("stepwise", lambda: mlp(3, 6, 3, nn.Softplus), loss="cross_entropy", stepwise=True),
        Row("head", mlp, adapt_params="4.*", tasks=5),
        Row("frozen", lambda: frozen(mlp(3, 4, 1), "2.weight", "4.bias")),
    ]
}

EXECUTIONS = ("alone", "whole packs", "small packs", "2 threads", "persistent", "batched", "torch")
#: Which outputs receive cotangents: the loss's sweep runs with the forward, the others' in backward.
SWEEPS = ("loss", "outputs", "adapted", "meta_gradient")

AXES: dict[str, tuple[Any, ...]] = dict(
    rule=tuple(RULES),
    estimator=tuple(ESTIMATORS),
    memory=tuple(MEMORY),
    form=FORMS,
    model=tuple(MODELS),
    execution=EXECUTIONS,
    dtype=(torch.float64, torch.float32),
    steps=(0, 1, 4, 5),
    start=("model", "shared", "tasks"),
    sweep=SWEEPS,
)


@dataclass(frozen=True)
class Case:
    rule: str
    estimator: str
    memory: str
    form: str
    model: str
    execution: str
    dtype: torch.dtype
    steps: int
    start: str
    sweep: str

    def __str__(self) -> str:
        return "-".join(str(value).removeprefix("torch.") for value in vars(self).values())


CASES = [Case(**row) for row in covering(AXES)]

# ----------------------------------------------------------------------------------------------------------- a problem


@dataclass
class Problem:
    row: Row
    model: nn.Module
    support: tuple[Tensor, ...]
    query: tuple[Tensor, ...]
    hypers: dict[str, Any]
    start: Tensors
    names: list[str]  # of the adapted parameters

    @property
    def parameters(self) -> Tensors:
        """What a meta-gradient is taken for: of every learnt parameter, the tensor that the loop begins with."""
        learnt = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        return {f"model.{n}": self.start.get(n, p) for n, p in learnt.items()}

    @property
    def leaves(self) -> Tensors:
        """Every differentiable input, by name."""
        named: Tensors = {f"model.{n}": p for n, p in self.model.named_parameters()}
        named |= {f"start.{n}": value for n, value in self.start.items()}
        named |= dict(zip(("xs", "ys", "ws"), self.support, strict=False))
        named |= dict(zip(("xq", "yq", "wq"), self.query, strict=False))
        for name, value in self.hypers.items():
            named |= {f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {name: value}
        return {name: v for name, v in named.items() if isinstance(v, Tensor) and v.requires_grad}


def hyper_in_form(form: str, value: float, shapes: Mapping[str, Any], steps: int, leaf: Callable[..., Tensor]) -> Any:
    lead = (steps,) if form.startswith("per_step") else ()
    if form == "numbers":
        return value
    if form in ("[]", "[steps]"):
        return leaf(value, *((steps,) if form == "[steps]" else ()))
    inner = {n: shape if form.endswith("element") else () for n, shape in shapes.items()}
    return {n: leaf(value, *lead, *shape) for n, shape in inner.items()}


def problem(
    rule: str, model: str, form: str, steps: int, start: str, dtype: torch.dtype = torch.float64, tasks: int = 0
) -> Problem:
    """All values are float32 numbers whatever the dtype, so that both precisions see one problem."""
    row = MODELS[model]
    row = Row(**{**vars(row), "steps": steps, "tasks": tasks or row.tasks})
    made, random = make_problem(row, dtype), torch.Generator().manual_seed(7)
    shapes = {n: p.shape for n, p in made.model.named_parameters()}
    names = oracle.adapted_names(made.model, row.adapt_params)

    def leaf(value: float, *shape: int) -> Tensor:
        return (value * (0.9 + 0.2 * torch.rand(shape, generator=random))).to(dtype).requires_grad_()

    def hyper(name: str, value: float) -> Any:
        of_all = "[steps]" if form not in ("numbers", "[]") and name == "clip_norm" else form
        return hyper_in_form(of_all, value, {n: shapes[n] for n in names}, max(1, steps), leaf)

    hypers = {name: hyper(name, value) for name, value in RULES[rule].hypers.items()}
    lead = {"shared": (), "tasks": (row.tasks,)}
    begins: Tensors = {}
    for i, (n, p) in enumerate(made.model.named_parameters()):
        if start in lead and i % 3 != 1 and p.requires_grad:  # some are not named
            shift = 0.1 * torch.randn(*lead[start], *p.shape, generator=random)
            begins[n] = (p.detach() + shift.to(dtype)).float().to(dtype).requires_grad_()
    return Problem(row, made.model, made.support, made.query, hypers, begins, names)


def problem_of(case: Case, dtype: torch.dtype) -> Problem:
    return problem(case.rule, case.model, case.form, case.steps, case.start, dtype)


# ------------------------------------------------------------------------------------------------ running either side


@contextlib.contextmanager
def executing(how: str) -> Iterator[str]:
    """The backend, whose calls go this way meanwhile."""
    packing, threads = native.packing, torch.get_num_threads()
    try:
        native.packing = {"alone": "never", "whole packs": "whole", "small packs": "small"}.get(how, "auto")
        if how.endswith("threads"):
            torch.set_num_threads(int(how.split()[0]))
        with device.emulated(how) if how in ("persistent", "batched") else contextlib.nullcontext():
            yield "torch" if how == "torch" else "native"
    finally:
        native.packing = packing
        torch.set_num_threads(threads)


def learner(p: Problem, rule: str, form: str, **options: Any) -> mf.MAML:
    made = RULES[rule].build(p.hypers, per_step=form.startswith("per_step"))
    settings: dict[str, Any] = dict(
        steps=max(1, p.row.steps), loss=p.row.loss, adapt_params=p.row.adapt_params, rule=made
    )
    return mf.MAML(p.model, **{"backend": "native", "rule": made, **settings, **options})


def call(p: Problem) -> dict[str, Any]:
    return dict(steps=p.row.steps, stepwise=p.row.stepwise, start=p.start or None)


def forward(maml: mf.MAML, p: Problem) -> Tensors:
    return maml(p.support, p.query, **call(p))._asdict()


def adapt(maml: mf.MAML, p: Problem) -> Tensors:
    return {f"adapted.{n}": v for n, v in maml.adapt(p.support, **call(p)).items()}


def seeds(outputs: Tensors, sweep: str) -> Tensors:
    """Cotangents for the outputs that ``sweep`` names."""
    if sweep in ("loss", "meta_gradient"):
        return {"loss": torch.ones_like(outputs["loss"])}
    chosen = ("adapted.",) if sweep == "adapted" else ("task_loss", "logits")
    random = torch.Generator().manual_seed(3)
    return {n: torch.randn(v.shape, generator=random).to(v) for n, v in outputs.items() if n.startswith(chosen)}


def by_metafast(case: Case) -> tuple[Tensors, Tensors]:
    """Outputs, and the gradients that the case asks for."""
    p = problem_of(case, case.dtype)
    options = dict(estimator=ESTIMATORS[case.estimator][0], memory=MEMORY[case.memory])
    with executing(case.execution) as backend:
        maml = learner(p, case.rule, case.form, backend=backend, **options)
        if case.sweep == "meta_gradient":
            out, made = maml.meta_gradient(p.support, p.query, **call(p))
            return out._asdict(), dict(zip(p.parameters, made, strict=True))
        outputs = adapt(maml, p) if case.sweep == "adapted" else forward(maml, p)
        gradients = pull_back(outputs, p.leaves, seeds(outputs, case.sweep))
        return {n: v.detach() for n, v in outputs.items()}, gradients


def run_oracle(p: Problem, rule: str, form: str, estimator: str) -> Tensors:
    return oracle_rules.unroll(
        p.model,
        p.row.loss,
        p.support,
        p.query,
        links=RULES[rule].links,
        hypers={**p.hypers, **({"dampening": 0.0} if rule == "nesterov" else {})},
        per_step=form.startswith("per_step"),
        steps=p.row.steps,
        names=p.names,
        estimator=ESTIMATORS[estimator][1],
        stepwise=p.row.stepwise,
        start=p.start,
    )


@cache
def by_oracle(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Tensors, Tensors]:
    p = problem_of(case, dtype)
    outputs = run_oracle(p, case.rule, case.form, case.estimator)
    outputs = {n: v for n, v in outputs.items() if n.startswith("adapted.") == (case.sweep == "adapted")}
    leaves = p.parameters if case.sweep == "meta_gradient" else p.leaves
    gradients = pull_back(outputs, leaves, seeds(outputs, case.sweep))
    return {n: v.detach() for n, v in outputs.items()}, gradients
