"""Compares what this checkout computes and prints with what another one did.

  python -m tests.same_results record FILE      in the checkout to compare with
  python -m tests.same_results compare FILE     in this one, on the same machine

For changes that must not change any result: final states of short runs, the
program of the update, the pixels of batches, and the output of commands, in
this order. `--only=batches,output` leaves the other parts out. About eight
minutes on two cores; prints every difference, with exit code 1.
"""

import argparse
import hashlib
import importlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

os.environ.update(
  JAX_PLATFORMS='cpu', XLA_FLAGS='--xla_backend_optimization_level=1'
)

import jax
import numpy as np

from configs import saved
from resnet import experiment
from tests.data.in_memory import encode, smooth_image
from tests.programs import ROOT
from tests.runs import TIMES, fake_config, final_state, read_metrics

FASHION_MNIST = '/usr/share/datasets/fashion-mnist'
NUM_BATCHES = 50

VARIANTS = {
  'augment': {
    'augment.operations': "('randaugment','color_jitter','lighting','erasing')"
  },
  'mixing': {'augment.mixup_alpha': 0.2, 'augment.cutmix_alpha': 1.0},
  'averages': {'ema_decay': 0.9, 'ema_every_steps': 2},
  'accumulation': {'accumulation_steps': 2},
}
VARIANTS['all'] = {k: v for part in VARIANTS.values() for k, v in part.items()}
# Grey images have no colours to jitter.
GREY = {**VARIANTS['all'], 'augment.operations': "('randaugment','erasing')"}

# Fields of config.data by name of the input path; ROOT stands for the folder
# of the sets made below.
INPUTS = {
  'fake': {'name': 'fake', 'eval_split': 'test'},
  'digits': {'name': 'digits', 'eval_split': 'test'},
  'idx': {'name': 'fashion_mnist', 'data_dir': 'ROOT', 'eval_split': 'test'},
  'folder': {'name': 'folder', 'data_dir': 'ROOT/photos', 'eval_split': 'val'},
  'prepared': {'name': 'as_is', 'data_dir': 'ROOT'},
  'resized': {'name': 'resized', 'data_dir': 'ROOT'},
  'raw': {'name': 'raw', 'data_dir': 'ROOT'},
  'device': {'name': 'raw', 'data_dir': 'ROOT', 'augment_on': 'device'},
  'repeats': {
    'name': 'folder',
    'data_dir': 'ROOT/photos',
    'eval_split': 'val',
    'repeats': 2,
    'interpolation': 'bicubic',
    'size_schedule': ((0.0, 24), (2.0, 32)),
  },
  'sub-split': {
    'name': 'as_is',
    'data_dir': 'ROOT',
    'train_split': 'train[10%:]',
    'eval_split': 'train[:10%]',
    'crop': 'none',
    'flip': False,
  },
}

TOOLS = (
  'aot',
  'benchmark',
  'doctor',
  'evaluate',
  'export',
  'predict',
  'prepare',
  'probe',
  'reference',
  'report',
  'reproduce',
  'serve',
  'summary',
  'weights',
)
SUBCOMMANDS = (
  *(f'benchmark {x}' for x in ('step', 'eval', 'input')),
  *(f'weights {x}' for x in ('convert', 'inspect')),
)


def run(*args, devices=1):
  """Returns stdout, or stderr too where the command fails."""
  level, flag = (
    os.environ['XLA_FLAGS'],
    '--xla_force_host_platform_device_count',
  )
  env = {**os.environ, 'XLA_FLAGS': f'{level} {flag}={devices}'}
  result = subprocess.run(
    [sys.executable, *args], cwd=ROOT, env=env, text=True, capture_output=True
  )
  if result.returncode:
    return f'exit code {result.returncode}\n{result.stdout}{result.stderr}'
  return result.stdout


def checksum(tree):
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
      leaf.dtype, jax.dtypes.prng_key
    ):
      leaf = jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    digest.update(f'{jax.tree_util.keystr(path)} {leaf.dtype}'.encode())
    digest.update(f'{leaf.shape}'.encode() + leaf.tobytes())
  return digest.hexdigest()


