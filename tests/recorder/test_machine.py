"""Processes, and GPUs by a fake of NVIDIA's library: what it tells, what it refuses, what it breaks."""

import threading
from types import SimpleNamespace

from mlotel_cli.recorder.machine import (
    GpuReading,
    GpuWatch,
    Nvml,
    gpu_families,
    open_nvml,
    process_families,
)
from mlotel_cli.wire import ProcessReport


class FakeNvml:
    """Two GPUs; what is in `refused` raises, as a driver does for what a GPU cannot tell."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *, refused=(), count=2) -> None:
        self.refused = refused
        self.calls: list[str] = []
        self.answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetCount": lambda: count,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetUUID": lambda device: f"GPU-{device}".encode(),
            "nvmlDeviceGetName": lambda device: "H200",
            "nvmlDeviceGetMemoryInfo": lambda device: SimpleNamespace(used=10 + device, total=100),
            "nvmlDeviceGetUtilizationRates": lambda device: SimpleNamespace(gpu=25, memory=3),
            "nvmlDeviceGetPowerUsage": lambda device: 300_500,
            "nvmlDeviceGetTemperature": lambda device, sensor: {self.NVML_TEMPERATURE_GPU: 41}[sensor],
        }

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append(name)
            if name in self.refused:
                raise self.NVMLError(f"{name}: not supported")
            return self.answers[name](*arguments)

        return call


def values(readings) -> dict[str, list[float]]:
    return {family.name: [point.value for point in family.points] for family in gpu_families(readings)}


def test_what_the_driver_tells_in_opentelemetrys_units():
    readings = Nvml(FakeNvml()).read()
    assert readings[1] == GpuReading("GPU-1", "H200", 0.25, 11, 100, 300.5, 41)
    assert values(readings) == {
        "hw.gpu.utilization": [0.25, 0.25],
        "hw.gpu.memory.usage": [10, 11],
        "hw.gpu.memory.limit": [100, 100],
        "hw.power": [300.5, 300.5],
        "hw.temperature": [41, 41],
    }
    units = {family.name: (family.unit, family.kind) for family in gpu_families(readings)}
    assert units["hw.gpu.utilization"] == ("1", "gauge")
    assert units["hw.gpu.memory.usage"] == ("By", "gauge")
    assert (units["hw.power"], units["hw.temperature"]) == (("W", "gauge"), ("Cel", "gauge"))
    power = next(family for family in gpu_families(readings) if family.name == "hw.power")
    assert power.points[0].attributes == {"hw.id": "GPU-0", "hw.name": "H200", "hw.type": "gpu"}


def test_what_a_gpu_cannot_tell_is_absent_and_the_rest_is_there():
    refused = ("nvmlDeviceGetPowerUsage", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetUUID")
    (reading,) = Nvml(FakeNvml(refused=refused, count=1)).read()
    assert (reading.power_w, reading.utilization, reading.id, reading.temperature_c) == (None, None, "unknown", 41)
    assert values([reading])["hw.power"] == []


def test_without_a_gpu_there_is_no_family():
    assert gpu_families(()) == []


def test_a_machine_without_driver_is_quietly_without_figures(monkeypatch, capfd):
    broken = FakeNvml(refused=("nvmlInit",))
    monkeypatch.setitem(__import__("sys").modules, "pynvml", broken)
    assert open_nvml() is None
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)  # an import of it fails
    assert open_nvml() is None
    assert capfd.readouterr() == ("", "")


def test_the_watch_reads_on_its_own_thread_until_it_is_closed():
    library, threads = FakeNvml(count=1), set()
    read = threading.Event()

    class Watched(Nvml):
        def read(self):
            threads.add(threading.current_thread().name)
            read.set()
            return super().read()

    watch = GpuWatch(opener=lambda: Watched(library), period_s=0.001)
    assert read.wait(5)
    watch.close()
    assert (threads, len(watch.readings), library.calls[-1]) == ({"mlotel-gpu"}, 1, "nvmlShutdown")
    assert not watch._thread.is_alive()


def test_a_driver_that_breaks_leaves_no_old_figures():
    class Breaking(Nvml):
        reads = 0

        def read(self):
            self.reads += 1
            if self.reads > 2:
                raise RuntimeError("GPU is lost")
            return super().read()

    watch = GpuWatch(opener=lambda: Breaking(FakeNvml()), period_s=0.0)
    watch._thread.join(5)
    assert watch.readings == ()


def test_the_watch_of_no_gpu_ends_at_once():
    watch = GpuWatch(opener=lambda: None)
    watch._thread.join(5)
    assert watch.readings == ()
    watch.close()


def test_both_processes_by_opentelemetrys_names():
    cpu, memory = process_families(ProcessReport(rss_bytes=1000, cpu_s=12.5, pid=3))
    assert (cpu.name, cpu.kind, cpu.unit) == ("process.cpu.time", "counter", "s")
    assert (memory.name, memory.kind, memory.unit) == ("process.memory.usage", "gauge", "By")
    assert {point.attributes["mlotel.process"]: point.value for point in cpu.points}["workload"] == 12.5
    by_process = {point.attributes["mlotel.process"]: point.value for point in memory.points}
    assert by_process["workload"] == 1000
    assert 10_000_000 < by_process["recorder"] < 10_000_000_000


def test_a_workload_that_has_not_reported_is_absent():
    cpu, _ = process_families(ProcessReport())
    assert [point.attributes["mlotel.process"] for point in cpu.points] == ["recorder"]
