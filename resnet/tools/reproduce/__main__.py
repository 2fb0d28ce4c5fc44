"""Repeats an experiment of the papers and draws its figure.

  python -m resnet.tools.reproduce degradation --workdir=runs/degradation

An experiment is a grid of groups, depths and seeds. Each cell of the grid is an
ordinary run in WORKDIR/cells. After an interruption, repeat the command;
more seeds or depths extend the grid. After every run the results are written to
results.json, results.md, figure.png and figure.svg in WORKDIR. Experiments,
what they repeat, their groups and their data sets, the default first:

{experiments}
"""

import argparse
import dataclasses
import functools
import json
import os
import signal
import sys
import textwrap
import time
from typing import Any

import jax

from resnet import files
from resnet.errors import InputError
from resnet.experiment import resolve
from resnet.output import outlive_terminal
from resnet.plots.curves import save_curves
from resnet.run import checkpoint
from resnet.run import run as run_lib
from resnet.run import workdir as workdir_lib
from resnet.run.history import read_history
from resnet.tools import command
from resnet.tools.reproduce import grids, responses, results, studies


def main(args: argparse.Namespace) -> None:
  """Trains the missing runs and writes the results after each of them."""
  outlive_terminal()
  # Between runs, Ctrl-C exits immediately; during a run, the run saves first.
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  study = studies.STUDIES[args.experiment]
  data = args.data or grids.data_sets(study)[0]
  if data == 'folder' and args.data_dir is None:
    raise InputError(
      '--data=folder: type --data-dir=DIR, with train/ and val/.'
    )
  asked = grids.cells(study, data, args.groups, args.depths, args.seeds)
  config_of = functools.partial(
    grids.config_of, study, data, data_dir=args.data_dir, epochs=args.epochs
  )
  for cell in asked:
    resolve(config_of(cell))  # Report any bad config before the first run.
  grid = grids.Grid(
    args.workdir, args.experiment, study, data, asked, args.epochs
  )
  grid = _with_earlier_cells(grid)
  # All seeds of a net share a compiled program, unless the seed is part of it.
  cache = os.path.join(args.workdir, 'compiled')
  jax.config.update('jax_compilation_cache_dir', cache)
  done = {}
  for cell in grid.cells:
    _read(grid, cell, config_of(cell), done)
  with files.writing(args.workdir):
    os.makedirs(args.workdir, exist_ok=True)
    table = results.write(grid, done)
  for i, cell in enumerate(asked):
    state = ': complete' if cell in done else ''
    print(f'[{i + 1}/{len(asked)}] {cell.name}{state}', flush=True)
    if cell in done:
      continue
    run, now = resolve(config_of(cell)), time.time()
    outcome = run_lib.train(
      run, grid.folder(cell), start_time=now, draw=save_curves
    )
    if outcome.signal is not None:
      print('Stopped; type the same command to continue.')
      sys.exit(128 + outcome.signal)
    _read(grid, cell, config_of(cell), done)
    table = results.write(grid, done)
  print(f'{table}\nFigure, table and numbers: {args.workdir}')


def _with_earlier_cells(grid: grids.Grid) -> grids.Grid:
  """Returns the grid with its cells and those of earlier commands."""
  path = os.path.join(grid.workdir, results.RESULTS_FILE)
  cells = set(grid.cells)
  if os.path.exists(path):
    failure = f'{path} is damaged: delete it and repeat the command'
    with files.reading(failure), open(path) as file:
      saved = json.load(file)
      was = {key: saved.get(key) for key in grid.identity}
      earlier = [
        grids.Cell(x['group'], x['depth'], x['seed'])
        for x in (*saved['cells'].values(), *saved['not_run'])
        if x['group'] in grid.study.groups
      ]
    if was != grid.identity:
      raise InputError(
        f'{grid.workdir} holds another grid ({grids.arguments(**was)}, not'
        f' {grids.arguments(**grid.identity)}): type another --workdir.'
      )
    cells.update(earlier)
  groups = list(grid.study.groups)
  ordered = sorted(
    cells, key=lambda x: (groups.index(x.group), x.depth, x.seed)
  )
  return dataclasses.replace(grid, cells=ordered)


def _read(
  grid: grids.Grid, cell: grids.Cell, config: Any, done: dict[Any, Any]
) -> None:
  """Adds the result of a run to `done` if the run is complete."""
  folder = grid.folder(cell)
  if workdir_lib.read_config(folder) is None:
    return
  history = read_history(folder)
  last = os.path.join(folder, checkpoint.FOLDER, str(history.num_steps))
  # A run killed after its last evaluation may lack its last checkpoint.
  if not (history.is_complete and os.path.isdir(last)):
    return
  run = resolve(config)
  # The recipe may have changed since the run.
  workdir_lib.check_same_config(folder, history.config, run.config)
  done[cell] = results.describe(grid, cell, run, history)
  if grid.study.shows == 'responses':
    done[cell] |= responses.measure(run, folder)


def numbers(text: str) -> list[int]:
  """Parses '1,2,3'; argparse's errors show the name of this function."""
  return [int(part) for part in text.split(',')]


def parser() -> command.Parser:
  """Returns the parser of the command line."""
  lines = []
  for name, study in studies.STUDIES.items():
    lines.append(f'  {name:12} {study.title} ({study.source})')
    lines.append(f'{"":15}groups: {", ".join(study.groups)}')
    lines.append(f'{"":15}data: {", ".join(grids.data_sets(study))}')
  indent = ' ' * 17
  wrapped = [textwrap.fill(x, 80, subsequent_indent=indent) for x in lines]
  doc = (__doc__ or '').format(experiments='\n'.join(wrapped))
  result = command.Parser('reproduce', doc)
  add = result.add_argument
  text = 'name from the list above'
  add('experiment', metavar='EXPERIMENT', choices=studies.STUDIES, help=text)
  add('--workdir', metavar='DIR', required=True, help='folder of the grid')
  add = result.add_argument_group('grid').add_argument
  add('--data', metavar='NAME', help='default: first listed for EXPERIMENT')
  add('--data-dir', metavar='DIR', help="default: TFDS's own folder")
  add(
    '--epochs',
    type=command.positive,
    metavar='N',
    help="for CIFAR: a cycle of N epochs instead of the paper's recipe",
  )
  text = "default: the experiment's"
  for name in ('seeds', 'depths'):
    add(f'--{name}', type=numbers, metavar='N,N,...', help=text)
  names = {'type': lambda x: x.split(','), 'metavar': 'NAME,NAME,...'}
  add('--groups', help=text, **names)
  return result


if __name__ == '__main__':
  command.run(main, parser())
