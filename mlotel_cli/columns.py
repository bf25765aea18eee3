"""The vocabulary of a run's tables: only this module builds and parses the names of their columns.

A stage `detect` has the columns `detect.host_ms`, `detect.calls` and so on, a metric `map` has `accuracy.map`, and a
recorded value `boxes` has `data.boxes`. Each of these names may contain dots: `data.load.host_ms` is a time of the
stage `data.load` where the table has its calls too, and the recorded value `load.host_ms` elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Measure = Literal["host_ms", "device_ms", "lag_ms", "queue_ms", "calls"]
"""What a table holds of a stage in a batch. A stage that did not run, but was waited for, has `queue_ms` only."""
SOURCE_WAIT = "source.wait_ms"
BATCH_TYPES = {
    "batch": "Int64",
    "source_batch": "Int64",
    "repeat": "Int64",
    "start_ns": "Int64",
    "size": "Int64",
    "status": "String",
    "error": "String",
    "spans_missing": "Int64",
    "latency_ms": "Float64",
    SOURCE_WAIT: "Float64",
}
"""The columns that every batches table has, and their polars types."""
SPAN_TYPES = {
    "trace_id": "String",
    "span_id": "String",
    "parent_id": "String",
    "batch": "Int64",
    "name": "String",
    "kind": "String",
    "scope": "String",
    "thread": "String",
    "start_ns": "Int64",
    "end_ns": "Int64",
    "device_ns": "Int64",
    "lag_ns": "Int64",
    "status": "String",
    "status_message": "String",
    "attributes": "String",
    "events": "String",
    "links": "String",
}
"""The columns of a spans table, and their polars types."""
SAMPLE_TYPES = {"batch": "Int64", "id": "String", "prediction": "String", "target": "String"}
"""The columns that every samples table has, and their polars types."""
_MEASURES: Mapping[str, Measure] = {measure: measure for measure in get_args(Measure)}
_ACCURACY = "accuracy."
_DATA = "data."
_SCORE = "score."


class DataType(Protocol):
    """The type of a column; polars' data types conform."""

    @classmethod
    def is_integer(cls) -> bool:
        """Return True when the column holds whole numbers."""
        ...


def stage_column(stage: str, measure: Measure) -> str:
    """Return the name of a stage's column in the batches table."""
    return f"{stage}.{measure}"


def accuracy_column(metric: str) -> str:
    """Return the name of a metric's column in the batches table."""
    return _ACCURACY + metric


def data_column(recorded: str) -> str:
    """Return the name of the column in the batches table that holds a value given to `record()`."""
    return _DATA + recorded


def score_column(metric: str) -> str:
    """Return the name of a metric's column in the samples table."""
    return _SCORE + metric


def type_of(column: str, values: Sequence[object]) -> str:
    """Return the polars type of a column without a fixed one: Int64 for calls of a stage, else Float64."""
    is_calls = column.endswith(".calls") and all(value is None or type(value) is int for value in values)
    return "Int64" if is_calls else "Float64"


@dataclass(frozen=True, slots=True)
class StageColumn:
    """The column of a stage that holds `measure`."""

    stage: str
    measure: Measure

    @property
    def name(self) -> str:
        """The column's name."""
        return stage_column(self.stage, self.measure)


@dataclass(frozen=True, slots=True)
class BatchColumns:
    """What a batches table holds beside the columns of `BATCH_TYPES`, each in the table's order.

    Attributes:
        stages: columns of stages.
        accuracy: column by metric.
        data: column by recorded name.
    """

    stages: Sequence[StageColumn]
    accuracy: Mapping[str, str]
    data: Mapping[str, str]

    @property
    def times(self) -> Sequence[StageColumn]:
        """Columns of stages that hold milliseconds."""
        return [column for column in self.stages if column.measure != "calls"]


def parse_columns(schema: Mapping[str, DataType]) -> BatchColumns:
    """Return what the columns of a batches table mean, by its schema."""
    stages: list[StageColumn] = []
    accuracy: dict[str, str] = {}
    data: dict[str, str] = {}
    for name in schema:
        stage, _, last = name.rpartition(".")
        measure = _MEASURES.get(last)
        if name in BATCH_TYPES:
            continue
        if measure and (not name.startswith((_ACCURACY, _DATA)) or _has_calls(schema, stage)):
            stages.append(StageColumn(stage, measure))
        elif name.startswith(_ACCURACY):
            accuracy[name.removeprefix(_ACCURACY)] = name
        elif name.startswith(_DATA):
            data[name.removeprefix(_DATA)] = name
    return BatchColumns(stages, accuracy, data)


def _has_calls(schema: Mapping[str, DataType], stage: str) -> bool:
    """Return True when `stage` is a stage: a score or a recorded value called `x.calls` is no whole number."""
    kind = schema.get(stage_column(stage, "calls"))
    return kind is not None and kind.is_integer()
