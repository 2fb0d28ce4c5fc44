"""Imports between packages go one way; some libraries have few importers."""

import ast
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parent.parent

# Packages and single modules, by name prefix; the longest prefix counts. Each
# may import those of the lines above, and itself.
LAYERS = (
  ('resnet.errors',),
  (
    'resnet.backend',
    'resnet.config',
    'resnet.download',
    'resnet.fields',
    'resnet.files',
    'resnet.output',
  ),
  ('resnet.checkpoint_folder',),
  ('resnet.models', 'resnet.data.augment'),
  ('resnet.training', 'resnet.data'),
  ('resnet.weights',),
  ('resnet.experiment',),
  ('resnet.evaluation',),
  ('resnet.run',),
  ('resnet.inference', 'resnet.plots'),
  ('resnet.export', 'resnet.serving', 'resnet.pretrained'),
  ('configs',),
  ('resnet.tools',),
  ('resnet.main',),
  ('main',),
)
# The modules that may import a library.
IMPORTERS = {
  'absl': {'resnet.config', 'resnet.main'},
  'jax._src': {'resnet.run.cluster'},
  'matplotlib': {'resnet.plots.figures'},
  'ml_collections': {'configs.default', 'resnet.config', 'resnet.main'},
  'tensorflow': set(),
  'torch': set(),
}
FILES = {
  '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix(
    '.__init__'
  ): path
  for path in [
    ROOT / 'main.py',
    *(ROOT / 'resnet').rglob('*.py'),
    *(ROOT / 'configs').rglob('*.py'),
  ]
}


def read_imports(name):
  """Yields the names that a file imports anywhere, in functions too."""
  for node in ast.walk(ast.parse(FILES[name].read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{name} has a relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def module_of(imported):
  """Returns our module that an imported name is or lies in, or None."""
  parent = imported.rpartition('.')[0]
  return next((name for name in (imported, parent) if name in FILES), None)


def has_prefix(name, prefix):
  return f'{name}.'.startswith(f'{prefix}.')


def layer_of(name):
  """Returns (number of the layer, package) of one of our modules."""
  found = [
    (index, package)
    for index, packages in enumerate(LAYERS)
    for package in packages
    if has_prefix(name, package)
  ]
  assert found, f'LAYERS has no package for {name}'
  return max(found, key=lambda layer: len(layer[1]))


IMPORTS = {name: set(read_imports(name)) for name in FILES}


def test_imports_go_from_later_to_earlier_packages():
  for name in FILES.keys() - {'resnet'}:  # An empty file.
    layer, package = layer_of(name)
    for other in {module_of(imported) for imported in IMPORTS[name]} - {None}:
      other_layer, other_package = layer_of(other)
      assert package == other_package or other_layer < layer, (name, other)


def test_nothing_imports_scripts_tests_or_private_names_of_libraries():
  for name, imports in IMPORTS.items():
    for imported in imports:
      library, *parts = imported.split('.')
      assert library not in ('benchmarks', 'tests'), (name, imported)
      if (
        library not in ('resnet', '__future__') and name != 'resnet.run.cluster'
      ):
        assert not any(part.startswith('_') for part in parts), (name, imported)


def test_modules_import_each_other_without_cycles():
  graph = {
    name: {module_of(imported) for imported in IMPORTS[name]} - {None}
    for name in FILES
  }
  graphlib.TopologicalSorter(graph).prepare()


def test_libraries_are_imported_where_they_may_be():
  for library, allowed in IMPORTERS.items():
    importers = {
      name
      for name in FILES
      if any(has_prefix(imported, library) for imported in IMPORTS[name])
    }
    assert importers == allowed, library


def test_what_commands_need_for_help_imports_no_jax():
  """Importing JAX takes longer than all else that --help does."""
  seen, waiting = set(), {'main', 'resnet.tools.__main__'}
  while waiting:
    name = waiting.pop()
    seen.add(name)
    for node in ast.parse(FILES[name].read_text()).body:
      for alias in getattr(node, 'names', ()):
        module = getattr(node, 'module', None)
        imported = f'{module}.{alias.name}' if module else alias.name
        assert imported.split('.')[0] not in ('flax', 'jax', 'optax'), name
        waiting |= {module_of(imported)} - seen - {None}
