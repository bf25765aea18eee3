"""A real Prometheus that scrapes a real monitor: quantiles, every panel of the dashboard, the alerts."""

import bisect
import contextlib
import json
import math
import re
import subprocess
from collections.abc import Generator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from mlotel_cli import read_run
from mlotel_cli.recorder.spanmetrics import DURATION_BOUNDS_S
from tests.support.monitoring import ROOT, Monitor, wait_until
from tests.support.prometheus import Prometheus, scraping

EXAMPLE = ROOT / "examples" / "monitoring"
RULES = EXAMPLE / "prometheus" / "rules.yml"
DASHBOARD = json.loads((EXAMPLE / "grafana" / "dashboards" / "mlotel.json").read_text())
LPR = ["--config-dir", str(ROOT / "examples" / "lpr" / "conf")]
SLOW = """
import time
from pathlib import Path

class Pipeline:
    def __init__(self, switch):
        self.switch = Path(switch)
        self.stages = {"detector": self.detect, "reader": self.read}

    def detect(self, items):
        time.sleep(0.005)
        return items

    def read(self, items):
        time.sleep(0.8 if self.switch.exists() else 0.005)
        return items
"""

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]


def panels() -> list[tuple[str, str, str]]:
    """(panel, expression, row) of every query of the dashboard."""
    found, row = [], ""
    for panel in DASHBOARD["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        found += [(panel["title"], target["expr"], row) for target in panel.get("targets", ())]
    return found


def filled_in(expression: str, service: str) -> str:
    """The expression as Grafana would send it."""
    return expression.replace("$service", service).replace("$instance", ".*").replace("$__rate_interval", "10s")


def address_of(monitor: Monitor) -> str:
    return str(monitor.info["http"]).removeprefix("http://")


@pytest.fixture(scope="module")
def lpr(prometheus: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Monitor, Prometheus]]:
    """The licence-plate pipeline on its validation video, pipelined, scraped for a while."""
    folder = tmp_path_factory.mktemp("lpr")
    words = [*LPR, "executor=pipelined", "run.name=lpr"]
    with Monitor(folder, *words) as monitor:
        monitor.wait_until_ready()
        with scraping(prometheus, folder / "prometheus", address_of(monitor)) as server:
            wait_until(lambda: (server.value("sum(mlotel_batches_total)") or 0) >= 60, timeout_s=120, what="60 batches")
            yield monitor, server


