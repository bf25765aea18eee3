"""Measures what telemetry costs a pipeline: a run switches it on and off, in stretches of several batches."""

from dataclasses import dataclass, field

from mlotel_cli.stats.describe import paired_difference
from mlotel_cli.summary import Control
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.tracer import Backend

_MIN_STRETCH, _MAX_STRETCH = 5, 50
_STRETCHES = 40
"""The aim for a run of known length: twenty pairs."""


def stretch_length(num_batches: int | None) -> int:
    """Return the batches of a stretch, for a run of `num_batches`; None where the length is unknown."""
    return max(_MIN_STRETCH, min(_MAX_STRETCH, (num_batches or 0) // _STRETCHES))


@dataclass(slots=True)
class Stretches:
    """Switches spans on and off in stretches (on, off, off, on, ...), and compares their mean batch times.

    The order cancels a linear drift. Batches of stretches without telemetry have an accuracy and no latency. It needs a
    sequential executor: a batch must end before the next begins.

    Attributes:
        backend: the run's backend, for the stretches with telemetry.
        length: batches a stretch.
    """

    backend: Backend
    length: int
    _num_batches: int = 0
    _times_ns: dict[int, list[int]] = field(default_factory=dict[int, list[int]])

    def before(self) -> None:
        """Switch at the start of a stretch; call it before every batch."""
        if self._num_batches % self.length == 0:
            api.use(self.backend if _is_on(self._num_batches // self.length) else OFF)
        self._num_batches += 1

    def after(self, busy_ns: int) -> None:
        """Note how long the batch took; call it after every batch."""
        self._times_ns.setdefault((self._num_batches - 1) // self.length, []).append(busy_ns)

    def result(self) -> Control | None:
        """Compare the mean batch time with telemetry and without, over pairs of stretches; None without a pair."""
        whole = [self._times_ns[n] for n in sorted(self._times_ns) if len(self._times_ns[n]) == self.length]
        means_ms = [sum(times) / len(times) / 1e6 for times in whole[: len(whole) // 2 * 2]]
        with_ms = [mean for n, mean in enumerate(means_ms) if _is_on(n)]
        without_ms = [mean for n, mean in enumerate(means_ms) if not _is_on(n)]
        if not with_ms:
            return None
        found = paired_difference(with_ms, without_ms)
        return Control(
            pairs=found.num_pairs,
            batches_a_stretch=self.length,
            difference_ms=found.difference,
            difference_ms_ci95=found.difference_ci,
            ratio=found.ratio,
            ratio_ci95=found.ratio_ci,
        )


def _is_on(stretch: int) -> bool:
    """Whether a stretch has telemetry: neighbouring stretches make a pair, and the first of a pair alternates."""
    return stretch % 4 in (0, 3)
