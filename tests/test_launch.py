"""Runs under Hydra: search path, experiments, run directories, sweeps, exit codes. The mode is a fake."""

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

from mlotel_cli import launch
from mlotel_cli.config.conf_folders import builtin_conf
from mlotel_cli.config.schema import Job
from mlotel_cli.errors import Interrupted, MlotelError, StageError
from tests.support.cli import FakeMode, mlotel, write_conf

EVAL_YAML = """
defaults:
  - eval_base
  - override pipeline: mine
  - _self_
eval: {repeats: 4}
"""
PIPELINE = "{_target_: my_package.Pipeline, size: 1}"
SMALL = """
defaults:
  - override /hydra/job_logging: mlotel
  - override /hydra/hydra_logging: mlotel
  - _self_
run: {name: small, dir: outputs}
pipeline: {_target_: a.Pipeline}
data: {_target_: a.Data}
metrics: {m: {_target_: a.Metric}}
optimize: {_target_: a.Option}
hydra:
  job: {name: eval, chdir: false}
  run: {dir: "${run.dir}"}
  sweep: {dir: sweep, subdir: "${hydra:job.num}"}
"""
"""A configuration without groups: it composes in a quarter of the time."""


@pytest.fixture
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The words of a command that takes the small configuration."""
    conf = write_conf(tmp_path_factory.mktemp("small"), {"small.yaml": SMALL})
    return ("eval", "-cd", str(conf), "-cn", "small")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeMode:
    mode = FakeMode()
    monkeypatch.setitem(launch.MODES, "eval", mode.mode())
    monkeypatch.chdir(tmp_path)
    return mode


def fail(error: BaseException) -> None:
    raise error


class TestSingleRun:
    def test_gets_configuration_and_job(self, fake: FakeMode, tmp_path: Path) -> None:
        assert mlotel("eval", "eval.repeats=2", "run.dir=here", "hydra.verbose=false").code == 0
        assert fake.cfg.eval.repeats == 2
        expected = Job(tmp_path / "here", ["eval.repeats=2", "run.dir=here"], None, None, "eval")
        assert fake.job == expected

    def test_default_directory_and_name(self, fake: FakeMode, tmp_path: Path) -> None:
        mlotel("eval")
        assert fake.job.output_dir.parent == tmp_path / "outputs" / "eval"
        assert fake.job.output_dir.is_dir()
        assert (fake.cfg.run.name, fake.cfg.run.dir) == ("dummy", str(fake.job.output_dir))

    def test_given_name_stays(self, fake: FakeMode) -> None:
        mlotel("eval", "run.name=night shift")
        assert fake.cfg.run.name == "night shift"

    def test_composed_configuration_is_kept(self, fake: FakeMode) -> None:
        mlotel("eval", "eval.repeats=2", "run.dir=here")
        assert "repeats: 2" in Path("here/.hydra/config.yaml").read_text()
        assert Path("here/.hydra/overrides.yaml").read_text() == "- eval.repeats=2\n- run.dir=here\n"

    def test_logging_and_warnings_go_to_the_file(self, fake: FakeMode) -> None:
        def noisy(cfg: DictConfig, job: Job) -> None:
            logging.getLogger("library").info("a line")
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                warnings.warn("a library is noisy", UserWarning, stacklevel=1)

        fake.behave = noisy
        ended = mlotel("eval", "run.dir=here")
        text = Path("here/mlotel.log").read_text()
        assert "a line" in text
        assert "a library is noisy" in text
        assert (ended.out, ended.err) == ("", "")

    def test_process_state_is_put_back(self, fake: FakeMode, tmp_path: Path) -> None:
        conf = write_conf(tmp_path, {})
        handlers, argv, path = list(logging.getLogger().handlers), list(sys.argv), list(sys.path)
        mlotel("eval", "-cd", str(conf))
        assert (logging.getLogger().handlers, sys.argv, sys.path) == (handlers, argv, path)
        assert "HYDRA_FULL_ERROR" not in os.environ

    def test_working_directory_stays(self, fake: FakeMode, tmp_path: Path) -> None:
        fake.behave = lambda cfg, job: Path("where").write_text("here")
        mlotel("eval")
        assert (tmp_path / "where").exists()


class TestOwnConf:
    def test_files_of_the_user_win(self, fake: FakeMode, tmp_path: Path) -> None:
        files = {"pipeline/dummy.yaml": PIPELINE, "tracker/wandb.yaml": "project: theirs"}
        conf = write_conf(tmp_path, files)
        assert mlotel("eval", "--config-dir", str(conf)).code == 0
        assert fake.cfg.pipeline == {"_target_": "my_package.Pipeline", "size": 1}
        assert fake.cfg.tracker.project == "theirs"
        assert fake.cfg.tracker.finish_timeout_s == 30
        assert fake.cfg.data["_target_"] == "mlotel_cli.dummy.DummyData"

    def test_eval_yaml_of_five_lines(self, fake: FakeMode, tmp_path: Path) -> None:
        conf = write_conf(tmp_path, {"eval.yaml": EVAL_YAML, "pipeline/mine.yaml": PIPELINE})
        assert mlotel("eval", "-cd", str(conf)).code == 0
        assert (fake.cfg.run.name, fake.cfg.eval.repeats, fake.cfg.pipeline["size"]) == ("mine", 4, 1)

    def test_experiment_wins_over_the_users_eval_yaml(self, fake: FakeMode, tmp_path: Path) -> None:
        experiment = "# @package _global_\ndefaults:\n  - override /pipeline: other\neval: {repeats: 9}\n"
        files = {
            "eval.yaml": EVAL_YAML,
            "pipeline/mine.yaml": PIPELINE,
            "pipeline/other.yaml": "{_target_: my_package.Other}",
            "experiment/big.yaml": experiment,
        }
        assert mlotel("eval", "-cd", str(write_conf(tmp_path, files)), "experiment=big").code == 0
        assert fake.cfg.pipeline == {"_target_": "my_package.Other"}
        assert fake.cfg.eval.repeats == 9

    def test_experiment_in_the_users_defaults_is_explained(self, fake: FakeMode, tmp_path: Path) -> None:
        text = "defaults:\n  - eval_base\n  - _self_\n  - experiment: null\n"
        conf = write_conf(tmp_path, {"eval.yaml": text, "experiment/big.yaml": "# @package _global_\nseed: 2\n"})
        assert mlotel("eval", "-cd", str(conf)).code == 0
        ended = mlotel("eval", "-cd", str(conf), "experiment=big")
        assert ended.code == 2
        assert "experiment: take it out of your defaults list" in ended.err

    def test_command_line_wins_over_experiment(self, fake: FakeMode, tmp_path: Path) -> None:
        conf = write_conf(tmp_path, {"experiment/big.yaml": "# @package _global_\neval: {repeats: 9}\n"})
        mlotel("eval", "eval.repeats=5", "-cd", str(conf), "experiment=big")
        assert fake.cfg.eval.repeats == 5

    def test_schema_holds_without_eval_base(self, fake: FakeMode, tmp_path: Path) -> None:
        conf = write_conf(tmp_path, {"bare.yaml": "eval: {repeat: 2}\n"})
        ended = mlotel("eval", "-cd", str(conf), "-cn", "bare")
        assert ended.code == 2
        assert "eval.repeat: unknown key (in bare.yaml); did you mean 'repeats'?" in ended.err

    def test_hydra_settings_of_the_user(self, fake: FakeMode, tmp_path: Path) -> None:
        text = "defaults:\n  - eval_base\n  - override hydra/job_logging: none\n  - _self_\n"
        text += "hydra:\n  run: {dir: elsewhere}\n"
        mlotel("eval", "-cd", str(write_conf(tmp_path, {"eval.yaml": text})))
        assert fake.job.output_dir == tmp_path / "elsewhere"
        assert not (tmp_path / "elsewhere" / "mlotel.log").exists()

    def test_code_beside_the_conf_folder_is_importable(self, fake: FakeMode, tmp_path: Path) -> None:
        (tmp_path / "project").mkdir()
        conf = write_conf(tmp_path / "project", {})
        found: list[bool] = []
        fake.behave = lambda cfg, job: found.append(sys.path[0] == str(tmp_path / "project"))
        mlotel("eval", "-cd", os.path.relpath(conf))
        assert found == [True]

    def test_conf_in_the_working_directory_is_not_picked_up_by_itself(self, fake: FakeMode, tmp_path: Path) -> None:
        write_conf(tmp_path, {"eval.yaml": "defaults: [nothing_of_ours]\n"})
        assert mlotel("eval").code == 0

    def test_config_name(self, fake: FakeMode, tmp_path: Path) -> None:
        conf = write_conf(tmp_path, {"nightly.yaml": "defaults:\n  - eval_base\n  - _self_\nseed: 7\n"})
        assert mlotel("eval", "--config-name", "nightly.yaml", "--config-dir", str(conf)).code == 0
        assert (fake.cfg.seed, fake.job.config_name) == (7, "nightly")

    def test_missing_folder(self, fake: FakeMode, tmp_path: Path) -> None:
        write_conf(tmp_path, {"eval.yaml": ""})
        ended = mlotel("eval", "-cd", "cnf")
        assert ended.code == 2
        assert (
            ended.err
            == "mlotel: --config-dir cnf: there is no such folder; did you mean 'conf'? (folders there: conf)\n"
        )

    def test_missing_name(self, fake: FakeMode, tmp_path: Path) -> None:
        ended = mlotel("eval", "-cn", "evl", "-cd", str(write_conf(tmp_path, {"mine.yaml": ""})))
        assert ended.code == 2
        assert "--config-name evl: no such file in " in ended.err
        assert "did you mean 'eval'?; available: eval, eval_base, mine" in ended.err


class TestShowing:
    def test_cfg(self, fake: FakeMode, tmp_path: Path) -> None:
        ended = mlotel("eval", "--cfg", "job", "-p", "eval", "eval.repeats=3")
        assert "# @package eval\n" in ended.out
        assert "repeats: 3\n" in ended.out
        assert fake.jobs == []
        assert list(tmp_path.iterdir()) == []

    def test_cfg_resolved(self, fake: FakeMode) -> None:
        assert "  seed: 5\n" in mlotel("eval", "--resolve", "seed=5", "--cfg", "job").out

    def test_cfg_of_hydra(self, fake: FakeMode) -> None:
        assert "mlotel_cli.config.sweep.SweepWatch" in mlotel("eval", "--cfg", "hydra").out

    def test_cfg_works_while_values_are_missing(self, fake: FakeMode) -> None:
        assert "modules: ???" in mlotel("eval", "--cfg", "job", "pipeline=module").out

    def test_unknown_package(self, fake: FakeMode) -> None:
        ended = mlotel("eval", "--cfg", "job", "-p", "nope")
        assert (ended.code, ended.err) == (2, "package 'nope' not found in config\n")

    def test_info_without_a_kind_shows_all(self, fake: FakeMode, tmp_path: Path) -> None:
        conf = write_conf(tmp_path, {})
        ended = mlotel("eval", "--info", "eval.repeats=2", "-cd", str(conf))
        assert ended.code == 0
        assert "Defaults Tree" in ended.out
        assert str(conf) in ended.out
        assert str(builtin_conf()) in ended.out

    def test_info_searchpath(self, fake: FakeMode) -> None:
        ended = mlotel("eval", "--info", "searchpath")
        assert "Config search path" in ended.out
        assert "Defaults Tree" not in ended.out
        assert ended.out.count(str(builtin_conf())) == 1

    @pytest.mark.parametrize("words", [("-m", "--cfg", "job"), ("--info", "--cfg", "job"), ("-m", "--info", "all")])
    def test_conflicting_flags(self, fake: FakeMode, words: tuple[str, ...]) -> None:
        ended = mlotel("eval", *words)
        assert (ended.code, ended.err) == (2, "mlotel: --multirun, --cfg and --info exclude each other\n")

    @pytest.mark.parametrize("words", [("--resolve",), ("-p", "eval")])
    def test_flags_without_cfg(self, fake: FakeMode, words: tuple[str, ...]) -> None:
        assert mlotel("eval", *words).code == 2
        assert fake.jobs == []


class TestExitCodes:
    def test_error_of_the_run(self, fake: FakeMode, small: tuple[str, ...]) -> None:
        fake.behave = lambda cfg, job: fail(StageError("batch 3, stage reader: no plate"))
        ended = mlotel(*small, "run.dir=here")
        assert (ended.code, ended.out, ended.err) == (1, "", "mlotel: batch 3, stage reader: no plate\n")
        assert "Traceback" in Path("here/mlotel.log").read_text()

    def test_no_password_in_message_or_log(self, fake: FakeMode, small: tuple[str, ...]) -> None:
        def camera_is_gone(cfg: DictConfig, job: Job) -> None:
            logging.getLogger("library").warning("opening %s", "rtsp://me:secret@gate/1")
            raise OSError("no route to rtsp://me:secret@gate/1")

        fake.behave = camera_is_gone
        ended, log = mlotel(*small, "run.dir=here"), Path("here/mlotel.log").read_text()
        assert ended.err == "mlotel: OSError: no route to rtsp://***@gate/1 (--debug shows where)\n"
        assert log.count("rtsp://***@gate/1") == 4  # two lines, and the traceback
        assert "secret" not in log

    def test_an_unexpected_error(self, fake: FakeMode, small: tuple[str, ...]) -> None:
        fake.behave = lambda cfg, job: fail(KeyError("plates"))
        ended = mlotel(*small)
        assert (ended.code, ended.err) == (1, "mlotel: KeyError: 'plates' (--debug shows where)\n")

    def test_debug_shows_the_traceback(self, fake: FakeMode, small: tuple[str, ...]) -> None:
        fake.behave = lambda cfg, job: fail(KeyError("plates"))
        ended = mlotel(*small, "--debug")
        assert ended.code == 1
        assert "Traceback (most recent call last)" in ended.err
        assert ended.err.endswith("mlotel: KeyError: 'plates'\n")

    @pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted(15), 143), (SystemExit(7), 7)])
    def test_stopped(self, fake: FakeMode, small: tuple[str, ...], stop: BaseException, code: int) -> None:
        fake.behave = lambda cfg, job: fail(stop)
        assert mlotel(*small).code == code


class TestRunDirectory:
    def test_config_mistake_leaves_nothing_behind(self, fake: FakeMode, tmp_path: Path) -> None:
        assert mlotel("eval", "eval.repeats=0").code == 2
        assert list(tmp_path.iterdir()) == []

    def test_a_run_is_not_overwritten(self, fake: FakeMode, tmp_path: Path) -> None:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "run.json").write_text("{}")
        ended = mlotel("eval", "run.dir=here")
        assert ended.code == 2
        assert "here: holds a run already" in ended.err
        assert not (tmp_path / "here" / ".hydra").exists()

    def test_a_file_is_in_the_way(self, fake: FakeMode, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        ended = mlotel("eval", "run.dir=file/run")
        assert ended.code == 2
        assert f"run.dir={tmp_path}/file/run: cannot be written: {tmp_path}/file is not a folder" in ended.err

    def test_folder_that_cannot_be_made(self, fake: FakeMode) -> None:
        ended = mlotel("eval", "run.dir=/proc/self/run")
        assert ended.code == 2
        assert ended.err.startswith("mlotel: run.dir")
        assert "/proc/self/run" in ended.err

    def test_folder_that_only_hydra_finds_out_about(self, fake: FakeMode, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: True)
        ended = mlotel("eval", "run.dir=/proc/self/run")
        assert ended.code == 2
        assert ended.err.startswith("mlotel: run.dir: it cannot be written: ")

    def test_folder_without_permission(self, fake: FakeMode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        ended = mlotel("eval", "run.dir=here")
        assert ended.code == 2
        assert f"cannot be written: {tmp_path} is not writable" in ended.err


@pytest.mark.slow
class TestSweep:
    def test_jobs_have_their_own_directories_and_share_a_group(self, fake: FakeMode, tmp_path: Path) -> None:
        ended = mlotel("eval", "-m", "eval.repeats=1,2", "hydra.sweep.dir=sweeps/first")
        assert ended.code == 0
        jobs = [job for _, job in fake.jobs]
        assert [job.output_dir for job in jobs] == [tmp_path / "sweeps/first/0", tmp_path / "sweeps/first/1"]
        assert [(job.sweep, job.job_num) for job in jobs] == [("first", 0), ("first", 1)]
        assert [cfg.eval.repeats for cfg, _ in fake.jobs] == [1, 2]
        assert [cfg.run.dir for cfg, _ in fake.jobs] == [str(job.output_dir) for job in jobs]

    def test_default_directory(self, fake: FakeMode, tmp_path: Path) -> None:
        mlotel("eval", "eval.repeats=1,2", "--multirun")
        (folder,) = (tmp_path / "outputs" / "eval").iterdir()
        assert {job.sweep for _, job in fake.jobs} == {folder.name}
        assert {job.output_dir.parent for _, job in fake.jobs} == {folder}

    def test_a_failing_job_leaves_the_others_alone(self, fake: FakeMode, tmp_path: Path) -> None:
        def behave(cfg: DictConfig, job: Job) -> None:
            if cfg.eval.repeats == 1:
                raise MlotelError("out of paper")

        fake.behave = behave
        ended = mlotel("eval", "-m", "eval.repeats=1,2,0", "hydra.sweep.dir=s", "hydra.sweeper.max_batch_size=1")
        assert ended.code == 1
        assert [cfg.eval.repeats for cfg, _ in fake.jobs] == [1, 2]
        stored = [json.loads((tmp_path / f"s/{n}/job.json").read_text()) for n in range(3)]
        assert [(job["status"], job["exit_code"]) for job in stored] == [("failed", 1), ("complete", 0), ("refused", 2)]
        assert stored[0]["error"] == "out of paper"
        assert stored[1]["overrides"] == ["eval.repeats=2"]
        assert "mlotel: job 0: out of paper\n" in ended.err
        assert "Error executing job" not in ended.err
        for text in ("failed", "complete", "refused", "eval.repeats=0: allowed: at least 1"):
            assert text in ended.out

    def test_only_config_mistakes(self, fake: FakeMode) -> None:
        assert mlotel("eval", "-m", "eval.repeats=0,-1").code == 2
        assert fake.jobs == []

    def test_mistake_that_composing_finds(self, fake: FakeMode) -> None:
        ended = mlotel("eval", "-m", "eval.repeats=1,2", "pipeline=dumy")
        assert ended.code == 2
        assert "pipeline=dumy: there is no such option" in ended.err
        assert fake.jobs == []

    def test_earlier_sweep_in_the_same_directory_is_not_counted(self, fake: FakeMode, tmp_path: Path) -> None:
        mlotel("eval", "-m", "eval.repeats=0", "hydra.sweep.dir=s")
        (tmp_path / "s/0").rename(tmp_path / "s/old")
        os.utime(tmp_path / "s/old/job.json", (0, 0))
        assert mlotel("eval", "-m", "eval.repeats=1", "hydra.sweep.dir=s").code == 0

    def test_a_run_in_the_sweep_is_not_overwritten(self, fake: FakeMode) -> None:
        fake.behave = lambda cfg, job: (job.output_dir / "run.json").write_text("{}")
        assert mlotel("eval", "-m", "eval.repeats=1,2", "hydra.sweep.dir=s").code == 0
        ended = mlotel("eval", "-m", "eval.repeats=3,4", "hydra.sweep.dir=s")
        assert ended.code == 2
        assert len(fake.jobs) == 2

    def test_interrupt_ends_the_sweep(self, fake: FakeMode, tmp_path: Path) -> None:
        fake.behave = lambda cfg, job: fail(Interrupted(15))
        ended = mlotel("eval", "-m", "eval.repeats=1,2", "hydra.sweep.dir=s")
        assert ended.code == 143
        assert len(fake.jobs) == 1
        stored = json.loads((tmp_path / "s/0/job.json").read_text())
        assert (stored["status"], stored["exit_code"]) == ("interrupted", 143)
        assert "interrupted" in ended.out

    def test_other_sweepers_learn_of_a_failure(self, fake: FakeMode, tmp_path: Path) -> None:
        fake.behave = lambda cfg, job: fail(MlotelError("out of paper"))
        root = launch.register(launch.MODES["eval"], "eval")
        with initialize_config_dir(str(builtin_conf()), version_base=launch.VERSION_BASE):
            cfg = compose(root, ["hydra.mode=MULTIRUN", "hydra.job.num=0"], return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path)
            cfg.hydra.sweeper["_target_"] = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        with pytest.raises(MlotelError, match="out of paper"):
            launch.Task("eval", "eval")(cfg)
        assert json.loads((tmp_path / "job.json").read_text())["status"] == "failed"

    @pytest.mark.parametrize("override", ["run.dir=x", "hydra.run.dir=x", "+run.dir=x"])
    def test_run_dir_is_refused(self, fake: FakeMode, override: str) -> None:
        ended = mlotel("eval", "-m", "eval.repeats=1", override)
        assert ended.code == 2
        assert "use hydra.sweep.dir=FOLDER" in ended.err

    @pytest.mark.parametrize("words", [("hydra.mode=MULTIRUN", "eval.repeats=1,2"), ("experiment=both",)])
    def test_sweep_asked_for_by_configuration(self, fake: FakeMode, tmp_path: Path, words: tuple[str, ...]) -> None:
        text = "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper: {params: {eval.repeats: '1,2'}}\n"
        conf = write_conf(tmp_path, {"experiment/both.yaml": text})
        ended = mlotel("eval", "-cd", str(conf), *words)
        assert ended.code == 0
        assert [cfg.eval.repeats for cfg, _ in fake.jobs] == [1, 2]
        assert "eval.repeats=2" in ended.out  # the table


def test_a_monitor_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = mlotel("monitor", "-m", "seed=1,2")
    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert "so it cannot be swept; use mlotel eval -m" in ended.err
