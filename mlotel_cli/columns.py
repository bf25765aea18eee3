"""The vocabulary of a batches table: how its columns are named, and which statuses of a batch count."""

COUNTED = ("scored", "done")
"""Statuses whose latencies count. A batch that failed, or never ended, has no latency that says anything."""
