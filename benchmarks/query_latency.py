"""How long one query takes to become a vector, on one thread: short ones in several languages, and long captions."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

from benchmarks.measuring import Row, Settings, percentile, seconds

SHORT = (
    "an animal with a long neck",
    "一只猫",
    "una fruta amarilla",
    "سفينة في البحر",
    "冬に降る白いもの",
    "जन्मदिन का केक",
    "ein rotes Fahrrad",
    "музыкальный инструмент",
    "밤하늘의 별",
    "mti mkubwa",
)
LONG_TOKENS = 120


def measure(settings: Settings) -> list[Row]:
    """Run in a process of its own, since the number of threads is set for good."""
    clock = settings.clock.__name__
    command = [
        sys.executable,
        "-m",
        "benchmarks.query_latency",
        settings.encoder,
        str(settings.times(200)),
        clock,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for what, times in found.items():
        aim = 20.0 if what.startswith("short") else None
        rows.append(
            Row(benchmark="encode", what=f"{what}, median", value=times["median"], unit="ms", aim=aim)
        )
        rows.append(Row(benchmark="encode", what=f"{what}, 95th percentile", value=times["p95"], unit="ms"))
    return rows


def _run(encoder_name: str, times: int, clock: Callable[[], float]) -> dict[str, dict[str, float]]:
    import torch

    from llm2clip.encoders import Encoder, load_encoder

    torch.set_num_threads(1)
    encoder: Encoder = load_encoder(encoder_name, device="cpu")

    def took(texts: list[str]) -> dict[str, float]:
        turn = iter(range(times + 1))
        encode = lambda: encoder.encode_texts([texts[next(turn) % len(texts)]])  # noqa: E731
        measured = seconds(encode, times=times, clock=clock)
        return {"median": percentile(measured, 50) * 1e3, "p95": percentile(measured, 95) * 1e3}

    long = [
        text_of_length(encoder.count_tokens, f"{start} and a small red house, ", LONG_TOKENS)
        for start in SHORT[:3]
    ]
    return {"short queries": took(list(SHORT)), f"captions of {LONG_TOKENS} tokens": took(long)}


def text_of_length(count_tokens: Callable[[list[str]], list[int]], words: str, tokens: int) -> str:
    """``words`` repeated and cut to the given number of tokens, or just below."""
    text = words * tokens
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if count_tokens([text[:middle]])[0] <= tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low]


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1], int(sys.argv[2]), getattr(time, sys.argv[3]))))
