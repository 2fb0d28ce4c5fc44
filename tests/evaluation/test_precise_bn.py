"""Recomputed batch statistics against NumPy."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.evaluation import precise_bn
from tests.runs import resolve, tiny

pytestmark = pytest.mark.filterwarnings(
  'ignore:.*load_module:DeprecationWarning'
)


def inputs_of_norms(run, variables, images, group):
  """What each batch norm sees, [N, H, W, C], by the name of its convolution.

  The images are normalised in groups, one after the other.
  """
  model = run.task.model.clone(bn_group_size=None)

  @jax.jit
  def apply(images):
    _, captured = model.apply(
      variables,
      run.task.normalize(images),
      train=True,
      capture_intermediates=lambda module, _: isinstance(module, nn.Conv),
      mutable=['intermediates', 'batch_stats'],
    )
    return captured['intermediates']

  parts = [apply(images[i : i + group]) for i in range(0, len(images), group)]
  joined = jax.tree.map(lambda *x: np.concatenate(x).astype(np.float64), *parts)
  return {
    '/'.join(key.key for key in path[:-2]): x
    for path, x in jax.tree_util.tree_leaves_with_path(joined)
  }


def statistics(variables):
  """(mean, var) by the name of the convolution before each norm."""
  return {
    '/'.join(k.key for k in path).replace('bn', 'conv'): (x['mean'], x['var'])
    for path, x in jax.tree_util.tree_leaves_with_path(
      variables['batch_stats'], is_leaf=lambda node: 'mean' in node
    )
  }


@pytest.mark.parametrize(
  ('changes', 'group'),
  [
    ({'model__bn_group_size': 8}, 8),
    # Without groups, those of a micro-batch are normalised together.
    ({'accumulation_steps': 2, 'sharding__fsdp': 4}, 32),
  ],
)
def test_statistics_are_those_of_all_images_normalised_in_groups(
  changes, group
):
  run = tiny(**changes)
  assert run.sharding.mesh.size == 8
  variables = run.create_state().variables
  found = statistics(precise_bn.recompute(run, variables, 100))
  # 100 images are two batches of 64.
  batches = [run.train_reader(i)['image'] for i in range(2)]
  assert not np.array_equal(*batches)
  # Parts take rows in turn, unless groups are to stay together.
  parts = run.task.accumulation_steps
  images = np.concatenate(
    [batch[part::parts] for batch in batches for part in range(parts)]
  )
  expected = inputs_of_norms(run, variables, images, group)
  assert set(found) == set(expected) and len(found) == 3
  for name, x in expected.items():
    mean, var = found[name]
    deviation = x.std(axis=(0, 1, 2))
    np.testing.assert_allclose(
      mean, x.mean(axis=(0, 1, 2)), atol=1e-4 * deviation.max(), err_msg=name
    )
    np.testing.assert_allclose(var, deviation**2, rtol=1e-3, err_msg=name)
  # In other groups they would be others.
  others = inputs_of_norms(run, variables, images, 128)
  name = 'stage1_block1/conv2'
  assert not np.allclose(
    found[name][1], others[name].var(axis=(0, 1, 2)), rtol=1e-3
  )


def test_frozen_norms_keep_their_statistics_and_others_do_not():
  run = tiny(stage_sizes=(1, 1), model__frozen_stages=1)
  variables = run.create_state().variables
  key = jax.random.key(0)
  kept = jax.tree.map(
    lambda x: jax.random.uniform(key, x.shape, x.dtype, 0.5, 2.0),
    variables['batch_stats'],
  )
  variables = {**variables, 'batch_stats': kept}
  new = precise_bn.recompute(run, variables, 64)['batch_stats']
  for name, stats in new.items():
    is_frozen = name.startswith(('stem', 'stage1'))
    same = jax.tree.map(
      lambda a, b: np.allclose(a, b, rtol=1e-6), stats, kept[name]
    )
    assert all(map(is_frozen.__eq__, jax.tree.leaves(same))), name
  for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(kept), strict=True):
    assert a.dtype == jnp.float32 and a.sharding == b.sharding


def test_too_many_images_and_networks_without_batch_norms_are_refused():
  with pytest.raises(InputError, match=r'513 is not in 1 \.\. 512'):
    precise_bn.check(tiny(), 513)
  for run in (
    tiny(model__frozen_bn=True),
    resolve(model__name='lecture_resnet50'),
  ):
    with pytest.raises(InputError, match='has no batch norms'):
      precise_bn.check(run, 64)


def test_images_have_the_last_size_of_the_run():
  run = tiny(
    data__image_size=16,
    data__eval_resize=16,
    data__crop='random_resized',
    data__size_schedule=((0.0, 8), (1.0, 16)),
    model__bn_group_size=8,
  )
  variables = run.create_state().variables
  found, last, first = (
    jax.tree.leaves(precise_bn.recompute(each, variables, 64)['batch_stats'])
    for each in (run, run.at_last_size(), run.at(0))
  )
  jax.tree.map(np.testing.assert_array_equal, found, last)
  assert any((x != y).any() for x, y in zip(found, first, strict=True))
