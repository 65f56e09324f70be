"""Ctrl-C while a command is still starting: one line and status 130, never a traceback; or it was done already."""

import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
DELAYS = (0.0, 0.003, 0.01, 0.02, 0.04, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5)
"""Seconds; a loaded machine stretches what happens in them."""

# A shell starts background jobs with interrupts ignored, and children inherit that.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from llm2clip.common.entrypoint import {function}
sys.argv = {arguments!r}
print("up", flush=True)
{function}()
"""
BRIEF = {
    "llm2clip-index": ["encoders"],
    "llm2clip-search": ["--help"],
    "llm2clip-train": ["nano", "--help"],
    "llm2clip-eval": ["run", "--help"],
    "llm2clip-serve": ["--help"],
}
"""Something for each command to do that is soon done."""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="interrupts with POSIX signals")


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A command as its script starts it, up to where the first code of ours begins."""
    function = SCRIPTS[script].split(":")[1]
    program = PROGRAM.format(function=function, arguments=[script, *arguments])
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_a_command_starts_is_one_line(script):
    ends = []
    for delay in DELAYS:
        process = start(script, *BRIEF[script])
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=100)
        ends.append((process.returncode, errors))
    assert set(ends) <= {(130, "interrupted\n"), (0, "")}
    assert ends[0] == (130, "interrupted\n")


def test_an_ignored_ctrl_c_stays_ignored():
    """As for a job that a shell put into the background."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from llm2clip.common.entrypoint import index\n"
        "sys.argv = ['llm2clip-index', 'encoders']; print('up', flush=True); index()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (0, "")
    assert "nano" in out


def test_graceful_interrupt_raises_and_ends_in_order():
    program = """
import os, signal, sys, types
signal.signal(signal.SIGINT, signal.default_int_handler)
from llm2clip.common.entrypoint import start
from llm2clip.common.terminal import graceful_interrupt
from llm2clip.common.terminal import one_line_errors

def app():
    with one_line_errors():
        with graceful_interrupt():
            try:
                os.kill(os.getpid(), signal.SIGINT)
            finally:
                print("put away", flush=True)

sys.modules["an_app"] = types.SimpleNamespace(app=app)
start("an_app")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "put away\n", "interrupted\n")
    at_once = program.replace("with graceful_interrupt():", "if True:")
    done = subprocess.run([sys.executable, "-c", at_once], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
