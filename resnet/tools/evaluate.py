"""Evaluates a run in detail: several views, calibration, confusion matrix.

  python -m resnet.tools.evaluate --workdir=runs/digits
  python -m resnet.tools.evaluate ... --views=ten_crop --output=report
  python -m resnet.tools.evaluate --config=configs/saved.py:DIR --workdir=DIR

Prints top-1, top-5 (of more than five classes), loss, the expected calibration
error and the worst classes.
--output also writes them to OUTPUT.json, the reliability diagram to OUTPUT.png,
and the confusion matrix (labels in rows, predictions in columns) to OUTPUT.csv.
Uses the moving averages of the weights if the run keeps them; --workdir=DIR#raw
uses the raw weights.

--views averages the probabilities of several views. flip: the image and its
mirror image. ten_crop: corners, centre and their mirror images. scales: the
central square and its mirror image, with the shorter side resized to each of
--scales (by default those of He et al. 2016, section 3.4, in proportion to the
image size). If memory is short, use a smaller --config.batch_size.

--precise_bn=N replaces the running statistics with those of the first training
batches, with N images or more (Wu and Johnson 2021, section 3), and prints the
change in top-1. The checkpoint is not changed.

--on evaluates on another TFDS data set with the same classes, such as
imagenet_v2/matched-frequency (Recht et al. 2019).

--real_labels=real.json adds the ReaL top-1 (Beyer et al. 2020): a prediction is
right if it is any of the image's labels in the file; images without labels do
not count.
"""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import tempfile
from typing import Any

import numpy as np

from resnet import experiment as experiment_lib
from resnet.data.sources import real_labels
from resnet.data.sources.imagenet_names import readable_name
from resnet.data.sources.registry import open_same_classes
from resnet.errors import InputError
from resnet.evaluation import calibration, precise_bn, views
from resnet.fields import FIELDS
from resnet.files import to_json, write_atomically, writing
from resnet.plots import figures
from resnet.plots.reliability import draw_reliability
from resnet.run.initialize import open_state
from resnet.tools import command


def main(args: argparse.Namespace) -> None:
  """Evaluates, prints and writes the report."""
  run = experiment_lib.resolve(args.config)
  _check(args)
  sides = _sides(args, run.eval_image_shape[0])
  if args.on is not None:
    data_dir = args.data_dir or run.config['data.data_dir']
    source = open_same_classes(
      run.train_reader.source, args.on, args.split, data_dir=data_dir
    )
    reader = dataclasses.replace(run.eval_reader, source=source)
    run = dataclasses.replace(run, eval_reader=reader)
  source, real = run.eval_reader.source, None
  if args.real_labels is not None:
    real = real_labels.by_file_name(source, real_labels.read(args.real_labels))
  if args.precise_bn is not None:
    precise_bn.check(run, args.precise_bn)
  workdir = args.workdir.removesuffix('#raw')
  is_raw = workdir != args.workdir
  step, state, run = open_state(run, workdir, args.checkpoint, say=True)
  is_raw |= state.ema is None
  variables = state.variables if is_raw else state.ema
  report: dict[str, Any] = {
    'images': f'{source.name}/{source.split}',
    'step': step,
    'weights': 'raw' if is_raw else 'moving averages',
    'views': args.views,
    'scales': sides,
  }
  evaluate = functools.partial(
    views.evaluate_views, run, views=args.views, sides=sides
  )
  if args.precise_bn is not None:
    before = calibration.summarize(evaluate(variables=variables)[0])
    variables = precise_bn.recompute(run, variables, args.precise_bn)
    report['precise_bn'] = {
      'num_images': precise_bn.num_images(run, args.precise_bn),
      'running_statistics': before,
    }
  sums, predictions = evaluate(variables=variables)
  report |= calibration.summarize(sums)
  if real is not None:
    report['real'] = real_labels.score(predictions, real)
  report['worst_classes'] = calibration.worst_classes(sums['confusion'])
  _print(report, source.class_names)
  if args.output:
    _save(args.output, report, sums, run.config['model.name'])


