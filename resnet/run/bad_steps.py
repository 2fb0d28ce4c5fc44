"""Updates that were skipped, because loss or gradients were not finite."""

import dataclasses
import os
from typing import Any

import jax

from resnet.errors import InputError, RunError
from resnet.experiment import Experiment
from resnet.run.metrics_file import JsonLines

FILE = 'bad_steps.jsonl'


class BadSteps:
  """Keeps which records were in a bad batch, and ends a run of too many."""

  def __init__(self, experiment: Experiment, workdir: str, *, first_step: int):
    self._experiment = experiment
    self._workdir = workdir
    self._first_step = first_step
    self._lines: JsonLines | None = None
    exists = os.path.exists(os.path.join(workdir, FILE))
    if exists and jax.process_index() == 0:
      self._open()

  def _open(self) -> JsonLines:
    if self._lines is None:
      path = os.path.join(self._workdir, FILE)
      self._lines = JsonLines(path, first_step=self._first_step)
    return self._lines

  def check(self, step: int, num_in_row: int) -> list[str]:
    """Returns what is to be said of a finished step, mostly nothing.

    Raises:
      RunError: it is the last of `max_bad_steps` skipped updates in a row.
    """
    if not num_in_row:
      return []
    records = record_keys(self._experiment, step)
    if jax.process_index() == 0:
      line = {'step': step, 'in_row': num_in_row, 'records': records}
      self._open().write(line)
      self._open().sync()
    if num_in_row >= self._experiment.max_bad_steps:
      raise RunError(
        f'Loss or gradients were not finite in {num_in_row} steps in a row, the'
        f' last is step {step} (max_bad_steps). The records of their batches'
        f' are in {os.path.join(self._workdir, FILE)}; --mode=replay shows what'
        ' went wrong. The checkpoints are good; a lower learning rate, or'
        ' other data, need another --workdir.'
      )
    return [
      f'warning: loss or gradients of step {step} are not finite: its update is'
      f' skipped ({num_in_row} in a row).'
    ]

  def close(self) -> None:
    """Closes the file."""
    if self._lines:
      self._lines.close()


def record_keys(experiment: Experiment, step: int) -> list[Any]:
  """Returns the keys of the records in the global batch of update `step`."""
  reader = dataclasses.replace(
    experiment.train_reader,
    row_start=0,
    row_count=experiment.length.batch_size,
  )
  try:
    return reader.keys(step - 1)
  except InputError as error:
    return [str(error)]
