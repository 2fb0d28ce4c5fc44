"""Recipes inside the step: on any number of devices, and after a resume."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
import numpy as np
import pytest

from configs import fake
from resnet import experiment
from resnet.data.augment import MIXING, example_keys, step_key
from resnet.errors import InputError
from resnet.training.sharding import DataSharding
from resnet.training.step import (
  augment,
  gradients,
  jit_steps,
  network_rngs,
  split_batch,
)

ALL = {
  'log_every_steps': 1,
  'augment__operations': ('randaugment', 'erasing'),
  'augment__num_layers': 1,
  'augment__erase_probability': 0.5,
  'augment__mixup_alpha': 0.2,
  'augment__cutmix_alpha': 1.0,
  'loss__name': 'binary_cross_entropy',
  'loss__label_smoothing': 0.1,
  'loss__target_threshold': 0.2,
  'model__drop_path': 0.3,
  'model__dropout': 0.2,
}


def resolve(**fields):
  config = fake.get_config()
  config.model.bn_group_size = 8
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in fields.items()}
  )
  return experiment.resolve(config)


def on_devices(run, count):
  mesh = Mesh(
    np.array(jax.devices()[:count]), ('data',), axis_types=(AxisType.Auto,)
  )
  return dataclasses.replace(run, sharding=DataSharding(mesh))


def train(run, state, steps):
  """Returns the state after steps, and the sums of each."""
  jitted, seen = jit_steps(run.task, run.sharding), []
  for step in steps:
    batch = jax.device_put(run.train_reader(step), run.sharding.batch)
    state, metrics = jitted.train(state, batch)
    seen.append(jax.device_get(metrics))
  assert jitted.train._cache_size() == 1
  return state, seen


def look(run, step):
  """Returns what the network sees of the batch of a step."""
  batch = jax.device_put(run.train_reader(0), run.sharding.batch)
  see = jax.jit(functools.partial(augment, task=run.task))
  return jax.device_get(see(batch, jnp.int32(step)))


def test_the_network_sees_the_same_on_one_device_and_on_eight():
  """Pixels bit for bit (tests/data/test_policies.py), mixtures nearly."""
  run = resolve(**ALL)
  see = jax.jit(functools.partial(augment, task=run.task))
  batch = run.train_reader(0)
  one, eight = (
    jax.device_put(batch, on_devices(run, count).sharding.batch)
    for count in (1, 8)
  )
  for step in range(6):
    first, second = (
      jax.device_get(see(batch, jnp.int32(step))) for batch in (one, eight)
    )
    for name in ('label', 'target', 'mask'):
      np.testing.assert_array_equal(first[name], second[name])
    np.testing.assert_allclose(first['image'], second['image'], atol=1e-3)


def test_one_device_equals_eight():
  run = resolve(**ALL)
  results = []
  assert run.sharding.mesh.size == 8
  for there in (on_devices(run, 1), run):
    _, seen = train(there, there.create_state(), range(6))
    results.append([float(metrics['loss']) for metrics in seen])
  np.testing.assert_allclose(*results, rtol=1e-5)


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit():
  run = resolve(**ALL)
  whole, _ = train(run, run.create_state(), range(4))
  half, _ = train(run, run.create_state(), range(2))
  half = jax.device_put(jax.device_get(half), run.sharding.replicated)
  resumed, _ = train(run, half, range(2, 4))
  jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_the_step_is_that_of_its_parts():
  """Erased by the example's key, mixed by the step's, loss by the shares."""
  run = resolve(**ALL)
  task, batch, step = run.task, run.train_reader(0), jnp.int32(0)

  @jax.jit
  def parts(variables, images, labels):
    keys = example_keys(task.seed, step, 64)
    images = task.augmentation(images, keys, mean=task.mean, std=task.std)
    key = step_key(task.seed, step, MIXING)
    mixed = task.augmentation.mixing(images, labels, 10, key)
    logits, _ = task.model.apply(
      variables,
      task.normalize(mixed.images),
      train=True,
      mutable=['batch_stats'],
      rngs=network_rngs(task, step),
    )
    losses = task.loss_fn(logits, mixed.targets)
    top1 = jnp.argmax(logits, axis=1).astype(jnp.int32) == mixed.main_labels
    return losses.sum(), top1.sum()

  state = run.create_state()
  loss, top1 = parts(state.variables, batch['image'], batch['label'])
  _, (metrics,) = train(run, state, [0])
  assert float(metrics['loss']) == pytest.approx(float(loss), rel=1e-4)
  assert int(metrics['top1']) == int(top1)


def test_another_step_is_augmented_anew():
  run = resolve(**ALL)
  first, second = look(run, 0), look(run, 1)
  assert not np.array_equal(first['image'], second['image'])


def test_parts_and_steps_drop_different_paths():
  run = resolve(model__drop_path=0.3)
  keys = {
    jax.random.key_data(rngs['dropout']).tobytes()
    for rngs in (
      network_rngs(run.task, jnp.int32(step), part)
      for step in range(2)
      for part in (None, jnp.int32(0), jnp.int32(1))
    )
  }
  assert len(keys) == 6


def test_each_part_of_a_batch_drops_paths_of_its_own():
  run = resolve(
    model__drop_path=0.3, model__bn_group_size=4, accumulation_steps=2
  )
  parts = split_batch(run.train_reader(0), run.task)
  np.testing.assert_array_equal(parts.pop('part'), [0, 1])
  state = run.create_state()
  first = jax.tree.map(lambda x: x[0], parts)
  find = jax.jit(functools.partial(gradients, task=run.task))
  losses = [
    float(find(state, {**first, 'part': jnp.int32(part)})[2]['loss'])
    for part in (0, 0, 1)
  ]
  assert losses[0] == losses[1] != losses[2]


def test_without_a_recipe_the_batch_is_as_it_was():
  run = resolve()
  seen = look(run, 0)
  assert seen.keys() == run.train_reader(0).keys()
  assert seen['image'].dtype == np.uint8


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'augment__operations': ('erase',)},
      "'erase', which there is not. Did you mean: erasing",
    ),
    ({'augment__operations': ('erasing', 'erasing')}, 'must be last'),
    (
      {'augment__operations': ('erasing', 'randaugment')},
      r'must be last: .*operations=.\(.randaugment., .erasing.\)',
    ),
    ({'augment__operations': ('randaugmet',)}, 'Did you mean: randaugment'),
    (
      {'augment__jitter': (0.4, 0.3)},
      r'jitter=\(0.4, 0.3\) is not 4 numbers \(brightness, contrast,'
      r' saturation, hue\): type '
      r"--config.augment.jitter='\(0.4, 0.4, 0.4, 0.0\)'",
    ),
    ({'augment__magnitude': 40}, r'magnitude=40 is not in 0 \.\. 30'),
    (
      {'augment__erase_area': (0.1,)},
      r"is not 2 numbers: type --config.augment.erase_area='\(0.02, 0.33\)'",
    ),
    ({'loss__target_threshold': 0.5}, 'mean nothing'),
    (
      {'loss__name': 'binary_cross_entropy', 'loss__target_threshold': 1.5},
      r'threshold=1.5 is not in \[0, 1\)',
    ),
    (
      {**ALL, 'loss__target_threshold': 0.5},
      r'0.5 is not in \[0.01, 0.46\).* mixup or cutmix images would have no',
    ),
    (
      {
        'loss__name': 'binary_cross_entropy',
        'loss__label_smoothing': 0.5,
        'loss__target_threshold': 0.01,
      },
      r'0.01 is not in \[0.05, 0.55\)',
    ),
  ],
)
def test_bad_values_are_named(fields, message):
  with pytest.raises(InputError, match=message):
    resolve(**fields)
