"""Class folders: what is read, and what is refused."""

import itertools
import os

import pytest

from resnet.data.host.decode import decode_record, image_size
from resnet.data.sources.folder import open_splits
from resnet.data.sources.registry import open_source
from resnet.errors import InputError
from resnet.inference.images import list_images
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
        suffix = ('jpg', 'png', 'JPEG', 'PNG')[i]
        image = encode(
          smooth_image(5 + i, 7 + len(name)), ('JPEG', 'PNG')[i % 2]
        )
        (place / f'{i}.{suffix}').write_bytes(image)
  (tmp_path / 'train' / '.DS_Store').write_bytes(b'')
  (tmp_path / 'train' / 'b' / 'Thumbs.db').write_bytes(b'')
  return tmp_path


def write(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(JPEG)


def open_(folder, split='train'):
  return open_source('folder', split, data_dir=str(folder))


def names_of(source):
  records = source.read(range(len(source)))
  return [record['file_name'] for record in records]


def test_classes_are_sorted_and_files_in_order(folder):
  source = open_(folder)
  assert source.class_names == ('Zürich', 'a c', 'b')
  assert (len(source), source.num_classes, source.channels) == (12, 3, 3)
  for split in ('val', 'validation'):
    assert len(open_(folder, split)) == 6
  records = source.read(range(12))
  assert [record['label'] for record in records] == [0] * 4 + [1] * 4 + [2] * 4
  assert records[5]['file_name'] == os.path.join('a c', '1.png')
  for index, record in enumerate(records):
    path = folder / 'train' / record['file_name']
    assert record['image'] == path.read_bytes()
    shape = decode_record(source, index, record).shape
    assert shape[:2] == image_size(record['image'])
  assert 'record 5 of folder/train (a c' in source.key(5, records[5])


@pytest.mark.parametrize('name', ['val', 'validation', 'test'])
def test_the_second_split_of_a_prepared_set_has_one_of_three_names(
  folder, name
):
  (folder / 'val').rename(folder / name)
  splits = open_splits(str(folder), '')
  second = 'validation' if name == 'val' else name
  assert {split: len(x) for split, x in splits.items()} == {
    'train': 12,
    second: 6,
  }


def test_parts_of_a_split_hold_images_of_all_classes(tmp_path):
  for split, name, i in itertools.product(('train', 'val'), 'abc', range(40)):
    write(tmp_path / split / name / f'{i}.jpg')
  first, last = (
    names_of(open_(tmp_path, f'train[{x}]')) for x in (':75%', '75%:')
  )
  assert (len(first), len(last)) == (90, 30)
  assert len({*first, *last}) == 120
  for part in (first, last):
    shares = [sum(x[0] == name for x in part) / len(part) for name in 'abc']
    assert 0.2 < min(shares) <= max(shares) < 0.5
  assert names_of(open_(tmp_path, 'train[75%:]')) == last
  assert len(open_(tmp_path, 'validation[:5]')) == 5
  # A prepared set has the same order, so that its parts do too.
  train = open_splits(str(tmp_path), '')['train']
  assert names_of(train) == first + last


def test_classes_txt_names_the_classes(folder):
  (folder / 'classes.txt').write_text(
    '\ufeff# FOLDER NAME\na c  great auk\n\n b\tbee \nZürich Zürich HB\n'
  )
  names = ('Zürich HB', 'great auk', 'bee')
  for split in ('train', 'val', 'train[:50%]'):
    source = open_(folder, split)
    assert source.class_names == names
    (record,) = source.read([0])
    assert record['file_name'].startswith(('Zürich/', 'a c/', 'b/'))
  splits = open_splits(str(folder), '')
  assert {source.class_names for source in splits.values()} == {names}


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (
      'b B\nZürich Z',
      r'classes\.txt has no line for 1 class .*: a c\. .* NAME',
    ),
    ('b B\n\nbb B', r"classes\.txt, line 3: 'bb B' is not .* type FOLDER NAME"),
    ('a c', r"classes\.txt, line 1: 'a c' is not a class folder and a name: "),
    ('b x y\na c x y', r"classes\.txt, line 2: 'x y' occurs twice"),
    ('b x\nb y', r"classes\.txt, line 2: 'b' occurs twice: type one line"),
    (b'b \xff', r'classes\.txt cannot be read as UTF-8'),
  ],
)
def test_a_wrong_classes_txt_is_refused(folder, text, message):
  data = text if isinstance(text, bytes) else text.encode()
  (folder / 'classes.txt').write_bytes(data)
  with pytest.raises(InputError, match=message):
    open_(folder)


