"""`source=video`: frames of a file, or of a stream that is reopened after it is lost. Needs PyAV (extra `video`).

A frame is a uint8 tensor (3, H, W), RGB, on the CPU. This module does not know the pipeline or its batches.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from mlotel_cli.config.credentials import hide
from mlotel_cli.errors import DataError, MissingExtraError, UsageError
from mlotel_cli.sources.intake import CONNECTED, CONNECTING, Arrival, Health

logger = logging.getLogger("mlotel.source")

FIRST_DELAY_S = 0.5
_LONGEST_GAP_S = 60.0
"""A longer gap between two frames of a file counts as a jump of its time stamps."""
_LATEST_S = 1.0
"""Decoding that lags behind a file's own pace by more than this counts as too slow."""
_COMMON_RATE = 25
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(eq=False, repr=False)
class Video:
    """Frames of a video, one by one. Creating it checks a file; a stream is opened by the iteration.

    A stream (a URL, or a device such as /dev/video0) that cannot be reached, ends or falls silent is opened again after
    a delay. The delay doubles up to `max_delay_s`, less a random part, so that many clients do not reconnect at once.

    Attributes:
        kind: its name on the status page.
        is_stream: whether it is a URL or a device.
        is_live: whether frames arrive without a request: from a stream, or from a file that plays at its own pace.

    Raises:
        MissingExtraError: when PyAV is not installed.
        UsageError: for a file that does not exist or is not a video, a protocol that FFmpeg does not know, or a time
            that is not above 0.
    """

    kind: ClassVar[str] = "video"

    uri: str
    """Path of a file or device, or URL (rtsp, http, ...)."""
    _: KW_ONLY
    loop: bool = False
    """True starts a file again at its end."""
    realtime: bool = True
    """True yields a file's frames at its own pace; False as fast as they are taken."""
    reconnect: bool = True
    """True opens a stream again after its end; False ends the iteration."""
    timeout_s: float = 5.0
    """A stream without a frame for this long counts as lost."""
    max_delay_s: float = 30.0
    """Longest delay between two tries to open a stream."""
    format: str | None = None
    """Format of the container, such as v4l2, where FFmpeg cannot detect it."""
    options: Mapping[str, Any] | None = None
    """FFmpeg's options, such as {rtsp_transport: udp}; the default for rtsp is TCP."""
    now: Callable[[], int] = time.perf_counter_ns
    """Monotonic clock, ns; tests replace it."""
    draw: Callable[[], float] = random.random
    """Random number between 0 and 1; tests replace it."""
    health: Health = field(default_factory=Health, init=False)
    """State, corrupt frames, reconnects."""

    def __post_init__(self) -> None:
        """Check the settings, and open a file once."""
        for name, value in (("timeout_s", self.timeout_s), ("max_delay_s", self.max_delay_s)):
            if not value > 0:
                raise UsageError(f"source.{name}={value}: allowed: above 0")
        self._av = _import_av()
        self._uri = self.uri.removeprefix("file://")
        self._shown = hide(self._uri)
        self._closing = threading.Event()
        self._num_frames = 0
        self.is_stream = bool(_URL.match(self._uri)) or _is_device(self._uri)
        self.is_live = self.is_stream or self.realtime
        if self.is_stream:
            self._check_protocol()
        else:
            self._check_file()

    def __iter__(self) -> Iterator[Arrival]:
        """Yield frames until the end of a file that is not looped, or until `close`.

        Raises:
            DataError: when a file cannot be read or has no frame, or a stream without `reconnect` cannot be opened.
        """
        return self._play_stream() if self.is_stream else self._play_file()

    def close(self) -> None:
        """End the iteration: at once during a wait for the next frame or try, else after one frame or `timeout_s`."""
        self._closing.set()

    # -- files ----------------------------------------------------------------------------------------------------

    def _check_file(self) -> None:
        path = Path(self._uri)
        if not path.is_file():
            what = "it is not a file" if path.exists() else "there is no such file"
            raise UsageError(f"source.uri={self._shown}: {what}; give a video file, or a URL such as rtsp://HOST/PATH")
        try:
            with self._open() as container:
                self._stream_of(container)
        except self._av.error.FFmpegError as error:
            size = path.stat().st_size
            raise UsageError(
                f"source.uri={self._shown} ({size} bytes): it cannot be opened as a video: {_reason(error)}"
            ) from error

    def _play_file(self) -> Iterator[Arrival]:
        pace = _Pace(self.now, self._closing)
        while not self._closing.is_set():
            before = self._num_frames
            try:
                with self._open() as container:
                    self.health.state = CONNECTED
                    pace.start(1 / (self._stream_of(container).guessed_rate or _COMMON_RATE))
                    for seconds, image in self._images(container):
                        due_ns = pace.wait(seconds) if self.realtime else None
                        if self._closing.is_set():
                            return
                        self._report_slow_decoding(pace)
                        yield self._arrival(image, due_ns)
                        pace.resume()
            except self._av.error.FFmpegError as error:
                raise DataError(f"source.uri={self._shown}: it cannot be read: {_reason(error)}") from error
            if self._num_frames == before:
                raise DataError(f"source.uri={self._shown}: no frame of it could be decoded")
            if not self.loop:
                return

    def _report_slow_decoding(self, pace: "_Pace") -> None:
        if pace.is_behind and not self.health.detail:
            self.health.detail = "decoding is too slow: the video plays slower than its own pace"
            logger.warning("%s: %s", self._shown, self.health.detail)

    # -- streams --------------------------------------------------------------------------------------------------

    def _check_protocol(self) -> None:
        """Refuse a URL whose scheme FFmpeg does not know; nothing is sent."""
        scheme = self._uri.partition("://")[0]
        try:
            self._av.open(f"{scheme}://", timeout=0.001).close()
        except self._av.error.ProtocolNotFoundError:
            raise UsageError(f"source.uri={self._shown}: FFmpeg does not know the protocol {scheme}://") from None
        except (self._av.error.FFmpegError, ValueError, OSError):
            return  # the protocol is known, the empty address cannot be reached

    def _play_stream(self) -> Iterator[Arrival]:
        delay_s, tries, was_connected = FIRST_DELAY_S, 0, False
        while not self._closing.is_set():
            tries += 1
            began_ns, before = self.now(), self._num_frames
            reason = "it ended"
            try:
                with self._open() as container:
                    for _, image in self._images(container):
                        if self._num_frames == before:
                            self.health.reconnects += was_connected
                            self.health.state, self.health.detail = CONNECTED, ""
                            was_connected, tries = True, 0
                        yield self._arrival(image, self.now())
                        if self._closing.is_set():
                            return
            except self._av.error.FFmpegError as error:
                reason = self._why(error)
            except _Silent:
                reason = f"nothing came for {self.timeout_s:g} s"
            if not self.reconnect:
                if not was_connected:
                    raise DataError(f"source.uri={self._shown}: it cannot be opened: {reason}") from None
                return
            if (self.now() - began_ns) / 1e9 > delay_s and self._num_frames > before:
                delay_s = FIRST_DELAY_S  # the connection lasted longer than the delay
            wait_s = delay_s * (0.5 + 0.5 * self.draw())
            self.health.state = CONNECTING
            self.health.detail = f"{reason}; tried {tries} times" if tries > 1 else reason
            logger.info("%s: %s; next try in %.1f s", self._shown, reason, wait_s)
            self._closing.wait(wait_s)
            delay_s = min(2 * delay_s, self.max_delay_s)

    def _why(self, error: Exception) -> str:
        """Return the reason of an error; ExitError is FFmpeg's time-out."""
        if isinstance(error, self._av.error.ExitError):
            return f"nothing came for {self.timeout_s:g} s"
        return _reason(error)

    # -- both -----------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        options, timeout = {str(name): str(value) for name, value in (self.options or {}).items()}, None
        if self.is_stream:
            timeout = self.timeout_s
            if self._uri.startswith("rtsp"):
                options.setdefault("rtsp_transport", "tcp")
        return self._av.open(self._uri, format=self.format, options=options, timeout=timeout)

    def _stream_of(self, container: Any) -> Any:
        if not container.streams.video:
            raise UsageError(f"source.uri={self._shown}: it has no video stream")
        stream = container.streams.video[0]
        # AUTO decodes whole frames in parallel. It is faster, but delays frames, which a camera must not do.
        stream.thread_type = "SLICE" if self.is_stream else "AUTO"
        return stream

    def _images(self, container: Any) -> Iterator[tuple[float | None, Any]]:
        """Yield (seconds in the video or None, uint8 array (H, W, 3)) for every frame that can be decoded."""
        video = self._stream_of(container)
        last_ns = self.now()
        for packet in self._packets(container):
            frames = self._decode(packet) if packet.stream.index == video.index else []
            for frame in frames:
                image = self._convert(frame)
                if image is not None:
                    yield frame.time, image
                    last_ns = self.now()  # without the time that the caller took
            if self.is_stream and self.now() - last_ns > self.timeout_s * 1e9:
                raise _Silent

    def _packets(self, container: Any) -> Iterator[Any]:
        """Yield a stream's packets of every kind: sound packets may go on when the picture stops, which is a fault."""
        packets = container.demux() if self.is_stream else container.demux(container.streams.video[0])
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except self._av.error.InvalidDataError:
                if self.is_stream:  # a peer that fell silent can also cause this error
                    raise
                self.health.dropped["corrupt"] += 1
                return

    def _decode(self, packet: Any) -> list[Any]:
        try:
            return packet.decode()
        except self._av.error.EOFError:
            return []
        except self._av.error.FFmpegError as error:
            self._count_corrupt(error)
            return []

    def _convert(self, frame: Any) -> Any:
        if frame.is_corrupt:
            self._count_corrupt("part of it is missing")
            return None
        try:
            return frame.to_ndarray(format="rgb24")
        except (self._av.error.FFmpegError, ValueError) as error:
            self._count_corrupt(error)
            return None

    def _count_corrupt(self, why: object) -> None:
        if not self.health.dropped["corrupt"]:
            logger.warning(
                "%s: a corrupt frame is skipped: %s (logged once; further ones are counted)", self._shown, why
            )
        self.health.dropped["corrupt"] += 1

    def _arrival(self, image_HWC: Any, arrived_ns: int | None) -> Arrival:
        import torch

        number, self._num_frames = self._num_frames, self._num_frames + 1
        frame_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)  # pyright: ignore[reportUnknownMemberType]
        return Arrival(frame_CHW, arrived_ns, str(number))


