"""`mlotel eval`: every batch of a labelled data set, its accuracy and its latency in one row."""

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from mlotel_cli import config
from mlotel_cli.config import Job
from mlotel_cli.errors import MlotelError, StageError, UsageError
from mlotel_cli.execute import Finished, Inference, Numbered, SequentialExecutor
from mlotel_cli.hardware import environment
from mlotel_cli.metrics import Scorer, find_not_finite
from mlotel_cli.modes.display import Progress, print_results
from mlotel_cli.modes.session import Session, identify, new_run_id
from mlotel_cli.pipeline import Stage, stages_of
from mlotel_cli.records import Batch
from mlotel_cli.sources import Batches
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.handoff import Opening
from mlotel_cli.telemetry.off import OFF


@dataclass(slots=True)
class Parts:
    """What the configuration describes, built."""

    stages: Mapping[str, Stage] | Stage
    data: Batches
    scorer: Scorer


def run(cfg: DictConfig, job: Job) -> Mapping[str, Any]:
    """Evaluate as `cfg` says; prints progress and the closing table.

    Returns:
        run.json's content.

    Raises:
        UsageError: when the configuration cannot be built; nothing was recorded then.
        StageError: when a batch failed and `eval.on_error=fail`.
        Interrupted: after a signal, with everything measured so far on disk.
    """
    console = Console(stderr=True)
    imports = ("polars",) if cfg.tracker.mode == "disabled" else ("polars", "wandb")
    session = Session(job.output_dir, say=console.print, imports=imports)
    parts: Parts | None = None
    try:
        with session:
            _seed(cfg.seed)
            parts = _build(cfg)
            _open(session, cfg, job)
            with Inference(cfg.device)():
                Evaluation(cfg, session, parts, console).run()
    finally:
        if parts is not None:
            parts.data.close()
        if session.info is not None:
            print_results(session.info, job.output_dir)
    return session.info or {}


class Evaluation:
    """One pass or several over the data; the state of the loop."""

    def __init__(self, cfg: DictConfig, session: Session, parts: Parts, console: Console) -> None:
        """Prepare; `run` does the work."""
        self._cfg = cfg
        self._session = session
        self._parts = parts
        self._console = console
        self._executor = SequentialExecutor(parts.stages)
        self._scoring_ns = 0
        self._head: list[Batch] = []
        self._rest: Iterator[Batch] | None = None

    def run(self) -> None:
        """Warm up, then run, score and settle every batch."""
        self._warm_up()
        session, closing = self._session, self._session.closing
        total = self._count_batches()
        session.record()
        start = time.perf_counter()
        num_batches = 0
        try:
            with Progress(self._console, total) as progress:
                for finished in self._executor.run(self._numbered()):
                    num_batches += 1
                    scores = self._settle(finished)
                    progress.advance(finished.numbered.batch.size, scores)
                    session.link.wait_for_room()
        finally:
            closing.wall_s = time.perf_counter() - start
            closing.scoring_s = self._scoring_ns / 1e9
            closing.accuracy, reasons = self._parts.scorer.compute() if num_batches else ({}, {})
            if reasons:
                session.tell({"notes": [f"{name} could not be computed: {why}" for name, why in reasons.items()]})
        if not num_batches:
            raise UsageError("data: the data set is empty: it yielded no batch")
        if reasons:
            listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
            raise StageError(f"{num_batches} batches ran, but a metric could not be computed: {listed}")

    def _settle(self, finished: Finished) -> Mapping[str, float]:
        """Score the batch, outside its root span, and say how it ended."""
        numbered, batch = finished.numbered, finished.numbered.batch
        started = time.perf_counter_ns()
        scores: Mapping[str, float] = {}
        samples = []
        failure: StageError | None = None
        try:
            _check(finished)
            scores, samples = self._parts.scorer.score(batch, finished.output, index=numbered.index)
        except StageError as error:
            failure = self._explain(error, finished)
        self._scoring_ns += time.perf_counter_ns() - started
        skip = str(self._cfg.eval.on_error) == "skip"
        self._session.settle(
            numbered.index,
            status="scored" if failure is None else "skipped" if skip else "failed",
            size=batch.size,
            source_batch=batch.index,
            repeat=numbered.repeat,
            root=finished.root,
            start_ns=finished.start_ns,
            wait_ns=finished.wait_ns,
            source_time_ns=batch.source_time_ns,
            accuracy=scores,
            samples=samples,
            error="" if failure is None else str(failure),
        )
        if failure is not None and not skip:
            raise failure
        return scores

    def _explain(self, error: StageError, finished: Finished) -> StageError:
        """For values that are not finite: run the stages again, unrecorded, to name the one they come from."""
        stages = self._parts.stages
        if finished.error is not None or callable(stages) or find_not_finite(finished.output) is None:
            return error
        value: Any = finished.numbered.batch.data
        for name, stage in stages.items():
            with _unrecorded():
                value = stage(value)
            place = find_not_finite(value)
            if place is not None:
                return StageError(f"batch {finished.numbered.index}: stage {name} returned {place}; it cannot be scored")
        return error

    # -- the data -------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Run the first batches once, with spans off; a one-shot source gets them again in its only pass."""
        wanted: int = self._cfg.eval.warmup_batches
        data = self._parts.data
        if data.is_one_shot and self._cfg.eval.repeats > 1:
            raise UsageError("eval.repeats: the data can be iterated once only; give a data set that starts anew")
        times_s: list[float] = []
        passing = iter(data)
        for batch in itertools.islice(passing, wanted):
            self._head.append(batch)
            began = time.perf_counter()
            (finished,) = self._executor.run(iter([Numbered(batch.index, 0, batch)]))
            times_s.append(time.perf_counter() - began)
            if finished.error is not None:
                break  # the run itself will meet it, at the same batch, and say so
        if data.is_one_shot:
            self._rest = passing
        else:
            self._head.clear()
        self._session.closing.warmup = {
            "batches": len(times_s),
            "first_batch_ms": times_s[0] * 1e3 if times_s else None,
            "total_s": sum(times_s),
        }

    def _numbered(self) -> Iterator[Numbered]:
        index = itertools.count()
        for repeat in range(self._cfg.eval.repeats):
            batches = iter(self._parts.data) if self._rest is None else itertools.chain(self._head, self._rest)
            for batch in itertools.islice(batches, self._cfg.eval.max_batches):
                yield Numbered(next(index), repeat, batch)

    def _count_batches(self) -> int | None:
        length, limit = len(self._parts.data), self._cfg.eval.max_batches
        known = [count for count in (length, limit) if count]
        return min(known) * self._cfg.eval.repeats if length else None


