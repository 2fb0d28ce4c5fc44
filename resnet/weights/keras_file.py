"""Reads the HDF5 files of Keras, and no other file that they refer to."""

from typing import Any

import numpy as np

from resnet.errors import InputError
from resnet.weights.naming.layout import Opened

# Names of the variables of a layer by their number.
_KERNEL = {'0': 'kernel', '1': 'bias'}
_NORM = {'0': 'gamma', '1': 'beta', '2': 'moving_mean', '3': 'moving_variance'}


def open_file(path: str) -> dict[str, Opened]:
  """Returns the tensors of a file, the only state dict in it, under the key ''.

  Their keys are 'layer/variable', as `path` of a variable in Keras.

  Raises:
    InputError: h5py is missing.
    Exception: the file is damaged or not plain.
  """
  try:
    import h5py  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise InputError(f'{path} needs h5py: pip install h5py') from None
  names: list[str] = []
  tensors, places = {}, {}

  def read(key: str) -> np.ndarray:
    with h5py.File(path, 'r') as file:
      return np.asarray(file[places[key]])

  with h5py.File(path, 'r') as file:
    file.visit_links(names.append)  # Follows no link.
    for name in names:
      if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f'{name!r} is a link, which is not followed')
    # Besides, a file may hold the state of an optimizer.
    roots = [root for root in ('model_weights', 'layers') if root in file]
    for name in names:
      node = file[name]
      is_tensor = isinstance(node, h5py.Dataset)
      if not is_tensor or (roots and name.split('/')[0] not in roots):
        continue
      if node.is_virtual or node.external or node.chunks:
        # A few compressed bytes could fill the memory.
        raise ValueError(f'{name!r} is compressed or stored in another file')
      # 'conv1_conv/conv1_conv/kernel:0', or in the .weights.h5 of Keras 3
      # 'layers/conv2d/vars/0'.
      *_, layer, leaf = ('', *name.split('/'))
      if layer == 'vars':
        group: Any = node.parent
        layer = group.attrs.get('name')
        if layer is None:
          raise ValueError('its layers have no names: save it in newer Keras')
        leaf = (_NORM if len(group) == 4 else _KERNEL).get(leaf, leaf)
      key = f'{layer}/{leaf.removesuffix(":0")}'
      if key in tensors:
        raise ValueError(f'two tensors have the name {key!r}')
      tensors[key], places[key] = (tuple(node.shape), str(node.dtype)), name
  return {'': (tensors, read, {})}
