"""Which batches of a run without end are under way, and what is missing from its record. One thread uses it.

When the recorder cannot take everything, whole batches are dropped, oldest first, never parts of one.
"""

from dataclasses import replace

from mlotel_cli.link.outbox import Item, Outbox
from mlotel_cli.snapshot import Gaps
from mlotel_cli.telemetry.span import Span
from mlotel_cli.wire import Closing, Info, Report, Settled, SpanMessage

HIGH_WATER = 10_000
"""Items waiting to be handed over above which whole batches are shed: some 5 MB."""
REMEMBERED = 10_000
"""Batches under way at most; spans that end after their batch was settled must not fill the memory."""


class Ledger:
    """Counts of a monitor's link, and the decision which batches it drops.

    Attributes:
        infos: every different `Info` so far, for a recorder that takes the place of another.
        restarts: recorders started after the first one.
        batches_lost: batches shed, or handed to a recorder that died before it had written them; at most a second's
            worth too many, because a recorder notes what it wrote after writing it.
    """

    def __init__(self) -> None:
        """Start with nothing missing."""
        self.infos: list[Info] = []
        self.restarts = 0
        self.batches_lost = 0
        self._under_way: dict[int, None] = {}
        self._shedding: dict[int, None] = {}
        self._num_settled = self._num_died = 0

    @property
    def gaps(self) -> Gaps:
        """What is missing from the record so far."""
        return Gaps(recorder_restarts=self.restarts, batches_lost=self.batches_lost)

    def admit(self, message: Item) -> Item | None:
        """Count a message on its way out; return None for one of a batch that is dropped."""
        if isinstance(message, Span | SpanMessage):
            return self._admit_span(message)
        if isinstance(message, Settled):
            if message.batch in self._shedding:
                del self._shedding[message.batch]
                return None
            self._under_way.pop(message.batch, None)
            self._num_settled += 1
        elif isinstance(message, Closing):  # here and not earlier: a recorder may die until it leaves
            gaps = {"recorder_restarts": self.restarts, "batches_lost": self.batches_lost}
            return replace(message, telemetry=replace(message.telemetry, **gaps))
        elif isinstance(message, Info) and message not in self.infos:
            self.infos.append(message)
        return message

    def count_death(self, *, rows_written: int) -> None:
        """Count what a dead recorder lost, when all recorders so far have written `rows_written` batches."""
        died = self._num_settled - self._num_died - rows_written
        self._num_died += max(0, died)
        self.batches_lost += max(0, died) + len(self._under_way)
        self._shedding.update(self._under_way)
        self._under_way.clear()

    def shed_excess(self, outbox: Outbox) -> None:
        """Drop whole batches from the front of `outbox`, once far more waits than the recorder takes."""
        if len(outbox) <= HIGH_WATER:
            return
        items = outbox.take_all()
        excess = len(items) - HIGH_WATER // 2
        kept: list[Item] = []
        wanted: set[int] = set()
        for item in items:
            batch = _batch_of(item)
            if batch is None:
                if excess > 0 and isinstance(item, Span | SpanMessage | Report):
                    excess -= 1
                    outbox.emitted += not isinstance(item, Report)
                else:
                    kept.append(item)
                continue
            if batch not in self._shedding and batch not in wanted:
                if excess > 0 and batch not in self._under_way:
                    self._shedding[batch] = None
                    self.batches_lost += 1
                else:
                    wanted.add(batch)
            if batch in wanted:
                kept.append(item)
                continue
            excess -= 1
            if isinstance(item, Settled):
                del self._shedding[batch]
            else:
                outbox.emitted += 1  # the summary counts it as lost
        outbox.put_back(kept)

    def _admit_span(self, span: Span | SpanMessage) -> Span | SpanMessage | None:
        batch = span.batch
        if batch is not None:
            if batch in self._shedding:
                return None
            self._under_way[batch] = None
            if len(self._under_way) > REMEMBERED:
                del self._under_way[next(iter(self._under_way))]
        return span


def _batch_of(item: Item) -> int | None:
    return item.batch if isinstance(item, Span | SpanMessage | Settled) else None
