"""Recipes inside the step: on any number of devices, and after a resume."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.data.augment.crop import MIXING, example_keys, step_key
from resnet.errors import InputError
from resnet.training.accumulation import split_batch
from resnet.training.step import gradients, jit_steps, network_rngs
from tests import runs

ALL = {
  'log_every_steps': 1,
  'augment__operations': ('color_jitter', 'erasing'),
  'augment__erase_probability': 0.5,
  'augment__mixup_alpha': 0.2,
  'augment__cutmix_alpha': 1.0,
  'loss__name': 'binary_cross_entropy',
  'loss__label_smoothing': 0.1,
  'loss__target_threshold': 0.2,
  'model__drop_path': 0.3,
  'model__dropout': 0.2,
}
resolve = functools.partial(
  runs.resolve,
  model__bn_group_size=8,
  data__image_size=8,
  data__eval_resize=8,
)


@pytest.fixture(scope='module')
def recipe():
  """A run, its first state, and (state, steps) -> its states and metrics."""
  run = resolve(**ALL)
  assert run.sharding.mesh.size == 8
  step_fn = jit_steps(run.task, run.sharding).train

  def train(state, steps):
    """Returns the states before and after each step, and its metrics."""
    states, seen = [jax.device_get(state)], []
    state = jax.device_put(states[0], run.sharding.replicated)
    for step in steps:
      batch = jax.device_put(run.train_reader(step), run.sharding.batch)
      state, metrics = step_fn(state, batch)
      states.append(jax.device_get(state))
      seen.append(jax.device_get(metrics))
    return states, seen

  return run, run.create_state(), train


def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(recipe):
  _, state, train = recipe
  whole, _ = train(state, range(4))
  half, _ = train(state, range(2))
  resumed, _ = train(half[-1], range(2, 4))
  jax.tree.map(np.testing.assert_array_equal, whole[-1], resumed[-1])


def test_steps_on_eight_devices_equal_their_parts_on_one(recipe):
  """Keys by example erase, those of the step mix and drop paths."""
  run, state, train = recipe
  task = run.task

  @jax.jit
  def by_hand(variables, images, labels, step):
    keys = example_keys(task.seed, step, 64)
    images = task.augmentation(images, keys, mean=task.mean, std=task.std)
    key = step_key(task.seed, step, MIXING)
    mixed = task.augmentation.mixing(images, labels, 10, key)
    logits, _ = task.model.apply(
      variables,
      task.normalize(mixed['image']),
      train=True,
      mutable=['batch_stats'],
      rngs=network_rngs(task, step),
    )
    losses = task.loss_fn(logits, mixed['target'])
    top1 = jnp.argmax(logits, axis=1).astype(jnp.int32) == mixed['label']
    return losses.sum(), top1.sum(), mixed['image']

  states, seen = train(state, range(4))
  for step, metrics in enumerate(seen):
    batch = run.train_reader(step)
    loss, top1, images = by_hand(
      states[step].variables, batch['image'], batch['label'], jnp.int32(step)
    )
    assert float(metrics['loss']) == pytest.approx(float(loss), rel=1e-5)
    assert int(metrics['top1']) == int(top1)
  *_, others = by_hand(
    states[3].variables, batch['image'], batch['label'], jnp.int32(0)
  )
  assert not np.array_equal(images, others)


def test_drop_path_differs_by_step_and_micro_batch():
  run = resolve(
    model__drop_path=0.3, model__bn_group_size=4, accumulation_steps=2
  )
  keys = {
    jax.random.key_data(rngs['dropout']).tobytes()
    for rngs in (
      network_rngs(run.task, jnp.int32(step), part)
      for step in range(2)
      for part in (None, jnp.int32(0), jnp.int32(1))
    )
  }
  assert len(keys) == 6
  parts = split_batch(run.train_reader(0), 2, 4)
  np.testing.assert_array_equal(parts.pop('part'), [0, 1])
  state = run.create_state()
  first = jax.tree.map(lambda x: x[0], parts)

  @jax.jit
  def loss(part):  # Without the gradients, less is compiled.
    batch = {**first, 'part': part}
    return gradients(state, batch, task=run.task)[2]['loss']

  losses = [float(loss(jnp.int32(part))) for part in (0, 0, 1)]
  assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'augment__operations': ('erase',)},
      "'erase' is not an augmentation. Did you mean: erasing",
    ),
    (
      {**ALL, 'loss__target_threshold': 0.5},
      r'0.5 is not in \[0.01, 0.46\).* mixup or cutmix images would have no',
    ),
  ],
)
def test_errors_name_bad_values(fields, message):
  with pytest.raises(InputError, match=message):
    resolve(**fields)
