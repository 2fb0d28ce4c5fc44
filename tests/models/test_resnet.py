"""Networks against the papers' tables: parameters, layers, names, gradients."""

import collections
import functools
import re

from flax.traverse_util import flatten_dict
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.models import abstract_variables, create_model, list_models
from resnet.training.sharding import create_sharding

_FLOAT32, _BFLOAT16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)


@functools.cache
def _abstract(name, **overrides):
  """Returns a network, an image and variables of it, as shapes."""
  model = create_model(name, **overrides)
  size = 32 if name.startswith('cifar') else 224
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return model, images, abstract_variables(model)


def _train(model, variables, images):
  return model.apply(variables, images, train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('name', list_models())
def test_the_depth_in_the_name_is_the_number_of_layers(name):
  _, _, variables = _abstract(name)
  paths = flatten_dict(variables['params'], sep='/')
  kernels = [n for n in paths if n.endswith('/kernel')]
  depth = len([n for n in kernels if not re.search('shortcut|/se_', n)])
  # The deep stem counts as one; WRN counts two of its three projections, and
  # the lecture does not count the convolutions between its stages.
  depth += {'wrn28_10': 2, 'lecture_resnet50': -4}.get(name, 0)
  depth -= len([name for name in kernels if re.match(r'stem_conv[2-9]', name)])
  assert re.search(r'\d+', name).group() == str(depth)


@pytest.mark.parametrize(
  ('name', 'overrides', 'message'),
  [
    ('resnet5', {}, r"'resnet5'.*Did you mean: .*resnet50"),
    ('resnet50', {'num_class': 3}, r"'num_class'.*num_classes"),
    ('lecture_resnet50', {'shortcut': 'A'}, "has no 'shortcut'"),
    ('resnet50', {'shortcut': 'E'}, "'E' is not one of A, B, C, D, none"),
  ],
)
def test_errors_for_unknown_names_list_the_known_ones(name, overrides, message):
  with pytest.raises(InputError, match=message):
    create_model(name, **overrides)


def _num_params(name):
  _, _, variables = _abstract(name)
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    # torchvision.models.resnet, `num_params` of the weights.
    ('resnet18', 11_689_512),
    ('resnet34', 21_797_672),
    ('resnet50', 25_557_032),
    ('resnet101', 44_549_160),
    ('resnet152', 60_192_808),
    ('resnext50_32x4d', 25_028_904),
    ('resnext101_32x8d', 88_791_336),
    ('wide_resnet50_2', 68_883_240),
    ('wide_resnet101_2', 126_886_696),
    # timm, resnet.py and resnetv2.py.
    ('resnet200', 64_673_832),
    ('resnet18d', 11_708_744),
    ('resnet34d', 21_816_904),
    ('resnet50d', 25_576_264),
    ('resnet101d', 44_568_392),
    ('resnet152d', 60_212_040),
    ('seresnet50', 28_088_024),
    ('resnetrs50', 35_691_912),
    ('preact_resnet50', 25_549_352),
    ('preact_resnet101', 44_541_480),
    ('preact_resnet152', 60_185_128),
    # Those of the residual nets without their projections, by hand: 64 x 128 +
    # 128 x 256 + 256 x 512 weights, and 2 x (128 + 256 + 512) of batch norm.
    ('plain18', 11_689_512 - 172_032 - 1_792),
    ('plain34', 21_797_672 - 172_032 - 1_792),
  ],
)
def test_number_of_parameters(name, count):
  assert _num_params(name) == count


@pytest.mark.parametrize(
  ('name', 'millions'),
  [
    # He et al. 2016, Table 6.
    ('cifar_resnet20', '0.27'),
    ('cifar_resnet32', '0.46'),
    ('cifar_resnet44', '0.66'),
    ('cifar_resnet56', '0.85'),
    ('cifar_resnet110', '1.7'),
    ('cifar_resnet1202', '19.4'),
    # He et al. 2016, "Identity mappings", Table 4.
    ('cifar_preact_resnet110', '1.7'),
    ('cifar_preact_resnet164', '1.7'),
    # Zagoruyko and Komodakis 2016, Table 4.
    ('wrn28_10', '36.5'),
  ],
)
def test_number_of_parameters_for_cifar(name, millions):
  digits = len(millions.partition('.')[2])
  assert f'{_num_params(name) / 1e6:.{digits}f}' == millions


def test_number_of_kernel_weights_of_1001_layers():
  """ "Identity mappings", Table 4: 10.2 million, without batch norm."""
  _, _, variables = _abstract('cifar_preact_resnet1001')
  paths = flatten_dict(variables['params'], sep='/')
  kernels = sum(p.size for n, p in paths.items() if n.endswith('kernel'))
  assert round(kernels / 1e6, 1) == 10.2


