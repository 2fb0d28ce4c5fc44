"""The notebook runs from a clean kernel, and its outputs are committed."""

import json
import re
import shutil

import pytest

from tests import programs
from tests.test_links import ROOT

NOTEBOOK = ROOT / 'docs' / 'tutorial.ipynb'


def outputs(path):
  """Yields the execution count and the outputs of each code cell."""
  for cell in json.loads(path.read_text())['cells']:
    if cell['cell_type'] == 'code':
      yield cell['execution_count'], cell['outputs']


def accuracies(path):
  """Returns the top-1 accuracies of the evaluations that a notebook prints."""
  text = json.dumps([x for _, x in outputs(path)])
  return [float(x) for x in re.findall(r'eval at .*?top1 ([\d.]+)', text)]


def test_outputs_are_small_and_of_one_run():
  counts, cells = zip(*outputs(NOTEBOOK), strict=True)
  assert counts == tuple(range(1, len(counts) + 1))
  shown = [output for cell in cells for output in cell]
  assert sum('image/png' in x.get('data', {}) for x in shown) == 4
  assert not any(x.get('name') == 'stderr' for x in shown)
  text = NOTEBOOK.read_text()
  assert len(text) < 400_000
  assert not re.search('/(home|root|tmp|usr|work)/', text)


@pytest.mark.slow
def test_it_runs_from_a_clean_kernel(tmp_path):
  pytest.importorskip('nbclient')
  pytest.importorskip('ipykernel')
  shutil.copytree(NOTEBOOK.parent / 'pictures', tmp_path / 'pictures')
  copy = shutil.copy(NOTEBOOK, tmp_path)
  # The kernel finds the code here, not above the copy.
  script = 'from nbclient.cli import main; main()'
  args = ['-c', script, copy, '--inplace', '--timeout=600']
  folder = str(tmp_path)
  variables = {'TFDS_DATA_DIR': folder, 'TMPDIR': folder}
  result = programs.run(*args, **variables, PYTHONPATH=str(ROOT))
  assert result.returncode == 0, result.stderr
  ours, theirs = accuracies(tmp_path / NOTEBOOK.name), accuracies(NOTEBOOK)
  assert len(ours) == len(theirs) == 12
  # At the end of both trainings; in between, rounding makes a difference.
  assert ours[5::6] == pytest.approx(theirs[5::6], abs=0.03)
