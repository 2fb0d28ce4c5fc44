"""A detailed evaluation, printed and written."""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import os
import tempfile
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.files import to_json, write_atomically
from resnet.plots import figures
from resnet.plots.reliability import draw_reliability


def lines(report: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
  """Returns what is printed of a report; `names` are those of the classes."""
  found = [
    f'{report["num_examples"]:,} images of {report["images"]}, views:'
    f' {report["views"]}, weights: {report["weights"]}',
    f'  top-1 {report["top1"]:.4f}  top-5 {report["top5"]:.4f}'
    f'  loss {report["loss"]:.4f}',
  ]
  if real := report.get('real'):
    found.append(
      f'  ReaL top-1 {real["top1"]:.4f}  ({real["num_images"]:,} images;'
      f' {real["num_unlabelled"]:,} without labels are not counted)'
    )
  if num := report['num_not_finite']:
    found.append(
      f'  warning: the logits of {num:,} images are not finite; they count as'
      ' wrong'
    )
  found.append(
    f'  calibration error {report["ece"]:.4f}'
    f'  (mean confidence {report["confidence"]:.4f})'
  )
  if precise := report.get('precise_bn'):
    before = precise['running_statistics']['top1']
    found.append(
      f'  batch statistics of {precise["num_images"]:,} training images: top-1'
      f' {report["top1"] - before:+.4f} (the running ones: {before:.4f})'
    )
  return found + [f'  {_describe(x, names)}' for x in report['worst_classes']]


def check(output: str) -> None:
  """Raises an InputError where `save` could not write, before all the work."""
  if not output:
    raise InputError(
      '--output= names no file: leave it out, or type --output=report'
    )
  if os.path.isdir(output) or not os.path.basename(output):
    raise InputError(
      f'--output={output} is a folder, not the beginning of file names: type'
      f' --output={os.path.join(output, "report")}'
    )
  folder = os.path.dirname(output) or '.'
  with _writing(output):
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


@contextlib.contextmanager
def _writing(output: str) -> Iterator[None]:
  try:
    yield
  except OSError as error:
    raise InputError(
      f'--output={output} cannot be written: {error.strerror}.'
    ) from None


def _describe(entry: Mapping[str, Any], names: Sequence[str] | None) -> str:
  def name(label: int) -> str:
    # A network may have more logits than the set has classes.
    if names and label < len(names):
      return names[label]
    return f'class {label}'

  text = f'{name(entry["label"])}: top-1 {entry["top1"]:.4f}'
  if entry['times']:
    text += f', taken for {name(entry["taken_for"])} {entry["times"]:,} times'
  return f'{text} ({entry["num_examples"]:,} images)'


def save(
  output: str,
  report: Mapping[str, Any],
  sums: Mapping[str, np.ndarray],
  *,
  model: str,
) -> None:
  """Writes OUTPUT.json, .csv (confusions) and .png (reliability).

  Args:
    output: path without an ending.
    report: what has been found.
    sums: of `evaluation.calibration`.
    model: name of the network, for the title.

  Raises:
    InputError: they cannot be written.
  """
  bins = {
    name: sums[f'bin_{name}'].astype(float)
    for name in ('count', 'confidence', 'top1')
  }
  lists = {name: values.tolist() for name, values in bins.items()}
  text = to_json({**report, 'sums_of_bins': lists}, indent=2)
  rows = [','.join(map(str, row)) for row in sums['confusion'].tolist()]
  title = (
    f'{model} on {report["images"]}: top-1 {report["top1"]:.4f},'
    f' calibration error {report["ece"]:.4f}'
  )
  figure = draw_reliability(bins, title=title)
  with _writing(output):
    write_atomically(f'{output}.json', f'{text}\n')
    write_atomically(f'{output}.csv', '\n'.join(rows) + '\n')
    figures.save(figure, f'{output}.png')
