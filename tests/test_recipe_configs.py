"""The published recipes as golden texts, so that a change shows in review.

To write the files anew: PYTHONPATH=. python tests/test_recipe_configs.py
"""

import dataclasses
import importlib
import pathlib

import numpy as np
import pytest

from configs import default
from resnet import experiment
from resnet.data import datasets
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


def stand_in(name, split, **kwargs):
  """Returns a source that is as large as ImageNet's."""
  del name, split
  source = datasets.open_source('fake', 'train', **kwargs)
  records = dataclasses.replace(source.records, length=1_281_167)
  return dataclasses.replace(
    source, name='imagenet2012', num_classes=1000, records=records
  )


def describe(name, argument, monkeypatch):
  """Returns a line for each field that is not the default, and what follows."""
  module = importlib.import_module(f'configs.{name}')
  config = module.get_config(*([argument] if argument else []))
  monkeypatch.setattr('resnet.data.pipeline.open_source', stand_in)
  run = experiment.resolve(config)
  usual = experiment.flatten(default.get_config())
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


@pytest.mark.parametrize(('name', 'argument'), RECIPES)
def test_a_recipe_is_that_of_the_golden_file(name, argument, monkeypatch):
  found = describe(name, argument, monkeypatch)
  assert found == golden_file(name, argument).read_text()


def test_there_is_no_other_golden_file():
  expected = {golden_file(*recipe).name for recipe in RECIPES}
  assert {path.name for path in GOLDEN.iterdir()} == expected


@pytest.mark.parametrize(
  ('name', 'argument', 'hint'),
  [
    ('resnet50_timm', 'b1', 'There are: a1, a2, a3.'),
    ('resnet50_nvidia', 'e9', 'Did you mean: e90?'),
    ('ffcv', 'rn50', 'Did you mean: rn50_16, rn50_24, rn50_32?'),
    ('resnet50_goyal', '8k', 'There are: 256, 8192.'),
    ('resnet50_lars', '8192', 'There are: 3264, 32768.'),
  ],
)
def test_an_unknown_recipe_lists_the_nearest(name, argument, hint):
  module = importlib.import_module(f'configs.{name}')
  with pytest.raises(InputError) as error:
    module.get_config(argument)
  assert repr(argument) in str(error.value)
  assert str(error.value).endswith(hint)


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  with pytest.MonkeyPatch.context() as patch:
    for recipe in RECIPES:
      golden_file(*recipe).write_text(describe(*recipe, patch))
