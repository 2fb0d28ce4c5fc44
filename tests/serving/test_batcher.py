"""Images are predicted together, answered each, and none is lost."""

import asyncio
import threading

import numpy as np
import pytest

from resnet.serving.batcher import Batcher


def image(number):
  return np.full((2, 2, 1), number, np.uint8)


class Predict:
  """Answers with the first pixel; notes what came together."""

  def __init__(self):
    self.sizes = []
    self.gate = threading.Event()
    self.gate.set()

  def __call__(self, images):
    self.sizes.append(len(images))
    self.gate.wait(60)
    if np.any(images == 255):
      raise RuntimeError('no memory')
    return {'value': images[:, 0, 0, 0]}

  async def begun(self):
    """Returns once a batch is being predicted."""
    while not self.sizes:
      await asyncio.sleep(0)


def run(scenario, predict, wait_seconds=0.02):
  """Runs `scenario(batcher)` in an event loop of its own."""

  async def main():
    batcher = Batcher(predict=predict, max_batch=4, wait_seconds=wait_seconds)
    batcher.start()
    async with asyncio.timeout(60):
      result = await scenario(batcher)
      await batcher.close()
    return result

  return asyncio.run(main())


def test_each_request_gets_its_own_answers_in_order():
  predict = Predict()

  async def scenario(batcher):
    return await asyncio.gather(
      *(batcher([image(3 * i + j) for j in range(3)]) for i in range(7))
    )

  for i, rows in enumerate(run(scenario, predict)):
    assert [row['value'] for row in rows] == [3 * i, 3 * i + 1, 3 * i + 2]
  assert sum(predict.sizes) == 21
  assert max(predict.sizes) == 4 and len(predict.sizes) <= 7


def test_images_that_come_during_a_prediction_are_predicted_together():
  predict = Predict()

  async def scenario(batcher):
    predict.gate.clear()
    gone, *stay = (asyncio.create_task(batcher([image(i)])) for i in range(2))
    await predict.begun()
    stay += [asyncio.create_task(batcher([image(i)])) for i in range(2, 6)]
    await asyncio.sleep(0)  # Each puts its image into the queue.
    gone.cancel()  # Nobody else waits for that.
    predict.gate.set()
    return [row['value'] for (row,) in await asyncio.gather(*stay)]

  assert run(scenario, predict, wait_seconds=0.0) == [1, 2, 3, 4, 5]
  assert predict.sizes == [2, 4]


def test_an_error_is_raised_and_the_next_batch_is_predicted():
  async def scenario(batcher):
    with pytest.raises(RuntimeError, match='no memory'):
      await batcher([image(255)])
    (row,) = await batcher([image(9)])
    return row['value']

  assert run(scenario, Predict()) == 9
