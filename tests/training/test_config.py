import dataclasses

import pytest
from etils import epath

from lawa_jax.errors import (
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
    OutputExistsError,
)
from lawa_jax.training import run_directory
from lawa_jax.training.command_line import parse
from lawa_jax.training.config import ImageConfig, from_file, from_json, to_json


def parsed(*argv):
    return parse(ImageConfig, "resnet_imagenet", "test", argv)


def config_file(tmp_path, text):
    path = tmp_path / "some.py"
    path.write_text(text)
    return str(path)


def test_the_defaults_are_the_papers_recipe():
    config = parsed().run
    assert (config.arch, config.epochs, config.batch_size, config.lawa_k) == (
        "resnet50", 90, 256, 5,
    )  # fmt: skip
    assert (config.learning_rate, config.momentum, config.weight_decay) == (0.1, 0.9, 1e-4)
    assert config.schedule == "cosine"
    assert config.warmup_epochs == 0
    assert config.bn == "recalibrate"
    assert config.run_dir == "runs/resnet_imagenet-seed0"


def test_flags_override_the_file_which_overrides_the_defaults(tmp_path):
    path = config_file(
        tmp_path,
        "from lawa_jax.training.config import ImageConfig\n"
        "config = ImageConfig(epochs=7, batch_size=32)\n",
    )
    arguments = parsed("--config", path, "--batch_size", "64", "--seed", "3")
    assert (arguments.run.epochs, arguments.run.batch_size) == (7, 64)
    assert arguments.run.run_dir == "runs/some-seed3"


def test_dashes_work_too():
    assert parsed("--lawa-k", "3").run.lawa_k == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config = 1", "expected a variable `config` of type ImageConfig, found int"),
        ("x = 1", "found NoneType"),
        ("1/0", "ZeroDivisionError: division by zero"),
        ("from lawa_jax.training.config import ImageConfig\nconfig=ImageConfig(lr=1)", "'lr'"),
    ],
)
def test_a_config_file_that_is_none_is_explained(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        from_file(config_file(tmp_path, text), ImageConfig)


def test_a_missing_config_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.py: no such file"):
        from_file("nowhere.py", ImageConfig)


def test_json_round_trip():
    config = ImageConfig(epochs=3, learning_rate=1.0)
    assert from_json(to_json(config), ImageConfig, "config.json") == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "config.json: unknown field 'epoch'; known: .*epochs"),
        ({"epochs": "3"}, "field 'epochs': expected int, found '3'"),
        ({"epochs": True}, "field 'epochs': expected int, found True"),
    ],
)
def test_a_stored_config_is_not_trusted(values, message):
    with pytest.raises(ConfigError, match=message):
        from_json(values, ImageConfig, "config.json")


def test_whole_numbers_do_for_floats():
    assert from_json({"learning_rate": 1}, ImageConfig, "x").learning_rate == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("lawa_k", -1), ("batch_size", 0), ("label_smoothing", 1.0),
        ("learning_rate", float("nan")), ("accumulate", 0), ("accumulate", 3), ("keep_resume", 0),
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(ImageConfig(), **{field: value}).check()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--end", "3"), "go with --evaluate"),
        (("--resume", "--init_from", "x"), "contradict"),
    ],
)
def test_contradictory_actions_are_refused(argv, message):
    with pytest.raises(ConfigError, match=message):
        parsed(*argv)


def test_evaluation_takes_the_configuration_from_the_run(tmp_path):
    run = epath.Path(tmp_path / "run")
    run_directory.create(run, to_json(ImageConfig(epochs=3, bn="latest")))
    arguments = parsed("--evaluate", str(run), "--end", "2", "3", "--lawa_k", "2")
    assert (arguments.run.epochs, arguments.run.bn, arguments.run.lawa_k) == (3, "latest", 2)
    assert arguments.actions.end == (2, 3)
    with pytest.raises(ConfigError, match="leave --resume out"):
        parsed("--evaluate", str(run), "--resume")


def test_resuming_without_a_config_file_takes_the_runs_own(tmp_path):
    run = epath.Path(tmp_path / "run")
    run_directory.create(run, to_json(ImageConfig(epochs=3)))
    assert parsed("--resume", "--run_dir", str(run)).run.epochs == 3


def test_a_run_is_never_started_over_another(tmp_path):
    run = epath.Path(tmp_path / "run")
    run_directory.create(run, {"epochs": 3})
    with pytest.raises(OutputExistsError, match=r"already holds a run with 0 epochs.*--resume"):
        run_directory.create(run, {"epochs": 3})
    other = epath.Path(tmp_path / "other")
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="already holds files"):
        run_directory.create(other, {})
    assert (other / "thesis.tex").read_text() == "x"


def test_resuming_with_another_trajectory_is_refused(tmp_path):
    run = epath.Path(tmp_path / "run")
    run_directory.create(run, {"epochs": 3, "lawa_k": 5, "seed": 1})
    changeable = frozenset({"lawa_k"})
    run_directory.check_resumable(run, {"epochs": 3, "lawa_k": 2, "seed": 1}, changeable)
    with pytest.raises(ConfigError, match="epochs was 3, now 4; seed was 1, now 2"):
        run_directory.check_resumable(run, {"epochs": 4, "lawa_k": 5, "seed": 2}, changeable)


def test_what_is_no_run_is_named(tmp_path):
    run = epath.Path(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"holds no run: expected config\.json"):
        run_directory.read_config(run)
    (run / "config.json").write_text("{")
    with pytest.raises(CorruptCheckpointError, match=r"config\.json: it cannot be read as JSON"):
        run_directory.read_config(run)
