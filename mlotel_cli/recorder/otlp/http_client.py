"""Sends one OTLP request over HTTP and reads what its answer means. It neither retries nor counts."""

import contextlib
import gzip
import json
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Literal

import requests
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from mlotel_cli.config.otlp_settings import Target

RETRYABLE = (429, 502, 503, 504)
"""By the OTLP specification; all other errors are final."""
_ANSWER_BYTES = 1 << 16
_COMPRESSORS = {"gzip": gzip.compress, "deflate": zlib.compress}

Verdict = Literal["taken", "refused", "later", "unreachable"]


@dataclass(slots=True)
class Answer:
    """What became of a request.

    Attributes:
        verdict: taken: the server took all but `rejected`; refused: it will never take it; later: it asks to send it
            again; unreachable: no complete answer came in time.
        rejected: number of spans or data points of a taken request that the server rejected.
        retry_after_s: the pause that the server asks for; None where it asks for none.
        detail: the reason, in a few words; empty when all was taken.
    """

    verdict: Verdict
    rejected: int = 0
    retry_after_s: float | None = None
    detail: str = ""


class Client:
    """Posts to one target over one kept connection, from one thread."""

    def __init__(self, target: Target) -> None:
        """Prepare; the first request opens the connection. Proxies are those of the environment."""
        self._target = target
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": "mlotel", **target.headers})
        self._session.headers["Content-Type"] = "application/x-protobuf"
        self._session.auth = _unchanged  # else an entry in ~/.netrc would replace a configured header
        if target.compression != "none":
            self._session.headers["Content-Encoding"] = target.compression

    def post(self, payload: bytes, *, timeout_s: float) -> Answer:
        """Send one request. It takes about `timeout_s` at most, also with a server that sends slowly."""
        compress = _COMPRESSORS.get(self._target.compression)
        deadline = time.monotonic() + timeout_s
        try:
            response = self._session.post(
                self._target.url,
                data=compress(payload) if compress else payload,
                timeout=timeout_s,
                verify=self._target.certificate or True,
                cert=self._target.client_certificate,
                allow_redirects=False,  # a redirected POST becomes a GET, which succeeds and delivers nothing
                stream=True,
            )
            with response:
                return _read(response, body=_body(response, deadline=deadline), signal=self._target.signal)
        except requests.exceptions.Timeout:
            return Answer("unreachable", detail=f"no answer within {timeout_s:.3g} s")
        except requests.exceptions.ConnectionError as error:
            return Answer("unreachable", detail=_why(error))
        except (requests.exceptions.RequestException, OSError, ValueError) as error:
            return Answer("refused", detail=_why(error))

    def close(self) -> None:
        """Close the connection."""
        self._session.close()


def _unchanged(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _body(response: requests.Response, *, deadline: float) -> bytes:
    """Return the beginning of the answer, within `deadline`: a slow server must not hold the thread."""
    body = b""
    for chunk in response.iter_content(4096):
        body += chunk
        if len(body) >= _ANSWER_BYTES:
            break
        if time.monotonic() > deadline:
            raise requests.exceptions.Timeout
    return body


def _read(response: requests.Response, *, body: bytes, signal: str) -> Answer:
    status = response.status_code
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        rejected, message = _partial_success(body, content_type=response.headers.get("Content-Type", ""), signal=signal)
        return Answer("taken", rejected=rejected, detail=message)
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    detail = f"HTTP {status}{phrase}{_error_text(body, response.headers)}"
    if status in RETRYABLE:
        return Answer("later", retry_after_s=_retry_after_s(response.headers.get("Retry-After")), detail=detail)
    return Answer("refused", detail=detail)


def _partial_success(body: bytes, *, content_type: str, signal: str) -> tuple[int, str]:
    """Return how many were rejected, and why. An answer that cannot be read rejects nothing."""
    if content_type.startswith("application/json"):
        with contextlib.suppress(ValueError, TypeError, AttributeError):
            partial: dict[str, Any] = json.loads(body).get("partialSuccess") or {}
            rejected = partial.get("rejectedSpans" if signal == "traces" else "rejectedDataPoints") or 0
            return max(0, int(rejected)), str(partial.get("errorMessage") or "")
        return 0, ""
    try:
        if signal == "traces":
            traces = ExportTraceServiceResponse.FromString(body).partial_success
            return max(0, traces.rejected_spans), traces.error_message
        metrics = ExportMetricsServiceResponse.FromString(body).partial_success
        return max(0, metrics.rejected_data_points), metrics.error_message
    except Exception:  # protobuf's DecodeError, which has no stable import path
        return 0, ""


def _retry_after_s(text: str | None) -> float | None:
    """Read seconds or an HTTP date; None for any other text."""
    if not text:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return max(0.0, seconds) if seconds < float("inf") else None
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return None


def _error_text(body: bytes, headers: Mapping[str, str]) -> str:
    """Return the first line of an error's body, when the body is text."""
    if not headers.get("Content-Type", "").startswith(("text/plain", "application/json")):
        return ""
    line = body.decode("utf-8", "replace").strip().partition("\n")[0][:200]
    return f": {line}" if line.isprintable() and line else ""


def _why(error: Exception) -> str:
    """Return the reason, without the layers that requests and urllib3 wrap around it."""
    text = str(error)
    if found := re.search(r"\[Errno -?\d+\] ([^)\]\"'\n]+)", text) or re.search(r"\[SSL: \w+\] ([^(\n]+) \(_ssl", text):
        return found[1]
    text = text.rpartition("Caused by ")[2].splitlines()[0] if text else type(error).__name__
    return text.removesuffix(")")[:200]
