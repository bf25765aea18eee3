"""Frames of real files and of a simulated stream; tests/system has a real stream."""

import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from mlotel_cli.config.policies import SourcePolicy
from mlotel_cli.errors import DataError, MissingExtraError, UsageError
from mlotel_cli.sources import Arrival, Intake
from mlotel_cli.sources.intake import CONNECTED, CONNECTING
from mlotel_cli.sources.video import Video
from tests.support.camera import transport_stream

FPS = 25


def grey_levels(path: Path, *, num_frames: int = 6) -> Path:
    """Write a video whose frame n is grey, of value 40 * n."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, "yuv420p", 4_000_000
        for number in range(num_frames):
            image = np.full((48, 64, 3), 40 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grey_levels(tmp_path_factory.mktemp("video") / "grey.mp4")


class Clock:
    """A clock that advances only during waits."""

    def __init__(self) -> None:
        self.ns = 0
        self.waits: list[float] = []

    def __call__(self) -> int:
        return self.ns

    def wait(self, seconds: float) -> bool:
        self.waits.append(round(seconds, 4))
        self.ns += int(seconds * 1e9)
        return False


def timed(source: Video, clock: Clock) -> Video:
    source._closing.wait = clock.wait  # type: ignore[method-assign, assignment]
    return source


def level(item: Arrival) -> int:
    return round(float(item.data.float().mean()) / 40)


def test_frames_of_a_file(video: Path) -> None:
    source = Video(str(video), realtime=False)
    items = list(source)
    assert [level(item) for item in items] == list(range(6))
    assert (items[0].data.shape, str(items[0].data.dtype)) == ((3, 48, 64), "torch.uint8")
    assert [(item.arrived_ns, item.id) for item in items[:2]] == [(None, "0"), (None, "1")]
    assert (source.is_live, source.is_stream, source.health.dropped) == (False, False, {})


def test_a_batch_of_frames_is_what_the_pipelines_take(video: Path) -> None:
    first, second = Intake(Video(str(video), realtime=False), SourcePolicy(batch_size=4))
    assert (first.data.shape, second.data.shape, first.ids) == ((4, 3, 48, 64), (2, 3, 48, 64), ["0", "1", "2", "3"])


def test_colours_are_rgb(tmp_path: Path) -> None:
    path = tmp_path / "red.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        red = np.zeros((48, 64, 3), np.uint8)
        red[..., 0] = 255
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(red, format="rgb24")), *stream.encode()):
            container.mux(packet)
    (item,) = Video(str(path), realtime=False)
    assert (item.data[0].min() > 200, item.data[1:].max() < 50) == (True, True)


def test_a_looped_file_has_no_end(video: Path) -> None:
    items = list(islice(Video(str(video), realtime=False, loop=True), 14))
    assert [level(item) for item in items] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0, 1]
    assert [item.id for item in items[5:8]] == ["5", "6", "7"]


def test_a_file_is_played_at_its_own_pace(video: Path) -> None:
    clock = Clock()
    source = timed(Video(str(video), loop=True, now=clock), clock)
    arrived = [item.arrived_ns for item in islice(source, 9)]
    assert clock.waits == [0.04] * 8  # the second pass begins one frame after the last one
    assert arrived == [pytest.approx(n * 40_000_000, abs=100_000) for n in range(9)]
    assert source.is_live


def test_a_frame_arrives_when_it_is_due_however_late_it_is_taken(video: Path) -> None:
    """A pipeline that stalls must not hide its own delay."""
    clock = Clock()
    items = iter(timed(Video(str(video), now=clock), clock))
    next(items)
    clock.ns += 100_000_000
    late = [next(items).arrived_ns for _ in range(3)]
    assert late == [pytest.approx(n * 40_000_000, abs=100_000) for n in (1, 2, 3)]
    assert clock.waits == [pytest.approx(0.02, abs=1e-3)]


def times_of(source: Video, count: int) -> list[float]:
    """Return the arrival times of the first frames, in seconds, when taking and decoding take no time."""
    clock = Clock()
    source.now = clock
    return [(item.arrived_ns or 0) / 1e9 for item in islice(timed(source, clock), count)]


def timed_frames(path: Path, times: list[int], *, format: str | None = None, codec: str = "mpeg4") -> Path:
    """Write a video with one small frame at each time, in 25ths of a second."""
    with av.open(str(path), "w", format=format) as container:
        stream: Any = container.add_stream(codec, rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 80, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, FPS)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_frames_without_a_time_come_at_the_rate_of_the_file(tmp_path: Path) -> None:
    """A raw stream in a file has no times; without the default pace nearly every frame would be dropped."""
    path = timed_frames(tmp_path / "raw.h264", list(range(6)), format="h264", codec="libx264")
    assert times_of(Video(str(path), loop=True), 8) == pytest.approx([n / FPS for n in range(8)], abs=1e-3)


def test_a_variable_rate_is_kept(tmp_path: Path) -> None:
    path = timed_frames(tmp_path / "rate.mkv", [0, 1, 4, 9, 16])
    assert times_of(Video(str(path)), 5) == pytest.approx([0.0, 0.04, 0.16, 0.36, 0.64], abs=2e-3)


def test_a_clock_that_jumps_neither_stops_nor_hurries_the_video(tmp_path: Path) -> None:
    hour = 3600 * FPS
    path = timed_frames(tmp_path / "cut.mkv", [0, 1, 2, hour, hour + 1])
    assert times_of(Video(str(path)), 5) == pytest.approx([n / FPS for n in range(5)], abs=2e-3)
    back = Video(str(path))
    back._images = lambda container: iter([(t, np.zeros((2, 2, 3), np.uint8)) for t in (9.0, 9.04, 0.0, 0.04)])  # type: ignore
    assert times_of(back, 4) == pytest.approx([n / FPS for n in range(4)], abs=1e-6)


def test_a_file_that_begins_late_leaves_no_hole_between_two_passes(tmp_path: Path) -> None:
    """A transport stream begins at 1.4 s."""
    path = timed_frames(tmp_path / "late.mkv", [35, 36, 37])
    assert times_of(Video(str(path), loop=True), 6) == pytest.approx([n / FPS for n in range(6)], abs=2e-3)


def test_a_file_that_cannot_be_decoded_in_time_is_played_slower(video: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When decoding is too slow, a frame arrives when it is decoded; otherwise latency would grow without end."""
    clock = Clock()
    source = timed(Video(str(video), loop=True, now=clock), clock)
    really, lags = source._convert, []

    def slowly(frame: Any) -> Any:
        clock.ns += 140_000_000
        return really(frame)

    source._convert = slowly  # type: ignore[method-assign]
    lags = [(clock.ns - (item.arrived_ns or 0)) / 1e9 for item in islice(source, 60)]
    assert max(lags) < 1.2
    assert "the video plays slower" in source.health.detail
    assert caplog.text.count("the video plays slower") == 1


