"""What a pipeline may be: named stages, one callable that opens its own spans, or a module instrumented by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from mlotel_cli.errors import UsageError
from mlotel_cli.telemetry import api

Stage = Callable[[Any], Any]


def stages_of(pipeline: Any) -> Mapping[str, Stage] | Stage:
    """The pipeline's stages in order, or the pipeline itself when it is one callable.

    Raises:
        UsageError: when it is neither, or a stage cannot be called.
    """
    stages = getattr(pipeline, "stages", None)
    if stages is None:
        if callable(pipeline):
            return pipeline
        raise UsageError(
            f"pipeline: {type(pipeline).__name__} has no `stages` and cannot be called; give an object with "
            "`stages: Mapping[str, Callable]`, or a callable `data -> output` that opens its own spans"
        )
    if not isinstance(stages, Mapping) or not stages:
        raise UsageError(f"pipeline: `stages` of {type(pipeline).__name__} must be a non-empty mapping of callables")
    for name, stage in cast("Mapping[Any, Any]", stages).items():
        if not isinstance(name, str) or not callable(stage):
            raise UsageError(f"pipeline: stage {name!r} of {type(pipeline).__name__} must be a callable with a name")
    return cast("Mapping[str, Stage]", stages)


class ModulePipeline:
    """A plain `nn.Module`, untouched: the named submodules get a span each through forward hooks.

    The hooks do nothing while torch.compile traces the module, so they break no graph; inside a compiled graph they do
    not run.
    """

    def __init__(self, module: Any, modules: Sequence[str]) -> None:
        """Instrument `module`.

        Args:
            module: a `torch.nn.Module`, taking a batch's data and returning its output.
            modules: names of submodules as `named_modules()` gives them.

        Raises:
            UsageError: when a name is no submodule, with the names there are.
        """
        known = {name: submodule for name, submodule in module.named_modules() if name}
        for name in modules:
            if name not in known:
                raise UsageError(
                    f"pipeline.modules: {name!r} is no submodule of {type(module).__name__}. "
                    f"There are: {', '.join(list(known)[:20]) or 'none'}{' ...' if len(known) > 20 else ''}"
                )
        self._module = module.eval()
        for name in modules:
            _instrument(known[name], name)

    def __call__(self, data: Any) -> Any:
        """Run the module on a batch's data."""
        return self._module(data)


def _instrument(submodule: Any, name: str) -> None:
    """Open a span before forward and close it after, also when forward raises."""
    import threading

    import torch

    running = threading.local()  # a module may run in several threads, and inside itself

    def before(_module: Any, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if not hasattr(running, "spans"):
            running.spans = []
        span = api.span(name)
        span.__enter__()
        running.spans.append(span)

    def after(_module: Any, _inputs: Any, _output: Any) -> None:
        if torch.compiler.is_compiling() or not getattr(running, "spans", None):
            return
        running.spans.pop().__exit__(None, None, None)

    submodule.register_forward_pre_hook(before)
    submodule.register_forward_hook(after, always_call=True)
