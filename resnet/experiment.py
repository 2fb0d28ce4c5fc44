"""Turns a config into the objects of a run."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from resnet import config as config_lib
from resnet import fields
from resnet.data.augment.batch import create_augmentation
from resnet.data.augment.crop import DeviceCrop
from resnet.data.host.cache import CachedReader, check_memory, fill_cache
from resnet.data.host.loader import DeviceLoader, LoaderOptions, read_ahead
from resnet.data.host.reader import BatchReader
from resnet.data.host.size_schedule import Sizes, create_sizes
from resnet.data.host.warnings import DataWarnings
from resnet.data.pipeline import Data, create_data
from resnet.data.sources.base import Source
from resnet.errors import InputError
from resnet.models import create_model
from resnet.training import compiler
from resnet.training.run_length import RunLength, check_batch, create_run_length
from resnet.training.sharding import DataSharding, create_sharding
from resnet.training.state import TrainState, create_state
from resnet.training.task import Task, create_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """The objects of a run, created from its config.

  Attributes:
    config: value of each field of the config, by dotted name.
    length: batch size and number of steps.
    task: model, optimizer, loss, normalisation, for the last image size.
    sizes: side of the network's training images by step.
    image_shape: [H, W, C] of these images at the last size.
    eval_image_shape: [H, W, C] of the evaluation images.
    train_reader: reads batches of training images.
    eval_reader: reads batches of evaluation images.
    loader: number of workers, threads and batches to read ahead.
    sharding: placement of batches and state on the devices.
  """

  config: Mapping[str, Any]
  length: RunLength
  task: Task
  sizes: Sizes
  image_shape: tuple[int, int, int]
  eval_image_shape: tuple[int, int, int]
  train_reader: BatchReader
  eval_reader: BatchReader
  loader: LoaderOptions
  sharding: DataSharding

  @property
  def train_image_shape(self) -> Any:
    """[H, W, C] of training images before `task.device_crop`."""
    stored = self.train_reader.source.image_shape
    return self.image_shape if self.task.device_crop is None else stored

  @property
  def readers(self) -> tuple[BatchReader, BatchReader]:
    """The readers of both splits."""
    return self.train_reader, self.eval_reader

  def at(self, step: int) -> 'Experiment':
    """Returns this run with all batches at the image size of step `step`."""
    size, crop = self.sizes.at(step), self.task.device_crop
    sizes = Sizes(((0, size),))
    if isinstance(crop, DeviceCrop):
      crop = dataclasses.replace(crop, size=size)
    return dataclasses.replace(
      self,
      task=dataclasses.replace(self.task, device_crop=crop),
      sizes=sizes,
      image_shape=(size, size, self.image_shape[-1]),
      train_reader=dataclasses.replace(self.train_reader, sizes=sizes),
    )

  def at_last_size(self) -> 'Experiment':
    """Returns this run with all batches at its last and largest image size."""
    return self.at(self.length.num_steps)

  def create_state(self) -> TrainState:
    """Creates the state of step 0 on the devices."""
    return jax.jit(
      self._create_state,
      out_shardings=self.sharding.of_state(self.abstract_state()),
      compiler_options=compiler.options(self.sharding.backend, runs_once=True),
    )(jax.random.key(self.task.seed))

  def abstract_state(self) -> TrainState:
    """Returns shapes, dtypes and shardings of the state."""
    state = jax.eval_shape(self._create_state, jax.random.key(self.task.seed))
    shardings = self.sharding.of_state(state)
    return jax.tree.map(lambda x, s: x.update(sharding=s), state, shardings)

  def _create_state(self, key: jax.Array) -> TrainState:
    return create_state(key, self.task, self.image_shape)

  def cached(
    self, warnings: DataWarnings, advance: Callable[[int], object]
  ) -> 'Experiment':
    """Returns this run with the images of both splits on every device.

    See `data.host.cache.fill_cache` for the arguments.
    """
    readers, sharding = self.readers, self.sharding.replicated
    check_memory(sum(x.num_bytes for x in readers), sharding)
    train_reader, eval_reader = (
      fill_cache(x, self.loader, sharding, warnings, advance) for x in readers
    )
    return dataclasses.replace(
      self,
      task=dataclasses.replace(self.task, is_cached=True),
      train_reader=train_reader,
      eval_reader=eval_reader,
    )

  def load(
    self,
    reader: BatchReader,
    warnings: DataWarnings,
    *,
    first_step: int = 0,
    num_steps: int | None = None,
  ) -> DeviceLoader:
    """Loads batches first_step .. num_steps - 1 onto the devices ahead of use.

    `warnings` collects a line for each skipped image and each worker that died.
    Without `num_steps`, loading ends after the last record.
    """
    if num_steps is None:
      num_steps = math.ceil(len(reader.source) / reader.batch_size)
    options, cache = self.loader, None
    if isinstance(reader, CachedReader):  # One thread suffices for indices.
      options = dataclasses.replace(options, num_workers=0, num_threads=1)
      cache = reader.cache
    batches = read_ahead(
      reader,
      options,
      first_step=first_step,
      num_steps=num_steps,
      warnings=warnings,
    )
    return DeviceLoader(batches, self.sharding.batch, warnings, cache)

  def epoch(self, step: int) -> float:
    """Returns the number of epochs in `step` updates."""
    return step / self.length.steps_per_epoch

  def is_due(self, field: str, step: int) -> bool:
    """Returns whether an interval of so many steps ends, or the run."""
    return step % self.config[field] == 0 or step == self.length.num_steps

  def updates_in_call(self, step: int, first_step: int) -> int:
    """Returns the number of updates in the call after step `step`.

    It is `steps_per_call`, or 1 if so many would pass a step where something is
    due: only two programs are compiled for an image size. The first update of a
    process (after `first_step`) or size, which compiles both, is also alone.
    """
    count, size_at = self.config['steps_per_call'], self.sizes.at
    if step == first_step or size_at(step - 1) != size_at(step + count - 1):
      return 1
    is_cut = any(
      self.is_due('log_every_steps', x)
      or self.is_due('save_every_steps', x)
      or self.is_eval_step(x)
      for x in range(step + 1, step + count)
    )
    return 1 if is_cut else count

  def is_eval_step(self, step: int) -> bool:
    """Returns whether an evaluation is due: after each interval and at the end.

    Intervals end at the steps nearest to multiples of `eval_every_epochs`. If
    that field rounds to 0 steps, an evaluation is due after every step.
    """
    every = self.config['eval_every_epochs']
    nth = round(self.epoch(step) / every)
    is_nearest = self.length.steps(nth * every) == step
    return step == self.length.num_steps or (
      nth > 0 and (is_nearest or self.length.steps(every) == 0)
    )

  def derived(self) -> dict[str, Any]:
    """Returns the values that follow from the config and the data."""
    names = self.train_reader.source.class_names
    return {
      'num_steps': self.length.num_steps,
      'steps_per_epoch': self.length.steps_per_epoch,
      'num_train_examples': len(self.train_reader.source),
      'num_eval_examples': len(self.eval_reader.source),
      'num_classes': self.config['model.num_classes']
      or self.train_reader.source.num_classes,
      'class_names': names and list(names),
      'mean': list(self.task.mean),
      'std': list(self.task.std),
    }

  def facts(self) -> dict[str, Any]:
    """Returns the values that all processes of the run must agree on."""
    config = {
      field: value
      for field, value in self.config.items()
      if field not in fields.FREE_FIELDS
      or field.startswith(('sharding.', 'data.cache', 'steps_per_call'))
    }
    return {
      **config,
      **self.derived(),
      'checksum of training images': self.train_reader.source.fingerprint(),
      'checksum of test images': self.eval_reader.source.fingerprint(),
      'version of jax': jax.__version__,
    }

  def with_statistics_of(self, derived: Mapping[str, Any]) -> 'Experiment':
    """Returns this experiment with the normalisation of another run's data."""
    task = dataclasses.replace(
      self.task, mean=tuple(derived['mean']), std=tuple(derived['std'])
    )
    return dataclasses.replace(self, task=task)


