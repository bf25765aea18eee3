"""Options change the modules, results stay close, and an option without an effect is refused."""

import pytest
import torch

from mlotel_cli import optimize
from mlotel_cli.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.ao and the compiler announce successors


class Pipeline:
    """A pipeline of two stages with modules and one without."""

    def __init__(self):
        torch.manual_seed(0)
        self.modules = {"features": torch.nn.Conv2d(1, 4, 3), "head": torch.nn.Linear(4 * 6 * 6, 2)}
        self.stages = {
            "features": lambda x: self.modules["features"](x),
            "head": lambda x: self.modules["head"](x.flatten(1)),
            "label": lambda x: x.argmax(1),
        }


DATA = torch.rand(3, 1, 8, 8)


def run(pipeline, *, until="head"):
    value = DATA
    with torch.inference_mode():
        for name, stage in pipeline.stages.items():
            value = stage(value)
            if name == until:
                break
    return value


def apply(option, pipeline, *, name="option", stages=None):
    return optimize.apply(option, name=name, pipeline=pipeline, stages=stages, run_first_batch=lambda: run(pipeline))


def test_bf16_changes_every_module_and_hardly_the_result():
    pipeline = Pipeline()
    before = run(pipeline)

    changes = apply(optimize.bf16, pipeline)

    assert [change.stage for change in changes] == ["features", "head"]
    assert changes[0].before == "Conv2d (float32; 1 nn.modules.conv.Conv2d)"
    assert changes[0].after.startswith("autocast bfloat16 (float32;")
    after = run(pipeline)
    assert after.dtype == torch.float32
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=0.05, atol=0.02)


def test_only_the_stages_named():
    pipeline = Pipeline()
    convolution = pipeline.modules["features"]

    changes = apply(optimize.bf16, pipeline, stages=["head"])

    assert [change.stage for change in changes] == ["head"]
    assert pipeline.modules["features"] is convolution


def test_int8_changes_linear_layers_only():
    pipeline = Pipeline()
    before = run(pipeline)

    changes = apply(optimize.int8_dynamic, pipeline)

    assert [change.stage for change in changes] == ["head"]
    assert "quantized" in changes[0].after
    torch.testing.assert_close(run(pipeline), before, rtol=0.1, atol=0.05)


def test_an_option_that_changes_nothing_is_an_error():
    with pytest.raises(UsageError, match=r"optimize=int8_dynamic changes nothing in features"):
        apply(optimize.int8_dynamic, Pipeline(), name="int8_dynamic", stages=["features"])


def test_an_unknown_stage_is_an_error_that_names_those_there_are():
    with pytest.raises(UsageError, match=r"optimize=bf16: label has no module to change.*here: features, head"):
        apply(optimize.bf16, Pipeline(), name="bf16", stages=["label"])


def test_a_pipeline_without_modules_is_an_error():
    class Plain:
        def __init__(self):
            self.stages = {"double": lambda x: x * 2}

    with pytest.raises(UsageError, match=r"the pipeline has no module to change"):
        apply(optimize.bf16, Plain())


def test_stages_that_are_modules_are_replaced_in_place():
    class Modules:
        def __init__(self):
            self.stages = {"head": torch.nn.Linear(8, 2)}

    pipeline = Modules()
    apply(optimize.bf16, pipeline)

    assert pipeline.stages["head"](torch.rand(1, 8)).dtype == torch.float32
    assert "Autocast" in type(pipeline.stages["head"]).__name__


def test_fp16_on_a_cpu_is_an_error_with_the_next_step():
    with pytest.raises(UsageError, match=r"use optimize=bf16"):
        apply(optimize.fp16, Pipeline())


def test_the_users_own_option_gets_the_inputs_of_the_first_batch():
    given = {}

    def own(module, example_inputs):
        given[type(module).__name__] = [tuple(each.shape) for each in example_inputs]
        return torch.nn.Sequential(module)

    changes = apply(own, Pipeline())

    assert given == {"Conv2d": [(3, 1, 8, 8)], "Linear": [(3, 4 * 6 * 6)]}
    assert [change.after for change in changes] == [
        "Sequential (float32; 1 nn.modules.conv.Conv2d)",
        "Sequential (float32; 1 nn.modules.linear.Linear)",
    ]


def test_compile_is_run_before_it_is_measured(monkeypatch):
    calls = []

    class Compiled(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            calls.append(len(inputs))
            return self.module(*inputs)

    monkeypatch.setattr(torch, "compile", lambda module, **given: calls.append(given) or Compiled(module))
    pipeline = Pipeline()

    changes = optimize.apply(
        lambda module, inputs: optimize.compile(module, inputs, dynamic=True),
        name="compile",
        pipeline=pipeline,
        stages=["head"],
        run_first_batch=lambda: run(pipeline),
    )

    assert calls == [{"mode": None, "dynamic": True}, 1]
    assert changes[0].after.startswith("Compiled")
