"""Preparing sets: whole, after a kill, from bad input; read by plain TFDS.

TensorFlow is not among the requirements, so nothing here can need it.
"""

import json
import os
import shutil

import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from resnet.data.host.decode import decode_image, decode_record
from resnet.data.sources.registry import open_source
from resnet.errors import InputError
from resnet.files import lock
from resnet.tools import prepare
from tests.data.in_memory import encode, smooth_image
from tests.programs import assert_refused, start, wait_until


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Two classes; among the files CMYK, grey, and PNG named .JPEG."""
  root = tmp_path_factory.mktemp('folder') / 'my-photos'
  for split, number in (('train', 12), ('val', 3)):
    for name in ('cat', 'dog'):
      place = root / split / name
      place.mkdir(parents=True)
      for i in range(number):
        image = smooth_image(40 + i, 50)
        (place / f'{i:03}.jpg').write_bytes(encode(image, 'JPEG', quality=90))
  image = smooth_image(40, 50)
  for name, data in (
    ('cmyk', encode(image, 'JPEG', 'CMYK')),
    ('grey', encode(image[..., 0], 'JPEG')),
    ('png', encode(image, 'PNG')),
  ):
    (root / 'train' / 'cat' / f'{name}.JPEG').write_bytes(data)
  return root


def prepare_set(kind, source, out, *words):
  """Prepares my_photos; returns the set's folder and the arguments."""
  words = [f'--from={kind}', f'--source={source}', f'--out={out}', *words]
  args = prepare.parser().parse_args(words)
  prepare.main(args)
  return out / 'my_photos' / '1.0.0', args


@pytest.fixture(scope='module')
def prepared(folder, tmp_path_factory):
  """The folder of a set with all files as they are."""
  place, _ = prepare_set('folder', folder, tmp_path_factory.mktemp('sets'))
  return place


def read_manifest(place):
  return json.loads((place / 'manifest.json').read_text())


def open_set(place, split='train'):
  return open_source('my_photos', split, data_dir=str(place.parents[1]))


def open_by_tfds(place):
  data_dir = str(place.parents[1])
  return tfds.data_source('my_photos', split='train', data_dir=data_dir)


def assert_estimated(place, args):
  # ArrayRecord takes at least 64 kB a file.
  num_bytes = read_manifest(place)['bytes']
  estimate = prepare.make_job(args).num_bytes
  assert 0 < estimate < num_bytes < estimate + 16 * 2**17


def test_a_set_holds_the_files_and_a_manifest(folder, prepared):
  manifest = read_manifest(prepared)
  assert manifest['examples'] == {'train': 27, 'validation': 6}
  assert manifest['class_names'] == ['cat', 'dog']
  assert sum(shard['examples'] for shard in manifest['shards']) == 33
  assert {p.name for p in prepared.iterdir()} == {
    'manifest.json',
    'dataset_info.json',
    'features.json',
    'label.labels.txt',
    *(shard['file'] for shard in manifest['shards']),
  }
  source, plain = open_set(prepared), open_by_tfds(prepared)
  assert source.class_names == ('cat', 'dog')
  names = set()
  for index, record in enumerate(source.read(range(27))):
    name = record['file_name'].decode()
    names.add(name)
    assert record['label'] == ['cat', 'dog'].index(name.split('/')[0])
    data = (folder / 'train' / name).read_bytes()
    # CMYK is stored anew, as RGB.
    assert (record['image'] == data) == ('cmyk' not in name)
    expected = decode_image(data, 3)
    for image in (decode_record(source, index, record), plain[index]['image']):
      assert image.shape == expected.shape
      assert np.abs(image.astype(int) - expected).mean() < 2
  assert len(names) == len(plain) == 27


def test_a_prepared_set_can_be_prepared_again_with_smaller_images(
  folder, prepared, tmp_path
):
  words = ('--resize=44', '--quality=95')
  place, args = prepare_set('tfds', prepared, tmp_path, *words)
  assert_estimated(place, args)
  assert len(open_set(place, 'validation')) == 6
  source = open_set(place)
  assert source.class_names == ('cat', 'dog')
  for index, record in enumerate(source.read(range(27))):
    path = folder / 'train' / record['file_name'].decode()
    original = Image.open(path).convert('RGB')
    shorter = min(original.size)
    size = original.size
    if shorter > 44:
      size = tuple(round(side * 44 / shorter) for side in size)
    image = decode_record(source, index, record)
    assert image.shape[:2] == size[::-1]
    expected = np.asarray(original.resize(size, Image.Resampling.LANCZOS), int)
    assert np.abs(image - expected).mean() < 2
  assert len(source) == 27


def test_raw_stores_the_pixels_of_the_central_square(folder, tmp_path):
  with pytest.raises(InputError, match='--raw needs one size: add --resize'):
    prepare_set('folder', folder, tmp_path / 'other', '--raw')
  place, args = prepare_set('folder', folder, tmp_path, '--raw', '--resize=32')
  assert_estimated(place, args)
  source = open_set(place)
  assert source.image_shape == (32, 32, 3)
  plain = open_by_tfds(place)
  for index, record in enumerate(source.read(range(27))):
    assert record['image'].shape == (32, 32, 3)
    np.testing.assert_array_equal(plain[index]['image'], record['image'])
    assert plain[index]['label'] == record['label']


