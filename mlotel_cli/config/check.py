"""Checks the values of a run's configuration, and builds objects from it.

It does not know Hydra's launch (launch.py) or the modes. The schema is in schema.py.
"""

import errno
import inspect
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast

from hydra.errors import InstantiationException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationToMissingValueError

from mlotel_cli.config import otlp_settings
from mlotel_cli.config.config_errors import CONFIG_EXCEPTIONS, did_you_mean, listed, readable
from mlotel_cli.config.policies import SourcePolicy
from mlotel_cli.errors import MlotelError, UsageError
from mlotel_cli.hardware import check_device

_BACKLOG = 32


def check(cfg: DictConfig) -> None:
    """Refuse a composed configuration that cannot run. This function calls every rule about values.

    Raises:
        UsageError: naming the key, its value and what is allowed.
    """
    _check_readable(cfg)
    _check_typed(cfg, prefix="")
    for key in ("pipeline", "data", "optimize"):
        if key != "data" or "source" not in cfg or cfg.data:  # a monitor of a camera needs no data set
            _check_target(cfg[key], key)
    for name, metric in cfg.metrics.items():
        _check_target(metric, f"metrics.{name}")
    if "source" in cfg:
        split_source(cfg.source)
    if "monitor" in cfg:
        check_port(cfg.monitor.http.host, cfg.monitor.http.port)
    check_device(cfg.device)
    otlp_settings.check(cfg.telemetry.otlp, environ=os.environ)


def split_source(node: DictConfig) -> tuple[SourcePolicy, DictConfig]:
    """Split the configuration of a source into its policy and the node that builds it.

    Raises:
        UsageError: for a value of the policy that is not allowed, or a node without `_target_`.
    """
    own = node.copy()
    names = [entry.name for entry in fields(SourcePolicy)]
    with open_dict(own):
        given = {name: own.pop(name) for name in names if name in own}
    try:
        policy = OmegaConf.merge(OmegaConf.structured(SourcePolicy), given)
    except CONFIG_EXCEPTIONS as error:
        problem = readable(error)
        raise UsageError(f"source.{problem}") from error
    _check_typed(cast("DictConfig", policy), prefix="source.")
    _check_target(own, "source")
    return cast("SourcePolicy", OmegaConf.to_object(policy)), own


def check_port(host: str, port: int) -> None:
    """Refuse an address that a server cannot listen on now.

    Raises:
        UsageError: naming the address, and the next step.
    """
    _bind(host, port).close()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the address; port 0 chooses a free port.

    Raises:
        UsageError: naming the address, and the next step.
    """
    listener = _bind(host, port)
    try:
        listener.listen(_BACKLOG)
    except OSError as error:  # another process took the port meanwhile
        listener.close()
        raise UsageError(_explain_address(host, port, error)) from error
    return listener


def _bind(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise UsageError(f"monitor.http.host={host}: this name has no address: {error.strerror or error}") from error
    family, kind, protocol, _, address = found[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UsageError(_explain_address(host, port, error)) from error
    return bound


def _explain_address(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"monitor.http.port={port}: in use on {host}; give another one, or monitor.http.port=0 for a free one"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"monitor.http.port={port}: not allowed for this user; give one above 1023"
    return f"monitor.http.host={host}: not an address of this machine: {error.strerror}"


def resolve_device(cfg: DictConfig) -> None:
    """Replace `device: auto` by a reference that imports torch only when it is first read."""
    if not OmegaConf.has_resolver("mlotel_device"):
        from mlotel_cli.hardware import find_device

        OmegaConf.register_new_resolver("mlotel_device", find_device)
    if cfg.device == "auto":
        cfg.device = "${mlotel_device:}"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain Python values, references resolved, enums as text."""
    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def instantiate(node: Any, key: str) -> Any:
    """Build the object that the node at configuration path `key` describes; its arguments are plain lists and dicts.

    Raises:
        UsageError: the `_target_` cannot be imported, or does not take these arguments.
        MlotelError: the constructor raised; an MlotelError of the constructor is raised unchanged.
    """
    from hydra.utils import instantiate as hydra_instantiate

    _check_target(node, key)
    _check_readable(node, prefix=f"{key}.")
    try:
        return hydra_instantiate(node) if "_convert_" in node else hydra_instantiate(node, _convert_="all")
    except InstantiationException as error:
        raise _instantiation_error(error, node=node, key=key) from error


def _check_readable(node: DictConfig, *, prefix: str = "") -> None:
    """Refuse missing values, and references that cannot be resolved."""
    if missing := list(_missing_keys(node, prefix=prefix)):
        raise UsageError(f"{listed(missing)}: a value must be given, for example {missing[0]}=VALUE")


