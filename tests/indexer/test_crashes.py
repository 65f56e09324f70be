"""Writers that are killed at random: see ``crashing.py``, which also kills three hundred with one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes with POSIX signals")


@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_is_killed_leaves_what_was_committed(seed):
    command = [sys.executable, str(Path(__file__).with_name("crashing.py")), "--kills", "20"]
    done = subprocess.run(
        [*command, "--seed", str(seed)], capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["total"] >= 20
    assert set(found["kills"]) == {"build", "add", "update", "remove", "compact"}
    assert found["left"]["before"] >= 1
