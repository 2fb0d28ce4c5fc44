"""Evaluates a run in detail: several views, calibration, confusions.

  python -m resnet.tools.evaluate --workdir=runs/digits
  python -m resnet.tools.evaluate ... --views=ten --output=report

Prints top-1, top-5, loss, the expected calibration error and the worst classes;
with --output writes them to OUTPUT.json, with the bins of the reliability
diagram, draws this to OUTPUT.png, and writes the confusion matrix, label by
prediction, to OUTPUT.csv.

--views=flip averages the probabilities of the image and its mirror image, ten
those of the corners and the centre, and of their mirror images, cut from the
image whose shorter side is data.eval_resize. --views=scales resizes the shorter
side to each of --scales and applies the network to the central square, however
large, and to its mirror image (He et al. 2016, section 3.4; there to the whole
image, but those of a batch differ in shape). Without --scales they are those of
the paper, 224, 256, 384, 480 and 640 pixels, in proportion to data.eval_size.
All sizes of an image travel together: where memory is short, take a smaller
--config.batch_size.

--precise_bn=N takes mean and variance of every batch norm anew, of the first N
training images (rounded up to whole batches), augmented and in groups as in
training, with the weights fixed (Wu and Johnson 2021, section 3). It evaluates
with the old and the new ones and shows what changed; the checkpoint stays.
"""

import argparse
import functools
import json
import os
from typing import Any

import numpy as np

from resnet import experiment as experiment_lib
from resnet.data.pipeline import MAX_IMAGE_SIZE
from resnet.data.scales import paper_sides
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.reporting import figures
from resnet.reporting.reliability import draw_reliability
from resnet.tools import command
from resnet.training import calibration, detailed, precise_bn, views
from resnet.training.evaluate import open_state
from resnet.training.workdir import write_atomically


def main(args: argparse.Namespace) -> None:
  run = experiment_lib.resolve(args.config)
  sides = _sides(args, run)
  if args.precise_bn is not None:
    precise_bn.check(run, args.precise_bn)
  _, state, run = open_state(run, args.workdir, args.checkpoint)
  variables = state.variables
  if args.ema:
    if state.ema is None:
      raise InputError(f'--ema: {args.workdir} keeps no moving averages.')
    variables = state.ema
  evaluate = functools.partial(
    detailed.evaluate, run, which=args.views, sides=sides
  )
  report: dict[str, Any] = {'views': args.views, 'scales': sides}
  if args.precise_bn is not None:
    before = calibration.summarize(evaluate(variables=variables).sums)
    variables = precise_bn.recompute(run, variables, args.precise_bn)
    report['precise_bn'] = {
      'num_images': precise_bn.num_images(run, args.precise_bn),
      'running_statistics': before,
    }
  found = evaluate(variables=variables)
  sums = found.sums
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
  if 'precise_bn' in report:
    before = report['precise_bn']['running_statistics']['top1']
    print(
      f'  batch statistics of {report["precise_bn"]["num_images"]:,} training'
      f' images: top-1 {summary["top1"] - before:+.4f}'
      f' (the running ones: {before:.4f})'
    )
  for entry in worst:
    print(f'  {_describe(entry, names)}')
  if args.output:
    source = run.eval_reader.source
    title = (
      f'{run.config["model.name"]} on {source.name}/{source.split}: top-1'
      f' {summary["top1"]:.4f}, calibration error {summary["ece"]:.4f}'
    )
    report = {**summary, **report, 'worst_classes': worst}
    _write(args.output, report, sums, title)


def _sides(args: argparse.Namespace, run: Experiment) -> tuple[int, ...]:
  """Returns the sides of --views=scales; of other views none."""
  if args.views != 'scales':
    if args.scales is not None:
      raise InputError('--scales is for --views=scales: give that, too.')
    return ()
  if args.scales is None:
    return paper_sides(run.eval_image_shape[0])
  try:
    sides = tuple(map(int, args.scales.split(',')))
  except ValueError:
    sides = ()
  if not sides or not all(0 < side <= MAX_IMAGE_SIZE for side in sides):
    raise InputError(
      f'--scales={args.scales} are not sides of 1 to {MAX_IMAGE_SIZE} pixels:'
      ' type --scales=224,256,384'
    )
  return sides


def _describe(entry: dict[str, Any], names: Any) -> str:
  def name(label: int) -> str:
    # A network may have more logits than the set has classes.
    if names and label < len(names):
      return names[label]
    return f'class {label}'

  text = f'{name(entry["label"])}: top-1 {entry["top1"]:.4f}'
  if entry['times']:
    text += f', taken for {name(entry["taken_for"])} {entry["times"]:,} times'
  return f'{text} ({entry["num_examples"]:,} images)'


def _write(
  output: str, report: dict[str, Any], sums: dict[str, np.ndarray], title: str
) -> None:
  """Writes OUTPUT.json, .csv and .png."""
  bins = {
    name: sums[f'bin_{name}'].astype(float)
    for name in ('count', 'confidence', 'top1')
  }
  lists = {name: values.tolist() for name, values in bins.items()}
  text = json.dumps({**report, 'sums_of_bins': lists}, indent=2)
  rows = [','.join(map(str, row)) for row in sums['confusion'].tolist()]
  figure = draw_reliability(bins, title=title)
  try:
    os.makedirs(os.path.dirname(output) or '.', exist_ok=True)
    write_atomically(f'{output}.json', f'{text}\n')
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
  add('--scales', metavar='N,N,...', help='pixels, for --views=scales')
  add('--precise_bn', type=int, metavar='N', help='of so many training images')
  add('--worst', type=int, default=5, metavar='N', help='classes to show')
  add('--output', metavar='FILE', help='without an ending')
  return parser


if __name__ == '__main__':
  command.run(main, _parser())
