"""Images are predicted together, answered each, and none is lost."""

import asyncio
import threading
import time

import numpy as np
import pytest

from resnet.serving.batcher import Batcher


def image(number):
  return np.full((2, 2, 1), number, np.uint8)


class Predict:
  """Answers with the first pixel; notes what came together."""

  def __init__(self, seconds=0.0):
    self.sizes = []
    self.seconds = seconds
    self.gate = threading.Event()
    self.gate.set()

  def __call__(self, images):
    self.gate.wait(10)
    time.sleep(self.seconds)
    self.sizes.append(len(images))
    if np.any(images == 255):
      raise RuntimeError('no memory')
    return {'value': images[:, 0, 0, 0]}


def run(scenario, predict, **options):
  """Runs `scenario(batcher)` in an event loop of its own."""

  async def main():
    batcher = Batcher(
      predict, **{'max_batch': 4, 'wait_seconds': 0.02, **options}
    )
    batcher.start()
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


def test_one_image_does_not_wait_for_ever():
  async def scenario(batcher):
    start = time.monotonic()
    await batcher([image(1)])
    return time.monotonic() - start

  assert run(scenario, Predict(), wait_seconds=0.05) < 2


def test_what_comes_while_it_predicts_is_predicted_together():
  predict = Predict()

  async def scenario(batcher):
    predict.gate.clear()
    first = asyncio.create_task(batcher([image(1)]))
    await asyncio.sleep(0.1)  # It is being predicted.
    others = [asyncio.create_task(batcher([image(i)])) for i in range(2, 6)]
    await asyncio.sleep(0.1)
    predict.gate.set()
    await asyncio.gather(first, *others)

  run(scenario, predict, wait_seconds=0.0)
  assert predict.sizes == [1, 4]


def test_an_error_is_told_and_the_next_batch_goes_on():
  async def scenario(batcher):
    with pytest.raises(RuntimeError, match='no memory'):
      await batcher([image(255)])
    (row,) = await batcher([image(9)])
    return row['value']

  assert run(scenario, Predict()) == 9


def test_who_goes_away_does_not_hold_up_the_others():
  predict = Predict()

  async def scenario(batcher):
    predict.gate.clear()
    gone = asyncio.create_task(batcher([image(1)]))
    stays = asyncio.create_task(batcher([image(2)]))
    await asyncio.sleep(0.1)
    gone.cancel()
    await asyncio.sleep(0)
    predict.gate.set()
    (row,) = await stays
    return row['value']

  assert run(scenario, predict) == 2


def test_closing_answers_what_was_accepted():
  async def main():
    batcher = Batcher(Predict(seconds=0.02), max_batch=4, wait_seconds=0.01)
    batcher.start()
    tasks = [asyncio.create_task(batcher([image(i)])) for i in range(20)]
    await asyncio.sleep(0)
    await batcher.close()
    return [rows[0]['value'] for rows in await asyncio.gather(*tasks)]

  assert asyncio.run(main()) == list(range(20))
