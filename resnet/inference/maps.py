"""Class activation maps: CAM and Grad-CAM."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp


def class_activation_map(
  model: nn.Module, variables: Any, images: jax.Array, labels: jax.Array
) -> jax.Array:
  """Computes what each position adds to a logit (Zhou et al. 2016, eq. 2).

      map[y, x] = sum_c activation[y, x, c] * kernel[c, label]

  The mean of the map plus the bias is the logit. The model must end in a global
  average pool and a dense layer.

  Maps normalised images [B, H, W, C] and the classes to explain, int32 [B], to
  float32 [B, h, w], at the resolution of the last stage.
  """
  features, normed = _with_outputs_of(
    'head_bn',
    lambda: model.apply(variables, images, train=False, method='features'),
  )
  # v2 networks normalise and activate the last stage once more.
  last = features[max(name for name in features if name.startswith('stage'))]
  last = nn.relu(normed[0]) if normed else last
  kernel = variables['params']['head']['kernel'][:, labels]
  return jnp.einsum('bhwc,cb->bhw', last.astype(jnp.float32), kernel)


def grad_cam(
  model: Any, variables: Any, images: jax.Array, labels: jax.Array, stage: int
) -> jax.Array:
  """Computes Grad-CAM of a stage (Selvaraju et al. 2017, eq. 1 and 2).

      weight[c] = mean over positions of d logit / d activation[c]
      map       = relu(sum_c weight[c] * activation[c])

  Maps normalised images [B, H, W, C] and the classes to explain, int32 [B], to
  float32 [B, h, w], at the resolution of the stage. Stages count from 1.
  """
  if getattr(model, 'scan_blocks', False):
    # The blocks of a scan have no names of their own.
    model = model.clone(scan_blocks=False)
  block = f'stage{stage}_block{model.stage_sizes[stage - 1]}'
  apply = functools.partial(model.apply, variables, images, train=False)
  shape = jax.eval_shape(lambda: apply(method='features'))[f'stage{stage}']

  def score(change: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, outputs = _with_outputs_of(block, apply, lambda y: y + change)
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=1)
    return jnp.sum(chosen), outputs[0]

  # No logit depends on another image, so one gradient of the sum suffices.
  zeros = jnp.zeros(shape.shape, shape.dtype)
  grads, activations = jax.grad(score, has_aux=True)(zeros)
  weights = jnp.mean(grads.astype(jnp.float32), axis=(1, 2))
  activations = activations.astype(jnp.float32)
  return nn.relu(jnp.einsum('bhwc,bc->bhw', activations, weights))


def _with_outputs_of(
  name: str,
  call: Callable[[], Any],
  change: Callable[[jax.Array], jax.Array] = lambda y: y,
) -> tuple[Any, list[jax.Array]]:
  """Returns call() and `name`'s outputs, each replaced by change(output)."""
  outputs = []

  def intercept(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    y = function(*args, **kwargs)
    if context.module.name == name and context.method_name == '__call__':
      y = change(y)
      outputs.append(y)
    return y

  with nn.intercept_methods(intercept):
    result = call()
  return result, outputs
