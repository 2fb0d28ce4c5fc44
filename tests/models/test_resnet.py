"""Networks against the papers' tables: parameters, arithmetic, names, steps."""

import collections
import functools
import math
import re

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.errors import InputError
from resnet.models import create_model, list_models, shortcuts
from resnet.training.sharding import create_sharding

_IMAGENET = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152')
_V1 = ('resnet50_v1', 'resnet101_v1', 'resnet152_v1')
_CIFAR = tuple(f'cifar_resnet{n}' for n in (20, 32, 44, 56, 110, 1202))
_FLOAT32, _BFLOAT16 = jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)


def _abstract_images(name, batch_size=1):
  size = 32 if name.startswith('cifar') else 224
  return jax.ShapeDtypeStruct((batch_size, size, size, 3), jnp.float32)


def _abstract_variables(model, images):
  """Shapes and dtypes; no initialiser runs."""
  init = functools.partial(model.init, train=False)
  return jax.eval_shape(init, jax.random.key(0), images)


@functools.cache
def _abstract(name, **overrides):
  """Returns a network, an image and variables of it, as shapes."""
  model, images = create_model(name, **overrides), _abstract_images(name)
  return model, images, _abstract_variables(model, images)


def _new_variables(model, images):
  """As `init` makes them, but by NumPy: nothing to compile."""
  rng = np.random.default_rng(0)

  def fill(path, leaf):
    if path[-1].key != 'kernel':
      return np.full(leaf.shape, path[-1].key in ('scale', 'var'), np.float32)
    *size, _, filters = leaf.shape
    std = math.sqrt(2 / (math.prod(size) * filters)) if size else 0.01
    return rng.standard_normal(leaf.shape, np.float32) * np.float32(std)

  variables = _abstract_variables(model, images)
  return jax.tree_util.tree_map_with_path(fill, variables)


def _images(*shape):
  return np.random.default_rng(1).standard_normal(shape, np.float32)


def _paths(tree):
  """{'stage1_block1/conv1/kernel': leaf, ...}"""
  leaves = jax.tree.leaves_with_path(tree)
  return {'/'.join(k.key for k in path): leaf for path, leaf in leaves}


def _tiny(**overrides):
  """Two bottlenecks of an ImageNet net, the second one strided."""
  return create_model(
    'resnet50', stage_sizes=(1, 1), num_filters=8, **overrides
  )


def _train(model, variables, images):
  return model.apply(variables, images, train=True, mutable=['batch_stats'])


@pytest.mark.parametrize('name', list_models())
def test_the_name_counts_the_layers_with_weights(name):
  _, _, variables = _abstract(name)
  kernels = [n for n in _paths(variables['params']) if n.endswith('/kernel')]
  depth = len([n for n in kernels if not re.search('shortcut|/se_', n)])
  # The deep stem counts as one; WRN counts two of its three projections, and
  # the lecture does not count the convolutions between its stages.
  depth += {'wrn28_10': 2, 'lecture_resnet50': -4}.get(name, 0)
  depth -= len([name for name in kernels if re.match(r'stem_conv[2-9]', name)])
  assert re.search(r'\d+', name).group() == str(depth)


def test_all_networks_are_listed():
  depths = (18, 34, 50, 101, 152)
  assert set(list_models()) >= {
    *(f'{kind}resnet{d}' for kind in ('', 'preact_') for d in (*depths, 200)),
    *(f'resnet{d}d' for d in depths),
    *(f'resnet{d}_v1' for d in (50, 101, 152)),
    *('resnext50_32x4d', 'resnext101_32x8d', 'seresnet50', 'wrn28_10'),
    'resnetrs50',
    *('wide_resnet50_2', 'wide_resnet101_2', 'lecture_resnet50'),
    *('plain18', 'plain34'),
    *(f'cifar_plain{d}' for d in (20, 32, 44, 56, 110)),
    *(f'cifar_preact_resnet{d}' for d in (110, 164, 1001)),
    *_CIFAR,
  }


def test_an_unknown_name_lists_the_nearest():
  with pytest.raises(InputError, match=r"'resnet5'.*Did you mean: .*resnet50"):
    create_model('resnet5')


def test_an_unknown_attribute_lists_the_nearest():
  with pytest.raises(InputError, match=r"'num_class'.*num_classes"):
    create_model('resnet50', num_class=3)
  with pytest.raises(InputError, match="lecture_resnet50 has no 'shortcut'"):
    create_model('lecture_resnet50', shortcut='A')


