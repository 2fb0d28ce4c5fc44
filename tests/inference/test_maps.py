"""Maps are what they say they are, for each kind of network."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.inference import maps
from tests.networks import make_variables


@pytest.mark.parametrize(
  'name', ['cifar_resnet8', 'resnet18d', 'preact_resnet18']
)
def test_maps_explain_the_logit(name):
  model, variables = make_variables(
    name, size=32, num_classes=5, stage_sizes=(1, 1), num_filters=8
  )
  images = jax.random.normal(jax.random.key(2), (3, 32, 32, 3))
  labels = np.array([4, 0, 2], np.int32)

  def chosen_logits(variables, change):
    """The change is added to each place of the first stage, by channel."""

    def add(function, args, kwargs, context):
      y = function(*args, **kwargs)
      caller = context.module.name, context.method_name
      is_stage = caller == ('stage1_block1', '__call__')
      return y + change[None, None, None] if is_stage else y

    with nn.intercept_methods(add):
      logits = model.apply(variables, images, train=False)
    return logits[np.arange(3), labels]

  @jax.jit
  def run(variables):
    change = jnp.zeros(8)
    return {
      'logits': chosen_logits(variables, change),
      'slopes': jax.jacobian(chosen_logits, 1)(variables, change),
      'features': model.apply(
        variables, images, train=False, method='features'
      )['stage1'],
      'cam': maps.class_activation_map(model, variables, images, labels),
      'stage1': maps.grad_cam(model, variables, images, labels, 1),
      'stage2': maps.grad_cam(model, variables, images, labels, 2),
    }

  found = {key: np.asarray(leaf) for key, leaf in run(variables).items()}
  # The mean of the map and the bias are the logit.
  cam = found['cam']
  bias = variables['params']['head']['bias'][labels]
  np.testing.assert_allclose(
    np.mean(cam, axis=(1, 2)) + bias, found['logits'], rtol=1e-4, atol=1e-4
  )
  assert np.ptp(cam) > 0.01
  # Of the last stage, Grad-CAM is the positive part of CAM (Selvaraju et al.
  # 2017, section 3.1); v2 nets activate between the two.
  places = cam.shape[1] * cam.shape[2]
  if name != 'preact_resnet18':
    np.testing.assert_allclose(
      found['stage2'], np.maximum(cam, 0) / places, rtol=1e-3, atol=1e-5
    )
  # A constant change of a channel has the sum of its gradient as slope.
  features = found['features']
  weights = found['slopes'] / (features.shape[1] * features.shape[2])
  expected = np.maximum(np.einsum('bhwc,bc->bhw', features, weights), 0)
  np.testing.assert_allclose(
    found['stage1'], expected, rtol=1e-3, atol=1e-4 * expected.max()
  )
  assert expected.max() > 0
