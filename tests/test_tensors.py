"""Tensors that the native engine makes: as good as torch's own, and given back; and the same where torch is too old to
let C++ make them."""

from __future__ import annotations

import copy
import gc
import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import metafast as mf

SIZE = 512
STATM = Path("/proc/self/statm")


def products(dtype: torch.dtype = torch.float32, size: int = SIZE) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(size, size).to(dtype)
    params = {name: p.detach().expand(2, *p.shape).clone() for name, p in model.named_parameters()}
    batch = torch.randn(2, 3, size, dtype=dtype), torch.randn(2, 3, size, dtype=dtype)
    return mf.hvp(model, params, batch, {name: torch.randn_like(p) for name, p in params.items()}, strict=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_are_tensors_like_any_other(dtype: torch.dtype) -> None:
    made = products(dtype)["weight"]
    gc.collect()
    assert made.shape == (2, SIZE, SIZE) and made.dtype == dtype and made.is_contiguous() and not made.requires_grad
    assert made.data_ptr() % 64 == 0
    assert made.untyped_storage().nbytes() == made.numel() * made.element_size()
    before = made.clone()
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for other in (torch.load(file), copy.deepcopy(made), made.numpy().copy(), made.view(-1).reshape_as(made)):
        assert torch.equal(torch.as_tensor(other), before)
    made.mul_(2).requires_grad_()
    (made**2).sum().backward()
    assert torch.equal(made.grad, 4 * before)


def test_no_result_shares_memory_with_another() -> None:
    first, second = products(), products()
    places = {t.untyped_storage().data_ptr() for made in (first, second) for t in made.values()}
    assert len(places) == len(first) + len(second)
    kept = second["weight"].clone()
    for t in first.values():
        t.zero_()
    assert torch.equal(second["weight"], kept)


def test_a_part_outlives_the_rest() -> None:
    row = products()["weight"][1, 7]
    expected = row.clone()
    gc.collect()
    again = products()  # takes the memory of the first, if that was given back too early
    again["weight"].zero_()
    assert torch.equal(row, expected)


@pytest.mark.skipif(not STATM.exists(), reason="no /proc")
def test_memory_is_given_back() -> None:
    def resident() -> int:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    products()
    before = resident()
    for _ in range(100):  # 210 MB in all
        products()
    assert resident() - before < 120e6
    for size in range(SIZE, SIZE + 150):  # 400 MB in all, of which 32 are kept; and models, plans and workspaces
        products(size=size)
    assert resident() - before < 250e6


@pytest.mark.skipif(not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="all other tests do without")
def test_the_same_without_exchange_functions(tmp_path: Path) -> None:
    code = """
        import sys, torch
        if sys.argv[1] == "without":
            del torch.Tensor.__dlpack_c_exchange_api__
        import metafast as mf
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
        maml = mf.MAML(model, lr=0.1, steps=2, strict=True)
        support = torch.randn(5, 3, 3), torch.randint(2, (5, 3))
        x = torch.randn(5, 4, 3, requires_grad=True)
        query = x, torch.randint(2, (5, 4))
        made = [value for _ in range(3) for value in maml.meta_gradient(support, (x.detach(), query[1]))[1]]
        loss = maml(support, query).loss
        made += torch.autograd.grad(loss, [x, *model.parameters()])
        params = {name: p.detach().expand(5, *p.shape).clone() for name, p in model.named_parameters()}
        for _ in range(3):
            made += mf.hvp(model, params, support, params, loss="cross_entropy", strict=True).values()
        torch.save([m.detach() for m in made], sys.argv[2])
    """
    made = []
    for mode in ("with", "without"):
        file = tmp_path / mode
        subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(code), mode, str(file)], check=True, timeout=120)
        made.append(torch.load(file))
    assert len(made[0]) == len(made[1]) > 20
    for a, b in zip(*made, strict=True):
        assert torch.equal(a, b)