def test_an_unknown_shortcut_lists_them_all():
  with pytest.raises(InputError, match="'E' is none of A, B, C, D, none"):
    create_model('resnet50', shortcut='E')


def _num_params(name, **overrides):
  _, _, variables = _abstract(name, **overrides)
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    # torchvision.models.resnet, `num_params` of the weights; the place of a
    # stride changes no kernel.
    ('resnet18', 11_689_512),
    ('resnet34', 21_797_672),
    ('resnet50', 25_557_032),
    ('resnet50_v1', 25_557_032),
    ('resnet101', 44_549_160),
    ('resnet101_v1', 44_549_160),
    ('resnet152', 60_192_808),
    ('resnet152_v1', 60_192_808),
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
  ('name', 'count', 'millions'),
  [
    # Millions: He et al. 2016, Table 6.
    ('cifar_resnet20', 269_722, '0.27'),
    ('cifar_resnet32', 464_154, '0.46'),
    ('cifar_resnet44', 658_586, '0.66'),
    ('cifar_resnet56', 853_018, '0.85'),
    ('cifar_resnet110', 1_727_962, '1.7'),
    ('cifar_resnet1202', 19_421_274, '19.4'),
    # He et al. 2016, "Identity mappings", Table 4.
    ('cifar_preact_resnet110', 1_727_962, '1.7'),
    ('cifar_preact_resnet164', 1_703_258, '1.7'),
    # Zagoruyko and Komodakis 2016, Table 4.
    ('wrn28_10', 36_479_194, '36.5'),
  ],
)
def test_number_of_parameters_for_cifar(name, count, millions):
  assert _num_params(name) == count
  assert str(round(count / 1e6, len(millions.split('.')[1]))) == millions


def test_the_paper_counts_the_kernels_of_1001_layers():
  """ "Identity mappings", Table 4: 10.2 million, without batch norm."""
  _, _, variables = _abstract('cifar_preact_resnet1001')
  paths = _paths(variables['params'])
  kernels = sum(p.size for n, p in paths.items() if n.endswith('kernel'))
  assert round(kernels / 1e6, 1) == 10.2


@pytest.mark.parametrize(
  ('plain', 'residual'),
  [
    *((f'plain{d}', f'resnet{d}') for d in (18, 34)),
    *((f'cifar_plain{d}', f'cifar_resnet{d}') for d in (20, 32, 44, 56, 110)),
  ],
)
def test_option_a_has_the_tree_of_the_plain_net(plain, residual):
  shapes = [
    {path: leaf.shape for path, leaf in _paths(variables).items()}
    for _, _, variables in (
      _abstract(plain),
      _abstract(residual, shortcut='A'),
    )
  ]
  assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
  ('plain', 'residual', 'num_blocks'),
  [('plain34', 'resnet34', 16), ('cifar_plain20', 'cifar_resnet20', 9)],
)
def test_a_plain_net_differs_by_the_additions_and_their_shortcuts(
  plain, residual, num_blocks
):
  """Of option A: what pads and strides in the shortcuts, and a sum a block."""

  def operations(name, **overrides):
    model, images, variables = _abstract(name, **overrides)
    apply = functools.partial(model.apply, train=False)
    return collections.Counter(
      _primitives(jax.make_jaxpr(apply)(variables, images).jaxpr)
    )

  with_shortcuts = operations(residual, shortcut='A')
  without = operations(plain)
  assert not without - with_shortcuts
  more = with_shortcuts - without
  num_shape_changes = len(_abstract(plain)[0].stage_sizes) - 1
  assert more.pop('add') == num_blocks
  assert more.pop('pad') == num_shape_changes
  assert more.pop('slice') == num_shape_changes
  # jnp.pad makes its zero anew.
  assert set(more) <= {'convert_element_type', 'broadcast_in_dim'}


def _primitives(jaxpr):
  for eqn in jaxpr.eqns:
    inner = list(core.jaxprs_in_params(eqn.params))
    for inner_jaxpr in inner:
      yield from _primitives(inner_jaxpr)
    if not inner:
      yield eqn.primitive.name


def test_a_plain_net_is_the_residual_net_whose_shortcuts_are_zero():
  """Numerically: with the same weights, block by block, relu(F(x))."""
  images = _images(2, 32, 32, 3)
  plain = create_model('cifar_plain20', stage_sizes=(2, 1), num_filters=8)
  variables = _new_variables(plain, images)
  zero = create_model('cifar_resnet20', stage_sizes=(2, 1), num_filters=8)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(shortcuts.SHORTCUTS, 'A', _zero_shortcut)
    expected = zero.apply(variables, images, train=False)
  actual = plain.apply(variables, images, train=False)
  np.testing.assert_array_equal(actual, expected)
  assert np.max(np.abs(actual - _apply_twin(variables, images))) > 1e-3


