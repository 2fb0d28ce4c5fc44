"""All configs build; published recipes are golden texts for review.

To write the texts anew: PYTHONPATH=. python tests/test_recipe_configs.py
"""

import dataclasses
import importlib
import pathlib

import numpy as np
import pytest

from configs import default
from resnet import experiment
from resnet.config import flatten
from resnet.data import pipeline
from resnet.data.sources import registry
from resnet.errors import InputError

GOLDEN = pathlib.Path(__file__).parent / 'recipes'
RECIPES = [
  *((f'resnet{depth}', None) for depth in (18, 34, 50, 101, 152)),
  ('resnetrs50', None),
  *(
    ('ffcv', f'{net}_{epochs}')
    for net in ('rn18', 'rn50')
    for epochs in (16, 24, 32, 40, 56, 88)
  ),
  *(('resnet50_goyal', name) for name in ('256', '8192')),
  *(('resnet50_lars', name) for name in ('32768', '3264')),
  ('resnet50_torchvision_v2', None),
  *(('resnet50_timm', name) for name in ('a1', 'a2', 'a3')),
  *(('resnet50_nvidia', name) for name in ('e50', 'e90', 'e250')),
]
OTHERS = [
  ('default', None),
  ('digits', None),
  ('fake', None),
  ('fashion_mnist', None),
  ('imagenet', 'resnet50d'),
  ('imagenette', '128x5'),
  ('imagenette', '192x80,resnet50d'),
  ('paper_digits', 'plain56'),
  *(('cifar10', f'resnet{depth}') for depth in (20, 32, 44, 56, 110, 1202)),
  *(('cifar10', name) for name in ('plain20', 'plain110', 'preact_resnet164')),
  ('cifar10', 'resnet20,20'),
]
# Of data sets, images; of the others the `fake` ones.
LENGTHS = {'imagenet2012': 1_281_167, 'cifar10': 45_000}


def open_stand_in(name, split, **options):
  """Returns made-up images, as many as the set `name` has."""
  del split
  source = registry.open_source('fake', 'train', **options)
  records = dataclasses.replace(
    source.records, length=LENGTHS.get(name, len(source))
  )
  num_classes = 1000 if name == 'imagenet2012' else 10
  return dataclasses.replace(
    source, name=name, num_classes=num_classes, records=records
  )


@pytest.fixture(autouse=True)
def _data_sets_are_made_up(monkeypatch):
  monkeypatch.setattr(pipeline, 'open_source', open_stand_in)


def load(name, argument):
  module = importlib.import_module(f'configs.{name}')
  return module.get_config(*([argument] if argument else []))


def describe(run):
  """Returns a line for each field that is not the default, and what follows."""
  usual = flatten(default.get_config())
  lines = [
    f'{field} = {value!r}'
    for field, value in run.config.items()
    if value != usual[field]
  ]
  steps = run.length.num_steps
  # Of one shape for all recipes, so that it is compiled once.
  samples = np.minimum(100 * np.arange(8192), (steps - 1) // 100 * 100)
  rates = np.asarray(run.task.schedule(samples))
  parts = run.task.augmentation
  lines += [
    '',
    f'{steps} steps, rate {rates[0]:.4g}, then {rates.max():.4g},'
    f' at last {rates[-1]:.2g}',
    f'trained at {run.image_shape}, evaluated at {run.eval_image_shape}',
    *map(repr, (*parts.operations, parts.erasing, parts.mixing)),
  ]
  return '\n'.join(lines) + '\n'


def golden_file(name, argument):
  return GOLDEN / f'{name}{f"_{argument}" if argument else ""}.txt'


@pytest.mark.parametrize(('name', 'argument'), RECIPES + OTHERS)
def test_configs_resolve_and_recipes_equal_the_golden_files(name, argument):
  config = load(name, argument)
  assert config.is_locked
  run = experiment.resolve(config)
  batch = dataclasses.replace(run.train_reader, row_count=2)(0)
  assert batch['image'].shape == (2, *run.at(0).image_shape)
  is_imagenet = config.data.name == 'imagenet2012'
  assert run.task.model.num_classes == (1000 if is_imagenet else 10)
  if name == 'cifar10' and ',' not in argument:
    assert run.length.num_steps == 64_000
  if (name, argument) in RECIPES:
    assert describe(run) == golden_file(name, argument).read_text()


def test_every_config_and_every_golden_file_is_tested():
  configs = pathlib.Path(default.__file__).parent.glob('*.py')
  # For these two see tests/test_finetune.py: they need weights and a workdir.
  others = {'__init__', 'finetune', 'saved'}
  names = {path.stem for path in configs} - others
  assert names == {name for name, _ in RECIPES + OTHERS}
  expected = {golden_file(*recipe).name for recipe in RECIPES}
  assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize(
  ('name', 'argument', 'hint'),
  [
    ('resnet50_timm', 'b1', 'There are: a1, a2, a3.'),
    ('imagenette', '128x50', 'Did you mean: 128x5, 128x80, 128x20?'),
    ('ffcv', 'rn50', 'Did you mean: rn50_16, rn50_24, rn50_32?'),
  ],
)
def test_an_unknown_recipe_lists_the_nearest(name, argument, hint):
  with pytest.raises(InputError) as error:
    load(name, argument)
  assert repr(argument) in str(error.value)
  assert str(error.value).endswith(hint)


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  pipeline.open_source = open_stand_in
  for recipe in RECIPES:
    run = experiment.resolve(load(*recipe))
    golden_file(*recipe).write_text(describe(run))
