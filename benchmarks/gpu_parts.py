"""The parts of benchmarks/gpu.py: each measures, and adds rows to its report.

  python -m benchmarks.gpu_parts PART OPTIONS

OPTIONS are the arguments of gpu.py as JSON. A part first adds rows without
figures for all that it plans, so that the report has what it did not reach.
"""

import contextlib
import functools
import gzip
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import types

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import folding
from benchmarks import hlo as hlo_lib
from benchmarks.gpu import Report
from benchmarks.rivals import has_torch, open_rival
from resnet import config as config_lib
from resnet.errors import InputError, RunError
from resnet.files import read_json_lines
from resnet.models import cost
from resnet.run import provenance
from resnet.tools.aot import compiled
from resnet.tools.benchmark import programs, timing
from tests.networks import draw_variables, with_metadata

_PACKAGES = (
  *('jax', 'jaxlib', 'jax-cuda12-plugin', 'jax-cuda13-plugin', 'flax'),
  *('nvidia-cudnn-cu12', 'nvidia-cudnn-cu13', 'torch', 'torchvision'),
)
# Dense bfloat16 FLOP/s and bytes/s of the data sheets, by a part of the name.
PEAKS = {
  'H200': (989e12, 4.8e12),
  'H100 80GB HBM3': (989e12, 3.35e12),
  'A100-SXM4-80GB': (312e12, 2.039e12),
  'A100-SXM4-40GB': (312e12, 1.555e12),
}
# Hand count of reads and writes of all convolutions' outputs. In inference,
# with all else fused, each is written once and read once.
PASSES = {'step': 15, 'eval': 2}
# Limits of relative differences from the CPU's losses in float32: of the first
# 8 losses, later ones amplify rounding; and of all means of 8 losses. Two
# programs for a CPU differ by 4e-5 and 0.05, bfloat16 by 0.06 (means).
_FIRST_LIMIT, _MEAN_LIMIT = 1e-3, 0.15
# Flags of XLA or of the config by name. The first shows the noise.
_XLA = '--xla_gpu_'
VARIANTS = {
  'the same again': '',
  'no command buffers': f'{_XLA}enable_command_buffer=',
  'cuDNN frontend': f'{_XLA}enable_cudnn_frontend=true',
  '1x1 as products, pooling by taps': '--config.model.conv_backend=matmul',
  'cuDNN convolution fusions': f'{_XLA}experimental_enable_conv_fusion=true',
  'autotune level 0': f'{_XLA}autotune_level=0',
  'autotune level 4': f'{_XLA}autotune_level=4',
  'cuDNN GEMM fusions': f'{_XLA}cudnn_gemm_fusion_level=2',
  'fusion autotuner': f'{_XLA}experimental_enable_fusion_autotuner=true',
  'no Triton GEMMs': f'{_XLA}enable_triton_gemm=false',
  'no latency hiding': f'{_XLA}enable_latency_hiding_scheduler=false',
}


def environment(options, set_row):
  """Reports driver, packages, device and memory."""
  versions = {}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  set_row('packages', versions)
  set_row('machine', f'{timing.machine()}, commit {provenance.commit()}')
  device = jax.devices()[0]
  memory = (device.memory_stats() or {}).get('bytes_limit', 0)
  set_row('device', {device.device_kind: '', 'GB for JAX': memory / 1e9})
  flops, bandwidth = _peaks() or (0, 0)
  peaks = {'TFLOP/s': flops / 1e12, 'TB/s': bandwidth / 1e12}
  set_row('peaks assumed', peaks if flops else 'unknown: no roofline')
  if options.cpu:
    return set_row('driver', 'not run: no GPU')
  query = 'driver_version,memory.total,clocks.max.sm,power.limit'
  words = ['nvidia-smi', f'--query-gpu={query}', '--format=csv']
  set_row(
    'driver', '; '.join(subprocess.check_output(words, text=True).split('\n'))
  )


def _peaks():
  kind = jax.devices()[0].device_kind
  return next((peaks for name, peaks in PEAKS.items() if name in kind), None)


