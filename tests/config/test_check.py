"""The schema, the checks on values, and building objects from configuration."""

import copy
import functools
import socket
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from mlotel_cli import launch
from mlotel_cli.config.check import check, check_port, instantiate, listen, plain, resolve_device, split_source
from mlotel_cli.config.conf_folders import builtin_conf
from mlotel_cli.config.policies import SourcePolicy, WhenFull
from mlotel_cli.config.schema import EvalConfig, MonitorConfig, ProfileConfig
from mlotel_cli.errors import DataError, MlotelError, UsageError

CONF = builtin_conf()
OPTIONS = sorted(
    f"{file.parent.relative_to(CONF).as_posix()}={file.stem}"
    for file in CONF.rglob("*.yaml")
    if file.parent != CONF and "hydra" not in file.relative_to(CONF).parts
)


def composed(*overrides: str, mode: str = "eval") -> DictConfig:
    """Compose the built-in configuration, like a single run."""
    root = launch.register(launch.MODES[mode], mode)
    with initialize_config_dir(str(CONF), version_base=launch.VERSION_BASE):
        cfg = compose(root, [*overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


@functools.cache
def defaults() -> DictConfig:
    """Return the default configuration, composed once; to be copied before it is changed."""
    return composed()


def changed(key: str, value: Any) -> DictConfig:
    """Return the default configuration with one value changed."""
    cfg = copy.deepcopy(defaults())
    OmegaConf.update(cfg, key, value)
    return cfg


class Greeter:
    """A class of the user."""

    def __init__(self, name: str, *, times: int = 1, words: list[str] | None = None, inner: Any = None) -> None:
        if times < 0:
            raise ValueError("times is negative")
        if name == "broken data":
            raise DataError("a.mp4: frame 3 cannot be decoded")
        if name == "wrong type inside":
            len(times)  # pyright: ignore[reportArgumentType]
        self.name, self.times, self.words, self.inner = name, times, words, inner


GREETER = f"{__name__}.Greeter"


def node(**arguments: Any) -> DictConfig:
    return OmegaConf.create({"_target_": GREETER, **arguments})


def test_defaults_pass_the_check() -> None:
    check(composed())


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option: str) -> None:
    needed = {
        "pipeline=module": ("pipeline.module={_target_: x}", "pipeline.modules=[a]"),
        "source=video": ("source.uri=gate.mp4",),
    }
    mode = {"profiler": "profile", "source": "monitor"}.get(option.partition("=")[0], "eval")
    port = ("monitor.http.port=0",) if mode == "monitor" else ()
    check(composed(option, *needed.get(option, ()), *port, mode=mode))


def test_options_of_all_groups_are_seen() -> None:
    groups = {option.partition("=")[0] for option in OPTIONS}
    assert groups >= {"pipeline", "data", "metrics", "executor", "experiment", "optimize", "telemetry", "tracker"}
    assert groups >= {"profiler", "source"}


def test_files_and_schema_agree_on_defaults() -> None:
    from_files, from_schema = composed(), OmegaConf.structured(EvalConfig)
    for key in ("seed", "device", "eval", "executor", "telemetry", "tracker", "run.name"):
        assert OmegaConf.select(from_files, key) == OmegaConf.select(from_schema, key), key


def test_a_profile_starts_from_the_evaluation() -> None:
    evaluation, profile = composed(), composed(mode="profile")
    for key in ("eval", "pipeline", "data", "metrics", "telemetry", "tracker"):
        assert profile[key] == evaluation[key], key
    schema = OmegaConf.structured(ProfileConfig)
    assert (profile.profile, profile.profiler) == (schema.profile, schema.profiler)


def test_files_name_every_key_of_the_schema() -> None:
    for key, file in (
        ("telemetry", "telemetry/default"),
        ("tracker", "tracker/wandb"),
        ("executor", "executor/sequential"),
    ):
        assert set(OmegaConf.load(CONF / f"{file}.yaml")) == set(composed()[key])


def bounds() -> list[tuple[str, Any]]:
    """Yield values just outside the bounds of every bounded key."""

    def walk(schema: Any, prefix: str) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for entry in fields(schema):
            if is_dataclass(entry.type):
                found += walk(entry.type, f"{prefix}{entry.name}.")
            if "low" in entry.metadata:
                step = 0.001 if entry.type in (float, float | None) else 1
                found.append((prefix + entry.name, entry.metadata["low"] - step))
                if entry.metadata["high"] is not None:
                    found.append((prefix + entry.name, entry.metadata["high"] + step))
        return found

    return walk(EvalConfig, "")


@pytest.mark.parametrize(("key", "value"), [*bounds(), ("telemetry.part_s", float("nan"))])
def test_value_out_of_bounds_is_refused(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{key}={value}: allowed: "):
        check(changed(key, value))


def test_bounds_are_allowed_values() -> None:
    check(changed("telemetry.flush_ms", 5))
    check(changed("telemetry.flush_ms", 1000))
    check(changed("eval.max_batches", None))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pipeline._target_", None, r"^pipeline\._target_: must be given"),
        ("data._target_", 3, r"^data\._target_: must be given"),
        ("metrics.score", 3, r"^metrics\.score\._target_: must be given"),
        ("data.num_batches", "???", r"^data\.num_batches: a value must be given, for example data\.num_batches=VALUE"),
        ("seed", "???", r"^seed: a value must be given"),
        ("data.num_batches", "${nowhere}", r"^data\.num_batches: the reference .*'nowhere' not found"),
        ("device", "gpu", r"^device=gpu: allowed: auto, cpu, cuda, cuda:N"),
    ],
)
def test_check_names_key_and_remedy(key: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(changed(key, value))


def test_auto_device_is_found_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    OmegaConf.clear_resolver("mlotel_device")
    monkeypatch.setattr("mlotel_cli.hardware.find_device", lambda: asked.append("torch") or "cuda:0")
    cfg = composed()
    resolve_device(cfg)
    assert asked == []
    assert plain(cfg)["pipeline"]["device"] == "cuda:0"
    OmegaConf.clear_resolver("mlotel_device")


def test_named_device_stays() -> None:
    cfg = changed("device", "cpu")
    resolve_device(cfg)
    assert cfg.pipeline.device == "cpu"


def test_plain_has_no_enum_and_no_reference() -> None:
    values = plain(changed("device", "cpu"))
    assert type(values["eval"]["on_error"]) is str
    assert values["data"]["seed"] == 0


def test_instantiate_hands_over_plain_values() -> None:
    built = instantiate(node(name="x", words=["a", "b"], inner={"_target_": GREETER, "name": "y"}), "pipeline")
    assert (type(built.words), built.words) == (list, ["a", "b"])
    assert built.inner.name == "y"


def test_instantiate_keeps_a_chosen_conversion() -> None:
    assert OmegaConf.is_list(instantiate(node(name="x", words=["a"], _convert_="none"), "pipeline").words)


@pytest.mark.parametrize(
    ("built", "expected"),
    [
        (
            node(name="x", time=2),
            ["pipeline.time: unknown argument; did you mean 'times'?", "takes: name, times, words"],
        ),
        (node(times=2), ["pipeline.name: a value must be given", "takes: name"]),
        (node(name="x", inner={"_target_": GREETER, "nam": 1}), ["pipeline.inner.nam: unknown argument"]),
        ({"_target_": f"{__name__}.Greter"}, ["pipeline._target_: ", "Greter"]),
        ({"_target_": "no_such_module.Greeter"}, ["pipeline._target_: ModuleNotFoundError: No module named 'no_such"]),
        ({"_target_": "Greeter"}, ["pipeline._target_: ", "No module named 'Greeter'"]),
        ({"_target_": "subprocess.run", "args": "ls"}, ["pipeline: ", "subprocess.run"]),
        ({"name": "x"}, ["pipeline._target_: must be given"]),
        ({"_target_": GREETER, "name": "${nowhere}"}, ["name: the reference ", "nowhere"]),
    ],
)
def test_wrong_description_is_a_usage_error(built: Any, expected: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        instantiate(OmegaConf.create(built), "pipeline")
    for text in expected:
        assert text in str(caught.value)


def test_paths_are_those_of_the_whole_configuration() -> None:
    cfg = OmegaConf.create({"pipeline": {"_target_": GREETER, "name": "x", "inner": {"_target_": GREETER, "nme": 1}}})
    with pytest.raises(UsageError, match=r"^pipeline\.inner\.nme: unknown argument; did you mean 'name'"):
        instantiate(cfg.pipeline, "pipeline")


def test_error_inside_a_constructor_is_no_usage_error() -> None:
    with pytest.raises(MlotelError, match=r"^pipeline: .*Greeter raised ValueError: times is negative") as caught:
        instantiate(node(name="x", times=-1), "pipeline")
    assert caught.value.exit_code == 1


def test_type_error_inside_a_constructor_is_no_usage_error() -> None:
    with pytest.raises(MlotelError, match="raised TypeError") as caught:
        instantiate(node(name="wrong type inside"), "pipeline")
    assert caught.value.exit_code == 1


def test_own_error_of_a_constructor_passes_through() -> None:
    with pytest.raises(DataError, match=r"^a\.mp4: frame 3"):
        instantiate(node(name="broken data"), "data")


def test_module_that_fails_on_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_module_of_a_user.py").write_text("import av_is_not_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UsageError, match=r"pipeline\._target_: ModuleNotFoundError: No module named 'av_is_not_here'"):
        instantiate(OmegaConf.create({"_target_": "failing_module_of_a_user.Model"}), "pipeline")


# -- the source and the address of a monitor --------------------------------------------------------------------------


def monitor(*overrides: str) -> DictConfig:
    return composed("monitor.http.port=0", *overrides, mode="monitor")


def test_a_monitor_starts_from_the_evaluation() -> None:
    evaluation, given = composed(), monitor()
    for key in ("eval", "pipeline", "data", "telemetry", "tracker", "executor"):
        assert given[key] == evaluation[key], key
    given.monitor.http.port = 9464
    assert given.monitor == OmegaConf.structured(MonitorConfig).monitor


def test_a_source_is_parted_into_its_queue_and_itself() -> None:
    policy, node = split_source(monitor("source.queue_size=3").source)
    assert policy == SourcePolicy(WhenFull.block, queue_size=3)
    assert set(node) == {"_target_", "data"}
    assert node.data._target_ == "mlotel_cli.dummy.DummyData"


def test_a_source_of_ones_own_needs_no_policy() -> None:
    assert split_source(node(name="mine")) == (SourcePolicy(), node(name="mine"))


def test_files_of_sources_name_every_key_of_their_queue() -> None:
    names = {entry.name for entry in fields(SourcePolicy)}
    for file in ("data", "video"):
        assert names <= set(OmegaConf.load(CONF / "source" / f"{file}.yaml")), file


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("source.when_full=drop", r"source.when_full=drop: allowed: drop_oldest, drop_newest, block"),
        ("source.queue_size=0", r"source.queue_size=0: allowed: 1 to 100000"),
        ("source.batch_size=none", r"source.batch_size=none: must be a whole number"),
        ("source.batch_wait_ms=-1", r"source.batch_wait_ms=-1.0: allowed: 0 to 60000"),
        ("~source._target_", r"source._target_: must be given"),
    ],
)
def test_a_source_that_cannot_run_is_refused(override: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(monitor(override))


def test_a_camera_needs_no_data_set() -> None:
    given = monitor("source=video", "source.uri=x")
    given.data = {}
    check(given)


def test_the_address_of_a_monitor() -> None:
    check_port("127.0.0.1", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=rf"monitor.http.port={port}: in use on 127.0.0.1; give another one, or"):
            check(monitor(f"monitor.http.port={port}"))
    with pytest.raises(UsageError, match=r"monitor.http.host=203.0.113.7: not an address of this machine"):
        check_port("203.0.113.7", 9464)
    with pytest.raises(
        UsageError,
        match=r"monitor.http.host=(a b)?: this name has no address",
    ):
        check_port("a b", 9464)


def test_a_port_is_held_from_the_start() -> None:
    """A second monitor on the same port is refused at once, also when both start together."""
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        for find_out in (listen, check_port):
            with pytest.raises(UsageError, match=rf"monitor.http.port={port}: in use on 127.0.0.1"):
                find_out("127.0.0.1", port)
    listen("127.0.0.1", port).close()


def test_a_port_that_was_just_left_is_free() -> None:
    """A restarted monitor need not wait until the kernel frees the port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
    check_port("127.0.0.1", port)
