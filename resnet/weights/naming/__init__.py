"""The namings of tensors that are read and written, one file for each."""

from collections.abc import Collection

from resnet.weights.naming.cifar import AKAMASTER
from resnet.weights.naming.layout import Naming, TensorLayout
from resnet.weights.naming.torchvision import TIMM, TORCHVISION
from resnet.weights.naming.transformers import TRANSFORMERS

# Tried in this order; torchvision's, last, matches any keys.
NAMINGS = {
  naming.name: naming for naming in (TRANSFORMERS, AKAMASTER, TIMM, TORCHVISION)
}
# Orbax checkpoints hold our variables as they are.
ORBAX = Naming(
  name='orbax',
  is_in=lambda keys: any(key.startswith('params/') for key in keys),
  layout=lambda shapes: {
    '/'.join(path): TensorLayout(path, shape, tuple(range(len(shape))))
    for path, shape in shapes.items()
  },
  block=r'stage\d+_block\d+',
)


def find_naming(keys: Collection[str]) -> Naming:
  """Returns the naming of the keys of a state dict."""
  return next(naming for naming in NAMINGS.values() if naming.is_in(keys))
