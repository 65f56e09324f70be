"""Puts one run of ``run.sh`` into one file: date, machine, GPU, versions, and what each step gave."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.measuring import machine


def summarise(folder: Path) -> dict[str, object]:
    """Read ``steps.tsv`` and what the steps left; write and return ``report.json``."""
    steps = [line.split("\t") for line in (folder / "steps.tsv").read_text("utf-8").splitlines()]
    report: dict[str, object] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "benchmarks/gpu/run.sh",
        "machine": machine() | gpu(),
        "steps": {name: {"passed": code == "0", "seconds": int(took)} for name, code, took in steps},
        **{name: _left(folder / f"{name}.json") for name in ("throughput", "index", "stage1", "stage2")},
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return report


def _left(path: Path) -> object:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def gpu() -> dict[str, object]:
    """The devices that torch sees, and the CUDA it was built with."""
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"gpus": names, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


if __name__ == "__main__":
    found = summarise(Path(sys.argv[1]))
    print(json.dumps(found["steps"], indent=2))
    print(f"written to {sys.argv[1]}/report.json")
