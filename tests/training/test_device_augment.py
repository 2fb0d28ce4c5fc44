"""Augmentation inside the step: the batch that the network sees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.augment import example_keys
from resnet.errors import InputError
from resnet.training.step import augment, jit_steps


def resolve(**fields):
  config = fake.get_config()
  config.data.augment_on = 'device'
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return experiment.resolve(config)


def batch_of(run, step=0):
  return {
    name: jax.make_array_from_process_local_data(run.sharding.batch, rows)
    for name, rows in run.train_reader(step).items()
  }


def train(run, task=None, step=0):
  steps = jit_steps(task or run.task, run.sharding)
  return steps.train(run.create_state(), batch_of(run, step))


def test_the_step_sees_what_the_augmentation_makes():
  run = resolve(data__crop='random_resized', seed=3)
  batch = batch_of(run)
  stored = run.train_reader.source
  plan = run.train_reader.plan(0)
  for row, record in enumerate(stored.read(plan.indices[:4])):
    np.testing.assert_array_equal(batch['image'][row], record['image'])
  seen = jax.jit(functools.partial(augment, task=run.task))(batch, jnp.int32(0))
  keys = example_keys(3, jnp.int32(0), len(batch['label']))
  expected = jax.jit(run.task.augment)(batch['image'], keys)
  np.testing.assert_array_equal(seen['image'], expected)
  assert (np.array(seen['image']) != np.array(batch['image'])).any()
  plain = dataclasses.replace(run.task, augment=None)
  state, metrics = train(run)
  steps = jit_steps(plain, run.sharding)
  other, others = steps.train(run.create_state(), seen)
  assert float(metrics['loss']) == pytest.approx(
    float(others['loss']), rel=1e-5
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    state.params,
    other.params,
  )


def test_parts_of_a_batch_see_the_same_images():
  whole, _ = train(resolve(model__bn_group_size=4))
  parts, _ = train(resolve(model__bn_group_size=4, accumulation_steps=2))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    whole.params,
    parts.params,
  )


def test_every_step_and_seed_is_augmented_anew():
  run = resolve(data__crop='random_resized')
  batch = batch_of(run)
  images = {
    np.array(
      augment(
        batch, jnp.int32(step), task=dataclasses.replace(run.task, seed=seed)
      )['image']
    ).tobytes()
    for step, seed in ((0, 0), (1, 0), (0, 1))
  }
  assert len(images) == 3


def test_copies_of_an_image_are_augmented_apart():
  run = resolve(data__crop='random_resized', data__repeats=4)
  batch = batch_of(run)
  stored = np.array(batch['image']).reshape(4, 16, -1)
  assert (stored == stored[0]).all()
  keys = jax.random.key_data(example_keys(run.task.seed, jnp.int32(0), 64))
  assert len(np.unique(keys, axis=0)) == 64
  seen = jax.jit(functools.partial(augment, task=run.task))(batch, jnp.int32(0))
  copies = np.array(seen['image']).reshape(4, 16, -1)
  for i in range(4):
    for j in range(i):
      assert (copies[i] != copies[j]).any(axis=1).all(), (i, j)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data__augment_on': 'gpu'}, "'gpu' is none of host, device"),
    (
      {'data__interpolation': 'bicubic', 'data__crop': 'random_resized'},
      "by data.interpolation='bilinear' only",
    ),
  ],
)
def test_bad_values_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    resolve(**fields)
