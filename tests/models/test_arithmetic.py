"""Costs, counted from traced programs, against the published tables."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from resnet.models import arithmetic, create_model, layers
from resnet.models.lecture import Bottleneck

_trace = functools.cache(arithmetic.trace)


@pytest.mark.parametrize(
  ('name', 'torchvision_gmacs', 'timm_gmacs', 'timm_macts'),
  [
    ('resnet18', 1.814, 1.82, 2.48),
    ('resnet34', 3.664, 3.67, 3.74),
    ('resnet50', 4.089, 4.11, 11.11),
    ('resnet101', 7.801, 7.83, 16.23),
    ('resnet152', 11.514, 11.56, 22.56),
    ('resnext50_32x4d', 4.23, 4.26, 14.4),
    ('wide_resnet50_2', 11.398, 11.43, 14.4),
  ],
)
def test_multiply_adds_are_those_of_torchvision_and_timm(
  name, torchvision_gmacs, timm_gmacs, timm_macts
):
  """torchvision: `_ops` of the weights. timm: results/model_benchmark_*.csv.

  timm (by fvcore) counts batch norm, two operations an element, and neither the
  additions of shortcuts nor the average pool, 0.2 % at most.
  """
  cost = _trace(name, 224).total
  assert round(cost.conv_multiply_adds / 1e9, 3) == torchvision_gmacs
  assert cost.multiply_adds / 1e9 == pytest.approx(timm_gmacs, rel=2.5e-3)
  assert round(cost.activations / 1e6, 2) == timm_macts


@pytest.mark.parametrize(
  ('name', 'timm_gmacs', 'timm_macts'),
  [
    ('resnet50d', 4.35, 11.92),
    ('seresnet50', 4.13, 11.13),
    ('preact_resnet50', 4.11, 11.11),
  ],
)
def test_multiply_adds_of_what_only_timm_has(name, timm_gmacs, timm_macts):
  """results/model_benchmark_*.csv; as above."""
  cost = _trace(name, 224).total
  assert cost.multiply_adds / 1e9 == pytest.approx(timm_gmacs, rel=2.5e-3)
  assert round(cost.activations / 1e6, 2) == timm_macts


def test_bottlenecks_of_cifar_v2_stride_in_the_first_1x1():
  """The authors' resnet-1k-layers; by hand, the sizes of the convolutions."""
  total = 32**2 * 9 * 3 * 16 + 256 * 10
  channels = 16
  for pixels, width in ((32**2, 16), (16**2, 32), (8**2, 64)):
    inner = 9 * width * width + 4 * width * width
    first = channels * width + inner + 4 * channels * width
    total += pixels * (first + 17 * (4 * width * width + inner))
    channels = 4 * width
  cost = _trace('cifar_preact_resnet164', 32).total
  assert cost.conv_multiply_adds == total


@pytest.mark.parametrize(
  ('name', 'paper_gflops'),
  [
    ('resnet18', 1.8),
    ('resnet34', 3.6),
    ('resnet50_v1', 3.8),
    ('resnet101_v1', 7.6),
    ('resnet152_v1', 11.3),
  ],
)
def test_multiply_adds_of_v1_are_those_of_the_paper(name, paper_gflops):
  """He et al. 2016, Table 1, whose row is truncated, not rounded."""
  assert _trace(name, 224).total.multiply_adds // 1e8 / 10 == paper_gflops


@pytest.mark.parametrize(
  ('name', 'timm_gflops'),
  [
    ('resnet18', '1.8'),
    ('resnet34', '3.7'),
    ('resnet50', '4.1'),
    ('resnet101', '7.8'),
    ('resnet152', '11.6'),
  ],
)
def test_multiply_adds_of_v1_5_rounded(name, timm_gflops):
  assert f'{_trace(name, 224).total.multiply_adds / 1e9:.1f}' == timm_gflops


def _total(function, *args):
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return sum(arithmetic.count(jaxpr).values(), arithmetic.Cost())


