"""Micro-batches: their bounds, cancelled items, and failures of one item."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llm2clip.retrieval.service.batching import Batcher, OverloadedError


class Worker:
    """Doubles numbers; waits for ``go``, and refuses 13."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.go.wait(10)
        self.batches.append(list(items))
        if 13 in items:
            raise ValueError("13 is refused")
        return [2 * item for item in items]


def run(test: Any, *, max_batch: int = 4, max_wait: float = 0.2, max_queue: int = 100) -> Worker:
    worker = Worker()

    async def whole() -> None:
        with ThreadPoolExecutor(1) as pool:
            batcher = Batcher(
                worker, executor=pool, max_batch=max_batch, max_wait=max_wait, max_queue=max_queue
            )
            try:
                await test(batcher, worker)
            finally:
                worker.go.set()
                await batcher.close()

    asyncio.run(whole())
    return worker


def test_batcher_collects_items_that_arrive_together():
    async def test(batcher: Batcher[int, int], worker: Worker) -> None:
        assert await asyncio.gather(*(batcher.submit(n) for n in range(10))) == [2 * n for n in range(10)]

    worker = run(test)
    assert [len(batch) for batch in worker.batches] == [4, 4, 2]


def test_batcher_does_not_wait_for_ever():
    async def test(batcher: Batcher[int, int], worker: Worker) -> None:
        assert await asyncio.wait_for(batcher.submit(1), 10) == 2

    run(test, max_wait=0.01)


def test_batcher_lets_a_bad_item_fail_alone():
    async def test(batcher: Batcher[int, int], worker: Worker) -> None:
        found = await asyncio.gather(*(batcher.submit(n) for n in (1, 13, 2)), return_exceptions=True)
        assert (found[0], found[2]) == (2, 4)
        assert isinstance(found[1], ValueError)

    run(test)


def test_batcher_refuses_what_the_queue_cannot_hold():
    async def test(batcher: Batcher[int, int], worker: Worker) -> None:
        worker.go.clear()
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(batcher.submit(n)) for n in (1, 2)]
        await asyncio.sleep(0.05)
        assert batcher.waiting == 2
        with pytest.raises(OverloadedError, match="2 queries are waiting"):
            await batcher.submit(3)
        worker.go.set()
        assert await asyncio.gather(first, *waiting) == [0, 2, 4]

    run(test, max_batch=1, max_queue=2)


def test_batcher_drops_items_whose_caller_has_gone():
    async def test(batcher: Batcher[int, int], worker: Worker) -> None:
        worker.go.clear()
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        worker.go.set()
        assert await first == 0
        assert await batcher.submit(2) == 4

    assert run(test, max_batch=1).batches == [[0], [2]]
