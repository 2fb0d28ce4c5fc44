"""The table of config fields: ranges, choices, None."""

import math

import pytest

from configs import default
from resnet import fields
from resnet.config import flatten
from resnet.errors import InputError
from resnet.fields import FIELDS
from tests.runs import resolve

DEFAULT = flatten(default.get_config())


def is_accepted(name, value):
  try:
    fields.check({name: value})
  except InputError:
    return False
  return True


def test_the_table_accepts_the_default_of_every_field():
  assert FIELDS.keys() <= DEFAULT.keys()
  fields.check(DEFAULT)
  assert {name for name, value in DEFAULT.items() if value is None} <= {
    name for name, field in FIELDS.items() if None in field.also
  }


NUMBERS = [
  name for name, field in FIELDS.items() if field.interval and not field.example
]


@pytest.mark.parametrize('name', NUMBERS)
def test_numbers_outside_their_interval_are_refused(name):
  interval = FIELDS[name].interval
  low, high = map(float, interval[1:-1].split(','))
  assert is_accepted(name, low) == (
    interval[0] == '[' or low in FIELDS[name].also
  )
  assert is_accepted(name, high) == (interval[-1] == ']')
  for value in (-1, math.nan, math.inf, 'text', (0.5,)):
    assert not is_accepted(name, value)
  assert is_accepted(name, None) == (None in FIELDS[name].also)


@pytest.mark.parametrize(
  ('name', 'good', 'bad'),
  [
    ('data.crop_area', [0.5, 1.0], [0.5, 1.5]),
    ('data.crop_area', [0.5, 0.5], [1.0, 0.5]),
    ('data.crop_aspect', [0.5, 2.0], [0.5, math.inf]),
    ('augment.erase_area', [0.1, 0.2], [0.1]),
    ('augment.jitter', [0.4, 1.0, 0.0], [0.4, 0.4, 1.1]),
    ('augment.jitter', [0.0] * 3, 'text'),
    ('schedule.decay_epochs', [], [3.0, 1.0]),
    ('schedule.decay_epochs', [1.0], [math.nan]),
    ('augment.mixup_alpha', 0.0, 1e-40),
    ('data.mean', [0], [math.nan]),
    ('data.std', [2.5, 1], [0.0]),
    ('init_from', 'runs/a', ''),
    ('data.data_dir', None, ''),
  ],
)
def test_tuples_and_texts_are_checked(name, good, bad):
  assert is_accepted(name, good)
  assert not is_accepted(name, bad)


def test_messages_state_the_expected_values():
  for name, value, expected in (
    ('ema_decay', 1, 'ema_decay=1 is not in (0, 1) or None.'),
    ('loss.reduction', 'max', "loss.reduction='max' is not one of mean, sum."),
    (
      'data.crop_area',
      [2.0, 1.0],
      'data.crop_area=[2.0, 1.0] is not 2 numbers in (0, 1], in rising order:'
      " type --config.data.crop_area='(0.08, 1.0)'.",
    ),
    ('data.flip', None, 'data.flip=None: this field must have a value.'),
  ):
    with pytest.raises(InputError) as error:
      fields.check({name: value})
    assert str(error.value) == expected


# What some choices need besides.
NEEDS = {
  'device': {'data__augment_on': 'device'},
  'lars': {'optimizer__decay_rule': 'kernels'},
  'lamb': {'optimizer__decay_rule': 'kernels'},
  'one_cycle': {'schedule__warmup_epochs': 0.5},
  'wsd': {'schedule__cooldown_epochs': 0.5},
}


@pytest.mark.parametrize(
  ('name', 'choice'),
  [(name, x) for name, field in FIELDS.items() for x in field.choices],
)
def test_every_choice_is_accepted_and_works(name, choice):
  assert not is_accepted(name, 'nonsense')
  resolve(**{name.replace('.', '__'): choice, **NEEDS.get(choice, {})})
