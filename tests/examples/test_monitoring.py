"""The files of examples/monitoring agree on ports, paths and data sources, and only listen on this machine."""

import json
from pathlib import Path
from typing import Any

import yaml

from mlotel_cli.config.schema import HttpConfig

FOLDER = Path(__file__).resolve().parents[2] / "examples/monitoring"


def read(path: str) -> Any:
    return yaml.safe_load((FOLDER / path).read_text())


SERVICES = read("compose.yaml")["services"]
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/mlotel.json").read_text())


def data_sources(node: Any) -> set[tuple[str, str]]:
    """Return (type, uid) of every data source that a dashboard names."""
    if isinstance(node, list):
        return set().union(*map(data_sources, node)) if node else set()
    if not isinstance(node, dict):
        return set()
    own = node.get("datasource")
    found = {(own["type"], own["uid"])} if isinstance(own, dict) and "uid" in own else set()
    return found.union(*map(data_sources, node.values()))


def test_the_services_are_those_that_the_readme_names() -> None:
    assert set(SERVICES) == {"collector", "jaeger", "prometheus", "grafana"}


def test_images_are_pinned_and_what_is_mounted_exists() -> None:
    for service in SERVICES.values():
        assert service["image"].rpartition(":")[2][:1].isdigit() or service["image"].rpartition(":")[2][:1] == "v"
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), source


def test_nothing_is_open_to_others() -> None:
    for name, service in SERVICES.items():
        if service.get("network_mode") != "host":
            assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
    assert "--web.listen-address=127.0.0.1:9090" in SERVICES["prometheus"]["command"]
    assert SERVICES["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"
    collector = read("collector/collector.yaml")
    assert collector["receivers"]["otlp"]["protocols"] == {"http": {"endpoint": "127.0.0.1:4318"}}
    assert collector["service"]["telemetry"]["metrics"]["level"] == "none"


def test_traces_get_from_the_monitor_to_jaeger_and_to_grafana() -> None:
    collector = read("collector/collector.yaml")
    (pipeline,) = collector["service"]["pipelines"].values()
    assert set(pipeline["exporters"]) == set(collector["exporters"])
    assert set(pipeline["processors"]) == set(collector["processors"])
    endpoint = collector["exporters"]["otlp/jaeger"]["endpoint"]
    published = {port.rpartition(":")[0]: port.rpartition(":")[2] for port in SERVICES["jaeger"]["ports"]}
    assert f"--collector.otlp.grpc.host-port=0.0.0.0:{published[endpoint]}" in SERVICES["jaeger"]["command"]
    assert "telemetry.otlp.endpoint=http://127.0.0.1:4318" in (FOLDER / "README.md").read_text()


def test_the_dashboards_data_sources_are_provisioned_where_they_listen() -> None:
    provisioned = read("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    sources = {(source["type"], source["uid"]): source["url"] for source in provisioned}
    assert data_sources(DASHBOARD) - {("datasource", "grafana")} <= set(sources)
    assert sources["prometheus", "prometheus"] == "http://127.0.0.1:9090"
    assert sources["jaeger", "jaeger"].removeprefix("http://") in {
        port.rpartition(":")[0] for port in SERVICES["jaeger"]["ports"]
    }


def test_grafana_finds_the_dashboard() -> None:
    (provider,) = read("grafana/provisioning/dashboards/mlotel.yaml")["providers"]
    path = provider["options"]["path"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./grafana/dashboards"] == path
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{path}/mlotel.json"


def test_prometheus_asks_the_port_that_a_monitor_has_by_default() -> None:
    http = HttpConfig()
    (job,) = read("prometheus/prometheus.yml")["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"{http.host}:{http.port}"]
    assert job["job_name"] == "mlotel"  # as the alert on `up` has it