@pytest.mark.parametrize(
  ('name', 'num_convs'), [('resnet50d', 55), ('preact_resnet50', 53)]
)
def test_bfloat16_applies_only_to_the_computation(name, num_convs):
  model, images, variables = _abstract(name, dtype=jnp.bfloat16)
  train = functools.partial(_train, model)
  jaxpr, outputs = jax.make_jaxpr(train, return_shape=True)(variables, images)
  leaves = jax.tree.leaves((variables, outputs))  # With logits, statistics.
  assert {leaf.dtype for leaf in leaves} == {_FLOAT32}
  primitives = ('conv_general_dilated', 'dot_general')  # The head's is 2D.
  convs = [
    e
    for e in jaxpr.eqns
    if e.primitive.name in primitives and e.invars[0].aval.ndim == 4
  ]
  assert len(convs) == num_convs
  operands = [v for e in convs for v in (*e.invars, *e.outvars)]
  assert {v.aval.dtype for v in operands} == {_BFLOAT16}
  apply = functools.partial(model.apply, train=False, method='features')
  features = jax.eval_shape(apply, variables, images)
  assert features.pop('pooled').dtype == _FLOAT32
  assert {leaf.dtype for leaf in features.values()} == {_BFLOAT16}


# What shows in a traced program that a field has had its effect.
_TRACES = {'scan_blocks': 'scan[', 'remat': 'prevent_cse'}


@pytest.mark.parametrize(
  ('name', 'stage_sizes', 'changes'),
  [
    ('cifar_resnet8', (3,), {'scan_blocks': True}),
    ('cifar_resnet8', (2,), {'remat': True}),
    ('cifar_preact_resnet164', (3,), {'scan_blocks': True, 'remat': True}),
  ],
)
def test_scan_and_remat_give_the_same_gradients(name, stage_sizes, changes):
  create = functools.partial(create_model, name, stage_sizes=stage_sizes)
  rng = np.random.default_rng(1)
  images = rng.standard_normal((4, 8, 8, 3), np.float32)
  variables = jax.tree.map(
    lambda leaf: rng.standard_normal(leaf.shape, np.float32),
    _abstract(name, stage_sizes=stage_sizes)[2],
  )

  def step(model):
    def loss(params):
      logits, updates = _train(model, {**variables, 'params': params}, images)
      return jnp.sum(jnp.square(logits)), updates

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    jaxpr = str(jax.make_jaxpr(value_and_grad)(variables['params']))
    found = {field for field, text in _TRACES.items() if text in jaxpr}
    return jax.jit(value_and_grad)(variables['params']), found

  plain, of_plain = step(create())
  changed, of_changed = step(create(**changes))
  assert of_plain == set() and of_changed == set(changes)
  assert jax.tree.structure(plain) == jax.tree.structure(changed)
  for (path, expected), actual in zip(
    jax.tree.leaves_with_path(plain), jax.tree.leaves(changed), strict=True
  ):
    scale = np.max(np.abs(expected))
    assert np.isfinite(scale) and scale > 0, path  # Each has a gradient.
    np.testing.assert_allclose(
      actual, expected, rtol=0, atol=1e-5 * scale, err_msg=str(path)
    )


_COLLECTIVE = re.compile(
  r' (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)'
  r'(?:-start)?\('
)


def _collectives(group_size):
  """Counts the collectives of a gradient of the images on eight devices.

  16 images are two for each device. The images, and so their gradients, stay
  where they are: only statistics can need a collective there.
  """
  _, _, variables = _abstract('cifar_resnet8')
  model = create_model('cifar_resnet8', bn_group_size=group_size)
  images = jax.ShapeDtypeStruct((16, 8, 8, 3), jnp.float32)

  def loss(images, variables):
    logits, updates = _train(model, variables, images)
    return jnp.sum(jnp.square(logits)), updates

  def images_grad(images, variables):
    return jax.grad(loss, has_aux=True)(images, variables)[0]

  sharding = create_sharding()
  gradient = jax.jit(
    images_grad,
    in_shardings=(sharding.batch, sharding.replicated),
    out_shardings=sharding.batch,
  )
  hlo = gradient.lower(images, variables).compile().as_text()
  assert 'num_partitions=8' in hlo
  return collections.Counter(_COLLECTIVE.findall(hlo))


def test_group_statistics_need_no_collective():
  assert not _collectives(group_size=2)
  # Of the whole batch, each layer needs one in each direction.
  assert _collectives(group_size=None)['all-reduce'] >= 2 * 7
