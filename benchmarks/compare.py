"""Compares this code with Flax, PyTorch and tf.data on this machine.

  export PYTHONPATH=.
  python benchmarks/compare.py step --config=configs/resnet50.py \\
    --against=flax,torch
  python benchmarks/compare.py input --config=configs/resnet50.py \\
    --config.data.name=folder --config.data.data_dir=DIR \\
    --against=tfdata,torchvision

As `python -m resnet.tools.benchmark`, with other programs that take turns with
ours: `flax` is flax_step.py, `torch` is torch_step.py, eager and compiled.
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import os
from typing import Any

from benchmarks import flax_step
from benchmarks.rivals import open_rival
from resnet.errors import InputError
from resnet.experiment import Experiment
from resnet.tools import command
from resnet.tools.aot import compiled
from resnet.tools.benchmark import __main__ as benchmark
from resnet.tools.benchmark import input, step, timing
from resnet.tools.benchmark.programs import Program, batch_on_device, timed

# The package that each rival needs.
_STEP_RIVALS = {'flax': None, 'torch': 'torchvision'}
_INPUT_RIVALS = {'tfdata': 'tensorflow', 'torchvision': 'torchvision'}
_RIVALS = {'step': _STEP_RIVALS, 'eval': _STEP_RIVALS, 'input': _INPUT_RIVALS}


def main(args: argparse.Namespace) -> None:
  """Measures the chosen subject and saves the figures."""
  if args.subject == 'input':
    figures = input.main(args, _input_rivals(args))
  else:
    figures = step.main(args, _step_rivals(args))
  timing.save_figures(args.json, figures)


def _step_rivals(args: argparse.Namespace) -> dict[str, step.Rival]:
  rivals: dict[str, step.Rival] = {}
  if 'flax' in args.against:
    rivals['flax'] = flax
  if 'torch' in args.against:
    # PyTorch needs memory on the same device.
    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
    for name in ('torch-eager', 'torch-compile'):
      rivals[name] = functools.partial(
        torch, name=name, python=args.torch_python
      )
    rivals['torch-compile'] = functools.partial(
      _if_possible, rivals['torch-compile']
    )
  return rivals


@contextlib.contextmanager
def flax(run: Experiment, subject: str) -> Iterator[Program]:
  """Yields the update or evaluation of flax_step.py."""
  jitted = flax_step.jit(run, subject)
  batch, state = batch_on_device(run, subject), run.create_state()
  if subject == 'eval':
    step, facts = compiled.build(jitted, state.variables, batch)
    seconds = timed(lambda x: (x, step(x, batch)), state.variables)
  else:
    trained = (state.params, state.batch_stats, state.opt_state)
    step, facts = compiled.build(jitted, trained, batch)
    seconds = timed(lambda trained: step(trained, batch), trained)
  yield Program(len(batch['label']), seconds, facts)


@contextlib.contextmanager
def torch(
  run: Experiment, subject: str, *, name: str, python: str | None = None
) -> Iterator[Program]:
  """Yields torchvision's network of the same name, in another process."""
  device, *others = run.sharding.mesh.devices.flatten()
  if others or device.platform not in ('cpu', 'gpu'):
    raise InputError(f'--against={name} is for one CPU or GPU.')
  reader = run.eval_reader if subject == 'eval' else run.train_reader
  options = {
    'subject': subject,
    'compile': name == 'torch-compile',
    'image_shape': run.image_shape,
    'batch_size': reader.batch_size,
    'num_classes': run.derived()['num_classes'],
    'device': 'cuda' if device.platform == 'gpu' else 'cpu',
    'mean': run.task.mean,
    'std': run.task.std,
    'config': run.config,
  }
  package = 'torchvision, or one without this network'
  with open_rival(
    name, 'torch_step.py', [json.dumps(options)], package=package, python=python
  ) as seconds:
    seconds(1)  # Reaches the peak of memory.
    yield Program(reader.batch_size, seconds, peak_bytes=seconds('memory'))


@contextlib.contextmanager
def _if_possible(
  rival: step.Rival, run: Experiment, subject: str
) -> Iterator[Program | None]:
  """Yields a program, or None where it does not work."""
  with contextlib.ExitStack() as cleanup:
    try:
      program = cleanup.enter_context(rival(run, subject))
    except InputError as error:
      print(f'Left out: {error}', flush=True)
      program = None
    yield program


def _input_rivals(args: argparse.Namespace) -> dict[str, input.Opener]:
  data = args.config.data
  if data.name != 'folder' or data.data_dir is None:
    raise InputError(
      '--against needs JPEG files: --config.data.name=folder'
      ' --config.data.data_dir=DIR'
    )
  return {
    name: open_rival(
      name,
      'input_rivals.py',
      (
        name,
        os.path.join(data.data_dir, data.train_split),
        args.config.batch_size,
        data.num_threads,
      ),
      package=_INPUT_RIVALS[name],
      python=getattr(args, f'{name}_python'),
    )
    for name in args.against
  }


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  result, subjects = benchmark.create_parser(
    __doc__, prog='python benchmarks/compare.py'
  )
  for subject, rivals in _RIVALS.items():
    add = subjects[subject].add_argument
    text = f'programs to compare with, of {", ".join(rivals)}'
    add(
      '--against',
      type=_names_of(rivals),
      required=True,
      metavar='RIVALS',
      help=text,
    )
    for name, package in rivals.items():
      if package:
        text = f'an interpreter with {package}; default: this one'
        add(f'--{name}-python', metavar='PYTHON', help=text)
  return result


def _names_of(rivals: dict[str, Any]) -> Callable[[str], list[str]]:
  def names(text: str) -> list[str]:
    found = text.split(',')
    if unknown := ', '.join(sorted({*found} - {*rivals})):
      known = ', '.join(rivals)
      raise argparse.ArgumentTypeError(f'{unknown} is not one of {known}')
    return found

  return names


if __name__ == '__main__':
  command.run(main, parser())
