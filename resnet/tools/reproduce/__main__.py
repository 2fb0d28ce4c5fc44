"""Makes an experiment of the papers and draws its figure.

  python -m resnet.tools.reproduce degradation --workdir=runs/degradation

Each cell of the grid is an ordinary run in WORKDIR/cells. The same command goes
on after an interruption and skips what is complete; more seeds or depths extend
a grid. WORKDIR gets results.json, results.md, figure.png and figure.svg, anew
after every run. Experiments and how long they take on two cores:

{experiments}
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
import os
import signal
import sys
import time
from typing import Any

import jax

from resnet import files
from resnet.errors import InputError
from resnet.experiment import resolve
from resnet.fields import FREE_FIELDS
from resnet.output import outlive_terminal
from resnet.plots import figures
from resnet.plots.curves import save_curves
from resnet.run import checkpoint
from resnet.run import run as run_lib
from resnet.run import workdir as workdir_lib
from resnet.run.history import read_history
from resnet.tools import command
from resnet.tools.reproduce import (
  costs,
  experiments,
  grid_figures,
  grids,
  responses,
  results,
)

_GRID_FILE = 'grid.json'
_CELLS, _COMPILED = 'cells', 'compiled'


def main(args: argparse.Namespace) -> None:
  outlive_terminal()
  # Between runs Ctrl-C ends the program at once; a run saves first.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  experiment, data = experiments.find(args.experiment, args.data)
  asked = grids.cells(
    experiment,
    data=data,
    groups=args.groups,
    depths=args.depths,
    seeds=args.seeds,
  )
  # A table of gains has a row a group.
  is_of_one_depth = experiment.shows == 'gains'
  if is_of_one_depth:
    _check_depths(args.experiment, asked)
  configs = {
    cell: _config(experiment, data, cell, args.data_dir) for cell in asked
  }
  for config in configs.values():
    resolve(config)  # What is wrong in any run is said before the first.
  grid = {'experiment': args.experiment, 'data': data}
  cells = _open_grid(args.workdir, grid, asked, is_of_one_depth)
  # Runs that differ in their seed are the same program: compile it once.
  cache = os.path.join(args.workdir, _COMPILED)
  jax.config.update('jax_compilation_cache_dir', cache)
  done: dict[grids.Cell, dict[str, Any]] = {}

  def collect() -> None:
    for cell in cells:
      if cell not in done:
        config = _config(experiment, data, cell, args.data_dir)
        _collect(experiment, args.workdir, cell, config, done)
    results.write(args.workdir, experiment, grid, cells, done)
    if done:
      _draw(experiment, args.workdir, done)

  collect()
  for i, (cell, config) in enumerate(configs.items()):
    where = f'[{i + 1}/{len(asked)}] {cell.name}'
    if cell in done:
      print(f'{where}: complete', flush=True)
      continue
    print(where, flush=True)
    folder = _folder(args.workdir, cell)
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    outcome = run_lib.train(
      resolve(config), folder, start_time=time.time(), draw=save_curves
    )
    if outcome.signal is not None:
      print('Stopped; the same command goes on.')
      sys.exit(128 + outcome.signal)
    collect()
  if experiment.shows == 'gains':
    groups: dict[str, Any] = {}
    for cell, config in configs.items():
      groups.setdefault(cell.group, config)
    found = costs.read_or_measure(args.workdir, groups)
    results.write(args.workdir, experiment, grid, cells, done, found)
  with open(os.path.join(args.workdir, results.TABLE_FILE)) as file:
    print(file.read())
  print(f'Figure, table and numbers: {args.workdir}')


def _config(
  experiment: grids.Experiment,
  data: str,
  cell: grids.Cell,
  data_dir: str | None,
) -> Any:
  config = grids.config_of(experiment, data, cell)
  config.data.data_dir = data_dir
  return config


def _folder(workdir: str, cell: grids.Cell) -> str:
  return os.path.join(workdir, _CELLS, cell.name)


def _open_grid(
  workdir: str,
  grid: Mapping[str, Any],
  asked: Sequence[grids.Cell],
  is_of_one_depth: bool,
) -> list[grids.Cell]:
  """Returns the cells asked for now and before; remembers them.

  Raises:
    InputError: the folder is of another grid, or cannot be written, or there
      would be several depths where the grid is of one.
  """
  path = os.path.join(workdir, _GRID_FILE)
  before: list[grids.Cell] = []
  try:
    if os.path.exists(path):
      with open(path) as file:
        saved = json.load(file)
      if (was := {key: saved[key] for key in grid}) != grid:
        raise InputError(
          f'{workdir} holds another grid ({_say(was)}, not {_say(grid)}): give'
          ' another --workdir.'
        )
      before = [grids.Cell(*cell) for cell in saved['cells']]
    elif os.path.isdir(workdir) and _is_used(workdir):
      raise InputError(
        f'{workdir} is not empty and holds no grid: give another --workdir.'
      )
    cells = sorted({*before, *asked}, key=_order(asked))
    if is_of_one_depth:
      _check_depths(grid['experiment'], cells)
    os.makedirs(workdir, exist_ok=True)
    fields = [[cell.group, cell.depth, cell.seed] for cell in cells]
    text = json.dumps({**grid, 'cells': fields}, indent=1) + '\n'
    files.write_atomically(path, text)
  except OSError as error:
    raise InputError(f'{workdir} cannot be used: {error.strerror}.') from None
  except (ValueError, KeyError, TypeError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'{path} is damaged: {error!r}.') from None
  return cells


def _check_depths(experiment: str, cells: Sequence[grids.Cell]) -> None:
  depths = sorted({cell.depth for cell in cells})
  if len(depths) > 1:
    raise InputError(
      f'{experiment} is of one depth, not {" and ".join(map(str, depths))}:'
      ' give one in --depths, and each a --workdir.'
    )


def _is_used(workdir: str) -> bool:
  # A kill may have left a part of the grid's file.
  return any(
    not name.startswith(f'.{_GRID_FILE}.') for name in os.listdir(workdir)
  )


def _order(asked: Sequence[grids.Cell]) -> Callable[[grids.Cell], Any]:
  groups = list(dict.fromkeys(cell.group for cell in asked))
  return lambda cell: (
    groups.index(cell.group) if cell.group in groups else len(groups),
    cell.group,
    cell.depth,
    cell.seed,
  )


def _say(grid: Mapping[str, Any]) -> str:
  return f'{grid["experiment"]} on {grid["data"]}'


def _collect(
  experiment: grids.Experiment,
  workdir: str,
  cell: grids.Cell,
  config: Any,
  done: dict[grids.Cell, dict[str, Any]],
) -> None:
  folder = _folder(workdir, cell)
  if workdir_lib.read_config(folder) is None:
    return  # Not begun.
  history = read_history(folder)
  last = os.path.join(folder, checkpoint.FOLDER, str(history.num_steps))
  # A kill between the last evaluation and the last checkpoint is no end.
  if history.is_complete and os.path.isdir(last):
    run = resolve(config)
    # The recipe may have changed since.
    workdir_lib.check_same_config(
      folder, history.config, run.config, ignore=FREE_FIELDS
    )
    done[cell] = results.describe(experiment, cell, run, history)
    if experiment.shows == 'responses':
      done[cell] |= responses.measure(run, folder)


def _draw(
  experiment: grids.Experiment,
  workdir: str,
  done: Mapping[grids.Cell, Mapping[str, Any]],
) -> None:
  figure = grid_figures.draw(experiment, list(done.values()))
  for kind in ('png', 'svg'):
    figures.save(figure, os.path.join(workdir, f'figure.{kind}'))


def _numbers(text: str) -> list[int]:
  try:
    return [int(part) for part in text.split(',')]
  except ValueError:
    message = f'{text!r} are no whole numbers with commas between them'
    raise argparse.ArgumentTypeError(message) from None


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  listed = '\n'.join(
    f'  {name:12} {experiment.title} ({"; ".join(_scope(experiment))})'
    for name, experiment in experiments.EXPERIMENTS.items()
  )
  result = command.Parser(
    prog='python -m resnet.tools.reproduce',
    description=(__doc__ or '').format(experiments=listed),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  result.add_argument(
    'experiment', metavar='EXPERIMENT', help='one of those above'
  )
  result.add_argument(
    '--workdir',
    metavar='DIR',
    required=True,
    help='where to',
  )
  result.add_argument('--data', metavar='NAME', help='default: the first above')
  result.add_argument('--data-dir', metavar='DIR', help="default: TFDS's")
  for name in ('seeds', 'depths'):
    result.add_argument(f'--{name}', type=_numbers, metavar='N,N,...')
  result.add_argument(
    '--groups',
    type=lambda text: text.split(','),
    metavar='NAME,NAME,...',
    help='sides of the comparison; default: all',
  )
  return result


def _scope(experiment: grids.Experiment) -> list[str]:
  return [
    f'{data} {budget}' if (budget := experiment.budget.get(data)) else data
    for data in experiment.depths
  ]


if __name__ == '__main__':
  command.run(main, parser())
