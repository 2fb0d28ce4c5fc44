"""Writes weights as a repository for the Hugging Face hub.

It holds the weights, a model card, and the configs that let timm or
transformers load it.
"""

from collections.abc import Mapping
import os
from typing import Any

from resnet.data.sources.imagenet_names import readable_name
from resnet.errors import InputError
from resnet.files import creating, to_json, write_atomically
from resnet.models import create_model
from resnet.weights import Metadata, Preprocessing, save_weights
from resnet.weights.convert import count_classes
from resnet.weights.hub import (
  CONFIG,
  PREPROCESSOR,
  RESAMPLE,
  transformers_config,
)
from resnet.weights.naming.torchvision import TIMM
from resnet.weights.naming.transformers import TRANSFORMERS


def save_repository(
  variables: Mapping[str, Any],
  folder: str,
  metadata: Metadata,
  naming: str = 'timm',
) -> None:
  """Writes a new folder that is ready for the hub, completely or not at all.

  Args:
    variables: variables of a network.
    folder: the folder, which must not exist.
    metadata: with the name of the network and its preprocessing.
    naming: the library that can load it, 'timm' or 'transformers'.

  Raises:
    InputError: the folder exists, the metadata are incomplete, or the library
      has no such network.
  """
  model, preprocessing = metadata.model, metadata.preprocessing
  if model is None or preprocessing is None:
    raise InputError(
      f'To write {folder}, the network and its preprocessing must be known: add'
      ' --model, --mean, --std, --image-size, --crop-share, --interpolation.'
    )
  names = list(metadata.names_of(count_classes(variables)))
  if naming not in _LIBRARIES:
    raise InputError(
      f'naming={naming!r} is not one of {", ".join(_LIBRARIES)}: write a file,'
      f' such as {folder}.safetensors.'
    )
  library, write = _LIBRARIES[naming]
  what = model if names else f'{model} without a head'
  if metadata.shortcut not in (None, create_model(model).shortcut):
    what = f'{model} with shortcut {metadata.shortcut!r}'
  if what != model or not library.has(model):
    raise InputError(
      f'{naming} has no {what}: write a file, such as {folder}.safetensors.'
    )
  files = write(model, preprocessing, names)
  files['README.md'] = _card(model, preprocessing, names, naming)
  with creating(folder) as part:
    for name, text in files.items():
      write_atomically(os.path.join(part, name), text)
    path = os.path.join(part, 'model.safetensors')
    save_weights(variables, path, metadata=metadata, naming=naming)


def _timm(
  model: str, preprocessing: Preprocessing, names: list[str]
) -> dict[str, str]:
  size, channels = preprocessing.image_size, len(preprocessing.mean)
  config = {
    'architecture': model.replace('preact_resnet', 'resnetv2_'),
    'num_classes': len(names),
    'label_names': names,
    'model_args': {'in_chans': channels},
    'pretrained_cfg': {
      'input_size': [channels, size, size],
      'crop_pct': preprocessing.crop_share,
      'crop_mode': 'center',
      'interpolation': preprocessing.interpolation,
      'mean': preprocessing.mean,
      'std': preprocessing.std,
    },
  }
  return {CONFIG: to_json(config, indent=2)}


def _transformers(
  model: str, preprocessing: Preprocessing, names: list[str]
) -> dict[str, str]:
  size, method = preprocessing.image_size, preprocessing.interpolation
  if size >= 384 or method not in RESAMPLE:
    raise InputError(
      f'transformers does not crop images to {size} pixels after {method}'
      ' resizing: use --naming=timm.'
    )
  labels = [readable_name(name) for name in names]
  config = {
    'model_type': 'resnet',
    'architectures': ['ResNetForImageClassification'],
    'num_channels': len(preprocessing.mean),
    **transformers_config(model),
    'id2label': {str(i): label for i, label in enumerate(labels)},
    'label2id': {label: i for i, label in enumerate(labels)},
  }
  processor = {
    'image_processor_type': 'ConvNextImageProcessor',
    'size': {'shortest_edge': size},
    'crop_pct': preprocessing.crop_share,
    'resample': RESAMPLE[method],
    'image_mean': preprocessing.mean,
    'image_std': preprocessing.std,
    **{f'do_{name}': True for name in ('resize', 'rescale', 'normalize')},
  }
  return {
    CONFIG: to_json(config, indent=2),
    PREPROCESSOR: to_json(processor, indent=2),
  }


_LIBRARIES = {
  'timm': (TIMM, _timm),
  'transformers': (TRANSFORMERS, _transformers),
}


def _card(
  model: str, preprocessing: Preprocessing, names: list[str], library: str
) -> str:
  size, side = preprocessing.image_size, preprocessing.resize_size
  load = "timm.create_model('hf-hub:OWNER/NAME', pretrained=True)"
  if library == 'transformers':
    load = "transformers.pipeline('image-classification', 'OWNER/NAME')"
  labels = ', '.join(map(readable_name, names[:10]))
  return f"""---
library_name: {library}
tags:
- image-classification
- resnet
---
# {model}, {len(names):,} classes

Classes: {labels}{', ...' if len(names) > 10 else '.'}

Preprocessing: resize the shorter side to {side} pixels
({preprocessing.interpolation}), crop {size} x {size} from the centre, scale to
0 .. 1, subtract {preprocessing.mean}, divide by {preprocessing.std}.

Training data, accuracy and licence: not stated yet.

```python
import {library}
model = {load}
```

```python
from resnet import pretrained
net = pretrained.load('hf-hub:OWNER/NAME')
net.predict(['image.jpg'])
```
"""
