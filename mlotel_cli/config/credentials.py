"""Takes keys and passwords out of what a run writes down or shows, and nothing else out of it.

They are in URLs (`rtsp://USER:PASSWORD@HOST/PATH`, `?token=...`) and in the headers that OTLP is sent with. They are
wanted where a connection is opened, and in no run.json, .hydra, log, W&B run or message.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, cast

HIDDEN = "***"
_HEADERS = ("telemetry", "otlp", "headers")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\\?://[^\s'\"]*")  # Hydra's own lists of overrides escape the colon
# Up to the last @ of the host's part. A colon before the first slash that no port follows begins a password as well,
# whatever comes then: one that holds a slash does not work, and is written down all the same.
_USER = re.compile(r"://(?:[^/?#]*|[^/?#:@]*:(?!\d*(?:[/?#]|$)).*)@")
_PARAMETER = re.compile(
    r"(?P<name>(?:^|[?&;/_])[\w.-]*?(?:pass|pwd|token|secret|key|auth|sig|cred)[\w.-]*=)[^&;#]*", re.IGNORECASE
)
_HEADER_OVERRIDE = re.compile(rf"(?s)(?P<key>\s*[~+]*{re.escape('.'.join(_HEADERS))}(?P<name>\.[^=]*)?=)(?P<value>.*)")
_INTERPOLATION = re.compile(r"['\"]?((Bearer|Basic|Token|ApiKey) )?\$\{[^{}]*\}['\"]?")
"""It names where the secret is, such as `${oc.env:KEY}`, and is none itself."""
_HEADER_ITEM = re.compile(r"(?P<name>[\w.-]+\s*:\s*)(?:'[^']*'|\"[^\"]*\"|[^,{}]+)")


def hide(text: str) -> str:
    """The text, its URLs without user and password, and without the values of parameters that are called like one."""
    return _URL.sub(_hide_in_url, text) if "://" in text else text


def hide_in(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """A plain configuration: URLs as `hide` has them, OTLP's headers by name only."""
    return {key: _hide_below((str(key),), value) for key, value in config.items()}


def hide_override(text: str) -> str:
    """An override of the command line, `key=value`, as `hide_in` would show what it sets."""
    if _sets_around(text):
        return f"{text.partition('=')[0]}={HIDDEN}"
    found = _HEADER_OVERRIDE.fullmatch(text)
    if not found or _INTERPOLATION.fullmatch(found["value"]):
        return hide(text)
    value = HIDDEN if found["name"] else _HEADER_ITEM.sub(rf"\g<name>{HIDDEN}", found["value"])
    return f"{found['key']}{value}"


def _sets_around(text: str) -> bool:
    """Whether an override sets a whole group that the headers are part of, and them with it."""
    key, _, value = text.partition("=")
    return ".".join(_HEADERS).startswith(f"{key.lstrip('+~').strip()}.") and _HEADERS[-1] in value


class LogFormatter(logging.Formatter):
    """As logging's own; what libraries say, and tracebacks, may hold a URL as well."""

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record."""
        return hide(super().format(record))


def _hide_below(path: tuple[str, ...], value: Any) -> Any:
    if isinstance(value, str):
        is_secret = value and path[:-1] == _HEADERS and not _INTERPOLATION.fullmatch(value)
        return HIDDEN if is_secret else hide(value)
    if isinstance(value, Mapping):
        return {key: _hide_below((*path, str(key)), each) for key, each in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_hide_below((*path, ""), each) for each in cast("list[Any]", value)]
    return HIDDEN if value is not None and path[:-1] == _HEADERS else value


def _hide_in_url(found: "re.Match[str]") -> str:
    without_user = _USER.sub(f"://{HIDDEN}@", found[0], count=1)
    scheme, _, rest = without_user.partition("://")
    end = re.search(r"[/?]", rest)
    at = end.start() if end else len(rest)
    return f"{scheme}://{rest[:at]}" + _PARAMETER.sub(rf"\g<name>{HIDDEN}", rest[at:])