def states(folder):
  """Final states and metrics of main.py, six epochs each."""
  runs = [
    (name, devices, variant)
    for name in ('fake', 'digits')
    for devices in (1, 8)
    for variant in ('plain', 'all')
  ]
  runs += [('fake', 1, variant) for variant in VARIANTS if variant != 'all']
  for name, devices, variant in runs:
    workdir = folder / f'{name}-{devices}-{variant}'
    fields = {'num_epochs': 6, **VARIANTS.get(variant, {})}
    if name == 'digits' and variant == 'all':
      fields.update(GREY)
    output = run(
      'main.py',
      f'--config=configs/{name}.py',
      f'--workdir={workdir}',
      *(f'--config.{field}={value}' for field, value in fields.items()),
      devices=devices,
    )
    if not (workdir / 'config.json').exists():
      raise RuntimeError(output)
    state = final_state(
      workdir, experiment.resolve(saved.get_config(str(workdir)))
    )
    lines = [
      {name: value for name, value in line.items() if name not in TIMES}
      for line in read_metrics(workdir)
    ]
    yield workdir.name, f'{checksum(state)} {json.dumps(lines)}'


def updates(_):
  """The update of two networks, as text without names."""
  step = importlib.import_module('resnet.training.step')
  for name in ('resnet50', 'cifar_resnet20'):
    for kind, fields in (
      ('plain', {'data__image_size': 64, 'data__eval_resize': 64}),
      (
        'all',
        {
          'accumulation_steps': 2,
          'ema_decay': 0.9,
          'augment__mixup_alpha': 0.2,
          'augment__operations': ('randaugment', 'erasing'),
        },
      ),
    ):
      config = fake_config(model__name=name, **fields)
      run = experiment.resolve(config)
      batch = {
        'image': jax.ShapeDtypeStruct((64, *run.train_image_shape), 'uint8'),
        'label': jax.ShapeDtypeStruct((64,), 'int32'),
        'mask': jax.ShapeDtypeStruct((64,), 'bool'),
      }
      batch = {
        k: x.update(sharding=run.sharding.batch) for k, x in batch.items()
      }
      lowered = step.jit_steps(run.task, run.sharding).train.lower(
        run.abstract_state(), batch
      )
      yield f'{name} {kind}', without_names(lowered.as_text())


def without_names(program):
  """Numbers functions by their first mention and drops source locations."""
  names = {}
  program = re.sub(r'loc\([^)]*\)|^#loc.*$', '', program, flags=re.M)
  program = re.sub(r'module @\S+', 'module', program)
  return re.sub(
    r'@[\w.]+',
    lambda match: names.setdefault(match[0], f'@f{len(names)}'),
    program,
  )


def write_photos(root):
  for split, number in (('train', 40), ('val', 7)):
    for k, name in enumerate(('cat', 'cow', 'dog')):
      place = root / split / name
      place.mkdir(parents=True)
      for i in range(number):
        image = np.roll(smooth_image(40 + i % 9, 44 + k), 5 * i, axis=(0, 1))
        file_format = 'PNG' if i % 5 == 4 else 'JPEG'
        (place / f'{i:03}.jpg').write_bytes(encode(image, file_format))


