"""The namings of tensors that are read and written, one file for each."""

from collections.abc import Collection

from resnet.weights.naming.cifar import AKAMASTER
from resnet.weights.naming.flax import FLAX, JAX_RESNET
from resnet.weights.naming.keras import KERAS
from resnet.weights.naming.layout import Naming, TensorLayout
from resnet.weights.naming.torchvision import TIMM, TORCHVISION
from resnet.weights.naming.transformers import TRANSFORMERS

# Our variables as they are, in Orbax checkpoints and other files.
ORBAX = Naming(
  name='orbax',
  is_in=lambda keys: any(key.startswith('params/') for key in keys),
  layout=lambda shapes: {
    '/'.join(path): TensorLayout(path, shape, tuple(range(len(shape))))
    for path, shape in shapes.items()
  },
  block=r'stage\d+_block\d+',
)
_READ_ONLY = (FLAX, JAX_RESNET, ORBAX, KERAS)
# Tried after those, in this order; torchvision's, last, matches any keys.
NAMINGS = {
  naming.name: naming for naming in (TRANSFORMERS, AKAMASTER, TIMM, TORCHVISION)
}


def find_naming(keys: Collection[str]) -> Naming:
  """Returns the naming of the keys of a state dict."""
  return next(n for n in (*_READ_ONLY, *NAMINGS.values()) if n.is_in(keys))
