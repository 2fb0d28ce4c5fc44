"""Prints the tests of what changed since origin/main (else HEAD).

`make check` runs them. A changed test file is run, and for a changed module the
tests that are named after it or its package (`tests/tools/test_aot.py` for
`resnet/tools/aot/compiled.py`) and those of its top folder (`tests/tools`) that
import it; where there are none, all that do. The rest is left to `make test`.
"""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
# Every change may break these two; configs are built by the second.
ALWAYS = ('tests/test_layering.py',)
OF_CONFIGS = ('tests/test_experiment.py', 'tests/test_recipe_configs.py')


def git(*args: str) -> list[str]:
  output = subprocess.check_output(['git', *args], cwd=ROOT, text=True)
  return output.splitlines()


def changed_files() -> list[str]:
  """Returns the changed, added and untracked files; deleted ones are gone."""
  base = git('rev-parse', '--verify', '--quiet', 'HEAD')[0]
  refs = git('for-each-ref', '--format=%(refname)', 'refs/remotes/origin/main')
  if refs:
    base = git('merge-base', refs[0], 'HEAD')[0]
  return [
    name
    for name in (
      *git('diff', '--name-only', '--diff-filter=d', base),
      *git('ls-files', '--others', '--exclude-standard'),
    )
    if name.endswith('.py')
  ]


def imports(path: pathlib.Path) -> set[str]:
  """Returns all dotted names that a file may mean by its imports."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module)
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def tests_of(name: str) -> set[str]:
  """Returns the test files of one changed file, relative to the repository."""
  path = pathlib.PurePosixPath(name)
  if path.parts[0] == 'tests':
    return {name} if path.name.startswith('test_') else set()
  if path.parts[0] == 'configs':
    return set(OF_CONFIGS)
  module = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
  places = [path.with_suffix(''), *path.with_suffix('').parents]
  named = {
    'tests'
    / place.relative_to(path.parts[0]).with_name(f'test_{place.name}.py')
    for place in places
    if len(place.parts) > 1
  }
  if path.parts[:2] == ('resnet', 'models'):  # A new network needs one.
    named.add(pathlib.PurePosixPath('tests/models/test_golden.py'))
  tests = {test.as_posix() for test in named if (ROOT / test).exists()}
  importers = {
    test.relative_to(ROOT)
    for test in (ROOT / 'tests').rglob('test_*.py')
    if module in imports(test)
  }
  near = {test for test in importers if test.parts[1] == path.parts[1]}
  return tests | {test.as_posix() for test in near or importers}


def main() -> None:
  tests = set(ALWAYS).union(*map(tests_of, changed_files()))
  print('\n'.join(sorted(test for test in tests if (ROOT / test).exists())))


if __name__ == '__main__':
  sys.exit(main())
