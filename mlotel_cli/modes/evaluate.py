"""`mlotel eval`: every batch of a labelled data set, its accuracy and its latency in one row."""

import itertools
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlotel_cli import optimize
from mlotel_cli.config import check as config
from mlotel_cli.config.schema import Job
from mlotel_cli.errors import DataError, StageError, UsageError
from mlotel_cli.execute import Executor, Finished, Inference, Numbered, SequentialExecutor, create_executor
from mlotel_cli.hardware import environment, usable_cores
from mlotel_cli.link.handoff import Opening
from mlotel_cli.metrics import Scorer
from mlotel_cli.modes.control import Control, stretch_length
from mlotel_cli.modes.results import Progress, print_results, sayer, stderr
from mlotel_cli.modes.run import Session, Settling, identify, new_run_id
from mlotel_cli.pipeline import Stage, stages_of
from mlotel_cli.records import Batch
from mlotel_cli.sources import Batches
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OffHere
from mlotel_cli.telemetry.device import CudaEvents, DeviceTimer
from mlotel_cli.tensors import find_nan

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(slots=True)
class Parts:
    """What the configuration describes, built."""

    stages: Mapping[str, Stage] | Stage
    data: Batches
    scorer: Scorer
    pipeline: Any = None
    executor: Executor | None = None


def run(cfg: "DictConfig", job: Job) -> Mapping[str, Any]:
    """Evaluate as `cfg` says; prints progress and the closing table.

    Returns:
        run.json's content.

    Raises:
        UsageError: when the configuration cannot be built; nothing was recorded then.
        StageError: when a batch failed and `eval.on_error=fail`, or a metric cannot be computed in the end.
        DataError: when the data cannot be read on, or there is none.
        Interrupted: after a signal, with everything measured so far on disk.
    """
    console = stderr()
    imports = ("polars",) if cfg.tracker.mode == "disabled" else ("polars", "wandb")
    session = Session(job.output_dir, say=sayer(console), imports=imports)
    parts: Parts | None = None
    try:
        with session:
            seed_everything(cfg.seed)
            parts = build(cfg)
            with Inference(cfg.device, autocast=autocast_of(cfg))():
                changes = apply_option(cfg, parts)
                open_run(session, cfg, job, mode="eval", backend=str(cfg.telemetry.backend))
                session.tell({"optimize": [asdict(change) for change in changes]})
                Evaluation(cfg, session, parts, console).run()
    finally:
        if parts is not None:
            parts.data.close()
        if session.info is not None:
            print_results(session.info, job.output_dir)
    return session.info or {}


