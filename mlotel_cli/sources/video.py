"""`source=video`: frames of a file, or of a stream that may go away and come back. PyAV, from the extra `video`.

A frame is a uint8 tensor (3, H, W), RGB, on the CPU. What a frame is for, and how frames become batches, is not known
here.
"""

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlotel_cli.config.credentials import hide
from mlotel_cli.errors import DataError, MissingExtraError, UsageError
from mlotel_cli.sources.intake import CONNECTED, CONNECTING, Arrival, Health

logger = logging.getLogger("mlotel.source")

FIRST_DELAY_S = 0.5
_LONGEST_GAP_S = 60.0
"""A longer one between two frames of a file is a jump of its clock."""
_LATEST_S = 1.0
"""Decoding that lags behind a file's own pace by more than this is slower than it."""
_COMMON_RATE = 25
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


class Video:
    """Frames of a video, one by one.

    A stream (a URL, or a device such as /dev/video0) that cannot be reached, ends or falls silent is opened again,
    after a delay that doubles up to `max_delay_s`, less a random part, so that many do not come back at once.

    Attributes:
        is_live: whether frames arrive by themselves: those of a stream, and of a file that is played at its own pace.
        health: state, corrupt frames, reconnects.
    """

    kind = "video"

    def __init__(
        self,
        uri: str,
        *,
        loop: bool = False,
        realtime: bool = True,
        reconnect: bool = True,
        timeout_s: float = 5.0,
        max_delay_s: float = 30.0,
        format: str | None = None,
        options: Mapping[str, Any] | None = None,
        now: Callable[[], int] = time.perf_counter_ns,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Check a file; a stream is opened when it is iterated.

        Args:
            uri: path of a file or device, or URL (rtsp, http, ...).
            loop: a file starts again at its end.
            realtime: a file's frames come at its own pace, else as fast as they are taken.
            reconnect: a stream is opened again after its end; otherwise that ends it.
            timeout_s: a stream that brings nothing for so long counts as lost.
            max_delay_s: longest wait between two tries.
            format: of the container, where FFmpeg cannot tell, such as v4l2.
            options: FFmpeg's, such as {rtsp_transport: udp}; rtsp runs over TCP unless told otherwise.
            now: the monotonic clock, ns.
            draw: between 0 and 1.

        Raises:
            MissingExtraError: without PyAV.
            UsageError: for a file that is not there or no video, or a time that makes no sense.
        """
        for name, value in (("timeout_s", timeout_s), ("max_delay_s", max_delay_s)):
            if not value > 0:
                raise UsageError(f"source.{name}={value}: allowed: above 0")
        self._av = _import_av()
        self._uri = uri.removeprefix("file://")
        self._shown = hide(self._uri)
        self._loop = loop
        self._realtime = realtime
        self._reconnect = reconnect
        self._timeout_s = timeout_s
        self._max_delay_s = max_delay_s
        self._format = format
        self._options = {str(name): str(value) for name, value in (options or {}).items()}
        self._now = now
        self._draw = draw
        self._closing = threading.Event()
        self._num_frames = 0
        self.health = Health()
        self.is_stream = bool(_URL.match(self._uri)) or _is_device(self._uri)
        self.is_live = self.is_stream or realtime
        if self.is_stream:
            self._check_protocol()
        else:
            self._check_file()

    def __iter__(self) -> Iterator[Arrival]:
        """Yield frames until the end of a file that is not looped, or until `close`.

        Raises:
            DataError: when a file cannot be read, or has no frame at all.
        """
        return self._play_stream() if self.is_stream else self._play_file()

    def close(self) -> None:
        """End the iteration: at once while it waits, else with the next frame, at latest after `timeout_s`."""
        self._closing.set()

    # -- files ----------------------------------------------------------------------------------------------------

    def _check_file(self) -> None:
        path = Path(self._uri)
        if not path.is_file():
            what = "is no file" if path.exists() else "there is no such file"
            raise UsageError(f"source.uri={self._shown}: {what}; give a video file, or a URL such as rtsp://HOST/PATH")
        try:
            with self._open() as container:
                self._stream_of(container)
        except self._av.error.FFmpegError as error:
            size = path.stat().st_size
            raise UsageError(
                f"source.uri={self._shown} ({size} bytes): cannot be opened as a video: {_reason(error)}"
            ) from error

    def _play_file(self) -> Iterator[Arrival]:
        pace = _Pace(self._now, self._closing)
        while not self._closing.is_set():
            before = self._num_frames
            try:
                with self._open() as container:
                    self.health.state = CONNECTED
                    pace.start(1 / (self._stream_of(container).guessed_rate or _COMMON_RATE))
                    for seconds, image in self._images(container):
                        due_ns = pace.wait(seconds) if self._realtime else None
                        if self._closing.is_set():
                            return
                        self._say_behind(pace)
                        yield self._arrival(image, due_ns)
                        pace.resume()
            except self._av.error.FFmpegError as error:
                raise DataError(f"source.uri={self._shown}: cannot be read: {_reason(error)}") from error
            if self._num_frames == before:
                raise DataError(f"source.uri={self._shown}: not one frame of it could be decoded")
            if not self._loop:
                return

    def _say_behind(self, pace: "_Pace") -> None:
        if pace.is_behind and not self.health.detail:
            self.health.detail = "decoding is slower than the video; it is played slower than its own pace"
            logger.warning("%s: %s", self._shown, self.health.detail)

    # -- streams --------------------------------------------------------------------------------------------------

    def _check_protocol(self) -> None:
        """Whether FFmpeg knows the URL's scheme at all; nobody is called."""
        scheme = self._uri.partition("://")[0]
        try:
            self._av.open(f"{scheme}://", timeout=0.001).close()
        except self._av.error.ProtocolNotFoundError:
            raise UsageError(f"source.uri={self._shown}: {scheme}:// is no protocol that FFmpeg knows") from None
        except (self._av.error.FFmpegError, ValueError, OSError):
            return  # known, and of course not there

    def _play_stream(self) -> Iterator[Arrival]:
        delay_s, tries, was_connected = FIRST_DELAY_S, 0, False
        while not self._closing.is_set():
            tries += 1
            began_ns, before = self._now(), self._num_frames
            reason = "it ended"
            try:
                with self._open() as container:
                    for _, image in self._images(container):
                        if self._num_frames == before:
                            self.health.reconnects += was_connected
                            self.health.state, self.health.detail = CONNECTED, ""
                            was_connected, tries = True, 0
                        yield self._arrival(image, self._now())
                        if self._closing.is_set():
                            return
            except self._av.error.FFmpegError as error:
                reason = self._why(error)
            except _Silent:
                reason = f"nothing came for {self._timeout_s:g} s"
            if not self._reconnect:
                if not was_connected:
                    raise DataError(f"source.uri={self._shown}: cannot be opened: {reason}") from None
                return
            if (self._now() - began_ns) / 1e9 > delay_s and self._num_frames > before:
                delay_s = FIRST_DELAY_S  # it was well for a while
            wait_s = delay_s * (0.5 + 0.5 * self._draw())
            self.health.state = CONNECTING
            self.health.detail = f"{reason}; tried {tries} times" if tries > 1 else reason
            logger.info("%s: %s; next try in %.1f s", self._shown, reason, wait_s)
            self._closing.wait(wait_s)
            delay_s = min(2 * delay_s, self._max_delay_s)

    def _why(self, error: Exception) -> str:
        """A silent peer shows as many kinds of error."""
        if isinstance(error, self._av.error.ExitError):
            return f"nothing came for {self._timeout_s:g} s"
        return _reason(error)

    # -- both -----------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        options, timeout = dict(self._options), None
        if self.is_stream:
            timeout = self._timeout_s
            if self._uri.startswith("rtsp"):
                options.setdefault("rtsp_transport", "tcp")
        return self._av.open(self._uri, format=self._format, options=options, timeout=timeout)

    def _stream_of(self, container: Any) -> Any:
        if not container.streams.video:
            raise UsageError(f"source.uri={self._shown}: it has no video stream")
        stream = container.streams.video[0]
        # Decoding whole frames in parallel is faster, and keeps as many back: nothing for a camera.
        stream.thread_type = "SLICE" if self.is_stream else "AUTO"
        return stream

    def _images(self, container: Any) -> Iterator[tuple[float | None, Any]]:
        """(seconds in the video, where it says so; uint8 array of (H, W, 3)) of every frame that can be decoded."""
        video = self._stream_of(container)
        last_ns = self._now()
        for packet in self._packets(container):
            frames = self._decode(packet) if packet.stream.index == video.index else []
            for frame in frames:
                image = self._convert(frame)
                if image is not None:
                    yield frame.time, image
                    last_ns = self._now()  # after the taker, who may have kept it waiting
            if self.is_stream and self._now() - last_ns > self._timeout_s * 1e9:
                raise _Silent

    def _packets(self, container: Any) -> Iterator[Any]:
        """Every packet of a stream, so that one whose sound goes on while the picture stands is noticed."""
        packets = container.demux() if self.is_stream else container.demux(container.streams.video[0])
        while True:
            try:
                yield next(packets)
            except StopIteration:
                return
            except self._av.error.InvalidDataError:
                if self.is_stream:  # that is how a peer that fell silent shows, too
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
            self._count_corrupt("a part of it is missing")
            return None
        try:
            return frame.to_ndarray(format="rgb24")
        except (self._av.error.FFmpegError, ValueError) as error:
            self._count_corrupt(error)
            return None

    def _count_corrupt(self, why: object) -> None:
        if not self.health.dropped["corrupt"]:
            logger.warning("%s: a corrupt frame is skipped: %s (said once; further ones are counted)", self._shown, why)
        self.health.dropped["corrupt"] += 1

    def _arrival(self, image_HWC: Any, arrived_ns: int | None) -> Arrival:
        import torch

        number, self._num_frames = self._num_frames, self._num_frames + 1
        frame_CHW = torch.from_numpy(image_HWC).permute(2, 0, 1)  # pyright: ignore[reportUnknownMemberType]
        return Arrival(frame_CHW, arrived_ns, str(number))


class _Silent(Exception):  # noqa: N818 - no error of the program's
    """A stream brings packets but no picture."""


class _Pace:
    """Plays a file at its own pace. A frame arrives when it is due, even when its taker was late.

    Times may be missing, or jump where a file was cut: such a frame is due one step after the last one.

    Attributes:
        is_behind: whether decoding is slower than the file, which is then played slower too.
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
        """A pass begins, one step after the last one; `step_s` is what the file says of it."""
        self._last_s = None
        self._step_s = self._step_s or step_s
        self.resume()

    def wait(self, seconds: float | None) -> int:
        """Until the frame at `seconds` in the video is due; when that is, ns."""
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
        """The taker is back; from now on it is decoding that takes the time."""
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
