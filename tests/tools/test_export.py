"""The export tool: what it prints, and what it refuses."""

import json
import os
import pickle
import sys

import cv2
import numpy as np
import pytest

from resnet.models import weights
from resnet.tools import command, export, predict
from tests.networks import make_variables


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  _, variables = make_variables('cifar_resnet8', size=16, num_classes=5)
  path = str(tmp_path_factory.mktemp('export') / 'net.safetensors')
  metadata = weights.Metadata(
    model='cifar_resnet8',
    preprocessing=weights.Preprocessing(
      mean=(0.5, 0.5, 0.5),
      std=(0.25, 0.25, 0.25),
      image_size=16,
      crop_share=1.0,
      interpolation='bilinear',
    ),
    class_names=('ant', 'bee', 'cat', 'dog', 'eel'),
  )
  weights.save_weights(variables, path, metadata=metadata)
  return path


def run(monkeypatch, *args, tool=export):
  monkeypatch.setattr(sys, 'argv', ['tool', *args])
  command.run(tool.main, tool.parser())


def test_it_says_what_was_checked(source, tmp_path, monkeypatch, capsys):
  out = tmp_path / 'out'
  run(
    monkeypatch,
    f'--weights={source}',
    '--format=stablehlo',
    '--with-preprocessing',
    f'--out={out}',
  )
  first, *rest = capsys.readouterr().out.splitlines()
  assert 'uint8 [batch, 16, 16, 3] -> logits [batch, 5]' in first
  assert rest == [
    f'  batch {batch}: differs from the network by 0.0e+00' for batch in (1, 7)
  ]
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['class_names'] == ['ant', 'bee', 'cat', 'dog', 'eel']
  assert sorted(manifest['sha256']) == sorted(
    set(os.listdir(out)) - {'manifest.json'}
  )
  # predict takes the folder, and says the same.
  image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
  cv2.imwrite(str(tmp_path / 'a.png'), image)
  lines = []
  for place in (source, out):
    run(
      monkeypatch, f'--weights={place}', str(tmp_path / 'a.png'), tool=predict
    )
    lines.append(capsys.readouterr().out)
  assert lines[0] == lines[1] and 'eel' in lines[0]


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--format=tflite'], "'tflite'"),
    (['--platforms=vax'], "'vax', none of cpu"),
    (['--out=.'], 'there already'),
    (['--weights=/no/where'], 'no weights at'),
    (['--weights=https://example.com/net'], 'no weights at'),
    (['--weights=net.pth'], 'pickle'),
    (['--model=resnet18'], 'holds weights of cifar_resnet8'),
  ],
)
def test_bad_input_is_one_line_exit_code_2_and_no_file(
  source, tmp_path, monkeypatch, capsys, args, message
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'net.pth').write_bytes(pickle.dumps({'head': [1.0]}))
  with pytest.raises(SystemExit) as error:
    run(
      monkeypatch,
      f'--weights={source}',
      '--format=stablehlo',
      '--out=out',
      *args,
    )
  assert error.value.code == 2
  out, err = capsys.readouterr()
  assert not out and len(err.splitlines()) == 1 and message in err
  assert os.listdir(tmp_path) == ['net.pth']