def _zero_shortcut(x, _, filters, strides, **__):
  return jnp.zeros((*x[:, ::strides, ::strides].shape[:3], filters))


def _apply_twin(variables, images):
  twin = create_model('cifar_resnet20', stage_sizes=(2, 1), num_filters=8)
  return np.asarray(twin.apply(variables, images, train=False))


@pytest.mark.parametrize(
  ('name', 'overrides'),
  [
    ('cifar_resnet20', {'stage_sizes': (3, 2, 1)}),
    ('cifar_preact_resnet164', {'stage_sizes': (3, 1)}),
  ],
)
def test_scanned_blocks_are_the_same_network(name, overrides):
  images = _images(4, 16, 16, 3)
  model, scanned = (
    create_model(name, scan_blocks=scan, **overrides) for scan in (False, True)
  )
  variables = _new_variables(model, images)
  assert jax.tree.map(np.shape, variables) == jax.tree.map(
    np.shape, _abstract_variables(scanned, images)
  )

  def step(model):
    @jax.jit
    def run(params):
      def loss(params):
        logits, updates = _train(model, {**variables, 'params': params}, images)
        return jnp.sum(jnp.square(logits)), (logits, updates)

      return jax.grad(loss, has_aux=True)(params)

    return run(variables['params'])

  for (path, expected), actual in zip(
    jax.tree.leaves_with_path(step(model)),
    jax.tree.leaves(step(scanned)),
    strict=True,
  ):
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(
      actual, expected, rtol=0, atol=1e-5 * scale, err_msg=str(path)
    )


def test_nets_of_a_thousand_layers_are_scanned():
  assert create_model('cifar_resnet1202').scan_blocks
  assert create_model('cifar_preact_resnet1001').scan_blocks
  assert not create_model('cifar_resnet110').scan_blocks


def test_names_and_shapes_of_the_variables():
  _, _, variables = _abstract('resnet50')
  params = variables['params']
  blocks = {
    f'stage{i}_block{j}'
    for i, num_blocks in enumerate((3, 4, 6, 3), start=1)
    for j in range(1, num_blocks + 1)
  }
  assert set(params) == {'stem_conv', 'stem_bn', 'head'} | blocks
  inner = {'conv1', 'bn1', 'conv2', 'bn2', 'conv3', 'bn3'}
  for name in blocks:
    first = name.endswith('block1')
    assert set(params[name]) == inner | (
      {'shortcut_conv', 'shortcut_bn'} if first else set()
    )
  expected = {
    'stem_conv/kernel': (7, 7, 3, 64),
    'stem_bn/scale': (64,),
    'stem_bn/bias': (64,),
    'stage2_block1/conv1/kernel': (1, 1, 256, 128),
    'stage2_block1/conv2/kernel': (3, 3, 128, 128),
    'stage2_block1/conv3/kernel': (1, 1, 128, 512),
    'stage2_block1/shortcut_conv/kernel': (1, 1, 256, 512),
    'head/kernel': (2048, 1000),
    'head/bias': (1000,),
  }
  paths = _paths(params)
  assert expected == {name: paths[name].shape for name in expected}
  scales = {n: p.shape for n, p in paths.items() if n.endswith('scale')}
  stats = {n: s.shape for n, s in _paths(variables['batch_stats']).items()}
  assert stats == {
    name.replace('scale', new): shape
    for name, shape in scales.items()
    for new in ('mean', 'var')
  }


@pytest.mark.parametrize('name', list_models())
def test_every_tree_has_the_names_of_the_contract(name):
  _, _, variables = _abstract(name)
  outer = r'stem_(conv|bn)[1-4]?|stage\d_block\d+|head|head_bn'
  inner = r'(conv|bn)[1-3]|shortcut_(conv|bn)|se_(reduce|expand)'
  if name == 'lecture_resnet50':
    outer, inner = r'stem_conv|stage\d_(conv|block\d)|head', r'conv[1-3]'
  leaves = {
    'params': {'conv': {'kernel'}, 'bn': {'scale', 'bias'}},
    'batch_stats': {'bn': {'mean', 'var'}},
  }
  dense = {'kernel', 'bias'}
  for part, kinds in leaves.items():
    for path in _paths(variables.get(part, {})):
      module, *rest, leaf = path.split('/')
      assert re.fullmatch(outer, module), path
      assert all(re.fullmatch(inner, name) for name in rest), path
      kind = 'conv' if 'conv' in (rest or [module])[-1] else 'bn'
      is_dense = module == 'head' or 'se_' in path or name == 'lecture_resnet50'
      assert leaf in (dense if is_dense else kinds[kind]), path


