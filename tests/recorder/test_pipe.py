"""Answers to the workload: lines of JSON, and a snapshot that is left out rather than waited for."""

import contextlib
import json
import os
import time

from mlotel_cli.recorder.pipe import Answers
from mlotel_cli.snapshot import Snapshot
from mlotel_cli.typed_json import to_json


@contextlib.contextmanager
def answering():
    read_end, write_end = os.pipe()
    answers = Answers(write_end)
    try:
        yield answers, read_end
    finally:
        with contextlib.suppress(OSError):
            os.close(read_end)
        with contextlib.suppress(BrokenPipeError):
            answers._pipe.close()


def lines(read_end: int) -> list[dict]:
    return [json.loads(line) for line in os.read(read_end, 1 << 20).decode().splitlines()]


def test_what_is_said_is_one_line_and_in_the_log(capsys):
    with answering() as (answers, read_end):
        answers.say("a\nb")
        answers.result({"status": "complete"})
        assert lines(read_end) == [{"say": "a\nb"}, {"result": {"status": "complete"}}]
    assert capsys.readouterr().err == "a\nb\n"


def test_a_snapshot_does_not_wait():
    with answering() as (answers, read_end):
        for number in range(1000):
            answers.snapshot(Snapshot(batches=number, http="x" * 10_000))
        assert [line["snapshot"]["batches"] for line in lines(read_end)] == [0]
        answers.snapshot(Snapshot(batches=1000))
        assert lines(read_end) == [{"snapshot": to_json(Snapshot(batches=1000))}]


def test_a_large_snapshot_does_not_block_while_its_reader_is_stopped():
    with answering() as (answers, read_end):
        began = time.perf_counter()
        answers.snapshot(Snapshot(http="x" * 200_000))
        answers.snapshot(Snapshot(batches=1))
        assert time.perf_counter() - began < 1
        assert lines(read_end) == [{"snapshot": to_json(Snapshot(batches=1))}]


def test_a_workload_that_is_gone_needs_no_answer():
    with answering() as (answers, read_end):
        os.close(read_end)
        answers.snapshot(Snapshot(batches=1))
        answers.result({})
