"""On a terminal, a build without an encoder asks for one. The terminal is real: a pty that the test types into."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm2clip.encoders import list_encoders
from llm2clip.indexer.core.index_paths import default_index_path

pty = pytest.importorskip("pty")
DRIVER = Path(__file__).with_name("driver.py")
QUESTION = "Number, name or folder: "


class Typist:
    """A command on a terminal of its own, and what the terminal shows."""

    def __init__(self, *arguments: str) -> None:
        self._terminal, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "DOWNLOADED": "1"}
        environment.pop("LLM2CLIP_ENCODER", None)
        self._process = subprocess.Popen(
            [sys.executable, str(DRIVER), "", *arguments],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: own_terminal(theirs),
        )
        os.close(theirs)
        self.shown = ""

    def wait_for(self, text: str, *, times: int = 1) -> None:
        while self.shown.count(text) < times:
            self.shown += os.read(self._terminal, 4096).decode("utf-8", "replace")

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def end(self) -> tuple[int, str]:
        """Status and standard output; ``shown`` is then everything the terminal showed."""
        while True:
            try:
                self.shown += os.read(self._terminal, 4096).decode("utf-8", "replace")
            except OSError:
                break
        out, _ = self._process.communicate(timeout=100)
        os.close(self._terminal)
        return self._process.returncode, out.decode()


def own_terminal(descriptor: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(descriptor, termios.TIOCSCTTY, 0)


def test_choose_encoder_asks_until_answered(photos):
    typist = Typist("build", str(photos))
    typist.wait_for(QUESTION)
    assert "Choose an encoder:" in typist.shown
    offered = [card for card in list_encoders() if card.recommended]
    assert len(offered) > 3
    for card in offered:
        assert f": {card.name} {card.summary}" in " ".join(typist.shown.split())
    typist.type("99\n")
    typist.wait_for(QUESTION, times=2)
    assert f"'99' is not an encoder: expected 1 to {len(offered)}, a name or a folder" in typist.shown
    typist.type("1\n")
    status, out = typist.end()
    assert status == 0, typist.shown
    assert f"Index:  {default_index_path(photos)}" in out
    manifest = json.loads((default_index_path(photos) / "manifest.json").read_text("utf-8"))
    assert (manifest["encoder_source"], manifest["items"]) == ("nano", 30)


@pytest.mark.parametrize("keys", ["\x04", "\x03"], ids=["Ctrl-D", "Ctrl-C"])
def test_choose_encoder_without_an_answer_ends_the_command(photos, keys):
    typist = Typist("build", str(photos))
    typist.wait_for(QUESTION)
    typist.type(keys)
    status, out = typist.end()
    assert (status, out) == (130, "")
    assert typist.shown.splitlines()[-1].endswith("interrupted: nothing was done yet")
    assert "Traceback" not in typist.shown
    assert not default_index_path(photos).exists()
