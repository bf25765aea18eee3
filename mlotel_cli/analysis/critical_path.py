"""The chain of spans that a batch's latency is made of; what ran beside it did not make the batch later. Pure."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlotel_cli.analysis.waterfall import bar_kind
from mlotel_cli.records import SpanRecord


@dataclass(frozen=True, slots=True)
class Step:
    """A stretch of the path.

    Attributes:
        name: of the span; of the root for time that no span below it accounts for.
        stage: name of the span directly below the root that it lies in; of the root for its own time.
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
    """Walk back from the end of a batch: before every moment, the span that ended last is what it waited for.

    Steps follow each other without gap, from the batch's start (its arrival, for live input) to its end. A nested span
    is a step of its own, and its parent's own time lies around it.

    Args:
        spans: of one batch, in any order.

    Returns:
        Nothing when the root never ended.
    """
    root = next((span for span in spans if bar_kind(span) == "batch"), None)
    if root is None:
        return []
    children: defaultdict[int, list[SpanRecord]] = defaultdict(list)
    for span in spans:
        if span is not root:
            children[span.parent_id].append(span)
    start_ns = min(root.start_ns, *(span.start_ns for span in [root, *children[root.span_id]]))
    steps = _walk(root, children, stage="", start_ns=start_ns, end_ns=root.end_ns)
    return steps[::-1]


def _walk(
    span: SpanRecord, children: Mapping[int, Sequence[SpanRecord]], *, stage: str, start_ns: int, end_ns: int
) -> list[Step]:
    """The steps of one span between two moments, backwards; `stage` is empty for the root."""
    kind = bar_kind(span)
    own = "untraced" if kind == "batch" else kind
    steps: list[Step] = []
    at_ns = end_ns
    for child in sorted(children.get(span.span_id, ()), key=lambda each: (each.end_ns, each.start_ns), reverse=True):
        child_end = min(child.end_ns, at_ns)
        child_start = max(child.start_ns, start_ns)
        if child_start >= child_end:  # it ran beside what is on the path already
            continue
        if child_end < at_ns:
            steps.append(Step(span.name, stage or span.name, own, child_end, at_ns))
        steps += _walk(child, children, stage=stage or child.name, start_ns=child_start, end_ns=child_end)
        at_ns = child_start
    if at_ns > start_ns:
        steps.append(Step(span.name, stage or span.name, own, start_ns, at_ns))
    return steps


def shares(steps: Iterable[Step]) -> dict[str, float]:
    """Share of compute, waiting and untraced time in a path; empty for one without duration."""
    totals: defaultdict[str, int] = defaultdict(int)
    for step in steps:
        totals[step.kind] += step.duration_ns
    whole = sum(totals.values())
    return {kind: total / whole for kind, total in totals.items()} if whole else {}
