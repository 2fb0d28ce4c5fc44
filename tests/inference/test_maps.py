"""Maps are what they say they are, for each kind of network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.inference import maps
from tests.networks import make_variables

NAMES = ['cifar_resnet8', 'resnet18d', 'preact_resnet18', 'seresnet50']


@pytest.fixture(scope='module', params=NAMES)
def case(request):
  """A network with a head and statistics that are not those of the start."""
  model, variables = make_variables(request.param, size=64, num_classes=5)
  images = jax.random.normal(jax.random.key(2), (3, 64, 64, 3))
  labels = jnp.asarray([4, 0, 2], jnp.int32)
  return model, variables, images, labels


def test_the_mean_of_the_map_and_the_bias_are_the_logit(case):
  model, variables, images, labels = case
  logits = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
  chosen = np.asarray(logits)[np.arange(3), np.asarray(labels)]
  heat = jax.jit(lambda v: maps.class_activation_map(model, v, images, labels))(
    variables
  )
  bias = np.asarray(variables['params']['head']['bias'])[np.asarray(labels)]
  np.testing.assert_allclose(
    np.mean(heat, axis=(1, 2)) + bias, chosen, rtol=1e-4, atol=1e-4
  )
  assert np.ptp(np.asarray(heat)) > 0.01


def test_grad_cam_of_the_last_stage_is_the_positive_part_of_cam(case):
  """Selvaraju et al. 2017, section 3.1; v2 nets activate between the two."""
  model, variables, images, labels = case
  if 'head_bn' in variables['params']:
    pytest.skip('another network after its last stage')
  stage = len(model.stage_sizes)
  cam, grad_cam = jax.jit(
    lambda v: (
      maps.class_activation_map(model, v, images, labels),
      maps.grad_cam(model, v, images, labels, stage),
    )
  )(variables)
  places = cam.shape[1] * cam.shape[2]
  np.testing.assert_allclose(
    grad_cam, np.maximum(cam, 0) / places, rtol=1e-3, atol=1e-5
  )


def test_grad_cam_is_the_slope_of_the_logit(case):
  """Against finite differences: the mean of a channel's gradient, stage 2."""
  model, variables, images, labels = case
  if sum(model.stage_sizes) > 8:
    pytest.skip('rounding switches ReLUs of so many random layers')
  block = f'stage2_block{model.stage_sizes[1]}'

  @jax.jit
  def logits(variables, change):
    out, _ = maps._with_outputs_of(
      block,
      lambda: model.apply(variables, images, train=False),
      change=lambda y: y + change,
    )
    return jnp.take_along_axis(out, labels[:, None], axis=1)[:, 0]

  features = jax.jit(
    lambda v: model.apply(v, images, train=False, method='features')
  )(variables)['stage2']
  weights = jax.jit(
    jax.jacobian(lambda c: logits(variables, c[None, None, None, :]))
  )(jnp.zeros(features.shape[-1]))
  # A constant change of a channel has the sum of its gradient as slope.
  weights = np.asarray(weights) / (features.shape[1] * features.shape[2])
  expected = np.maximum(np.einsum('bhwc,bc->bhw', features, weights), 0)
  result = jax.jit(lambda v: maps.grad_cam(model, v, images, labels, 2))(
    variables
  )
  np.testing.assert_allclose(
    result, expected, rtol=1e-3, atol=1e-4 * expected.max()
  )