def _missing_keys(node: DictConfig | ListConfig, *, prefix: str) -> Iterator[str]:
    """Yield the keys without a value, and read the value of every other key, which resolves its references."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if OmegaConf.is_missing(node, key):
            yield f"{prefix}{key}"
            continue
        try:
            value = node[key]  # pyright: ignore[reportCallIssue, reportArgumentType]
        except InterpolationToMissingValueError:
            continue  # the key that it refers to is missing, and is yielded itself
        except CONFIG_EXCEPTIONS as error:
            raise readable(error) from error
        if isinstance(value, DictConfig | ListConfig) and not OmegaConf.is_interpolation(node, key):
            yield from _missing_keys(value, prefix=f"{prefix}{key}.")


def _check_typed(node: DictConfig, *, prefix: str) -> None:
    entries = fields(cast("Any", OmegaConf.get_type(node)))
    # `+key=value` can add keys to a typed group. At the top level they are allowed: other keys may refer to them.
    if prefix and (unknown := [str(key) for key in node if key not in [entry.name for entry in entries]]):
        hint = did_you_mean(unknown[0], [entry.name for entry in entries])
        raise UsageError(
            f"{prefix}{unknown[0]}: unknown key{hint} ({prefix[:-1]} has {listed(e.name for e in entries)})"
        )
    for entry in entries:
        value = node[entry.name]
        if "low" in entry.metadata and value is not None:
            low, high = entry.metadata["low"], entry.metadata["high"]
            # This form also refuses NaN, for which every comparison is false.
            if not (value >= low and (high is None or value <= high)):
                allowed = f"at least {low}" if high is None else f"{low} to {high}"
                raise UsageError(f"{prefix}{entry.name}={value}: allowed: {allowed}")
        if isinstance(value, DictConfig) and is_dataclass(OmegaConf.get_type(value)):
            _check_typed(value, prefix=f"{prefix}{entry.name}.")


def _check_target(node: Any, key: str) -> None:
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise UsageError(f"{key}._target_: must be given: the import path of a class, such as package.module.Class")


def _instantiation_error(error: InstantiationException, *, node: DictConfig, key: str) -> MlotelError:
    text = str(error)
    found = re.search(r"^\s*full_key: (.*)$", text, re.MULTILINE)
    path = found.group(1) if found else key
    if path != key and not path.startswith(f"{key}."):
        path = f"{key}.{path}"
    cause = error.__cause__
    if isinstance(cause, MlotelError):
        return cause
    if text.startswith("Error locating target") and cause is not None:
        return _import_error(cause, key=path)
    if isinstance(cause, TypeError) and cause.__traceback__ is not None and cause.__traceback__.tb_next is None:
        return _call_error(cause, node=_node_at(node, key=key, path=path), key=path)
    if cause is not None:
        return MlotelError(f"{path}: {_target_in(text)} raised {type(cause).__name__}: {cause}")
    return UsageError(f"{path}: {text.splitlines()[0]}")


def _import_error(cause: BaseException, *, key: str) -> MlotelError:
    while isinstance(cause.__cause__, BaseException) and not isinstance(cause, MlotelError):
        cause = cause.__cause__
    if isinstance(cause, MlotelError):
        return cause
    return UsageError(f"{key}._target_: {type(cause).__name__}: {cause}")


def _call_error(cause: TypeError, *, node: DictConfig, key: str) -> UsageError:
    from hydra.utils import get_object

    target = str(node["_target_"])
    try:
        parameters = inspect.signature(get_object(target)).parameters.values()
    except (TypeError, ValueError):
        return UsageError(f"{key}: {target}: {cause}")
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    required = [p.name for p in parameters if p.name in named and p.default is p.empty]
    given = [str(name) for name in node if not str(name).startswith("_")]
    problems = [f"{key}.{n}: unknown argument{did_you_mean(n, named)}" for n in given if n not in named]
    problems += [f"{key}.{n}: a value must be given" for n in required if n not in given]
    reason = "\n".join(problems) or f"{key}: {cause}"
    return UsageError(f"{reason}\n{target} takes: {listed(named)}")


def _node_at(node: DictConfig, *, key: str, path: str) -> DictConfig:
    inner = path.removeprefix(key).lstrip(".")
    return cast("DictConfig", OmegaConf.select(node, inner)) if inner else node


def _target_in(text: str) -> str:
    found = re.search(r"'([^']+)'", text)
    return found.group(1) if found else "the constructor"
