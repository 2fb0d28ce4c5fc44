"""A trained network with its weights, preprocessing and class names."""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet.data.sources.imagenet_names import readable_name
from resnet.errors import InputError
from resnet.inference import maps
from resnet.inference.folding import fold
from resnet.inference.preprocessing import normalize
from resnet.models import create_model
from resnet.training import compiler
from resnet.weights import Preprocessing, open_stored, read_stored
from resnet.weights.convert import count_classes, find_overrides
from resnet.weights.sources import PACKAGED

# uint8 images [B, S, S, C] -> arrays by name.
Function = Callable[[np.ndarray], Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A network ready for inference.

  Attributes:
    name: where the network comes from.
    model_name: name for `create_model`.
    preprocessing: preprocessing of its images.
    class_names: in the order of the logits; numbers if the source has none.
    outputs: names of the available outputs: 'logits' and 'probabilities'
      [B, K]; 'stem', 'stage1' .., 'pooled' as in `ResNet.features`; 'cam' and
      'gradcam_stage1' .., maps of the most likely class [B, h, w].
    compile: (batch size, names of outputs) -> a function that computes them
      for batches of exactly that size.
  """

  name: str
  model_name: str
  preprocessing: Preprocessing
  class_names: tuple[str, ...]
  outputs: tuple[str, ...]
  compile: Callable[[int, tuple[str, ...]], Function]

  def top_classes(self, row: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Returns index, name and probability of the `count` likeliest classes.

    The `row` holds the probabilities of all classes, [K]. Ties are ordered by
    index, as in argmax. Classes of ImageNet also have their WordNet 'id'.
    """
    found = []
    for i in np.argsort(-row, kind='stable')[:count].tolist():
      id_ = self.class_names[i]
      entry = {'index': i, 'name': readable_name(id_)}
      if entry['name'] != id_:
        entry['id'] = id_
      found.append({**entry, 'probability': float(row[i])})
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """The module and variables of a network, with their metadata.

  The other attributes are those of `Network`.

  Attributes:
    model: the linen module.
    variables: NumPy arrays, float32.
    ema: whether the weights are moving averages; None if unknown.
  """

  name: str
  model_name: str
  # `repr` leaves out what would fill pages of a notebook.
  model: Any = dataclasses.field(repr=False)
  variables: dict[str, Any] = dataclasses.field(repr=False)
  preprocessing: Preprocessing
  class_names: tuple[str, ...] = dataclasses.field(repr=False)
  ema: bool | None = None

  def logits(self, variables: Any, images: jax.Array) -> jax.Array:
    """Maps uint8 images [B, S, S, C] to logits [B, K]."""
    images = normalize(images, self.preprocessing)
    return self.model.apply(variables, images, train=False)

  def folded(self) -> 'Weights':
    """Returns these weights with batch norms folded into convolutions."""
    return dataclasses.replace(self, variables=fold(self.model, self.variables))


def read_weights(
  source: str = PACKAGED,
  model: str | None = None,
  *,
  dtype: str = 'float32',
  needs_head: bool = True,
) -> Weights:
  """Reads weights and their metadata from a source.

  Args:
    source: a source for `weights.open_stored`; by default the network in the
      package, a CIFAR ResNet-20.
    model: name of the network; None for the one that the source names.
    dtype: dtype of the computation, 'float32' or 'bfloat16'.
    needs_head: refuse weights without a head, which give features alone.

  Raises:
    InputError: the source does not exist, does not fit the network, or lacks
      the name of its network or its preprocessing.
  """
  found = open_stored(source)
  metadata = found.metadata
  model = model or metadata.model
  if model is None:
    raise InputError(
      f'{source} does not name its network: give --model=NAME;'
      f' `python -m resnet.tools.weights inspect {source}` lists valid names.'
    )
  if metadata.preprocessing is None:
    raise InputError(
      f'{source} has no preprocessing. Write a copy that states it. For the'
      ' settings of most ImageNet networks, type: python -m'
      f' resnet.tools.weights convert {source} NEW.safetensors --model={model}'
      ' --mean=0.485,0.456,0.406 --std=0.229,0.224,0.225 --image-size=224'
      ' --crop-share=0.875 --interpolation=bilinear'
    )
  overrides = find_overrides(found, model)
  variables = read_stored(found, model, needs_head=needs_head, **overrides)
  for text in found.remarks():
    print(f'{source}: {text}', file=sys.stderr)
  num_classes = count_classes(variables)
  return Weights(
    name=source,
    model_name=model,
    model=create_model(
      model,
      num_classes=num_classes,
      dtype=jnp.dtype(dtype),
      **overrides,
    ),
    variables=variables,
    preprocessing=metadata.preprocessing,
    class_names=metadata.names_of(num_classes),
    ema=metadata.ema,
  )


def check_channels(
  name: str, variables: Any, preprocessing: Preprocessing
) -> None:
  """Raises InputError if a network and its preprocessing do not fit."""
  params, theirs = variables['params'], len(preprocessing.mean)
  stem = params.get('stem_conv') or params['stem_conv1']
  if (count := stem['kernel'].shape[2]) != theirs:
    text = f'a network for {count} channels and preprocessing for {theirs}'
    raise InputError(f'{name} has {text}.')


def create_network(weights: Weights) -> Network:
  """Creates a network from weights, which it copies to the default device.

  It computes with `Weights.folded`. In float32 the results differ from those of
  `weights` by rounding, about 1e-6; in bfloat16 both are equally accurate.
  """
  weights = weights.folded()
  shape = weights.preprocessing.image_shape
  check_channels(weights.name, weights.variables, weights.preprocessing)
  stages = [f'stage{i + 1}' for i in range(len(weights.model.stage_sizes))]
  outputs = ['stem', *stages, 'pooled']
  if count_classes(weights.variables):
    outputs = ['logits', 'probabilities', *outputs, 'cam']
    outputs += [f'gradcam_{stage}' for stage in stages]
  variables = jax.device_put(weights.variables)

  def compile_(batch_size: int, outputs: tuple[str, ...]) -> Function:
    images = jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8)
    program = jax.jit(
      functools.partial(_forward, weights, outputs),
      compiler_options=compiler.options(jax.default_backend()),
    )
    compiled = program.lower(variables, images).compile()
    return functools.partial(compiled, variables)

  return Network(
    name=weights.name,
    model_name=weights.model_name,
    preprocessing=weights.preprocessing,
    class_names=weights.class_names,
    outputs=tuple(outputs),
    compile=compile_,
  )


