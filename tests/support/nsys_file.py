"""Writes SQLite files as nsys exports them, row by row; tests say what is in them. Nothing is computed here.

Tables and columns are those of nsys 2022.4 (the DDL of a real export, with CUDA's from its documentation) and of 2024.3
and later, which added columns in the middle and the table of CUDA graphs.
"""

import sqlite3
from pathlib import Path
from typing import Any, Self

VM = 1 << 48
OLD, NEW = "2022.4.2.1", "2024.3.1.75"
_COMMON = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT);
CREATE TABLE ENUM_CUDA_MEMCPY_OPER (id INTEGER NOT NULL PRIMARY KEY, name TEXT, label TEXT);
INSERT INTO ENUM_CUDA_MEMCPY_OPER VALUES (1, 'CUDA_MEMCPY_KIND_HTOD', 'Host-to-Device');
INSERT INTO ENUM_CUDA_MEMCPY_OPER VALUES (2, 'CUDA_MEMCPY_KIND_DTOH', 'Device-to-Host');
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL,
    callchainId INTEGER);
"""
_NVTX = """
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,
    category INTEGER, color INTEGER, text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER,
    domainId INTEGER, uint64Value INTEGER, int64Value INTEGER, doubleValue REAL, uint32Value INTEGER,
    int32Value INTEGER, floatValue REAL, jsonTextId INTEGER, jsonText TEXT{more});
"""
_DEVICE = """
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, {green}streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, {mangled}launchType INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, {green}streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    bytes INTEGER NOT NULL, copyKind INTEGER NOT NULL, srcKind INTEGER, dstKind INTEGER, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, {green}streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER,
    value INTEGER NOT NULL, bytes INTEGER NOT NULL, graphNodeId INTEGER);
"""
_NEW_TABLES = """
CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER, graphId INTEGER NOT NULL, graphExecId INTEGER NOT NULL);
"""


class NsysFile:
    """An export under construction; a context manager that writes it when it is left."""

    def __init__(self, path: Path, version: str = OLD) -> None:
        """With the domain `mlotel` (1) and its categories: internal 1, batch 2, queue 3."""
        new = version == NEW
        self._names: dict[str, int] = {}
        self._connection = sqlite3.connect(path)
        meta = "META_DATA_EXPORT" if new else "EXPORT_META_DATA"
        more = ", binaryData TEXT" if new else ""
        green, mangled = ("greenContextId INTEGER, ", "mangledName INTEGER, ") if new else ("", "")
        self._connection.executescript(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;"
            + _COMMON
            + _NVTX.format(more=more)
            + _DEVICE.format(green=green, mangled=mangled)
            + (_NEW_TABLES if new else "")
            + f"CREATE TABLE {meta} (name TEXT, value TEXT);"
            + f"INSERT INTO {meta} VALUES ('EXPORT_PRODUCT_VERSION', '{version}');"
        )
        for pid in (7, 8):
            self._event(start=-9, eventType=75, text="mlotel", globalTid=thread(pid, 0), domainId=1)
            self._event(start=-9, eventType=75, text="other", globalTid=thread(pid, 0), domainId=2)
            for number, name in enumerate(("internal", "batch", "queue"), start=1):
                self._event(start=-9, eventType=33, text=name, globalTid=thread(pid, 0), domainId=1, category=number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._connection.commit()
        self._connection.close()

    def starts_at(self, epoch_ns: int) -> None:
        """Date of time 0."""
        self._insert("TARGET_INFO_SESSION_START_TIME", utcEpochNs=epoch_ns)

    def push_pop(
        self,
        name: str,
        start: int,
        end: int | None,
        *,
        tid: int = 1,
        pid: int = 7,
        batch: int | None = None,
        category: int = 1,
        domain: int = 1,
    ) -> None:
        """A push/pop range with a registered name; with a `batch` and category 2 it is a root."""
        self._event(
            start=start,
            end=end,
            eventType=59,
            textId=self.name(name),
            globalTid=thread(pid, tid),
            domainId=domain,
            category=category,
            int64Value=batch,
        )

    def root(self, batch: int, start: int, end: int, *, tid: int = 1) -> None:
        """The root range of a batch."""
        self.push_pop("batch", start, end, tid=tid, batch=batch, category=2)

    def start_end(
        self, name: str, start: int, end: int, *, tid: int = 1, batch: int | None = None, category: int = 1
    ) -> None:
        """A start/end range whose name is not registered."""
        self._event(
            start=start,
            end=end,
            eventType=60,
            text=name,
            globalTid=thread(7, tid),
            endGlobalTid=thread(7, 99),
            domainId=1,
            category=category,
            int64Value=batch,
        )

    def call(self, correlation: int, start: int, end: int, *, tid: int = 1, pid: int = 7, name: str = "launch") -> None:
        """An API call."""
        self._insert(
            "CUPTI_ACTIVITY_KIND_RUNTIME",
            start=start,
            end=end,
            eventClass=0,
            globalTid=thread(pid, tid),
            correlationId=correlation,
            nameId=self.name(name),
            returnValue=0,
        )

    def kernel(
        self, correlation: int, start: int, end: int, *, name: str = "gemm", node: int | None = None, device: int = 0
    ) -> None:
        """A kernel; `node` is set for one of a CUDA graph."""
        self._activity(
            "KERNEL",
            correlation,
            start,
            end,
            device,
            demangledName=self.name(f"void {name}<float>(int)"),
            shortName=self.name(name),
            graphNodeId=node,
        )

    def copy(self, correlation: int, start: int, end: int, *, size: int, kind: int) -> None:
        """A copy; kind 1 is to the device, 2 from it, 8 on it."""
        self._activity("MEMCPY", correlation, start, end, 0, bytes=size, copyKind=kind)

    def memset(self, correlation: int, start: int, end: int) -> None:
        """A memset."""
        self._activity("MEMSET", correlation, start, end, 0, value=0, bytes=64)

    def graph(self, correlation: int, start: int, end: int) -> None:
        """A CUDA graph, traced as a whole."""
        self._activity("GRAPH_TRACE", correlation, start, end, 0, graphId=1, graphExecId=1)

    def name(self, text: str) -> int:
        """The id of a string."""
        if text not in self._names:
            self._names[text] = len(self._names) + 1
            self._insert("StringIds", id=self._names[text], value=text)
        return self._names[text]

    def _activity(self, table: str, correlation: int, start: int, end: int, device: int, **more: Any) -> None:
        self._insert(
            f"CUPTI_ACTIVITY_KIND_{table}",
            start=start,
            end=end,
            deviceId=device,
            contextId=1,
            streamId=7,
            correlationId=correlation,
            globalPid=thread(7, 0),
            **more,
        )

    def _event(self, **columns: Any) -> None:
        self._insert("NVTX_EVENTS", **columns)

    def _insert(self, table: str, **columns: Any) -> None:
        names, marks = ", ".join(columns), ", ".join("?" * len(columns))
        self._connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(columns.values()))


def thread(pid: int, tid: int) -> int:
    """A globalTid; with tid 0 a globalPid."""
    return VM | pid << 24 | tid