def test_close_ends_a_file_that_is_played(video: Path) -> None:
    source = Video(str(video), loop=True)
    items = iter(source)
    next(items)
    source.close()
    assert list(items) == []


def test_corrupt_frames_are_skipped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chunks = transport_stream(num_frames=20)
    for number in range(8, 12):
        damaged = bytearray(chunks[number])
        for at in range(0, len(damaged), 188):
            damaged[at + 100 : at + 188] = bytes((7 * (at + n)) % 256 for n in range(88))
        chunks[number] = bytes(damaged)
    path = tmp_path / "damaged.ts"
    path.write_bytes(b"".join(chunks))
    source = Video(str(path), realtime=False)
    num_whole = len(list(source))
    assert source.health.dropped["corrupt"] >= 3
    assert num_whole >= 14
    assert [record.message.partition(": ")[2][:28] for record in caplog.records] == ["a corrupt frame is skipped: "]


def test_a_file_that_breaks_off_ends(video: Path, tmp_path: Path) -> None:
    chunks = transport_stream(num_frames=20)
    path = tmp_path / "half.ts"
    path.write_bytes(b"".join(chunks[:10])[:-50])
    assert 5 <= len(list(Video(str(path), realtime=False))) <= 10


def test_a_file_without_one_whole_frame(tmp_path: Path) -> None:
    path = tmp_path / "empty.ts"
    path.write_bytes(b"".join(transport_stream(num_frames=3))[: 188 * 4])
    with pytest.raises((DataError, UsageError), match=r"empty\.ts"):
        list(Video(str(path), realtime=False))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.mp4", "none.mp4: there is no such file; give a video file, or a URL such as rtsp://HOST/PATH"),
        (".", "it is not a file; give"),
        ("text.mp4", r"text.mp4 \(5 bytes\): it cannot be opened as a video: Invalid data"),
        ("sound.wav", "sound.wav: it has no video stream"),
    ],
)
def test_mistakes_are_found_before_anything_starts(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("hello")
    sound(tmp_path / "sound.wav")
    with pytest.raises(UsageError, match=message):
        Video(str(tmp_path / name))


def test_a_protocol_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match=r"source\.uri=rtps://host/x: FFmpeg does not know the protocol rtps://"):
        Video("rtps://host/x")


