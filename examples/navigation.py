"""Meta reinforcement learning: MAML on 2-D navigation (Finn, Abbeel and Levine 2017, section 5.3).

A point walks from the origin of the plane to a goal that it is not told, drawn from U[-0.5, 0.5]^2 for each task. A
step moves it by an action clipped to [-0.1, 0.1]^2 and is rewarded by minus the distance to the goal. An episode ends
within 0.01 of the goal, or after 100 steps. From 20 episodes of a task one step of policy gradient must learn the way.

The policy is Gaussian, pi(a | s) = N(mu_theta(s), sigma^2). The inner loss is REINFORCE's surrogate,

    L(theta) = -(1/N) sum_n A_n log pi(a_n | s_n) = (1/N) sum_n (A_n / sigma^2) (1/2) |mu_theta(s_n) - a_n|^2 + const,

a squared error with the weights w_n = A_n / sigma^2: reduction="mean" takes weights of both signs. A_n is the return
from step n on, less a linear baseline fitted to the task's own episodes (Duan et al. 2016), in units of its standard
deviation. The outer loss is the same on episodes of the adapted policy, and Adam follows its exact gradient.

    python examples/navigation.py                         # about 500 meta-steps, a picture, results.json
    python examples/navigation.py --meta-steps 3 --tasks 4 --test-tasks 4
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import metafast as mf

LIMIT, HORIZON, REACHED, DISCOUNT = 0.1, 100, 0.01, 0.99


class Episodes(NamedTuple):
    """What a policy met in E episodes of each of T tasks; H = HORIZON."""

    states: Tensor  # [T, E, H, 2] before each step
    actions: Tensor  # [T, E, H, 2] as drawn, before they are clipped
    rewards: Tensor  # [T, E, H], 0 once the goal is reached
    running: Tensor  # [T, E, H] whether the goal was still to be reached

    def returns(self) -> Tensor:
        """[T] mean undiscounted return of an episode."""
        return self.rewards.sum(-1).mean(-1)


def walk(learner: mf.MAML, params: dict[str, Tensor], goals: Tensor, episodes: int, sigma: float) -> Episodes:
    """All episodes of all tasks at once, task t with its own parameters. ``goals``: [T, 2]."""
    tasks = len(goals)
    state = torch.zeros(tasks, episodes, 2)
    running = torch.ones(tasks, episodes, dtype=torch.bool)
    steps = []
    with torch.no_grad():
        for _ in range(HORIZON):
            action = learner.predict(params, state) + sigma * torch.randn_like(state)
            moved = state + running.unsqueeze(-1) * action.clamp(-LIMIT, LIMIT)
            away = goals.unsqueeze(1) - moved
            steps.append((state, action, -away.norm(dim=-1) * running, running))
            running = running & (away.abs().amax(-1) > REACHED)
            state = moved
    return Episodes(*(torch.stack(values, 2) for values in zip(*steps, strict=True)))


def advantages(met: Episodes) -> Tensor:
    """[T, E, H] return from each step on, less what a linear function of state and time explains of it."""
    returns = torch.zeros_like(met.rewards)
    to_go = torch.zeros_like(met.rewards[..., 0])
    for step in reversed(range(HORIZON)):
        returns[..., step] = to_go = met.rewards[..., step] + DISCOUNT * to_go
    elapsed = torch.linspace(0, 1, HORIZON).expand_as(returns).unsqueeze(-1)
    features = torch.cat([met.states, met.states**2, elapsed, elapsed**2, elapsed**3, elapsed**0], -1)
    real = met.running.flatten(1).unsqueeze(-1).to(features.dtype)
    x, y = (values.flatten(1, 2) for values in (features, returns.unsqueeze(-1)))
    gram = (x * real).mT @ x + 1e-5 * torch.eye(x.shape[-1])
    rest = (y - x @ torch.linalg.solve(gram, (x * real).mT @ y)) * real
    mean = rest.sum(1, keepdim=True) / real.sum(1, keepdim=True)
    rest = (rest - mean) * real
    deviation = (rest.square().sum(1, keepdim=True) / real.sum(1, keepdim=True)).sqrt()
    return (rest / (deviation + 1e-8)).view_as(returns)


def surrogate(met: Episodes, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """The task sets (x, y, weights) on which squared error is minus advantage times log-probability."""
    return met.states.flatten(1, 2), met.actions.flatten(1, 2), advantages(met).flatten(1) / sigma**2


def goals(count: int) -> Tensor:
    return torch.rand(count, 2) - 0.5


def initial(learner: mf.MAML, tasks: int) -> dict[str, Tensor]:
    """The policy that meta-training found, once for each task."""
    return {name: p.detach().expand(tasks, *p.shape).contiguous() for name, p in learner.model.named_parameters()}


def train(learner: mf.MAML, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Meta-train; the mean return before and after adaptation at each meta-step."""
    optimiser = torch.optim.Adam(learner.parameters(), lr=args.meta_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(args.meta_steps, 1))
    history = []
    for step in range(args.meta_steps):
        towards = goals(args.tasks)
        before = walk(learner, initial(learner, args.tasks), towards, args.episodes, args.sigma)
        support = surrogate(before, args.sigma)
        with torch.no_grad():
            adapted = learner.adapt(support)
        after = walk(learner, adapted, towards, args.episodes, args.sigma)
        optimiser.zero_grad()
        learner(support, surrogate(after, args.sigma)).loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        history.append((float(before.returns().mean()), float(after.returns().mean())))
        if step % 25 == 0 or step + 1 == args.meta_steps:
            print(f"meta-step {step + 1:4d}  mean return {history[-1][0]:7.1f} -> {history[-1][1]:6.1f}", flush=True)
    return history


