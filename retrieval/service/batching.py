"""Micro-batches: queries that arrive together share a forward pass, within bounds on size, wait and queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Generic, TypeVar, final

Item = TypeVar("Item")
Result = TypeVar("Result")


class OverloadedError(Exception):
    """The queue is full."""


@final
class Batcher(Generic[Item, Result]):
    """Collects items for a function of many; one call at a time.

    The first item of a batch waits at most ``max_wait`` seconds for others. An item whose caller has gone is dropped
    before the call. Where a call fails, its items are tried one by one, so that a bad one fails alone.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        executor: Executor,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """``work`` runs in ``executor`` and returns a result for each item; ``on_batch`` is told each batch's size."""
        self._work, self._executor, self._on_batch = work, executor, on_batch
        self._max_batch, self._max_wait = max_batch, max_wait
        self._queue: asyncio.Queue[tuple[Item, asyncio.Future[Result]]] = asyncio.Queue(max_queue)
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that wait now."""
        return self._queue.qsize()

    async def submit(self, item: Item) -> Result:
        """The result of one item.

        Raises:
            OverloadedError: Too many items wait.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull as error:
            raise OverloadedError(f"{self._queue.maxsize} queries are waiting") from error
        return await future

    async def close(self) -> None:
        """End; items that wait are cancelled."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        while not self._queue.empty():
            self._queue.get_nowait()[1].cancel()

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            deadline = asyncio.get_running_loop().time() + self._max_wait
            while len(batch) < self._max_batch:
                try:
                    async with asyncio.timeout_at(deadline):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
            wanted = [(item, future) for item, future in batch if not future.done()]
            if wanted:
                await self._answer(wanted)

    async def _answer(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        self._on_batch(len(batch))
        try:
            results = await self._call([item for item, _ in batch])
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise
        except Exception as error:  # whatever the function raises belongs to the caller
            if len(batch) == 1:
                _set_error(batch[0][1], error)
                return
            for one in batch:
                await self._answer([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)

    async def _call(self, items: list[Item]) -> Sequence[Result]:
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._work, items)


def _set_error(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
