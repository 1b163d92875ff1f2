import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lawa_jax import errors, script


def exit_code(main):
    with pytest.raises(SystemExit) as caught:
        script.run(main)
    return caught.value.code


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.SelectionError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.DataNotFoundError("x"), 2),
        (errors.TreeMismatchError("x"), 2),
        (errors.OutputExistsError("x"), 2),
        (errors.CorruptCheckpointError("x"), 3),
        (errors.NonFiniteError("x"), 3),
        (errors.TrainingFailedError("x"), 1),
        (OSError(28, "No space left on device", "/full/disk"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_one_message(error, code, capsys):
    assert exit_code(raising(error)) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_success_is_zero_and_a_returned_code_is_kept():
    assert exit_code(lambda: None) == 0
    assert exit_code(lambda: 1) == 1


def test_the_file_of_an_os_error_is_named(capsys):
    exit_code(raising(OSError(13, "Permission denied", "/secret")))
    assert capsys.readouterr().err == "error: /secret: Permission denied\n"


def test_sigterm_gives_143():
    previous = signal.getsignal(signal.SIGTERM)
    try:
        assert exit_code(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        script.run(lambda: 1 // 0)


class Joined:
    """The module that speaks with other processes, in a program that has joined some."""

    def __init__(self):
        self.done = []

    def joined(self):
        return True

    def await_verdict(self, error):
        self.done.append(f"await {error}")

    def leave(self, code, message):
        self.done.append(f"leave {code} {message}")


def test_a_defect_among_several_processes_waits_for_the_death_that_may_explain_it(
    monkeypatch, capsys
):
    joined = Joined()
    monkeypatch.setattr(script, "_distributed", lambda: joined)
    assert exit_code(raising(ValueError("Gloo: closed"))) == 1
    assert joined.done == ["await Gloo: closed", "leave 1 ValueError: Gloo: closed"]
    assert capsys.readouterr().err.startswith("Traceback")


def test_user_mistakes_are_ordinary_exceptions_too():
    assert issubclass(errors.SelectionError, ValueError)
    assert issubclass(errors.CheckpointNotFoundError, FileNotFoundError)


# Sends a signal when a module is first imported, and runs a script.
SIGNALLED = """
import os, runpy, signal, sys
number, module, script = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sent = []
def hook(event, args):
    if event == "import" and args[0] == module and not sent:
        sent.append(True)
        os.kill(os.getpid(), number)
sys.addaudithook(hook)
sys.argv = [script, "--help"]
if script == "lawa":
    from lawa_jax.cli.main import main
    main()
runpy.run_path(script, run_name="__main__")
"""
ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [
    "lawa",
    *(f"{d}/{p.name}" for d in ("train", "convert") for p in (ROOT / d).glob("*.py")),
]


@pytest.mark.parametrize("script_file", SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_imports_is_one_line_and_a_code(script_file, number):
    module = "numpy" if script_file != "lawa" else "tyro"
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(int(number)), module, script_file],
        cwd=ROOT, check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert (done.returncode, done.stderr) == (128 + number, f"error: {word}\n")


def test_a_library_cannot_swallow_a_signal_during_the_imports():
    code = """
import os, signal
from lawa_jax import script
with script.importing():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        print("swallowed")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "error: interrupted\n")
