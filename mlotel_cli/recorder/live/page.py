"""Renders the status page: one HTML file that requests nothing from other hosts.

Everything that comes from a run (names, errors, units) is escaped by the templates, page.html and components.html. The
page's policy lets exactly its own script and style run, by their hashes, so that even an unescaped name
could not run a script.
"""

import base64
import hashlib
import importlib.resources
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from html import escape
from typing import TYPE_CHECKING, cast

from mlotel_cli.figures import duration, significant, withheld
from mlotel_cli.recorder.live.charts import Points, bar, line_chart, span_of
from mlotel_cli.recorder.live.http_server import Reply
from mlotel_cli.recorder.live.live_state import NUM_POINTS, POINT_SLOTS, SLOT_S, Event, Published
from mlotel_cli.recorder.workload import INTENDED
from mlotel_cli.stats.thresholds import MIN_EFFECTIVE_N

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_POINT_S = POINT_SLOTS * SLOT_S
SOURCE = "source"
"""The queue before the first stage."""
_ERROR_LENGTH = 200
"""Characters of a failed batch's error; all of it is in batches.parquet."""
_FEWEST_POINTS = 30
"""A young run's chart is five minutes wide."""
_MISSING = "\N{EN DASH}"
_SHOWN = {
    "run id": "mlotel.run.id",
    "service": "service.name",
    "commit": "git.commit",
    "configuration": "config.hash",
}


@dataclass(slots=True, frozen=True)
class Status:
    """What the page shows.

    Attributes:
        name: of the run.
        run_dir: as a command would name it.
        identity: of the run.
        published: the figures.
        problem: why no batch can be expected; empty when there is no reason.
        now_ns: since the epoch.
    """

    name: str
    run_dir: str
    identity: Mapping[str, object]
    published: Published
    problem: str
    now_ns: int


@dataclass(slots=True, frozen=True)
class Chart:
    """Lines and what stands beside them: the scale from `low` to `high` in `unit`, and the minutes that they cover."""

    low: float
    high: float
    unit: str
    minutes: str
    svg: "Markup"


def render_page(status: Status) -> Reply:
    """Return the page."""
    from markupsafe import Markup

    css, script, policy = _assets()
    published, snapshot = status.published, status.published.snapshot
    dropped = snapshot.source.dropped if snapshot.source is not None else {}
    known = {title: str(value) for title, key in _SHOWN.items() if (value := status.identity.get(key))}
    html = (
        environment()
        .get_template("page.html")
        .render(
            name=status.name,
            run_dir=status.run_dir,
            problem=status.problem,
            now_ns=status.now_ns,
            snapshot=snapshot,
            stages={name: stage for name, stage in snapshot.stages.items() if name != SOURCE},
            before_the_first=SOURCE,
            dropped={reason: count for reason, count in dropped.items() if count and reason not in INTENDED},
            charts=published.charts,
            slow=published.slow,
            failed=published.failed,
            about={**known, "directory": status.run_dir},
            needed_for_p99=MIN_EFFECTIVE_N["p99"],
            style=Markup(css),
            script=Markup(script),
        )
    )
    return Reply(html.encode("utf-8", "xmlcharrefreplace"), "text/html; charset=utf-8", policy=policy)


@cache
def environment() -> "Environment":
    """Return the templates of this folder, which escape every value; an unknown name is an error."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    folder = importlib.resources.files(__package__ or "")
    made = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cast("dict[str, object]", made.filters).update(
        ago=_ago,
        duration=duration,
        number=number,
        quoted=shlex.quote,
        shortened=_shortened,
        thousands="{:,}".format,
        unit=_unit,
        utc=_utc,
        withheld=withheld,
    )
    cast("dict[str, object]", made.globals).update(bar=_bar, chart=_chart, spark=_spark)
    return made


@cache
def _assets() -> tuple[str, str, str]:
    """Return style, script, and the policy that allows only these two."""
    folder = importlib.resources.files(__package__ or "")
    css, script = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return css, script, policy


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# -- what the templates call --------------------------------------------------------------------------------------


def number(value: float | None, *, digits: int = 3) -> str:
    """Return significant digits with separated thousands; a dash for None."""
    return significant(value, digits=digits, missing=_MISSING)


def _chart(lines: Mapping[str, Points], *, label: str, unit: str, zero: bool = True) -> Chart | None:
    """Draw lines by the class that colours them; None while there are too few points."""
    from markupsafe import Markup

    longest = max(len(points) for points in lines.values())
    values = [value for points in lines.values() for value in points if value is not None]
    if longest < 2 or not values:
        return None
    num_points = min(max(longest, _FEWEST_POINTS), NUM_POINTS)
    low, high = span_of(values, zero=zero)
    scale = f"{number(low)} to {number(high)} {unit}".strip()
    svg = line_chart(lines, num_points=num_points, label=escape(f"{label}, {scale}"), zero=zero)
    return Chart(low, high, unit, f"{num_points * _POINT_S / 60:.0f}", Markup(svg))


def _spark(points: Points) -> "Markup | str":
    """Draw a small chart without a scale; return a dash while there are too few points."""
    from markupsafe import Markup

    if len(points) < 2 or all(point is None for point in points):
        return _MISSING
    num_points = min(max(len(points), _FEWEST_POINTS), NUM_POINTS)
    return Markup(line_chart({"one": points}, num_points=num_points, label="course of the last half hour"))


def _bar(share: float, *, label: str) -> "Markup":
    from markupsafe import Markup

    return Markup(bar(share, label=escape(label)))


def _shortened(error: str) -> str:
    return error if len(error) <= _ERROR_LENGTH else f"{error[: _ERROR_LENGTH - 2]} ..."


def _ago(event: Event, now_ns: int) -> str:
    return f"{duration(max(0, now_ns - event.start_ns) / 1e9)} ago"


def _unit(unit: str) -> str:
    """A unit as UCUM writes it; what is in braces is a name, and 1 stands for none."""
    return "" if unit == "1" else unit.strip("{}")


def _utc(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC"
