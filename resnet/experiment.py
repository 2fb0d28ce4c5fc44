"""From a config to the objects of a run; the only reader of a ConfigDict."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from resnet import config as config_lib
from resnet import fields
from resnet.data.augment.batch import create_augmentation
from resnet.data.augment.crop import DeviceCrop
from resnet.data.host.loader import DeviceLoader, LoaderOptions, read_ahead
from resnet.data.host.reader import BatchReader
from resnet.data.host.size_schedule import Sizes, create_sizes
from resnet.data.host.warnings import DataWarnings
from resnet.data.pipeline import Data, create_data
from resnet.errors import InputError
from resnet.models import create_model
from resnet.training import compiler
from resnet.training.losses import check_threshold
from resnet.training.run_length import (
  RunLength,
  check_batch,
  create_run_length,
)
from resnet.training.sharding import DataSharding, create_sharding
from resnet.training.state import TrainState, create_state
from resnet.training.task import Task, create_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """A run, resolved: nothing is left to choose.

  Attributes:
    config: every field as it was given, by dotted name.
    length: batch size and number of steps.
    task: model, optimizer, loss and normalisation; at the last size.
    sizes: side of the training images that the network sees, by step.
    image_shape: [H, W, C] of these images, at the last size.
    eval_image_shape: and of those in evaluation.
    train_reader: batches of training images.
    eval_reader: batches of evaluation images.
    loader: how fast to read.
    sharding: over the devices.
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
    """[H, W, C] of training images, before `task.device_crop`."""
    stored = self.train_reader.source.image_shape
    return self.image_shape if self.task.device_crop is None else stored

  def at(self, step: int) -> 'Experiment':
    """Returns this run with one size throughout: that of batch `step`."""
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
    """Returns this run with its last size, the largest, throughout."""
    return self.at(self.length.num_steps)

  def create_state(self) -> TrainState:
    """Returns the state at step 0, on the devices."""
    key = jax.random.key(self.task.seed)
    shapes = jax.eval_shape(self._create_state, key)
    return jax.jit(
      self._create_state,
      out_shardings=self.sharding.of_state(shapes),
      compiler_options=compiler.options(self.sharding.backend, runs_once=True),
    )(key)

  def abstract_state(self) -> TrainState:
    """Returns shapes, dtypes and shardings of the state."""
    state = jax.eval_shape(self._create_state, jax.random.key(self.task.seed))
    return jax.tree.map(
      lambda x, sharding: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=sharding
      ),
      state,
      self.sharding.of_state(state),
    )

  def _create_state(self, key: jax.Array) -> TrainState:
    return create_state(
      key,
      model=self.task.model,
      tx=self.task.tx,
      image_shape=self.image_shape,
      has_ema=self.task.ema_decay is not None,
    )

  def load(
    self,
    reader: BatchReader,
    warnings: DataWarnings,
    *,
    first_step: int = 0,
    num_steps: int | None = None,
  ) -> DeviceLoader:
    """Returns batches first_step .. num_steps - 1 on the devices, read ahead.

    `warnings` gets a line for each image that is left out and each worker that
    died. Without `num_steps` the last batch is that of the last record.
    """
    if num_steps is None:
      num_steps = math.ceil(len(reader.source) / reader.batch_size)
    batches = read_ahead(
      reader,
      self.loader,
      first_step=first_step,
      num_steps=num_steps,
      warnings=warnings,
    )
    return DeviceLoader(batches, self.sharding.batch, warnings)

  def epoch(self, step: int) -> float:
    """Returns finished epochs after `step` updates."""
    return step / self.length.steps_per_epoch

  def is_eval_step(self, step: int) -> bool:
    """Whether `step` is the nearest to a multiple of `eval_every_epochs`."""
    every = self.config['eval_every_epochs']
    nth = round(self.epoch(step) / every)
    # An interval of less than a step is one step.
    return nth > 0 and (
      self.length.steps(nth * every) == step or self.length.steps(every) == 0
    )

  def derived(self) -> dict[str, Any]:
    """Returns what the config left to be worked out."""
    names = self.train_reader.source.class_names
    return {
      'num_steps': self.length.num_steps,
      'steps_per_epoch': self.length.steps_per_epoch,
      'num_train_examples': len(self.train_reader.source),
      'num_eval_examples': len(self.eval_reader.source),
      'num_classes': self.train_reader.num_classes,
      'class_names': names and list(names),
      'mean': list(self.task.mean),
      'std': list(self.task.std),
    }

  def facts(self) -> dict[str, Any]:
    """Returns what must be the same in all processes of the run."""
    config = {
      field: value
      for field, value in self.config.items()
      if field not in fields.FREE_FIELDS or field.startswith('sharding.')
    }
    return {
      **config,
      **self.derived(),
      'checksum of training images': self.train_reader.source.fingerprint(),
      'checksum of test images': self.eval_reader.source.fingerprint(),
      'version of jax': jax.__version__,
    }

  def with_statistics_of(self, derived: Mapping[str, Any]) -> 'Experiment':
    """Returns this experiment with the normalisation of another run."""
    task = dataclasses.replace(
      self.task, mean=tuple(derived['mean']), std=tuple(derived['std'])
    )
    return dataclasses.replace(self, task=task)


