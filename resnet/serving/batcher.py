"""Images of many requests through the network together."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
import contextlib
from typing import Any

import numpy as np

Row = dict[str, np.ndarray]


class Batcher:
  """Collects images for a moment, then predicts them at once.

  While one batch is predicted, in a thread, the next one is collected: the
  busier the server, the larger the batches. Use it from one event loop.
  """

  def __init__(
    self,
    predict: Callable[[np.ndarray], Row],
    *,
    max_batch: int,
    wait_seconds: float,
    on_batch: Callable[[int], None] = lambda _: None,
  ):
    """Starts nothing yet.

    Args:
      predict: images [B, H, W, C] -> arrays [B, ...] by name.
      max_batch: images that are predicted at once.
      wait_seconds: for more, after the first one.
      on_batch: called with the number of images of each batch.
    """
    self._predict = predict
    self._max_batch = max_batch
    self._wait_seconds = wait_seconds
    self._on_batch = on_batch
    self._queue: asyncio.Queue[Any] = asyncio.Queue()
    self._pool = ThreadPoolExecutor(1, 'predict')
    self._task: asyncio.Task[None] | None = None

  def start(self) -> None:
    """Begins to work, in the running event loop."""
    self._task = asyncio.create_task(self._work())

  async def close(self) -> None:
    """Ends after what was accepted is answered."""
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
      self._on_batch(len(batch))
      images = np.stack([image for image, _ in batch])
      try:
        outputs = await loop.run_in_executor(self._pool, self._predict, images)
        for i, (_, future) in enumerate(batch):
          if not future.done():  # Whoever asked may have gone.
            future.set_result({name: rows[i] for name, rows in outputs.items()})
      except Exception as error:  # It is raised in the request.
        for _, future in batch:
          if not future.done():
            future.set_exception(error)
      for _ in batch:
        self._queue.task_done()

  async def _collect(self) -> list[tuple[np.ndarray, asyncio.Future[Row]]]:
    """Returns images with their futures: one, and what comes in time."""
    batch = [await self._queue.get()]
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(self._wait_seconds):
        while len(batch) < self._max_batch:
          batch.append(await self._queue.get())
    return batch
