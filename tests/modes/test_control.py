"""Control: switching in stretches, and the figures of pairs whose times are known."""

from collections import deque

import pytest

from mlotel_cli.modes.control import Stretches, stretch_length
from mlotel_cli.telemetry import api
from mlotel_cli.telemetry.backends.off import OFF
from mlotel_cli.telemetry.tracer import Recording


@pytest.fixture
def recording():
    before = api.PROVIDER.backend
    yield Recording(deque().append, first_id=1)
    api.use(before)


def test_switches_on_off_off_on(recording):
    control = Stretches(recording, 2)

    seen = []
    for _ in range(10):
        control.before()
        seen.append(api.PROVIDER.backend is recording)

    on, off = [True] * 2, [False] * 2
    assert seen == on + off + off + on + on
    assert api.PROVIDER.backend is not OFF


def test_compares_means_of_whole_stretches_in_pairs(recording):
    control = Stretches(recording, 2)
    # on 10/12, off 8/8, off 10/10, on 12/12, then a stretch that is cut short and counts nowhere
    for milliseconds in (10, 12, 8, 8, 10, 10, 12, 12, 500):
        control.before()
        control.after(int(milliseconds * 1e6))

    result = control.result()

    assert result is not None
    assert (result.pairs, result.batches_a_stretch) == (2, 2)
    assert result.difference_ms == pytest.approx(2.5)  # (11 - 8 + 12 - 10) / 2
    assert result.ratio == pytest.approx(23 / 18)
    assert result.difference_ms_ci95 is not None
    low, high = result.difference_ms_ci95
    assert low < 2.5 < high
    assert high - 2.5 == pytest.approx(12.706 * 0.5, rel=1e-3)  # Student's t, one degree of freedom, s / sqrt(2) = 0.5


def test_says_nothing_without_a_pair(recording):
    control = Stretches(recording, 5)
    for _ in range(9):
        control.before()
        control.after(1)

    assert control.result() is None


@pytest.mark.parametrize(("num_batches", "length"), [(None, 5), (10, 5), (400, 10), (100_000, 50)])
def test_length_of_a_stretch(num_batches, length):
    assert stretch_length(num_batches) == length
