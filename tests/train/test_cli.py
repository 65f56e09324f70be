import subprocess
import sys

import pytest


def train(*arguments):
    command = [sys.executable, "-m", "llm2clip.train.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nano", "--stage", "tea"), "unknown stage 'tea', expected 'language', 'pictures' or 'all'"),
        (("nano", "--device", "toaster"), "cannot train on device 'toaster'"),
        (
            ("nano-english", "--language", "nowhere"),
            "nowhere holds no run. Run `llm2clip-train nano",
        ),
    ],
)
def test_expected_failures_are_one_line(arguments, message, tmp_path):
    done = train(*arguments, "--out", str(tmp_path / "run"), "--cache", str(tmp_path / "cache"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_a_misspelt_option_is_misuse():
    done = train("nano", "--treads", "2")
    assert done.returncode == 2
    assert "--treads" in done.stderr
