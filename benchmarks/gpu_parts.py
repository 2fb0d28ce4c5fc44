"""The parts of benchmarks/gpu.py: each measures, and adds rows to its report.

  python -m benchmarks.gpu_parts PART OPTIONS

OPTIONS are the arguments of gpu.py as JSON. A part first adds rows without a
result for all that it plans, so that the report has what it did not reach.
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
from resnet.tools import command
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
# Largest relative difference of a training loss from the CPU's in float32.
_LOSS_LIMITS = {'float32': 2e-3, 'bfloat16': 5e-2}
# Flags of XLA or of the config by name. The first shows the noise.
_XLA = '--xla_gpu_'
VARIANTS = {
  'the same again': '',
  'no command buffers': f'{_XLA}enable_command_buffer=',
  'cuDNN frontend': f'{_XLA}enable_cudnn_frontend=true',
  '1x1 convolutions as products': '--config.model.conv_backend=matmul',
  'cuDNN convolution fusions': f'{_XLA}experimental_enable_conv_fusion=true',
  'autotune level 0': f'{_XLA}autotune_level=0',
  'autotune level 4': f'{_XLA}autotune_level=4',
  'cuDNN GEMM fusions': f'{_XLA}cudnn_gemm_fusion_level=2',
  'fusion autotuner': f'{_XLA}experimental_enable_fusion_autotuner=true',
  'no Triton GEMMs': f'{_XLA}enable_triton_gemm=false',
  'no latency hiding': f'{_XLA}enable_latency_hiding_scheduler=false',
}


def environment(options, set_row):
  """Reports driver, packages, devices and memory."""
  versions = {}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  set_row('packages', ', '.join(map(' '.join, versions.items())), versions)
  set_row('machine', f'{timing.machine()}, commit {provenance.commit()}')
  device, peaks = jax.devices()[0], _peaks()
  memory = (device.memory_stats() or {}).get('bytes_limit', 0)
  text = 'unknown, so no share of the roofline'
  if peaks:
    text = f'{peaks[0] / 1e12:,.0f} TFLOP/s, {peaks[1] / 1e12:.2f} TB/s'
  set_row('device', f'{device.device_kind}, peaks assumed: {text}', peaks)
  if options.cpu:
    return set_row('driver', 'not run: no GPU')
  query = 'driver_version,memory.total,clocks.max.sm,power.limit'
  words = ['nvidia-smi', f'--query-gpu={query}', '--format=csv,noheader']
  found = subprocess.check_output(words, text=True).splitlines()[0]
  set_row('driver', f'{query}: {found}; for JAX {command.size_text(memory)}')


def _peaks():
  kind = jax.devices()[0].device_kind
  return next((peaks for name, peaks in PEAKS.items() if name in kind), None)


def correctness(options, set_row):
  """Compares the losses of training with those of the CPU in float32."""
  for dtype in _LOSS_LIMITS:
    set_row(f'losses in {dtype}')
  fields = ['log_every_steps=1', 'num_epochs=3.0']
  if options.tiny:
    fields += ['model.name=cifar_resnet8', 'batch_size=359']

  def losses(dtype, **env):
    # Products of float32 in full precision, whatever the device.
    env |= {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
    given = [*fields, f'model.dtype={dtype}']
    lines = _train('configs/digits.py', given, **env)
    return np.array([line['train/loss'] for line in lines])

  on_cpu = losses('float32', JAX_PLATFORMS='cpu')
  for dtype, limit in _LOSS_LIMITS.items():
    found = losses(dtype)
    off = np.max(np.abs(found / on_cpu - 1))
    text = (
      f'{len(found)} losses from {found[0]:.3f} to {found[-1]:.3f}, at most'
    )
    text += f' {off:.1e} from those of the CPU in float32; limit {limit:.0e}'
    figures = {'CPU': on_cpu.tolist(), 'device': found.tolist()}
    set_row(f'losses in {dtype}', text, figures)
    if not off <= limit:  # Also if it is not a number.
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
  done = subprocess.run(
    [sys.executable, *words],
    env={**os.environ, **env},
    stderr=subprocess.PIPE,
    text=True,
  )
  print(done.stderr, file=sys.stderr)
  if done.returncode:
    line = [words[1], *done.stderr.strip().splitlines()][-1]
    raise RunError(f'{words[1]} failed: {line}')


def _figures(module, *words):
  """Returns the figures that a benchmark wrote as JSON."""
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, 'figures.json')
    _python('-m', f'benchmarks.{module}', *words, f'--json={path}')
    return json.loads(pathlib.Path(path).read_text())


def _network(options, batch_size):
  """Returns the flags of ResNet-50's config, or a tiny network's."""
  fields = [f'batch_size={batch_size}', f'model.bn_group_size={batch_size}']
  fields.append('model.dtype=bfloat16')
  if options.tiny:
    fields += ['model.name=cifar_resnet8', 'data.image_size=16']
  return ['--config=configs/resnet50.py', *_flags(fields)]


def resnet50(options, set_row):
  """Times updates and evaluation beside Flax and PyTorch, in turn."""
  titles = {'step': 'training', 'eval': 'inference'}
  cases = [(n, x) for n in options.batch_sizes for x in titles]
  for batch_size, subject in cases:
    set_row(f'{titles[subject]}, batch {batch_size}')
  for batch_size, subject in cases:
    words = [subject, *_network(options, batch_size)]
    words.append('--against=flax,torch' if has_torch() else '--against=flax')
    found = _figures('compare', *words, f'--rounds={options.rounds}')
    title, ms = f'{titles[subject]}, batch {batch_size}', found['ms']
    speed = functools.partial(_speed_text, _bound(found, subject))
    text = f'quartiles {ms["low"]:.2f} to {ms["high"]:.2f} ms'
    set_row(title, f'{speed(found)}, {text}', found)
    for name, other in found['against'].items():
      text = f'ours is {_ratio_text(other["ratio"])} times as fast'
      set_row(f'{title}, {name}', f'{speed(other)}, {text}')
    if not has_torch():
      set_row(f'{title}, torch', 'not run: no torch')
    elif 'torch-compile' not in found['against']:
      set_row(f'{title}, torch-compile', 'not run: see log.txt')


def _bound(found, subject):
  """Returns images/s of the roofline; None if the peaks are unknown."""
  total = cost.trace(found['network'], found['image_shape'][0]).total
  flops = 2 * total.conv_multiply_adds * (3 if subject == 'step' else 1)
  moved = PASSES[subject] * _pass_bytes(found['network'], *found['image_shape'])
  peaks = _peaks()
  return peaks and min(peaks[0] / flops, peaks[1] / moved)


def _pass_bytes(network, size, *_):
  """Returns the bytes of the bfloat16 outputs of convolutions, an image."""
  return 2 * cost.trace(network, size).total.activations


def _speed_text(bound, found):
  text, peak = (
    f'{found["images_per_second"]:,.1f} images/s',
    found['peak_bytes'],
  )
  if peak:
    text += f', {command.size_text(peak)}'
  if bound:
    text += f', {found["images_per_second"] / bound:.0%} of the roofline'
  return text


def _ratio_text(ratio):
  return f'{ratio["median"]:.3f} ({ratio["low"]:.3f} to {ratio["high"]:.3f})'


def hlo(options, set_row):
  """Counts layouts, transposes, fusions and traffic in compiled programs."""
  for name in ('training', 'folded inference'):
    set_row(name)
  batch_size = options.batch_sizes[0]
  config, _ = config_lib.read(['gpu', *_network(options, batch_size)])
  run = programs.resolve_here(config)
  name, size = run.config['model.name'], run.image_shape[0]
  leaves = jax.tree.leaves(run.abstract_state().params)
  largest = max(leaf.size for leaf in leaves)

  def count(title, program, by_hand):
    text = program.as_text()
    path = pathlib.Path(options.out, f'{title.replace(" ", "_")}.hlo.txt.gz')
    path.write_bytes(gzip.compress(text.encode()))
    found = hlo_lib.count(text, largest_kernel=largest)
    unit = batch_size * _pass_bytes(name, size)
    by_compiler = program.cost_analysis()['bytes accessed'] / unit
    found['passes'] = found['bytes'] / unit
    convs = (f'{n} {layout}' for layout, n in found['convolutions'].items())
    text = (
      f'convolutions: {", ".join(convs)}; transposes: {found["transposes"]};'
    )
    text += f' fusions: {found["fusions"]}; passes over activations:'
    text += (
      f' {found["passes"]:.1f}, by the compiler {by_compiler:.1f}, by hand'
    )
    figures = {**found, 'passes_by_compiler': by_compiler}
    set_row(title, f'{text} {by_hand}', figures)

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
  _folded(options, set_row)
  words = _network(options, options.batch_sizes[0])
  with _open_variant(words, '') as default:
    for name in names:
      set_row(name, *_variant(options, words, VARIANTS[name], default))


def _variant(options, words, change, default):
  """Returns the row of a variant: a text and figures."""
  try:
    with _open_variant(words, change) as other:
      seconds = {'default': default, 'variant': other}
      found = timing.in_turn(seconds, options.rounds)
  except (InputError, RunError):
    try:  # An unknown flag ends every program.
      env = {'XLA_FLAGS': change, 'JAX_PLATFORMS': 'cpu'}
      _python('-c', 'import jax; jax.devices()', **env)
    except RunError:
      return f'not accepted: {change}', None
    return f'failed, see log.txt: {change}', None
  found['ratio'] = timing.ratio(found['default'], found['variant'])
  text = f'{_ratio_text(found["ratio"])} times as fast as the default'
  return f'{text}: {change}', found


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


def _folded(options, set_row):
  words = [f'--batch-sizes={options.batch_sizes[0]}', '--dtype=bfloat16']
  words += [f'--rounds={options.rounds}', '--seconds=0.5']
  name = 'cifar_resnet8' if options.tiny else 'resnet50'
  (found,) = _figures('folding', name, *words)['rows']
  rate, ratio = found['images_per_second']['folded'], found['ratio']
  text = f'{_ratio_text(ratio)} times as fast as unfolded'
  set_row('folded inference', f'{rate["median"]:,.1f} images/s, {text}', found)


def cifar(options, set_row):
  """Times the loop over CIFAR-10 in the device's memory."""
  depths = (8,) if options.tiny else (20, 56, 110)
  cases = [(depth, n) for depth in depths for n in options.steps_per_call]
  fields = _cached_set(options, 'cifar10_jpeg')
  for depth, n in cases:
    result = None if fields else 'not run: no data'
    set_row(f'ResNet-{depth}, {n} steps per call', result)
  for depth, n in cases if fields else ():
    given = [f'--config=configs/cifar10.py:resnet{depth}', *_flags(fields)]
    given += [f'--config.steps_per_call={n}'] if n > 1 else []
    if options.tiny:
      given += _flags(['batch_size=8', 'log_every_steps=2'])
    found = _figures('loop', *given, f'--rounds={options.rounds // 2}')
    rate = found['images_per_second']['loop']['median']
    text = f'{rate:,.0f} images/s, {_ratio_text(found["ratio"])} of the step'
    text += f' alone, data wait {found["data_wait"]["median"]:.2%}, CPU time of'
    text += f' a batch {found["cpu_ms_per_batch"]:.2f} ms'
    set_row(f'ResNet-{depth}, {n} steps per call', text, found)


