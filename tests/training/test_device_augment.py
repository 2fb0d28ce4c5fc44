"""Augmentation inside the step: the batch that the network sees."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.data.augment.crop import example_keys
from resnet.errors import InputError
from resnet.training.step import augment_batch, jit_steps
from tests.runs import assert_close, batch_of, tiny, train_steps

resolve = functools.partial(
  tiny, data__augment_on='device', data__crop='random_resized'
)


def seen(run, step=0):
  """Returns a batch as the network sees it."""
  see = jax.jit(
    functools.partial(augment_batch, task=run.task, sharding=run.sharding)
  )
  return see(batch_of(run), jnp.int32(step))


def test_the_step_augments_its_images():
  run = resolve(seed=3)
  batch = batch_of(run)
  stored = run.train_reader.source
  indices, _ = run.train_reader.plan(0)
  for row, record in enumerate(stored.read(indices[:4])):
    np.testing.assert_array_equal(batch['image'][row], record['image'])
  keys = example_keys(3, jnp.int32(0), len(batch['label']))
  expected = jax.jit(run.task.device_crop)(batch['image'], keys)
  augmented = seen(run)
  np.testing.assert_array_equal(augmented['image'], expected)
  assert (np.array(augmented['image']) != np.array(batch['image'])).any()
  plain = dataclasses.replace(run.task, device_crop=None)
  (state, metrics), (other, others) = (
    jit_steps(task, run.sharding).train(run.create_state(), images)
    for task, images in ((run.task, batch), (plain, augmented))
  )
  assert float(metrics['loss']) == pytest.approx(
    float(others['loss']), rel=1e-5
  )
  assert_close(state.params, other.params, atol=1e-5)


def test_micro_batches_are_augmented_like_the_whole_batch():
  fields = {'model__bn_group_size': 4}
  whole, _ = train_steps(resolve(**fields), 1)
  parts, _ = train_steps(resolve(accumulation_steps=2, **fields), 1)
  assert_close(whole.params, parts.params, atol=1e-4)


def test_augmentation_differs_by_step_and_seed():
  run = resolve()
  other = dataclasses.replace(run.task, seed=1)
  images = {
    np.array(seen(one, step)['image']).tobytes()
    for one, step in (
      (run, 0),
      (run, 1),
      (dataclasses.replace(run, task=other), 0),
    )
  }
  assert len(images) == 3


def test_copies_of_an_image_are_augmented_differently():
  # Of smaller images, some crops would be the same.
  run = resolve(data__repeats=4, data__image_size=16, data__eval_resize=16)
  stored = np.array(batch_of(run)['image']).reshape(4, 16, -1)
  assert (stored == stored[0]).all()
  copies = np.array(seen(run)['image']).reshape(4, 16, -1)
  for i, j in itertools.combinations(range(4), 2):
    assert (copies[i] != copies[j]).any(axis=1).all(), (i, j)


def test_bicubic_interpolation_is_refused_on_the_device():
  with pytest.raises(InputError, match="interpolation='bilinear'"):
    resolve(data__interpolation='bicubic')
