"""OTLP settings: the configuration wins over the environment, and a wrong value is refused by name."""

import pytest

from mlotel_cli.config.otlp_settings import (
    Target,
    check,
    check_endpoint,
    find_target,
    resource_of_environment,
    unsupported,
)
from mlotel_cli.errors import UsageError

CONFIG = {"endpoint": "http://c:4318", "headers": {}, "timeout_s": None, "queue_size": 20_000}
NOTHING = CONFIG | {"endpoint": None}
E = "OTEL_EXPORTER_OTLP"


def urls(settings=NOTHING, **environ: str) -> tuple[str | None, str | None]:
    found = [find_target(signal, settings, environ=environ) for signal in ("traces", "metrics")]
    return tuple(target and target.url for target in found)


def test_without_any_setting_nothing_is_sent():
    assert urls() == (None, None)


@pytest.mark.parametrize(
    "base", ["http://c:4318", "http://c:4318/", "http://c:4318/v1/traces", "http://c:4318/v1/metrics/"]
)
def test_the_paths_are_appended_to_the_configured_base(base):
    assert urls(NOTHING | {"endpoint": base}) == ("http://c:4318/v1/traces", "http://c:4318/v1/metrics")


def test_a_base_with_a_path_keeps_it():
    assert urls(OTEL_EXPORTER_OTLP_ENDPOINT="https://h/otlp")[0] == "https://h/otlp/v1/traces"


def test_a_signal_s_own_variable_is_taken_as_it_is_and_for_that_signal_only():
    assert urls(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://t/x") == ("http://t/x", None)
    both = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}
    assert urls(**both) == ("http://t/x", "http://b/v1/metrics")


def test_the_configuration_wins_over_the_environment():
    environ = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/x", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}
    assert urls(CONFIG, **environ) == ("http://c:4318/v1/traces", "http://c:4318/v1/metrics")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"OTEL_TRACES_EXPORTER": "none"}, (False, True)),
        ({"OTEL_METRICS_EXPORTER": "none"}, (True, False)),
        ({"OTEL_METRICS_EXPORTER": " None "}, (True, False)),
        ({"OTEL_SDK_DISABLED": "true"}, (False, False)),
        ({"OTEL_SDK_DISABLED": "false"}, (True, True)),
        ({"OTEL_TRACES_EXPORTER": "console"}, (True, True)),
    ],
)
def test_signals_are_switched_off_by_the_standard_variables(environ, expected):
    assert tuple(url is not None for url in urls(CONFIG, **environ)) == expected


def test_another_exporter_of_the_environment_is_not_this_one():
    environ = {"OTEL_TRACES_EXPORTER": "console", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://b"}
    assert urls(**environ) == (None, "http://b/v1/metrics")
    assert urls(**(environ | {"OTEL_TRACES_EXPORTER": "console, otlp"}))[0] == "http://b/v1/traces"


def test_an_exporter_asked_for_by_name_goes_to_the_default():
    assert urls(OTEL_TRACES_EXPORTER="otlp") == ("http://localhost:4318/v1/traces", None)


@pytest.mark.parametrize(
    "url", ["c:4318", "ftp://c", "http://", "http://c:port", "http://[::1", "http://a b", "http://c:0", "/v1/traces"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UsageError, match=r"^telemetry\.otlp\.endpoint=") as caught:
        check(NOTHING | {"endpoint": url}, environ={})
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=r"^OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="):
        check(NOTHING, environ={"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": url})


@pytest.mark.parametrize("url", ["http://c", "https://c:4318/a/b", "http://127.0.0.1:4318", "http://[::1]:4318"])
def test_what_is_a_url_is_not(url):
    check_endpoint(url)


def test_headers_by_name_the_configuration_wins():
    environ = {f"{E}_HEADERS": "X-A=1,x-b=two%20words,broken, =x", f"{E}_TRACES_HEADERS": ""}
    target = find_target("traces", CONFIG | {"headers": {"x-a": 3}}, environ=environ)
    assert target.headers == {"x-a": "3", "x-b": "two words"}
    target = find_target("traces", CONFIG, environ=environ | {f"{E}_TRACES_HEADERS": "x-c=4"})
    assert target.headers == {"x-c": "4"}


@pytest.mark.parametrize("headers", [{"a b": "1"}, {"a:": "1"}, {"a": "1\r\nb: 2"}, {"ä": "1"}])
def test_headers_that_are_none_are_refused(headers):
    with pytest.raises(UsageError, match=r"telemetry\.otlp\.headers\."):
        check(CONFIG | {"headers": headers}, environ={})


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        ({}, {}, 10.0),
        ({"timeout_s": 3}, {f"{E}_TIMEOUT": "5"}, 3.0),
        ({}, {f"{E}_TIMEOUT": "5"}, 5.0),
        ({}, {f"{E}_TIMEOUT": "5", f"{E}_TRACES_TIMEOUT": "6"}, 6.0),
        ({}, {f"{E}_TIMEOUT": "10000"}, 10.0),
    ],
)
def test_timeouts(settings, environ, expected):
    assert find_target("traces", CONFIG | settings, environ=environ).timeout_s == expected


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "900"])
def test_timeouts_that_are_none_are_refused(text):
    with pytest.raises(UsageError, match=f"^{E}_TIMEOUT={text}: allowed: seconds"):
        check(CONFIG, environ={f"{E}_TIMEOUT": text})


