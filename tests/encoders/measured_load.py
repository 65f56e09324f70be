"""What loading a module costs, measured from outside by the kernel of Linux."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""Fixed thresholds: glibc otherwise adapts them as it runs and may keep a freed matrix, now and then."""

on_linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads /proc of Linux")

SCRIPT = """
import resource, sys
from pathlib import Path
import torch

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

{setup}
torch.zeros(1000, 1000) @ torch.zeros(1000, 1000)
before = resident()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
module = load()
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
weights = sum(p.numel() * p.element_size() for p in module.parameters())
print(peak - before, resident() - before, weights)
"""


def weights_loaded(setup: str, *arguments: str) -> int:
    """Bytes of the weights that ``load`` of ``setup`` reads, having checked the peak and what stays resident."""
    command = [sys.executable, "-c", SCRIPT.format(setup=setup), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | MALLOC)
    assert done.returncode == 0, done.stderr
    peak, resident, weights = map(int, done.stdout.split())
    assert weights * 0.98 <= resident
    assert peak <= 1.15 * weights, f"{peak / weights:.3f} times the weights"
    return weights
