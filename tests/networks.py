"""Networks with random weights, and statistics as trained ones have them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from resnet import weights
from resnet.inference.network import Weights
from resnet.models import abstract_variables, create_model
from resnet.weights.stored import from_tensors


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


def draw_variables(name, *, size, num_classes, channels=3, **overrides):
  """Returns the module, and random variables, for which nothing is compiled.

  Predictions differ from image to image.
  """
  model = create_model(name, num_classes=num_classes, **overrides)
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'kernel':
      std = math.sqrt(2 / math.prod(leaf.shape[:-1]))
      values = rng.normal(0, std, leaf.shape)
    elif path[-1].key in ('scale', 'var'):
      values = rng.uniform(0.5, 1.5, leaf.shape)
    else:
      values = rng.normal(0, 0.1, leaf.shape)
    return values.astype(np.float32)

  shapes = abstract_variables(model, (size, size, channels))
  return model, jax.tree_util.tree_map_with_path(draw, shapes)


def make_preprocessing(size, **fields):
  """Returns a preprocessing; by default of RGB images in -2 .. 2."""
  defaults = {
    'mean': (0.5,) * 3,
    'std': (0.25,) * 3,
    'crop_share': 0.875,
    'interpolation': 'bilinear',
  }
  return weights.Preprocessing(image_size=size, **{**defaults, **fields})


def open_shapes(shapes, read=np.zeros):
  """Opens float32 tensors of these shapes by key, which `read` maps to arrays.

  No tensor is read.
  """
  tensors = {key: (shape, 'float32') for key, shape in shapes.items()}
  return from_tensors('the file', tensors, read, weights.Metadata())


def with_metadata(name, model, variables, *, size):
  """Returns variables of `create_model(name)` with all that a tool asks for."""
  num_classes = len(variables['params']['head']['bias'])
  return Weights(
    name='random',
    model_name=name,
    model=model,
    variables=variables,
    # The statistics of uniform pixels. Where activations are larger than the
    # statistics of batch norm say, random weights amplify rounding.
    preprocessing=make_preprocessing(size, std=(12**-0.5,) * 3),
    class_names=('n01440764', *(f'class {i}' for i in range(1, num_classes))),
  )


def save_random(path, *, size, class_names, channels=3):
  """Writes random weights of a small network with all that tools ask for."""
  _, variables = draw_variables(
    'cifar_resnet8', size=size, num_classes=len(class_names), channels=channels
  )
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=make_preprocessing(
      size,
      mean=(0.5,) * channels,
      std=(0.25,) * channels,
      crop_share=1.0,
    ),
    class_names=tuple(class_names),
  )
  weights.save_weights(variables, str(path), metadata=metadata)
  return str(path)
