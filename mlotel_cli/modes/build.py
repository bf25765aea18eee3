"""Builds what a configuration describes: pipeline and executor, data and metrics; and applies the option."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mlotel_cli import optimize
from mlotel_cli.config import check as config
from mlotel_cli.errors import DataError, UsageError
from mlotel_cli.execute import Executor, Inference, Numbered, SequentialExecutor, create_executor
from mlotel_cli.metrics import Scorer
from mlotel_cli.pipeline import Stage, stages_of
from mlotel_cli.sources import Batches

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(slots=True)
class Built:
    """A pipeline that is ready to run.

    Attributes:
        stages: its stages by name, or the one callable that it is.
        inference: what the thread that calls the executor enters.
    """

    pipeline: Any
    stages: Mapping[str, Stage] | Stage
    executor: Executor
    inference: Inference


@dataclass(slots=True)
class Parts:
    """What an evaluation works with; close `data` in the end."""

    built: Built
    data: Batches
    scorer: Scorer


def build(cfg: "DictConfig") -> Parts:
    """Build pipeline, executor, data and metrics.

    Raises:
        UsageError: when the configuration does not describe them.
    """
    built = build_pipeline(cfg)
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
    return Parts(built, batches, Scorer(metrics))


def build_pipeline(cfg: "DictConfig") -> Built:
    """Build the pipeline and its executor.

    Raises:
        UsageError: when the configuration does not describe them.
    """
    pipeline = config.instantiate(cfg.pipeline, "pipeline")
    stages = stages_of(pipeline)
    return Built(pipeline, stages, executor_of(cfg, stages), inference_of(cfg))


def executor_of(cfg: "DictConfig", stages: Mapping[str, Stage] | Stage) -> Executor:
    """Create the executor that the configuration asks for.

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
        inference=inference_of(cfg),
        kind=str(given.kind),
        queue_size=given.queue_size,
        replicas={str(name): int(count) for name, count in given.replicas.items()},
        stage_timeout_s=given.stage_timeout_s,
    )


def inference_of(cfg: "DictConfig") -> Inference:
    """Create what every thread that runs a stage enters: the device, and autocast if configured."""
    autocast = None if cfg.executor.autocast is None else str(cfg.executor.autocast)
    return Inference(cfg.device, autocast=autocast)


def apply_option(cfg: "DictConfig", built: Built, data: Batches) -> list[dict[str, Any]]:
    """Apply the configured option to the pipeline; its example inputs come from the first batch of `data`.

    Call it inside `built.inference()`.

    Returns:
        what changed, a stage each, for run.json.

    Raises:
        UsageError: when the option cannot be built or applied, or `data` can be iterated once only.
        DataError: when `data` is empty.
    """
    from omegaconf import open_dict

    node = cfg.optimize.copy()
    with open_dict(node):
        stages = node.pop("stages", None)
        node["_partial_"] = True
    option = config.instantiate(node, "optimize")
    if option.func is optimize.none:
        return []
    if data.is_one_shot:
        raise UsageError("optimize: example inputs come from a first batch; give data that can be iterated again")
    first = next(iter(data), None)
    if first is None:
        raise DataError("data: the data set is empty: it yielded no batch")
    changes = optimize.apply(
        option,
        name=str(node["_target_"]).rpartition(".")[2],
        pipeline=built.pipeline,
        stages=None if stages is None else list(stages),
        run_first_batch=lambda: list(SequentialExecutor(built.stages).run(iter([Numbered(0, 0, first)]))),
    )
    return [asdict(change) for change in changes]
