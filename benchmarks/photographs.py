"""Makes photographs as large as ImageNet's from Debian's wallpapers.

  sudo apt-get install plasma-workspace-wallpapers gnome-backgrounds
  PYTHONPATH=. python benchmarks/photographs.py --out=DIR --count=2000

Shrinks windows of the wallpapers to about 500x375 pixels and stores them as
JPEG (4:2:0) of 60 to 110 kB, the sizes of ImageNet's photographs. Writes them
to DIR/train and DIR/val (a tenth) with a class folder for each wallpaper, for
--config.data.name=folder. The result is deterministic.
"""

import argparse
import os
import pathlib

import cv2
import numpy as np

_FOLDERS = ('/usr/share/wallpapers', '/usr/share/backgrounds/gnome')
_KINDS = ('.jpg', '.png', '.webp')
_MIN_SIDE = 1000
_MIN_OF_CLASS = 10
_MIN_BYTES, _MAX_BYTES = 60_000, 110_000
_QUALITIES = (90, 95, 85, 97, 80, 75)


def find_wallpapers():
  """Returns the largest file of each wallpaper, shuffled."""
  largest = {}
  for path in sorted(p for f in _FOLDERS for p in pathlib.Path(f).rglob('*')):
    if path.suffix not in _KINDS or path.stem == 'screenshot':
      continue
    # Plasma has a folder for each wallpaper, with a file for each screen size.
    name = path.parent if path.parent.name.startswith('images') else path
    if path.stat().st_size > largest.get(name, (0, path))[0]:
      largest[name] = path.stat().st_size, path
  if not largest:
    raise SystemExit(
      'error: no wallpapers: apt-get install plasma-workspace-wallpapers'
      ' gnome-backgrounds'
    )
  paths = sorted(path for _, path in largest.values())
  order = np.random.default_rng(0).permutation(len(paths))
  return [paths[i] for i in order]


def photographs(path, count, seed):
  """Yields up to `count` JPEG files, windows of one wallpaper."""
  picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
  if picture is None or min(picture.shape[:2]) < _MIN_SIDE:
    return
  rng, found = np.random.default_rng(seed), 0
  for _ in range(3 * count):  # A smooth wallpaper may have too few.
    height, width = np.round((375, 500) * rng.uniform(0.9, 1.1, 2)).astype(int)
    if rng.random() < 0.2:  # Upright.
      height, width = width, height
    most = min(picture.shape[0] / height, picture.shape[1] / width)
    scale = np.exp(rng.uniform(0, np.log(most)))
    window = int(height * scale), int(width * scale)
    top, left = (
      rng.integers(0, side - part, endpoint=True)
      for side, part in zip(picture.shape, window, strict=False)
    )
    part = picture[top : top + window[0], left : left + window[1]]
    part = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
    for quality in _QUALITIES:
      jpeg = cv2.imencode('.jpg', part, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
      if _MIN_BYTES <= len(jpeg) <= _MAX_BYTES:
        yield jpeg.tobytes()
        found += 1
        break
    if found == count:
      return


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--out', required=True)
  parser.add_argument('--count', type=int, default=2000)
  args = parser.parse_args()
  written, paths, name = 0, find_wallpapers(), ''
  each = -(-args.count // len(paths)) * 3
  for seed, path in enumerate(paths):
    jpegs = list(photographs(path, each, seed))[: args.count - written]
    if len(jpegs) >= _MIN_OF_CLASS:
      name = '_'.join(path.relative_to('/usr/share').with_suffix('').parts)
    elif written + len(jpegs) < args.count:
      continue  # Too few for a class; the last ones join the previous class.
    for i, jpeg in enumerate(jpegs):
      folder = pathlib.Path(args.out, 'val' if i % 10 == 1 else 'train', name)
      os.makedirs(folder, exist_ok=True)
      (folder / f'{written:05}.jpg').write_bytes(jpeg)
      written += 1
    if written == args.count:
      break
  print(f'{written:,} photographs in {args.out}')
  if written < args.count:
    raise SystemExit('error: no more windows have 60 to 110 kB')


if __name__ == '__main__':
  main()
