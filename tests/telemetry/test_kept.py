"""Values of `record()` are held while spans are ranges."""

from mlotel_cli.telemetry.kept import KeptValues


def test_values_are_taken_once_by_batch_in_order():
    values = KeptValues()
    values.keep(1, "boxes", 2.0, "{box}")
    values.keep(2, "boxes", 3.0, "")
    values.keep(1, "boxes", 4.0, "")
    assert values.take(1) == [("boxes", 2.0, "{box}"), ("boxes", 4.0, "")]
    assert values.take(1) == []
    assert values.take(2) == [("boxes", 3.0, "")]


def test_only_the_newest_batches_are_kept():
    values = KeptValues()
    for batch in range(1_002):
        values.keep(batch, "boxes", batch, "")
    values.keep(2, "boxes", 0.5, "")
    assert [values.take(batch) for batch in (0, 1)] == [[], []]
    assert values.take(2) == [("boxes", 2, ""), ("boxes", 0.5, "")]
