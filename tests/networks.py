"""Networks with random weights, and statistics as trained ones have them."""

import jax
import jax.numpy as jnp
import numpy as np

from resnet.models import create_model, weights


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


def save_random(path, *, size, class_names, channels=3):
  """Writes random weights of a small network with all that tools ask for."""
  _, variables = make_variables(
    'cifar_resnet8', size=size, num_classes=len(class_names), channels=channels
  )
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.5,) * channels,
      std=(0.25,) * channels,
      image_size=size,
      crop_share=1.0,
      interpolation='bilinear',
    ),
    class_names=tuple(class_names),
  )
  weights.save_weights(variables, str(path), metadata=metadata)
  return str(path)