class _Silent(Exception):  # noqa: N818 - not an error of the program
    """A stream brings packets but no picture."""


class _Pace:
    """Plays a file at its own pace. A frame's arrival is the time when it is due, even when the caller takes it late.

    Times may be missing, or jump where a file was cut: such a frame is due one step after the last one.

    Attributes:
        is_behind: whether decoding is slower than the file, which then plays more slowly.
    """

    def __init__(self, now: Callable[[], int], closing: threading.Event) -> None:
        self._now = now
        self._closing = closing
        self._due_ns: int | None = None
        self._last_s: float | None = None
        self._step_s = 0.0
        self._resumed_ns = now()
        self._late_ns = 0
        self.is_behind = False

    def start(self, step_s: float) -> None:
        """Begin a pass, one step after the last frame; `step_s` is the step that the file states."""
        self._last_s = None
        self._step_s = self._step_s or step_s
        self.resume()

    def wait(self, seconds: float | None) -> int:
        """Wait until the frame at `seconds` in the video is due; return that time, ns."""
        now_ns, gap_ns = self._now(), round(self._gap_s(seconds) * 1e9)
        if self._due_ns is None:
            self._due_ns = now_ns
        else:
            self._due_ns += gap_ns
            self._late_ns = max(0, self._late_ns + now_ns - self._resumed_ns - gap_ns)
        if self._late_ns > _LATEST_S * 1e9:
            self._due_ns, self._late_ns, self.is_behind = self._due_ns + self._late_ns, 0, True
        left_s = (self._due_ns - now_ns) / 1e9
        if left_s > 0:
            self._closing.wait(left_s)
        return self._due_ns

    def resume(self) -> None:
        """Begin to count time as decoding time again, after the caller has returned."""
        self._resumed_ns = self._now()

    def _gap_s(self, seconds: float | None) -> float:
        last_s, self._last_s = self._last_s, seconds
        if seconds is None or last_s is None or not 0 <= seconds - last_s <= _LONGEST_GAP_S:
            return self._step_s
        self._step_s = seconds - last_s
        return self._step_s


def _import_av() -> Any:
    try:
        import av
    except ModuleNotFoundError:
        raise MissingExtraError("av", extra="video") from None
    return av


def _is_device(uri: str) -> bool:
    path = Path(uri)
    return path.exists() and not path.is_file() and not path.is_dir()


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
