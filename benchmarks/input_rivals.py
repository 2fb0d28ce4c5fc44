"""Reads batches of random resized crops with tf.data or torchvision.

  python benchmarks/input_rivals.py tfdata FOLDER BATCH_SIZE WORKERS

Started by `python benchmarks/compare.py input --against=...`. Prints
"ready", then for each number N on stdin reads N batches of uint8 [B, 224, 224,
3] from the JPEG files in the class folders, and prints images/s. N more batches
are read first and not timed, to empty the buffers.
"""

import glob
import json
import os
import sys
import time

SIZE, AREA, ASPECT = 224, (0.08, 1.0), (3 / 4, 4 / 3)


def tfdata(folder, batch_size, workers):
  """Decodes only the crop, as the TPU and MLPerf examples do."""
  os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
  import tensorflow as tf

  def load(path):
    data = tf.io.read_file(path)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
      tf.io.extract_jpeg_shape(data),
      tf.zeros([1, 0, 4]),
      min_object_covered=0.1,
      aspect_ratio_range=ASPECT,
      area_range=AREA,
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], 0)
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    image = tf.image.resize(image, [SIZE, SIZE])
    return tf.cast(tf.image.random_flip_left_right(image), tf.uint8)

  paths = sorted(glob.glob(os.path.join(folder, '*', '*')))
  options = tf.data.Options()
  options.threading.private_threadpool_size = workers
  options.deterministic = True
  data = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
  data = data.map(load, num_parallel_calls=workers).batch(batch_size)
  return iter(data.prefetch(2).with_options(options))


def torchvision(folder, batch_size, workers):
  """Reads as torchvision's references do, without conversion to float."""
  import torch
  from torchvision import datasets
  from torchvision.transforms import v2

  transform = v2.Compose(
    [
      v2.RandomResizedCrop(SIZE, scale=AREA, ratio=ASPECT),
      v2.RandomHorizontalFlip(),
      v2.PILToTensor(),
    ]
  )
  loader = torch.utils.data.DataLoader(
    datasets.ImageFolder(folder, transform),
    batch_size,
    shuffle=True,
    num_workers=workers,
    drop_last=True,
    persistent_workers=True,
  )

  def forever():
    while True:
      yield from loader

  return forever()


def main():
  name, folder, batch_size, workers = sys.argv[1:]
  rivals = {'tfdata': tfdata, 'torchvision': torchvision}
  try:
    batches = rivals[name](folder, int(batch_size), int(workers))
  except ImportError:
    return
  print(json.dumps('ready'), flush=True)
  for line in sys.stdin:
    for _ in range(int(line)):
      next(batches)
    start = time.perf_counter()
    for _ in range(int(line)):
      next(batches)
    seconds = time.perf_counter() - start
    print(json.dumps(int(line) * int(batch_size) / seconds), flush=True)


if __name__ == '__main__':
  main()
