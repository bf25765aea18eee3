"""Delivers one payload after another to one target: it retries, waits, and reports when the target is gone or back.

It does not know what a payload holds. It runs on the sender's own thread; any thread may call `stop`.
"""

import random
import threading
import time
from collections.abc import Callable

from mlotel_cli.config.otlp_settings import Target
from mlotel_cli.recorder.otlp.http_client import Answer, Client

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
LONGEST_ASKED_S = 3600.0
"""The longest Retry-After that is respected."""
_CLOSING_ATTEMPTS = 2
"""Number of attempts at an unreachable server once the run is over."""


class Delivery:
    """Retries by OTLP's rules: after the server's Retry-After, else with exponential back-off and jitter.

    Attributes:
        retried: number of requests that were sent again.
        detail: what is wrong with the target now; empty while it takes every request.
    """

    def __init__(
        self,
        target: Target,
        client: Client,
        *,
        say: Callable[[str], None],
        give_up_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        wait: Callable[[float], bool] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Deliver to `target` by `client`.

        Args:
            target: the server and the time limit of one request.
            client: sends one request.
            say: takes one line for the user.
            give_up_s: a payload that could not be delivered for this long is lost; the Collector's own limit is 300.
            clock: returns monotonic seconds.
            jitter: returns a number between 0 and 1.
            wait: waits the given seconds or until `stop`; returns True after `stop`.
            sleep: waits the given seconds.
        """
        self._target = target
        self._client = client
        self._say = say
        self._give_up_s = give_up_s
        self._clock = clock
        self._jitter = jitter
        self._stopping = threading.Event()
        self._wait_for_stop = wait or self._stopping.wait
        self._sleep = sleep
        self._deadline = float("inf")
        self._not_before = 0.0
        self._complained = False
        self.retried = 0
        self.detail = ""

    def stop(self, *, deadline: float) -> None:
        """Wait for nothing beyond `deadline`, a reading of the clock."""
        self._deadline = deadline
        self._stopping.set()

    @property
    def is_over(self) -> bool:
        """True when the deadline has passed."""
        return self._clock() >= self._deadline

    def deliver(self, payload: bytes) -> Answer:
        """Send `payload` until an answer is final or the time is up; the verdict is then `later` or `unreachable`."""
        if not self._wait_as_asked():
            return Answer("later", detail=self.detail)
        started, attempts, pauses = self._clock(), 0, 0
        while True:
            answer = self._client.post(
                payload, timeout_s=min(self._target.timeout_s, max(0.1, self._deadline - self._clock()))
            )
            attempts = attempts + 1 if self._stopping.is_set() else 0
            self._note(answer)
            if answer.verdict in ("taken", "refused"):
                return answer
            if answer.verdict == "unreachable" and attempts >= _CLOSING_ATTEMPTS:
                return answer
            pause_s = answer.retry_after_s
            if pause_s is not None:
                self._not_before = self._clock() + min(pause_s, LONGEST_ASKED_S)
            else:
                pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**pauses) * (0.5 + self._jitter() / 2)
                pauses += 1
            if self._clock() + pause_s - started > self._give_up_s:
                return answer
            if not self._wait(pause_s, is_asked=answer.retry_after_s is not None):
                return answer
            self.retried += 1

    def _wait_as_asked(self) -> bool:
        """Wait until the server's last Retry-After is over. Returns False when that is longer than a payload waits."""
        left_s = self._not_before - self._clock()
        return left_s <= 0 or (self._wait(min(left_s, self._give_up_s), is_asked=True) and left_s <= self._give_up_s)

    def _wait(self, pause_s: float, *, is_asked: bool) -> bool:
        """Wait; unless the server asked for the pause, the end of the run cuts it short. False when time is up."""
        until = self._clock() + pause_s
        if not self._stopping.is_set() and self._wait_for_stop(pause_s) and not is_asked:
            until = self._clock()
        elif self._stopping.is_set() and not is_asked:
            until = min(until, self._clock() + FIRST_PAUSE_S / 2)
        if until >= self._deadline:
            return False
        if (left_s := until - self._clock()) > 0:
            self._sleep(left_s)
        return True

    def _note(self, answer: Answer) -> None:
        """Report once that the target takes nothing, and once that it does again."""
        self.detail = answer.detail
        name = f"OTLP {self._target.signal} to {self._target.url}"
        if answer.verdict == "taken" and not answer.rejected:
            if self._complained:
                self._say(f"{name}: delivered again")
            self._complained = False
        elif not self._complained:
            self._complained = True
            self._say(f"{name}: {_problem(answer)}")


def _problem(answer: Answer) -> str:
    if answer.verdict == "taken":
        return f"the server rejected {answer.rejected} of a request ({answer.detail or 'without a reason'})"
    if answer.verdict == "refused":
        return f"refused ({answer.detail}); what it refuses counts as lost"
    return f"not delivered ({answer.detail}); the recorder tries again and drops what finds no room"