def _check(args: argparse.Namespace) -> None:
  """Refuses bad values before any work is done."""
  if args.scales is not None and args.views != 'scales':
    raise InputError('--scales needs --views=scales.')
  if args.on is None and (args.split, args.data_dir) != (None, None):
    raise InputError('--split and --data_dir need --on.')
  if args.output is None:
    return
  if os.path.isdir(args.output) or not os.path.basename(args.output):
    raise InputError(
      f'--output={args.output} is a folder: type'
      f' --output={os.path.join(args.output, "report")}'
    )
  folder = os.path.dirname(args.output) or '.'
  with writing(f'--output={args.output}'):
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def _sides(args: argparse.Namespace, size: int) -> tuple[int, ...]:
  """Returns the sides for --views=scales in pixels; () for other views."""
  if args.views != 'scales':
    return ()
  if args.scales is None:
    # He et al. 2016, section 3.4, for networks trained on 224-pixel images.
    return tuple(round(x * size / 224) for x in (224, 256, 384, 480, 640))
  try:
    sides = tuple(map(int, args.scales.split(',')))
    if not all(map(FIELDS['data.image_size'].accepts, sides)):
      raise ValueError
  except ValueError:
    raise InputError(
      f'--scales={args.scales} is not a list of sides from 1 to 4096 pixels:'
      ' type --scales=224,256,384'
    ) from None
  return sides


def _print(report: Mapping[str, Any], names: Sequence[str] | None) -> None:
  def name(label: int) -> str:
    # A network may have more logits than the data set has classes.
    if not names or label >= len(names):
      return f'class {label}'
    return readable_name(names[label])

  top5 = f'  top-5 {report["top5"]:.4f}' if 'top5' in report else ''
  print(
    f'{report["num_examples"]:,} images of {report["images"]}, views:'
    f' {report["views"]}, weights: {report["weights"]}\n'
    f'  top-1 {report["top1"]:.4f}{top5}  loss {report["loss"]:.4f}'
  )
  if real := report.get('real'):
    print(
      f'  ReaL top-1 {real["top1"]:.4f}  ({real["num_images"]:,} images;'
      f' {real["num_unlabelled"]:,} without labels are not counted)'
    )
  if num := report['num_not_finite']:
    print(
      f'  warning: the logits of {num:,} images are not finite; they count as'
      ' wrong predictions'
    )
  print(
    f'  calibration error {report["ece"]:.4f}'
    f'  (mean confidence {report["confidence"]:.4f})'
  )
  if precise := report.get('precise_bn'):
    before = precise['running_statistics']['top1']
    print(
      f'  batch statistics of {precise["num_images"]:,} training images: top-1'
      f' {report["top1"] - before:+.4f} (running statistics: {before:.4f})'
    )
  for entry in report['worst_classes']:
    text = f'  {name(entry["label"])}: top-1 {entry["top1"]:.4f}'
    if entry['times']:
      other = name(entry['taken_for'])
      text += f', taken for {other} {entry["times"]:,} times'
    print(f'{text} ({entry["num_examples"]:,} images)')


def _save(
  output: str,
  report: Mapping[str, Any],
  sums: Mapping[str, np.ndarray],
  model: str,
) -> None:
  """Writes OUTPUT.json, .csv (confusion matrix) and .png (reliability)."""
  names = ('count', 'confidence', 'top1')
  bins = {name: sums[f'bin_{name}'] for name in names}
  lists = {name: values.tolist() for name, values in bins.items()}
  text = to_json({**report, 'sums_of_bins': lists}, indent=2)
  rows = [','.join(map(str, row)) for row in sums['confusion'].tolist()]
  title = (
    f'{model} on {report["images"]}: top-1 {report["top1"]:.4f},'
    f' calibration error {report["ece"]:.4f}'
  )
  with writing(f'--output={output}'):
    write_atomically(f'{output}.json', f'{text}\n')
    write_atomically(f'{output}.csv', '\n'.join(rows) + '\n')
    figures.save(draw_reliability(bins, title=title), f'{output}.png')


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser('evaluate', __doc__)
  add = result.add_argument
  add('--workdir', required=True, metavar='DIR', help='folder of the run')
  text = 'default: best'
  add('--checkpoint', choices=('best', 'latest'), default='best', help=text)
  text = 'default: center'
  add('--views', choices=views.VIEWS, default='center', help=text)
  add('--scales', metavar='N,N,...', help='pixels, for --views=scales')
  add('--precise_bn', type=int, metavar='N', help='number of training images')
  add('--output', metavar='FILE', help='path without an extension')
  add = result.add_argument_group('data').add_argument
  add('--on', metavar='SET', help='another data set with the same classes')
  add('--split', help='split of --on; default: the only one')
  text = 'data_dir of --on; default: that of --config'
  add('--data_dir', metavar='DIR', help=text)
  add('--real_labels', metavar='FILE', help='real.json of ImageNet-ReaL')
  return result


if __name__ == '__main__':
  command.run(main, parser())
