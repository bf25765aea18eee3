"""The allowed forms of a pipeline, and plain modules with spans around named submodules."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlotel_cli.errors import UsageError
from mlotel_cli.pipeline import ModulePipeline, outputs, stages_of
from mlotel_cli.telemetry import api
from tests.support.parts import Stages
from tests.support.spans import recording


class Net(nn.Module):
    """A module of backbone (two convs), neck and head; the head is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 4), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)))
        self.neck = nn.Identity()
        self.head = nn.Linear(4, 4)
        self.same_head = self.head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.head(self.neck(self.backbone(x))))


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no memory")


X = torch.ones(3, 2)


# -- stages ----------------------------------------------------------------------------------------------------------


def test_stages_are_taken_in_order() -> None:
    stages = stages_of(Stages(third=abs))
    assert list(stages) == ["add", "double", "third"]


def test_a_module_dict_is_a_mapping_of_stages() -> None:
    pipeline = nn.Module()
    pipeline.stages = nn.ModuleDict({"one": nn.Identity(), "two": nn.Linear(2, 2)})
    assert list(stages_of(pipeline)) == ["one", "two"]


@pytest.mark.parametrize("stages", [nn.Sequential(nn.Identity()), [1, 2], 3])
def test_a_callable_may_have_stages_of_its_own_kind(stages: Any) -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = stages

    backbone = Backbone()
    assert stages_of(backbone) is backbone


def test_a_callable_is_a_pipeline() -> None:
    assert stages_of(len) is len


class Holder:
    def __init__(self, stages: Any) -> None:
        self.stages = stages


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        (object(), "pipeline: object has no `stages` and cannot be called"),
        (Holder([len]), "pipeline: Holder has `stages` of type list and cannot be called"),
        (Holder({}), "pipeline: `stages` of Holder is empty"),
        (Holder({"detector": 3}), "pipeline: stage 'detector' of Holder must be a callable with a name"),
        (Holder({1: len}), "pipeline: stage 1 of Holder must be a callable with a name"),
        (Holder({"": len}), "pipeline: stage '' of Holder must be a callable with a name"),
    ],
)
def test_what_is_no_pipeline_is_refused(pipeline: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        stages_of(pipeline)
    assert message in str(refused.value)


def test_outputs_of_stages_come_one_by_one() -> None:
    assert list(outputs(stages_of(Stages()), 3)) == [("add", 4), ("double", 8)]
    assert list(outputs(len, "text")) == []


# -- modules ---------------------------------------------------------------------------------------------------------


def test_named_submodules_get_spans_and_the_rest_none() -> None:
    pipeline = ModulePipeline(Net(), ["backbone", "head"])
    with recording() as recorded, api.span("batch"):
        output = pipeline(X)
    assert output.shape == (3, 4)
    assert recorded.tree() == [("batch", None), ("backbone", "batch"), ("head", "batch"), ("head", "batch")]


def test_nested_submodules_nest() -> None:
    pipeline = ModulePipeline(Net(), ["backbone", "backbone.1", "backbone.1.0"])
    with recording() as recorded:
        pipeline(X)
    assert recorded.tree() == [("backbone", None), ("backbone.1", "backbone"), ("backbone.1.0", "backbone.1")]


def test_the_module_is_put_into_evaluation_mode() -> None:
    net = Net()
    assert net.backbone[1][1].training
    ModulePipeline(net, ["head"])
    assert not net.backbone[1][1].training


def test_the_modules_output_is_its_own() -> None:
    net = Net().eval()
    expected = net(X)
    assert torch.equal(ModulePipeline(net, ["backbone", "neck", "head"])(X), expected)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["bakbone"], "pipeline.modules: Net has no submodule 'bakbone'; it has: backbone, backbone.0,"),
        ([""], "pipeline.modules: Net has no submodule ''"),
        (["head", "same_head"], "pipeline.modules: 'head' and 'same_head' are the same submodule; name it once"),
        (["head", "head"], "pipeline.modules: 'head' and 'head' are the same submodule; name it once"),
    ],
)
def test_wrong_names_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        ModulePipeline(Net(), names)
    assert message in str(refused.value)


def test_a_shared_submodule_may_go_by_its_other_name() -> None:
    pipeline = ModulePipeline(Net(), ["same_head"])
    with recording() as recorded:
        pipeline(X)
    assert recorded.names() == ["same_head", "same_head"]


def test_a_module_inside_itself_nests() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, depth: int = 0) -> Tensor:
            return x if depth == 2 else self(x, depth + 1)

    pipeline = ModulePipeline(nn.Sequential(Twice()), ["0"])
    with recording() as recorded:
        pipeline(X)
    spans = {span.span_id: span for span in recorded.spans}
    assert [span.parent_id for span in sorted(spans.values(), key=lambda s: s.start_ns)] == [0, 1, 2]


