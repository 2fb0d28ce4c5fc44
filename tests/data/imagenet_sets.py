"""Small sets with the features of TFDS's own ImageNet sets."""

import io

import tensorflow_datasets as tfds

from tests.data.in_memory import encode


def write_set(folder, name, splits):
  """Prepares a set as TFDS would, in `folder`.

  Args:
    folder: of prepared sets.
    name: of a set that TFDS knows, 'set' or 'set/config'.
    splits: of each the examples, dicts of the set's features; images are
      arrays, stored as PNG.
  """
  set_name, _, config_name = name.partition('/')
  features_ = tfds.builder(name, data_dir=folder).info.features

  class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = set_name
    VERSION = tfds.core.Version('9.0.0')
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config_name)] * bool(
      config_name
    )

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=features_)

    def _split_generators(self, dl_manager):
      del dl_manager
      return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split):
      for example in splits[split]:
        image = io.BytesIO(encode(example['image'], 'png'))
        yield example['file_name'], {**example, 'image': image}

  builder = Small(
    data_dir=folder, file_format='array_record', config=config_name or None
  )
  builder.download_and_prepare()


def validation_name(number):
  return f'ILSVRC2012_val_{number:08}.JPEG'