@pytest.mark.parametrize("name", ["timeout_s", "max_delay_s"])
@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_times_that_make_no_sense(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=rf"source\.{name}={value}: allowed: above 0"):
        Video("rtsp://127.0.0.1/x", **{name: value})


def test_without_pyav(monkeypatch: pytest.MonkeyPatch, video: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mlotel\[video\]'"):
        Video(str(video))


# -- a stream, its connections played by the test ---------------------------------------------------------------------


class Connections:
    """A fake `av` whose `open` raises or returns the given answers in turn; a file plays and then ends or fails."""

    def __init__(self, source: Video, clock: Clock, *answers: Any) -> None:
        self.answers = list(answers)
        self.options: list[dict[str, str]] = []
        self._really_open: Callable[..., Any] = av.open
        source._av = self  # type: ignore[assignment]
        self.error = av.error
        self._source = timed(source, clock)

    def open(self, uri: str, *, format: str | None, options: dict[str, str], timeout: float) -> Any:
        self.options.append({**options, "timeout": str(timeout)})
        if not self.answers:
            self._source.close()
            raise av.error.ConnectionRefusedError(111, "Connection refused")
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return self._really_open(str(answer))


def played(video: Path, *answers: Any, **arguments: Any) -> tuple[Video, Clock, Connections]:
    clock = Clock()
    source = Video("rtsp://127.0.0.1/gate", now=clock, draw=lambda: 1.0, **arguments)
    return source, clock, Connections(source, clock, *answers)


REFUSED = av.error.ConnectionRefusedError(111, "Connection refused")
SILENT = av.error.ExitError(541478725, "Immediate exit requested")


def test_a_stream_that_ends_is_opened_again(video: Path) -> None:
    source, clock, _ = played(video, video, video)
    assert [level(item) for item in source] == [*range(6), *range(6)]
    assert (source.health.reconnects, clock.waits) == (1, [0.5, 1.0, 2.0])


def test_the_delay_doubles_up_to_its_limit(video: Path) -> None:
    source, clock, _ = played(video, *[REFUSED] * 6, max_delay_s=3.0)
    assert list(source) == []
    assert clock.waits == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0]
    assert (source.health.state, source.health.reconnects) == (CONNECTING, 0)
    assert source.health.detail == "Connection refused; tried 7 times"


def test_the_delay_has_a_random_part(video: Path) -> None:
    source, clock, _ = played(video, REFUSED, REFUSED)
    source.draw = lambda: 0.5
    list(source)
    assert clock.waits == [0.375, 0.75, 1.5]


def test_a_stream_that_was_well_for_a_while_is_opened_again_soon(video: Path) -> None:
    source, clock, _ = played(video, REFUSED, REFUSED, REFUSED, video, REFUSED)
    for _ in source:
        clock.ns += 10**9
    assert clock.waits == [0.5, 1.0, 2.0, 0.5, 1.0, 2.0]


