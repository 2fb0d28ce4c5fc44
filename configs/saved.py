"""The config of an existing run, from its workdir.

  python main.py --config=configs/saved.py:WORKDIR

Continues the run, or evaluates it with --mode=eval; the run's config file and
initial weights are not needed. Hardware and aim: those of the run.
"""

import json
import os

from configs import default
from resnet.errors import InputError


def get_config(workdir=''):
  path = os.path.join(os.path.expanduser(workdir), 'config.json')
  try:
    with open(path) as file:
      fields = json.load(file)['config']
    config = default.get_config()
    config.update_from_flattened_dict(
      {field: _with_tuples(value) for field, value in fields.items()}
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{path} is not the config of a run ({error}): type'
      ' --config=configs/saved.py:WORKDIR'
    ) from None
  return config


def _with_tuples(value):
  """Returns the value with tuples instead of the lists of JSON."""
  return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
