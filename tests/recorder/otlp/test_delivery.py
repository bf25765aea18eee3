"""Retries, pauses and what is said, on a clock of the test's."""

import itertools

import pytest

from mlotel_cli.config.otlp_settings import Target
from mlotel_cli.recorder.otlp.delivery import Delivery
from mlotel_cli.recorder.otlp.http_client import Answer

TAKEN = Answer("taken")
GONE = Answer("unreachable", detail="Connection refused")
BUSY = Answer("later", detail="HTTP 503")


class Server:
    """Answers what it is told, and notes when it was asked; every request takes `takes_s`."""

    def __init__(self, *answers: Answer, takes_s: float = 0.0) -> None:
        self.answers = itertools.chain(answers, itertools.repeat(answers[-1]))
        self.takes_s = takes_s
        self.now = 0.0
        self.asked: list[float] = []
        self.timeouts: list[float] = []
        self.stop_at: float | None = None
        self.delivery: Delivery | None = None

    def post(self, payload: bytes, *, timeout_s: float) -> Answer:
        assert payload == b"spans"
        self.asked.append(self.now)
        self.timeouts.append(timeout_s)
        self.now += min(self.takes_s, timeout_s)
        return next(self.answers)

    def wait(self, seconds: float) -> bool:
        """Time goes by, and the run ends in it when that was planned."""
        if self.stop_at is not None and self.now + seconds >= self.stop_at:
            self.now, self.stop_at = self.stop_at, None
            self.delivery.stop(deadline=self.now + 5)
            return True
        self.now += seconds
        return False

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def delivering(server: Server, *, give_up_s: float = 300.0, jitter: float = 1.0) -> tuple[Delivery, list[str]]:
    said: list[str] = []
    server.delivery = Delivery(
        Target("traces", "http://c/v1/traces", timeout_s=10),
        server,
        say=said.append,
        give_up_s=give_up_s,
        clock=lambda: server.now,
        jitter=lambda: jitter,
        wait=server.wait,
        sleep=server.sleep,
    )
    return server.delivery, said


def test_what_is_taken_at_once_is_not_said():
    server = Server(TAKEN)
    delivery, said = delivering(server)
    assert delivery.deliver(b"spans") is TAKEN
    assert (said, delivery.retried, delivery.detail, server.timeouts) == ([], 0, "", [10])


def test_the_server_s_own_pause_is_kept():
    server = Server(Answer("later", retry_after_s=7.0, detail="HTTP 503"), TAKEN)
    delivery, _ = delivering(server)
    assert delivery.deliver(b"spans") is TAKEN
    assert (server.asked, delivery.retried) == ([0, 7], 1)


def test_pauses_double_up_to_half_a_minute():
    server = Server(*[BUSY] * 8, TAKEN)
    delivery, _ = delivering(server)
    assert delivery.deliver(b"spans") is TAKEN
    pauses = [later - earlier for earlier, later in itertools.pairwise(server.asked)]
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(("jitter", "pause"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_pauses_are_jittered(jitter, pause):
    server = Server(GONE, TAKEN)
    delivery, _ = delivering(server, jitter=jitter)
    delivery.deliver(b"spans")
    assert server.asked == [0, pause]


def test_it_gives_up_in_the_end():
    server = Server(BUSY)
    delivery, _ = delivering(server, give_up_s=10)
    assert delivery.deliver(b"spans") is BUSY
    assert server.asked == [0, 1, 3, 7]
    assert delivery.retried == 3


def test_a_refusal_is_final():
    refused = Answer("refused", detail="HTTP 400 Bad Request")
    server = Server(refused)
    delivery, said = delivering(server)
    assert delivery.deliver(b"spans") is refused
    assert delivery.retried == 0
    (line,) = said
    assert line.startswith("OTLP traces to http://c/v1/traces: refused (HTTP 400 Bad Request)")


def test_a_problem_is_said_once_and_its_end_once():
    server = Server(GONE, GONE, BUSY, TAKEN, TAKEN, GONE, TAKEN)
    delivery, said = delivering(server)
    for _ in range(3):
        delivery.deliver(b"spans")
    kinds = ["not delivered" if "not delivered" in line else "again" for line in said]
    assert kinds == ["not delivered", "again", "not delivered", "again"]
    assert "http://c/v1/traces: not delivered (Connection refused)" in said[0]


def test_a_partial_success_is_said_with_the_server_s_reason():
    server = Server(Answer("taken", rejected=3, detail="too old"), TAKEN)
    delivery, said = delivering(server)
    delivery.deliver(b"spans")
    assert said == ["OTLP traces to http://c/v1/traces: the server rejected 3 of a request (too old)"]
    assert delivery.detail == "too old"


# -- the end of a run -------------------------------------------------------------------------------------------------


def test_at_the_end_a_server_that_is_gone_is_asked_twice():
    server = Server(GONE)
    delivery, _ = delivering(server)
    delivery.stop(deadline=5)
    assert delivery.deliver(b"spans") is GONE
    assert server.asked == [0, 0.5]


def test_at_the_end_a_server_that_hangs_costs_no_more_than_what_is_left():
    server = Server(GONE, takes_s=100)
    delivery, _ = delivering(server)
    delivery.stop(deadline=5)
    delivery.deliver(b"spans")
    assert server.timeouts == [5]
    assert server.now == pytest.approx(5, abs=0.5)


def test_the_end_cuts_a_pause_of_our_own_short():
    server = Server(BUSY, BUSY, BUSY, TAKEN)
    server.stop_at = 4.0
    delivery, _ = delivering(server)
    assert delivery.deliver(b"spans") is TAKEN
    assert server.asked == [0, 1, 3, 4]


def test_the_end_does_not_cut_the_server_s_pause_short():
    asked = Answer("later", retry_after_s=3.0)
    server = Server(asked, TAKEN)
    server.stop_at = 1.0
    delivery, _ = delivering(server)
    assert delivery.deliver(b"spans") is TAKEN
    assert server.asked[0] == 0
    assert server.asked[1] >= 3


def test_a_server_that_wants_a_long_rest_gets_it_from_the_next_payloads_too():
    server = Server(Answer("later", retry_after_s=25.0, detail="HTTP 429"), TAKEN)
    delivery, _ = delivering(server, give_up_s=10)
    assert delivery.deliver(b"spans").verdict == "later"
    assert delivery.deliver(b"spans") == Answer("later", detail="HTTP 429")
    assert server.now == 10
    assert delivery.deliver(b"spans").verdict == "later"
    assert delivery.deliver(b"spans") is TAKEN
    assert server.asked == [0, 25]


def test_a_rest_of_a_year_is_an_hour():
    server = Server(Answer("later", retry_after_s=3e7), TAKEN)
    delivery, _ = delivering(server)
    answers = [delivery.deliver(b"spans").verdict for _ in range(13)]
    assert (answers, server.asked) == (["later"] * 12 + ["taken"], [0, 3600])


def test_the_end_does_not_wait_for_a_rest_that_is_longer():
    server = Server(Answer("later", retry_after_s=60.0))
    delivery, _ = delivering(server, give_up_s=10)
    delivery.deliver(b"spans")
    delivery.stop(deadline=5)
    assert delivery.deliver(b"spans").verdict == "later"
    assert (server.now, server.asked) == (0, [0])


def test_a_pause_longer_than_what_is_left_is_the_end():
    server = Server(Answer("later", retry_after_s=60.0))
    delivery, _ = delivering(server)
    delivery.stop(deadline=5)
    assert delivery.deliver(b"spans").verdict == "later"
    assert (server.now, len(server.asked)) == (0, 1)
    server.now = 6
    assert delivery.is_over