@pytest.mark.parametrize(
  ('name', 'num_convs'),
  [
    ('resnet50', 53),
    ('resnet50d', 55),
    ('preact_resnet50', 53),
    ('cifar_resnet20', 19),
  ],
)
def test_bfloat16_is_for_the_computation_only(name, num_convs):
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


@pytest.mark.parametrize(
  ('name', 'shapes'),
  [
    (
      'resnet50',
      {
        'stem': (1, 112, 112, 64),
        'stage1': (1, 56, 56, 256),
        'stage2': (1, 28, 28, 512),
        'stage3': (1, 14, 14, 1024),
        'stage4': (1, 7, 7, 2048),
        'pooled': (1, 2048),
      },
    ),
    (
      'cifar_resnet56',
      {
        'stem': (1, 32, 32, 16),
        'stage1': (1, 32, 32, 16),
        'stage2': (1, 16, 16, 32),
        'stage3': (1, 8, 8, 64),
        'pooled': (1, 64),
      },
    ),
  ],
)
def test_shapes_of_the_features(name, shapes):
  model, images, variables = _abstract(name, dtype=jnp.bfloat16)
  features = jax.eval_shape(
    functools.partial(model.apply, train=False, method='features'),
    variables,
    images,
  )
  assert {key: value.shape for key, value in features.items()} == shapes
  assert features.pop('pooled').dtype == _FLOAT32
  assert {f.dtype for f in features.values()} == {_BFLOAT16}


def test_the_head_of_the_pooled_features_gives_the_logits():
  model, images = _tiny(num_classes=5), _images(2, 32, 24, 3)
  variables = _new_variables(model, images)

  @jax.jit
  def both(variables):
    apply = functools.partial(model.apply, variables, images, train=False)
    return apply(), apply(method='features')

  logits, features = both(variables)
  pooled = np.mean(features['stage2'], axis=(1, 2))
  np.testing.assert_allclose(features['pooled'], pooled, rtol=1e-5)
  head = variables['params']['head']
  expected = np.asarray(features['pooled']) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
  assert np.std(logits) > 1e-3


def test_a_new_network_with_zero_last_scales():
  model = _tiny(zero_init_last_scale=True)
  variables = jax.jit(functools.partial(model.init, train=True))(
    jax.random.key(0), _images(2, 32, 24, 3)
  )
  for name, leaf in _paths(variables).items():
    if name.endswith(('bias', 'mean', 'bn3/scale')):
      assert np.all(leaf == 0.0), name
    elif name.endswith(('scale', 'var')):
      assert np.all(leaf == 1.0), name
  # Goyal et al. 2017, section 5.1; 64,000 samples have an error of 0.3 %.
  head = variables['params']['head']['kernel']
  assert np.std(head) == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(
  'name',
  [
    'cifar_resnet20',
    'cifar_preact_resnet110',
    'resnet18',
    pytest.param('resnet152', marks=pytest.mark.slow),
  ],
)
def test_a_step_gives_every_parameter_a_gradient(name):
  model = create_model(name)
  images = _images(*_abstract_images(name, 2).shape)
  variables = _new_variables(model, images)

  @jax.jit
  def step(variables):
    def loss(params):
      logits, updates = _train(model, {**variables, 'params': params}, images)
      return -jnp.mean(jax.nn.log_softmax(logits)[:, 0]), updates

    return jax.value_and_grad(loss, has_aux=True)(variables['params'])

  (loss, updates), grads = step(variables)
  # A new head is small: its logits differ by about 0.6.
  assert loss == pytest.approx(math.log(model.num_classes), abs=1.0)
  for path, leaf in _paths({**updates, 'grads': grads}).items():
    assert np.isfinite(leaf).all() and np.any(leaf), path


def test_groups_of_a_network_are_batches_of_their_own():
  images = _images(4, 32, 24, 3)
  variables = _new_variables(_tiny(), images)
  # With momentum 0 the running statistics are those of the batch.
  grouped = jax.jit(
    functools.partial(_train, _tiny(bn_group_size=2, bn_momentum=0.0))
  )
  alone = jax.jit(functools.partial(_train, _tiny(bn_momentum=0.5)))
  logits, updates = grouped(variables, images)
  halves = [alone(variables, images[:2]), alone(variables, images[2:])]
  np.testing.assert_allclose(
    logits, np.concatenate([half[0] for half in halves]), rtol=1e-4, atol=1e-5
  )
  new, first, second = (
    _paths(u['batch_stats']) for u in (updates, halves[0][1], halves[1][1])
  )
  for name, old in _paths(variables['batch_stats']).items():
    np.testing.assert_allclose(
      (first[name] + second[name]) / 2,
      0.5 * old + 0.5 * new[name],
      rtol=1e-4,
      atol=1e-5,
      err_msg=name,
    )