def test_a_convolution_counts_its_kernel_once_an_output():
  x = jnp.zeros((1, 8, 6, 4))
  conv = layers.conv(6, 3, 2, groups=2, name='conv')
  variables = conv.init(jax.random.key(0), x)
  cost = _total(conv.apply, variables, x)
  assert cost.conv_multiply_adds == (4 * 3 * 6) * (3 * 3 * 2)
  assert cost.activations == 4 * 3 * 6
  assert cost.saved_bytes == 4 * (8 * 6 * 4 + 4 * 3 * 6)
  assert cost.other_operations == 0


def test_a_dense_layer_counts_its_kernel_and_its_biases():
  x = jnp.zeros((1, 4))
  dense = nn.Dense(6)
  cost = _total(dense.apply, dense.init(jax.random.key(0), x), x)
  assert cost.conv_multiply_adds == 24
  assert cost.other_operations == 6


def test_a_tensor_that_two_convolutions_see_is_kept_once():
  kernel = jnp.zeros((3, 3, 4, 4))
  conv = functools.partial(
    jax.lax.conv_general_dilated,
    window_strides=(1, 1),
    padding='VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  x = jnp.zeros((1, 3, 3, 4))
  cost = _total(lambda x: conv(x, kernel) + conv(x, kernel), x)
  assert cost.saved_bytes == 4 * (36 + 4 + 4)


def test_integers_and_maxima_are_no_operations():
  x = jnp.zeros((1, 8, 8, 4))
  assert _total(lambda x: jnp.maximum(x, 0.0), x).multiply_adds == 0
  assert _total(lambda i: i + i, jnp.arange(3)).multiply_adds == 0
  assert _total(lambda x: x + x, x).multiply_adds == x.size
  assert _total(jnp.sum, x).multiply_adds == x.size


@pytest.mark.parametrize(
  ('module', 'filters', 'each'),
  [
    (Bottleneck(64, 256), 64, 1_088),
    (layers.conv(256, 3, name='conv'), 256, 2_304),
  ],
)
def test_a_bottleneck_costs_1088_where_a_convolution_costs_2304(
  module, filters, each
):
  x = jnp.zeros((1, 1, 1, 256))
  cost = _total(module.apply, module.init(jax.random.key(0), x), x)
  assert cost.conv_multiply_adds == filters * each


def test_costs_of_the_parts_add_up():
  network = _trace('resnet50', 224)
  assert list(network.costs) == [
    'stem',
    'stage1',
    'stage2',
    'stage3',
    'stage4',
    'head',
  ]
  assert sum(map(network.num_params, network.costs)) == network.num_params()
  parts = [network.training_bytes(32, part) for part in network.costs]
  assert sum(parts) == network.training_bytes(32)
  # Activations grow with the batch, parameters do not.
  slope = network.training_bytes(64) - network.training_bytes(32)
  assert network.training_bytes(32) - slope == 12 * network.num_params()


def test_scanned_networks_are_counted_block_by_block():
  network = _trace('cifar_preact_resnet1001', 32)
  assert network.total.activations == pytest.approx(19.2e6, rel=0.01)


def test_memory_is_about_what_xla_takes():
  """Of the gradient of ResNet-50 in float32, compiled for this CPU."""
  model = create_model('resnet50')
  images = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32)
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )

  def gradient(params, batch_stats, images):
    def loss(params):
      logits, updates = model.apply(
        {'params': params, 'batch_stats': batch_stats},
        images,
        train=True,
        mutable=['batch_stats'],
      )
      return jnp.sum(jnp.square(logits)), updates

    return jax.grad(loss, has_aux=True)(params)

  compiled = (
    jax.jit(gradient)
    .lower(variables['params'], variables['batch_stats'], images)
    .compile()
  )
  network = _trace('resnet50', 224)
  # Parameters and momentum are arguments of the program, not temporaries.
  estimate = network.training_bytes(32) - 8 * network.num_params()
  actual = compiled.memory_analysis().temp_size_in_bytes
  assert actual == pytest.approx(estimate, rel=0.15)
