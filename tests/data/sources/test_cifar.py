"""The binary archives of CIFAR, made small, and what is refused."""

import tarfile

import numpy as np
import pytest

from resnet.data.sources import cifar
from resnet.data.sources.registry import open_source
from resnet.errors import InputError
from tests.data.in_memory import contents

FOLDERS = {10: 'cifar-10-batches-bin', 100: 'cifar-100-binary'}
PARTS = {
  10: [*(f'data_batch_{i}.bin' for i in range(1, 6)), 'test_batch.bin'],
  100: ['train.bin', 'test.bin'],
}
META = {10: 'batches.meta.txt', 100: 'fine_label_names.txt'}
COUNT = 4


def write(tmp_path, kind):
  """Returns an unpacked archive, and images and labels of all its parts."""
  folder = tmp_path / FOLDERS[kind]
  folder.mkdir()
  rng = np.random.default_rng(kind)
  count = COUNT * len(PARTS[kind])
  images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
  labels = rng.integers(0, kind, count).astype(np.uint8)
  for i, name in enumerate(PARTS[kind]):
    content = b''
    for k in range(i * COUNT, (i + 1) * COUNT):
      coarse = b'\7' if kind == 100 else b''
      planes = images[k].transpose(2, 0, 1).tobytes()
      content += coarse + labels[k : k + 1].tobytes() + planes
    (folder / name).write_bytes(content)
  # That of CIFAR-10 ends with an empty line.
  names = ''.join(f'class_{i}\n' for i in range(kind))
  (folder / META[kind]).write_text(f'{names}\n')
  return folder, images, labels


def pack(folder, path):
  with tarfile.open(path, 'w:gz') as tar:
    tar.add(folder, folder.name)
  return path


def assert_equal_images(source, images, labels):
  pixels = map(np.ndarray.tobytes, images)
  assert contents(source) == sorted(zip(pixels, labels.tolist(), strict=True))


@pytest.mark.parametrize('kind', [10, 100])
def test_an_archive_is_prepared_under_its_name(kind, tmp_path, tool):
  folder, images, labels = write(tmp_path, kind)
  archive = pack(folder, tmp_path / f'cifar-{kind}-binary.tar.gz')
  out = tmp_path / 'sets'
  result = tool(
    'prepare', '--from=cifar', f'--source={archive}', f'--out={out}'
  )
  assert result.returncode == 0, result.stderr
  for split, rows in (('train', slice(-COUNT)), ('test', slice(-COUNT, None))):
    source = open_source(f'cifar{kind}', split, data_dir=str(out))
    assert source.class_names == tuple(f'class_{i}' for i in range(kind))
    assert_equal_images(source, images[rows], labels[rows])
    # The unpacked folder holds the same, in the order of the files.
    unpacked = cifar.open_splits(str(folder), f'cifar{kind}')[split]
    assert_equal_images(unpacked, images[rows], labels[rows])
    np.testing.assert_array_equal(
      unpacked.read([1])[0]['image'], images[rows][1]
    )


def test_a_matlab_file_names_the_archives_to_fetch(tmp_path):
  path = tmp_path / 'train.mat'
  path.write_bytes(b'MATLAB 5.0 MAT-file' + bytes(600))
  message = (
    r'^\S*train\.mat cannot be read: [^\n]*fetch cifar-10-binary\.tar\.gz'
  )
  with pytest.raises(InputError, match=message):
    cifar.open_splits(str(path), 'cifar10')


def test_another_version_names_the_archives_to_fetch(tmp_path):
  folder = tmp_path / 'cifar'
  folder.mkdir()
  (folder / 'data_batch_1').write_bytes(b'cposix\nsystem')
  for path in (folder, pack(folder, tmp_path / 'cifar.tar.gz')):
    with pytest.raises(InputError, match=r'not the binary version .*: fetch'):
      cifar.open_splits(str(path), 'cifar10')


def test_truncated_files_and_wrong_names_are_refused(tmp_path):
  folder, _, _ = write(tmp_path, 10)
  archive = pack(folder, tmp_path / 'cifar.tar.gz')
  with pytest.raises(InputError, match='is cifar10: type --name=cifar10'):
    cifar.open_splits(str(folder), 'cifar100')
  archive.write_bytes(archive.read_bytes()[:-3000])
  with pytest.raises(InputError, match=r'cifar\.tar\.gz cannot be read'):
    cifar.open_splits(str(archive), 'cifar10')
  part = folder / 'data_batch_3.bin'
  part.write_bytes(part.read_bytes()[:-1])
  with pytest.raises(
    InputError, match=r'data_batch_3\.bin is missing or truncated'
  ):
    cifar.open_splits(str(folder), 'cifar10')
