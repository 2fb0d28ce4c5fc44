"""What a step of each group of a grid costs, measured in turn.

The images/s of runs that were made one after the other tell as much of the
machine's other work as of the groups.
"""

from collections.abc import Mapping
import json
import os
from typing import Any

from resnet.experiment import resolve
from resnet.files import write_atomically
from resnet.tools.benchmark import programs, timing

COSTS_FILE = 'costs.json'
_ROUNDS = 15

# By group: images/s, and as a share of those of the first group, each a
# median with its quartiles.
Costs = dict[str, dict[str, dict[str, float]]]


def read_or_measure(folder: str, configs: Mapping[str, Any]) -> Costs:
  """Returns what the steps of these configs cost; kept in COSTS_FILE.

  Args:
    folder: of the grid.
    configs: by group.
  """
  path = os.path.join(folder, COSTS_FILE)
  if os.path.exists(path):
    with open(path) as file:
      known: Costs = json.load(file)['groups']
    if list(known) == list(configs):
      return known
  costs = measure(configs)
  text = json.dumps({'machine': timing.machine(), 'groups': costs}, indent=1)
  write_atomically(path, text + '\n')
  return costs


def measure(configs: Mapping[str, Any], rounds: int = _ROUNDS) -> Costs:
  """Times a step of each on images that are on the device, in turn."""
  steps = {
    group: programs.ours(resolve(config), 'train')
    for group, config in configs.items()
  }
  for step in steps.values():
    step.seconds(2)  # Warm-up.
  found = timing.in_turn(
    {group: lambda s=step: s.seconds(2) / 2 for group, step in steps.items()},
    rounds,
  )
  first = found[next(iter(found))]
  return {
    group: {
      'images_per_second': timing.spread(
        [steps[group].batch_size / value for value in seconds]
      ),
      'share': timing.spread(timing.pair_ratios(first, seconds)),
    }
    for group, seconds in found.items()
  }