def test(learner: mf.MAML, towards: Tensor, args: argparse.Namespace) -> list[Episodes]:
    """What the policy meets after 0, 1, 2 and 3 steps, each from fresh episodes of the policy before it."""
    params = initial(learner, len(towards))
    met = [walk(learner, params, towards, args.episodes, args.sigma)]
    for _ in range(3):
        with torch.no_grad():
            params = learner.adapt(surrogate(met[-1], args.sigma), start=params)
        met.append(walk(learner, params, towards, args.episodes, args.sigma))
    return met


def picture(path: Path, met: list[Episodes], towards: Tensor, history: list[tuple[float, float]]) -> None:
    """Four tasks' episodes before and after adaptation, and the learning curve."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    shape = figure.add_gridspec(2, 4, height_ratios=(1.2, 1))
    for task in range(min(4, len(towards))):
        axes = figure.add_subplot(shape[0, task])
        for episodes, colour, label in ((met[0], "0.7", "before"), (met[1], "C0", "after 1 step")):
            for episode in range(min(5, episodes.states.shape[1])):
                steps = int(episodes.running[task, episode].sum())
                x, y = episodes.states[task, episode, :steps].T
                axes.plot(x, y, color=colour, linewidth=0.8, label=label if episode == 0 else None)
        axes.plot(*towards[task], "*", color="C3", markersize=12, label="goal, not told")
        axes.plot(0, 0, "ko", markersize=4, label="start")
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), aspect="equal")
        if task == 0:
            axes.legend(fontsize=7, loc="lower left")
    left, right = figure.add_subplot(shape[1, :2]), figure.add_subplot(shape[1, 2:])
    returns = torch.stack([episodes.returns() for episodes in met])
    left.plot(returns, color="0.8", linewidth=0.6)
    left.plot(returns.mean(1), "C0o-", label="mean")
    left.set(xlabel="inner steps", ylabel="return of a test task", xticks=range(4))
    left.legend(fontsize=7)
    for column, (label, colour) in enumerate((("before adaptation", "0.6"), ("after 1 step", "C0"))):
        right.plot([row[column] for row in history], color=colour, linewidth=0.8, label=label)
    right.set(xlabel="meta-step", ylabel="mean return", ylim=(-100, 0))
    right.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meta-steps", type=int, default=500)
    parser.add_argument("--tasks", type=int, default=20, help="tasks per meta-step")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of a task, before and after adaptation")
    parser.add_argument("--lr", type=float, default=0.01, help="step size of the inner loop")
    parser.add_argument("--meta-lr", type=float, default=0.001, help="Adam's rate, which falls to 0 as a cosine")
    parser.add_argument("--sigma", type=float, default=0.1, help="the policy's standard deviation")
    parser.add_argument("--test-tasks", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/navigation"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)

    policy = nn.Sequential(nn.Linear(2, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 2))
    with torch.no_grad():
        policy[-1].weight.mul_(0.1)  # small steps at first, or every action is clipped and teaches nothing
    learner = mf.MAML(policy, lr=args.lr, steps=1, loss="mse", reduction="mean")

    begin = time.perf_counter()
    history = train(learner, args)
    seconds = time.perf_counter() - begin
    torch.manual_seed(args.seed + 1)
    towards = goals(args.test_tasks)
    met = test(learner, towards, args)

    print(f"{args.meta_steps} meta-steps in {seconds:.0f} s; returns of {args.test_tasks} new tasks (95 % interval):")
    results = []
    for steps, episodes in enumerate(met):
        returns = episodes.returns()
        mean, interval = float(returns.mean()), 1.96 * float(returns.std()) / math.sqrt(len(returns))
        results.append({"inner_steps": steps, "return": mean, "interval": interval})
        print(f"  after {steps} inner steps  {mean:7.2f} +- {interval:.2f}")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    content = {"settings": settings, "seconds": seconds, "results": results, "history": history}
    (args.out / "results.json").write_text(json.dumps(content, indent=2))
    picture(args.out / "navigation.png", met, towards, history)
    print(f"results and picture: {args.out}")


if __name__ == "__main__":
    main()