def resolve(
  config: Any,
  *,
  devices: Sequence[Any] | None = None,
  data: Data | None = None,
) -> Experiment:
  """Builds the objects of a run; compiles nothing, writes nothing.

  (But the set `digits` is prepared in its data folder on first use.)

  Args:
    config: a `ConfigDict` with the fields of configs/default.py.
    devices: None: all that JAX sees.
    data: None: those that the config names.

  Raises:
    InputError: a value is wrong; the message says what to type instead.
  """
  flat = config_lib.flatten(config)
  fields.check(flat)
  sharding = create_sharding(devices, **config.sharding)
  num_devices = sharding.mesh.devices.size
  check_batch(config, num_devices)
  data = data or create_data(config.data)
  num_classes = config.model.num_classes or data.train.num_classes
  if num_classes < data.train.num_classes:
    raise InputError(
      f'model.num_classes={num_classes}, but the labels of {data.train.name!r}'
      f' are 0 to {data.train.num_classes - 1}:'
      f' --config.model.num_classes={data.train.num_classes}'
    )
  augmentation = create_augmentation(
    config.augment,
    channels=data.train.channels,
    mix_group_size=config.augment.mix_group_size or config.model.bn_group_size,
  )
  check_threshold(
    config.loss, num_classes, is_mixed=augmentation.mixing is not None
  )
  length = create_run_length(config, len(data.train))
  sizes = create_sizes(
    data.size_schedule, steps=length.steps, num_steps=length.num_steps
  )
  reader = functools.partial(
    _create_reader,
    sharding=sharding,
    num_classes=num_classes,
    max_bad_images=data.max_bad_images,
  )
  size, eval_size = config.data.image_size, data.eval_transform.size
  return Experiment(
    config=flat,
    length=length,
    task=create_task(
      config,
      length,
      backend=sharding.backend,
      model=_create_model(config.model, num_classes),
      mean=data.mean,
      std=data.std,
      device_crop=data.device_crop,
      augmentation=augmentation,
    ),
    sizes=sizes,
    image_shape=(size, size, data.train.channels),
    eval_image_shape=(eval_size, eval_size, data.train.channels),
    train_reader=reader(
      source=data.train,
      transform=data.train_transform,
      seed=config.seed,
      batch_size=config.batch_size,
      repeats=config.data.repeats,
      sizes=sizes,
    ),
    eval_reader=reader(
      source=data.eval,
      transform=data.eval_transform,
      seed=None,
      # So that evaluation needs no more memory than training.
      batch_size=config.batch_size // config.accumulation_steps,
    ),
    loader=data.loader,
    sharding=sharding,
  )


def _create_reader(
  *, sharding: DataSharding, batch_size: int, **fields: Any
) -> BatchReader:
  row_start, row_count = sharding.process_rows(batch_size)
  return BatchReader(
    batch_size=batch_size, row_start=row_start, row_count=row_count, **fields
  )


def _create_model(config: Any, num_classes: int) -> Any:
  # None is the network's own; not every network has all of the fields.
  given = {field: value for field, value in config.items() if value is not None}
  return create_model(
    **{**given, 'num_classes': num_classes, 'dtype': jnp.dtype(config.dtype)}
  )
