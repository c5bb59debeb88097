"""What mf.meta_train costs beside the bare loop of meta_gradient and Adam, on the sinusoid experiment of MAML.

``python -m benchmarks.meta_train [--threads N] [--steps N] [--rounds N]`` first checks that all end with the same bits,
then times them in turns: N meta-steps each, from the first draw of tasks on, by a learner that has seen its model. It
prints medians of the time of a meta-step, by the clock and by the processor, and of the ratios of each turn.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import torch

import metafast as mf
from benchmarks import machine
from metafast import optim
from metafast.tasks import Sinusoids
from metafast.training.networks import mlp

TASKS = 25
RATE = 0.001
Clocks = tuple[float, float]


def learner() -> mf.MAML:
    torch.manual_seed(0)
    return mf.MAML(mlp([1, 40, 40, 1]), lr=0.01, steps=1, loss="mse", strict=True)


def bare(maml: mf.MAML, steps: int) -> None:
    """The loop as one writes it who wants nothing but the weights."""
    parameters = list(maml.parameters())
    adam = optim.Adam(parameters, RATE)
    episodes = Sinusoids().stream(TASKS)
    for _ in range(steps):
        _, gradients = maml.meta_gradient(*next(episodes))
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        adam.step()


def meta_train(maml: mf.MAML, steps: int) -> None:
    """Without files, bar and validation, which cost what one asks of them."""
    mf.meta_train(maml, Sinusoids(), meta_batch=TASKS, meta_lr=RATE, max_iters=steps, progress=False)


def into_a_folder(maml: mf.MAML, steps: int) -> None:
    """As `metafast train sinusoid` does it."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        out = Path(folder) / "run"
        mf.meta_train(maml, Sinusoids(), meta_batch=TASKS, meta_lr=RATE, max_iters=steps, out=out)


RIVALS: dict[str, Callable[[mf.MAML, int], None]] = {
    "bare loop": bare,
    "mf.meta_train": meta_train,
    "with folder and bar": into_a_folder,
}


def check(steps: int = 450) -> None:
    """All end with the same bits, so they are the same work."""
    ends = []
    for run in RIVALS.values():
        maml = learner()
        run(maml, steps)
        ends.append(torch.cat([p.detach().flatten() for p in maml.parameters()]))
    if not all(torch.equal(ends[0], other) for other in ends[1:]):
        raise RuntimeError("mf.meta_train and the bare loop end with different weights: there is nothing to time")


def clocks(run: Callable[[mf.MAML, int], None], steps: int) -> Clocks:
    """Microseconds of a meta-step by the clock and by the processor, that of all threads."""
    maml = learner()
    bare(maml, 20)  # the model is looked at once
    wall, processor = time.perf_counter(), time.process_time()
    run(maml, steps)
    return 1e6 * (time.perf_counter() - wall) / steps, 1e6 * (time.process_time() - processor) / steps


def measure(steps: int, rounds: int) -> dict[str, list[Clocks]]:
    times: dict[str, list[Clocks]] = {name: [] for name in RIVALS}
    for _ in range(rounds):
        for name, run in RIVALS.items():
            times[name].append(clocks(run, steps))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    machine.confine(args.threads)
    check()
    times = measure(args.steps, args.rounds)
    print(f"{'microseconds a meta-step':26}{'clock':>9}{'processor':>11}{'ratios':>18}")
    for name, turns in times.items():
        wall, processor = (statistics.median(turn[i] for turn in turns) for i in (0, 1))
        ratios = (
            statistics.median(turn[i] / other[i] for turn, other in zip(turns, times["bare loop"], strict=True))
            for i in (0, 1)
        )
        print(f"{name:26}{wall:9.1f}{processor:11.1f}{'   '.join(f'{ratio:.3f}' for ratio in ratios):>18}")


if __name__ == "__main__":
    main()
