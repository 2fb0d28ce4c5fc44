"""docs/architecture.md and docs/how_it_works.md say what the code is."""

import ast
import re

import pytest

from tests.test_layering import LAYERS, ROOT

PAGE = ROOT / 'docs' / 'architecture.md'
TEXT = PAGE.read_text()


def defined_names(path):
  """Yields the names at the top of a file, and those in its classes."""
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      yield node.name
    if isinstance(node, ast.ClassDef):
      for member in node.body:
        if isinstance(member, ast.FunctionDef):
          yield f'{node.name}.{member.name}'
        elif isinstance(member, ast.AnnAssign):
          yield f'{node.name}.{ast.unparse(member.target)}'
    if isinstance(node, ast.Assign | ast.AnnAssign):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      yield from map(ast.unparse, targets)


@pytest.mark.parametrize('page', ['architecture.md', 'how_it_works.md'])
def test_every_linked_name_is_in_its_file(page):
  text = (PAGE.parent / page).read_text()
  links = re.findall(r'\[`([^`]+)`\]\(([^)]+)\)', text)
  assert len(links) > 30
  for name, target in links:
    path = (PAGE.parent / target).resolve()
    assert path.is_file(), target
    assert name in {path.stem, *defined_names(path)}, (name, target)


def test_the_packages_are_those_of_the_import_test():
  rows = re.findall(r'^\| (`(?:resnet|configs|main).*?) \|', TEXT, re.M)
  assert [tuple(re.findall('`(.+?)`', row)) for row in rows] == list(LAYERS)


def test_every_folder_that_is_named_exists():
  folders = re.findall(r'`((?:resnet|tests)/[\w/]+)`', TEXT)
  assert folders and all((ROOT / folder).is_dir() for folder in folders)