def test_compression_and_certificates(tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    certificate.touch()
    key.touch()
    environ = {f"{E}_COMPRESSION": "GZIP", f"{E}_CERTIFICATE": str(certificate)}
    environ |= {f"{E}_CLIENT_CERTIFICATE": str(certificate), f"{E}_CLIENT_KEY": str(key)}
    target = find_target("traces", CONFIG, environ=environ)
    assert (target.compression, target.certificate) == ("gzip", str(certificate))
    assert target.client_certificate == (str(certificate), str(key))
    assert Target("traces", "http://c").client_certificate is None


@pytest.mark.parametrize(
    ("name", "value"), [("COMPRESSION", "zip"), ("CERTIFICATE", "/no/ca.pem"), ("CLIENT_KEY", "/no/key.pem")]
)
def test_what_cannot_be_used_is_refused_by_its_variable(name, value):
    with pytest.raises(UsageError, match=f"^{E}_{name}={value}: "):
        check(CONFIG, environ={f"{E}_{name}": value})


def test_values_that_are_not_needed_are_not_checked():
    check(NOTHING, environ={f"{E}_COMPRESSION": "zip", f"{E}_TIMEOUT": "soon"})


def test_another_protocol_is_said():
    assert unsupported({}) is None
    assert unsupported({f"{E}_PROTOCOL": "http/protobuf"}) is None
    assert unsupported({f"{E}_TRACES_PROTOCOL": "grpc"}).startswith(f"{E}_TRACES_PROTOCOL=grpc does not apply")


def test_resource_attributes_of_the_environment():
    environ = {"OTEL_RESOURCE_ATTRIBUTES": "a=1, b.c = x%2Cy ,broken,=z"}
    assert resource_of_environment(environ) == {"a": "1", "b.c": "x,y"}


def test_a_user_in_the_url_becomes_a_header_and_is_shown_nowhere():
    target = find_target("traces", NOTHING | {"endpoint": "http://me:p%40w@c:4318"}, environ={})
    assert (target.url, target.headers) == ("http://c:4318/v1/traces", {"authorization": "Basic bWU6cEB3"})
    given = NOTHING | {"endpoint": "http://me:pw@c", "headers": {"Authorization": "Bearer x"}}
    assert find_target("metrics", given, environ={}).headers == {"authorization": "Bearer x"}
    with pytest.raises(UsageError) as raised:
        check(NOTHING | {"endpoint": "grpc://me:pw@c"}, environ={})
    assert str(raised.value).startswith("telemetry.otlp.endpoint=grpc://***@c: allowed: ")
