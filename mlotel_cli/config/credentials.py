"""Hides keys and passwords in everything that a run saves or shows, and changes nothing else.

Secrets are in URLs (`rtsp://USER:PASSWORD@HOST/PATH`, `?token=...`) and in the headers of OTLP requests. Only the code
that opens a connection gets them; run.json, .hydra, logs, W&B runs and messages do not.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any, cast

HIDDEN = "***"
_HEADERS = ("telemetry", "otlp", "headers")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\\?://[^\s'\"]*")  # Hydra's own lists of overrides escape the colon
# Matches up to the last @ of the host's part. A colon before the first slash, unless a port follows, begins a password
# up to the last @ even if it contains a slash: such a URL does not work, but its password must be hidden too.
_USER = re.compile(r"://(?:[^/?#]*|[^/?#:@]*:(?!\d*(?:[/?#]|$)).*)@")
_PARAMETER = re.compile(
    r"(?P<name>(?:^|[?&;/_])[\w.-]*?(?:pass|pwd|token|secret|key|auth|sig|cred)[\w.-]*=)[^&;#]*", re.IGNORECASE
)
_HEADER_OVERRIDE = re.compile(rf"(?s)(?P<key>\s*[~+]*{re.escape('.'.join(_HEADERS))}(?P<name>\.[^=]*)?=)(?P<value>.*)")
_INTERPOLATION = re.compile(r"['\"]?((Bearer|Basic|Token|ApiKey) )?\$\{[^{}]*\}['\"]?")
"""A reference to a secret, such as `${oc.env:KEY}`, which is not itself a secret."""
_HEADER_ITEM = re.compile(r"(?P<name>[\w.-]+\s*:\s*)(?:'[^']*'|\"[^\"]*\"|[^,{}]+)")


def hide(text: str) -> str:
    """Return the text with hidden users and passwords in its URLs, and hidden values of parameters named like one."""
    return _URL.sub(_hide_in_url, text) if "://" in text else text


def hide_in(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a plain configuration with `hide` applied to all text, and with hidden values of OTLP's headers."""
    return {key: _hide_below((str(key),), value) for key, value in config.items()}


def hide_override(text: str) -> str:
    """Return an override of the command line, `key=value`, with the secrets hidden that `hide_in` would hide."""
    if _sets_around(text):
        return f"{text.partition('=')[0]}={HIDDEN}"
    found = _HEADER_OVERRIDE.fullmatch(text)
    if not found or _INTERPOLATION.fullmatch(found["value"]):
        return hide(text)
    value = HIDDEN if found["name"] else _HEADER_ITEM.sub(rf"\g<name>{HIDDEN}", found["value"])
    return f"{found['key']}{value}"


def _sets_around(text: str) -> bool:
    """Return whether an override sets a whole group that includes the headers."""
    key, _, value = text.partition("=")
    return ".".join(_HEADERS).startswith(f"{key.lstrip('+~').strip()}.") and _HEADERS[-1] in value


class LogFormatter(logging.Formatter):
    """Hides secrets in log records, whose messages and tracebacks may contain a URL."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record, with secrets hidden."""
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
