"""Turns the exceptions of Hydra, OmegaConf and YAML into one short message: key, value, what is allowed, did you mean.

It does not know the schema. The useful text of an exception is often in its cause.
"""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Any

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, MissingMandatoryValue
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
    UnsupportedInterpolationType,
    ValidationError,
)
from yaml import MarkedYAMLError, YAMLError

from mlotel_cli.config.credentials import hide
from mlotel_cli.errors import MlotelError, UsageError

CONFIG_EXCEPTIONS = (HydraException, OmegaConfBaseException, YAMLError)
"""Exceptions of composing a configuration; `readable` explains each of them."""

_TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the option closest to `word`, or nothing when none is close."""
    close = get_close_matches(word, list(options), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def listed(options: Iterable[str]) -> str:
    """Return the options as one comma-separated text; `none` when there are none."""
    return ", ".join(options) or "none"


def readable(error: BaseException) -> UsageError:
    """Explain one of `CONFIG_EXCEPTIONS` as a UsageError, by the most specific exception of its chain."""
    chain = list(_chain(error))
    where = next((found.group(1) for link in chain if (found := re.match(r"In '([^']+)':", str(link)))), "")
    for link in chain:
        match link:
            case OverrideParseException():
                return _override_error(link)
            case MissingConfigException():
                return _missing_config(link)
            case MarkedYAMLError() | YAMLError():
                return _yaml_error(link)
            case OmegaConfBaseException():
                return _omegaconf_error(link, where=where, outer=str(error))
            case _:
                continue
    return _composition_error(str(error))


def exit_code(error: BaseException) -> int:
    """Return the exit code of the command that an error ends."""
    if isinstance(error, CONFIG_EXCEPTIONS):
        return UsageError.exit_code
    return error.exit_code if isinstance(error, MlotelError) else MlotelError.exit_code


def message(error: BaseException) -> str:
    """Return the message of an error for the user, with passwords hidden."""
    if isinstance(error, CONFIG_EXCEPTIONS):
        error = readable(error)
    return hide(str(error) if isinstance(error, MlotelError) else f"{type(error).__name__}: {error}")


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _override_error(error: OverrideParseException) -> UsageError:
    reason = error.message.split("\nSee http")[0].rstrip().removeprefix(f"Error parsing override '{error.override}'\n")
    return UsageError(
        f"cannot read the override {error.override!r}: {reason}\n"
        "allowed: key=value, group=option, +key=value to add, ~key to delete; quote special characters: 'key=\"a, b\"'"
    )


def _missing_config(error: MissingConfigException) -> UsageError:
    wanted = error.missing_cfg_file or ""
    group, _, name = wanted.rpartition("/")
    options = list(error.options or ())
    if not group:
        return UsageError(str(error).split("\nConfig search path")[0].strip())
    return UsageError(
        f"{group}={name}: there is no such option; allowed: {listed(options)}{did_you_mean(name, options)}"
    )


def _yaml_error(error: YAMLError) -> UsageError:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a configuration file"
    reason = getattr(error, "problem", None) or str(error)
    return UsageError(f"{place}: not valid YAML: {reason}")


def _omegaconf_error(error: OmegaConfBaseException, *, where: str, outer: str) -> UsageError:
    key = error.full_key or str(error.key or "")
    reason = (error.msg or str(error)).split("\n")[0]
    place = f" (in {where}.yaml)" if where else ""
    match error:
        case InterpolationKeyError() | UnsupportedInterpolationType() | InterpolationResolutionError():
            return UsageError(f"{key}: the reference ${{...}} in its value cannot be resolved: {reason}{place}")
        case MissingMandatoryValue():
            return UsageError(f"{key}: a value must be given, for example {key}=VALUE{place}")
        case ConfigKeyError() | ConfigAttributeError():
            return _unknown_key(key, error, place=place)
        case ValidationError():
            return UsageError(f"{_invalid_value(key, reason, override=_override_in(outer))}{place}")
        case _:
            reason = reason.replace("Cannot merge DictConfig with ListConfig", "a list where keys and values belong")
            return UsageError(f"{key}: {reason}{place}" if key else f"{reason}{place}")


def _unknown_key(key: str, error: OmegaConfBaseException, *, place: str) -> UsageError:
    parent: Any = error.parent_node
    siblings = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    parent_key, _, name = key.rpartition(".")
    level = f"{parent_key} has" if parent_key else "allowed at the top:"
    return UsageError(f"{key}: unknown key{place}{did_you_mean(name, siblings)} ({level} {listed(siblings)})")


def _invalid_value(key: str, reason: str, *, override: str) -> str:
    if enum := re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", reason):
        value, options = enum.group(1), enum.group(2).split(", ")
        # YAML 1.1 reads a bare off (on, yes, no) as a boolean, but the user means the word.
        hint = "; YAML reads a bare off as false: quote it" if value == "False" and "off" in options else ""
        return f"{key}={value}: allowed: {listed(options)}{did_you_mean(value.lower(), options)}{hint}"
    if typed := re.match(r"Value '(.*)' of type '(.*)' could not be converted to (\w+)", reason):
        value, _, wanted = typed.groups()
        return f"{key}={value}: must be {_TYPE_WORDS.get(wanted, wanted)}"
    if boolean := re.match(r"Value '(.*)' is not a valid bool", reason):
        return f"{key}={boolean.group(1)}: must be true or false"
    if re.match(r"Invalid type assigned: \w+ is not a subclass of", reason):
        return f"{override or key}: {key} holds keys of its own; it cannot be one value"
    if re.search(r"is not a ListConfig, list or tuple", reason):
        return f"{override or key}: {key} must be a list, such as [a, b]"
    return f"{key}: {reason}" if key else f"{override or 'configuration'}: {reason}"


def _override_in(text: str) -> str:
    found = re.match(r"Error merging override (.*)", text)
    return found.group(1) if found else ""


def _composition_error(text: str) -> UsageError:
    text = text.strip()
    if found := re.search(r"Could not override '([^']+)'\.\s*No match in the defaults list", text):
        return UsageError(f"{found.group(1)}: unknown configuration group (an addition is written +group=option)")
    if found := re.match(r"Could not delete from config\. '([^']+)' does not exist", text):
        return UsageError(f"{found.group(1)}: unknown key, so it cannot be deleted")
    if text.startswith("experiment appears more than once"):
        return UsageError("experiment: take it out of your defaults list; it is applied after your file anyway")
    return UsageError(text.split("\nSee http")[0])
