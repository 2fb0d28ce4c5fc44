"""Writes the metrics of a run to metrics.jsonl, TensorBoard and a terminal."""

from collections.abc import Mapping
import contextlib
import errno
import itertools
import os
import sys
from typing import Any, TextIO

import jax
import tensorboardX
import tqdm

from resnet.errors import RunError
from resnet.files import read_json_lines, to_json
from resnet.run.workdir import METRICS_FILE


class JsonLines:
  """Appends JSON objects to a file, one per line and never a partial line.

  Attributes:
    path: path of the file.
    kept: lines that the file had when it was opened, up to `first_step`.
  """

  def __init__(self, path: str, *, first_step: int):
    """Removes lines after `first_step`, which the run will write again."""
    self.path = path
    self.kept = [x for x in read_json_lines(path) if x['step'] <= first_step]
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 (until `close`)
    with open(path, 'rb') as file:
      size = sum(map(len, itertools.islice(file, len(self.kept))))
    self._file.truncate(size)  # Removes a partial line too.

  def write(self, line: Mapping[str, Any]) -> None:
    """Appends a line, or raises a RunError and leaves the file unchanged."""
    size = os.fstat(self._file.fileno()).st_size
    data = (to_json(line) + '\n').encode()
    try:
      written = self._file.write(data)
      if written != len(data):  # The disk had room for only a part.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
      with contextlib.suppress(OSError):
        self._file.truncate(size)
      raise RunError(
        f'{self.path} cannot be written: {error.strerror}. Fix the cause; the'
        ' same command continues from the newest checkpoint.'
      ) from error

  def sync(self) -> None:
    """Waits until all lines are on disk."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard event files in a workdir.

  Each line is a JSON object with 'step' and 'epoch'; see `files.to_json`.
  """

  def __init__(self, workdir: str, *, first_step: int):
    path = os.path.join(workdir, METRICS_FILE)
    self._lines = JsonLines(path, first_step=first_step)
    self._events = tensorboardX.SummaryWriter(
      workdir, purge_step=first_step + 1 if first_step else None
    )

  def has_evaluation(self, step: int) -> bool:
    """Whether the file had an evaluation at `step` when it was opened."""
    return any(
      line['step'] == step and 'eval/loss' in line for line in self._lines.kept
    )

  def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Writes one line; raises a RunError if it cannot be written."""
    # metrics.jsonl comes first because only its writer reports a full disk.
    self._lines.write({'step': step, 'epoch': round(epoch, 6), **values})
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def sync(self) -> None:
    """Waits until all lines are on disk."""
    self._lines.sync()

  def close(self) -> None:
    # A full disk was already reported; do not mask that error.
    for finish in (self.sync, self._lines.close, self._events.close):
      with contextlib.suppress(OSError):
        finish()


class Progress:
  """Prints lines and, in process 0 on a terminal, a progress bar."""

  def __init__(
    self, *, first_step: int, num_steps: int, stream: TextIO | None = None
  ):
    self._process_index = jax.process_index()
    self._stream = stream or sys.stdout
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit='step',
      file=self._stream,
      disable=self._process_index > 0 or not self._stream.isatty(),
      dynamic_ncols=True,
    )

  def advance(self) -> None:
    """Counts one step."""
    self._bar.update()

  def metrics(
    self,
    step: int,
    epoch: float,
    values: Mapping[str, float],
    seconds_left: float | None,
  ) -> None:
    """Prints the training metrics of a log interval."""
    text = (
      f'loss {values["train/loss"]:.4f}  top1 {values["train/top1"]:.4f}'
      f'  lr {values["learning_rate"]:.4g}'
    )
    if 'images_per_second' in values:
      text += (
        f'  {values["images_per_second"]:,.0f} images/s'
        f'  data wait {values["data_wait"]:.0%}'
      )
    if seconds_left is not None:
      text += f'  left {tqdm.tqdm.format_interval(seconds_left)}'
    self.say(f'step {step}/{self._bar.total}  epoch {epoch:.1f}  {text}')

  def say(self, text: str) -> None:
    """Prints a line above the bar; only in process 0."""
    if self._process_index == 0:
      self.say_anywhere(text)

  def say_anywhere(self, text: str) -> None:
    """Prints a line in any process, with the number of that process."""
    if self._process_index > 0:
      text = f'process {self._process_index}: {text}'
    tqdm.tqdm.write(text, file=self._stream)
    self._stream.flush()

  def close(self) -> None:
    """Removes the bar."""
    self._bar.close()
