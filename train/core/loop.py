"""The loop that every stage trains in: schedule, clipping, averages, checkpoints, evaluation, and every way to stop.

A step's data and random numbers depend on the seed, the stage and the step's number only, so a run that was killed at
any moment and started again has the losses of one that was not, bit for bit on a CPU.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llm2clip.common.files import write_atomic
from llm2clip.common.terminal import log_stderr
from llm2clip.train.core import distributed
from llm2clip.train.core.checkpoint import (
    load_optimizer,
    load_trained,
    optimizer_state,
    read_checkpoint,
    trained_state,
    write_checkpoint,
)
from llm2clip.train.core.display import Display
from llm2clip.train.core.ema import WeightAverage
from llm2clip.train.core.history import History
from llm2clip.train.core.run_folder import Run, RunError, stage_number
from llm2clip.train.core.schedule import learning_rate_factor
from llm2clip.train.core.stage import Evaluate, LoopConfig, Outcome, StepLosses, Trainable
from llm2clip.train.core.stopping import StopRequestedError, StopSignals

FREE_FIELDS = ("checkpoint_every", "evaluate_every", "log_every", "trackers", "patience")
"""Settings that may change between the parts of an interrupted run: they change no weight."""


def train(
    run: Run,
    stage: Trainable,
    config: LoopConfig,
    *,
    evaluate: Evaluate | None = None,
    settings: Any = None,  # noqa: ANN401 (a dataclass)
    free: tuple[str, ...] = (),
) -> Outcome:
    """Train a stage, resuming from its checkpoint; afterwards the modules have the weights to export.

    Args:
        run: Folder of checkpoints and history.
        stage: What is trained, changed in place.
        config: Length, schedule, intervals.
        evaluate: Measures the present weights; higher is better for ``keep_best``. Called in every process.
        settings: Configuration that a resumed run must share; ``config`` by default.
        free: Names of its fields that may differ, beside ``FREE_FIELDS``.

    Raises:
        RunError: The folder holds another run, the loss is not finite, memory does not suffice for one item, the
            checkpoint cannot be written or another process is lost.
        SystemExit: Status 143 after SIGTERM; on Ctrl-C ``KeyboardInterrupt``. A checkpoint has been written.
    """
    if distributed.is_first():
        run.begin(stage.name, settings if settings is not None else config, free=(*FREE_FIELDS, *free))
    return _Loop(run, stage, config, evaluate).run_all()


@dataclass
class _State:
    """What a checkpoint holds beside tensors."""

    step: int = 0
    evaluated: int = -1
    best: float = -math.inf
    best_step: int = -1
    waited: int = 0
    measures: dict[str, float] = field(default_factory=dict)


class _Loop:
    def __init__(self, run: Run, stage: Trainable, config: LoopConfig, evaluate: Evaluate | None) -> None:
        self.run, self.stage, self.config, self.evaluate = run, stage, config, evaluate
        self.peaks = [group["lr"] for group in stage.optimizer.param_groups]
        self.state = _State()
        self.average = WeightAverage(stage.modules, decay=config.ema) if config.ema else None
        self.checkpoint = run.folder / f"{stage.name}.pt"
        self.best = run.folder / f"{stage.name}-best.pt"
        self.saved = -1
        first = distributed.is_first()
        self.history = History(run.folder, stage.name, trackers=config.trackers) if first else None
        self.signals = StopSignals(interrupt=distributed.process_count() == 1)

    def run_all(self) -> Outcome:
        if self.checkpoint.exists():
            self._load()
        if self.history:
            self.history.rewind(self.state.step, evaluated=self.state.evaluated)
        began = time.monotonic()
        shown = Display(
            self.stage.name, total=self.config.steps, step=self.state.step, shown=distributed.is_first()
        )
        with distributed.lost_process(), self.signals.watching(), shown as display:
            try:
                while self._more(display):
                    self._one_step(display)
            except StopRequestedError:
                self.stage.optimizer.zero_grad()
            if self.saved != self.state.step:
                self._save()
            if self.signals.requested:
                self._stopped()
        outcome = self._export()
        if distributed.is_first() and not self.run.done(self.stage.name):
            self.run.finish(
                self.stage.name,
                {
                    "seconds": round(time.monotonic() - began, 1),
                    "steps": outcome.steps,
                    "exported": outcome.exported,
                    "measures": dict(outcome.measures),
                },
            )
        return outcome

    def _more(self, display: Display) -> bool:
        """Evaluate and checkpoint where due; whether there is another step to take."""
        step, config = self.state.step, self.config
        due = step % config.evaluate_every == 0 or step == config.steps
        if self.evaluate and due and self.state.evaluated < step:
            self._evaluate(display)
        early = config.patience is not None and self.state.waited >= config.patience
        if self.signals.requested or step >= config.steps or early:
            return False
        if step % config.checkpoint_every == 0 and step and self.saved != step:
            self._save()
        return True

    def _evaluate(self, display: Display) -> None:
        assert self.evaluate is not None
        training = {name: module.training for name, module in self.stage.modules.items()}
        for module in self.stage.modules.values():
            module.eval()
        try:
            with self.signals.interruptible(), self.average.applied() if self.average else nullcontext():
                measured = dict(self.evaluate())
        finally:
            for name, module in self.stage.modules.items():
                module.train(training[name])
        measured = distributed.gather_objects(measured)[0]
        state = self.state
        state.evaluated, self.saved = state.step, -1
        if self.history:
            self.history.add(state.step, measured, trained=False)
        display.say(f"{self.stage.name} {state.step}: {_words(measured)}")
        wanted = self.config.keep_best
        if wanted is None:
            state.measures = measured
            return
        if wanted not in measured:
            raise RunError(
                f"keep_best is {wanted!r}, but the evaluation measures {', '.join(sorted(measured))}"
            )
        if measured[wanted] > state.best:
            state.best, state.best_step, state.waited, state.measures = (
                measured[wanted],
                state.step,
                0,
                measured,
            )
            write_checkpoint(self.best, {"step": state.step, "modules": self._weights()})
            self._save()
        else:
            state.waited += 1

    def _one_step(self, display: Display) -> None:
        step, stage = self.state.step, self.stage
        factor = learning_rate_factor(
            step,
            warmup=self.config.warmup,
            total=self.config.steps,
            floor=self.config.floor,
            decay=self.config.decay,
        )
        for group, peak in zip(stage.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        with self.signals.interruptible():
            done, norm = self._gradients(display)
        stop = {"stop": float(self.signals.requested is not None)}
        losses = distributed.mean_of({**done.losses, **stop})
        self._check_finite({**losses, "grad_norm": norm}, done.keys)
        # From here until the step is counted no signal interrupts.
        stage.optimizer.step()
        if self.average:
            self.average.update()
        self.state.step += 1
        if losses.pop("stop") and not self.signals.requested:
            self.signals.requested = signal.SIGTERM  # another process got it
        items = done.items * distributed.process_count()
        display.step(self.state.step, losses, items=items)
        final = self.state.step == self.config.steps
        if self.history and (final or self.state.step % self.config.log_every == 0):
            extra = {"lr": self.peaks[0] * factor, "grad_norm": norm}
            extra["items_per_second"] = round(display.items_per_second, 2)
            self.history.add(self.state.step, {**losses, **extra})

    def _gradients(self, display: Display) -> tuple[StepLosses, float]:
        """Run the stage's step, in smaller pieces if memory runs out; the norm of the averaged gradient."""
        stage, step = self.stage, self.state.step
        buffers = self._buffers()
        while True:
            stage.optimizer.zero_grad()
            torch.manual_seed((self.run.seed * 1_000_003 + stage_number(stage.name) + step) % 2**63)
            try:
                done = stage.step(step, self.run.rng(stage.name, step))
                break
            except StopRequestedError:
                self._restore(buffers)
                raise
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._shrink(error, display)
                self._restore(buffers)
        parameters = [p for group in stage.optimizer.param_groups for p in group["params"]]
        distributed.average_gradients(parameters)
        limit = self.config.clip if self.config.clip is not None else math.inf
        norm = nn.utils.clip_grad_norm_(parameters, limit)
        return done, float(distributed.full(norm))

    def _shrink(self, error: BaseException, display: Display) -> None:
        stage = self.stage
        if stage.micro_batch <= 1 or distributed.process_count() > 1:
            advice = "Set a smaller micro_batch" if stage.micro_batch > 1 else "Use a smaller model or batch"
            raise RunError(
                f"out of memory with {stage.micro_batch} items at a time: {str(error).splitlines()[0]}. {advice}, "
                "and run the same command again"
            ) from error
        stage.micro_batch = max(1, stage.micro_batch // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        display.say(f"out of memory: from now on {stage.micro_batch} items are computed at a time")

    def _check_finite(self, values: Mapping[str, float], keys: tuple[str, ...]) -> None:
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        if not wrong:
            return
        rank = distributed.process_number()
        path = self.run.folder / f"{self.stage.name}-not-finite{f'-{rank}' if rank else ''}.json"
        found = {"step": self.state.step, "keys": keys, "values": {k: str(v) for k, v in values.items()}}
        write_atomic(path, json.dumps(found, indent=1, ensure_ascii=False))
        raise RunError(
            f"{wrong[0]} of step {self.state.step} is {values[wrong[0]]}, so training stops; the samples of this "
            f"batch are in {path}. Lower the learning rate or look at those samples"
        )

    def _buffers(self) -> dict[str, dict[str, Tensor]]:
        return {
            name: {inner: buffer.clone() for inner, buffer in module.named_buffers()}
            for name, module in self.stage.modules.items()
        }

    def _restore(self, buffers: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, module in self.stage.modules.items():
            for inner, buffer in module.named_buffers():
                buffer.copy_(buffers[name][inner])

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """What is exported: the averages if there are any."""
        if self.average is None:
            return {name: trained_state(module) for name, module in self.stage.modules.items()}
        with self.average.applied():
            return {
                name: {key: tensor.clone() for key, tensor in trained_state(module).items()}
                for name, module in self.stage.modules.items()
            }

    def _save(self) -> None:
        content: dict[str, Any] = {
            "modules": {name: trained_state(module) for name, module in self.stage.modules.items()},
            "optimizer": optimizer_state(self.stage.optimizer),
            "average": self.average.state() if self.average else None,
            "micro_batch": self.stage.micro_batch,
            "state": vars(self.state),
        }
        write_checkpoint(self.checkpoint, content)
        self.saved = self.state.step

    def _load(self) -> None:
        saved = read_checkpoint(self.checkpoint)
        for name, module in self.stage.modules.items():
            load_trained(module, saved["modules"].get(name, {}), where=str(self.checkpoint))
        load_optimizer(self.stage.optimizer, saved["optimizer"])
        if self.average and saved["average"]:
            self.average.load(**saved["average"])
        self.stage.micro_batch = saved["micro_batch"]
        self.state = _State(**saved["state"])
        self.saved = self.state.step

    def _stopped(self) -> None:
        """Leave after a signal, together: a process whose peers are gone first aborts instead of ending."""
        distributed.wait_for_all()
        name, step = self.stage.name, self.state.step
        if self.signals.requested is signal.SIGINT:
            raise KeyboardInterrupt(f" at step {step} of {name}: run the same command again to continue")
        if distributed.is_first():
            log_stderr(f"terminated at step {step} of {name}: run the same command again to continue")
        raise SystemExit(128 + signal.SIGTERM)

    def _export(self) -> Outcome:
        """Give the modules the weights to export."""
        state, config = self.state, self.config
        exported = state.step
        if config.keep_best and state.best_step >= 0:
            distributed.wait_for_all()
            saved = read_checkpoint(self.best)
            for name, module in self.stage.modules.items():
                load_trained(module, saved["modules"][name], where=str(self.best))
            exported = state.best_step
        elif self.average:
            self.average.write()
        for module in self.stage.modules.values():
            module.eval()
        return Outcome(
            steps=state.step,
            exported=exported,
            measures=state.measures,
            stopped_early=state.step < config.steps,
        )


def _out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text
    )


def _words(measured: Mapping[str, float]) -> str:
    """All values; those of ``en/R@1`` and ``en/R@5`` stand together behind ``en``."""
    plain = [f"{name} {value:.4g}" for name, value in measured.items() if "/" not in name]
    rows: dict[str, list[float]] = {}
    for name, value in measured.items():
        if "/" in name:
            rows.setdefault(name.partition("/")[0], []).append(value)
    if rows:
        columns = dict.fromkeys(name.partition("/")[2] for name in measured if "/" in name)
        said = ", ".join(f"{name} {' '.join(f'{value:.1f}' for value in row)}" for name, row in rows.items())
        plain.append(f"{' '.join(columns)} of {said}")
    return ", ".join(plain)
