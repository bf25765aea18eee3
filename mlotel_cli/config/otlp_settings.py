"""The settings of OTLP export, from `telemetry.otlp` and OpenTelemetry's standard variables.

It reads a mapping of environment variables, and checks whether certificate files exist. It sends nothing.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import unquote, urlsplit

from mlotel_cli.config.credentials import hide
from mlotel_cli.errors import UsageError

Signal = Literal["traces", "metrics"]

DEFAULT_ENDPOINT = "http://localhost:4318"
"""OpenTelemetry's default; used only where OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER includes `otlp`."""
DEFAULT_TIMEOUT_S = 10.0
_LONGEST_TIMEOUT_S = 600.0
_PREFIX = "OTEL_EXPORTER_OTLP"
_KEY = "telemetry.otlp.endpoint"
_COMPRESSIONS = ("none", "gzip", "deflate")


@dataclass(slots=True)
class Target:
    """The destination of one signal.

    Attributes:
        signal: traces | metrics.
        url: the whole URL of the signal, without user and password.
        headers: sent with every request.
        timeout_s: seconds for one request.
        compression: none | gzip | deflate.
        certificate: file of the authorities that verify the server's certificate; None: the system's.
        client_certificate: file, or (certificate, key), that is sent to the server.
    """

    signal: Signal
    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    timeout_s: float = DEFAULT_TIMEOUT_S
    compression: str = "none"
    certificate: str | None = None
    client_certificate: str | tuple[str, str] | None = None


def find_target(signal: Signal, settings: Mapping[str, Any], *, environ: Mapping[str, str]) -> Target | None:
    """Return the destination of `signal`; None when no setting enables its export.

    `telemetry.otlp.endpoint` wins over OTEL_EXPORTER_OTLP_<SIGNAL>_ENDPOINT (used unchanged) and
    OTEL_EXPORTER_OTLP_ENDPOINT (a base URL). OTEL_SDK_DISABLED=true and OTEL_<SIGNAL>_EXPORTER=none disable it.

    Raises:
        UsageError: for a value that cannot work.
    """
    exporters = environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").lower().replace(" ", "").split(",")
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or "none" in exporters:
        return None
    if exporters != [""] and "otlp" not in exporters:
        environ = {}  # the variables choose another exporter, but the configuration may still enable this one
    found = _find_url(signal, settings, environ=environ, is_wanted="otlp" in exporters)
    if found is None:
        return None
    key, given, url = found
    check_endpoint(given, key=key)
    url, authorization = _split_user(url)
    return Target(
        signal=signal,
        url=url,
        headers=authorization | _headers(signal, settings, environ=environ),
        timeout_s=_timeout_s(signal, settings, environ=environ),
        compression=_compression(signal, environ=environ),
        certificate=_file(signal, "CERTIFICATE", environ=environ),
        client_certificate=_client_certificate(signal, environ=environ),
    )


def check(settings: Mapping[str, Any], *, environ: Mapping[str, str]) -> None:
    """Refuse settings that cannot work.

    Raises:
        UsageError: naming the key or the variable, its value and what is allowed.
    """
    find_target("traces", settings, environ=environ)
    find_target("metrics", settings, environ=environ)


def check_endpoint(url: str, *, key: str = _KEY) -> None:
    """Refuse anything but an http or https URL with a host; the message names `key` as its origin.

    Raises:
        UsageError: naming the key, its value and what is allowed.
    """
    try:
        parts = urlsplit(url)
        ok = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or unbalanced brackets
        ok = False
    if not ok or any(letter.isspace() for letter in url):
        allowed = f"an http or https URL, such as {DEFAULT_ENDPOINT} (OTLP over HTTP)"
        raise UsageError(f"{key}={hide(url)}: allowed: {allowed}")


def unsupported(environ: Mapping[str, str]) -> str | None:
    """Return a sentence about a variable that does not apply; None when all apply."""
    for name in (f"{_PREFIX}_PROTOCOL", f"{_PREFIX}_TRACES_PROTOCOL", f"{_PREFIX}_METRICS_PROTOCOL"):
        protocol = environ.get(name, "").strip().lower()
        if protocol and protocol != "http/protobuf":
            return f"{name}={protocol} does not apply: OTLP is sent as http/protobuf (port 4318 of a collector)"
    return None