def test_a_scrape_is_taken_whole(lpr: tuple[Monitor, Prometheus]):
    monitor, server = lpr
    (target,) = server.ask("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    (info,) = server.query("target_info")
    assert info["metric"]["service_name"] == "lpr"
    assert info["metric"]["mlotel_run_id"] == monitor.info["run_id"]


def test_quantiles_of_the_stages_agree_with_parquet(lpr: tuple[Monitor, Prometheus]):
    monitor, server = lpr
    stages = ("vehicle_detector", "plate_detector", "plate_reader", "batch")
    # One scrape answers every question below: that of the newest sample, by its own time.
    at = str(server.value('timestamp(traces_span_metrics_calls_total{span_name="plate_reader"})'))
    counts = {
        stage: int(server.value(f'traces_span_metrics_calls_total{{span_name="{stage}"}}', time=at) or 0)
        for stage in stages
    }
    assert min(counts.values()) > 0, counts
    (spans,) = wait_until(lambda: _spans(monitor, counts), what="the rows of what was scraped")
    for stage, calls in counts.items():
        # The first spans that ended, as many as Prometheus counts: it has those and no others.
        ended = spans.filter(pl.col("name") == stage).sort("end_ns").head(calls)
        took_s = (ended["end_ns"] - ended["start_ns"]) / 1e9
        for share in (0.5, 0.95):
            buckets = f'traces_span_metrics_duration_seconds_bucket{{span_name="{stage}"}}'
            estimate = server.value(f"histogram_quantile({share}, sum by (le) ({buckets}))", time=at)
            # The nearest rank, as Prometheus counts it.
            exact = took_s.sort()[math.ceil(share * calls) - 1]
            assert estimate is not None
            upper = bisect.bisect_left(DURATION_BOUNDS_S, estimate)
            # Prometheus interpolates inside a bucket, so the exact value lies in the same one.
            assert DURATION_BOUNDS_S[upper - 1] * 0.999 <= exact <= DURATION_BOUNDS_S[upper] * 1.001, (stage, share)


def _spans(monitor: Monitor, counts: dict[str, int]) -> Any:
    """The spans, once Parquet has as many of each stage as were counted: the stages run ahead of each other."""
    spans = read_run(monitor.run_dir).spans
    return [spans] if all((spans["name"] == stage).sum() >= count for stage, count in counts.items()) else []


def test_no_panel_is_empty_but_those_of_the_gpu(lpr: tuple[Monitor, Prometheus]):
    _, server = lpr
    empty = {(title, expression) for title, expression, _ in panels() if not server.query(filled_in(expression, "lpr"))}
    of_gpu = {(title, expression) for title, expression, row in panels() if row == "GPU"}
    assert empty <= of_gpu, empty - of_gpu
    assert len(panels()) > 25


def test_the_dashboards_variables_find_the_run(lpr: tuple[Monitor, Prometheus]):
    monitor, server = lpr
    variables = {each["name"]: each["query"]["query"] for each in DASHBOARD["templating"]["list"]}
    for name, label, expected in (("service", "service_name", "lpr"), ("instance", "instance", address_of(monitor))):
        metric = re.fullmatch(r"label_values\((.*), (\w+)\)", variables[name])
        assert metric is not None
        assert metric.group(2) == label
        assert server.ask(f"label/{label}/values", **{"match[]": filled_in(metric.group(1), "lpr")}) == [expected]


def test_an_alert_fires_when_a_stage_is_made_slow(prometheus: Path, tmp_path: Path):
    switch = tmp_path / "slow"
    (tmp_path / "conf").mkdir()
    (tmp_path / "slow_pipeline.py").write_text(SLOW)
    (tmp_path / "conf" / "eval.yaml").write_text(
        "defaults: [eval_base, {override pipeline: null}, _self_]\n"
        f"pipeline: {{_target_: slow_pipeline.Pipeline, switch: {switch}}}\n"
    )
    # The same rules on a faster clock.
    rules = RULES.read_text().replace("[1m]", "[5s]").replace("for: 30s", "for: 1s")
    with contextlib.ExitStack() as stack:
        monitor = stack.enter_context(Monitor(tmp_path, "-cd", str(tmp_path / "conf"), "run.name=slow"))
        monitor.wait_until_ready()
        folder = tmp_path / "prometheus"
        server = stack.enter_context(scraping(prometheus, folder, address_of(monitor), rules=rules))

        def firing() -> set[tuple[str, str]]:
            alerts = [alert for alert in server.ask("alerts")["alerts"] if alert["state"] == "firing"]
            return {(alert["labels"]["alertname"], alert["labels"].get("span_name", "")) for alert in alerts}

        wait_until(lambda: server.query('mlotel:span_duration_seconds:p95{span_name="reader"}'), what="the p95")
        assert firing() == set()
        switch.touch()
        wait_until(lambda: {("StageSlow", "reader"), ("BatchSlow", "")} <= firing(), what="the alerts")
        assert {name for _, name in firing()} == {"", "reader"}
        switch.unlink()
        wait_until(lambda: not firing(), what="the end of the alerts")
        assert monitor.end() == 0, monitor.printed
    assert monitor.info["status"] == "complete"


def test_rules_and_configuration_pass_promtool(prometheus: Path):
    promtool = prometheus.with_name("promtool")
    for words in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        done = subprocess.run(
            [promtool, *words], cwd=RULES.parent, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case():
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    cases = yaml.safe_load(RULES.with_name("rules_test.yml").read_text())["tests"]
    tested = {each["alertname"] for case in cases for each in case["alert_rule_test"] if each["exp_alerts"]}
    assert tested == {rule["alert"] for rule in rules if "alert" in rule}
