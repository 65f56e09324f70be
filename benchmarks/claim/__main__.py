"""Run the parts of the claim and write what comes of them into one file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.claim.material import ClaimSettings, write_section

PARTS = {"a": "contrast", "b": "chinese", "c": "own_images"}
"""Name of a part -> its module."""
RESULTS = Path(__file__).parent.parent / "results" / "claim.md"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``python -m benchmarks.claim``."""
    options = _parser().parse_args(arguments)
    settings = ClaimSettings(
        data=options.data,
        work=options.work,
        steps=options.steps,
        batch=options.batch,
        photographs=options.photographs,
        plots=options.out.parent,
        measured=options.measured,
    )
    torch.set_num_threads(options.threads or torch.get_num_threads())
    for name in options.parts or PARTS:
        lines = import_module(f"benchmarks.claim.{PARTS[name]}").measure(settings)
        write_section(options.out, name, lines)
        print("\n".join(lines))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claim", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to run; default: all")
    parser.add_argument("--data", type=Path, required=True, help="folder of train-*.tar and val.tar")
    parser.add_argument("--work", type=Path, default=Path("runs/claim"), help="folder for models and runs")
    parser.add_argument("--steps", type=int, default=100, help="most steps of a training")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch of stage 1")
    parser.add_argument("--photographs", type=int, default=2000, help="training photographs of parts a and b")
    parser.add_argument("--measured", type=int, default=1000, help="held-back photographs of parts a and b")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of results")
    return parser


if __name__ == "__main__":
    main()
