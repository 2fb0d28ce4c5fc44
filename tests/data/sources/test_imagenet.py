"""ImageNet's tar files, made small, and the messages about wrong layouts."""

import io
import tarfile

import pytest

from resnet.data.sources import imagenet
from resnet.data.sources.imagenet_names import readable_name
from resnet.data.sources.registry import open_source
from resnet.errors import InputError
from tests.data.in_memory import encode, smooth_image

JPEG = encode(smooth_image(9, 12), 'JPEG')


def add(tar, name, data):
  info = tarfile.TarInfo(name)
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))


def class_tar(name, count):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as tar:
    for i in range(count):
      image = encode(smooth_image(8, 8 + i), 'JPEG')
      add(tar, f'{name}_{i}.JPEG', image)
  return buffer.getvalue()


@pytest.fixture
def tars(tmp_path, monkeypatch):
  """1,000 classes, the first of three images; 20 for validation."""
  names = imagenet.class_names()
  with tarfile.open(tmp_path / imagenet.TRAIN_TAR, 'w') as tar:
    for i, name in reversed(list(enumerate(names))):
      add(tar, f'{name}.tar', class_tar(name, 1 if i else 3))
  with tarfile.open(tmp_path / imagenet.VALIDATION_TAR, 'w') as tar:
    for i in reversed(range(20)):
      add(tar, f'ILSVRC2012_val_{i + 1:08}.JPEG', JPEG)
  labels = imagenet.validation_labels()[:20]
  monkeypatch.setattr(imagenet, 'validation_labels', lambda: labels)
  return tmp_path


def test_class_names_are_those_of_imagenet():
  names = imagenet.class_names()
  assert len(names) == len(set(names)) == 1000
  assert list(names) == sorted(names)
  assert (names[0], names[207]) == ('n01440764', 'n02099601')
  labels = imagenet.validation_labels()
  assert len(labels) == 50_000
  # The first validation image is a snake, class 65.
  assert names.index(labels[0]) == 65
  assert [labels.count(name) for name in names[:10]] == [50] * 10


def test_ids_have_readable_names_that_differ():
  ids = imagenet.class_names()
  names = [readable_name(id_) for id_ in ids]
  assert len(set(names)) == 1000 and not {*names} & {*ids}
  # The classes of Imagenette.
  expected = {
    'n01440764': 'tench',
    'n02102040': 'English springer',
    'n02979186': 'cassette player',
    'n03000684': 'chain saw',
    'n03028079': 'church',
    'n03394916': 'French horn',
    'n03417042': 'garbage truck',
    'n03425413': 'gas pump',
    'n03445777': 'golf ball',
    'n03888257': 'parachute',
  }
  assert {id_: readable_name(id_) for id_ in expected} == expected
  assert [readable_name(x) for x in ('n00000000', '7')] == ['n00000000', '7']


def test_records_are_read_from_the_tars_and_prepared(tars, tool):
  train = imagenet.open_tar(str(tars), 'train')
  assert len(train) == 1002
  records = [train[i] for i in (0, 1, 2, 3, 1001)]
  assert [r['label'] for r in records] == [0, 0, 0, 1, 999]
  assert records[1]['file_name'] == 'n01440764_1.JPEG'
  assert records[1]['image'] == encode(smooth_image(8, 9), 'JPEG')
  validation = imagenet.open_tar(str(tars), 'validation')
  names, labels = imagenet.class_names(), imagenet.validation_labels()
  for key, record in zip((0, 19), (validation[0], validation[19]), strict=True):
    assert record['label'] == names.index(labels[key])
    assert record['file_name'] == f'ILSVRC2012_val_{key + 1:08}.JPEG'
  out = str(tars / 'sets')
  tool('prepare', '--from=imagenet', f'--source={tars}', f'--out={out}')
  source = open_source('imagenet2012', 'train', data_dir=out)
  assert (len(source), source.class_names) == (1002, names)
  assert len(open_source('imagenet2012', 'validation', data_dir=out)) == 20


def test_the_message_says_how_imagenet_is_prepared(tmp_path):
  with pytest.raises(InputError, match=r'--from=imagenet .*data\.name=folder'):
    open_source('imagenet2012', 'train', data_dir=str(tmp_path))


def test_truncated_tars_are_refused(tars):
  path = tars / imagenet.TRAIN_TAR
  data = path.read_bytes()
  for length in (len(data) // 3 // 10240 * 10240, 700):
    path.write_bytes(data[:length])
    with pytest.raises(
      InputError, match=r'img_train\.tar (holds|is missing or)'
    ):
      imagenet.open_tar(str(tars), 'train')
  validation = path.with_name(imagenet.VALIDATION_TAR)
  with tarfile.open(validation, 'w') as tar:
    add(tar, 'ILSVRC2012_val_00000001.JPEG', JPEG)
  with pytest.raises(InputError, match=r'holds 1 files, expected 20'):
    imagenet.open_tar(str(tars), 'validation')
