"""Runs the stages of a pipeline over batches: each stage in a span, under one root span per batch.

`create_executor` makes one of two executors with one contract, `Executor`: `sequential`, or `pipelined` with a thread
per stage. Neither knows the source of the batches, nor what the caller does with the results.
"""

from collections.abc import Callable, Mapping
from typing import Any, cast

from mlotel_cli.errors import UsageError
from mlotel_cli.execute.batches import Executor, Finished, Numbered
from mlotel_cli.execute.inference import Inference
from mlotel_cli.execute.pipelined import PipelinedExecutor
from mlotel_cli.execute.sequential import SequentialExecutor
from mlotel_cli.execute.streams import CudaStreams

__all__ = [
    "Executor",
    "Finished",
    "Inference",
    "Numbered",
    "PipelinedExecutor",
    "SequentialExecutor",
    "create_executor",
]


def create_executor(
    stages: Mapping[str, Callable[[Any], Any]] | Callable[[Any], Any],
    *,
    inference: Inference,
    kind: str = "sequential",
    queue_size: int = 2,
    replicas: Mapping[str, int] | None = None,
    stage_timeout_s: float | None = None,
) -> Executor:
    """Create the executor that `kind` names. No thread starts before `run`, and all threads end with it.

    Args:
        stages: named stages, or one callable that opens its own spans (sequential only).
        inference: the torch state that every stage thread enters. The caller of a sequential executor enters it itself.
        kind: sequential | pipelined.
        queue_size: pipelined: batches that may wait before each stage.
        replicas: pipelined: number of threads by stage name, where more than one.
        stage_timeout_s: pipelined: a stage that needs longer for a batch ends the run; None sets no limit.

    Raises:
        UsageError: when the settings do not fit the stages.
    """
    if kind == "sequential":
        _refuse_for_sequential(replicas or {}, stage_timeout_s)
        return SequentialExecutor(stages)
    if not isinstance(stages, Mapping):
        raise UsageError(
            "executor=pipelined: the pipeline is one callable, but only named stages can run concurrently; "
            "give it `stages: Mapping[str, Callable]`, or use executor=sequential"
        )
    named = cast("Mapping[str, Callable[[Any], Any]]", stages)
    _check_replicas(replicas or {}, list(named))
    return PipelinedExecutor(
        named,
        inference=inference,
        queue_size=queue_size,
        replicas=replicas or {},
        stage_timeout_s=stage_timeout_s,
        streams=CudaStreams(inference.device) if inference.device.startswith("cuda") else None,
    )


def _refuse_for_sequential(replicas: Mapping[str, int], stage_timeout_s: float | None) -> None:
    if any(count != 1 for count in replicas.values()):
        raise UsageError(
            f"executor.replicas={dict(replicas)}: a sequential executor has no replicas; use executor=pipelined"
        )
    if stage_timeout_s is not None:
        raise UsageError(
            f"executor.stage_timeout_s={stage_timeout_s:g}: a sequential executor cannot abandon a stage that hangs; "
            "use executor=pipelined"
        )


def _check_replicas(replicas: Mapping[str, int], names: list[str]) -> None:
    for name, count in replicas.items():
        if name not in names:
            raise UsageError(f"executor.replicas.{name}: no such stage; the pipeline has {', '.join(names)}")
        if count < 1:
            raise UsageError(f"executor.replicas.{name}={count}: allowed: at least 1")
