"""Networks with folded batch norms compute the same as without."""

import functools

from flax import linen as nn
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.inference.folding import fold
from resnet.inference.network import Weights, create_network
from resnet.models import create_model, list_models
from resnet.models.layers import BatchNorm
from tests.networks import draw_variables, with_metadata

# Each network in small; the first name of those that are then the same.
SMALL = {'num_classes': 5, 'stage_sizes': (1, 1), 'num_filters': 16}
NAMES = tuple(
  {
    str(create_model(name, **SMALL)): name for name in reversed(list_models())
  }.values()
)
# One network of each kind of block, stem and shortcut.
KINDS = (
  *('resnet18', 'resnet50', 'resnet18d', 'resnetrs50', 'resnetblur18'),
  *('preact_resnet50', 'cifar_resnet8', 'cifar_preact_resnet110'),
  *('cifar_plain20', 'cifar_resnet1202', 'lecture_resnet50'),
)
SIZE = 32


def find_pairs(model, variables):
  """Returns {batch norm: convolution that computes its input}, as paths."""
  convolutions, pairs = [], {}

  def intercept(function, args, kwargs, context):
    y = function(*args, **kwargs)
    module = context.module
    if isinstance(module, BatchNorm):
      for output, path in convolutions:
        if output is args[0]:
          pairs[module.path] = path
    elif isinstance(module, nn.Conv):
      convolutions.append((y, module.path))
    return y

  images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
  if hasattr(model, 'scan_blocks'):
    model = model.clone(scan_blocks=False)
  with nn.intercept_methods(intercept):
    apply = functools.partial(model.apply, train=False)
    jax.eval_shape(apply, variables, images)
  return pairs


def make_network(name):
  """Returns a module and variables with batch norms of all signs and sizes."""
  fields = SMALL
  if getattr(create_model(name), 'scan_blocks', False):
    fields = {**SMALL, 'stage_sizes': (3,)}  # A loop over two blocks.
  model, variables = draw_variables(name, size=SIZE, **fields)
  rng = np.random.default_rng(1)
  flat = traverse_util.flatten_dict(variables)
  for norm, conv in find_pairs(model, variables).items():
    scale = flat['params', *norm, 'scale']
    scale *= rng.choice([-1, 1], scale.shape).astype(np.float32)
    # Channels from almost dead ones, with variances below epsilon, upwards.
    size = 10 ** rng.uniform(-4, 1, scale.shape).astype(np.float32)
    flat['params', *conv, 'kernel'] *= size
    flat['batch_stats', *norm, 'mean'] *= size
    flat['batch_stats', *norm, 'var'] *= np.square(size)
  return model, traverse_util.unflatten_dict(flat)


def make_images(dtype=np.float32):
  rng = np.random.default_rng(2)
  if dtype is np.uint8:
    return rng.integers(0, 256, (3, SIZE, SIZE, 3), np.uint8)
  return rng.standard_normal((3, SIZE, SIZE, 3), np.float32)


def logits_of(model, variables):
  apply = jax.jit(functools.partial(model.apply, train=False))
  return np.asarray(apply(variables, make_images()))


def assert_close(actual, expected, limit):
  scale = np.abs(expected).max()
  assert scale > 0
  np.testing.assert_allclose(actual, expected, rtol=0, atol=limit * scale)


@pytest.mark.parametrize('name', NAMES)
def test_exactly_the_batch_norms_that_follow_a_convolution_are_folded(name):
  model, variables = make_network(name)
  flat = traverse_util.flatten_dict(variables)
  folded = traverse_util.flatten_dict(fold(model, variables))
  pairs = find_pairs(model, variables)
  assert bool(pairs) == (name != 'lecture_resnet50')
  left = {path[1:-1] for path in flat if path[-1] == 'var'} - pairs.keys()
  # The others are those that follow an addition.
  is_v2 = 'preact' in name or 'wrn' in name
  assert {norm[-1] for norm in left} == ({'bn1', 'head_bn'} if is_v2 else set())
  assert {path[1:-1] for path in folded if path[-1] == 'offset'} == {*pairs}
  assert {path[1:-1] for path in folded if path[-1] in ('scale', 'var')} == left
  assert {leaf.dtype for leaf in folded.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in NAMES
  ],
)
def test_folding_keeps_the_logits(name):
  model, variables = make_network(name)
  before = jax.tree.map(np.copy, variables)
  folded = logits_of(model, fold(model, variables))
  assert_close(folded, logits_of(model, variables), 1e-5)
  jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_folding_keeps_the_accuracy_of_bfloat16():
  model, variables = make_network('cifar_resnet8')
  expected = logits_of(model, variables)
  model = model.clone(dtype=jnp.bfloat16)
  errors = [
    np.abs(logits_of(model, x) - expected).max() / np.abs(expected).max()
    for x in (variables, fold(model, variables))
  ]
  assert 1e-4 < max(errors) < 0.03, errors


@pytest.mark.parametrize('name', ['cifar_resnet8', 'preact_resnet18'])
def test_a_network_is_folded_and_all_its_outputs_are_the_same(
  name, monkeypatch
):
  outputs = 'logits', 'stem', 'stage1', 'pooled', 'cam', 'gradcam_stage1'
  weights = with_metadata(name, *make_network(name), size=SIZE)
  results, divisions = [], []
  for folded in (True, False):
    if not folded:
      monkeypatch.setattr(Weights, 'folded', lambda self: self)
    program = create_network(weights).compile(3, outputs)
    results.append(program(make_images(np.uint8)))
    divisions.append(program.func.as_text().count(' rsqrt('))
  for output, actual in results[0].items():
    assert_close(actual, np.asarray(results[1][output]), 1e-5)
  assert divisions[0] < divisions[1]
  assert divisions[0] == 0 or name == 'preact_resnet18'
