"""One pass over the evaluation images, with several views of each."""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.host.loader import DeviceLoader, read_ahead
from resnet.data.host.reader import BatchReader
from resnet.data.host.scales import ViewsTransform
from resnet.data.host.warnings import Notes
from resnet.errors import InputError
from resnet.evaluation import calibration, views
from resnet.evaluation.evaluate import sum_over_processes
from resnet.experiment import Experiment
from resnet.training import compiler
from resnet.training.sharding import DataSharding
from resnet.training.step import Batch, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What a pass has found.

  Attributes:
    sums: of `calibration`, over all images.
    predictions: class of each record, in the order of the split, int32 [N];
      -1 where the image is broken.
  """

  sums: dict[str, np.ndarray]
  predictions: np.ndarray


def evaluate(
  run: Experiment,
  variables: Any,
  which: str = 'center',
  sides: Sequence[int] = (),
) -> Found:
  """Evaluates `run.eval_reader`, every image once; prints what is left out.

  Args:
    run: with the images.
    variables: of the network.
    which: one of `views.VIEWS`.
    sides: for 'scales', pixels.

  Raises:
    InputError: an image cannot be decoded.
  """
  if which == 'ten_crop':
    sides = (run.eval_image_shape[0],) * 10
  reader = _reader(run, which, tuple(sides))
  num_examples = len(reader.source)
  notes = Notes(reader.max_bad_images)
  batches = read_ahead(
    reader,
    run.loader,
    first_step=0,
    num_steps=math.ceil(num_examples / reader.batch_size),
    notes=notes,
  )
  loader = DeviceLoader(batches, run.sharding.batch, notes)
  step = jax.jit(
    functools.partial(
      _step,
      task=run.task,
      sharding=run.sharding,
      which=which,
      sides=tuple(sides),
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
  for line in notes.take():
    print(line)
  counted = int(sums['bin_count'].sum())
  num_bad = sum_over_processes(loader.num_left_out)
  if counted + num_bad != num_examples:
    raise RuntimeError(f'Evaluated {counted} of {num_examples} images.')
  if not counted:
    raise InputError(
      f'No image of {reader.source.name}/{reader.source.split} can be decoded.'
    )
  return Found(
    sums=jax.tree.map(np.asarray, jax.device_get(sums)),
    predictions=np.concatenate(jax.device_get(predictions))[:num_examples],
  )


def _reader(run: Experiment, which: str, sides: tuple[int, ...]) -> BatchReader:
  """Returns the reader of the views that the host makes."""
  if not sides:
    return run.eval_reader
  transform: Any = run.eval_reader.transform
  views_transform = ViewsTransform(
    sides=sides,
    resize_size=transform.resize_size if which == 'ten_crop' else None,
    interpolation=transform.interpolation,
  )
  return dataclasses.replace(run.eval_reader, transform=views_transform)


def _step(
  variables: Any,
  sums: calibration.Sums,
  batch: Batch,
  *,
  task: Task,
  sharding: DataSharding,
  which: str,
  sides: Sequence[int],
) -> tuple[calibration.Sums, jax.Array]:
  """Returns the sums with this batch in them, and its predictions [B]."""
  variables = sharding.gather(variables)
  images, mask = batch['image'], batch['mask']
  cuts = views.unpack(images, sides) if sides else [images]
  if which in ('flip', 'scales'):
    cuts = views.with_mirrored(cuts)
  logits: list[Any] = [
    task.model.apply(variables, task.normalize(view), train=False)
    for view in cuts
  ]
  log_probabilities = views.mean_log_probabilities(logits)
  more = calibration.batch_sums(log_probabilities, batch['label'], mask)
  predictions = jnp.argmax(log_probabilities, axis=1).astype(jnp.int32)
  sums = jax.tree.map(lambda a, b: a + b, sums, more)
  return sums, jnp.where(mask, predictions, -1)
