"""Where training computes: torch's default device, set once by the recipe."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def use_device(name: str) -> torch.device:
    """Make ``name`` torch's default device: ``auto`` (CUDA if available), ``cpu``, ``cuda``, ``cuda:1``."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot train on device {name!r}: {reason}. Use --device cpu") from error
    torch.set_default_device(device)
    return device


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a run computes on."""

    device: str = "auto"
    """``auto`` (CUDA if available), ``cpu`` or ``cuda``."""
    threads: int | None = None
    """CPU threads; ``None`` for all cores."""

    def use(self) -> None:
        """Set it up for this process; ``ValueError`` if there is no such device."""
        use_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
