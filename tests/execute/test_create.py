"""`create_executor` makes the configured executor, and refuses wrong settings with the next step."""

from typing import Any

import pytest

from mlotel_cli.errors import UsageError
from mlotel_cli.execute import Inference, PipelinedExecutor, SequentialExecutor, create_executor

STAGES = {"detect": abs, "read": abs}


def create(stages: Any = None, **settings: Any) -> Any:
    return create_executor(STAGES if stages is None else stages, inference=Inference("cpu"), **settings)


def test_each_kind() -> None:
    assert isinstance(create(), SequentialExecutor)
    assert isinstance(create(kind="sequential", replicas={"detect": 1}), SequentialExecutor)
    assert isinstance(create(abs), SequentialExecutor)
    assert isinstance(create(kind="pipelined"), PipelinedExecutor)
    assert not create().is_concurrent
    assert create(kind="pipelined").is_concurrent


def test_settings_arrive() -> None:
    made = create(kind="pipelined", queue_size=7, replicas={"read": 3}, stage_timeout_s=1.5)
    assert made.depths() == {"detect": (0, 7), "read": (0, 7)}
    assert [(station.name, station.threads) for station in made.stations] == [("detect", 1), ("read", 3)]
    assert made.stage_timeout_s == 1.5


REFUSED = {
    "a callable": (
        {"stages": abs, "kind": "pipelined"},
        "executor=pipelined: the pipeline is one callable, but only named stages can run concurrently; "
        "give it `stages: Mapping[str, Callable]`, or use executor=sequential",
    ),
    "an unknown stage": (
        {"kind": "pipelined", "replicas": {"reed": 2}},
        "executor.replicas.reed: no such stage; the pipeline has detect, read",
    ),
    "no thread": ({"kind": "pipelined", "replicas": {"read": 0}}, "executor.replicas.read=0: allowed: at least 1"),
    "replicas one after the other": (
        {"replicas": {"read": 2}},
        "executor.replicas={'read': 2}: a sequential executor has no replicas; use executor=pipelined",
    ),
    "a time-out without a thread that watches it": (
        {"stage_timeout_s": 3.0},
        "executor.stage_timeout_s=3: a sequential executor cannot abandon a stage that hangs; use executor=pipelined",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case: str) -> None:
    settings, expected = REFUSED[case]
    with pytest.raises(UsageError) as refused:
        create(**settings)
    assert str(refused.value) == expected
