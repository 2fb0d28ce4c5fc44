"""Evaluates a run in detail: several views, calibration, confusions.

  python -m resnet.tools.evaluate --workdir=runs/digits
  python -m resnet.tools.evaluate ... --views=ten_crop --output=report

Prints top-1, top-5, loss, the expected calibration error and the worst classes;
with --output writes them to OUTPUT.json, with the bins of the reliability
diagram, draws this to OUTPUT.png, and writes the confusion matrix, label by
prediction, to OUTPUT.csv.

--views=flip averages the probabilities of the image and its mirror image,
ten_crop those of the corners and the centre, and of their mirror images, cut
from the image whose shorter side is data.eval_resize. --views=scales resizes
the shorter side to each of --scales and applies the network to the central
square, however large, and to its mirror image (He et al. 2016, section 3.4;
there to the whole image, but those of a batch differ in shape). Without
--scales they are those of the paper, 224, 256, 384, 480 and 640 pixels, in
proportion to data.eval_size. All views of an image travel together: where
memory is short, take a smaller --config.batch_size.

A run that keeps moving averages is evaluated with them; --workdir=DIR#raw takes
the weights themselves.

--precise_bn=N takes mean and variance of every batch norm anew, of the first N
training images (rounded up to whole batches), augmented and in groups as in
training, with the weights fixed (Wu and Johnson 2021, section 3). It evaluates
with the old and the new ones and shows what changed; the checkpoint stays.

--on evaluates on another TFDS set of the same classes, resized and normalised
as the run's own: imagenet_v2/matched-frequency, .../threshold-0.7 and
.../topimages (Recht et al. 2019), or imagenet2012_real.

--real_labels=real.json adds the ReaL top-1 (Beyer et al. 2020): a prediction is
right where it is among the labels that the file has for the image, found by the
name ILSVRC2012_val_... of the image, and an image without labels does not
count. The set imagenet2012_real brings these labels along.
"""

import argparse
import dataclasses
import functools
from typing import Any

from resnet import experiment as experiment_lib
from resnet.data.host.views import paper_sides
from resnet.data.sources import real_labels
from resnet.data.sources.same_classes import open_same_classes
from resnet.errors import InputError
from resnet.evaluation import calibration, precise_bn, views
from resnet.experiment import Experiment
from resnet.fields import FIELDS
from resnet.plots import evaluation
from resnet.run.initialize import open_state
from resnet.tools import command
from resnet.weights import split_raw


def main(args: argparse.Namespace) -> None:
  run = experiment_lib.resolve(args.config)
  _check(args)
  sides = _sides(args, run)
  run = _with_images(args, run)
  real = _real_labels(args, run)
  if args.precise_bn is not None:
    precise_bn.check(run, args.precise_bn)
  workdir, is_raw = split_raw(args.workdir)
  _, state, run = open_state(run, workdir, args.checkpoint)
  is_raw |= state.ema is None
  variables = state.variables if is_raw else state.ema
  source = run.eval_reader.source
  report: dict[str, Any] = {
    'images': f'{source.name}/{source.split}',
    'weights': 'raw' if is_raw else 'moving averages',
    'views': args.views,
    'scales': sides,
  }
  evaluate = functools.partial(
    views.evaluate, run, views=args.views, sides=sides
  )
  if args.precise_bn is not None:
    before = calibration.summarize(evaluate(variables=variables).sums)
    variables = precise_bn.recompute(run, variables, args.precise_bn)
    report['precise_bn'] = {
      'num_images': precise_bn.num_images(run, args.precise_bn),
      'running_statistics': before,
    }
  found = evaluate(variables=variables)
  report |= calibration.summarize(found.sums)
  if real is not None:
    report['real'] = real_labels.score(found.predictions, real)
  confusion = found.sums['confusion']
  report['worst_classes'] = calibration.worst_classes(confusion, args.worst)
  print('\n'.join(evaluation.lines(report, source.class_names)))
  if args.output:
    model = run.config['model.name']
    evaluation.save(args.output, report, found.sums, model=model)


def _check(args: argparse.Namespace) -> None:
  if args.worst < 0:
    raise InputError(f'--worst={args.worst} is no number of classes.')
  if args.scales is not None and args.views != 'scales':
    raise InputError('--scales is for --views=scales: give that, too.')
  if args.on is None and (args.split, args.data_dir) != (None, None):
    raise InputError('--split and --data_dir are for --on: give that, too.')
  if args.on is not None and not args.on.strip():
    raise InputError(
      f'--on={args.on} is no data set: leave it out, or type'
      ' --on=imagenet_v2/matched-frequency'
    )
  if args.output is not None:
    evaluation.check(args.output)


def _with_images(args: argparse.Namespace, run: Experiment) -> Experiment:
  """Returns the run with the images of --on for evaluation."""
  if args.on is None:
    return run
  source = open_same_classes(
    run.train_reader.source,
    args.on,
    args.split,
    data_dir=args.data_dir or run.config['data.data_dir'],
  )
  reader = dataclasses.replace(run.eval_reader, source=source)
  return dataclasses.replace(run, eval_reader=reader)


def _real_labels(
  args: argparse.Namespace, run: Experiment
) -> real_labels.Labels | None:
  """Returns the labels that people see in each image, where they are known."""
  source = run.eval_reader.source
  if args.real_labels is None:
    return real_labels.of_records(source)
  return real_labels.by_file_name(source, real_labels.read(args.real_labels))


def _sides(args: argparse.Namespace, run: Experiment) -> tuple[int, ...]:
  """Returns the sides of --views=scales; of other views none."""
  if args.views != 'scales':
    return ()
  if args.scales is None:
    return paper_sides(run.eval_image_shape[0])
  try:
    sides = tuple(map(int, args.scales.split(',')))
  except ValueError:
    sides = ()
  if not sides or not all(map(FIELDS['data.image_size'].accepts, sides)):
    raise InputError(
      f'--scales={args.scales} are not sides of 1 to 4096 pixels:'
      ' type --scales=224,256,384'
    )
  return sides


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.ConfigParser(
    prog='python -m resnet.tools.evaluate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = result.add_argument
  add('--workdir', required=True, metavar='DIR', help='of the run')
  add('--checkpoint', choices=('best', 'latest'), default='best')
  add('--views', choices=views.VIEWS, default='center')
  add('--on', metavar='SET', help='other images of the same classes')
  add('--split', help='of --on; without it, the only one')
  add('--data_dir', metavar='DIR', help='of --on; else that of the config')
  add('--real_labels', metavar='FILE', help='real.json of ImageNet-ReaL')
  add('--scales', metavar='N,N,...', help='pixels, for --views=scales')
  add('--precise_bn', type=int, metavar='N', help='of so many training images')
  add('--worst', type=int, default=5, metavar='N', help='classes to show')
  add('--output', metavar='FILE', help='without an ending')
  return result


if __name__ == '__main__':
  command.run(main, parser())
