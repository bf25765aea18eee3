"""What a configuration describes, built."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mlotel_cli.config.schema import EvalConfig
from mlotel_cli.errors import DataError, UsageError
from mlotel_cli.modes.build import apply_option, build, build_pipeline, executor_of, inference_of
from mlotel_cli.sources import Batches
from tests.support.parts import Numbers, once

PARTS = "tests.support.parts"


def config(**changed: Any) -> Any:
    """The configuration of an evaluation of `Stages` on `Numbers`; `data={...}` and the like replace a group."""
    given = {
        "device": "cpu",
        "pipeline": {"_target_": f"{PARTS}.Stages"},
        "data": {"_target_": f"{PARTS}.Numbers"},
        "metrics": {"right": {"_target_": f"{PARTS}.Right"}},
        "optimize": {"_target_": "mlotel_cli.optimize.none", "stages": None},
    }
    return OmegaConf.merge(OmegaConf.structured(EvalConfig), given | changed)


def test_every_part_is_the_configured_one() -> None:
    parts = build(config(data={"_target_": f"{PARTS}.Numbers", "num_batches": 7}))
    assert list(parts.built.stages) == list(parts.built.pipeline.stages) == ["add", "double"]
    assert len(parts.data) == 7
    (batch,) = [batch for batch in parts.data if batch.index == 3]
    assert [(name, output.tolist()) for name, output in parts.built.executor.outputs(batch.data)] == [
        ("add", [4, 4]),
        ("double", [8, 8]),
    ]
    assert parts.scorer.score(batch, torch.tensor([8.0, 8.0]), index=3)[0] == {"right": 1.0}


def test_a_monitor_builds_the_same_pipeline_without_data_and_metrics() -> None:
    built = build_pipeline(config(data={}, metrics={}))
    assert list(built.stages) == ["add", "double"]
    assert built.inference.device == "cpu"


def test_a_metric_without_its_two_functions_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^metrics\.m: Stages needs update\(output, targets\) and compute\(\)$"):
        build(config(metrics={"m": {"_target_": f"{PARTS}.Stages"}}))


def test_data_that_ends_after_one_pass_cannot_be_repeated() -> None:
    once_only = {"_target_": f"{PARTS}.once"}
    assert build(config(data=once_only)).data.is_one_shot
    with pytest.raises(UsageError, match=r"^eval\.repeats=2: the data, a generator, can be iterated once only"):
        build(config(data=once_only, eval={"repeats": 2}))


# -- the executor -----------------------------------------------------------------------------------------------------


def configured(*, control: bool = False, **given: Any) -> Any:
    settings = {"kind": "pipelined", "queue_size": 2, "replicas": {}, "stage_timeout_s": None, "autocast": None} | given
    return SimpleNamespace(device="cpu", eval=SimpleNamespace(control=control), executor=SimpleNamespace(**settings))


def test_the_executor_is_the_one_that_is_configured() -> None:
    stages = {"a": abs, "b": abs}
    made = executor_of(configured(queue_size=3, replicas={"b": 2}), stages)
    assert made.depths() == {"a": (0, 3), "b": (0, 3)}
    assert not executor_of(configured(kind="sequential"), stages).is_concurrent


def test_control_needs_batches_one_after_the_other() -> None:
    with pytest.raises(UsageError, match=r"eval\.control=true .*; use executor=sequential"):
        executor_of(configured(control=True), {"a": abs})
    executor_of(configured(control=True, kind="sequential"), {"a": abs})


@pytest.mark.parametrize(("autocast", "dtype"), [(None, torch.float32), ("bfloat16", torch.bfloat16)])
def test_stages_run_under_the_configured_autocast(autocast: str | None, dtype: torch.dtype) -> None:
    cfg = config(executor={"autocast": autocast})
    with inference_of(cfg)():
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype
        assert torch.is_inference_mode_enabled()


# -- the option -------------------------------------------------------------------------------------------------------


class Negative(torch.nn.Module):
    """What `negate` makes of a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x


def negate(module: Any, example_inputs: tuple[Any, ...]) -> Any:
    SEEN.extend(inputs.tolist() for inputs in example_inputs)
    return Negative()


SEEN: list[Any] = []
NEGATE = {"_target_": f"{__name__}.negate", "stages": None}
MODULE = {"_target_": f"{PARTS}.Stages", "add": {"_target_": "torch.nn.Identity"}}


@pytest.fixture(autouse=True)
def _nothing_was_seen() -> None:
    SEEN.clear()


def test_without_an_option_the_data_is_not_read() -> None:
    cfg, source = config(), Numbers()
    assert apply_option(cfg, build_pipeline(cfg), Batches(source)) == []
    assert source.yielded == 0


def test_an_option_changes_modules_and_takes_its_inputs_from_the_first_batch() -> None:
    cfg = config(pipeline=MODULE, optimize=NEGATE)
    built = build_pipeline(cfg)
    changes = apply_option(cfg, built, Batches(Numbers()))
    assert SEEN == [[0.0, 0.0]]
    assert isinstance(built.pipeline.stages["add"], Negative)
    (change,) = changes
    assert (change["stage"], change["before"].partition(" ")[0], change["after"].partition(" ")[0]) == (
        "add",
        "Identity",
        "Negative",
    )


def test_an_option_is_applied_to_the_named_stages_only() -> None:
    cfg = config(pipeline=MODULE, optimize=NEGATE | {"stages": ["double"]})
    with pytest.raises(UsageError, match=r"^optimize=negate: double has no module to change"):
        apply_option(cfg, build_pipeline(cfg), Batches(Numbers()))


def test_an_option_needs_data_that_can_be_read_twice() -> None:
    cfg = config(pipeline=MODULE, optimize=NEGATE)
    with pytest.raises(UsageError, match="give data that can be iterated again"):
        apply_option(cfg, build_pipeline(cfg), Batches(once()))


def test_an_option_needs_a_batch() -> None:
    cfg = config(pipeline=MODULE, optimize=NEGATE)
    with pytest.raises(DataError, match=r"^data: the data set is empty: it yielded no batch$"):
        apply_option(cfg, build_pipeline(cfg), Batches([]))
