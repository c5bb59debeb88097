"""Augmentation of image tasks: each change against its definition, drawn evenly, and by the episode's generator."""

from __future__ import annotations

import pytest
import torch

from metafast.tasks import Augmented, Episode, Tasks, TaskSampler, generator

SIDE = 5


class Fixed(Tasks):
    """The same images in every task and draw: 3 classes of 2 support and 4 query images, all pixels different."""

    def __init__(self, height: int = SIDE, width: int = SIDE, dtype: torch.dtype = torch.float32) -> None:
        self.x = torch.rand(1, 18, 2, height, width, generator=generator(0)).to(dtype)

    def sample(self, tasks, generator):
        torch.rand(3, generator=generator)  # as a real one takes numbers first
        x, y = self.x.expand(tasks, -1, -1, -1, -1), torch.arange(3).repeat_interleave(6).expand(tasks, -1)
        support = (torch.arange(18) % 6) < 2
        return Episode((x[:, support], y[:, support]), (x[:, ~support], y[:, ~support]))


def pairs(tasks: int, **settings: object) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(images, changed images, labels) of support and of query."""
    plain = Fixed().sample(tasks, generator(1))
    changed = Augmented(Fixed(), **settings).sample(tasks, generator(1))
    assert all(torch.equal(p[1], c[1]) and c[0].shape == p[0].shape for p, c in zip(plain, changed, strict=True))
    return [(p[0], c[0], p[1]) for p, c in zip(plain, changed, strict=True)]


def even(counts: torch.Tensor) -> bool:
    """Within five deviations of a chi-squared variable."""
    expected = counts.sum() / len(counts)
    freedom = len(counts) - 1
    return bool(abs(((counts - expected) ** 2 / expected).sum() - freedom) < 5 * (2 * freedom) ** 0.5)


def test_flip_mirrors_half_of_the_images():
    for x, changed, _ in pairs(400, flip=True):
        same = (changed == x).flatten(2).all(-1)
        mirrored = (changed == x.flip(-1)).flatten(2).all(-1)
        assert (same ^ mirrored).all()
        assert even(torch.stack([same.sum(), mirrored.sum()]).double())


def test_crop_is_that_of_images_padded_by_their_edges():
    most = 2
    for x, changed, _ in pairs(60, crop=most):
        padded = torch.nn.functional.pad(x.flatten(0, 1), (most,) * 4, mode="replicate").view(*x.shape[:3], 9, 9)
        crops = padded.unfold(3, SIDE, 1).unfold(4, SIDE, 1)  # [T, N, C, 5, 5, SIDE, SIDE]
        equal = (crops == changed[:, :, :, None, None]).all(-1).all(-1).all(2).flatten(2)  # [T, N, 25]
        assert (equal.sum(-1) == 1).all()
        assert even(equal.sum((0, 1)).double())


def test_rotations_are_those_of_a_class():
    (xs, ts, ys), (xq, tq, yq) = pairs(300, rotate=True)
    turns = []
    for x, changed, y in ((xs, ts, ys), (xq, tq, yq)):
        equal = torch.stack([(changed == x.rot90(k, (-2, -1))).flatten(2).all(-1) for k in range(4)], -1)
        assert (equal.sum(-1) == 1).all()
        turned = equal.long().argmax(-1)
        own = torch.stack([turned[y == c].view(300, -1) for c in range(3)], 1)
        assert (own == own[..., :1]).all()
        turns.append(own[..., 0])
    assert torch.equal(*turns)  # support and query of a class turn alike
    assert even(turns[0].flatten().bincount(minlength=4).double())
    assert even(
        (turns[0][:, 0] * 4 + turns[0][:, 1]).bincount(minlength=16).double()
    )  # classes of a task, each its own


def test_noise_has_its_deviation():
    for x, changed, _ in pairs(200, noise=0.3):
        noise = (changed - x).double()
        count = noise.numel()
        assert abs(noise.mean()) < 5 * 0.3 / count**0.5 and abs(noise.std() - 0.3) < 5 * 0.3 / (2 * count) ** 0.5


@pytest.mark.parametrize("on", ["support", "query", "both"])
def test_one_set_alone(on):
    support, query = pairs(4, flip=True, crop=1, noise=0.1, on=on)
    for (x, changed, _), name in ((support, "support"), (query, "query")):
        assert torch.equal(x, changed) == (on not in (name, "both"))


def test_the_generator_decides_and_the_source_stays():
    tasks = Fixed()
    before = tasks.x.clone()
    changed = Augmented(tasks, rotate=True, flip=True, crop=2, noise=0.1)
    one, other, third = (changed.sample(3, generator(s)) for s in (5, 5, 6))
    assert torch.equal(tasks.x, before)
    assert all(torch.equal(a, b) for p, q in zip(one, other, strict=True) for a, b in zip(p, q, strict=True))
    assert not torch.equal(one.support[0], third.support[0])
    stream = changed.stream(3, seed=2)
    second = [next(stream) for _ in range(2)][1]
    assert torch.equal(second.query[0], next(changed.stream(3, seed=2, start=1)).query[0])


def test_of_a_sampler_and_of_another():
    x = torch.arange(12 * 3, dtype=torch.uint8).view(12, 1, 1, 3)
    sampler = TaskSampler(x, torch.arange(3).repeat_interleave(4), ways=3, shots=2, queries=2)
    xs = Augmented(Augmented(sampler, flip=True), flip=True).sample(50, generator(0)).support[0]
    rows = {tuple(row) for row in x.flatten(1).tolist()}
    seen = {tuple(row) for row in (xs * 255).round().int().flatten(0, 2).flatten(1).tolist()}
    assert seen == rows | {row[::-1] for row in rows}


def test_labels_keep_their_names():
    x = torch.arange(3).repeat_interleave(4).byte().view(12, 1, 1, 1)  # a pixel that says which class it is of
    tasks = Augmented(TaskSampler(x, x.flatten(), ways=3, shots=1, queries=1), flip=True)
    classes = (tasks.sample(9, generator(1)).support[0] * 255).round().int().view(9, 3)
    assert tasks.label_names(9, generator(1)) == [tuple(f"class {c}" for c in task) for task in classes.tolist()]
    assert len(set(map(tuple, classes.tolist()))) > 1


@pytest.mark.parametrize(
    ("tasks", "settings", "message"),
    [
        (Fixed(), {"on": "all"}, "on: expected one of 'both', 'support', 'query', got 'all'"),
        (Fixed(), {"crop": -1}, "crop: expected a whole number of at least 0, got -1"),
        (Fixed(), {"noise": -0.1}, "noise: expected a standard deviation >= 0, got -0.1"),
        (Fixed(4, 5), {"rotate": True}, r"rotate: expected square images, got \[2, 6, 2, 4, 5\]"),
        (Fixed(dtype=torch.int64), {"flip": True}, r"tasks: expected images .*, got torch.int64 \[2, 6, 2, 5, 5\]"),
    ],
)
def test_unfit_settings_are_refused(tasks, settings, message):
    with pytest.raises(ValueError, match=message):
        Augmented(tasks, **settings).sample(2, generator(0))
