"""Class folders: what is read, and what is refused."""

import os

import numpy as np
import pytest

from resnet.data.datasets import open_source
from resnet.errors import InputError
from tests.data.in_memory import encode, smooth_image

JPEG = encode(smooth_image(9, 12), 'JPEG')


@pytest.fixture
def folder(tmp_path):
  """Three classes of four training and two validation images."""
  for split, count in (('train', 4), ('val', 2)):
    for name in ('b', 'a c', 'Zürich'):
      place = tmp_path / split / name
      place.mkdir(parents=True)
      for i in range(count):
        image = smooth_image(5 + i, 7 + len(name))
        kind = ('JPEG', 'PNG')[i % 2]
        (place / f'{i}{(".jpg", ".png", ".JPEG", ".PNG")[i]}').write_bytes(
          encode(image, kind)
        )
  (tmp_path / 'train' / '.DS_Store').write_bytes(b'')
  (tmp_path / 'train' / 'b' / 'Thumbs.db').write_bytes(b'')
  return tmp_path


def open_(folder, split='train'):
  return open_source('folder', split, data_dir=str(folder))


def test_classes_are_sorted_and_files_in_order(folder):
  source = open_(folder)
  assert source.class_names == ('Zürich', 'a c', 'b')
  assert (len(source), source.num_classes, source.channels) == (12, 3, 3)
  records = source.read(range(12))
  assert [record['label'] for record in records] == [0] * 4 + [1] * 4 + [2] * 4
  assert records[5]['file_name'] == os.path.join('a c', '1.png')
  for index, record in enumerate(records):
    path = folder / 'train' / record['file_name']
    assert record['image'] == path.read_bytes()
    assert source.decode(index, record).shape[:2] == source.size(index, record)
  assert 'record 5 of folder/train (a c' in source.key(5, records[5])


def test_another_image_or_order_or_label_has_another_fingerprint(folder):
  first = open_(folder).fingerprint()
  assert open_(folder).fingerprint() == first
  assert open_(folder, 'val').fingerprint() != first
  path = folder / 'train' / 'a c' / '1.png'
  image = path.read_bytes()
  path.write_bytes(JPEG)
  assert open_(folder).fingerprint() != first
  path.write_bytes(image)
  assert open_(folder).fingerprint() == first
  path.rename(folder / 'train' / 'a c' / '4.png')
  assert open_(folder).fingerprint() != first
  (folder / 'train' / 'a c' / '4.png').rename(path)
  (folder / 'train' / 'b').rename(folder / 'train' / 'Z')
  assert open_(folder).fingerprint() != first


def test_a_fingerprint_is_of_few_records(folder):
  source = open_(folder)
  two = source.fingerprint(2)  # The first and the last.
  (folder / 'train' / 'a c' / '1.png').write_bytes(JPEG)
  assert source.fingerprint(2) == two
  (folder / 'train' / 'b' / '3.PNG').write_bytes(JPEG)
  assert source.fingerprint(2) != two


def test_classes_are_those_of_torchvision(folder):
  torchvision = pytest.importorskip('torchvision')
  theirs = torchvision.datasets.ImageFolder(
    str(folder / 'train'), is_valid_file=lambda path: 'Thumbs' not in path
  )
  source = open_(folder)
  assert list(source.class_names) == theirs.classes
  ours = source.read(range(12))
  assert [
    (str(folder / 'train' / r['file_name']), r['label']) for r in ours
  ] == theirs.samples


def test_validation_is_another_word_for_val(folder):
  for split in ('val', 'validation'):
    assert len(open_(folder, split)) == 6


def write(path, data=JPEG):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def empty(path):
  for file in path.iterdir():
    file.unlink()


@pytest.mark.parametrize(
  ('change', 'split', 'message'),
  [
    (
      lambda f: empty(f / 'train' / 'b'),
      'train',
      r'train/b is a class folder without images',
    ),
    (
      lambda f: [write(f / s / 'd' / 'x.jpg') for s in ('val',)],
      'val',
      r'val has more than train/: 1 class folder\(s\): d\.',
    ),
    (
      lambda f: write(f / 'train' / 'd' / 'x.jpg'),
      'val',
      r'val misses 1 class folder\(s\): d\.',
    ),
    (
      lambda f: write(f / 'train' / 'b' / 'notes.txt', b'x'),
      'train',
      r'b/notes\.txt cannot be an image: .*\.jpg, \.jpeg, \.png',
    ),
    (
      lambda f: write(f / 'train' / 'b' / 'more' / 'x.jpg'),
      'train',
      r'b/more cannot be an image',
    ),
    (
      lambda f: write(f / 'train' / 'B' / 'x.jpg'),
      'train',
      r"two class folders of one name, 'B' and 'b'",
    ),
    (lambda _: None, 'test', r"no folder for the split 'test'\. There .*val"),
    (lambda _: None, 'train[:50%]', r'parts of a split.*prepare'),
  ],
)
def test_what_is_wrong_is_said(folder, change, split, message):
  change(folder)
  with pytest.raises(InputError, match=message):
    open_(folder, split)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ([], r'has no train/: it holds no folders\. Expected'),
    (['a/x.jpg', 'b/y.jpg'], r'folders a, b.*move them into train/'),
    (['Train/a/x.jpg', 'val/a/x.jpg'], 'Small letters'),
    (['train/a/x.jpg'], r'two at least, and holds only one: a'),
    (['train/readme'], r'two at least, and holds none'),
    (['train/x.jpg', 'train/y.png'], r'2 images and no class folders'),
  ],
)
def test_a_layout_that_is_wrong_is_said(tmp_path, files, message):
  for name in files:
    write(tmp_path / name)
  with pytest.raises(InputError, match=message):
    open_(tmp_path)


def test_a_missing_folder_is_said(tmp_path):
  with pytest.raises(InputError, match=r'nowhere cannot be read as a folder'):
    open_(tmp_path / 'nowhere')
  with pytest.raises(InputError, match=r'--config\.data\.data_dir=PATH'):
    open_source('folder', 'train')
  (tmp_path / 'val').mkdir()
  with pytest.raises(InputError, match=f'Name the folder above: {tmp_path}'):
    open_(tmp_path / 'val')


def test_a_file_that_is_no_image_or_is_gone_is_named(folder):
  path = folder / 'train' / 'b' / '2.JPEG'
  path.write_bytes(b'<html>')
  source = open_(folder)
  (record,) = source.read([10])
  with pytest.raises(InputError, match=r'\(b/2\.JPEG\) cannot be decoded'):
    source.decode(10, record)
  path.unlink()
  with pytest.raises(InputError, match=r'b/2\.JPEG cannot be read: No such'):
    source.read([10])


def test_names_of_many_files_take_little_memory(tmp_path):
  for name in ('a', 'b'):
    (tmp_path / 'train' / name).mkdir(parents=True)
    for i in range(500):
      os.link(
        _first(tmp_path / 'train' / name),
        tmp_path / 'train' / name / f'n{i:013}.jpg',
      )
  records = open_(tmp_path).records
  held = sum(map(len, records.names)) + sum(a.nbytes for a in records.starts)
  assert len(records) == 1002
  assert held < 30 * len(records)
  assert np.diff(records.ends).tolist() == [501]


def _first(folder):
  path = folder / 'first.jpg'
  if not path.exists():
    path.write_bytes(JPEG)
  return path
