"""``metafast search NAME``: train many times with settings chosen by optuna, each time for a stated budget."""

from __future__ import annotations

import argparse
import json
import math
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from metafast.cli import options
from metafast.cli import run as runs
from metafast.cli.train import KEY, add_settings, read_settings
from metafast.experiments import EXPERIMENTS, settings, space
from metafast.experiments.experiment import Experiment
from metafast.experiments.settings import SettingsError
from metafast.files import replacing
from metafast.training import metrics
from metafast.training.meta_train import meta_train
from metafast.training.trainer import TrainingState

#: Of a search, in its folder.
JOURNAL, RESULTS, BEST = "search.journal", "search.json", "best.toml"


class Search:
    """Search the settings of {name} that do best on validation tasks.

    Each trial trains for the budget that --minutes and --meta-steps state. What --over does not name is as given or as
    it is by default. A trial that does worse than half of those before it is given up early. The best settings are
    written as a TOML file that `metafast train` takes.

    Example:
      metafast search {name} --trials 20 --minutes 1 --over lr=0.01:1 --over steps=1:5 --over rule=sgd,adam
    """

    def __init__(self, kind: type[Experiment]) -> None:
        self.kind = kind
        self.NAME = f"search {kind.NAME}"
        lines = (Search.__doc__ or "").format(name=kind.NAME).splitlines()
        self.__doc__ = "\n".join(line.removeprefix("    ") for line in lines)

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--over",
            action="append",
            default=[],
            metavar="NAME=VALUES",
            help="a setting to search, as NAME=LOW:HIGH or NAME=A,B,...; may be given several times",
        )
        parser.add_argument(
            "--trials", type=options.at_least(1), default=20, metavar="N", help="how many in all (default %(default)s)"
        )
        parser.add_argument(
            "--out",
            type=Path,
            metavar="DIR",
            help="folder of the search; one that is there goes on (default: runs/search-NAME)",
        )
        add_settings(parser, self.kind)
        runs.add_machine_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend
        except ImportError:
            raise ImportError("a search needs optuna: pip install optuna") from None
        kind, device = self.kind, runs.prepare(args)
        fixed = read_settings(kind, args)
        chosen = space.parse(kind, args.over)
        if not chosen:
            raise SettingsError("--over NAME=VALUES must be given: a setting to search")
        settings.build(kind, fixed).check_budget()
        out = args.out or Path("runs") / f"search-{kind.NAME}"
        out.mkdir(parents=True, exist_ok=True)
        higher = metrics.direction(kind.METRIC)[1]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = optuna.storages.JournalStorage(JournalFileBackend(str(out / JOURNAL)))
        done = len([trial for trial in _trials(storage, kind.NAME) if trial.state.is_finished()])
        study = optuna.create_study(
            study_name=kind.NAME,
            storage=storage,
            load_if_exists=True,
            direction="maximize" if higher else "minimize",
            sampler=optuna.samplers.TPESampler(seed=fixed.get("seed", 0) + done),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        )
        if done:
            print(f"{done} of {args.trials} trials are done already")

        def objective(trial: Any) -> float:
            values = fixed | {name: dimension.suggest(trial, name) for name, dimension in chosen.items()}
            try:
                return self._value(trial, optuna, values, device, args.backend)
            except (ValueError, RuntimeError) as error:
                trial.set_user_attr("error", str(error))
                raise

        study.optimize(
            objective,
            n_trials=max(0, args.trials - done),
            catch=(ValueError, RuntimeError),
            callbacks=[lambda study, trial: self._report(study, trial, args.trials, out, fixed)],
        )
        return self._finish(study, out)

    def _value(self, trial: Any, optuna: Any, values: dict[str, Any], device: torch.device, backend: str) -> float:
        """Train with these settings; the best validation."""
        experiment = settings.build(self.kind, values)
        prepared = experiment.prepare()
        described = experiment.describe(prepared)
        torch.manual_seed(experiment.seed)  # here, as a run does: the weights are those that it begins with
        learner = described.build(device, backend)
        told = 0

        def look(state: TrainingState) -> None:
            nonlocal told
            for row in state.history.validation[told:]:
                trial.report(row["mean"], told)
                told += 1
            if trial.should_prune():
                state.stop("worse than half of the trials before")

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "training stopped", RuntimeWarning)
            how = experiment.training(prepared)
            history = meta_train(learner, prepared.tasks.train, progress=False, callbacks=[look], **how)
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        if history.stopped == "callback":
            raise optuna.TrialPruned
        if history.best is None or history.stopped == "diverged":
            raise ValueError(f"training stopped: {history.reason}")
        return float(history.best["value"])

    def _report(self, study: Any, trial: Any, trials: int, out: Path, fixed: dict[str, Any]) -> None:
        """A line for the trial; results and the best settings so far, on disk."""
        failed = f"failed: {trial.user_attrs.get('error')}"
        state = {"COMPLETE": "", "PRUNED": "given up", "FAIL": failed}[trial.state.name]
        value = "-" if trial.value is None else f"{trial.value:.4g}"
        print(
            f"trial {trial.number + 1}/{trials}  {self.kind.METRIC} {value:>7}  {shown(trial.params)}  {state}".rstrip()
        )
        sys.stdout.flush()
        rows = [
            {"trial": t.number, "state": t.state.name.lower(), "value": finite(t.value), "settings": t.params}
            for t in study.trials
        ]
        content = {"experiment": self.kind.NAME, "metric": self.kind.METRIC, "trials": rows}
        with replacing(out / RESULTS) as file:
            file.write(json.dumps(content, indent=2).encode())
        if any(row["state"] == "complete" for row in rows):
            best = settings.plain(settings.build(self.kind, {**fixed, **study.best_params}))
            with replacing(out / BEST) as file:
                file.write(settings.toml({KEY: self.kind.NAME, **best}).encode())

    def _finish(self, study: Any, out: Path) -> int:
        complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
        if not complete:
            print("no trial came to an end; see the lines above", file=sys.stderr)
            return 1
        print(f"best {self.kind.METRIC} {study.best_value:.4g} on validation tasks: {shown(study.best_params)}")
        print(f"all trials: {out / RESULTS}\nto train with the best: metafast train {out / BEST}")
        return 0


def _trials(storage: Any, name: str) -> list[Any]:
    """Those of the study of this name, if there is one."""
    found = [study for study in storage.get_all_studies() if study.study_name == name]
    return list(storage.get_all_trials(found[0]._study_id)) if found else []


def shown(values: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


def finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


COMMANDS = tuple(Search(kind) for kind in EXPERIMENTS.values())
