"""Costs, counted from traced programs, against the published tables."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from resnet.models import cost as cost_lib
from resnet.models import layers
from resnet.models.lecture import Bottleneck


@pytest.mark.parametrize(
  ('name', 'torchvision_gmacs', 'timm_gmacs', 'timm_macts'),
  [
    ('resnet18', 1.814, 1.82, 2.48),
    ('resnet50', 4.089, 4.11, 11.11),
    ('resnet152', 11.514, 11.56, 22.56),
    ('resnext50_32x4d', 4.23, 4.26, 14.4),
    ('wide_resnet50_2', 11.398, 11.43, 14.4),
    # These only timm has.
    ('resnet50d', None, 4.35, 11.92),
    ('seresnet50', None, 4.13, 11.13),
    ('preact_resnet50', None, 4.11, 11.11),
  ],
)
def test_multiply_adds_equal_those_of_torchvision_and_timm(
  name, torchvision_gmacs, timm_gmacs, timm_macts
):
  """torchvision: `_ops` of the weights. timm: results/model_benchmark_*.csv.

  timm (by fvcore) counts batch norm, two operations an element, and neither the
  additions of shortcuts nor the average pool, 0.2 % at most.
  """
  cost = cost_lib.trace(name, 224).total
  if torchvision_gmacs:
    assert round(cost.conv_multiply_adds / 1e9, 3) == torchvision_gmacs
  assert cost.multiply_adds / 1e9 == pytest.approx(timm_gmacs, rel=2.5e-3)
  assert round(cost.activations / 1e6, 2) == timm_macts


def test_cifar_v2_bottlenecks_stride_in_the_first_1x1():
  """The authors' resnet-1k-layers; by hand, the sizes of the convolutions."""
  total = 32**2 * 9 * 3 * 16 + 256 * 10
  channels = 16
  for pixels, width in ((32**2, 16), (16**2, 32), (8**2, 64)):
    inner = 9 * width * width + 4 * width * width
    first = channels * width + inner + 4 * channels * width
    total += pixels * (first + 17 * (4 * width * width + inner))
    channels = 4 * width
  cost = cost_lib.trace('cifar_preact_resnet164', 32).total
  assert cost.conv_multiply_adds == total


@pytest.mark.parametrize(
  ('name', 'paper_gflops'), [('resnet50_v1', 3.8), ('resnet152_v1', 11.3)]
)
def test_multiply_adds_of_v1_equal_those_of_the_paper(name, paper_gflops):
  """He et al. 2016, Table 1, whose row is truncated, not rounded."""
  cost = cost_lib.trace(name, 224).total
  assert cost.multiply_adds // 1e8 / 10 == paper_gflops


def test_a_plain_net_saves_only_the_additions_of_its_shortcuts():
  residual, plain = (
    cost_lib.trace(f'cifar_{kind}20', 32).total for kind in ('resnet', 'plain')
  )
  additions = 3 * (32**2 * 16 + 16**2 * 32 + 8**2 * 64)
  assert residual.other_operations - plain.other_operations == additions
  assert residual.conv_multiply_adds == plain.conv_multiply_adds


def _total(function, *args):
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return sum(cost_lib.count(jaxpr).values(), cost_lib.Cost())


def _total_of(module, x):
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  return _total(module.apply, variables, x)


def test_a_convolution_counts_its_kernel_once_per_output():
  conv = layers.conv(6, 3, 2, groups=2, name='conv')
  cost = _total_of(conv, jnp.zeros((1, 8, 6, 4)))
  assert cost.conv_multiply_adds == (4 * 3 * 6) * (3 * 3 * 2)
  assert cost.activations == 4 * 3 * 6
  assert cost.saved_bytes == 4 * (8 * 6 * 4 + 4 * 3 * 6)
  assert cost.other_operations == 0


def test_a_dense_layer_counts_its_kernel_and_biases():
  cost = _total_of(nn.Dense(6), jnp.zeros((1, 4)))
  assert (cost.conv_multiply_adds, cost.other_operations) == (24, 6)


def test_a_bottleneck_of_the_lecture_costs_an_eighth_of_a_convolution():
  for module, multiply_adds in (
    (Bottleneck(64, 256), 64 * 1088),
    (layers.conv(256, 3, name='conv'), 256 * 2304),
  ):
    cost = _total_of(module, jnp.zeros((1, 1, 1, 256)))
    assert cost.conv_multiply_adds == multiply_adds


def test_an_input_of_two_layers_is_saved_once():
  x, kernel = jnp.zeros((3, 4)), jnp.zeros((4, 5))
  cost = _total(lambda x: x @ kernel + x @ kernel, x)
  assert cost.saved_bytes == 4 * (12 + 15 + 15)


def test_integer_operations_and_maxima_are_not_counted():
  x = jnp.zeros((1, 8, 8, 4))
  assert _total(lambda x: jnp.maximum(x, 0.0), x).multiply_adds == 0
  assert _total(lambda i: i + i, jnp.arange(3)).multiply_adds == 0
  assert _total(lambda x: x + x, x).multiply_adds == x.size
  assert _total(jnp.sum, x).multiply_adds == x.size


def test_costs_of_the_parts_sum_to_the_total():
  network = cost_lib.trace('resnet50', 224)
  stages = ['stage1', 'stage2', 'stage3', 'stage4']
  assert list(network.costs) == ['stem', *stages, 'head']
  assert sum(map(network.num_params, network.costs)) == network.num_params()
  parts = [network.training_bytes(32, part) for part in network.costs]
  assert sum(parts) == network.training_bytes(32)
  # Activations grow with the batch, parameters do not.
  slope = network.training_bytes(64) - network.training_bytes(32)
  assert network.training_bytes(32) - slope == 12 * network.num_params()


def test_scanned_networks_are_counted_block_by_block():
  total, unrolled = (
    cost_lib.trace(
      'cifar_preact_resnet164', 32, stage_sizes=(3, 2), scan_blocks=is_scanned
    ).total
    for is_scanned in (True, False)
  )
  assert total == unrolled


def test_costs_do_not_depend_on_the_backend(monkeypatch):
  """Where JAX runs on a CPU, networks multiply matrices of patches."""
  on_cpu = cost_lib.trace('resnet18', 64)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  assert cost_lib.trace('resnet18', 64).costs == on_cpu.costs
  # Inputs and outputs of four convolutions, float32 of 64 channels.
  assert on_cpu.costs['stage1'].saved_bytes == 8 * 4 * 64 * 16**2