def test_the_same_command_compares_a_set_with_its_manifest(
  folder, prepared, tmp_path, capsys
):
  place = tmp_path / 'my_photos' / '1.0.0'
  shutil.copytree(prepared, place)
  prepare_set('folder', folder, tmp_path)
  assert 'Already prepared' in capsys.readouterr().out
  shard = next(place.glob('*train*00002*'))
  data = bytearray(shard.read_bytes())
  data[len(data) // 2] ^= 1
  shard.write_bytes(data)
  with pytest.raises(InputError, match=r'train.*differs from its manifest'):
    prepare_set('folder', folder, tmp_path)


# Both threads wait for ever after a sample of 33 images for the estimate and 14
# more: at least two shards, of four images at most, are complete.
STUCK = """
import itertools, threading
from resnet.data.prepare.job import Encoding
from resnet.tools import command, prepare
encode, count = Encoding.encode, itertools.count()
def wait_or_encode(self, image):
  if next(count) >= 33 + 14:
    threading.Event().wait()
  return encode(self, image)
Encoding.encode = wait_or_encode
command.run(prepare.main, prepare.parser())
"""


def test_the_same_command_continues_after_a_kill(folder, prepared, tmp_path):
  unfinished = tmp_path / 'my_photos' / '1.0.0.incomplete'
  words = (f'--source={folder}', f'--out={tmp_path}', '--threads=2')
  process = start('-c', STUCK, '--from=folder', *words)
  try:
    wait_until(
      lambda: len(list(unfinished.glob('shards/*.json'))) >= 2, process
    )
  finally:
    process.kill()
    process.communicate()
  # Each has a note; another may have been renamed already and have none yet.
  names = [path.stem for path in unfinished.glob('shards/*.json')]
  done = {name: (unfinished / name).stat().st_mtime_ns for name in names}
  assert 2 <= len(done) < 14
  with pytest.raises(InputError, match=r"'my_photos'"):
    open_set(unfinished)
  with pytest.raises(InputError, match=r'begun by another .* encoding'):
    prepare_set('folder', folder, tmp_path, '--resize=30')
  place, _ = prepare_set('folder', folder, tmp_path)
  assert not unfinished.exists()
  assert not list(place.glob('.*'))
  for name, changed in done.items():
    assert (place / name).stat().st_mtime_ns == changed
  for split, count in (('train', 27), ('validation', 6)):
    whole, ours = (open_set(root, split) for root in (prepared, place))
    assert len(whole) == count
    assert whole.read(range(count)) == ours.read(range(count))


def test_a_broken_image_is_named_or_left_out(folder, tmp_path, capsys):
  broken = shutil.copytree(folder, tmp_path / 'my-photos')
  (broken / 'train' / 'dog' / '003.jpg').write_bytes(b'<html>')
  with pytest.raises(InputError, match=r'dog/003\.jpg.*--skip-bad'):
    prepare_set('folder', broken, tmp_path / 'sets')
  place, _ = prepare_set('folder', broken, tmp_path / 'others', '--skip-bad')
  manifest = read_manifest(place)
  assert manifest['examples']['train'] == 26
  assert len(manifest['left_out']) == 1
  assert 'left out: The image of' in capsys.readouterr().out


def test_too_small_a_disk_is_refused_before_anything_is_written(
  folder, tmp_path, monkeypatch
):
  usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(InputError, match=r'needs about .* GB are free'):
    prepare_set('folder', folder, tmp_path / 'sets')
  assert not (tmp_path / 'sets').exists()


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['--from=folder', '--source=/nowhere'], 'cannot be read as a folder'),
    (['--from=tfds'], 'not a prepared TFDS set'),
    (['--from=folder', '--resize=1'], '--resize=1'),
  ],
)
def test_bad_input_is_refused(tool, folder, tmp_path, words, message):
  out = f'--out={tmp_path / "sets"}'
  assert_refused(tool('prepare', f'--source={folder}', out, *words), message)
  assert not (tmp_path / 'sets').exists()


@pytest.mark.parametrize(
  'name', ['cat ', ' cat', 'a\nb', 'a\rb', os.fsdecode(b'\xff')]
)
def test_a_class_name_that_tfds_cannot_store_is_refused(
  tool, folder, tmp_path, name
):
  source = shutil.copytree(folder, tmp_path / 'my-photos')
  for split in ('train', 'val'):
    (source / split / 'cat').rename(source / split / name)
  out = f'--out={tmp_path / "sets"}'
  result = tool('prepare', '--from=folder', f'--source={source}', out)
  assert_refused(result, repr(name), 'rename the class')
  assert not (tmp_path / 'sets').exists()


def test_a_second_command_on_the_same_set_is_refused(tool, folder, tmp_path):
  place = tmp_path / 'my_photos'
  place.mkdir()
  words = ('--from=folder', f'--source={folder}', f'--out={tmp_path}')
  with lock(str(place)):
    result = tool('prepare', *words)
  assert_refused(result, f'process {os.getpid()}', '--out')
  assert tool('prepare', *words).returncode == 0
  # What does not open as it was written is not accepted later, either.
  (place / '1.0.0' / 'label.labels.txt').write_text('cat\ncow\n')
  result = tool('prepare', *words)
  assert result.returncode == 1 and 'Delete it' in result.stderr


def test_a_file_name_need_not_be_utf8(folder, tmp_path):
  source = shutil.copytree(folder, tmp_path / 'my-photos')
  photo = source / 'train' / 'cat' / '000.jpg'
  photo.rename(photo.with_name(os.fsdecode(b'\xff.jpg')))
  place, _ = prepare_set('folder', source, tmp_path / 'sets')
  prepared_set = open_set(place)
  keys = map(prepared_set.key, range(27), prepared_set.read(range(27)))
  assert any('cat/\\xff.jpg' in key for key in keys)
