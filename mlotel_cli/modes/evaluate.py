"""`mlotel eval`: runs a labelled data set; the accuracy and the latency of a batch are in one row."""

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mlotel_cli.config.schema import Job
from mlotel_cli.errors import DataError, StageError
from mlotel_cli.execute import Finished, Numbered
from mlotel_cli.modes.batch_steps import check_finished, result_waiter, seed_everything, timed, warm_up
from mlotel_cli.modes.build import Parts, apply_option, build
from mlotel_cli.modes.control import Stretches, stretch_length
from mlotel_cli.modes.opening import open_run, recorder_imports
from mlotel_cli.modes.results import Progress
from mlotel_cli.modes.run import Session, Settling, reporting
from mlotel_cli.records import Batch, Sample
from mlotel_cli.screen import sayer, stderr
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OffHere
from mlotel_cli.tensors import find_nan

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run(cfg: "DictConfig", job: Job) -> Mapping[str, Any]:
    """Evaluate as `cfg` says; prints progress and the closing table.

    Returns:
        run.json's content.

    Raises:
        UsageError: when the configuration cannot be built; nothing was recorded then.
        StageError: when a batch failed and `eval.on_error=fail`, or a metric cannot be computed in the end.
        DataError: when the data cannot be read, or is empty.
        Interrupted: after a signal, with everything measured so far on disk.
    """
    console = stderr()
    session = Session(job.output_dir, say=sayer(console), imports=recorder_imports(cfg.tracker.mode))
    with ExitStack() as stack, reporting(session):
        seed_everything(cfg.seed)
        parts = build(cfg)
        stack.callback(parts.data.close)
        with parts.built.inference():
            changes = apply_option(cfg, parts.built, parts.data)
            open_run(session, cfg, job, mode="eval", backend=str(cfg.telemetry.backend))
            session.tell({"optimize": changes})
            Evaluation(cfg, session, parts, console).run()
    return session.info or {}


class Evaluation:
    """Runs one or more passes over the data; scores and settles every batch."""

    def __init__(self, cfg: "DictConfig", session: Settling, parts: Parts, console: Console) -> None:
        self._cfg = cfg
        self._session = session
        self._parts = parts
        self._console = console
        self._executor = parts.built.executor
        self._wait_for_result = result_waiter(cfg.device)
        self._scoring_ns = 0
        self._num_batches = 0
        self._head: list[Batch] = []
        self._rest: Iterator[Batch] | None = None
        self._control: Stretches | None = None

    def run(self) -> None:
        """Warm up, then run, score and settle every batch."""
        session = self._session
        with Progress(self._console, self._count_batches()) as progress:
            self._warm_up()
            seed_everything(self._cfg.seed)  # no result may depend on the number of warm-up batches
            session.record()
            if self._cfg.eval.control:
                self._control = Stretches(api.PROVIDER.backend, stretch_length(self._count_batches()))
            progress.start()
            try:
                with timed(session.closing):
                    self._run_batches(progress)
            finally:
                # A concurrent executor runs stages meanwhile: scoring adds nothing to the wall time then.
                session.closing.scoring_s = 0.0 if self._executor.is_concurrent else self._scoring_ns / 1e9
                session.closing.caller_s = self._scoring_ns / 1e9
                reasons = self._compute()
                if self._control is not None:
                    session.closing.telemetry.control = self._control.result()
        if not self._num_batches:
            raise DataError("data: the data set is empty: it yielded no batch")
        if reasons:
            raise StageError(f"{self._num_batches} batches ran, but {'; '.join(reasons)}")

    def _run_batches(self, progress: Progress) -> None:
        with closing(self._executor.run(self._numbered(), wait_for_room=self._session.wait_for_room)) as running:
            for finished in running:
                self._num_batches += 1
                waited_ns = self._wait_for_result()
                if self._control is not None:
                    self._control.after(finished.busy_ns + waited_ns)
                progress.advance(finished.numbered.batch.size, self._settle(finished))

    def _compute(self) -> list[str]:
        """Compute the metrics over the batches so far, also after a failure; return why some could not be computed."""
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
        """Score the batch, outside its root span, and tell the recorder how it ended."""
        numbered, batch = finished.numbered, finished.numbered.batch
        started = time.perf_counter_ns()
        scores: Mapping[str, float] = {}
        samples: list[Sample] = []
        failure: StageError | None = None
        try:
            check_finished(finished)
            scores, samples = self._parts.scorer.score(batch, finished.output, index=numbered.index)
        except StageError as error:
            failure = self._explain(error, finished)
        self._scoring_ns += time.perf_counter_ns() - started
        skip = str(self._cfg.eval.on_error) == "skip"
        status = "scored" if failure is None else "skipped" if skip else "failed"
        error = "" if failure is None else str(failure)
        self._session.settle(finished.settled(status, accuracy=scores, samples=samples, error=error))
        if failure is not None and not skip:
            raise failure
        return scores

    def _explain(self, error: StageError, finished: Finished) -> StageError:
        """For NaN in the output, run the batch again without spans, to name the stage that returned it first."""
        if finished.error is not None or find_nan(finished.output) is None:
            return error
        data = finished.numbered.batch.data
        before = find_nan(data)
        already = f" (the batch's data had {before} already)" if before else ""
        backend = api.PROVIDER.backend
        api.use(OffHere(backend))
        try:
            for name, output in self._executor.outputs(data):
                nan = find_nan(output)
                if nan is not None:
                    where = f"batch {finished.numbered.index}: stage {name}"
                    return StageError(f"{where} returned {nan}; it cannot be scored{already}")
        except Exception:  # a stage may be unable to run on the same data twice
            return error
        finally:
            api.use(backend)
        return error

    # -- the data -------------------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Run the first batches, with spans off. The run takes them again, also when the data has only one pass."""
        data = self._parts.data
        passing = iter(data)
        warmup, error = warm_up(self._executor, self._first(passing), self._wait_for_result)
        if error is not None:  # the run meets it again at the same batch
            passing = _raising(error)
        if data.is_one_shot:
            self._rest = passing
        else:
            self._head.clear()
        self._session.closing.warmup = warmup

    def _first(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in itertools.islice(batches, self._cfg.eval.warmup_batches):
            self._head.append(batch)
            yield batch

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
