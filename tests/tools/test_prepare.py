"""Preparing sets: whole, after a kill, from bad input; read by TFDS and Grain.

TensorFlow is not among the requirements, so nothing here can need it.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import grain.python as grain
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from resnet.data import job as job_lib
from resnet.data.datasets import open_source
from resnet.data.images import decode_image
from resnet.errors import InputError
from resnet.tools import prepare
from tests.data.in_memory import encode, smooth_image

ROOT = pathlib.Path(__file__).parent.parent.parent
CMYK = encode(smooth_image(40, 50), 'JPEG', 'CMYK')
GREY = encode(smooth_image(40, 50)[..., 0], 'JPEG')
PNG = encode(smooth_image(40, 50), 'PNG')


def make_folder(root, count=12, height=40):
  """Two classes; among the files CMYK, grey, and PNG named .JPEG."""
  for split, number in (('train', count), ('val', 3)):
    for name in ('cat', 'dog'):
      place = root / split / name
      place.mkdir(parents=True)
      for i in range(number):
        image = smooth_image(height + i, 50)
        (place / f'{i:03}.jpg').write_bytes(encode(image, 'JPEG', quality=90))
  for name, data in (('cmyk', CMYK), ('grey', GREY), ('png', PNG)):
    (root / 'train' / 'cat' / f'{name}.JPEG').write_bytes(data)
  return root


@pytest.fixture
def folder(tmp_path):
  return make_folder(tmp_path / 'my-photos')


def run(*words):
  prepare.main(prepare.parser().parse_args([str(word) for word in words]))


def prepare_folder(folder, out, *words):
  run('--from=folder', f'--source={folder}', f'--out={out}', *words)
  return pathlib.Path(out) / 'my_photos' / '1.0.0'


def test_a_set_holds_the_files_and_a_manifest(folder, tmp_path):
  place = prepare_folder(folder, tmp_path / 'sets', '--threads=3')
  files = {f'{p.parent.name}/{p.name}': p for p in folder.rglob('*.*')}
  manifest = json.loads((place / 'manifest.json').read_text())
  assert manifest['examples'] == {'train': 27, 'validation': 6}
  assert manifest['class_names'] == ['cat', 'dog']
  assert sum(shard['examples'] for shard in manifest['shards']) == 33
  assert {p.name for p in place.iterdir()} == {
    'manifest.json',
    'dataset_info.json',
    'features.json',
    'label.labels.txt',
    *(shard['file'] for shard in manifest['shards']),
  }
  source = open_source('my_photos', 'train', data_dir=str(tmp_path / 'sets'))
  assert source.class_names == ('cat', 'dog')
  found = {}
  for index, record in enumerate(source.read(range(27))):
    name = record['file_name'].decode()
    found[name] = record
    assert record['label'] == ['cat', 'dog'].index(name.split('/')[0])
    original = decode_image((folder / 'train' / name).read_bytes(), 3)
    image = source.decode(index, record)
    if 'cmyk' in name:  # Stored anew, as RGB.
      assert np.abs(image.astype(int) - original).mean() < 2
    else:
      assert record['image'] == files[name].read_bytes() or 'val' in str(
        files[name]
      )
      np.testing.assert_array_equal(image, original)
  assert len(found) == 27


def test_plain_tfds_and_grain_read_it(folder, tmp_path):
  prepare_folder(folder, tmp_path / 'sets')
  data = tfds.data_source(
    'my_photos', split='train', data_dir=str(tmp_path / 'sets')
  )
  assert len(data) == 27
  for example in grain.MapDataset.source(data).shuffle(seed=0):
    path = folder / 'train' / example['file_name'].decode()
    expected = decode_image(path.read_bytes(), 3)
    assert example['image'].shape == expected.shape
    assert np.abs(example['image'].astype(int) - expected).mean() < 2


def test_resize_shrinks_the_larger_images_only(folder, tmp_path):
  prepare_folder(folder, tmp_path / 'sets', '--resize=44', '--quality=95')
  source = open_source('my_photos', 'train', data_dir=str(tmp_path / 'sets'))
  for index, record in enumerate(source.read(range(27))):
    path = folder / 'train' / record['file_name'].decode()
    original = Image.open(path).convert('RGB')
    image = source.decode(index, record)
    shorter = min(original.size)
    if shorter <= 44:
      assert image.shape[:2] == original.size[::-1]
      continue
    size = tuple(round(side * 44 / shorter) for side in original.size)
    assert image.shape[:2] == size[::-1] and min(size) == 44
    expected = np.asarray(original.resize(size, Image.Resampling.LANCZOS), int)
    assert np.abs(image - expected).mean() < 2


def test_raw_stores_the_pixels_of_the_central_square(folder, tmp_path):
  prepare_folder(folder, tmp_path / 'sets', '--raw', '--resize=32')
  data_dir = str(tmp_path / 'sets')
  source = open_source('my_photos', 'train', data_dir=data_dir)
  assert source.image_shape == (32, 32, 3)
  plain = tfds.data_source('my_photos', split='train', data_dir=data_dir)
  for index, record in enumerate(source.read(range(27))):
    assert record['image'].shape == (32, 32, 3)
    np.testing.assert_array_equal(plain[index]['image'], record['image'])
    assert plain[index]['label'] == record['label']


def test_raw_without_one_size_is_refused(folder, tmp_path):
  with pytest.raises(InputError, match=r'--raw needs one size: add --resize'):
    prepare_folder(folder, tmp_path / 'sets', '--raw')


def test_home_is_meant_where_a_shell_leaves_its_sign(
  folder, tmp_path, monkeypatch
):
  monkeypatch.setenv('HOME', str(tmp_path))
  run('--from=folder', f'--source=~/{folder.name}', '--out=~/sets')
  assert (tmp_path / 'sets' / 'my_photos').is_dir()


def test_a_prepared_set_can_be_prepared_again(folder, tmp_path):
  first = prepare_folder(folder, tmp_path / 'sets')
  run(
    '--from=tfds',
    f'--source={first}',
    f'--out={tmp_path / "small"}',
    '--resize=20',
  )
  for split, count in (('train', 27), ('validation', 6)):
    source = open_source('my_photos', split, data_dir=str(tmp_path / 'small'))
    records = source.read(range(count))
    assert len(source) == count and source.class_names == ('cat', 'dog')
    for i, record in enumerate(records):
      assert min(source.decode(i, record).shape[:2]) == 20


def test_the_same_command_compares_what_is_there(folder, tmp_path, capsys):
  place = prepare_folder(folder, tmp_path / 'sets')
  prepare_folder(folder, tmp_path / 'sets')
  assert 'Prepared already' in capsys.readouterr().out
  shard = next(place.glob('*train*00002*'))
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  shard.write_bytes(data)
  with pytest.raises(InputError, match=r'train.*not what its manifest says'):
    prepare_folder(folder, tmp_path / 'sets')


COMMAND = (
  'import sys, time\n'
  'from resnet.data import encoding\n'
  'from resnet.tools import command, prepare\n'
  'plain = encoding.Encoding.encode\n'
  'def slow(self, image):\n'
  '  time.sleep(0.02)\n'
  '  return plain(self, image)\n'
  'encoding.Encoding.encode = slow\n'
  'command.run(prepare.main, prepare.parser())\n'
)


def test_a_killed_command_goes_on(tmp_path):
  folder = make_folder(tmp_path / 'my-photos', count=60)
  prepare_folder(folder, tmp_path / 'whole')
  words = ['--from=folder', f'--source={folder}', f'--out={tmp_path / "sets"}']
  unfinished = tmp_path / 'sets' / 'my_photos' / '1.0.0.incomplete'
  process = subprocess.Popen(
    [sys.executable, '-c', COMMAND, *words, '--threads=2'], cwd=ROOT
  )
  deadline = time.monotonic() + 60
  while len(list(unfinished.glob('shards/*.json'))) < 2:
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  done = {p: p.stat().st_mtime_ns for p in unfinished.glob('*-of-00008')}
  assert 2 <= len(done) < 16
  with pytest.raises(InputError, match=r"'my_photos'"):
    open_source('my_photos', 'train', data_dir=str(tmp_path / 'sets'))
  with pytest.raises(InputError, match=r'half-written by another .* encoding'):
    run(*words, '--resize=30')
  place = prepare_folder(folder, tmp_path / 'sets')
  assert not unfinished.exists()
  for path, changed in done.items():
    assert (place / path.name).stat().st_mtime_ns == changed
  for split, count in (('train', 123), ('validation', 6)):
    records = [
      open_source('my_photos', split, data_dir=str(tmp_path / name))
      for name in ('whole', 'sets')
    ]
    assert len(records[0]) == count
    assert records[0].read(range(count)) == records[1].read(range(count))


def test_a_broken_image_is_named_or_left_out(folder, tmp_path, capsys):
  (folder / 'train' / 'dog' / '003.jpg').write_bytes(b'<html>')
  with pytest.raises(InputError, match=r'dog/003\.jpg.*--skip-bad'):
    prepare_folder(folder, tmp_path / 'sets')
  place = prepare_folder(folder, tmp_path / 'others', '--skip-bad')
  manifest = json.loads((place / 'manifest.json').read_text())
  assert manifest['examples']['train'] == 26
  assert len(manifest['left_out']) == 1
  assert 'left out: The image of' in capsys.readouterr().out


def test_the_disk_is_checked_before_anything_is_written(
  folder, tmp_path, monkeypatch
):
  usage = job_lib.shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    job_lib.shutil, 'disk_usage', lambda _: usage._replace(free=10_000)
  )
  with pytest.raises(InputError, match=r'needs about .* GB are free'):
    prepare_folder(folder, tmp_path / 'sets')
  assert not (tmp_path / 'sets').exists()


@pytest.mark.parametrize(
  'words', [[], ['--resize=24'], ['--raw', '--resize=24']]
)
def test_the_estimate_of_the_disk_is_near_the_truth(folder, tmp_path, words):
  args = prepare.parser().parse_args(
    ['--from=folder', f'--source={folder}', f'--out={tmp_path}', *words]
  )
  job = prepare.make_job(args)
  estimate = job_lib.estimate_bytes(job)
  prepare.main(args)
  manifest = pathlib.Path(job.folder, 'manifest.json').read_text()
  # ArrayRecord takes at least 64 kB a file.
  num_bytes = json.loads(manifest)['bytes']
  assert 0 < estimate < num_bytes < estimate + 16 * 2**17


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--from=folder', '--source=/nowhere'], 'is no folder'),
    (['--from=tfds', '--source={folder}'], 'no prepared TFDS set'),
    (['--from=idx', '--source={folder}'], 'has neither train-images'),
    (['--from=imagenet', '--source={folder}'], 'ILSVRC2012_img_train.tar.*It'),
    (['--from=folder', '--source={folder}', '--name=Photos'], 'no name'),
    (['--from=folder', '--source={folder}', '--resize=1'], '--resize=1'),
    (['--from=folder', '--source={folder}', '--quality=101'], 'quality=101'),
  ],
)
def test_bad_input_is_said(folder, tmp_path, words, message):
  words = [word.format(folder=folder) for word in words]
  with pytest.raises(InputError, match=message):
    run(*words, f'--out={tmp_path / "sets"}')
  assert not (tmp_path / 'sets').exists()
