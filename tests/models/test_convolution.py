"""Both ways of a convolution are the same map."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from resnet.models import abstract_variables, create_model, layers
from resnet.training import compiler


@pytest.mark.parametrize(
  ('kernel_size', 'strides', 'groups', 'size'),
  [
    (1, 1, 1, (7, 5)),
    (1, 2, 1, (7, 5)),
    (1, 1, 2, (7, 5)),
    (3, 1, 1, (7, 5)),
    (3, 2, 2, (7, 5)),
    # Patches: the image is no larger than the kernel.
    (3, 1, 1, (1, 1)),
    (3, 1, 1, (3, 3)),
    (3, 2, 1, (4, 2)),
    (3, 2, 1, (2, 2)),
  ],
)
def test_backends_give_the_same_values_and_gradients(
  kernel_size, strides, groups, size
):
  x = jax.random.normal(jax.random.key(1), (2, *size, 4))

  @functools.partial(jax.jit, static_argnames='backend')
  def run(backend):
    conv = layers.conv(
      8, kernel_size, strides, groups=groups, backend=backend, name='conv'
    )
    variables = conv.init(jax.random.key(0), x)
    y, pull_back = jax.vjp(conv.apply, variables, x)
    cotangent = jnp.cos(jnp.arange(y.size, dtype=float)).reshape(y.shape)
    return y, pull_back(cotangent)

  results = run(backend='xla'), run(backend='matmul')
  for a, b in zip(*map(jax.tree.leaves, results), strict=True):
    assert a.shape == b.shape
    assert jnp.allclose(a, b, rtol=1e-5, atol=1e-5)


def _num_convolutions(conv_backend):
  model = create_model(
    'resnet50', num_classes=10, conv_backend=conv_backend, stage_sizes=(1,)
  )
  jaxpr = jax.make_jaxpr(functools.partial(model.apply, train=False))(
    abstract_variables(model), jnp.zeros((1, 16, 16, 3))
  )
  return str(jaxpr).count('conv_general_dilated[')


def test_matmul_is_the_default_on_cpus_and_replaces_1x1_convolutions():
  assert _num_convolutions('xla') == 1 + 4  # Stem, three, the shortcut.
  assert _num_convolutions('matmul') == 1 + 1
  assert _num_convolutions(None) == 1 + 1


def test_kernel_gradients_on_cpus_do_not_recompute_activations():
  model = create_model('cifar_resnet20', num_classes=10, stage_sizes=(3, 1, 1))
  images = jnp.ones((2, 16, 16, 3))
  variables = abstract_variables(model)

  def loss(params, batch_stats):
    variables = {'params': params, 'batch_stats': batch_stats}
    return model.apply(variables, images, train=True, mutable=['batch_stats'])[
      0
    ].sum()

  gradient = jax.jit(jax.grad(loss), compiler_options=compiler.options('cpu'))
  lowered = gradient.lower(variables['params'], variables['batch_stats'])
  hlo = lowered.compile().as_text()
  fusions = re.findall(r'^%fused_computation.*?^}', hlo, re.M | re.S)
  transposes = [fusion for fusion in fusions if ' transpose(' in fusion]
  assert transposes
  assert not any(' maximum(' in fusion for fusion in transposes)
