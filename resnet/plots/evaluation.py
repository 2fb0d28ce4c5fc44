"""Prints a detailed evaluation and writes its files."""

from collections.abc import Mapping, Sequence
import os
import tempfile
from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.files import to_json, write_atomically, writing
from resnet.plots import figures
from resnet.plots.reliability import draw_reliability


def lines(report: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
  """Returns the lines that summarize a report.

  Args:
    report: metrics, calibration and the worst classes of an evaluation.
    names: of the classes; None where they have none.
  """
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
  """Raises an InputError where `save` cannot write, before all the work."""
  if os.path.isdir(output) or not os.path.basename(output):
    raise InputError(
      f'--output={output} names no file: type'
      f' --output={os.path.join(output, "report")}'
    )
  folder = os.path.dirname(output) or '.'
  with writing(f'--output={output}'):
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


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
    output: path without a suffix.
    report: as in `lines`.
    sums: of `evaluation.calibration`.
    model: name of the network, for the title.

  Raises:
    InputError: the files cannot be written.
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
  with writing(f'--output={output}'):
    write_atomically(f'{output}.json', f'{text}\n')
    write_atomically(f'{output}.csv', '\n'.join(rows) + '\n')
    figures.save(figure, f'{output}.png')
