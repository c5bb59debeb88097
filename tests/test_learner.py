"""What a training loop relies on: adapted parameters, modules' conventions, state per call."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
import oracle
from changes import CHANGES, WAYS, with_norm
from small import N, T, gradients, mlp, same, tasks

# --------------------------------------------------------------------------------------------------- adapted parameters


@pytest.mark.parametrize("choose", ["2.*", ["2.weight", "2.bias"], lambda name: name.startswith("2.")])
def test_adapt_params_in_every_form(choose: Any, backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    maml = mf.MAML(model, steps=2, adapt_params=choose, backend=backend)
    assert list(maml.adapt(support)) == ["2.weight", "2.bias"]
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=0.4, steps=2, adapt_params="2.*")
    same(gradients(maml(support, query).loss, model), gradients(truth.loss, model))


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        ("head.*", "'head.*' matches no parameter of the model"),
        ("2", r"'2' matches no parameter of the model .* did you mean '2\.\*'"),
        (["2.weight", "3.bias"], "'3.bias' matches no parameter"),
        (lambda name: False, "leaves nothing to adapt"),
        ("0.*", "leaves nothing to adapt"),
    ],
)
def test_adapt_params_that_choose_nothing(choose: Any, message: str) -> None:
    model = mlp()
    model[0].requires_grad_(False)  # type: ignore[index]
    with pytest.raises(ValueError, match=message):
        mf.MAML(model, adapt_params=choose)


def test_adapt_then_predict_is_forward(backend: str) -> None:
    model, (support, query) = with_norm(), tasks()
    maml = mf.MAML(model, steps=3, backend=backend)
    out = maml(support, query)
    logits = maml.predict(maml.adapt(support), query[0])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), query[1].flatten())
    torch.testing.assert_close(logits, out.logits, rtol=1e-12, atol=1e-14)
    same(gradients(loss, model), gradients(out.loss, model))


def test_predict_takes_shared_and_missing_parameters(backend: str) -> None:
    model, (_, query) = mlp(), tasks()
    maml = mf.MAML(model, backend=backend)
    weight = torch.randn(T, WAYS, 6, dtype=torch.float64)
    found = maml.predict({"2.weight": weight, "0.bias": torch.zeros(6).double()}, query[0])
    for t in range(T):
        other = copy.deepcopy(model)
        other[2].weight.data, other[0].bias.data = weight[t], torch.zeros(6).double()  # type: ignore[index]
        torch.testing.assert_close(found[t], other(query[0][t]), rtol=1e-12, atol=1e-14)


# --------------------------------------------------------------------------------------------------- module conventions


@pytest.mark.parametrize("learn_lr", [False, True])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies_are_equal_and_independent(clone: Any, learn_lr: bool, backend: str) -> None:
    support, query = tasks()
    maml = mf.MAML(
        with_norm(), lr={n: 0.2 for n, _ in with_norm().named_parameters()}, learn_lr=learn_lr, backend=backend
    )
    before = maml(support, query).loss  # a learner in use has plans, which must not travel
    if clone == "torch.save":
        file = io.BytesIO()
        torch.save(maml, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = clone(maml)
    assert torch.equal(other(support, query).loss, before)
    with torch.no_grad():
        for p in maml.parameters():
            p.zero_()
    assert torch.equal(other(support, query).loss, before)
    assert not torch.equal(maml(support, query).loss, before)


def test_a_pickle_holds_no_plan(backend: str) -> None:
    fresh = mf.MAML(mlp(), backend=backend)
    size = len(pickle.dumps(fresh))
    fresh(*tasks())
    assert len(pickle.dumps(fresh)) == size


def test_state_dict_keys() -> None:
    assert list(mf.MAML(mlp()).state_dict()) == ["model.0.weight", "model.0.bias", "model.2.weight", "model.2.bias"]


def test_dtype_follows_to(backend: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), lr=torch.tensor([0.3] * 5), backend=backend)
    exact = maml(support, query).loss
    maml.float()
    single = maml((support[0].float(), support[1]), (query[0].float(), query[1])).loss
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:metafast. layer '1' .BatchNorm1d. is in eval mode")
@pytest.mark.parametrize("change", CHANGES)
def test_what_the_user_changes_in_the_model_counts(change: str, backend: str) -> None:
    support, query = tasks()
    model = with_norm()
    maml = mf.MAML(model, steps=2, backend=backend)
    maml(support, query)
    CHANGES[change](model)  # type: ignore[arg-type]
    truth = oracle.unroll(model, "cross_entropy", support, query, lr=0.4, steps=2)
    out = maml(support, query)
    learnt = [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(out.logits, truth.logits, rtol=1e-10, atol=1e-13)
    same(gradients(out.loss, *learnt), gradients(truth.loss, *learnt))


def test_buffers_stay_untouched(backend: str) -> None:
    model = with_norm()
    before = copy.deepcopy(dict(model.named_buffers()))
    maml = mf.MAML(model, backend=backend)
    maml(*tasks()).loss.backward()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())


def test_data_parallel(backend: str, tmp_path: Path) -> None:
    support, query = tasks()
    model = with_norm()
    maml = mf.MAML(model, steps=2, backend=backend, learn_lr=True)
    expected = gradients(maml(support, query).loss, maml)
    distributed = torch.distributed
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(maml)
        for _ in range(2):
            parallel.zero_grad()
            parallel(support, query).loss.backward()
        same([p.grad for p in maml.parameters() if p.grad is not None], expected)
    finally:
        # Were the wrapper the group's last owner, its end would wait with the GIL for a thread that wants it.
        parallel = None
        gc.collect()
        distributed.destroy_process_group()


# ------------------------------------------------------------------------------------------------------ state per call


def test_no_grad_gives_the_values_alone(backend: str) -> None:
    support, query = tasks()
    maml = mf.MAML(mlp(), backend=backend)
    with_graph = maml(support, query)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = maml(support, query)
            params = maml.adapt(support)
        assert not out.loss.requires_grad and not any(p.requires_grad for p in params.values())
        assert all(torch.equal(a, b) for a, b in zip(out, with_graph, strict=True))


def test_several_forwards_before_a_backward(backend: str) -> None:
    model = mlp()
    maml = mf.MAML(model, backend=backend)
    batches = [tasks() for _ in range(3)]
    apart = [gradients(maml(*batch).loss, model) for batch in batches]
    together = torch.autograd.grad(sum(maml(*batch).loss for batch in batches), list(model.parameters()))
    same(list(together), [sum(g) for g in zip(*apart, strict=True)])  # type: ignore[arg-type]


def test_a_graph_kept_gives_the_same_again(backend: str) -> None:
    model = mlp()
    out = mf.MAML(model, backend=backend)(*tasks())
    first = gradients(2 * out.loss, model)
    for g in first:
        g.clone().zero_()
    again = gradients(2 * out.loss, model)
    same(again, first)
    both = gradients(out.loss + out.task_loss.sum(), model)
    same(both, [(1 + T) / 2 * g for g in first])


def test_editing_in_place_before_backward_is_noticed(backend: str) -> None:
    model, (support, query) = mlp(), tasks()
    out = mf.MAML(model, backend=backend)(support, query)
    with torch.no_grad():
        model[2].weight.add_(1)  # type: ignore[index]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.backward()


def test_a_learner_inside_a_learner(backend: str) -> None:
    """The outer learner's adapted parameters start the inner one's loss: both take part in one graph."""
    model, (support, query) = mlp(), tasks()
    outer = mf.MAML(model, steps=1, backend=backend)

    class Meta(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = outer
            self.scale = nn.Parameter(torch.tensor(0.5).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * self.body.predict(self.body.adapt(support), x.expand(T, *x.shape)).mean(0)

    meta = Meta()
    top = mf.MAML(meta, lr=0.1, steps=1, adapt_params="scale", backend="torch")
    loss = top(support, query).loss
    names = [n for n, _ in meta.named_parameters()]
    analytic = dict(zip(names, gradients(loss, meta), strict=True))
    weight, h = model[0].weight, 1e-6  # type: ignore[index]
    direction = torch.randn_like(weight)
    with torch.no_grad():
        weight.add_(h * direction)
        up = top(support, query).loss
        weight.sub_(2 * h * direction)
        down = top(support, query).loss
    slope = (analytic["body.model.0.weight"] * direction).sum()
    torch.testing.assert_close(slope, (up - down) / (2 * h), rtol=1e-6, atol=1e-10)


def test_differentiating_twice(backend: str) -> None:
    model = mlp()
    loss = mf.MAML(model, steps=1, backend=backend)(*tasks()).loss
    first = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    if backend == "torch":
        assert all(torch.isfinite(g).all() for g in gradients(sum(g.sum() for g in first), model))  # type: ignore[arg-type]
    else:
        with pytest.raises(RuntimeError, match='backend="torch"'):
            gradients(sum(g.sum() for g in first), model)  # type: ignore[arg-type]


def test_nan_data_gives_nan_to_its_own_task_only(backend: str) -> None:
    support, query = tasks()
    support[0][1, 0, 0] = float("nan")
    out = mf.MAML(mlp(), backend=backend)(support, query)
    assert out.task_loss.isnan().tolist() == [False, True, False] and out.loss.isnan()


def test_weights_that_are_all_zero_give_nan(backend: str) -> None:
    support, query = tasks()
    out = mf.MAML(mlp(), backend=backend)((*support, torch.zeros(T, N).double()), query)
    assert out.task_loss.isnan().all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_classes_of_any_integer_type(dtype: torch.dtype, backend: str) -> None:
    (xs, ys), (xq, yq) = tasks()
    maml = mf.MAML(mlp(), backend=backend)
    assert torch.equal(maml((xs, ys.to(dtype)), [xq, yq.to(dtype)]).loss, maml((xs, ys), (xq, yq)).loss)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("learn_lr", [False, True])
def test_meta_gradient_is_what_autograd_gives(backend: str, learn_lr: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    model[0].bias.requires_grad_(False)
    maml = mf.MAML(model, lr=0.1, steps=2, loss="mse", backend=backend, learn_lr=learn_lr)
    support, query = [
        (torch.randn(4, n, 3, dtype=torch.double), torch.randn(4, n, 2, dtype=torch.double)) for n in (5, 6)
    ]
    out, gradients = maml.meta_gradient(support, query)
    wanted = [p for p in maml.parameters() if p.requires_grad]
    expected = maml(support, query)
    assert torch.equal(out.loss, expected.loss) and not out.loss.requires_grad
    for ours, theirs in zip(gradients, torch.autograd.grad(expected.loss, wanted), strict=True):
        assert torch.equal(ours, theirs)