class Evaluation:
    """One pass or several over the data; the state of the loop."""

    def __init__(self, cfg: "DictConfig", session: Settling, parts: Parts, console: Console) -> None:
        """Prepare; `run` does the work."""
        self._cfg = cfg
        self._session = session
        self._parts = parts
        self._console = console
        self._executor = parts.executor or SequentialExecutor(parts.stages)
        self._wait_for_result = result_waiter(cfg.device)
        self._scoring_ns = 0
        self._num_batches = 0
        self._head: list[Batch] = []
        self._rest: Iterator[Batch] | None = None
        self._control: Control | None = None

    def run(self) -> None:
        """Warm up, then run, score and settle every batch."""
        session = self._session
        with Progress(self._console, self._count_batches()) as progress:
            self._warm_up()
            seed_everything(self._cfg.seed)  # so that no result depends on how many batches warmed up
            session.record()
            if self._cfg.eval.control:
                self._control = Control(api.PROVIDER.backend, stretch_length(self._count_batches()))
            progress.start()
            start, cpu_start = time.perf_counter(), time.process_time()
            try:
                with closing(self._executor.run(self._numbered(), wait_for_room=session.link.wait_for_room)) as running:
                    for finished in running:
                        self._num_batches += 1
                        waited_ns = self._wait_for_result()
                        if self._control is not None:
                            self._control.after(finished.busy_ns + waited_ns)
                        progress.advance(finished.numbered.batch.size, self._settle(finished))
            finally:
                session.closing.wall_s = time.perf_counter() - start
                session.closing.cpu_s, session.closing.cores = time.process_time() - cpu_start, usable_cores()
                # Beside running stages scoring takes no time of theirs that could be subtracted.
                session.closing.scoring_s = 0.0 if self._executor.is_concurrent else self._scoring_ns / 1e9
                session.closing.caller_s = self._scoring_ns / 1e9
                reasons = self._compute()
                if self._control is not None:
                    session.closing.telemetry["control"] = self._control.result()
        if not self._num_batches:
            raise DataError("data: the data set is empty: it yielded no batch")
        if reasons:
            raise StageError(f"{self._num_batches} batches ran, but {'; '.join(reasons)}")

    def _compute(self) -> list[str]:
        """The metrics over the run, and why some could not be computed; also after a failure, for what there is."""
        if not self._num_batches:
            return []
        closing = self._session.closing
        closing.accuracy, reasons = self._parts.scorer.compute()
        closing.accuracy_ci95 = self._parts.scorer.intervals()
        notes = [f"metric {name} could not be computed: {why}" for name, why in reasons.items()]
        if notes:
            self._session.tell({"notes": notes})
        return notes

    def _settle(self, finished: Finished) -> Mapping[str, float]:
        """Score the batch, outside its root span, and say how it ended."""
        numbered, batch = finished.numbered, finished.numbered.batch
        started = time.perf_counter_ns()
        scores: Mapping[str, float] = {}
        samples = []
        failure: StageError | None = None
        try:
            check_finished(finished)
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
        """For NaN in the output: run the batch again, unrecorded, to name the stage that it comes from."""
        if finished.error is not None or find_nan(finished.output) is None:
            return error
        data = finished.numbered.batch.data
        before = find_nan(data)
        already = f" (the batch's data had {before} already)" if before else ""
        try:
            with _unrecorded():
                for name, output in self._executor.outputs(data):
                    nan = find_nan(output)
                    if nan is not None:
                        where = f"batch {finished.numbered.index}: stage {name}"
                        return StageError(f"{where} returned {nan}; it cannot be scored{already}")
        except Exception:  # it ran once; a stage may not be able to run on the same data again
            return error
        return error

    # -- the data -------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Run the first batches once, with spans off; a one-shot source gets them again in its only pass."""
        data = self._parts.data
        times_s: list[float] = []
        passing = iter(data)
        began = time.perf_counter()
        try:
            with closing(self._executor.run(self._first(passing))) as running:
                for finished in running:
                    times_s.append((finished.busy_ns + self._wait_for_result()) / 1e9)
                    if finished.error is not None:
                        break  # the run itself will meet it, at the same batch, and say so
        except DataError as error:  # the same; only a source that ended by it would not raise it again
            passing = _raising(error)
        took_s = time.perf_counter() - began
        if data.is_one_shot:
            self._rest = passing
        else:
            self._head.clear()
        self._session.closing.warmup = {
            "batches": len(times_s),
            "first_batch_ms": times_s[0] * 1e3 if times_s else None,
            "total_s": min(sum(times_s), took_s),  # less than the sum where batches overlap
        }

    def _first(self, batches: Iterator[Batch]) -> Iterator[Numbered]:
        for batch in itertools.islice(batches, self._cfg.eval.warmup_batches):
            self._head.append(batch)
            yield Numbered(batch.index, 0, batch)

    def _numbered(self) -> Iterator[Numbered]:
        index = itertools.count()
        for repeat in range(self._cfg.eval.repeats):
            batches = iter(self._parts.data) if self._rest is None else itertools.chain(self._head, self._rest)
            for batch in itertools.islice(batches, self._cfg.eval.max_batches):
                if self._control is not None:
                    self._control.before()
                yield Numbered(next(index), repeat, batch)

    def _count_batches(self) -> int | None:
        length, limit = len(self._parts.data), self._cfg.eval.max_batches
        known = [count for count in (length, limit) if count]
        return min(known) * self._cfg.eval.repeats if length else None


def _raising(error: DataError) -> Iterator[Batch]:
    raise error
    yield


def check_finished(finished: Finished) -> None:
    """Refuse a batch that cannot be scored, naming batch, stage and cause."""
    index, error = finished.numbered.index, finished.error
    if finished.numbered.batch.size < 1:
        raise StageError(f"batch {index}: its size is {finished.numbered.batch.size}; a batch has at least one item")
    if error is not None:
        where = f"stage {finished.stage}" if finished.stage else "the pipeline"
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise StageError(f"batch {index}: {where} raised {type(error).__name__}: {error}{notes}") from error


