"""Evaluation with several views of each image; predictions are averaged."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.host.views import ViewsTransform
from resnet.data.host.warnings import DataWarnings
from resnet.evaluation import calibration
from resnet.evaluation.evaluate import check_count
from resnet.experiment import Experiment
from resnet.training import compiler
from resnet.training.sharding import DataSharding
from resnet.training.step import Batch, Task

VIEWS = ('center', 'flip', 'ten_crop', 'scales')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalResult:
  """What one pass over the images has given.

  Attributes:
    sums: of `calibration`, over all images.
    predictions: class of each record, int32 [N]; -1 where the image is broken.
  """

  sums: dict[str, np.ndarray]
  predictions: np.ndarray


def evaluate_views(
  run: Experiment,
  variables: Any,
  views: str = 'center',
  sides: Sequence[int] = (),
) -> EvalResult:
  """Evaluates `run.eval_reader`, every image once; prints what is left out.

  Args:
    run: with the images.
    variables: of the network.
    views: one of `VIEWS`.
    sides: for 'scales', pixels.
  """
  reader = run.eval_reader
  if views == 'ten_crop':
    sides = (run.eval_image_shape[0],) * 10
  if sides:  # Then the host makes the views.
    transform: Any = reader.transform
    views_transform = ViewsTransform(
      sides=tuple(sides),
      resize_size=transform.resize_size if views == 'ten_crop' else None,
      interpolation=transform.interpolation,
    )
    reader = dataclasses.replace(reader, transform=views_transform)
  warnings = DataWarnings(reader.max_bad_images)
  loader = run.load(reader, warnings)
  step = jax.jit(
    functools.partial(
      _step,
      task=run.task,
      sharding=run.sharding,
      sides=tuple(sides),
      mirrored=views in ('flip', 'scales'),
    ),
    out_shardings=run.sharding.replicated,
    donate_argnums=1,
    compiler_options=compiler.options(run.sharding.backend),
  )
  num_classes: int = run.task.model.num_classes  # pyright: ignore[reportAttributeAccessIssue]
  sums = jax.device_put(calibration.zeros(num_classes), run.sharding.replicated)
  predictions = []
  for batch in loader:
    sums, predicted = step(variables, sums, batch)
    predictions.append(predicted)
  for line in warnings.take():
    print(line)
  check_count(reader, loader, int(sums['bin_count'].sum()))
  labels = np.concatenate(jax.device_get(predictions))[: len(reader.source)]
  sums = jax.tree.map(np.asarray, jax.device_get(sums))
  return EvalResult(sums=sums, predictions=labels)


def _step(
  variables: Any,
  sums: calibration.Sums,
  batch: Batch,
  *,
  task: Task,
  sharding: DataSharding,
  sides: Sequence[int],
  mirrored: bool,
) -> tuple[calibration.Sums, jax.Array]:
  """Returns the sums with this batch in them, and its predictions [B]."""
  variables = sharding.gather(variables)
  images, mask = batch['image'], batch['mask']
  views = unpack(images, sides) if sides else [images]
  if mirrored:
    views += [view[:, :, ::-1] for view in views]
  logits: list[Any] = [
    task.model.apply(variables, task.normalize(view), train=False)
    for view in views
  ]
  log_probabilities = mean_log_probabilities(logits)
  more = calibration.batch_sums(log_probabilities, batch['label'], mask)
  predictions = jnp.argmax(log_probabilities, axis=1).astype(jnp.int32)
  sums = jax.tree.map(lambda a, b: a + b, sums, more)
  return sums, jnp.where(mask, predictions, -1)


def unpack(images: jax.Array, sides: Sequence[int]) -> list[jax.Array]:
  """Returns the views of `data.host.views.ViewsTransform`.

  Args:
    images: [B, N, C], the squares one after the other, N = sum(side * side).
    sides: of the squares, pixels.

  Returns:
    [B, side, side, C] for each side.
  """
  views, start = [], 0
  for side in sides:
    square = images[:, start : start + side * side]
    views.append(square.reshape(len(images), side, side, -1))
    start += side * side
  return views


def mean_log_probabilities(logits: list[jax.Array]) -> jax.Array:
  """Logarithm of the mean over the views of softmax(logits), each [B, K]."""
  views = jnp.stack([jax.nn.log_softmax(x) for x in logits])
  return jax.nn.logsumexp(views, axis=0) - math.log(len(logits))