def _check(finished: Finished) -> None:
    """Refuse a batch that cannot be scored, naming batch, stage and cause."""
    index, error = finished.numbered.index, finished.error
    if finished.numbered.batch.size < 1:
        raise StageError(f"batch {index}: its size is {finished.numbered.batch.size}; a batch has at least one item")
    if error is not None:
        where = f"stage {finished.stage}" if finished.stage else "the pipeline"
        raise StageError(f"batch {index}: {where} raised {type(error).__name__}: {error}") from error


def _build(cfg: DictConfig) -> Parts:
    pipeline = config.instantiate(cfg.pipeline, "pipeline")
    data = config.instantiate(cfg.data, "data")
    metrics = {str(name): config.instantiate(node, f"metrics.{name}") for name, node in cfg.metrics.items()}
    for name, metric in metrics.items():
        if not callable(getattr(metric, "update", None)) or not callable(getattr(metric, "compute", None)):
            raise UsageError(f"metrics.{name}: {type(metric).__name__} needs update(output, targets) and compute()")
    return Parts(stages_of(pipeline), Batches(data), Scorer(metrics))


def _open(session: Session, cfg: DictConfig, job: Job) -> None:
    plain, machine, run_id = config.plain(cfg), environment(with_torch=True), new_run_id()
    tracker = {**plain["tracker"], "group": plain["tracker"]["group"] or job.sweep}
    opening = Opening(
        mode="eval",
        name=cfg.run.name,
        run_id=run_id,
        started_ns=time.time_ns(),
        overrides=job.overrides,
        config=plain,
        identity=identify(plain, run_id=run_id, name=cfg.run.name, git=machine["git"]),
        tracker=tracker,
        settle_s=cfg.telemetry.settle_s,
        part_s=cfg.telemetry.part_s,
        max_names=cfg.telemetry.max_names,
    )
    session.open(
        opening,
        backend=str(cfg.telemetry.backend),
        strict=cfg.telemetry.strict,
        flush_ms=cfg.telemetry.flush_ms,
        synchronize=_synchronizer(cfg.device),
    )
    session.tell({"environment": machine, "device": cfg.device, "synchronized": cfg.device.startswith("cuda")})


def _synchronizer(device: str) -> Callable[[], None] | None:
    """On CUDA, waits for the device at the end of every span, so that a span's end is its result's existence."""
    if not device.startswith("cuda"):
        return None
    import torch

    return lambda: torch.cuda.synchronize(device)


def _seed(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - user code may draw from the global generator
    torch.manual_seed(seed)


@contextmanager
def _unrecorded() -> Iterator[None]:
    """Spans off for a moment."""
    backend = api.PROVIDER.backend
    api.use(OFF)
    try:
        yield
    finally:
        api.use(backend)
