"""Names, shapes, initialisers and weight decay of every network, as text.

A change of any of these shows in review as a change of tests/models/golden. To
write the files anew, all or those of some networks:

  PYTHONPATH=. python tests/models/test_golden.py [NETWORK ...]
"""

import functools
import pathlib
import re
import sys

from flax import linen as nn
from flax.traverse_util import flatten_dict
import jax
import numpy as np
import pytest

from resnet.errors import nearest
from resnet.models import abstract_variables, create_model, list_models
from resnet.training.optimizers import DECAY_RULES, decay_mask

GOLDEN = pathlib.Path(__file__).parent / 'golden'
# Nets of a thousand layers are made of the same blocks, and take long to trace.
NAMES = [
  name
  for name in list_models()
  if not getattr(create_model(name), 'scan_blocks', False)
]
KINDS = (
  *('resnet18', 'resnet50', 'resnet50_v1', 'resnet18d', 'resnetrs50'),
  *('seresnet50', 'resnext50_32x4d', 'preact_resnet18', 'plain18'),
  *('cifar_resnet20', 'cifar_preact_resnet110', 'cifar_plain20'),
  *('wrn28_10', 'lecture_resnet50'),
)


def describe(name):
  """Returns a line a parameter; blocks that are equal are written once."""
  lines = {}
  for path, text in _parameters(name):
    lines.setdefault(path.partition('/')[0], []).append(text)
  runs = []
  for module, texts in lines.items():
    block = re.fullmatch(r'(stage\d+_block)(\d+)', module)
    key = (block and block[1], texts)
    if block and runs and runs[-1][0] == key:
      runs[-1][2] = block[2]
    else:
      runs.append([key, module, None])
  return (
    '\n'.join(
      f'{module}{f" .. {last}" if last else ""}\n' + '\n'.join(texts)
      for (_, texts), module, last in runs
    )
    + '\n'
  )


def _parameters(name):
  """Yields path and description of each parameter, in the order of creation."""
  made = {}
  real = nn.Module.param

  def record(module, leaf, init, *args, **kwargs):
    path = '/'.join((*module.scope.path, leaf))
    made[path] = (init, args)
    return real(module, leaf, init, *args, **kwargs)

  model = create_model(name)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(nn.Module, 'param', record)
    params = abstract_variables(model)['params']
  shapes = flatten_dict(params, sep='/')
  assert set(shapes) == set(made)
  masks = {
    rule: flatten_dict(decay_mask(params, rule), sep='/')
    for rule in DECAY_RULES
  }
  for path, (init, args) in made.items():
    shape = 'x'.join(map(str, shapes[path].shape))
    rules = ' '.join(rule for rule in masks if masks[rule][path]) or '-'
    inner = path.partition('/')[2]
    values = _measure(init, *map(tuple, (args[0], args[1:])))
    yield path, f'  {inner:22} {shape:14} {values:12} decay: {rules}'


@functools.cache
def _measure(init, shape, rest):
  """Returns what an initialiser gives, by its values: 'ones', 'std 0.059'."""
  draw = jax.jit(lambda key: init(key, shape, *rest))
  values = np.asarray(draw(jax.random.key(0)))
  if np.all(values == values.flat[0]):
    return {0.0: 'zeros', 1.0: 'ones'}[float(values.flat[0])]
  assert abs(np.mean(values)) < 6 * np.std(values) / np.sqrt(values.size)
  return f'std {np.std(values):.2g}'


@pytest.mark.parametrize(
  'name',
  [
    # One net of each kind is enough for every change.
    pytest.param(name, marks=() if name in KINDS else pytest.mark.slow)
    for name in NAMES
  ],
)
def test_parameters_equal_the_golden_file(name):
  assert describe(name) == (GOLDEN / f'{name}.txt').read_text()


def test_every_golden_file_belongs_to_a_network():
  assert {path.stem for path in GOLDEN.iterdir()} == set(NAMES)


def write(names, folder=GOLDEN):
  """Writes the golden files of the networks; prints a line for each."""
  for name in names:
    if name not in NAMES:
      sys.exit(f'There is no golden file of {name!r}.{nearest(name, NAMES)}')
  for i, name in enumerate(names, start=1):
    path, text = folder / f'{name}.txt', describe(name)
    is_same = path.exists() and path.read_text() == text
    path.write_text(text)
    state = 'unchanged' if is_same else 'written'
    print(f'[{i}/{len(names)}] {path}: {state}', flush=True)


def test_the_files_of_some_networks_are_written_anew(tmp_path, capsys):
  path = tmp_path / 'plain18.txt'
  for state in ('written', 'unchanged'):
    write(['plain18'], tmp_path)
    assert capsys.readouterr().out == f'[1/1] {path}: {state}\n'
  assert path.read_text() == (GOLDEN / path.name).read_text()
  with pytest.raises(SystemExit, match='Did you mean: plain18'):
    write(['plain8'], tmp_path)


if __name__ == '__main__':
  write(sys.argv[1:] or NAMES)