def resolve(
  config: Any,
  *,
  devices: Sequence[Any] | None = None,
  source: Source | None = None,
) -> Experiment:
  """Creates the objects of a run, without compiling anything.

  It writes no files, except to prepare the data set `digits` on first use.

  Args:
    config: a `ConfigDict` with the fields of configs/default.py.
    devices: devices of the run; None for all that JAX sees.
    source: training and evaluation images; None for those of `config.data`.

  Raises:
    InputError: a value is wrong; the message says what to type instead.
  """
  flat = config_lib.flatten(config)
  fields.check(flat)
  sharding = create_sharding(devices, **config.sharding)
  check_batch(config, sharding.mesh.devices.size)
  data = create_data(config.data, source)
  length = create_run_length(config, len(data.train))
  sizes = create_sizes(
    data.size_schedule, steps=length.steps, num_steps=length.num_steps
  )
  task = create_task(
    config,
    length,
    backend=sharding.backend,
    model=_create_model(config.model, data.train),
    mean=data.mean,
    std=data.std,
    device_crop=data.device_crop,
    augmentation=create_augmentation(
      config.augment,
      channels=data.train.channels,
      mix_group_size=config.augment.mix_group_size
      or config.model.bn_group_size,
    ),
  )
  train_reader, eval_reader = _create_readers(config, data, sharding, sizes)
  size, eval_size = config.data.image_size, data.eval_transform.size
  return Experiment(
    config=flat,
    length=length,
    task=task,
    sizes=sizes,
    image_shape=(size, size, data.train.channels),
    eval_image_shape=(eval_size, eval_size, data.train.channels),
    train_reader=train_reader,
    eval_reader=eval_reader,
    loader=data.loader,
    sharding=sharding,
  )


def _create_readers(
  config: Any, data: Data, sharding: DataSharding, sizes: Sizes
) -> tuple[BatchReader, BatchReader]:
  """Creates the readers of training and evaluation batches."""

  def create(batch_size: int, **options: Any) -> BatchReader:
    row_start, row_count = sharding.process_rows(batch_size)
    return BatchReader(
      batch_size=batch_size,
      row_start=row_start,
      row_count=row_count,
      max_bad_images=data.max_bad_images,
      **options,
    )

  train_reader = create(
    config.batch_size,
    source=data.train,
    transform=data.train_transform,
    seed=config.seed,
    repeats=config.data.repeats,
    sizes=sizes,
  )
  # Use the micro-batch size, so evaluation needs no more memory than training.
  eval_reader = create(
    config.batch_size // config.accumulation_steps,
    source=data.eval,
    transform=data.eval_transform,
    seed=None,
  )
  return train_reader, eval_reader


def _create_model(config: Any, source: Source) -> Any:
  num_classes = config.num_classes or source.num_classes
  if num_classes < source.num_classes:
    raise InputError(
      f'model.num_classes={num_classes}, but the labels of {source.name!r} are'
      f' 0 to {source.num_classes - 1}: type'
      f' --config.model.num_classes={source.num_classes}'
    )
  # None keeps the default of the network, which may lack the field.
  given = {field: value for field, value in config.items() if value is not None}
  return create_model(
    **{**given, 'num_classes': num_classes, 'dtype': jnp.dtype(config.dtype)}
  )
