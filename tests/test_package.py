"""The wheel holds the program, its configs and its data files, nothing else."""

import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.programs import ROOT


def run(*args, cwd, **env):
  """Runs `python ARGS` without this clone on its path; returns its output."""
  command = [sys.executable, *args]
  return subprocess.check_output(command, cwd=cwd, env=env, text=True)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The folder of an unpacked wheel, built without network."""
  clone = tmp_path_factory.mktemp('clone')
  for path in ROOT.iterdir():
    if path.is_file():
      shutil.copy(path, clone)
  ignored = shutil.ignore_patterns('__pycache__')
  for name in ('benchmarks', 'configs', 'resnet', 'tests'):
    shutil.copytree(ROOT / name, clone / name, ignore=ignored)
  (clone / 'docs').mkdir()
  shutil.copy(ROOT / 'docs' / 'requirements.txt', clone / 'docs')
  script = 'from setuptools import build_meta as b; print(b.build_wheel("."))'
  file = run('-c', script, cwd=clone).splitlines()[-1]
  unpacked = tmp_path_factory.mktemp('wheel')
  zipfile.ZipFile(clone / file).extractall(unpacked)
  return unpacked


def files_under(folder):
  paths = (path for path in folder.rglob('*') if path.is_file())
  names = (path.relative_to(folder) for path in paths)
  return {name for name in names if '__pycache__' not in name.parts}


def test_the_wheel_holds_the_package_and_the_configs(wheel):
  (info,) = wheel.glob('*.dist-info')
  expected = {pathlib.Path('resnet', x) for x in files_under(ROOT / 'resnet')}
  expected |= {
    pathlib.Path('resnet/configs', x) for x in files_under(ROOT / 'configs')
  }
  found = files_under(wheel)
  assert {x for x in found if x.parts[0] != info.name} == expected
  assert 'Apache License' in (info / 'licenses' / 'LICENSE').read_text()


def test_the_dependencies_are_those_of_the_requirements(wheel):
  (file,) = wheel.glob('*.dist-info/METADATA')
  required = re.findall('Requires-Dist: (.*)', file.read_text())
  for extra, *names in (
    ('', 'requirements.txt'),
    ('; extra == "docs"', 'docs/requirements.txt'),
    ('; extra == "hub"', 'requirements-hub.txt'),
    ('; extra == "serve"', 'requirements-serve.txt'),
    ('; extra == "test"', 'requirements-serve.txt', 'tests/requirements.txt'),
  ):
    text = '\n'.join((ROOT / name).read_text() for name in names)
    listed = re.findall(r'^([\w-]+)', text, re.MULTILINE)
    tail = re.escape(extra)
    pattern = f'([\\w-]+)[^;]*{tail}'
    matches = [re.fullmatch(pattern, line) for line in required]
    assert [match[1] for match in matches if match] == listed


def test_commands_find_the_configs_outside_a_clone(wheel, tmp_path):
  script = (
    'from resnet import config\n'
    'for name in ("resnet50.py", "configs/imagenet.py:resnet18"):\n'
    '  print(config.read(["x", f"--config={name}"])[0].model.name)\n'
    'print(config.read(["x"])[1])\n'
    'from resnet.tools.reproduce import grids\n'
    'print(grids.cifar10.__file__)\n'
  )
  out = run('-c', script, cwd=tmp_path, PYTHONPATH=str(wheel))
  configs = wheel / 'resnet' / 'configs'
  assert out.splitlines() == [
    'resnet50',
    'resnet18',
    str(configs / 'digits.py'),
    str(configs / 'cifar10.py'),
  ]
