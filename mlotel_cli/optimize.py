"""Options that change the module of a stage before a measurement, such as a lower precision or compilation.

An option is any callable `(module, example_inputs) -> module`; the built-in ones are here. The module of a stage is
`pipeline.modules[stage]`, which the pipeline must look up at every call, or the stage itself when it is a module.
"""

import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from mlotel_cli.errors import UsageError

Optimize = Callable[[Any, tuple[Any, ...]], Any]


@dataclass(slots=True)
class Change:
    """The change of one stage's module by an option; `run.json` lists the changes.

    Attributes:
        stage: name of the stage.
        before: the module before: its class, parameter dtypes and layer counts.
        after: the module after.
    """

    stage: str
    before: str
    after: str


def none(module: Any, example_inputs: tuple[Any, ...]) -> Any:
    """Return the module unchanged."""
    return module


def bf16(module: Any, example_inputs: tuple[Any, ...]) -> Any:
    """Run under autocast to bfloat16; floating-point outputs come back as float32."""
    return _autocast(module, "bfloat16")


def fp16(module: Any, example_inputs: tuple[Any, ...]) -> Any:
    """Run under autocast to float16; floating-point outputs come back as float32. CUDA only.

    Raises:
        UsageError: when the module is not on a CUDA device.
    """
    if any(parameter.device.type != "cuda" for parameter in module.parameters()):
        raise UsageError("optimize=fp16: float16 is slower than float32 on a CPU; use optimize=bf16, or device=cuda")
    return _autocast(module, "float16")


def compile(
    module: Any, example_inputs: tuple[Any, ...], *, mode: str | None = None, dynamic: bool | None = None
) -> Any:
    """Compile the module with `torch.compile`, and run it once so that no measured batch includes the compilation.

    `mode` is torch.compile's: default | reduce-overhead | max-autotune. `dynamic=True` compiles for any size at once;
    None lets torch detect which sizes vary.
    """
    import torch

    compiled: Any = cast("Any", torch).compile(module, mode=mode, dynamic=dynamic)
    with torch.inference_mode():
        compiled(*example_inputs)
    return compiled


def int8_dynamic(module: Any, example_inputs: tuple[Any, ...]) -> Any:
    """Quantise the Linear layers dynamically to int8 (torch.ao); convolutions do not change. CPU only."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao warns of its successor at every call
        holder = torch.nn.Sequential(module)  # torch.ao replaces only modules inside the given one
        quantization = cast("Any", torch.ao.quantization)
        return quantization.quantize_dynamic(holder, {torch.nn.Linear}, dtype=torch.qint8)[0]


def apply(
    optimize: Optimize,
    *,
    name: str,
    pipeline: Any,
    stages: Sequence[str] | None,
    run_first_batch: Callable[[], object],
) -> list[Change]:
    """Apply an option to the modules of a pipeline, in place.

    Args:
        optimize: the option.
        name: name of the option in the configuration, for messages.
        pipeline: the pipeline; its modules are replaced.
        stages: the stages to change; None takes every stage with a module.
        run_first_batch: runs the pipeline once, to capture the inputs of the modules.

    Returns:
        The changes.

    Raises:
        UsageError: for an unknown stage, a pipeline without modules, or an option that changes nothing.
    """
    slots = _slots(pipeline)
    chosen = list(slots if stages is None else stages)
    unknown = [stage for stage in chosen if stage not in slots]
    if unknown or not chosen:
        raise UsageError(
            f"optimize={name}: {', '.join(unknown) or 'the pipeline'} has no module to change. A pipeline offers "
            f"them as `modules: dict[str, nn.Module]` or as stages that are modules; here: {', '.join(slots) or 'none'}"
        )
    inputs = _capture_inputs({stage: slots[stage][stage] for stage in chosen}, run_first_batch)
    changes: list[Change] = []
    for stage in chosen:
        before = describe(slots[stage][stage])
        optimized = optimize(slots[stage][stage], inputs.get(stage, ()))
        after = describe(optimized)
        if after != before:
            slots[stage][stage] = optimized
            changes.append(Change(stage, before, after))
    if not changes:
        raise UsageError(
            f"optimize={name} changes nothing in {', '.join(chosen)}: "
            "the run would measure the unchanged pipeline under another name"
        )
    return changes


def describe(module: Any) -> str:
    """Describe a module in one line: class, parameter dtypes, and the number of layers of each kind."""
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters()})
    layers: dict[str, int] = {}
    for layer in module.modules():
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        if not list(layer.children()):
            layers[kind.removeprefix("torch.")] = layers.get(kind.removeprefix("torch."), 0) + 1
    counted = ", ".join(f"{count} {kind}" for kind, count in sorted(layers.items()))
    wrapper = getattr(module, "mlotel_option", None) or type(module).__name__
    return f"{wrapper} ({'/'.join(dtypes) or 'no parameters'}; {counted})"


def _autocast(module: Any, dtype: str) -> Any:
    """Wrap the module in autocast; a module without floating-point parameters is returned unchanged."""
    import torch

    if not any(parameter.is_floating_point() for parameter in module.parameters()):
        return module
    device_type = next(module.parameters()).device.type

    class Autocast(torch.nn.Module):
        mlotel_option = f"autocast {dtype}"

        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *inputs: Any) -> Any:
            with torch.autocast(device_type, dtype=getattr(torch, dtype)):
                return _to_float32(self.module(*inputs))

    return Autocast().eval()


def _to_float32(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _to_float32(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, tuple | list):
        items = [_to_float32(item) for item in cast("Sequence[Any]", value)]
        return tuple(items) if isinstance(value, tuple) else items
    is_floating_point = getattr(value, "is_floating_point", None)
    return value.float() if callable(is_floating_point) and is_floating_point() else value


def _slots(pipeline: Any) -> dict[str, MutableMapping[str, Any]]:
    """Return by stage the mapping that contains its module, so that the module can be replaced there."""
    import torch

    found: MutableMapping[str, Any] = {}
    for name in ("stages", "modules"):
        holder: Any = getattr(pipeline, name, None)
        if isinstance(holder, MutableMapping):
            found = cast("MutableMapping[str, Any]", holder)
    return {name: found for name, module in found.items() if isinstance(module, torch.nn.Module)}


def _capture_inputs(modules: Mapping[str, Any], run: Callable[[], object]) -> dict[str, tuple[Any, ...]]:
    """Call `run`; return the first inputs of each module."""
    inputs: dict[str, tuple[Any, ...]] = {}

    def catch(stage: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def note(_module: Any, given: tuple[Any, ...]) -> None:
            inputs.setdefault(stage, given)

        return note

    handles = [module.register_forward_pre_hook(catch(stage)) for stage, module in modules.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return inputs