def test_states_on_the_way(video: Path) -> None:
    source, _, _ = played(video, video, SILENT, video, timeout_s=2.0)
    seen: list[tuple[str, str]] = []
    source._closing.wait = lambda seconds: seen.append((source.health.state, source.health.detail))  # type: ignore
    states = {source.health.state for _ in source}
    assert states == {CONNECTED}
    assert seen == [
        (CONNECTING, "it ended"),
        (CONNECTING, "nothing came for 2 s"),
        (CONNECTING, "it ended"),
        (CONNECTING, "Connection refused"),
    ]


def test_without_reconnecting_the_end_is_the_end(video: Path) -> None:
    source, clock, _ = played(video, video, video, reconnect=False)
    assert len(list(source)) == 6
    assert clock.waits == []


def test_without_reconnecting_a_stream_that_cannot_be_opened_is_an_error(video: Path) -> None:
    source, clock, _ = played(video, REFUSED, reconnect=False)
    with pytest.raises(
        DataError, match=r"^source\.uri=rtsp://127\.0\.0\.1/gate: it cannot be opened: Connection refused$"
    ):
        list(source)
    assert clock.waits == []


def test_a_password_is_in_no_message_and_no_log(caplog: pytest.LogCaptureFixture, video: Path) -> None:
    caplog.set_level("INFO")
    uri, clock = "rtsp://admin:secret@127.0.0.1/gate?token=secret", Clock()
    source = Video(uri, now=clock, draw=lambda: 1.0)
    connections = Connections(source, clock, REFUSED)
    list(source)
    failing = Video(uri, now=clock, reconnect=False)
    Connections(failing, clock, REFUSED)
    with pytest.raises(DataError) as caught:
        list(failing)
    with pytest.raises(UsageError) as refused:
        Video("nothing://admin:secret@127.0.0.1/gate")
    assert len(connections.options) == 2
    shown = f"{caplog.text} {caught.value} {refused.value} {source.health.detail}"
    assert shown.count("://***@127.0.0.1/gate") == 4
    assert "secret" not in shown


def test_frames_of_a_stream_arrive_when_they_come(video: Path) -> None:
    source, clock, connections = played(video, video)
    arrived: list[int | None] = []
    for item in source:
        arrived.append(item.arrived_ns)
        clock.ns += 7
    assert arrived == [0, 7, 14, 21, 28, 35]
    assert connections.options[0] == {"rtsp_transport": "tcp", "timeout": "5.0"}


def test_options_reach_ffmpeg(video: Path) -> None:
    source, _, connections = played(video, options={"rtsp_transport": "udp", "buffer_size": 1024})
    list(source)
    assert connections.options[0] == {"rtsp_transport": "udp", "buffer_size": "1024", "timeout": "5.0"}


def test_a_picture_that_stands_while_packets_come_is_silence(video: Path) -> None:
    source, clock, _ = played(video, video, timeout_s=2.0)

    def no_image(frame: Any) -> None:
        clock.ns += 10**9

    source._convert = no_image  # type: ignore[method-assign]
    details: list[str] = []
    source._closing.wait = lambda seconds: details.append(source.health.detail)  # type: ignore
    assert list(source) == []
    assert details[0] == "nothing came for 2 s"


def test_a_slow_taker_is_no_silence(video: Path) -> None:
    source, clock, _ = played(video, video, timeout_s=2.0)
    count = 0
    for _ in source:
        clock.ns += 10 * 10**9
        count += 1
    assert count == 6


def test_a_stream_without_video_is_a_mistake(video: Path, tmp_path: Path) -> None:
    source, _, _ = played(video, sound(tmp_path / "sound.wav"))
    with pytest.raises(UsageError, match="it has no video stream"):
        list(source)


def test_the_iterator_is_one(video: Path) -> None:
    assert isinstance(iter(Video(str(video))), Iterator)
