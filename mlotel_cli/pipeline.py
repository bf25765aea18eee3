"""The forms of a pipeline: named stages, one callable that opens its own spans, or a module with named submodules."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from mlotel_cli.errors import UsageError
from mlotel_cli.telemetry import api
from mlotel_cli.tensors import move

Stage = Callable[[Any], Any]


def stages_of(pipeline: Any) -> Mapping[str, Stage] | Stage:
    """Return the pipeline's stages in order, or the pipeline itself when it is one callable.

    `stages` may also be a `torch.nn.ModuleDict`. A callable whose `stages` is not a mapping (the blocks of a backbone,
    say) counts as one callable.

    Raises:
        UsageError: when the pipeline is neither, or a stage cannot be called.
    """
    given = getattr(pipeline, "stages", None)
    kind = type(pipeline).__name__
    if given is None or not callable(getattr(given, "items", None)):
        if callable(pipeline):
            return pipeline
        what = "has no `stages`" if given is None else f"has `stages` of type {type(given).__name__}"
        raise UsageError(
            f"pipeline: {kind} {what} and cannot be called; give an object with "
            "`stages: Mapping[str, Callable]`, or a callable `data -> output` that opens its own spans"
        )
    # Not a copy, because an option (optimize.py) replaces stages in the mapping.
    stages: Mapping[Any, Any] = cast("Mapping[Any, Any]", given) if isinstance(given, Mapping) else dict(given.items())
    if not stages:
        raise UsageError(f"pipeline: `stages` of {kind} is empty; a pipeline has at least one stage")
    for name, stage in stages.items():
        if not isinstance(name, str) or not name or not callable(stage):
            raise UsageError(f"pipeline: stage {name!r} of {kind} must be a callable with a name")
    return cast("Mapping[str, Stage]", stages)


def outputs(stages: Mapping[str, Stage] | Stage, data: Any) -> Iterator[tuple[str, Any]]:
    """Run the pipeline once, without spans for its stages, and yield each stage's name and output in turn.

    Nothing is run or yielded for a callable that opens its own spans.
    """
    if isinstance(stages, ModulePipeline):
        yield from stages.outputs(data)
    elif isinstance(stages, Mapping):
        for name, stage in cast("Mapping[str, Stage]", stages).items():
            data = stage(data)
            yield name, data


class ModulePipeline:
    """A plain `nn.Module` whose named submodules get a span each through forward hooks.

    The hooks do nothing while torch.compile traces the module, so they cause no graph breaks. Inside a compiled graph
    they do not run. A submodule that is compiled itself, `net.head = torch.compile(net.head)`, keeps its span.
    """

    def __init__(self, module: Any, modules: Sequence[str], *, device: str | None = None) -> None:
        """Put `module` into evaluation mode and instrument it.

        Args:
            module: a `torch.nn.Module` that takes a batch's data and returns its output.
            modules: names of submodules, as in `named_modules()`.
            device: torch device for module and data; None leaves both on their devices.

        Raises:
            UsageError: for a name without a submodule, or two names of the same submodule.
        """
        self._device = device
        self._module = module.eval() if device is None else module.eval().to(device)
        self._named = _find(module, modules)
        for name, submodule in self._named.items():
            _instrument(submodule, name)

    def __call__(self, data: Any) -> Any:
        """Run the module on a batch's data."""
        return self._module(data if self._device is None else move(data, self._device))

    def outputs(self, data: Any) -> list[tuple[str, Any]]:
        """Run the module; return name and output of the named submodules, in the order in which they finished."""
        seen: list[tuple[str, Any]] = []

        def keep(name: str) -> Callable[[Any, Any, Any], None]:
            return lambda _module, _inputs, output: seen.append((name, output))

        hooks = [submodule.register_forward_hook(keep(name)) for name, submodule in self._named.items()]
        try:
            self(data)
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def _find(module: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the submodules by name; in a compiled module they keep the names from before."""
    known: dict[str, Any] = {}
    for path, submodule in module.named_modules(remove_duplicate=False):
        known.setdefault(path.replace("_orig_mod.", "").removesuffix("._orig_mod"), submodule)
    known.pop("", None)
    found: dict[str, Any] = {}
    for name in names:
        if name not in known:
            listed = f"{', '.join(list(known)[:20]) or 'none'}{' ...' if len(known) > 20 else ''}"
            raise UsageError(f"pipeline.modules: {type(module).__name__} has no submodule {name!r}; it has: {listed}")
        same = next((other for other, submodule in found.items() if submodule is known[name]), None)
        if same is not None:
            raise UsageError(f"pipeline.modules: {same!r} and {name!r} are the same submodule; name it once")
        found[name] = known[name]
    return found


def _instrument(submodule: Any, name: str) -> None:
    """Open a span before forward and end it after, also when forward raises."""
    import torch

    running = threading.local()  # a module may run in several threads, and recursively

    def before(_module: Any, _inputs: Any) -> None:
        if torch.compiler.is_compiling():
            return
        span = api.span(name)
        span.__enter__()
        spans: list[Any] = vars(running).setdefault("spans", [])
        spans.append((span, sys.exc_info()[1]))

    def after(_module: Any, _inputs: Any, _output: Any) -> None:
        if torch.compiler.is_compiling() or not vars(running).get("spans"):
            return
        span, handled = running.spans.pop()
        error = sys.exc_info()[1]
        if error is None or error is handled:  # the caller may already handle an error of its own
            span.__exit__(None, None, None)
            return
        if not getattr(error, "__notes__", None):  # the innermost submodule names itself
            error.add_note(f"in submodule {name}")
        span.__exit__(type(error), error, error.__traceback__)

    submodule.register_forward_pre_hook(before)
    submodule.register_forward_hook(after, always_call=True)
