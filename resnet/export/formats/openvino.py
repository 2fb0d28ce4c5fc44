"""OpenVINO's format for Intel processors, converted from ONNX."""

from collections.abc import Callable
import os
import pathlib
import tempfile
from typing import Any

import numpy as np

from resnet.export.formats import Program, import_package, onnx
from resnet.files import reading

_INSTALL = f'{onnx.INSTALL} and pip install openvino'
HELP = f'openvino needs: {_INSTALL}'
TOLERANCE = 1e-5
PACKAGES = ('jax2onnx', 'onnx', 'openvino')
PLATFORMS = ()
_GRAPH, _WEIGHTS = 'model.xml', 'model.bin'


def convert(program: Program) -> dict[str, bytes]:
  """Returns the graph and weight files; input 'images', output 'logits'."""
  openvino = import_package('openvino', _INSTALL)
  (proto,) = onnx.convert(program).values()
  # Unlike convert_model, read_model sends no usage statistics.
  model = openvino.Core().read_model(proto)
  with tempfile.TemporaryDirectory() as folder:
    graph = pathlib.Path(folder, _GRAPH)
    openvino.save_model(model, graph, compress_to_fp16=False)
    return {
      name: (graph.parent / name).read_bytes() for name in (_GRAPH, _WEIGHTS)
    }


def load(folder: str) -> Callable[[Any], Any]:
  """Loads an exported folder as a function, images -> logits."""
  path = os.path.join(folder, _GRAPH)
  openvino = import_package('openvino', 'pip install openvino')
  # By default OpenVINO computes in bfloat16 if the CPU supports it.
  options = {'INFERENCE_PRECISION_HINT': 'f32'}
  with reading(f'{path} is not an OpenVINO model', RuntimeError):
    model = openvino.Core().compile_model(path, 'CPU', options)
  return lambda x: model({'images': np.asarray(x)})['logits']
