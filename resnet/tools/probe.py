"""Measures how well a linear classifier separates the features of a network.

  python -m resnet.tools.probe --weights=SOURCE --data=digits

Standardises the pooled features of SOURCE (see resnet.tools.predict) for the
images of a TFDS data set, and fits logistic regressions to 5, 20, 100 and all
labels per class. Subsets are drawn with --seeds random seeds. Prints the mean
and standard deviation of the accuracy on the evaluation split.
"""

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from resnet.data.sources.registry import Source, open_source
from resnet.export.exported import open_network
from resnet.files import reading
from resnet.inference.network import add_arguments, source_of
from resnet.inference.predictor import Predictor
from resnet.inference.preprocessing import ImageTransform
from resnet.output import ProgressBar
from resnet.tools import command

_COUNTS = (5, 20, 100, None)
_BATCH_SIZE = 64


def main(args: argparse.Namespace) -> None:
  """Extracts the features of both splits and prints the accuracies."""
  sources = [
    open_source(args.data, split, data_dir=args.data_dir)
    for split in (args.train_split, args.eval_split)
  ]
  network = open_network(source_of(args), args.model, args.dtype)
  predictor = Predictor(network, ['pooled'], [_BATCH_SIZE])
  transform = ImageTransform(preprocessing=network.preprocessing)
  train, test = (_features(predictor, transform, s) for s in sources)
  print(
    f'{network.name} on {args.data}: {len(train[1]):,} training and'
    f' {len(test[1]):,} test images, {train[0].shape[1]} features'
  )
  print('labels per class   top-1')
  for count in _COUNTS:
    if count and count >= np.bincount(train[1]).max():
      continue  # No class has more labels, so this is the same as None.
    seeds = args.seeds if count else 1
    scores = [score(train, test, count, seed) for seed in range(seeds)]
    spread = f' ± {np.std(scores, ddof=1):.4f}' if seeds > 1 else ''
    print(f'{count or "all":>16}   {np.mean(scores):.4f}{spread}')


def _features(
  predictor: Predictor, transform: ImageTransform, source: Source
) -> tuple[np.ndarray, np.ndarray]:
  """Returns pooled features [N, C] and labels [N] of a split."""

  def decode(index: int, record: Any) -> np.ndarray:
    with reading(f'The image of {source.key(index, record)} cannot be decoded'):
      return transform(record['image'])

  def batches(pool: ThreadPoolExecutor) -> Iterator[tuple[Any, np.ndarray]]:
    for start in range(0, len(source), _BATCH_SIZE):
      indices = range(start, min(start + _BATCH_SIZE, len(source)))
      records = source.read(indices)
      images = pool.map(decode, indices, records)
      labels = [int(record['label']) for record in records]
      yield labels, np.concatenate(list(images))

  labels, features = [], []
  with (
    ThreadPoolExecutor() as pool,
    ProgressBar('predicted', len(source)) as bar,
  ):
    for some, outputs in predictor.stream(batches(pool)):
      labels += some
      features.append(outputs['pooled'])
      bar.update(len(some))
  return np.concatenate(features), np.array(labels)


def score(
  train: tuple[np.ndarray, np.ndarray],
  test: tuple[np.ndarray, np.ndarray],
  count: int | None,
  seed: int,
) -> float:
  """Returns the test accuracy with `count` labels per class (None: all)."""
  from sklearn.linear_model import LogisticRegression  # A slow import.
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler

  features, labels = train
  if count:
    order = np.random.default_rng(seed).permutation(len(labels))
    rows = np.concatenate(
      [order[labels[order] == label][:count] for label in np.unique(labels)]
    )
    features, labels = features[rows], labels[rows]
  regression = LogisticRegression(max_iter=1000)
  classifier = make_pipeline(StandardScaler(), regression)
  return float(classifier.fit(features, labels).score(*test))


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result = command.Parser('probe', __doc__)
  add_arguments(result)
  add = result.add_argument_group('data').add_argument
  add('--data', metavar='NAME', required=True, help='TFDS data set')
  add('--data-dir', metavar='DIR', help="default: TFDS's own folder")
  for name, default in (('train', 'train'), ('eval', 'test')):
    text = f'default: {default}'
    add(f'--{name}-split', default=default, metavar='SPLIT', help=text)
  text = 'number of random subsets of the labels; default: 5'
  add('--seeds', type=command.positive, default=5, metavar='N', help=text)
  return result


if __name__ == '__main__':
  command.run(main, parser())
