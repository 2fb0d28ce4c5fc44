"""Writes the metrics of a run to metrics.jsonl, TensorBoard and a terminal."""

from collections.abc import Mapping
import contextlib
import errno
import importlib
import itertools
import os
import secrets
import sys
from typing import Any, TextIO

import jax
import numpy as np
import tensorboardX
from tensorboardX import summary
import tqdm

from resnet.errors import RunError
from resnet.files import read_json_lines, reading, to_json, write_atomically
from resnet.run.workdir import METRICS_FILE

# The metrics by which TensorBoard compares runs with other hyperparameters.
_COMPARED = ('eval/top1', 'eval_ema/top1', 'eval/loss', 'train/loss')
# The side of the image of a confusion matrix of few classes, pixels.
_CONFUSION_SIDE = 400


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

  Each line is a JSON object with 'step' and 'epoch'; see `files.to_json`. The
  event files also have the fields of `config` as hyperparameters.
  """

  def __init__(
    self, workdir: str, *, first_step: int, config: Mapping[str, Any]
  ):
    path = os.path.join(workdir, METRICS_FILE)
    self._lines = JsonLines(path, first_step=first_step)
    self._events = tensorboardX.SummaryWriter(
      workdir, purge_step=first_step + 1 if first_step else None
    )
    hyperparameters = {
      name: value if isinstance(value, int | float | str) else str(value)
      for name, value in config.items()
    }
    metrics = dict.fromkeys(_COMPARED)
    # Leave out the third summary, which says that the run has ended.
    file: Any = self._events.file_writer
    for part in summary.hparams(hyperparameters, metrics)[:2]:
      file.add_summary(part)
    self._wandb = _start_wandb(workdir, config) if config['wandb'] else None

  def has_evaluation(self, step: int) -> bool:
    """Whether the file had an evaluation at `step` when it was opened."""
    return any(
      line['step'] == step and 'eval/loss' in line for line in self._lines.kept
    )

  def write(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """Writes one line; raises a RunError if it cannot be written."""
    # metrics.jsonl comes first because only its writer reports a full disk.
    line = {'step': step, 'epoch': round(epoch, 6), **values}
    self._lines.write(line)
    if self._wandb:
      self._wandb.log(line)
    for name, value in values.items():
      self._events.add_scalar(name, value, step)

  def write_confusion(self, step: int, counts: np.ndarray) -> None:
    """Writes a confusion matrix, by label and prediction, as an image.

    Takes counts [K, K]. A row is a label. The darkness of a cell is the square
    root of its share of the images with that label, which shows rare mistakes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = -(-_CONFUSION_SIDE // len(counts))
    image = np.kron(255 * (1 - np.sqrt(shares)), np.ones((side, side)))
    name = 'eval/confusion_labels_in_rows_predictions_in_columns'
    self._events.add_image(name, image.astype(np.uint8), step, dataformats='HW')

  def sync(self) -> None:
    """Waits until all lines are on disk."""
    self._lines.sync()

  def close(self) -> None:
    # A full disk was already reported; do not mask that error.
    for finish in (self.sync, self._lines.close, self._events.close):
      with contextlib.suppress(OSError):
        finish()
    if self._wandb:
      self._wandb.finish()


def _start_wandb(workdir: str, config: Mapping[str, Any]) -> Any:
  """Starts or continues the run of a workdir in Weights & Biases."""
  wandb = importlib.import_module('wandb')
  path = os.path.join(workdir, 'wandb_id.txt')
  if not os.path.exists(path):
    write_atomically(path, secrets.token_hex(4))
  with open(path) as file, reading('wandb.init failed', wandb.Error):
    run = wandb.init(
      project=config['wandb'],
      id=file.read(),
      name=os.path.basename(os.path.abspath(workdir)),
      dir=workdir,
      config=dict(config),
      resume='allow',
    )
  # By default, W&B refuses steps that a resumed run repeats.
  run.define_metric('*', step_metric='step')
  return run


class Progress:
  """Prints lines; in process 0 on a terminal, a bar instead of metrics."""

  def __init__(
    self, *, first_step: int, num_steps: int, stream: TextIO | None = None
  ):
    self._process_index = jax.process_index()
    self._stream = stream or sys.stdout
    self._bar = tqdm.tqdm(
      total=num_steps,
      initial=first_step,
      file=self._stream,
      disable=self._process_index > 0 or not self._stream.isatty(),
      dynamic_ncols=True,
      bar_format='{n}/{total} {desc}{bar}',
    )

  def advance(self, count: int = 1) -> None:
    """Counts finished steps."""
    self._bar.update(count)

  def metrics(
    self,
    step: int,
    epoch: float,
    values: Mapping[str, float],
    seconds_left: float | None,
  ) -> None:
    """Shows the training metrics of a log interval."""
    if not self._bar.disable:
      text = _bar_text(epoch, values, seconds_left)
      self._bar.set_description_str(f'{text} ')
      return
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
    """Ends the bar."""
    self._bar.close()


def _bar_text(
  epoch: float, values: Mapping[str, float], seconds_left: float | None
) -> str:
  """Returns metrics that, after 450360/450360, fit a terminal of 80 columns."""
  text = (
    f'epoch {epoch:.3g} loss {values["train/loss"]:.3f}'
    f' top1 {values["train/top1"]:.3f}'
  )
  if 'images_per_second' in values:
    text += (
      f' {values["images_per_second"]:.0f} img/s wait {values["data_wait"]:.0%}'
    )
  if seconds_left is not None:
    minutes = seconds_left // 60
    left = f'{minutes // 60:.0f}h{minutes % 60:02.0f}m'
    if minutes < 60:
      left = tqdm.tqdm.format_interval(seconds_left)
    text += f' left {left}'
  return text