def test_fingerprint_changes_with_image_order_and_label(folder):
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
  source = open_(folder)
  two = source.fingerprint(2)  # The first and the last.
  path.write_bytes(JPEG)
  assert source.fingerprint(2) == two
  (folder / 'train' / 'b').rename(folder / 'train' / 'Z')
  assert open_(folder).fingerprint(2) != two


@pytest.mark.parametrize(
  ('added', 'split', 'message'),
  [
    ('val/d/x.jpg', 'val', r'val and train/ differ in 1 class .*: d\.'),
    (
      'train/b/notes.txt',
      'train',
      r'b must hold .*\.jpg, \.jpeg, \.png.* notes\.txt:',
    ),
    ('.keep', 'test', r"'test'\. There .*val\. .*data\.eval_split"),
    (
      '.keep',
      'train[12:]',
      r"'train\[12:\]' is not a part .* 12 images .*empty",
    ),
    (
      '.keep',
      'train[:9%',
      r"not a part of 'train', .* type train\[",
    ),
    ('.keep', 'test[:9%]', r"no folder for the split 'test\[:9%\]'\. There"),
  ],
)
def test_errors_name_what_is_wrong_in_a_folder(folder, added, split, message):
  write(folder / added)
  with pytest.raises(InputError, match=message):
    open_(folder, split)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ([], r'holds no folders, not train/'),
    (
      ['a/x.jpg', 'b/y.jpg'],
      r'holds a, b, not train/\. Expected PATH/train/CLASS',
    ),
    (['train/a/x.jpg'], r'two class folders, but holds 1 folders and 0 files'),
    (
      ['train/x.jpg', 'train/y.png'],
      r'two class folders, but holds 0 folders and 2 files',
    ),
  ],
)
def test_a_wrong_layout_is_named(tmp_path, files, message):
  for name in files:
    write(tmp_path / name)
  with pytest.raises(InputError, match=message):
    open_(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
  with pytest.raises(InputError, match=r'nowhere cannot be read as a folder'):
    open_(tmp_path / 'nowhere')
  with pytest.raises(InputError, match=r'--config\.data\.data_dir=PATH'):
    open_source('folder', 'train')


def test_errors_name_a_broken_or_missing_file(folder):
  path = folder / 'train' / 'b' / '2.JPEG'
  path.write_bytes(b'<html>')
  source = open_(folder)
  (record,) = source.read([10])
  with pytest.raises(InputError, match=r'\(b/2\.JPEG\) cannot be decoded'):
    decode_record(source, 10, record)
  path.unlink()
  with pytest.raises(InputError, match=r'b/2\.JPEG cannot be read: No such'):
    source.read([10])


def test_training_and_prediction_ignore_the_same_files(folder, tmp_path):
  place = folder / 'train' / 'b'
  for name in ('thumbs.db', 'Desktop.ini', '._x.jpg'):
    (place / name).touch()
  for name in ('@eaDir', '__MACOSX', '.ipynb_checkpoints'):
    write(place / name / 'x.jpg')
  trained = names_of(open_(folder))
  assert len(trained) == 12
  link = tmp_path / 'link'
  link.mkdir()
  (link / 'photos').symlink_to(folder / 'train')
  (link / 'loop').symlink_to(link)
  assert list(list_images([str(link)])) == [
    str(link / 'photos' / name) for name in sorted(trained)
  ]
