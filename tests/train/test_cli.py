import subprocess
import sys

import pytest
from typer.testing import CliRunner

from llm2clip.train.cli import app


def train(*arguments):
    command = [sys.executable, "-m", "llm2clip.train.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nano", "--device", "toaster"), "cannot train on device 'toaster'"),
    ],
)
def test_train_command_reports_failures_in_one_line(arguments, message, tmp_path):
    done = train(*arguments, "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_train_command_refuses_an_unknown_option():
    done = train("nano", "--treads", "2")
    assert done.returncode == 2
    assert "--treads" in done.stderr


@pytest.mark.parametrize("command", ["nano", "sample"])
def test_train_command_names_a_missing_extra(command, monkeypatch, tmp_path):
    from llm2clip.train.nano import command as recipes

    def needing(*arguments, **options):
        import fontTools  # noqa: F401

    monkeypatch.setitem(sys.modules, "fontTools", None)
    for name in ("make_nano", "make_sample"):
        monkeypatch.setattr(recipes, name, needing)
    result = CliRunner().invoke(app, [command, "--out", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: import of fontTools halted")
    assert result.stderr.endswith("install it with: pip install 'llm2clip-retrieval[train]'\n")


def test_train_command_interrupted_says_how_to_resume(monkeypatch, tmp_path):
    from llm2clip.train.nano import command as recipes

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes, "make_sample", interrupted)
    result = CliRunner().invoke(app, ["sample", "--out", str(tmp_path)])
    assert (result.exit_code, result.stderr) == (
        130,
        "interrupted: run the same command again to continue\n",
    )
