"""Compares fine-tuning with training from random weights on few labels.

  PYTHONPATH=. python benchmarks/transfer.py --idx=FOLDER --workdir=DIR

Trains ResNet-8 on Fashion-MNIST's classes 0 to 6 (2,000 images per class), then
on classes 7 to 9 with 20 labels per class, drawn with seeds 0 to 4: from those
weights and from random ones, with the same recipe and the same two learning
rates. The accuracy is that of the last step on the 3,000 test images of classes
7 to 9. FOLDER has the idx files, as in Debian's dataset-fashion-mnist. Prints a
Markdown table and writes results.json to the workdir.
"""

import argparse
import json
import logging
import os
import statistics
import time

import jax
import numpy as np

from configs import fashion_mnist, finetune
from resnet import experiment
from resnet.data.prepare import writer
from resnet.data.prepare.job import Encoding, Job
from resnet.data.sources import idx
from resnet.data.sources.base import ArrayRecords, Source
from resnet.run import run as run_lib
from resnet.run.provenance import commit, hardware

_SEEDS = range(5)
_LABELS_A_CLASS = 20
_OLD, _NEW = range(7), range(7, 10)
# Learning rate, and whether to start from the weights of the old classes.
_ARMS = {
  'fine-tuned, rate 0.01': (0.01, True),
  'from scratch, rate 0.01': (0.01, False),
  'from scratch, rate 0.1': (0.1, False),
  'fine-tuned, rate 0.1': (0.1, True),
}


def _select(split, classes, count=None, seed=0):
  """Returns `count` images per class (None: all), with labels from 0."""
  images, labels = split
  rng = np.random.default_rng(seed)
  rows = []
  for label in classes:
    found = np.flatnonzero(labels == label)
    rows.append(found if count is None else rng.permutation(found)[:count])
  rows = np.concatenate(rows)
  return images[rows], labels[rows] - np.uint8(classes[0])


def _prepare(folder, data_dir):
  splits = {
    split: (source.records.images, source.records.labels)
    for split, source in idx.open_splits(folder, 'fashion_mnist').items()
  }
  sets = {
    'fashion_old': {
      'train': _select(splits['train'], _OLD, 2000),
      'test': _select(splits['test'], _OLD),
    },
    'fashion_new': {
      'train': _select(splits['train'], _NEW),
      'test': _select(splits['test'], _NEW),
      **{
        f'few{seed}': _select(splits['train'], _NEW, _LABELS_A_CLASS, seed)
        for seed in _SEEDS
      },
    },
  }
  for name, arrays in sets.items():
    folder = os.path.join(data_dir, name, writer.VERSION)
    if os.path.isdir(folder):
      continue
    job = Job(
      name=name,
      folder=folder,
      splits={
        split: Source(
          name=name,
          split=split,
          num_classes=1 + int(labels.max()),
          channels=1,
          records=ArrayRecords(images, labels),
        )
        for split, (images, labels) in arrays.items()
      },
      encoding=Encoding(channels=1, resize=None, quality=95, raw=False),
      origin={'from': 'idx', 'labels_a_class': _LABELS_A_CLASS},
    )
    writer.write(job, num_threads=2, advance=lambda _: None)


def _train(config, workdir):
  """Trains or resumes; returns the last top-1."""
  run = experiment.resolve(config)
  if run_lib.run(run, workdir, start_time=time.time()):
    raise SystemExit('stopped')
  with open(os.path.join(workdir, 'metrics.jsonl')) as file:
    lines = [json.loads(line) for line in file]
  return [line['eval/top1'] for line in lines if 'eval/top1' in line][-1]


def _old_config(data_dir):
  config = fashion_mnist.get_config('resnet8')
  config.num_epochs = 4.0
  config.eval_every_epochs = 4.0
  config.data.name = 'fashion_old'
  config.data.data_dir = data_dir
  return config


def _new_config(source, data_dir, seed, rate, is_transfer):
  config = finetune.get_config(f'{source},fashion_new')
  config.seed = seed
  config.batch_size = 30
  config.num_epochs = 40.0
  config.eval_every_epochs = 40.0
  config.data.data_dir = data_dir
  config.data.train_split = f'few{seed}'
  config.data.crop = 'pad'
  config.data.crop_padding = 2
  config.schedule.learning_rate = rate
  config.schedule.base_batch_size = 30
  config.schedule.warmup_epochs = 2.0
  if not is_transfer:
    config.init_from = None
  return config


def _table(results):
  lines = ['| weights | top-1, % | seeds 0 to 4 |', '|---|---|---|']
  for arm, values in results.items():
    percents = [100 * value for value in values]
    mean, std = statistics.mean(percents), statistics.stdev(percents)
    each = ', '.join(f'{value:.1f}' for value in percents)
    lines.append(f'| {arm} | {mean:.1f} ± {std:.1f} | {each} |')
  return '\n'.join(lines)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--idx', required=True)
  parser.add_argument('--workdir', required=True)
  args = parser.parse_args()
  logging.getLogger('absl').setLevel(logging.ERROR)
  data_dir = os.path.join(args.workdir, 'data')
  cache = os.path.join(args.workdir, 'jax_cache')
  jax.config.update('jax_compilation_cache_dir', cache)
  _prepare(args.idx, data_dir)
  source = os.path.join(args.workdir, 'old')
  old = _train(_old_config(data_dir), source)
  results = {}
  for i, (arm, (rate, is_transfer)) in enumerate(_ARMS.items()):
    results[arm] = [
      _train(
        _new_config(source, data_dir, seed, rate, is_transfer),
        os.path.join(args.workdir, f'arm{i}_seed{seed}'),
      )
      for seed in _SEEDS
    ]
  record = {
    'old_classes_top1': old,
    'new_classes_top1': results,
    'labels_a_class': _LABELS_A_CLASS,
    'commit': commit(),
    'hardware': hardware(jax.devices()),
  }
  with open(os.path.join(args.workdir, 'results.json'), 'w') as file:
    json.dump(record, file, indent=2)
  print(_table(results))


if __name__ == '__main__':
  main()
