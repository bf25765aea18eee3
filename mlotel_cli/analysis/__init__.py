"""What the numbers mean: pure functions from records to values, without torch."""
