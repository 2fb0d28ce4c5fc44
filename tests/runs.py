"""Small runs of `configs/fake.py`: their configs, and what they left behind."""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import threading
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from configs import default, fake
from resnet import experiment
from resnet.data.host.loader import DeviceLoader
from resnet.data.host.reader import BatchReader
from resnet.run import workdir as workdir_lib
from resnet.run.checkpoint import Checkpoints
from resnet.training.step import jit_steps
from tests.programs import wait_until

# Metrics that differ from run to run.
TIMES = ('images_per_second', 'data_wait')


def fake_config(**changes: Any) -> ConfigDict:
  """Returns the config `fake` with fields changed; '__' stands for a dot."""
  config = fake.get_config()
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return config


def section(name: str, /, **changes: Any) -> ConfigDict:
  """Returns a section of the default config with fields changed."""
  fields = default.get_config()[name]
  fields.update(changes)
  return fields


def resolve(**changes: Any) -> experiment.Experiment:
  """Returns the experiment of `fake_config`."""
  return experiment.resolve(fake_config(**changes))


def read_metrics(workdir: Any) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def untimed(workdir: Any) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl without speeds."""
  return [
    {name: value for name, value in line.items() if name not in TIMES}
    for line in read_metrics(workdir)
  ]


def final_state(
  workdir: Any, run: experiment.Experiment | None = None, **changes: Any
) -> Any:
  """Returns the newest checkpoint of `run`, or of `resolve(**changes)`."""
  checkpoints = Checkpoints(str(workdir))
  target = (run or resolve(**changes)).abstract_state()
  return jax.device_get(checkpoints.restore(checkpoints.latest_step(), target))


def assert_same_run(
  workdir: Any,
  other: Any,
  run: experiment.Experiment | None = None,
  **changes: Any,
) -> None:
  """Asserts equal metrics and, bit for bit, equal final states."""
  assert untimed(workdir) == untimed(other)
  assert untimed(workdir)
  jax.tree.map(
    np.testing.assert_array_equal,
    final_state(workdir, run, **changes),
    final_state(other, run, **changes),
  )


def save_run(
  workdir: Any, run: experiment.Experiment, variables: Any, ema: Any = None
) -> Any:
  """Writes config and checkpoint of a run with these variables, untrained.

  Returns the state: zeros but for the variables and their moving averages.
  """
  state = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), run.abstract_state()
  )
  state = state.replace(**variables, ema=ema)
  os.makedirs(workdir, exist_ok=True)
  workdir_lib.write_config(str(workdir), run.config, run.derived())
  checkpoints = Checkpoints(str(workdir), keep=1)
  checkpoints.save(state, None)
  checkpoints.close()
  return state


def as_flags(**changes: Any) -> list[str]:
  """Returns the flags of main.py for `fake_config(**changes)`."""
  return [
    '--config=configs/fake.py',
    *(f'--config.{k.replace("__", ".")}={v}' for k, v in changes.items()),
  ]


def tiny(
  num_devices: int = 8, *, stage_sizes: Any = (1,), **changes: Any
) -> experiment.Experiment:
  """Returns a run on 8 pixels with a network that is soon compiled."""
  small = {'data__image_size': 8, 'data__eval_resize': 8}
  run = experiment.resolve(
    fake_config(**{**small, **changes}), devices=jax.devices()[:num_devices]
  )
  model = run.task.model.clone(stage_sizes=stage_sizes, num_filters=8)
  return dataclasses.replace(
    run, task=dataclasses.replace(run.task, model=model)
  )


def batch_of(run: experiment.Experiment, step: int = 0) -> Any:
  """Returns a training batch on the devices of the run."""
  return jax.device_put(run.train_reader(step), run.sharding.batch)


def compile_step(run: experiment.Experiment) -> Any:
  """Returns the compiled update of a run."""
  steps = jit_steps(run.task, run.sharding)
  batch = jax.eval_shape(lambda: run.train_reader(0))
  return steps.train.lower(run.abstract_state(), batch).compile()


def train_steps(
  run: experiment.Experiment, num_steps: int, state: Any = None
) -> tuple[Any, list[float]]:
  """Returns the state after so many updates, and the loss shown after each."""
  steps = jit_steps(run.task, run.sharding)
  state, losses = state or run.create_state(), []
  first = int(state.step)
  for step in range(first, first + num_steps):
    state, metrics = steps.train(state, batch_of(run, step))
    losses.append(float(metrics['loss']) / float(metrics['num_examples']))
  return state, losses


def assert_close(tree: Any, other: Any, **tolerances: float) -> None:
  """Asserts that all arrays of two trees are close."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerances),
    *jax.device_get((tree, other)),
  )


def with_broken_images(reader: BatchReader, *indices: int) -> BatchReader:
  """Returns a reader for which the records at these indices have no image."""
  records = _BrokenRecords(reader.source.records, frozenset(indices))
  source = dataclasses.replace(reader.source, records=records)
  return dataclasses.replace(reader, source=source)


@dataclasses.dataclass(frozen=True)
class _BrokenRecords:
  records: Any
  broken: frozenset[int]

  def __len__(self):
    return len(self.records)

  def __getitem__(self, key):
    record = self.records[key]
    return {**record, 'image': b'no image'} if key in self.broken else record


def at_batch(
  monkeypatch: Any, number: int, error: Exception | None = None
) -> None:
  """Raises the error, or SIGTERM, before batch `number` of this process.

  The first batch is 1; those of training and evaluation count alike.
  """
  count, real = 0, DeviceLoader.__next__

  def patched(self):
    nonlocal count
    count += 1
    if count == number and error:
      raise error
    if count == number:
      signal.raise_signal(signal.SIGTERM)
    return real(self)

  monkeypatch.setattr(DeviceLoader, '__next__', patched)


@contextlib.contextmanager
def compilations() -> Iterator[list[tuple[str, str]]]:
  """Yields a list that gets (thread, function) of each program compiled.

  Programs that are read from the compilation cache count, too.
  """
  found = []

  def listen(event, seconds, **fields):
    del seconds
    if event == '/jax/core/compile/backend_compile_duration':
      found.append((threading.current_thread().name, fields['fun_name']))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def series(workdir: Any, name: str) -> dict[int, float]:
  """Returns the values of a metric by step."""
  lines = read_metrics(workdir)
  return {line['step']: line[name] for line in lines if name in line}


def assert_close_runs(workdir: Any, other: Any, *, rtol: float) -> None:
  """Asserts losses and evaluations at the same steps that agree to rounding."""
  for name in ('train/loss', 'eval/loss', 'eval_ema/loss', 'eval/num_examples'):
    ours, theirs = series(workdir, name), series(other, name)
    assert ours, name
    assert list(ours) == list(theirs), name
    np.testing.assert_allclose(
      list(ours.values()), list(theirs.values()), rtol=rtol, err_msg=name
    )


def wait_for_step(workdir: Any, step: int, *processes: Any) -> None:
  """Returns once the metrics of a step are written by running processes."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  wait_until(
    lambda: path.exists() and f'"step": {step},' in path.read_text(), *processes
  )