def build(cfg: "DictConfig") -> Parts:
    """Build pipeline, data and metrics.

    Raises:
        UsageError: when the configuration does not describe them.
    """
    pipeline = config.instantiate(cfg.pipeline, "pipeline")
    data = config.instantiate(cfg.data, "data")
    metrics = {str(name): config.instantiate(node, f"metrics.{name}") for name, node in cfg.metrics.items()}
    for name, metric in metrics.items():
        if not callable(getattr(metric, "update", None)) or not callable(getattr(metric, "compute", None)):
            raise UsageError(f"metrics.{name}: {type(metric).__name__} needs update(output, targets) and compute()")
    batches = Batches(data)
    if batches.is_one_shot and cfg.eval.repeats > 1:
        raise UsageError(
            f"eval.repeats={cfg.eval.repeats}: the data, a {type(data).__name__}, can be iterated once only; "
            "give a data set that starts anew"
        )
    stages = stages_of(pipeline)
    return Parts(stages, batches, Scorer(metrics), pipeline, executor_of(cfg, stages))


def executor_of(cfg: "DictConfig", stages: Mapping[str, Stage] | Stage) -> Executor:
    """The executor that the configuration asks for.

    Raises:
        UsageError: when it does not fit the pipeline, or the run.
    """
    given = cfg.executor
    if cfg.eval.control and str(given.kind) != "sequential":
        raise UsageError(
            "eval.control=true switches telemetry between batches, and with executor=pipelined there is no between; "
            "use executor=sequential"
        )
    return create_executor(
        stages,
        inference=Inference(cfg.device, autocast=autocast_of(cfg)),
        kind=str(given.kind),
        queue_size=given.queue_size,
        replicas={str(name): int(count) for name, count in given.replicas.items()},
        stage_timeout_s=given.stage_timeout_s,
    )


def autocast_of(cfg: "DictConfig") -> str | None:
    """The dtype that stages run under, as text; None without."""
    return None if cfg.executor.autocast is None else str(cfg.executor.autocast)


def apply_option(cfg: "DictConfig", parts: Parts) -> list[optimize.Change]:
    """Apply the configured option to the pipeline; its example inputs come from the first batch."""
    from omegaconf import open_dict

    node = cfg.optimize.copy()
    with open_dict(node):
        stages = node.pop("stages", None)
        node["_partial_"] = True
    option = config.instantiate(node, "optimize")
    if option.func is optimize.none:
        return []
    if parts.data.is_one_shot:
        raise UsageError("optimize: example inputs come from a first batch; give data that can be iterated again")
    first = next(iter(parts.data), None)
    if first is None:
        raise DataError("data: the data set is empty: it yielded no batch")
    return optimize.apply(
        option,
        name=str(node["_target_"]).rpartition(".")[2],
        pipeline=parts.pipeline,
        stages=None if stages is None else list(stages),
        run_first_batch=lambda: list(SequentialExecutor(parts.stages).run(iter([Numbered(0, 0, first)]))),
    )


def open_run(
    session: Session, cfg: "DictConfig", job: Job, *, mode: str, backend: str, live: dict[str, Any] | None = None
) -> None:
    """Open the session of a run as `cfg` describes it; imports torch, for the environment. `live` is Opening's."""
    plain, machine, run_id = config.plain(cfg), environment(with_torch=True), new_run_id()
    tracker = {**plain["tracker"], "group": plain["tracker"]["group"] or job.sweep}
    opening = Opening(
        mode=mode,
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
        otlp=plain["telemetry"]["otlp"],
        live=live,
    )
    has_device = cfg.device.startswith("cuda") and backend == "otel"
    session.open(
        opening,
        backend=backend,
        strict=cfg.telemetry.strict,
        flush_ms=cfg.telemetry.flush_ms,
        device=DeviceTimer(CudaEvents(cfg.device)) if has_device else None,
    )
    session.tell({"environment": machine, "device": cfg.device})


def result_waiter(device: str) -> Callable[[], int]:
    """On CUDA, a call that waits for what this thread's stream was given, and returns how long, ns.

    A result is there before it is scored: else the scoring's first copy to the host would do the waiting, and the
    device's work would count as scoring.
    """
    if not device.startswith("cuda"):
        return lambda: 0
    import torch

    def wait() -> int:
        began = time.perf_counter_ns()
        torch.cuda.current_stream(device).synchronize()
        return time.perf_counter_ns() - began

    return wait


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]


@contextmanager
def _unrecorded() -> Generator[None]:
    """Spans off on this thread, for a moment."""
    backend = api.PROVIDER.backend
    api.use(OffHere(backend))
    try:
        yield
    finally:
        api.use(backend)