@pytest.mark.parametrize(('shortcut', 'count'), [('A', 0), ('B', 3), ('C', 8)])
def test_number_of_projections_of_resnet18(shortcut, count):
  _, _, variables = _abstract('resnet18', shortcut=shortcut)
  names = [n for n in _paths(variables['params']) if 'shortcut_' in n]
  assert len([n for n in names if n.endswith('shortcut_conv/kernel')]) == count
  assert len(names) == 3 * count  # And scale and bias of the batch norm.


_COLLECTIVE = re.compile(
  r' (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)'
  r'(?:-start)?\('
)


def _collectives(function, out_sharding, *args):
  """Counts the collectives of function(variables, images) on eight devices."""
  sharding = create_sharding()
  hlo = (
    jax.jit(
      function,
      in_shardings=(sharding.replicated, sharding.batch),
      out_shardings=out_sharding,
    )
    .lower(*args)
    .compile()
    .as_text()
  )
  assert 'num_partitions=8' in hlo
  return dict(collections.Counter(_COLLECTIVE.findall(hlo)))


def _statistics_collectives(group_size):
  """Returns the collectives of a gradient of the images, and of a step.

  16 images are two for each device. The images, and so their gradients, stay
  where they are: only statistics can need a collective there.
  """
  model = create_model('cifar_resnet20', bn_group_size=group_size)
  images = _abstract_images('cifar', 16)
  variables = _abstract_variables(model, images)

  def loss(images, params, batch_stats):
    variables = {'params': params, 'batch_stats': batch_stats}
    logits, updates = _train(model, variables, images)
    return jnp.sum(jnp.square(logits)), updates

  def images_grad(variables, images):
    grad, _ = jax.grad(loss, has_aux=True)(images, **variables)
    return grad

  def step(variables, images):
    params, batch_stats = variables['params'], variables['batch_stats']
    step = jax.value_and_grad(loss, argnums=1, has_aux=True)
    return step(images, params, batch_stats)

  sharding = create_sharding()
  return (
    _collectives(images_grad, sharding.batch, variables, images),
    _collectives(step, sharding.replicated, variables, images),
  )


def test_statistics_of_groups_need_no_collective():
  of_images_grad, of_step = _statistics_collectives(group_size=2)
  assert of_images_grad == {}
  # Gradients, loss and running statistics, summed at the end: one with XLA of
  # jax 0.10, whatever the number of layers.
  assert set(of_step) == {'all-reduce'} and of_step['all-reduce'] <= 3


def test_statistics_of_the_whole_batch_need_one_per_layer_and_direction():
  of_images_grad, of_step = _statistics_collectives(group_size=None)
  assert of_images_grad['all-reduce'] >= 2 * 19
  assert of_step['all-reduce'] > of_images_grad['all-reduce']


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('resnet50_v1', {'stage_sizes': (2,)}),
    ('cifar_resnet8', {'stage_sizes': (4,), 'scan_blocks': True}),
  ],
)
def test_what_is_computed_again_is_the_same(name, fields):
  """Loss, gradients and statistics; and blocks are computed again."""
  images = jax.random.normal(jax.random.key(1), (4, 16, 16, 3))

  def run(remat):
    model = create_model(name, num_classes=10, remat=remat, **fields)
    variables = model.init(jax.random.key(0), images, train=False)

    def loss(params):
      logits, updates = model.apply(
        {**variables, 'params': params},
        images,
        train=True,
        mutable=['batch_stats'],
      )
      return jnp.sum(logits**2), updates

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    jaxpr = str(jax.make_jaxpr(value_and_grad)(variables['params']))
    return jax.jit(value_and_grad)(variables['params']), jaxpr

  (plain, plain_jaxpr), (again, again_jaxpr) = run(False), run(True)
  assert jax.tree.structure(plain) == jax.tree.structure(again)
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    assert jnp.allclose(a, b, rtol=1e-4, atol=1e-5)
  assert 'prevent_cse' not in plain_jaxpr and 'prevent_cse' in again_jaxpr
