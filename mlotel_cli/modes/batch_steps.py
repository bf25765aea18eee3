"""What every loop over batches does: seed, warm up, wait for a result, refuse a batch that failed, take the time."""

import random
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager

from mlotel_cli.errors import DataError, StageError
from mlotel_cli.execute import Executor, Finished, Numbered
from mlotel_cli.hardware import usable_cores
from mlotel_cli.modes.run import Closing
from mlotel_cli.records import Batch
from mlotel_cli.summary import Warmup


def warm_up(
    executor: Executor, batches: Iterator[Batch], wait_for_result: Callable[[], int], *, one_by_one: bool = False
) -> tuple[Warmup, DataError | None]:
    """Run `batches` with spans off; stop after one that fails, because the run itself meets it again and says so.

    Args:
        executor: runs them.
        batches: read as the executor asks for them.
        wait_for_result: see `result_waiter`.
        one_by_one: read and run one batch before the next is read, on the calling thread: a source that blocks then
            cannot keep a warm-up from stopping.

    Returns:
        `Closing.warmup`, and why the data could not be read further.
    """
    times_s: list[float] = []
    began = time.perf_counter()
    groups: Iterable[Iterable[Batch]] = ([batch] for batch in batches) if one_by_one else [batches]
    error: DataError | None = None
    try:
        for group in groups:
            if not _run_through(executor, group, wait_for_result, times_s):
                break
    except DataError as raised:
        error = raised
    took_s = time.perf_counter() - began
    total_s = min(sum(times_s), took_s)  # less than the sum where batches overlap
    return Warmup(len(times_s), times_s[0] * 1e3 if times_s else None, total_s), error


def _run_through(
    executor: Executor, batches: Iterable[Batch], wait_for_result: Callable[[], int], times_s: list[float]
) -> bool:
    """Run the batches and note how long each took; False as soon as one fails."""
    numbered = (Numbered(batch.index, 0, batch) for batch in batches)
    with closing(executor.run(numbered)) as running:
        for finished in running:
            times_s.append((finished.busy_ns + wait_for_result()) / 1e9)
            if finished.error is not None:
                return False
    return True


def result_waiter(device: str) -> Callable[[], int]:
    """On CUDA, return a call that waits for what this thread's stream was given, and returns how long, ns.

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


def check_finished(finished: Finished) -> None:
    """Refuse a batch that cannot be scored.

    Raises:
        StageError: naming batch, stage and cause.
    """
    index, error = finished.numbered.index, finished.error
    if finished.numbered.batch.size < 1:
        raise StageError(f"batch {index}: its size is {finished.numbered.batch.size}; a batch has at least one item")
    if error is not None:
        where = f"stage {finished.stage}" if finished.stage else "the pipeline"
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        raise StageError(f"batch {index}: {where} raised {type(error).__name__}: {error}{notes}") from error


@contextmanager
def timed(told: Closing) -> Generator[None]:
    """Note wall time and processor time of the `with` block in `told`, however it ends."""
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        told.wall_s = time.perf_counter() - start
        told.cpu_s, told.cores = time.process_time() - cpu_start, usable_cores()


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
