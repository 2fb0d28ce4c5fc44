"""Imports go one way: leaves -> units -> experiment -> loop -> tools, main."""

import ast
import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# A module may import modules of a lower layer, and of its own where listed.
_LAYERS = (
  ('resnet.errors',),
  ('resnet.config_flag',),
  # Leaves: know nothing of each other, but for the chain in a package.
  (
    'resnet.models.convolution',
    'resnet.models.layers',
    'resnet.models.shortcuts',
    'resnet.models.scan',
    'resnet.models.blocks',
    'resnet.models.lecture',
    'resnet.data.fake',
    'resnet.data.images',
    'resnet.data.memory',
    'resnet.data.notes',
    'resnet.data.order',
    'resnet.data.workers',
    'resnet.data.augment',
    'resnet.data.augmentation',
    'resnet.data.sizes',
    'resnet.data.erasing',
    'resnet.data.geometry',
    'resnet.data.jitter',
    'resnet.data.mixing',
    'resnet.data.operations',
    'resnet.data.policies',
    'resnet.data.resample',
    'resnet.data.transforms',
    'resnet.data.scales',
    'resnet.data.source',
    'resnet.data.folder',
    'resnet.data.imagenet',
    'resnet.data.records',
    'resnet.data.datasets',
    'resnet.data.real_labels',
    'resnet.data.same_classes',
    'resnet.data.digits',
    'resnet.data.encoding',
    'resnet.data.job',
    'resnet.data.shards',
    'resnet.data.writing',
    'resnet.data.idx',
    'resnet.training.losses',
    'resnet.training.calibration',
    'resnet.training.views',
    'resnet.training.schedules',
    'resnet.training.lookahead',
    'resnet.training.optimizers',
    'resnet.training.metrics',
    'resnet.training.state',
    'resnet.training.sharding',
    'resnet.training.guards',
    'resnet.training.checkpoint',
    'resnet.training.compiler',
    'resnet.training.workdir',
    'resnet.training.writer',
    'resnet.training.meter',
    'resnet.training.reference',
    'resnet.training.starts',
    'resnet.training.stop',
    'resnet.training.watchdog',
    'resnet.training.lock',
    'resnet.training.roll_call',
    'resnet.training.cluster',
  ),
  (
    'resnet.models.resnet',
    'resnet.models',
    'resnet.models.arithmetic',
    'resnet.models.weights.metadata',
    'resnet.models.weights.naming',
    'resnet.models.weights.sources',
    'resnet.models.weights.fit',
    'resnet.models.weights.convert',
    'resnet.models.weights',
    'resnet.data.reader',
    'resnet.data.loader',
    'resnet.data.normalization',
    'resnet.data.pipeline',
    'resnet.training.step',
    'resnet.reporting.figures',
    'resnet.reporting.history',
    'resnet.reporting.curves',
    'resnet.reporting.evaluation',
    'resnet.reporting.reliability',
  ),
  (
    'resnet.inference.export',
    'resnet.inference.exported',
    'resnet.inference.features',
    'resnet.inference.files',
    'resnet.inference.maps',
    'resnet.inference.network',
    'resnet.inference.onnx',
    'resnet.inference.preprocessing',
    'resnet.inference.predictor',
  ),
  (
    'resnet.serving.app',
    'resnet.serving.batcher',
    'resnet.serving.body',
    'resnet.serving.connection',
    'resnet.serving.limits',
  ),
  ('resnet.experiment',),
  (
    'resnet.training.initialize',
    'resnet.training.evaluate',
    'resnet.training.detailed',
    'resnet.training.precise_bn',
    'resnet.training.bad_steps',
    'resnet.training.loop',
    'resnet.training.programs',
    'resnet.training.replay',
    'resnet.training.run',
  ),
  # Nothing imports these two.
  (
    'resnet.tools.aot',
    'resnet.tools.collectives',
    'resnet.tools.benchmark',
    'resnet.tools.benchmark_checkpoint',
    'resnet.tools.benchmark_input',
    'resnet.tools.benchmark_loop',
    'resnet.tools.benchmark_startup',
    'resnet.tools.benchmark_step',
    'resnet.tools.ceilings',
    'resnet.tools.command',
    'resnet.tools.compiled',
    'resnet.tools.doctor',
    'resnet.tools.evaluate',
    'resnet.tools.costs',
    'resnet.tools.export',
    'resnet.tools.first_step',
    'resnet.tools.grid_figures',
    'resnet.tools.experiments',
    'resnet.tools.gains',
    'resnet.tools.grids',
    'resnet.tools.machine',
    'resnet.tools.predict',
    'resnet.tools.probe',
    'resnet.tools.prepare',
    'resnet.tools.programs',
    'resnet.tools.reference',
    'resnet.tools.rehearsal',
    'resnet.tools.report',
    'resnet.tools.reproduce',
    'resnet.tools.responses',
    'resnet.tools.rivals',
    'resnet.tools.results',
    'resnet.tools.serve',
    'resnet.tools.summary',
    'resnet.tools.timing',
    'resnet.tools.traces',
    'resnet.tools.topologies',
    'resnet.tools.weights',
  ),
  ('main',),
)
_LAYER_OF = {name: i for i, layer in enumerate(_LAYERS) for name in layer}
_EMPTY = {
  'resnet',
  *(
    f'resnet.{name}'
    for name in (
      'data',
      'inference',
      'reporting',
      'serving',
      'tools',
      'training',
    )
  ),
}
_FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
    '.__init__'
  ): path
  for path in [ROOT / 'main.py', *(ROOT / 'resnet').rglob('*.py')]
}


def imports(name):
  """Yields the modules that a file imports, lazily or not."""
  for node in ast.walk(ast.parse(_FILES[name].read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} has a relative import'
      for alias in node.names:
        full = f'{node.module}.{alias.name}'
        yield full if full in _FILES else node.module


def test_every_file_has_a_layer():
  assert set(_FILES) == set(_LAYER_OF) | _EMPTY


@pytest.mark.parametrize('name', sorted(_LAYER_OF))
def test_imports_go_down(name):
  for other in set(imports(name)) & set(_LAYER_OF):
    package = other.rpartition('.')[0]
    same_package = package and name.startswith(package)
    allowed = _LAYER_OF[other] < _LAYER_OF[name] or (
      _LAYER_OF[other] == _LAYER_OF[name] and same_package
    )
    assert allowed, f'{name} imports {other}'


@pytest.mark.parametrize('name', sorted(_LAYER_OF))
def test_packages_know_what_they_may(name):
  imported = set(imports(name))
  if name.startswith('resnet.models'):
    assert not any(
      m.startswith(('resnet.data', 'resnet.training')) for m in imported
    )
  if name.startswith('resnet.data'):
    assert not any(
      m.startswith(('resnet.models', 'resnet.training')) for m in imported
    )
  roots = {module.partition('.')[0] for module in imported}
  assert not roots & {'torch', 'tensorflow'}
  if name != 'resnet.reporting.figures':
    assert 'matplotlib' not in roots
  if name not in ('main', 'resnet.config_flag', 'resnet.experiment'):
    assert 'ml_collections' not in roots
  if name not in ('main', 'resnet.config_flag'):
    assert 'absl' not in roots


def test_this_test_sees_imports():
  assert 'resnet.training.step' in set(imports('resnet.experiment'))
  assert importlib.util.find_spec('resnet.experiment')