def _forward(
  weights: Weights, outputs: tuple[str, ...], variables: Any, images: jax.Array
) -> dict[str, jax.Array]:
  model = weights.model
  # XLA merges computations that occur more than once.
  logits = weights.logits(variables, images)
  labels = jnp.argmax(logits, axis=1).astype(jnp.int32)
  images = normalize(images, weights.preprocessing)

  def compute(name: str) -> jax.Array:
    if name == 'logits':
      return logits
    if name == 'probabilities':
      return jax.nn.softmax(logits)
    if name == 'cam':
      return maps.class_activation_map(model, variables, images, labels)
    if name.startswith('gradcam_stage'):
      stage = int(name.removeprefix('gradcam_stage'))
      return maps.grad_cam(model, variables, images, labels, stage)
    features = model.apply(variables, images, train=False, method='features')
    return features[name].astype(jnp.float32)

  return {name: compute(name) for name in outputs}


def add_arguments(
  parser: argparse.ArgumentParser, *, with_dtype: bool = True
) -> None:
  """Adds the arguments that choose a network: --weights, --model, --dtype."""
  add = parser.add_argument_group('network').add_argument
  text = 'default: a CIFAR-10 network that comes with the package'
  add('--weights', metavar='SOURCE', help=text)
  text = 'default: the one that SOURCE names'
  add('--model', metavar='NAME', help=text)
  if with_dtype:
    text = 'dtype of the computation; default: float32'
    choices = ('float32', 'bfloat16')
    add('--dtype', choices=choices, default='float32', help=text)


def source_of(args: argparse.Namespace) -> str:
  """Returns --weights, or the network in the package, which it names."""
  if args.weights is None:
    text = 'No --weights: using the network for the ten classes of CIFAR-10 in'
    print(f'{text} {PACKAGED}', file=sys.stderr)
  return args.weights or PACKAGED
