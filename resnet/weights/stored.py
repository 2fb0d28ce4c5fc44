"""Weights that are open but not yet read."""

import dataclasses
import os
import re

from resnet.errors import InputError
from resnet.weights.metadata import Metadata
from resnet.weights.naming import Naming, find_naming
from resnet.weights.naming.layout import Read, Tensors

# Prefixes that wrappers add to every key: data parallelism, Lightning,
# torch.compile, detection and MoCo.
_PREFIX = re.compile(
  r'((module|model|_orig_mod|backbone|encoder_q|state_dict)\.)*'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredWeights:
  """A source of weights that is open but not yet read.

  Attributes:
    name: name of the source, for messages.
    naming: names and layouts of the tensors.
    prefix: prefix of all tensors that their names here leave out.
    tensors: shape and dtype by name.
    metadata: metadata of the weights.
    read: (name) -> array.
  """

  name: str
  naming: Naming
  prefix: str = ''
  tensors: Tensors
  metadata: Metadata
  read: Read

  def remarks(self) -> list[str]:
    """Returns what users should know: a prefix left out, other networks."""
    prefix = f'read without the prefix {self.prefix}' if self.prefix else ''
    # The shapes of a CIFAR net without projections do not show its padding.
    others = ('layer4.', 'layer2.0.downsample')
    is_cifar = {'layer3.0.conv2.weight', 'fc.weight'} <= self.tensors.keys()
    padding = ''
    is_known = self.metadata.model or any(
      k.startswith(others) for k in self.tensors
    )
    if is_cifar and not is_known:
      padding = 'shortcuts are assumed to append channels of zeros (option A)'
    return [text for text in (prefix, self.naming.note, padding) if text]


def from_tensors(
  name: str, tensors: Tensors, read: Read, metadata: Metadata
) -> StoredWeights:
  """Opens the tensors of a file or state dict, without a common prefix."""
  if wrong := [key for key in tensors if not isinstance(key, str)]:
    raise InputError(f'{name} has the key {wrong[0]!r}: give strings as keys.')
  match = _PREFIX.match(os.path.commonprefix(list(tensors)))  # noqa: RUF071
  prefix = match.group() if match else ''
  given = {}
  for key in tensors:
    short = key.removeprefix(prefix)
    is_flat = short.startswith(('params.', 'batch_stats.'))  # Flax's.
    given[short.replace('.', '/') if is_flat else short] = key
  bare = {short: tensors[key] for short, key in given.items()}
  naming = find_naming(bare)
  tensors, adapted, known = naming.adapt(bare, lambda key: read(given[key]))
  missing = {k: v for k, v in known.items() if getattr(metadata, k) is None}
  return StoredWeights(
    name=name,
    naming=naming,
    prefix=prefix,
    tensors=tensors,
    metadata=dataclasses.replace(metadata, **missing),
    read=adapted,
  )