def batches(folder):
  """Pixels and labels of training and evaluation batches."""
  write_photos(folder / 'photos')
  photos = folder / 'photos'
  for name, kind, source, *flags in (
    ('as_is', 'folder', photos),
    ('resized', 'folder', photos, '--resize=36'),
    ('raw', 'folder', photos, '--raw', '--resize=36'),
    ('fashion_mnist', 'idx', FASHION_MNIST),
  ):
    printed = run(
      *('-m', 'resnet.tools.prepare', f'--from={kind}', f'--source={source}'),
      *(f'--name={name}', f'--out={folder}', *flags),
    )
    yield f'prepare {name}', normalized(printed)
  for name, fields in INPUTS.items():
    fields = {
      key: value.replace('ROOT', str(folder))
      if isinstance(value, str)
      else value
      for key, value in fields.items()
    }
    config = fake_config(batch_size=16, num_epochs=8.0)
    image_size = 32 if name not in ('fake', 'digits', 'idx') else 8
    config.data.update(
      {
        'crop': 'random_resized',
        'image_size': image_size,
        'eval_resize': image_size + 4,
        'flip': True,
        'eval_split': 'validation',
        **fields,
      }
    )
    resolved = experiment.resolve(config)
    yield f'{name} statistics', f'{resolved.task.mean} {resolved.task.std}'
    for mode, reader in (
      ('train', resolved.train_reader),
      ('eval', resolved.eval_reader),
    ):
      last = -(-len(reader.source) // 16) if mode == 'eval' else NUM_BATCHES
      for step in range(min(last, NUM_BATCHES)):
        yield f'{name} {mode} {step}', checksum(reader(step))


def output(folder):
  """What commands print, without what depends on time and place."""
  workdir = folder / 'printed'
  small = ('--config=configs/fake.py', f'--workdir={workdir}')
  yield 'main.py', normalized(run('main.py', *small))
  yield 'main.py eval', normalized(run('main.py', *small, '--mode=eval'))
  yield 'main.py --help', run('main.py', '--help')
  tool = 'resnet.tools.'
  for words in (*TOOLS, *SUBCOMMANDS):
    name, *rest = words.split()
    yield f'{words} --help', run('-m', tool + name, *rest, '--help')
  yield 'summary --all', run('-m', f'{tool}summary', '--all')
  yield 'doctor', normalized(run('-m', f'{tool}doctor', *small))
  for words in (
    f'weights inspect {workdir}',
    f'evaluate --workdir={workdir} --views=ten --calibrate',
    f'weights convert {workdir} {folder}/w.safetensors --model=cifar_resnet8',
    f'weights inspect {folder}/w.safetensors',
    f'predict {folder}/w.safetensors {folder}/cat.png',
    f'report {workdir}',
  ):
    (folder / 'cat.png').write_bytes(encode(smooth_image(40, 44), 'PNG'))
    name, *rest = words.split()
    yield (
      words.replace(str(folder), 'FOLDER'),
      normalized(run('-m', tool + name, *rest)).replace(str(folder), 'FOLDER'),
    )


def normalized(text):
  """Drops carriage returns and rates, sizes and times of this moment."""
  text = re.sub(r'/tmp/\S*?same_results\w*', 'FOLDER', text.replace('\r', '\n'))
  text = re.sub(r'[\d.]+%|\d\d:\d\d|commit [0-9a-f]+', 'N', text)
  text = re.sub(
    r'[\d,.]+ ?(images/s|s|ms|GB|GiB|MB|MiB|min|h|times)\b', r'N \1', text
  )
  # Speeds at the end of a run and in a table of runs.
  return re.sub(
    r'(?<= )[\d,]+ +N$|(?<=images/s) +[\d,]+$', ' N', text, flags=re.M
  )


PARTS = {
  'states': states,
  'updates': updates,
  'batches': batches,
  'output': output,
}


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('action', choices=('record', 'compare'))
  parser.add_argument('file', type=pathlib.Path)
  parser.add_argument('--only', default=','.join(PARTS))
  args = parser.parse_args()
  names = args.only.split(',')
  found = {}
  with tempfile.TemporaryDirectory(prefix='same_results') as folder:
    for name in names:
      place = pathlib.Path(folder) / name
      place.mkdir()
      for key, value in PARTS[name](place):
        found[f'{name}: {key}'] = value
      print(f'{name}: {len(found)} results so far', flush=True)
  if args.action == 'record':
    args.file.write_text(json.dumps(found, indent=1))
    return
  recorded = json.loads(args.file.read_text())
  recorded = {k: v for k, v in recorded.items() if k.split(':')[0] in names}
  differing = [
    key for key in {**recorded, **found} if recorded.get(key) != found.get(key)
  ]
  for key in differing:
    print(f'\nDIFFERS: {key}')
    lines = [
      (side.get(key) or 'nothing').splitlines() for side in (recorded, found)
    ]
    for before, after in zip(*lines, strict=False):
      if before != after:
        print(f'- {before[:500]}\n+ {after[:500]}')
        break
  print(f'{len(found)} results, {len(differing)} differ')
  sys.exit(bool(differing))


if __name__ == '__main__':
  main()
