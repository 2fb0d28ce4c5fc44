"""Evaluation that averages the predictions over several views of an image."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.host.transforms import ViewsTransform
from resnet.data.host.warnings import DataWarnings
from resnet.evaluation import calibration
from resnet.evaluation.evaluate import check_count
from resnet.experiment import Experiment
from resnet.output import ProgressBar
from resnet.training import compiler
from resnet.training.step import Batch

VIEWS = ('center', 'flip', 'ten_crop', 'scales')


def evaluate_views(
  run: Experiment,
  variables: Any,
  views: str = 'center',
  sides: Sequence[int] = (),
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Evaluates every image of `run.eval_reader` once.

  It prints a warning for each broken image that is left out. `views` is one of
  `VIEWS`; `sides` are those of the images for 'scales', pixels.

  Returns:
    The sums over all images, see `calibration.batch_sums`, and the predicted
    class of each record, int32 [N], -1 if the image is broken.
  """
  reader = run.eval_reader
  if views == 'ten_crop':
    sides = (run.eval_image_shape[0],) * 10
  if sides:  # The host makes the views.
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
      _step, run=run, sides=tuple(sides), mirrored=views in ('flip', 'scales')
    ),
    out_shardings=run.sharding.replicated,
    donate_argnums=1,
    compiler_options=compiler.options(run.sharding.backend),
  )
  num_classes: int = run.task.model.num_classes  # pyright: ignore[reportAttributeAccessIssue]
  sums = jax.device_put(calibration.zeros(num_classes), run.sharding.replicated)
  predictions = []
  with ProgressBar('evaluated', len(reader.source)) as bar:
    for batch in loader:
      sums, predicted = step(variables, sums, batch)
      if predictions:  # The device computes while the host reads one batch.
        jax.block_until_ready(predictions[-1])
        bar.update(reader.batch_size)
      predictions.append(predicted)
  for line in warnings.take():
    print(line)
  check_count(reader, loader, int(sums['bin_count'].sum()))
  labels = np.concatenate(jax.device_get(predictions))[: len(reader.source)]
  return jax.tree.map(np.asarray, jax.device_get(sums)), labels


def _step(
  variables: Any,
  sums: calibration.Sums,
  batch: Batch,
  *,
  run: Experiment,
  sides: Sequence[int],
  mirrored: bool,
) -> tuple[calibration.Sums, jax.Array]:
  """Adds a batch to the sums, and also returns its predictions [B]."""
  variables, mask = run.sharding.gather(variables), batch['mask']
  views = unpack(batch['image'], sides) if sides else [batch['image']]
  if mirrored:
    views += [view[:, :, ::-1] for view in views]
  logits: list[Any] = [
    run.task.model.apply(variables, run.task.normalize(view), train=False)
    for view in views
  ]
  log_probabilities = mean_log_probabilities(logits)
  more = calibration.batch_sums(log_probabilities, batch['label'], mask)
  predictions = jnp.argmax(log_probabilities, axis=1).astype(jnp.int32)
  return jax.tree.map(jnp.add, sums, more), jnp.where(mask, predictions, -1)


def unpack(images: jax.Array, sides: Sequence[int]) -> list[jax.Array]:
  """Unpacks the views of `data.host.transforms.ViewsTransform`.

  Turns [B, N, C], N = sum(side * side), into [B, side, side, C] for each side.
  """
  views, start = [], 0
  for side in sides:
    square = images[:, start : start + side * side]
    views.append(square.reshape(len(images), side, side, -1))
    start += side * side
  return views


def mean_log_probabilities(logits: list[jax.Array]) -> jax.Array:
  """Returns log(mean of softmax(logits)) over the views, each [B, K]."""
  views = jnp.stack([jax.nn.log_softmax(x) for x in logits])
  return jax.nn.logsumexp(views, axis=0) - math.log(len(logits))