def resource_of_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes in OTEL_RESOURCE_ATTRIBUTES; parts without `=` are left out."""
    return _pairs(environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))


def _find_url(
    signal: Signal, settings: Mapping[str, Any], *, environ: Mapping[str, str], is_wanted: bool
) -> tuple[str, str, str] | None:
    """Return the key or variable, its value, and the URL of the signal; None when no setting enables it."""
    own, base = f"{_PREFIX}_{signal.upper()}_ENDPOINT", f"{_PREFIX}_ENDPOINT"
    if settings.get("endpoint"):
        return _KEY, str(settings["endpoint"]), _join(str(settings["endpoint"]), signal)
    if environ.get(own):
        return own, environ[own], environ[own]
    if environ.get(base):
        return base, environ[base], _join(environ[base], signal)
    return (base, DEFAULT_ENDPOINT, _join(DEFAULT_ENDPOINT, signal)) if is_wanted else None


def _join(base: str, signal: Signal) -> str:
    """Return the URL of a signal below `base`, from which the path of a signal is removed first."""
    base = base.rstrip("/")
    for other in ("traces", "metrics"):
        base = base.removesuffix(f"/v1/{other}")
    return f"{base}/v1/{signal}"


def _split_user(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without `user:password@`, and these as a header, because URLs are shown and saved."""
    parts = urlsplit(url)
    user, at_sign, host = parts.netloc.rpartition("@")
    if not at_sign:
        return url, {}
    name, _, password = user.partition(":")
    token = base64.b64encode(f"{unquote(name)}:{unquote(password)}".encode()).decode()
    return parts._replace(netloc=host).geturl(), {"authorization": f"Basic {token}"}


def _headers(signal: Signal, settings: Mapping[str, Any], *, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by lower-case name; `telemetry.otlp.headers` wins over the variables, name by name."""
    given = _of_signal(signal, "HEADERS", environ=environ)[1]
    headers = {name.lower(): value for name, value in _pairs(given).items()}
    given_here = cast("Mapping[Any, Any]", settings.get("headers") or {})
    headers |= {str(name).lower(): str(value) for name, value in given_here.items()}
    for name, value in headers.items():
        if not name.isascii() or not value.isprintable() or any(letter.isspace() or letter == ":" for letter in name):
            raise UsageError(
                f"telemetry.otlp.headers.{name}: not a valid HTTP header; allowed: printable text in one line"
            )
    return headers


def _timeout_s(signal: Signal, settings: Mapping[str, Any], *, environ: Mapping[str, str]) -> float:
    """Return seconds, as OpenTelemetry's Python SDK reads the variable; 1000 and more are the specification's ms."""
    if settings.get("timeout_s"):
        return float(settings["timeout_s"])
    key, text = _of_signal(signal, "TIMEOUT", environ=environ)
    if not text:
        return DEFAULT_TIMEOUT_S
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    value = value / 1000 if value >= 1000 else value
    if not 0 < value <= _LONGEST_TIMEOUT_S:
        raise UsageError(f"{key}={text}: allowed: seconds above 0, up to {_LONGEST_TIMEOUT_S:g}")
    return value


def _compression(signal: Signal, *, environ: Mapping[str, str]) -> str:
    key, text = _of_signal(signal, "COMPRESSION", environ=environ)
    compression = text.strip().lower() or "none"
    if compression not in _COMPRESSIONS:
        raise UsageError(f"{key}={text}: allowed: {', '.join(_COMPRESSIONS)}")
    return compression


def _client_certificate(signal: Signal, *, environ: Mapping[str, str]) -> str | tuple[str, str] | None:
    certificate = _file(signal, "CLIENT_CERTIFICATE", environ=environ)
    key = _file(signal, "CLIENT_KEY", environ=environ)
    return (certificate, key) if certificate and key else certificate


def _file(signal: Signal, name: str, *, environ: Mapping[str, str]) -> str | None:
    key, path = _of_signal(signal, name, environ=environ)
    if path and not Path(path).is_file():
        raise UsageError(f"{key}={path}: there is no such file; allowed: a PEM file")
    return path or None


def _of_signal(signal: Signal, name: str, *, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return the variable of the signal, else that of all signals, and its value, empty when neither is set."""
    own, shared = f"{_PREFIX}_{signal.upper()}_{name}", f"{_PREFIX}_{name}"
    return (own, environ[own]) if environ.get(own) else (shared, environ.get(shared, ""))


def _pairs(text: str) -> dict[str, str]:
    """Parse `key=value,key=value`, percent-encoded, the form of OpenTelemetry's variables."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {unquote(key.strip()): unquote(value.strip()) for key, is_pair, value in pairs if is_pair and key.strip()}