def test_a_raising_submodule_ends_its_spans_with_the_error_and_names_itself() -> None:
    pipeline = ModulePipeline(nn.Sequential(nn.Sequential(Raising())), ["0", "0.0"])
    with recording() as recorded:
        with pytest.raises(RuntimeError, match="no memory") as raised:
            pipeline(X)
        with api.span("next"):
            pass
    assert [(s.name, s.status, s.status_message) for s in recorded.spans] == [
        ("0.0", "ERROR", "RuntimeError: no memory"),
        ("0", "ERROR", "RuntimeError: no memory"),
        ("next", "UNSET", ""),
    ]
    assert recorded.named("next").parent_id == 0  # no span stayed current
    assert raised.value.__notes__ == ["in submodule 0.0"]


def test_an_error_that_the_caller_is_handling_is_not_the_submodules() -> None:
    pipeline = ModulePipeline(Net(), ["head"])
    with recording() as recorded:
        try:
            raise KeyError("of the caller")
        except KeyError:
            pipeline(X)
    assert [span.status for span in recorded.spans] == ["UNSET", "UNSET"]


def test_a_hook_of_the_users_that_raises_first_leaves_no_span_open() -> None:
    net = Net()

    def refuses(_module: nn.Module, _inputs: Any) -> None:
        raise ValueError("refused")

    net.head.register_forward_pre_hook(refuses)
    pipeline = ModulePipeline(net, ["backbone", "head"])
    with recording() as recorded:
        with pytest.raises(ValueError, match="refused"):
            pipeline(X)
        with api.span("next"):
            pass
    assert recorded.tree() == [("backbone", None), ("next", None)]


def test_threads_do_not_mix() -> None:
    inside = {"a": threading.Event(), "b": threading.Event()}
    a_is_out = threading.Event()

    class Meets(nn.Module):
        def forward(self, x: str) -> str:
            inside[x].set()
            assert inside["b"].wait(10)
            assert x == "a" or a_is_out.wait(10)  # first in, first out: no stack of both would do
            return x

    pipeline = ModulePipeline(nn.Sequential(Meets()), ["0"])

    def work(name: str) -> None:
        if name == "b":
            assert inside["a"].wait(10)
        with api.span(name):
            pipeline(name)
            with api.span(f"after {name}"):
                a_is_out.set()

    with recording() as recorded:
        threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(recorded.tree(), key=str) == [
        ("0", "a"),
        ("0", "b"),
        ("a", None),
        ("after a", "a"),
        ("after b", "b"),
        ("b", None),
    ]


def test_spans_off_cost_no_span() -> None:
    pipeline = ModulePipeline(Net(), ["head"])
    pipeline(X)  # a warm-up
    with recording() as recorded:
        pipeline(X)
    assert recorded.names() == ["head", "head"]


def test_module_and_data_move_to_the_device() -> None:
    class Passes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: list[Tensor]) -> list[Tensor]:
            return x

    net = Passes()
    pipeline = ModulePipeline(nn.Sequential(net), ["0"], device="meta")
    assert net.weight.device.type == "meta"
    assert [x.device.type for x in pipeline([X])] == ["meta"]
    assert ModulePipeline(Passes(), [])([X])[0] is X


def test_outputs_of_a_module_are_its_named_submodules_in_the_order_in_which_they_finish() -> None:
    net = Net()
    pipeline = ModulePipeline(net, ["head", "backbone.1", "backbone"])
    hooks = len(net.head._forward_hooks)
    assert [name for name, _ in outputs(pipeline, X)] == ["backbone.1", "backbone", "head", "head"]
    with recording() as recorded:
        pipeline(X)
    assert recorded.names() == ["backbone.1", "backbone", "head", "head"]
    assert len(net.head._forward_hooks) == hooks == 1  # its own are gone, the spans' are not


# -- torch.compile ---------------------------------------------------------------------------------------------------


def counting_backend() -> tuple[Callable[..., Any], list[Any]]:
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    return backend, graphs


@pytest.fixture
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_hooks_break_no_graph() -> None:
    backend, graphs = counting_backend()
    net = Net().eval()
    expected = net(X)
    pipeline = ModulePipeline(net, ["backbone", "head"])
    compiled = torch.compile(pipeline._module, backend=backend, fullgraph=True)  # fullgraph: a break raises
    with recording() as recorded:
        assert torch.allclose(compiled(X), expected)
    assert (len(graphs), recorded.spans) == (1, [])


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_submodule_keeps_its_span_and_its_name() -> None:
    backend, graphs = counting_backend()
    net = Net()
    net.backbone = torch.compile(net.backbone, backend=backend)  # type: ignore[assignment]
    pipeline = ModulePipeline(net, ["backbone", "head"])
    with recording() as recorded:
        pipeline(X)
        pipeline(X)
    assert recorded.names() == ["backbone", "head", "head"] * 2
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_modules_submodules_go_by_the_names_that_they_had() -> None:
    backend, graphs = counting_backend()
    compiled = torch.compile(Net(), backend=backend, fullgraph=True)
    ModulePipeline(compiled, ["head"])(X)
    assert len(graphs) == 1
