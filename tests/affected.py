"""Prints the tests of what changed since origin/main (else HEAD).

`make check` runs them. A changed test file is run, and for a changed module
`resnet/PACKAGE/NAME.py` the tests in `tests/PACKAGE/` that are named after it
or import it. The rest is left to `make test`.
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
  folder = ROOT / 'tests' / pathlib.PurePosixPath(*path.parts[1:-1])
  module = '.'.join(path.with_suffix('').parts).removesuffix('.__init__')
  return {
    test.relative_to(ROOT).as_posix()
    for test in folder.glob('test_*.py')
    if test.name == f'test_{path.name}'
    or (len(path.parts) > 2 and module in imports(test))
  }


def main() -> None:
  tests = set(ALWAYS).union(*map(tests_of, changed_files()))
  print('\n'.join(sorted(test for test in tests if (ROOT / test).exists())))


if __name__ == '__main__':
  sys.exit(main())
