"""Repositories of the Hugging Face hub, and folders with the same files.

Their config.json is timm's or that of transformers.
"""

from collections.abc import Callable, Mapping
import functools
import json
import os
from typing import Any

from resnet.data.sources.imagenet_names import class_ids
from resnet.download import fetch
from resnet.errors import InputError
from resnet.files import reading
from resnet.models import create_model, list_models
from resnet.models.blocks import BasicBlock
from resnet.weights import files
from resnet.weights import metadata as metadata_lib
from resnet.weights.metadata import Metadata, Preprocessing
from resnet.weights.naming.transformers import TRANSFORMERS
from resnet.weights.stored import StoredWeights
from resnet.weights.torch_file import MAX_READ_BYTES

CONFIG = 'config.json'
PREPROCESSOR = 'preprocessor_config.json'
# Shards are read from folders; on the hub, ResNets are smaller than a shard.
_FILES = (
  'model.safetensors',
  'pytorch_model.bin',
  'model.safetensors.index.json',
  'pytorch_model.bin.index.json',
)
# Pillow's numbers of the methods, which transformers stores.
RESAMPLE = {'bilinear': 2, 'bicubic': 3}


def open_hub(source: str, key: str = '') -> StoredWeights:
  """Opens 'hf-hub:owner/name[@revision]', downloading what is not cached."""
  if stored := _open(source, key, functools.partial(fetch, source)):
    return stored
  raise InputError(f'{source} has none of {", ".join(_FILES)}.')


def open_repository(folder: str, key: str = '') -> StoredWeights | None:
  """Opens a folder with the files of a repository; None if it has none."""

  def find(file: str) -> str | None:
    path = os.path.join(folder, file)
    return path if os.path.exists(path) else None

  return _open(folder, key, find)


def _open(
  source: str, key: str, find: Callable[[str], str | None]
) -> StoredWeights | None:
  """Opens the first of the files; `find` maps a file's name to its path."""
  for name in _FILES:
    if path := find(name):
      metadata = functools.partial(_metadata, find)
      return files.open_file(path, key, name=source, metadata=metadata)
  return None


def _metadata(
  find: Callable[[str], str | None], weights: str, header: Mapping[str, str]
) -> Metadata:
  """Returns the metadata of the header, else of config.json, if it is there."""
  path = None if 'preprocessing' in header else find(CONFIG)
  if path is None:
    return metadata_lib.from_header(weights, header)
  with reading(f'{path} is damaged'), open(path) as file:
    config = json.loads(file.read(MAX_READ_BYTES))
    if config.get('model_type') != 'resnet':
      return _from_timm(config)
    labels = {int(i): str(x) for i, x in config.get('id2label', {}).items()}
    return Metadata(
      model=_transformers_model(config),
      preprocessing=_transformers_preprocessing(find(PREPROCESSOR)),
      class_names=metadata_lib.to_names([labels[i] for i in sorted(labels)]),
    )


def _from_timm(config: dict[str, Any]) -> Metadata:
  fields, preprocessing = config.get('pretrained_cfg', {}), None
  if 'mean' in fields and fields.get('crop_mode', 'center') == 'center':
    fields['image_size'] = fields['input_size'][-1]
    fields['crop_share'] = fields['crop_pct']
    preprocessing = metadata_lib.to_preprocessing(fields)
  names, name = config.get('label_names'), config.get('architecture')
  # timm's weights of ImageNet's 1,000 classes have such a tag.
  if names is None and str(fields.get('tag')).endswith('in1k'):
    names = class_ids()
  name = str(name).replace('resnetv2_', 'preact_resnet')
  # Other arguments change the network.
  is_ours = {'in_chans', 'num_classes'}.issuperset(config.get('model_args', ()))
  return Metadata(
    model=name if is_ours and name in list_models() else None,
    preprocessing=preprocessing,
    class_names=metadata_lib.to_names(names),
  )


def _transformers_model(config: dict[str, Any]) -> str | None:
  config = transformers_config('resnet50') | config  # Its defaults.
  for name in filter(TRANSFORMERS.has, list_models()):
    if config == config | transformers_config(name):
      return name
  return None


def transformers_config(name: str) -> dict[str, Any]:
  """Returns the fields that determine a network of transformers."""
  model = create_model(name)
  is_basic = model.block_cls is BasicBlock
  widths = [64 * 2**stage for stage in range(4)]
  return {
    'depths': list(model.stage_sizes),
    'hidden_sizes': [width * (1 if is_basic else 4) for width in widths],
    'embedding_size': 64,
    'layer_type': 'basic' if is_basic else 'bottleneck',
    'hidden_act': 'relu',
    'downsample_in_first_stage': False,
    'downsample_in_bottleneck': name.endswith('_v1'),
  }


def _transformers_preprocessing(path: str | None) -> Preprocessing | None:
  if path is None:
    return None
  with reading(f'{path} is damaged'), open(path) as file:
    fields = json.loads(file.read(MAX_READ_BYTES))
    size = fields['size']
    size = size.get('shortest_edge') if isinstance(size, dict) else size
    methods = {number: name for name, number in RESAMPLE.items()}
    method = methods.get(fields.get('resample'))
    steps = ('do_resize', 'do_rescale', 'do_normalize')
    does_all = all(fields.get(step, True) for step in steps)
    # From 384 on, transformers resizes to a square and does not crop.
    if not (does_all and method and size and size < 384):
      return None
    return Preprocessing(
      mean=tuple(fields['image_mean']),
      std=tuple(fields['image_std']),
      image_size=size,
      crop_share=fields.get('crop_pct') or 224 / 256,
      interpolation=method,
    )
