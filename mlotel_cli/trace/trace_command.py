"""`mlotel trace RUN`: which batches are worth a look, the waterfall of one, and files for other viewers."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlotel_cli.errors import UsageError
from mlotel_cli.figures import format_ms
from mlotel_cli.records import SpanRecord
from mlotel_cli.screen import run_command, sayer, stderr
from mlotel_cli.store.layout import BATCHES, SPANS
from mlotel_cli.store.reading import Run, read_run
from mlotel_cli.store.traces import load_spans, traced_range
from mlotel_cli.trace.perfetto import chrome_trace
from mlotel_cli.trace.picks import Choice, Pick, choose
from mlotel_cli.trace.trace_view import print_choice, print_waterfall
from mlotel_cli.trace.waterfall import lay_out
from mlotel_cli.trace.waterfall_svg import draw_svg

ROLES = ("median", "p95", "worst", "failed")
_MAX_DRAWN = 20
_MAX_EXPORTED = 10_000
_SUFFIXES = {".svg": "svg", ".perfetto-trace": "perfetto"}


@dataclass(frozen=True, slots=True)
class Selection:
    """Batches `first` to `last`, and the role for which they were chosen."""

    first: int
    last: int
    role: str = ""

    @property
    def is_single(self) -> bool:
        """True for one batch."""
        return self.first == self.last

    def __str__(self) -> str:
        return f"batch {self.first}" if self.is_single else f"batches {self.first} to {self.last}"


def main(
    path: Path, *, batch: str | None = None, form: str | None = None, output: Path | None = None, debug: bool = False
) -> int:
    """Print a trace or write it to a file. Returns the exit code.

    Args:
        path: run directory.
        batch: N, A-B, or one of `ROLES`; None takes the median.
        form: perfetto | otlp-json | svg; None takes the form of the suffix of `output`, or draws in the terminal.
        output: the file to write; None prints.
        debug: show an error's traceback.
    """
    return run_command(
        lambda: show(read_run(path), batch=batch, form=form or _form_of(output), output=output), about=path, debug=debug
    )


def show(run: Run, *, batch: str | None, form: str | None, output: Path | None) -> None:
    """Draw, print or write the selected batches.

    Raises:
        UsageError: when the run has no spans, the batch has none, or the file cannot be written.
    """
    known = traced_range(run.path / SPANS)
    if known is None:
        raise UsageError(f"{run.path} has no spans of any batch: {_why_no_spans(run)}")
    named = batch is None or batch in ROLES
    choice = choose(run.path / BATCHES, run.path / SPANS) if named else None
    selection = _parse(batch, known) if choice is None else _pick(choice, batch, known, run)
    spans = _load(run, selection, known, limit=_MAX_EXPORTED if form in ("perfetto", "otlp-json") else _MAX_DRAWN)
    if form is not None:
        _write(_EXPORTS[form](spans, selection, run), output)
        return
    if batch is None and choice is not None:
        print_choice(choice, run)
    print_waterfall(spans, run, title=_title(spans, selection), is_single=selection.is_single)


def _form_of(output: Path | None) -> str | None:
    if output is None:
        return None
    form = _SUFFIXES.get(output.suffix.lower())
    if form is None:
        raise UsageError(f"-o {output}: the suffix names no format; add --format {', '.join(sorted(_EXPORTS))}")
    return form


def _why_no_spans(run: Run) -> str:
    if run.info.get("mode") == "profile":
        return "a profile has ranges instead; open its report, or compare it: mlotel compare EVAL_RUN PROFILE_RUN"
    if run.status == "running":
        return "it has just begun; try again in a second"
    return (
        "it was recorded with telemetry.backend=off or nvtx, or no batch ended. Record one with telemetry.backend=otel"
    )


def _pick(choice: Choice, role: str | None, known: tuple[int, int], run: Run) -> Selection:
    """Return the batch with a role. Without a role, return the median, else the first failed, else the first batch."""
    by_role: dict[str, Pick] = {}
    for pick in choice.picks:
        by_role.setdefault(pick.role, pick)
    if role is None:
        picked = next((by_role[each] for each in ("median", "failed") if each in by_role), None)
        return Selection(known[0], known[0]) if picked is None else Selection(picked.batch, picked.batch, picked.role)
    if role not in by_role:
        there = f"it has {', '.join(by_role)}" if by_role else "none of its batches has ended"
        raise UsageError(f"--batch {role}: {run.path} has no such batch; {there}, and batches {known[0]} to {known[1]}")
    return Selection(by_role[role].batch, by_role[role].batch, role)


def _parse(text: str | None, known: tuple[int, int]) -> Selection:
    first, dash, last = (text or "").partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
        raise UsageError(
            f"--batch {text}: allowed: a number, a range such as {known[0]}-{min(known[1], known[0] + 9)}, "
            f"or one of {', '.join(ROLES)}"
        )
    return Selection(int(first), int(last or first))


def _load(run: Run, selection: Selection, known: tuple[int, int], *, limit: int) -> list[SpanRecord]:
    count = min(selection.last, known[1]) - max(selection.first, known[0]) + 1
    if count > limit:
        raise UsageError(f"--batch {selection.first}-{selection.last}: {count} batches are too many; at most {limit}")
    spans = load_spans(run.path / SPANS, selection.first, selection.last)
    if not spans:
        within = known[0] <= selection.first <= known[1]
        kept = ", but not every trace of them was kept" if within else ""
        raise UsageError(
            f"{run.path} has no spans of {selection}; batches with spans lie in {known[0]} to {known[1]}{kept}"
        )
    return spans


def _title(spans: Sequence[SpanRecord], selection: Selection) -> str:
    start_ns, end_ns = min(span.start_ns for span in spans), max(span.end_ns for span in spans)
    role = f" ({selection.role})" if selection.role else ""
    return f"{selection}{role}: {format_ms(end_ns - start_ns)} ms"


def _perfetto(spans: Sequence[SpanRecord], _selection: Selection, run: Run) -> str:
    return json.dumps(chrome_trace(spans, info=run.info), indent=1)


def _otlp_json(spans: Sequence[SpanRecord], _selection: Selection, run: Run) -> str:
    from mlotel_cli.recorder.otlp.otlp_json import export_request  # protobuf is needed for this form only

    resource: Mapping[str, Any] = run.info.get("identity") or {}
    return json.dumps(export_request(spans, resource=resource), indent=1)


def _svg(spans: Sequence[SpanRecord], selection: Selection, run: Run) -> str:
    name = f"{run.info.get('mode', 'run')} {run.info.get('name', '')}".strip()
    return draw_svg(lay_out(spans), title=f"{name}, {_title(spans, selection)}")


_EXPORTS: Mapping[str, Callable[[Sequence[SpanRecord], Selection, Run], str]] = {
    "perfetto": _perfetto,
    "otlp-json": _otlp_json,
    "svg": _svg,
}


def _write(text: str, output: Path | None) -> None:
    if output is None:
        reconfigure: Any = getattr(sys.stdout, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="xmlcharrefreplace")  # only an SVG has characters that an encoding may lack
        sys.stdout.write(text.rstrip("\n") + "\n")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"-o {output}: cannot be written: {error.strerror or error}") from error
    sayer(stderr())(str(output))
