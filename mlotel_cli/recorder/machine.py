"""CPU time and memory of the two processes and readings of the GPUs, by OpenTelemetry's names: process.* and hw.*."""

import importlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlotel_cli.hardware import rss_bytes
from mlotel_cli.recorder.measurements import Family, Point
from mlotel_cli.wire import ProcessReport

MAX_GPUS = 64
_PROCESS = "mlotel.process"


def process_families(workload: ProcessReport) -> Sequence[Family]:
    """Return CPU time and memory: the recorder's, measured here, and the workload's, as it last reported them."""
    times = os.times()
    cpu_s = {"workload": workload.cpu_s, "recorder": times.user + times.system}
    memory_bytes = {"workload": workload.rss_bytes, "recorder": rss_bytes()}
    return [
        Family("process.cpu.time", "counter", "s", "CPU time, user and system.", _points(cpu_s)),
        Family("process.memory.usage", "gauge", "By", "Resident memory.", _points(memory_bytes)),
    ]


def _points(values: Mapping[str, float | None]) -> list[Point]:
    return [Point(value, {_PROCESS: name}) for name, value in values.items() if value is not None]


@dataclass(slots=True, frozen=True)
class GpuReading:
    """One reading of a GPU; None for a value that the driver does not give."""

    id: str
    name: str
    utilization: float | None
    memory_bytes: float | None
    memory_limit_bytes: float | None
    power_w: float | None
    temperature_c: float | None


def gpu_families(gpus: Sequence[GpuReading]) -> Sequence[Family]:
    """Return one family of gauges for each kind of reading; none without a GPU."""

    def family(
        name: str, unit: str, description: str, values: Sequence[float | None], *, typed: bool = False
    ) -> Family:
        points = [
            Point(value, {"hw.id": gpu.id, "hw.name": gpu.name} | ({"hw.type": "gpu"} if typed else {}))
            for gpu, value in zip(gpus, values, strict=True)
            if value is not None
        ]
        return Family(name, "gauge", unit, description, points)

    if not gpus:
        return []
    return [
        family("hw.gpu.utilization", "1", "Share of time in which a kernel ran.", [gpu.utilization for gpu in gpus]),
        family("hw.gpu.memory.usage", "By", "GPU memory in use by all processes.", [gpu.memory_bytes for gpu in gpus]),
        family("hw.gpu.memory.limit", "By", "Total GPU memory.", [gpu.memory_limit_bytes for gpu in gpus]),
        family("hw.power", "W", "Power draw.", [gpu.power_w for gpu in gpus], typed=True),
        family("hw.temperature", "Cel", "Temperature.", [gpu.temperature_c for gpu in gpus], typed=True),
    ]


class Nvml:
    """NVIDIA's management library through `nvidia-ml-py`, or a fake with the same functions."""

    def __init__(self, library: Any) -> None:
        """Initialise the library and find the GPUs.

        Raises:
            Exception: whatever the library raises where there is no driver.
        """
        self._library = library
        library.nvmlInit()
        count = min(library.nvmlDeviceGetCount(), MAX_GPUS)
        self._devices = [library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]

    def read(self) -> tuple[GpuReading, ...]:
        """Read every GPU; a value that it cannot give is None. This may take milliseconds."""
        return tuple(self._read(device) for device in self._devices)

    def close(self) -> None:
        """Shut the library down."""
        self._library.nvmlShutdown()

    def _read(self, device: Any) -> GpuReading:
        library = self._library
        memory = self._ask(library.nvmlDeviceGetMemoryInfo, device)
        rates = self._ask(library.nvmlDeviceGetUtilizationRates, device)
        power_mw = self._ask(library.nvmlDeviceGetPowerUsage, device)
        return GpuReading(
            id=_text(self._ask(library.nvmlDeviceGetUUID, device)),
            name=_text(self._ask(library.nvmlDeviceGetName, device)),
            utilization=None if rates is None else rates.gpu / 100,
            memory_bytes=None if memory is None else memory.used,
            memory_limit_bytes=None if memory is None else memory.total,
            power_w=None if power_mw is None else power_mw / 1e3,
            temperature_c=self._ask(library.nvmlDeviceGetTemperature, device, library.NVML_TEMPERATURE_GPU),
        )

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._library.NVMLError:
            return None


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "unknown")


def open_nvml() -> Nvml | None:
    """Return NVML, or None without a message where the package, the driver or the GPU is missing."""
    try:
        return Nvml(importlib.import_module("pynvml"))
    except Exception:  # a broken driver may raise any kind, and must not end the recorder
        return None


class GpuWatch:
    """Reads the GPUs every few seconds on its own thread, because a slow driver must not delay the recorder.

    Attributes:
        readings: the latest, one per GPU.
    """

    def __init__(self, *, opener: Callable[[], Nvml | None] = open_nvml, period_s: float = 2.0) -> None:
        """Start the thread, which ends at once where there is no GPU."""
        self.readings: tuple[GpuReading, ...] = ()
        self._opener = opener
        self._period_s = period_s
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlotel-gpu", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; a driver that hangs is waited for 2 s at most."""
        self._ending.set()
        self._thread.join(2)

    def _run(self) -> None:
        nvml = self._opener()
        if nvml is None:
            return
        try:
            while True:
                self.readings = nvml.read()
                if self._ending.wait(self._period_s):
                    break
        except Exception:  # the driver is gone, and an old reading would mislead
            self.readings = ()
        finally:
            nvml.close()