def correctness(options, set_row):
  """Compares the losses of training with those of the CPU in float32."""
  for dtype in ('float32', 'bfloat16'):
    set_row(f'losses in {dtype}')
  fields = ['log_every_steps=1', 'num_epochs=3.0']
  if options.tiny:
    fields += ['model.name=cifar_resnet8', 'batch_size=359']

  def losses(dtype, **env):
    # Products of float32 in full precision, whatever the device.
    env |= {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
    given = [*fields, f'model.dtype={dtype}']
    lines = _train('configs/digits.py', given, **env)
    return np.array([x['train/loss'] for x in lines if 'train/loss' in x])

  def means(losses):
    return losses[: len(losses) // 8 * 8].reshape(-1, 8).mean(axis=1)

  def difference(a, b):
    return float(np.max(np.abs(a / b - 1)))

  on_cpu = losses('float32', JAX_PLATFORMS='cpu')
  for dtype in ('float32', 'bfloat16'):
    found = losses(dtype)
    first = difference(found[:8], on_cpu[:8])
    mean = difference(means(found), means(on_cpu))
    limit = _FIRST_LIMIT if dtype == 'float32' else _MEAN_LIMIT
    is_good = first <= limit and mean <= _MEAN_LIMIT  # False for NaN.
    figures = {'equal' if is_good else 'DIFFERENT': '', 'first 8': first}
    figures |= {'means of 8': mean}
    raw = {'cpu': on_cpu.tolist(), 'device': found.tolist()}
    set_row(f'losses in {dtype}', figures, raw)
    if not is_good:
      raise RunError(f'The losses in {dtype} differ from those of the CPU.')


def _train(config, fields, **env):
  """Returns the lines of metrics of a run of main.py that keeps nothing."""
  with tempfile.TemporaryDirectory() as workdir:
    words = [f'--config={config}', f'--workdir={workdir}', '--nokeep_programs']
    _python('-m', 'main', *words, *_flags(fields), **env)
    return read_json_lines(os.path.join(workdir, 'metrics.jsonl'))


def _flags(fields):
  return [f'--config.{field}' for field in fields]


def _python(*words, **env):
  """Runs Python; raises a RunError with the last line on stderr."""
  words = [sys.executable, *words]
  env = {**os.environ, **env}
  done = subprocess.run(words, env=env, stderr=subprocess.PIPE, text=True)
  print(done.stderr, file=sys.stderr)
  if done.returncode:
    raise RunError([*words, *done.stderr.strip().splitlines()][-1])


def _figures(module, *words):
  """Returns the figures that a benchmark wrote as JSON."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'figures.json')
    _python('-m', f'benchmarks.{module}', *words, f'--json={path}')
    return json.loads(path.read_text())


def _network(options, batch_size):
  """Returns the flags of ResNet-50's config, or a tiny network's."""
  fields = [f'batch_size={batch_size}', f'model.bn_group_size={batch_size}']
  fields.append('model.dtype=bfloat16')
  if options.tiny:
    fields += ['model.name=cifar_resnet8', 'data.image_size=16']
    fields.append('data.eval_resize=16')
  return ['--config=configs/resnet50.py', *_flags(fields)]


def resnet50(options, set_row):
  """Times updates and evaluation beside Flax and PyTorch, in turn."""
  cases = {
    f'{title}, batch {n}': (subject, n)
    for n in options.batch_sizes
    for title, subject in (('training', 'step'), ('inference', 'eval'))
  }
  for title in cases:
    set_row(title)
  for title, (subject, batch_size) in cases.items():
    words = [subject, *_network(options, batch_size)]
    words.append('--against=flax,torch' if has_torch() else '--against=flax')
    found = _figures('compare', *words, f'--rounds={options.rounds}')
    bound = _bound(found['network'], found['image_shape'][0], subject)
    set_row(title, {**_speed(found, bound), 'ms': found['ms']}, found)
    for name, other in found['against'].items():
      figures = {**_speed(other, bound), 'ours/this': other['ratio']}
      set_row(f'{title}, {name}', figures)
    if not has_torch():
      set_row(f'{title}, torch', 'not run: no torch')
    elif 'torch-compile' not in found['against']:
      set_row(f'{title}, torch-compile', 'not run: see log.txt')


def _bound(network, size, subject):
  """Returns the images/s of the roofline; None if the peaks are unknown."""
  total = cost.trace(network, size).total
  flops = 2 * total.conv_multiply_adds * (3 if subject == 'step' else 1)
  num_bytes = 2 * total.activations * PASSES[subject]
  peaks = _peaks()
  return peaks and min(peaks[0] / flops, peaks[1] / num_bytes)


def _speed(found, bound):
  rate, peak = found['images_per_second'], found['peak_bytes']
  figures = {'images/s': rate}
  if peak:
    figures['GB'] = peak / 1e9
  return {**figures, 'of the roofline': rate / bound} if bound else figures


def hlo(options, set_row):
  """Counts layouts, transposes, fusions and traffic in compiled programs."""
  for title in ('training', 'folded inference'):
    set_row(title)
  batch_size = options.batch_sizes[0]
  config, _ = config_lib.read(['gpu', *_network(options, batch_size)])
  run = programs.resolve_here(config)
  name, size = run.config['model.name'], run.image_shape[0]
  leaves = jax.tree.leaves(run.abstract_state().params)
  largest = max(leaf.size for leaf in leaves)
  unit = 2 * batch_size * cost.trace(name, size).total.activations

  def count(title, program, passes_by_hand):
    text = program.as_text()
    path = pathlib.Path(options.out, f'{title.replace(" ", "_")}.hlo.txt.gz')
    path.write_bytes(gzip.compress(text.encode()))
    found = hlo_lib.count(text, largest_kernel=largest)
    by_compiler = program.cost_analysis()['bytes accessed'] / unit
    found['passes over activations'] = found.pop('bytes') / unit
    found |= {'by the compiler': by_compiler, 'by hand': passes_by_hand}
    set_row(title, found)

  count('training', compiled.build_subject(run, 'step')[0], PASSES['step'])
  made = draw_variables(name, size=size, num_classes=1000, dtype=jnp.bfloat16)
  weights = with_metadata(name, *made, size=size).folded()
  images = jnp.zeros((batch_size, size, size, 3), jnp.uint8)
  program = folding.compile_logits(weights, images)
  count('folded inference', program, PASSES['eval'])


def variants(options, set_row):
  """Times updates compiled in other ways, each in turn with the default."""
  names = [*VARIANTS][: 3 if options.tiny else None]
  for name in ('folded inference', *names):
    set_row(name)
  words = [f'--batch-sizes={options.batch_sizes[0]}', '--dtype=bfloat16']
  words += [f'--rounds={options.rounds}', '--seconds=0.5']
  network = 'cifar_resnet8' if options.tiny else 'resnet50'
  (found,) = _figures('folding', network, *words)['rows']
  rate = found['images_per_second']['folded']
  figures = {'images/s': rate, 'folded/unfolded': found['ratio']}
  set_row('folded inference', figures, found)
  words = _network(options, options.batch_sizes[0])
  with _open_variant(words, '') as default:
    for name in names:
      row = _variant(words, VARIANTS[name], default, options.rounds)
      set_row(name, {**row, 'with': VARIANTS[name] or 'no flag'})


def _variant(words, change, default, rounds):
  """Returns the ratio of speeds, this one / default, or why there is none."""
  try:
    with _open_variant(words, change) as this:
      found = timing.in_turn({'default': default, 'this': this}, rounds)
  except (InputError, RunError):
    try:  # An unknown flag ends every program.
      env = {'XLA_FLAGS': change, 'JAX_PLATFORMS': 'cpu'}
      _python('-c', 'import jax; jax.devices()', **env)
    except RunError:
      return {'not accepted': ''}
    return {'failed, see log.txt': ''}
  return {'this/default': timing.ratio(found['default'], found['this'])}


@contextlib.contextmanager
def _open_variant(words, change):
  """Yields a function that measures the seconds of an update."""
  xla_flags = os.environ.get('XLA_FLAGS', '')
  if change.startswith('--config'):
    words = [*words, change]
  elif change:
    xla_flags += f' {change}'
  name, env = 'gpu_variant.py', {'XLA_FLAGS': xla_flags}
  with open_rival(name, name, words, package='such flags', env=env) as ask:
    yield functools.partial(ask, 1)


def cifar(options, set_row):
  """Times the loop over CIFAR-10 in the device's memory."""
  fields = _cached_set(options, 'cifar10_jpeg')
  cases = {
    f'ResNet-{depth}, {n} steps per call': (depth, n)
    for depth in ((8,) if options.tiny else (20, 56, 110))
    for n in options.steps_per_call
  }
  for title in cases:
    set_row(title, None if fields else 'not run: no data')
  for title, (depth, n) in cases.items() if fields else ():
    words = [f'--config=configs/cifar10.py:resnet{depth}', *_flags(fields)]
    words += [f'--config.steps_per_call={n}'] if n > 1 else []
    if options.tiny:
      words += _flags(['batch_size=8', 'log_every_steps=2'])
    found = _figures('loop', *words, '--rounds=3')
    figures = {'images/s': found['images_per_second']['loop']}
    figures |= {'loop/step': found['ratio'], 'data wait': found['data_wait']}
    figures['CPU ms a batch'] = found['cpu_ms_per_batch']
    set_row(title, figures, found)


def _cached_set(options, name):
  """Returns fields for a set in the device's memory; [] without the set."""
  if not options.data or not os.path.isdir(f'{options.data}/{name}'):
    return []
  fields = [f'data.name={name}', f'data.data_dir={options.data}']
  on_device = ['data.augment_on=device', 'data.cache=device']
  return [*fields, *on_device, 'model.dtype=bfloat16']


def imagenette(options, set_row):
  """Trains ResNet-18-D for 20 epochs at 128 pixels, and evaluates it."""
  if not (fields := _cached_set(options, 'imagenette_raw')):
    return set_row('ResNet-18-D, 128x20', 'not run: no data')
  set_row('ResNet-18-D, 128x20')
  fields += ['eval_every_epochs=20.0', 'save_every_steps=1000000']
  if options.tiny:
    fields += ['data.train_split=train[:100]', 'data.eval_split=validation[:9]']
    fields += ['num_epochs=2.0', 'schedule.warmup_epochs=0.7']
    fields.append('log_every_steps=1')
  lines = _train('configs/imagenette.py:128x20', fields)
  rates = [x['images_per_second'] for x in lines if 'images_per_second' in x]
  figures = {'top-1': lines[-1]['eval/top1'], 'images/s': timing.spread(rates)}
  set_row('ResNet-18-D, 128x20', figures)


PARTS = {
  **{'environment': environment, 'correctness': correctness},
  **{'resnet50': resnet50, 'hlo': hlo, 'variants': variants},
  **{'cifar': cifar, 'imagenette': imagenette},
}


def main():
  part, options = sys.argv[1], types.SimpleNamespace(**json.loads(sys.argv[2]))
  PARTS[part](options, functools.partial(Report(options.out).set, part))


if __name__ == '__main__':
  try:
    main()
  except (InputError, RunError) as error:
    sys.exit(str(error))
