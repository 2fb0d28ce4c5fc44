"""Networks with random weights, and statistics as trained ones have them."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet.models import create_model


def make_variables(name, *, size, num_classes, channels=3, **overrides):
  """Returns the module, and variables whose activations do not vanish.

  Running statistics are those of a random batch; the head has a bias. The
  overrides are those of `create_model`.
  """
  images = jax.random.normal(jax.random.key(1), (4, size, size, channels))
  overrides = {'num_classes': num_classes, **overrides}
  learner = create_model(name, bn_momentum=0.0, **overrides)

  @jax.jit
  def make(key):
    variables = learner.init(key, images, train=False)
    _, updates = learner.apply(
      variables, images, train=True, mutable=['batch_stats']
    )
    return {'params': variables['params'], **updates}

  variables = jax.tree.map(np.array, dict(make(jax.random.key(0))))
  head = variables['params']['head']
  head['kernel'] *= 10
  head['bias'] += jnp.arange(num_classes, dtype=jnp.float32) / 10
  return create_model(name, **overrides), variables
