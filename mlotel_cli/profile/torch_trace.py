"""Reads the Chrome trace that torch.profiler writes into a Timeline. Pure: a file in, values out.

Its times are microseconds with three decimals, relative to `baseTimeNanoseconds`. Annotations are named
`mlotel|<category>|<batch or nothing>|<name>` (telemetry/backends/torch_ranges.py).
"""

import json
import re
from pathlib import Path
from typing import Any

from mlotel_cli.errors import DataError
from mlotel_cli.profile.timeline import Activity, Call, Kind, Range, Timeline

_ACTIVITIES: dict[str, Kind] = {"kernel": "kernel", "gpu_memcpy": "memcpy", "gpu_memset": "memset"}
_CALLS = ("cuda_runtime", "cuda_driver")
_DIRECTIONS = {"HtoD": "Host-to-Device", "DtoH": "Device-to-Host", "DtoD": "Device-to-Device", "PtoP": "Peer-to-Peer"}
_PREFIX = "mlotel|"
_PROCESS = 0
"""The trace has one process; events of the device have the device's number in place of a process."""


def read_timeline(path: Path) -> Timeline:
    """Read what `torch.profiler.profile.export_chrome_trace` wrote.

    Raises:
        DataError: when the file is not such a trace.
    """
    try:
        trace: Any = json.loads(path.read_text(encoding="utf-8"))
        timeline = Timeline(epoch_offset_ns=trace.get("baseTimeNanoseconds"))
        for event in trace["traceEvents"]:
            if event.get("ph") == "X":
                _add(timeline, event)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as a trace of torch.profiler: {error!r}") from error
    return timeline


def _add(timeline: Timeline, event: dict[str, Any]) -> None:
    category, name = str(event.get("cat")), str(event["name"])
    is_range = category == "user_annotation" and name.startswith(_PREFIX)
    if not is_range and category not in _CALLS and category not in _ACTIVITIES:
        return
    start = _ns(event["ts"])
    end = start + _ns(event.get("dur", 0))
    arguments = event.get("args", {})
    if is_range:
        _, kind, batch, label = name.split("|", 3)
        index = int(batch) if batch else None
        timeline.ranges.append(Range(label, kind, start, end, _number(event["tid"]), _PROCESS, index))
    elif category in _CALLS:
        thread, correlation = _number(event["tid"]), arguments.get("correlation", 0)
        # nsys adds a suffix such as _v3020 to names; this trace has none, so its first character is added here.
        timeline.calls.append(Call(f"{name}_", start, end, thread, _PROCESS, correlation))
    else:
        found = re.search(r"Memcpy (\w+)", name)
        direction = _DIRECTIONS.get(found[1], found[1]) if found else ""
        kind = _ACTIVITIES[category]
        device, correlation = int(arguments.get("device", 0)), arguments.get("correlation", 0)
        size = int(arguments.get("bytes", 0))
        timeline.activities.append(Activity(kind, name, start, end, device, _PROCESS, correlation, direction, size))


def _ns(microseconds: Any) -> int:
    return round(float(microseconds) * 1_000)


def _number(value: Any) -> int:
    return int(value) if str(value).lstrip("-").isdigit() else hash(value)
