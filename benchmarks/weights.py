"""Measures how long it takes to read and convert a file of PyTorch.

  make .venv/installed-parity
  PYTHONPATH=. python benchmarks/weights.py --json=FILE

ResNet-50's state dict as .pth, 102 MB: `load_weights`, which needs no PyTorch,
in turn with the baseline, torch.load and load_state_dict into an existing
network. Prints medians and quartiles in seconds, and the ratio.
"""

import os
import tempfile
import time

import torch
import torchvision

from resnet import backend, weights
from resnet.tools import command
from resnet.tools.benchmark import timing


def main(args):
  """Measures and prints."""
  backend.devices()  # Start JAX before anything is timed.
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'resnet50.pth')
    network = torchvision.models.resnet50(weights=None)
    torch.save(network.state_dict(), path)

    def ours():
      return weights.load_weights(path, 'resnet50')

    def theirs():
      return network.load_state_dict(torch.load(path, weights_only=True))

    def seconds(function):
      start = time.perf_counter()
      function()
      return time.perf_counter() - start

    values = timing.in_turn(
      {'ours': lambda: seconds(ours), 'torch': lambda: seconds(theirs)},
      args.rounds,
    )
  figures = {name: timing.spread(times) for name, times in values.items()}
  figures['first'] = {name: times[0] for name, times in values.items()}
  figures['ratio'] = timing.ratio(values['ours'], values['torch'])
  for name, value in figures.items():
    print(name, {key: round(x, 3) for key, x in value.items()})
  timing.save_figures(args.json, figures)


def parser():
  """Returns the parser of the command line."""
  result = command.Parser(prog='benchmarks/weights.py', doc=__doc__)
  timing.add_arguments(result, {'rounds': 9})
  return result


if __name__ == '__main__':
  command.run(main, parser())
