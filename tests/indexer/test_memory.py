"""A build holds a window of images and a bounded number of records, however many there are."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FEW, MANY = 1_000, 9_000


@pytest.mark.skipif(sys.platform != "linux", reason="the process's own memory is read from /proc")
def test_the_memory_of_a_build_does_not_grow_with_the_images(tmp_path):
    program = (
        "import json, sys, pathlib; from benchmarks.memory import measure; "
        f"print(json.dumps([measure(n, pathlib.Path(sys.argv[1], str(i))) "
        f"for i, n in enumerate(({FEW}, {FEW}, {MANY}))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr

    _, few, many = json.loads(done.stdout)
    assert many["vectors"] == pytest.approx(MANY * 512 * 2, rel=0.01)
    # All pixels together are 1.3 GB, all vectors 9 MB; the window of images is the same for both.
    assert many["own_peak"] - few["own_peak"] < 60_000_000
    assert many["own_peak"] < 400_000_000
