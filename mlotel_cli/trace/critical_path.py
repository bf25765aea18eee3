"""Finds the chain of spans that adds up to a batch's latency; spans beside it did not delay the batch. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlotel_cli.records import SpanRecord, span_role


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of the path.

    Attributes:
        name: name of the span; the root's for time in no span below it.
        stage: name of the span directly below the root that contains the step; the root's for its own time.
        kind: compute | waiting, or untraced for the root's own time.
        start_ns: nanoseconds since the epoch.
        end_ns: where the next step begins.
    """

    name: str
    stage: str
    kind: Literal["compute", "waiting", "untraced"]
    start_ns: int
    end_ns: int

    @property
    def duration_ns(self) -> int:
        """At least 0."""
        return self.end_ns - self.start_ns


def critical_path(spans: Sequence[SpanRecord]) -> list[Step]:
    """Walk back from the end of a batch: at each moment, the batch waited for the span that ended last before it.

    Steps follow each other without a gap, from the batch's start (its arrival, for live input) to its end. A nested
    span is a step of its own; its parent's own time is the steps around it.

    Returns the steps by time; none when the root never ended. `spans` are those of one batch, in any order.
    """
    root = next((span for span in spans if span_role(span) == "batch"), None)
    if root is None:
        return []
    children: defaultdict[int, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        if span is not root and span.parent_id != span.span_id:
            children[span.parent_id].append(span)
    start_ns = min(root.start_ns, *(span.start_ns for span in [root, *children[root.span_id]]))
    return _walk(root, children, start_ns=start_ns)[::-1]


@dataclass(slots=True)
class _Open:
    """A span on the walk, which has still to go from `at_ns` back to `start_ns`; its children by their end."""

    span: SpanRecord
    stage: str
    children: Iterator[SpanRecord]
    start_ns: int
    at_ns: int

    def step(self, start_ns: int, end_ns: int) -> Step:
        """Return a stretch of the span's own time."""
        kind = span_role(self.span)
        return Step(self.span.name, self.stage, "untraced" if kind == "batch" else kind, start_ns, end_ns)


def _walk(root: SpanRecord, children: Mapping[int, Sequence[SpanRecord]], *, start_ns: int) -> list[Step]:
    """Return the steps from the root's end back to `start_ns`. It does not recurse: spans may be nested deeply."""

    def opened(span: SpanRecord, *, stage: str, start_ns: int, end_ns: int) -> _Open:
        below = sorted(children.get(span.span_id, ()), key=lambda each: (each.end_ns, each.start_ns), reverse=True)
        return _Open(span, stage, iter(below), start_ns, end_ns)

    steps: list[Step] = []
    path = [opened(root, stage=root.name, start_ns=start_ns, end_ns=root.end_ns)]
    while path:
        inner = path[-1]
        for child in inner.children:
            child_end = min(child.end_ns, inner.at_ns)
            child_start = max(child.start_ns, inner.start_ns)
            if child_start >= child_end:  # it ran beside spans that are on the path already
                continue
            if child_end < inner.at_ns:
                steps.append(inner.step(child_end, inner.at_ns))
            inner.at_ns = child_start
            stage = child.name if inner.span is root else inner.stage
            path.append(opened(child, stage=stage, start_ns=child_start, end_ns=child_end))
            break
        else:
            if inner.at_ns > inner.start_ns:
                steps.append(inner.step(inner.start_ns, inner.at_ns))
            path.pop()
    return steps


def shares(steps: Iterable[Step]) -> dict[str, float]:
    """Return the shares of compute, waiting and untraced time in a path; empty for a path without duration."""
    totals: defaultdict[str, int] = defaultdict(int)
    for step in steps:
        totals[step.kind] += step.duration_ns
    whole = sum(totals.values())
    return {kind: total / whole for kind, total in totals.items()} if whole else {}
