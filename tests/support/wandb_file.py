"""Reads a .wandb file back, record by record, without the wandb SDK's own reader.

The file is a LevelDB log: a seven-byte header, then 32 KiB blocks of chunks. A chunk is crc32 (4 bytes, little
endian), length (2), type (1) and payload; a record is one FULL chunk or FIRST, MIDDLE ..., LAST. Each record
is one serialized `wandb_internal_pb2.Record`. It knows the format, not what mlotel puts in it.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_HEADER = struct.pack("<4sHB", b":W&B", 0xBEE1, 0)
BLOCK_BYTES = 32 * 1024
CHUNK_HEADER = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


class TornFileError(Exception):
    """The file ends, or breaks its own checksum, in the middle of a record."""


def find_wandb_file(run_dir: Path) -> Path:
    """The one .wandb file below a run directory."""
    (path,) = (path for path in run_dir.rglob("*.wandb") if not path.parent.is_symlink())
    return path


def payloads(path: Path) -> Iterator[bytes]:
    """The bytes of every whole record. A file cut off by a crash yields what is whole, then raises TornFileError."""
    data = path.read_bytes()
    if data[: len(FILE_HEADER)] != FILE_HEADER:
        raise TornFileError(f"{path} does not start with the header of a .wandb file")
    position = len(FILE_HEADER)
    parts: list[bytes] = []
    while position < len(data):
        room = BLOCK_BYTES - position % BLOCK_BYTES
        if room < CHUNK_HEADER.size:
            position += room
            continue
        if position + CHUNK_HEADER.size > len(data):
            raise TornFileError(f"{path} ends inside a chunk header")
        crc, length, kind = CHUNK_HEADER.unpack_from(data, position)
        position += CHUNK_HEADER.size
        payload = data[position : position + length]
        if len(payload) < length:
            raise TornFileError(f"{path} ends inside a chunk")
        if crc != zlib.crc32(bytes([kind]) + payload):
            raise TornFileError(f"{path} has a wrong checksum at byte {position}")
        position += length
        if kind in (FULL, FIRST) and parts:
            raise TornFileError(f"{path} starts a record before the last one ended")
        parts.append(payload)
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
    if parts:
        raise TornFileError(f"{path} ends inside a record")


def records(path: Path) -> Iterator[Any]:
    """Every whole record as a `wandb_internal_pb2.Record`."""
    from wandb.proto import wandb_internal_pb2

    for payload in payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        yield record


@dataclass(slots=True)
class WandbFile:
    """What the records of one file add up to.

    Attributes:
        run: the run record: `run_id`, `project`, `run_group`, `job_type`, `tags`, ...
        config: the final config.
        metrics: every `define_metric`, by name or glob.
        history: the rows in file order, without the keys that wandb adds (`_step`, `_runtime`, `_timestamp`).
        steps: wandb's own step of each row.
        summary: the final summary.
        exit_code: None while the run is not finished.
        torn: the file ends inside a record.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    metrics: dict[str, Any] = field(default_factory=dict[str, Any])
    history: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    steps: list[int] = field(default_factory=list[int])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    exit_code: int | None = None
    torn: bool = False


def read_wandb_file(path: Path) -> WandbFile:
    """Replay the records of a file, up to where it was cut off."""
    file = WandbFile()
    try:
        for record in records(path):
            _replay(record, file)
    except TornFileError:
        file.torn = True
    return file


def _replay(record: Any, file: WandbFile) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            file.run = record.run
            _update(file.config, record.run.config.update)
        case "config":
            _update(file.config, record.config.update)
        case "metric":
            file.metrics[record.metric.name or record.metric.glob_name] = record.metric
        case "summary":
            _update(file.summary, record.summary.update)
        case "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            file.steps.append(row["_step"])
            file.history.append({key: value for key, value in row.items() if not key.startswith("_")})
        case "exit":
            file.exit_code = record.exit.exit_code
        case _:
            pass


def _update(values: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, key = list(item.nested_key) or [item.key]
        inner = values
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[key] = json.loads(item.value_json)
