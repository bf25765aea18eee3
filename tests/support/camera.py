"""A camera on the loopback interface: an RTSP server that sends an MPEG transport stream over RTP, over TCP.

It can fall silent with the connection open, hang up, garble what it sends, and not be there at all.
"""

import io
import socket
import struct
import threading
import time
from typing import Any

import av
import numpy as np

_TS_PACKET = 188
_SDP = (
    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    "m=video 0 RTP/AVP 33\r\na=control:track0\r\n"
)


def transport_stream(*, num_frames: int, fps: int = 25, width: int = 64, height: int = 48) -> list[bytes]:
    """One chunk of transport stream per frame, each frame a key frame, and full of detail, so that damage shows."""
    noise = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    chunks: list[bytes] = []
    with av.open(out, "w", format="mpegts", options={"flush_packets": "1"}) as container:
        stream: Any = container.add_stream("mpeg2video", rate=fps)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = width, height, "yuv420p", 1
        for number in range(num_frames):
            image = np.ascontiguousarray(np.roll(noise, number, axis=1))
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")):
                container.mux(packet)
            chunks.append(out.getvalue())
            out.seek(0)
            out.truncate()
        for packet in stream.encode():
            container.mux(packet)
    chunks.append(out.getvalue())
    return [chunk for chunk in chunks if chunk]


class Camera:
    """Serves one connection at a time, frame after frame, round and round.

    Attributes:
        connections: PLAY requests so far.
        sent: frames sent so far.
    """

    def __init__(self, *, fps: float = 50.0, port: int = 0) -> None:
        self.connections = self.sent = 0
        self.silent = threading.Event()
        self.garbled = threading.Event()
        self._hang_up = threading.Event()
        self._stopped = threading.Event()
        self._every_s = 1 / fps
        self._chunks = transport_stream(num_frames=25)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"rtsp://127.0.0.1:{self.port}/gate"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def hang_up(self) -> None:
        """Close the connection that is open."""
        self._hang_up.set()

    def close(self) -> None:
        """Be gone."""
        self._stopped.set()
        self._thread.join()
        self._listener.close()

    def __enter__(self) -> "Camera":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            with connection:
                self._hang_up.clear()
                connection.settimeout(0.05)
                try:
                    self._talk(connection)
                except OSError:
                    continue

    def _talk(self, connection: socket.socket) -> None:
        asked, playing, due = b"", False, 0.0
        sequence = 0
        while not self._stopped.is_set() and not self._hang_up.is_set():
            if playing and not self.silent.is_set() and time.monotonic() >= due:
                due = max(due + self._every_s, time.monotonic() - 1)
                sequence = self._send(connection, sequence)
            connection.settimeout(0.002 if playing else 0.05)
            try:
                data = connection.recv(4096)
            except TimeoutError:
                continue
            if not data:
                return
            asked += data
            while b"\r\n\r\n" in asked:
                request, _, asked = asked.partition(b"\r\n\r\n")
                if not request.startswith(b"$"):
                    playing |= self._answer(connection, request.decode("latin-1"))
                    due = time.monotonic()

    def _answer(self, connection: socket.socket, request: str) -> bool:
        method = request.split(" ", 1)[0]
        number = next((line.split(":")[1].strip() for line in request.splitlines() if line.startswith("CSeq")), "0")
        extra, body = "", ""
        if method == "OPTIONS":
            extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
        elif method == "DESCRIBE":
            body = _SDP
            extra = f"Content-Type: application/sdp\r\nContent-Base: {self.url}/\r\n"
        elif method == "SETUP":
            extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n"
        elif method == "PLAY":
            self.connections += 1
            extra = "Session: 1\r\nRange: npt=0.000-\r\n"
        answer = f"RTSP/1.0 200 OK\r\nCSeq: {number}\r\n{extra}Content-Length: {len(body)}\r\n\r\n{body}"
        connection.sendall(answer.encode())
        return method == "PLAY"

    def _send(self, connection: socket.socket, sequence: int) -> int:
        chunk = self._chunks[self.sent % len(self._chunks)]
        if self.garbled.is_set():
            chunk = b"".join(
                chunk[at : at + 100] + bytes((7 * (at + n)) % 256 for n in range(_TS_PACKET - 100))
                for at in range(0, len(chunk), _TS_PACKET)
            )
        for at in range(0, len(chunk), 7 * _TS_PACKET):
            payload = chunk[at : at + 7 * _TS_PACKET]
            header = struct.pack(">BBHII", 0x80, 33, sequence & 0xFFFF, (self.sent * 3600) & 0xFFFFFFFF, 1)
            packet = header + payload
            connection.settimeout(1)
            connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            sequence += 1
        self.sent += 1
        return sequence
