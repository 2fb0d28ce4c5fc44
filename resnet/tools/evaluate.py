"""Evaluates a run in detail: several views, calibration, confusions.

  python -m resnet.tools.evaluate --workdir=runs/digits
  python -m resnet.tools.evaluate ... --views=ten --output=report

Prints top-1, top-5, loss, the expected calibration error and the worst classes;
with --output writes them to OUTPUT.json, with the bins of the reliability
diagram, draws this to OUTPUT.png, and writes the confusion matrix, label by
prediction, to OUTPUT.csv.

--views=flip averages the probabilities of the image and its mirror image, ten
those of the corners and the centre, and of their mirror images, cut from the
image whose shorter side is data.eval_resize.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
from typing import Any

import jax
import numpy as np

from resnet import experiment as experiment_lib
from resnet.data.loader import DeviceLoader, read_ahead
from resnet.data.notes import Notes
from resnet.data.transforms import EvalTransform
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.reporting import figures
from resnet.reporting.reliability import draw_reliability
from resnet.tools import command
from resnet.training import calibration, views
from resnet.training.evaluate import open_state, sum_over_processes
from resnet.training.step import Batch, Task
from resnet.training.workdir import write_atomically


def main(args: argparse.Namespace) -> None:
  run = experiment_lib.resolve(args.config)
  _, state, run = open_state(run, args.workdir, args.checkpoint)
  variables = state.variables
  if args.ema:
    if state.ema is None:
      raise InputError(f'--ema: {args.workdir} keeps no moving averages.')
    variables = state.ema
  sums = evaluate(run, variables, args.views)
  summary = calibration.summarize(sums)
  worst = calibration.worst_classes(sums['confusion'], args.worst)
  names = run.train_reader.source.class_names
  print(
    f'{summary["num_examples"]:,} images, views: {args.views}\n'
    f'  top-1 {summary["top1"]:.4f}  top-5 {summary["top5"]:.4f}'
    f'  loss {summary["loss"]:.4f}\n'
    f'  calibration error {summary["ece"]:.4f}'
    f'  (mean confidence {summary["confidence"]:.4f})'
  )
  for entry in worst:
    print(f'  {_describe(entry, names)}')
  if args.output:
    source = run.eval_reader.source
    title = (
      f'{run.config["model.name"]} on {source.name}/{source.split}: top-1'
      f' {summary["top1"]:.4f}, calibration error {summary["ece"]:.4f}'
    )
    summary = {**summary, 'views': args.views, 'worst_classes': worst}
    _write(args.output, summary, sums, title)


def evaluate(
  run: Experiment, variables: Any, which: str
) -> dict[str, np.ndarray]:
  """Returns the sums of `calibration` over the whole evaluation split.

  Args:
    run: with the split.
    variables: of the network.
    which: one of `views.VIEWS`.

  Raises:
    InputError: an image cannot be decoded.
  """
  reader = run.eval_reader
  size = run.eval_image_shape[0]
  transform: Any = reader.transform
  if which == 'ten':
    # The crops are cut on the device, of the whole square.
    transform = EvalTransform(
      size=transform.resize_size,
      resize_size=transform.resize_size,
      interpolation=transform.interpolation,
    )
    reader = dataclasses.replace(reader, transform=transform)
  notes = Notes(reader.max_bad_images)
  batches = read_ahead(
    reader,
    run.loader,
    first_step=0,
    num_steps=math.ceil(len(reader.source) / reader.batch_size),
    notes=notes,
  )
  loader = DeviceLoader(batches, run.sharding.batch, notes)
  step = jax.jit(
    functools.partial(_step, task=run.task, size=size, which=which),
    out_shardings=run.sharding.replicated,
    donate_argnums=1,
  )
  num_classes: int = run.task.model.num_classes  # pyright: ignore[reportAttributeAccessIssue]
  sums = jax.device_put(calibration.zeros(num_classes), run.sharding.replicated)
  for batch in loader:
    sums = step(variables, sums, batch)
  counted = int(sums['bin_count'].sum())
  num_bad = sum_over_processes(loader.num_left_out)
  if counted + num_bad != len(reader.source):
    raise RuntimeError(f'Evaluated {counted} of {len(reader.source)} images.')
  return jax.tree.map(np.asarray, jax.device_get(sums))


def _step(
  variables: Any,
  sums: calibration.Sums,
  batch: Batch,
  *,
  task: Task,
  size: int,
  which: str,
) -> calibration.Sums:
  logits = [
    task.model.apply(variables, task.normalize(view), train=False)
    for view in views.cut(batch['image'], size, which)
  ]
  more = calibration.batch_sums(
    views.mean_probabilities(logits),  # pyright: ignore[reportArgumentType]
    batch['label'],
    batch['mask'],
  )
  return jax.tree.map(lambda a, b: a + b, sums, more)


def _describe(entry: dict[str, Any], names: Any) -> str:
  def name(label: int) -> str:
    return names[label] if names else f'class {label}'

  text = f'{name(entry["label"])}: top-1 {entry["top1"]:.4f}'
  if entry['times']:
    text += f', taken for {name(entry["taken_for"])} {entry["times"]:,} times'
  return f'{text} ({entry["num_examples"]:,} images)'


def _write(
  output: str, summary: dict[str, Any], sums: dict[str, np.ndarray], title: str
) -> None:
  """Writes OUTPUT.json, .csv and .png."""
  bins = {
    name: sums[f'bin_{name}'].astype(float)
    for name in ('count', 'confidence', 'top1')
  }
  lists = {name: values.tolist() for name, values in bins.items()}
  report = json.dumps({**summary, 'sums_of_bins': lists}, indent=2)
  rows = [','.join(map(str, row)) for row in sums['confusion'].tolist()]
  figure = draw_reliability(bins, title=title)
  try:
    os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
    write_atomically(f'{output}.json', f'{report}\n')
    write_atomically(f'{output}.csv', '\n'.join(rows) + '\n')
    figures.save(figure, f'{output}.png')
  except OSError as error:
    raise InputError(
      f'--output={output} cannot be written: {error.strerror}.'
    ) from None


def _parser() -> command.Parser:
  parser = command.ConfigParser(
    prog='python -m resnet.tools.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add('--workdir', required=True, metavar='DIR', help='of the run')
  add('--checkpoint', choices=('best', 'latest'), default='best')
  add('--ema', action='store_true', help='the moving averages')
  add('--views', choices=views.VIEWS, default='center')
  add('--worst', type=int, default=5, metavar='N', help='classes to show')
  add('--output', metavar='FILE', help='without an ending')
  return parser


if __name__ == '__main__':
  command.run(main, _parser())
