"""What a run writes and shows: metrics.jsonl, TensorBoard, progress."""

from collections.abc import Mapping
import contextlib
import errno
import itertools
import json
import os
import sys
from typing import Any, TextIO

import tensorboardX
import tqdm

from resnet.errors import InputError, RunError
from resnet.files import to_json, write_atomically
from resnet.run.workdir import METRICS_FILE


class JsonLines:
  """A file of JSON objects, a line each, that never ends in half a line.

  Each line has 'step'. A run that goes on from step s first drops the lines
  after s, so that no line stands twice, and half a line that a kill may have
  left.
  """

  def __init__(self, path: str, *, first_step: int):
    self.path = path
    self.kept = _drop_lines_after(path, first_step)
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115 (until `close`)

  def write(self, line: Mapping[str, Any]) -> None:
    """Appends a line.

    Raises:
      RunError: it cannot be written; then the file is as it was before.
    """
    size = os.fstat(self._file.fileno()).st_size
    data = (to_json(line) + '\n').encode()
    try:
      written = self._file.write(data)
      if written != len(data):  # So much room was left; no more.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
      with contextlib.suppress(OSError):
        os.ftruncate(self._file.fileno(), size)
      raise RunError(
        f'{self.path} cannot be written: {error.strerror}. Mend that, and the'
        ' same command goes on from the newest checkpoint.'
      ) from error

  def sync(self) -> None:
    """Returns when all lines are on disk."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    self._file.close()


class MetricsWriter:
  """Appends to `metrics.jsonl` and to TensorBoard event files in a workdir.

  A line is a JSON object with 'step' and 'epoch'; see `workdir.to_json`.
  """

  def __init__(self, workdir: str, *, first_step: int):
    path = os.path.join(workdir, METRICS_FILE)
    self._lines = JsonLines(path, first_step=first_step)
    self._events = tensorboardX.SummaryWriter(
      workdir, purge_step=first_step + 1 if first_step else None
    )

  def has_evaluation(self, step: int) -> bool:
    """Whether an evaluation at `step` was there when the file was opened."""
    return any(
      line['step'] == step and 'eval/loss' in line for line in self._lines.kept
    )

  def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Writes one line; RunError: it cannot be written."""
    # First the file that says when it is full.
    self._lines.write({'step': step, 'epoch': round(epoch, 6), **values})
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def sync(self) -> None:
    """Returns when all lines are on disk."""
    self._lines.sync()

  def close(self) -> None:
    # Of a full disk was told before, and that error must not be lost.
    for finish in (self.sync, self._lines.close, self._events.close):
      with contextlib.suppress(OSError):
        finish()


def _drop_lines_after(path: str, step: int) -> list[dict[str, Any]]:
  """Returns the lines that stay."""
  try:
    with open(path) as file:
      lines = file.readlines()
  except FileNotFoundError:
    return []
  except (OSError, UnicodeDecodeError) as error:
    raise InputError(f'{path} cannot be read: {error}.') from None
  whole = [line for line in lines if line.endswith('\n')]
  try:
    parsed = [json.loads(line) for line in whole]
    kept = [line['step'] <= step for line in parsed]
  except (ValueError, KeyError, TypeError):
    raise InputError(
      f'{path} has a line that this program did not write: mend or move it.'
    ) from None
  text = list(itertools.compress(whole, kept))
  if text != lines:
    write_atomically(path, ''.join(text))
  return list(itertools.compress(parsed, kept))


class Progress:
  """Lines; on a terminal a bar below them. Of several processes, one shows."""

  def __init__(
    self,
    *,
    first_step: int,
    num_steps: int,
    process_index: int = 0,
    stream: TextIO | None = None,
  ):
    self._process_index = process_index
    self._stream = stream or sys.stdout
    self._num_steps = num_steps
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      unit='step',
      file=self._stream,
      disable=process_index > 0 or not self._stream.isatty(),
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
    """Shows the metrics of an interval of training."""
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
    self.say(f'step {step}/{self._num_steps}  epoch {epoch:.1f}  {text}')

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one; only in process 0."""
    if self._process_index == 0:
      self.say_anywhere(text)

  def say_anywhere(self, text: str) -> None:
    """Prints a line in any process: of what has happened there alone."""
    if self._process_index > 0:
      text = f'process {self._process_index}: {text}'
    tqdm.tqdm.write(text, file=self._stream)
    self._stream.flush()

  def close(self) -> None:
    self._bar.close()
