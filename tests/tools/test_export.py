"""The export tool: it prints what was checked."""

import json
import os

import cv2
from jax import export
import numpy as np

from tests.networks import save_random


def test_an_export_is_checked_and_predicts_like_its_source(tool, tmp_path):
  names = ['ant', 'bee', 'cat', 'dog', 'eel']
  source = save_random(tmp_path / 'net.safetensors', size=16, class_names=names)
  out = tmp_path / 'out'
  first, *rest = tool(
    'export',
    f'--weights={source}',
    '--format=stablehlo',
    '--with-preprocessing',
    f'--out={out}',
  ).stdout.splitlines()
  assert 'uint8 [batch, 16, 16, 3] -> logits [batch, 5]' in first
  assert [line.split()[1] for line in rest] == ['1:', '7:']
  assert all(float(line.split()[-1]) <= 1e-5 for line in rest)
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['class_names'] == names
  assert {*manifest['sha256'], 'manifest.json'} == set(os.listdir(out))
  image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  cv2.imwrite(str(tmp_path / 'a.png'), image)
  lines = [
    tool('predict', f'--weights={place}', tmp_path / 'a.png').stdout
    for place in (source, out)
  ]
  assert lines[0] == lines[1] and 'eel' in lines[0]


def test_an_export_for_other_platforms_has_their_convolutions(tool, tmp_path):
  source = save_random(tmp_path / 'net.safetensors', size=8, class_names='ab')
  products = {}
  for platforms in ('cpu', 'cpu,cuda,tpu'):
    out = tmp_path / platforms
    result = tool(
      'export',
      f'--weights={source}',
      '--format=stablehlo',
      f'--platforms={platforms}',
      f'--out={out}',
    )
    assert result.returncode == 0, result.stderr
    program = export.deserialize(
      bytearray((out / 'model.stablehlo').read_bytes())
    )
    # Of images; that of the head contracts another dim.
    products[platforms] = program.mlir_module().count('contracting_dims = [3]')
  assert products['cpu'] > 0 == products['cpu,cuda,tpu']