def _cached_set(options, name):
  """Returns fields for a set in the device's memory; [] without the set."""
  if not options.data or not os.path.isdir(f'{options.data}/{name}'):
    return []
  fields = [f'data.name={name}', f'data.data_dir={options.data}']
  on_device = ['data.augment_on=device', 'data.cache=device']
  return [*fields, *on_device, 'model.dtype=bfloat16']


def imagenette(options, set_row):
  """Trains ResNet-18-D for 20 epochs at 128 pixels, and evaluates it."""
  if not (fields := _cached_set(options, 'imagenette')):
    return set_row('ResNet-18-D, 128x20', 'not run: no data')
  set_row('ResNet-18-D, 128x20')
  fields += ['eval_every_epochs=20.0', 'save_every_steps=1000000']
  if options.tiny:
    fields += ['num_epochs=0.01', 'schedule.warmup_epochs=0.005']
    fields += ['log_every_steps=1', 'data.eval_split=val[:1%]']
  lines = _train('configs/imagenette.py:128x20', fields)
  rates = [x['images_per_second'] for x in lines if 'images_per_second' in x]
  speed, top1 = timing.spread(rates), lines[-1]['eval/top1']
  text = f'top-1 {top1:.2%}, {speed["median"]:,.0f} images/s'
  set_row('ResNet-18-D, 128x20', text, {'top1': top1, 'speed': speed})


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
