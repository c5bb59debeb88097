"""The short way to a meta-step asked for again gives what the long way gives, and knows when to leave it."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metafast as mf
from changes import CHANGES, WAYS, with_norm
from metafast.engine import ops
from metafast.tracking import metadata as metadata_module
from metafast.tracking.metadata import Contents, metadata

T = 3
pytestmark = pytest.mark.filterwarnings("ignore:metafast. layer '1' .BatchNorm1d. is in eval mode")


def batch(examples: int, tasks: int = T, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(tasks, examples, 4, dtype=dtype), torch.randint(WAYS, (tasks, examples))


def repeated(**settings: Any) -> mf.MAML:
    """A learner whose next call of the same kind goes the short way."""
    maml = mf.MAML(with_norm(), **{"lr": 0.3, "steps": 2, "strict": True, **settings})
    maml(batch(5), batch(4))
    return maml


def learnt(maml: mf.MAML) -> list[nn.Parameter]:
    return [p for p in maml.parameters() if p.requires_grad]


def is_what_a_new_learner_gives(maml: mf.MAML, support: Any, query: Any) -> None:
    new = copy.deepcopy(maml)
    expected = new(support, query)
    gradients = torch.autograd.grad(expected.loss, learnt(new), materialize_grads=True)
    out, ours = maml.meta_gradient(support, query)
    assert all(map(torch.equal, out, expected)) and not any(value.requires_grad for value in out)
    assert all(map(torch.equal, ours, gradients)) and len(ours) == len(gradients)
    out = maml(support, query)
    ours = torch.autograd.grad(out.loss, learnt(maml), materialize_grads=True)
    assert all(map(torch.equal, out, expected)) and out.support_loss.requires_grad is False
    assert all(map(torch.equal, ours, gradients)) and len(ours) == len(gradients)


def short(maml: mf.MAML, monkeypatch: pytest.MonkeyPatch, support: Any, query: Any) -> bool:
    """Do a gradient and a graph for these data go the short way?"""

    def goes(call: Callable[..., Any]) -> bool:
        try:
            call(support, query)
        except AttributeError:
            return False
        return True

    with monkeypatch.context() as patch:
        patch.delattr(ops, "meta_gradient")
        patch.delattr(ops, "unroll")
        ways = {goes(maml.meta_gradient), goes(maml)}
    assert len(ways) == 1
    return ways.pop()


def test_the_same_again_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    maml = repeated()
    support, query = batch(5), batch(4)
    assert short(maml, monkeypatch, support, query)
    assert short(maml, monkeypatch, list(support), [*query, None])  # as a DataLoader collates
    is_what_a_new_learner_gives(maml, support, query)
    assert not short(maml, monkeypatch, batch(6), query)


def test_after_a_gradient_the_graph_takes_the_long_way_once(monkeypatch: pytest.MonkeyPatch) -> None:
    maml = repeated()
    maml.meta_gradient(batch(6), batch(4))
    is_what_a_new_learner_gives(maml, batch(6), batch(4))
    assert short(maml, monkeypatch, batch(6), batch(4))


def test_a_graph_again_takes_any_cotangent() -> None:
    maml, support, query = repeated(), batch(5), batch(4)
    new = copy.deepcopy(maml)
    uses: list[Callable[[Any], Tensor]] = [
        lambda out: 3 * out.loss,
        lambda out: out.task_loss.prod(),
        lambda out: out.loss + out.logits.square().sum(),
    ]
    for use in uses:
        ours = torch.autograd.grad(use(maml(support, query)), learnt(maml))
        new._repeat = None
        assert all(map(torch.equal, ours, torch.autograd.grad(use(new(support, query)), learnt(new))))
    out = maml(support, query)
    maml(batch(5), batch(4))  # another call in between
    once = torch.autograd.grad(out.loss, learnt(maml), retain_graph=True)
    assert all(map(torch.equal, once, maml.meta_gradient(support, query)[1]))
    torch.testing.assert_close(torch.autograd.grad(out.loss, learnt(maml)), once)
    with pytest.raises(RuntimeError, match="differentiable once"):
        made = torch.autograd.grad(maml(support, query).loss, learnt(maml), create_graph=True)
        made[0].sum().backward()


@pytest.mark.parametrize("lr", [0.3, torch.tensor(0.3).double()])
def test_outputs_do_not_keep_the_data(lr: Any) -> None:
    maml = mf.MAML(with_norm(), lr, steps=2, strict=True)
    for _ in range(2):
        (x, y), query = batch(5), batch(4)
        alive = weakref.ref(x)
        out = maml((x, y), query)
        out.loss.backward()
        del x
        assert alive() is None and out.loss.isfinite()


def test_data_that_want_a_gradient_get_it() -> None:
    maml, (x, y), query = repeated(), batch(5), batch(4)
    expected = torch.autograd.grad(copy.deepcopy(maml)((x.requires_grad_(), y), query).loss, x)[0]
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(maml((x, y), query).loss, x)[0], expected)
    is_what_a_new_learner_gives(maml, (x.detach(), y), query)
    with torch.no_grad():
        assert not maml((x, y), query).loss.requires_grad


@pytest.mark.parametrize("change", CHANGES)
def test_changes_to_the_model_count(change: str) -> None:
    maml = repeated()
    CHANGES[change](maml.model)  # type: ignore[arg-type]
    is_what_a_new_learner_gives(maml, batch(5), batch(4))


SETTINGS: dict[str, Callable[[mf.MAML], Any]] = {
    "lr": lambda m: setattr(m, "lr", 0.1),
    "lr as a tensor": lambda m: setattr(m, "lr", torch.tensor(0.1).double()),
    "lr by step": lambda m: setattr(m, "lr", torch.tensor([0.3, 0.1]).double()),
    "steps": lambda m: setattr(m, "steps", 3),
    "no steps": lambda m: setattr(m, "steps", 0),
    "loss": lambda m: setattr(m, "loss", "multi_margin"),
    "loss as a module": lambda m: setattr(m, "loss", nn.CrossEntropyLoss(label_smoothing=0.2)),
    "first_order": lambda m: setattr(m, "first_order", True),
    "reduction": lambda m: setattr(m, "reduction", "sum"),
    "adapt_params": lambda m: setattr(m, "adapt_params", "3.*"),
    "model": lambda m: setattr(m, "model", with_norm()),
    "threads": lambda m: torch.set_num_threads(1),
}


@pytest.mark.parametrize("change", SETTINGS)
def test_changes_to_the_learner_count(change: str) -> None:
    threads = torch.get_num_threads()
    maml = repeated()
    try:
        SETTINGS[change](maml)
        is_what_a_new_learner_gives(maml, batch(5), batch(4))
        is_what_a_new_learner_gives(maml, batch(5), batch(4))
    finally:
        torch.set_num_threads(threads)


def test_other_forms_of_data() -> None:
    maml = repeated()
    support, query = batch(5), batch(4)
    is_what_a_new_learner_gives(
        maml, (support[0].mT.contiguous().mT, support[1]), query
    )  # the same shape, other strides
    is_what_a_new_learner_gives(maml, (*support, torch.rand(T, 5).double()), query)
    is_what_a_new_learner_gives(maml, support, (*query, torch.rand(T, 4).double()))
    is_what_a_new_learner_gives(maml, (support[0], support[1].int()), query)
    is_what_a_new_learner_gives(maml, batch(5, tasks=2), batch(4, tasks=2))
    hot = support[0].clone().index_fill_(0, torch.tensor([1]), torch.nan)
    maml.meta_gradient(support, query)
    loss = maml.meta_gradient((hot, support[1]), query)[0].task_loss
    assert loss.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("way", ["meta_gradient", "forward"])
def test_bad_data_is_refused_as_ever(way: str) -> None:
    maml = repeated()
    call = getattr(maml, way)
    support, query = batch(5), batch(4)
    wrong = support[1].clone()
    wrong[1, 2] = WAYS
    with pytest.raises(ValueError, match=f"support y holds label {WAYS}"):
        call((support[0], wrong), query)
    with pytest.raises(ValueError, match="query y holds label -1"):
        call(support, (query[0], query[1].clone().fill_(-1)))
    with pytest.raises(TypeError, match=r"query x has dtype torch.float32"):
        call(support, batch(4, dtype=torch.float32))
    with pytest.raises(TypeError, match="support must be a tuple"):
        call((*support, None, None), query[:1])
    with pytest.raises(TypeError, match="support must be a tuple"):
        call(5, query)
    for odd in (support[0].numpy(), support[0].tolist(), None):
        with pytest.raises(TypeError, match=r"support x must be a torch.Tensor"):
            call((odd, support[1]), query)


def test_threads_of_their_own() -> None:
    """A session, and the workspace with it, is used by the thread that made it."""
    maml = repeated()
    sets = [(batch(5), batch(4)) for _ in range(16)]
    expected = [maml.meta_gradient(*s)[1] for s in sets]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(lambda s: maml.meta_gradient(*s)[1], sets * 4), expected * 4, strict=True):
            assert all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda maml: pickle.loads(pickle.dumps(maml))])
def test_copies_have_their_own(clone: Callable[[mf.MAML], mf.MAML]) -> None:
    maml = repeated()
    twin = clone(maml)
    with torch.no_grad():
        twin.model[0].weight.mul_(2)
    is_what_a_new_learner_gives(twin, batch(5), batch(4))
    is_what_a_new_learner_gives(maml, batch(5), batch(4))


# ---------------------------------------------------------------------------------------------- Hessian-vector products


def numbers(model: nn.Module, tasks: int = T) -> dict[str, Tensor]:
    return {name: torch.randn(tasks, *p.shape, dtype=p.dtype) for name, p in model.named_parameters()}


def product(model: nn.Module, params: Any, data: Any, v: Any) -> dict[str, Tensor]:
    return mf.hvp(model, params, data, v, "cross_entropy", strict=True)


def is_what_a_new_model_gives(model: nn.Module, params: Any, data: Any, v: Any) -> None:
    ours, expected = product(model, params, data, v), product(copy.deepcopy(model), params, data, v)
    assert list(ours) == list(expected) and all(torch.equal(ours[name], expected[name]) for name in ours)


def test_a_product_again_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_norm()
    product(model, numbers(model), batch(5), numbers(model))
    for _ in range(3):
        is_what_a_new_model_gives(model, numbers(model), batch(5), numbers(model))
    renamed, (x, y), v = {"".join([*name]): p for name, p in numbers(model).items()}, batch(5), numbers(model)
    apart = y.repeat_interleave(2, 1)[:, ::2]  # labels that do not stand side by side
    expected = product(model, renamed, (x, y), v)
    monkeypatch.delattr(ops, "hvp")
    product(model, numbers(model), batch(5), numbers(model))
    ours = product(model, renamed, [x, apart, None], v)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    with pytest.raises(ValueError, match=f"batch y holds label {WAYS}"):
        product(model, renamed, (x, torch.full_like(apart, WAYS)), v)
    with pytest.raises(AttributeError):
        product(model, numbers(model), batch(6), numbers(model))


@pytest.mark.parametrize("change", CHANGES)
def test_changes_to_the_model_count_for_products(change: str) -> None:
    """Which are noticed while the product is computed already."""
    model = with_norm()
    params, v = numbers(model), numbers(model)
    product(model, params, batch(5), v)
    CHANGES[change](model)  # type: ignore[arg-type]
    if not all(p.requires_grad for p in model.parameters()):
        with pytest.raises(ValueError, match=r"^v\['0.weight'\]: the model has no such parameter"):
            product(model, params, batch(5), v)
    elif params.keys() == dict(model.named_parameters()).keys():  # the same dictionaries, which alone would not tell
        is_what_a_new_model_gives(model, params, batch(5), v)
    else:
        is_what_a_new_model_gives(model, numbers(model), batch(5), numbers(model))


def test_products_in_threads_of_their_own() -> None:
    model = with_norm()
    sets = [(numbers(model), batch(200), numbers(model)) for _ in range(16)]
    expected = [product(model, *s) for s in sets]
    with ThreadPoolExecutor(4) as pool:
        for ours, theirs in zip(pool.map(lambda s: product(model, *s), sets * 8), expected * 8, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_products_of_other_kinds() -> None:
    model = with_norm()
    params, v = numbers(model), numbers(model)
    first, *others = params
    product(model, params, batch(5), v)
    is_what_a_new_model_gives(model, dict(reversed(params.items())), batch(5), v)
    for _ in range(2):
        rest = {name: params[name] for name in others}
        is_what_a_new_model_gives(model, rest, batch(5), {name: v[name] for name in others})
    is_what_a_new_model_gives(model, {first: params[first]}, batch(5), {first: v[first]})
    is_what_a_new_model_gives(model, {first: params[first][0]}, batch(5), {first: v[first][0]})
    is_what_a_new_model_gives(model, {first: params[first][1]}, batch(5), {first: v[first][1]})
    is_what_a_new_model_gives(model, params, (*batch(5), torch.rand(T, 5).double()), v)
    for _ in range(2):  # parameters shared by all tasks, vectors not; one tensor as both
        is_what_a_new_model_gives(model, {first: params[first][0]}, batch(5), {first: v[first]})
        is_what_a_new_model_gives(model, {first: params[first][0]}, batch(5), {first: v[first] + 1})
    shared = {name: p.detach() for name, p in model.named_parameters()}
    data = batch(5)
    expected = product(copy.deepcopy(model), shared, data, shared)
    for _ in range(2):
        ours = product(model, shared, data, shared)
        assert all(torch.equal(ours[name], expected[name]) for name in shared)
    same = params[first].clone()
    is_what_a_new_model_gives(model, {**params, first: same}, batch(5), {**v, first: same})
    is_what_a_new_model_gives(model, params, batch(5), v)
    model[0].weight.requires_grad_(False)
    assert product(model, params, batch(5), {name: v[name] for name in others}).keys() == set(others)


def test_bad_products_are_refused_as_ever() -> None:
    model = with_norm()
    params, v, (x, y) = numbers(model), numbers(model), batch(5)
    first = next(iter(params))
    for _ in range(2):
        product(model, params, (x, y), v)
    with pytest.raises(ValueError, match=f"batch y holds label {WAYS}"):
        product(model, params, (x, y.clone().fill_(WAYS)), v)
    with pytest.raises(TypeError, match=r"batch x must be a torch.Tensor"):
        product(model, params, (x.tolist(), y), v)
    with pytest.raises(TypeError, match="batch must be a tuple"):
        product(model, params, (x,), v)
    with pytest.raises(TypeError, match=rf"^params\['{first}'\] must be a torch.Tensor"):
        product(model, {**params, first: 3.0}, (x, y), v)
    with pytest.raises(TypeError, match=rf"^v\['{first}'\] has dtype torch.float32; expected torch.float64"):
        product(model, params, (x, y), {**v, first: v[first].float()})
    with pytest.raises(TypeError, match=r"^v must be a dict"):
        product(model, params, (x, y), [*v.values()])
    with pytest.raises(ValueError, match=rf"^v has no entry for '{first}'"):
        product(model, params, (x, y), {name: v[name] for name in v if name != first})


# ------------------------------------------------------------------------------------------------------------- metadata


class Special(torch.Tensor):
    pass


@pytest.mark.parametrize("native", [True, False])
def test_metadata_tell_shapes_dtypes_and_devices_apart(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native:
        monkeypatch.setattr(metadata_module, "_plain", lambda tensors: None)
    kinds = [
        *(torch.zeros(shape) for shape in [(), (1,), (2,), (1, 2), (2, 1), (0, 2), (2, 0)]),
        *(torch.zeros(2, dtype=d) for d in (torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16)),
        torch.zeros(2, device="meta"),
        None,
    ]
    for i, a in enumerate(kinds):
        for j, b in enumerate(kinds):
            assert (metadata((a, None)) == metadata((b, None))) == (i == j)
    one = torch.zeros(2, 3)
    assert metadata((one,)) == metadata((nn.Parameter(torch.ones(2, 3)),)) == metadata((torch.ones(3, 2).mT,))
    assert metadata((one,)) != metadata((one, one)) != metadata((one, None))


def test_metadata_of_what_is_no_plain_tensor() -> None:
    for odd in (torch.zeros(2).to_sparse(), torch.zeros(2, device="meta"), Special([1.0, 2.0])):
        assert metadata((odd,)) == metadata((odd,)) and isinstance(metadata((odd,)), tuple)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(a=[1]),  # equal, but another
        lambda d: d.update(c=3),
        lambda d: d.pop("b"),
        lambda d: d.update(c=d.pop("b")),
        lambda d: d.update(a=d.pop("a")),  # another order
    ],
)
def test_contents_of_dictionaries(change: Callable[[dict[str, Any]], Any]) -> None:
    held: dict[str, Any] = {"a": [1], "b": 2}
    empty: dict[str, Any] = {}
    other = {"d": 4}
    kept = [dict(held), dict(other)]  # Contents borrows what it refers to
    contents = Contents([held, empty, other], [])
    assert contents.hold()
    change(held)
    assert not contents.hold()
    held.clear()
    held.update(kept[0])
    assert contents.hold()
    change(held)
    other.clear()
    assert not contents.hold()
