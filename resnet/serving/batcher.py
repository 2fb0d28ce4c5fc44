"""Batches the images of concurrent requests."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
from typing import Any

import numpy as np

Row = dict[str, np.ndarray]


@dataclasses.dataclass(kw_only=True)
class Batcher:
  """Collects images for a short time and predicts them in one batch.

  While a thread predicts one batch, new images wait in a queue, so batches grow
  with the load. Call `start` and the batcher from the same event loop.

  Attributes:
    predict: function from images [B, H, W, C] to arrays [B, ...] by name.
    max_batch: largest number of images in a batch.
    wait_seconds: how long to wait for more images after the first.
    on_batch: called with the number of images of each batch.
  """

  predict: Callable[[np.ndarray], Row]
  max_batch: int
  wait_seconds: float
  on_batch: Callable[[int], None] = lambda _: None

  def __post_init__(self):
    self._queue: asyncio.Queue[Any] = asyncio.Queue()
    self._pool = ThreadPoolExecutor(1, 'predict')
    self._task: asyncio.Task[None] | None = None

  def start(self) -> None:
    """Starts the batcher in the running event loop."""
    self._task = asyncio.create_task(self._work())

  async def close(self) -> None:
    """Stops the batcher after all accepted images have been predicted."""
    await self._queue.join()
    if self._task:
      self._task.cancel()
    self._pool.shutdown()

  async def __call__(self, images: Sequence[np.ndarray]) -> list[Row]:
    """Returns the outputs for each image [H, W, C]."""
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in images]
    for image, future in zip(images, futures, strict=True):
      self._queue.put_nowait((image, future))
    return list(await asyncio.gather(*futures))

  async def _work(self) -> None:
    loop = asyncio.get_running_loop()
    while True:
      batch = await self._collect()
      self.on_batch(len(batch))
      images = np.stack([image for image, _ in batch])
      try:
        outputs = await loop.run_in_executor(self._pool, self.predict, images)
        for i, (_, future) in enumerate(batch):
          if not future.done():  # The client may have disconnected.
            future.set_result({name: rows[i] for name, rows in outputs.items()})
      except Exception as error:  # Raise it in the requests instead.
        for _, future in batch:
          if not future.done():
            future.set_exception(error)
      for _ in batch:
        self._queue.task_done()

  async def _collect(self) -> list[tuple[np.ndarray, asyncio.Future[Row]]]:
    """Returns a batch: the first image and those that arrive in time."""
    batch = [await self._queue.get()]
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(self.wait_seconds):
        while len(batch) < self.max_batch:
          batch.append(await self._queue.get())
    return batch
