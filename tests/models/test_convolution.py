"""Both ways of a convolution are the same map."""

import functools

import jax
import jax.numpy as jnp
import pytest

from resnet.errors import InputError
from resnet.models import convolution, create_model, layers

# As nn.Conv calls it.
_OPTIONS = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}


def _loss_and_gradients(backend, kernel_size, strides, groups, size=(7, 5)):
  conv = layers.conv(
    8, kernel_size, strides, groups=groups, backend=backend, name='conv'
  )
  x = jax.random.normal(jax.random.key(1), (2, *size, 4))
  variables = conv.init(jax.random.key(0), x)
  y, pull_back = jax.vjp(conv.apply, variables, x)
  return y, pull_back(jnp.cos(jnp.arange(y.size, dtype=float)).reshape(y.shape))


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('groups', [1, 2])
def test_backends_agree_in_value_and_gradient(kernel_size, strides, groups):
  run = functools.partial(
    _loss_and_gradients,
    kernel_size=kernel_size,
    strides=strides,
    groups=groups,
  )
  for a, b in zip(
    jax.tree.leaves(run('xla')), jax.tree.leaves(run('matmul')), strict=True
  ):
    assert a.shape == b.shape
    assert jnp.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('strides', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (2, 2), (4, 2), (3, 3)])
def test_patches_of_small_images_agree_too(size, strides):
  run = functools.partial(
    _loss_and_gradients, kernel_size=3, strides=strides, groups=1, size=size
  )
  for a, b in zip(
    jax.tree.leaves(run('xla')), jax.tree.leaves(run('matmul')), strict=True
  ):
    assert a.shape == b.shape
    assert jnp.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('size', 'strides', 'is_product'),
  [((2, 2), 1, True), ((3, 3), 1, True), ((4, 4), 1, False), ((6, 6), 2, True)],
)
def test_patches_are_for_images_no_larger_than_the_kernel(
  size, strides, is_product
):
  jaxpr = jax.make_jaxpr(
    lambda x, kernel: convolution.matmul_conv(
      x, kernel, (strides, strides), ((1, 1), (1, 1)), **_OPTIONS
    )
  )(jnp.zeros((1, *size, 4)), jnp.zeros((3, 3, 4, 8)))
  assert ('dot_general' in str(jaxpr)) == is_product


def _num_convolutions(conv_backend):
  model = create_model(
    'resnet50', num_classes=10, conv_backend=conv_backend, stage_sizes=(1,)
  )
  images = jnp.zeros((1, 16, 16, 3))
  variables = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), images
  )
  jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=False))(
    variables, images
  )
  return str(jaxpr).count('conv_general_dilated[')


def test_matmul_leaves_only_wider_kernels_to_xla():
  assert _num_convolutions('xla') == 1 + 4  # Stem, three, the shortcut.
  assert _num_convolutions('matmul') == 1 + 1


def test_a_cpu_chooses_matmul():
  assert jax.default_backend() == 'cpu'
  assert convolution.choose(None) == 'matmul'
  assert convolution.choose('xla') == 'xla'
  assert _num_convolutions(None) == _num_convolutions('matmul')


def test_unknown_backend_is_refused():
  with pytest.raises(InputError, match="conv_backend='im2col' is none of xla"):
    create_model('resnet18', conv_backend='im2col')
