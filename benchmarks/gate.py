"""Fails if a ratio of speeds has fallen by more than 15 % or is too low.

  PYTHONPATH=. python benchmarks/gate.py
  PYTHONPATH=. python benchmarks/gate.py --write

Runs `benchmarks/compare.py step`, benchmarks/loop.py, and
benchmarks/recipes.py for the plain step and the one with augmentation. Compares
ratios of programs that are measured in turn, never times, with
benchmarks/baseline.json. --write replaces that file after an intended change.
Takes a quarter of an hour on an otherwise idle machine. Ratios to torchvision
or torch.compile are left out, and reported as such, where these are missing.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from benchmarks.rivals import has_torch
from resnet.files import write_atomically
from resnet.tools.benchmark import timing

BASELINE = pathlib.Path(__file__).with_name('baseline.json')
_LOWEST = 0.85
CASES = {
  'ResNet-20, 32, batch 128': [
    'step',
    '--config=configs/cifar10.py:resnet20',
    '--rounds=11',
  ],
  'ResNet-20, 32, batch 128, loop': [
    'loop',
    '--config=configs/cifar10.py:resnet20',
    '--config.log_every_steps=5',
    '--rounds=5',
  ],
  'ResNet-50, 224, batch 16': [
    'step',
    '--config=configs/resnet50.py',
    '--config.batch_size=16',
    '--config.model.bn_group_size=16',
    '--config.model.dtype=float32',
    '--rounds=5',
  ],
  'ResNet-50, 224, batch 16, plain': ['recipes', '--only=all', '--rounds=9'],
}
# Lowest ratios, whatever the baseline.
FLOORS = {
  'ResNet-20, 32, batch 128 / flax': 1.0,
  'ResNet-20, 32, batch 128, loop / step': 0.97,
  'ResNet-50, 224, batch 16 / flax': 1.4,
  'ResNet-50, 224, batch 16, plain / all': 0.8,
}


def measure(case):
  """Returns the ratios of a case by name."""
  words = list(CASES[case])
  if words[0] == 'step':
    rivals = ['flax', *(['torch'] if has_torch() else [])]
    words.append(f'--against={",".join(rivals)}')
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'figures.json')
    subject = words.pop(0)
    module = [f'benchmarks.{subject}']
    if subject == 'step':
      module = ['benchmarks.compare', 'step']
    command = [sys.executable, '-m', *module, *words, f'--json={path}']
    done = subprocess.run(command, check=False)
    if done.returncode:
      sys.exit(f'{case}: the benchmark ended with {done.returncode}.')
    found = json.loads(path.read_text())
  if subject == 'recipes':  # Reports how much longer a step takes.
    return {f'{case} / {name}': 1 / value for name, value in found.items()}
  if subject == 'loop':
    return {f'{case} / step': found['ratio']['median']}
  return {
    f'{case} / {name}': other['ratio']['median']
    for name, other in found['against'].items()
  }


def compare(baseline, found):
  """Returns a line for each ratio, and the names of those that are too low.

  Args:
    baseline: ratios by name.
    found: measured ratios by name, which may include new names.
  """
  lines, fallen = [], []
  for name, before in baseline.items():
    now = found.get(name)
    if now is None:
      lines.append(f'{name}: not measured')
      continue
    lines.append(f'{name}: {now:.3f}, was {before:.3f}')
    if now < _LOWEST * before:
      fallen.append(name)
  lines += [
    f'{name}: {now:.3f}, not in the baseline'
    for name, now in found.items()
    if name not in baseline
  ]
  fallen += [
    name
    for name, floor in FLOORS.items()
    if found.get(name, floor) < floor and name not in fallen
  ]
  return lines, fallen


def main():
  parser = argparse.ArgumentParser(description=(__doc__ or '').splitlines()[0])
  parser.add_argument('--write', action='store_true', help='write the baseline')
  args = parser.parse_args()
  found = {}
  for case in CASES:
    found |= measure(case)
  baseline = json.loads(BASELINE.read_text())
  lines, fallen = compare(baseline['ratios'], found)
  print('\n'.join(lines))
  if args.write:
    ratios = {name: round(ratio, 3) for name, ratio in found.items()}
    baseline = {'machine': timing.machine(), 'ratios': ratios}
    write_atomically(str(BASELINE), json.dumps(baseline, indent=2) + '\n')
    _, fallen = compare({}, found)
  elif baseline['machine'] != timing.machine():
    print(
      f'The baseline was measured on another machine: {baseline["machine"]}'
    )
  if fallen:
    sys.exit(
      f'Fallen by more than 15 %, or under its floor: {"; ".join(fallen)}'
    )


if __name__ == '__main__':
  main()
