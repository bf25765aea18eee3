"""Reads the SQLite file that nsys exports (2022 to 2025) into a Timeline. Pure: a file in, values out.

A table exists only when it has rows, and newer versions have more columns, so the reader first looks up which exist.
Enumerations: eventType 59 is a push/pop range, 60 a start/end range, 33 names a category, 75 a domain. The lowest 24
bits of `globalTid` are the thread, the bits above are VM and process; `globalPid` has zeros in the lowest 24 bits.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlotel_cli.errors import DataError
from mlotel_cli.profile.timeline import Activity, Call, Kind, Range, Timeline

DOMAIN = "mlotel"
CAPTURE = "mlotel capture"
"""Name of the range that marks the recorded time; it is not a span."""
_PUSH_POP, _START_END, _CATEGORY, _DOMAIN = 59, 60, 33, 75
_DIRECTIONS = {1: "Host-to-Device", 2: "Device-to-Host", 8: "Device-to-Device", 9: "Host-to-Host", 10: "Peer-to-Peer"}
_PREFIX = "CUPTI_ACTIVITY_KIND_"


def read_timeline(path: Path) -> Timeline:
    """Read a file that `nsys export --type=sqlite` (or `nsys profile --export=sqlite`) wrote.

    Raises:
        DataError: when the file is not one of these.
    """
    try:
        with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            return _Reader(connection).read()
    except sqlite3.Error as error:
        raise DataError(f"{path} cannot be read as an SQLite file of nsys: {error}") from error


class _Reader:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        names = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')").fetchall()
        self._columns = {
            name: {row[1] for row in connection.execute(f'PRAGMA table_info("{name}")')} for (name,) in names
        }

    def read(self) -> Timeline:
        if "StringIds" not in self._columns:
            raise sqlite3.DatabaseError("it has no table StringIds")
        timeline = Timeline(epoch_offset_ns=self._epoch_offset(), version=self._version())
        if "NVTX_EVENTS" in self._columns:
            self._read_ranges(timeline)
        timeline.calls.extend(self._calls())
        # Graphs traced as a whole; with --cuda-graph-trace=node there are none, but kernels and copies.
        graphs = self._simple("GRAPH_TRACE", "graph")
        timeline.activities.extend((*self._kernels(), *self._copies(), *self._simple("MEMSET", "memset"), *graphs))
        return timeline

    def _select(self, table: str, columns: Sequence[str], where: str = "") -> Iterator[tuple[Any, ...]]:
        """Return the rows of a table, none where it is missing; a missing column is None."""
        if table not in self._columns:
            return iter(())
        chosen = ", ".join(f'"{name}"' if name in self._columns[table] else "NULL" for name in columns)
        return iter(self._connection.execute(f'SELECT {chosen} FROM "{table}" {where}'))

    def _strings(self) -> dict[int, str]:
        return dict(self._connection.execute("SELECT id, value FROM StringIds"))

    def _epoch_offset(self) -> int | None:
        row = next(self._select("TARGET_INFO_SESSION_START_TIME", ["utcEpochNs"]), None)
        return row[0] if row else None

    def _version(self) -> str:
        for table in ("META_DATA_EXPORT", "EXPORT_META_DATA"):
            for name, value in self._select(table, ["name", "value"]):
                if name == "EXPORT_PRODUCT_VERSION":
                    return str(value)
        return ""

    def _read_ranges(self, timeline: Timeline) -> None:
        columns = ["start", "end", "eventType", "category", "text", "textId", "globalTid", "endGlobalTid", "domainId"]
        columns += ["int64Value", "uint64Value", "int32Value", "uint32Value"]
        strings = self._strings()
        domains: set[tuple[int, int]] = set()
        categories: dict[tuple[int, int, int], str] = {}
        events: list[tuple[Any, ...]] = []
        for row in self._select("NVTX_EVENTS", columns, "WHERE eventType IN (33, 59, 60, 75)"):
            start, end, kind, category, text, text_id, thread, end_thread, domain, *payload = row
            name = text if text is not None else strings.get(text_id, "")
            process = thread >> 24
            if kind == _DOMAIN:
                if name == DOMAIN:
                    domains.add((process, domain))
            elif kind == _CATEGORY:
                categories[process, domain, category] = name
            else:
                crosses = kind == _START_END and end_thread is not None and end_thread != thread
                events.append((name, start, end, category, thread, process, domain, payload, crosses))
        for name, start, end, category, thread, process, domain, payload, crosses in events:
            if (process, domain) not in domains or name == CAPTURE:
                continue
            if end is None or end < start:
                timeline.num_cut += 1
                continue
            batch = next((int(value) for value in payload if value is not None), None)
            kind = categories.get((process, domain, category), "")
            timeline.ranges.append(Range(name, kind, start, end, thread, process, batch, crosses=crosses))

    def _calls(self) -> Iterator[Call]:
        strings = self._strings()
        columns = ["start", "end", "globalTid", "correlationId", "nameId"]
        for start, end, thread, correlation, name in self._select(f"{_PREFIX}RUNTIME", columns):
            yield Call(strings.get(name, ""), start, end, thread, thread >> 24, correlation)

    def _kernels(self) -> Iterator[Activity]:
        strings = self._strings()
        columns = ["start", "end", "deviceId", "globalPid", "correlationId", "shortName", "demangledName"]
        for start, end, device, process, correlation, short, full in self._select(f"{_PREFIX}KERNEL", columns):
            name = strings.get(short) or strings.get(full) or "kernel"
            yield Activity("kernel", name, start, end, device, process >> 24, correlation)

    def _copies(self) -> Iterator[Activity]:
        labels = dict(_DIRECTIONS)
        labels.update({number: label for number, label in self._select("ENUM_CUDA_MEMCPY_OPER", ["id", "label"])})
        columns = ["start", "end", "deviceId", "globalPid", "correlationId", "bytes", "copyKind"]
        for start, end, device, process, correlation, size, kind in self._select(f"{_PREFIX}MEMCPY", columns):
            direction = labels.get(kind, f"kind {kind}")
            yield Activity("memcpy", direction, start, end, device, process >> 24, correlation, direction, size)

    def _simple(self, table: str, kind: Kind) -> Iterator[Activity]:
        columns = ["start", "end", "deviceId", "globalPid", "correlationId"]
        for start, end, device, process, correlation in self._select(f"{_PREFIX}{table}", columns):
            yield Activity(kind, kind, start, end, device, process >> 24, correlation)
