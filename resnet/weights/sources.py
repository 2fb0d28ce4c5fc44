"""Sources of weights: safetensors files, the Hugging Face hub, Orbax folders.

Opening a source reads no tensors, so that callers can first check whether they
fit. Pickles are never opened.
"""

from collections.abc import Callable, Mapping
import dataclasses
import os
import pathlib
import re
from typing import Any

from flax import traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors

from resnet import backend
from resnet.errors import InputError
from resnet.weights import metadata as metadata_lib
from resnet.weights.metadata import Metadata
from resnet.weights.naming import ORBAX, Naming, find_naming

# The network in the package. README.md beside it says what it was trained on.
PACKAGED = str(
  pathlib.Path(__file__).parents[1] / 'pretrained/cifar10_resnet20.safetensors'
)
_HUB = 'hf-hub:'
# Names of the floating-point types in safetensors.
_DTYPES = {'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16'}
# Suffix of a folder: use its weights themselves, not their moving averages.
_RAW = '#raw'
# What wrappers of networks put before each key: data parallelism, Lightning,
# torch.compile, detection and MoCo.
_PREFIX = re.compile(
  r'((module|model|_orig_mod|backbone|encoder_q|state_dict)\.)*'
)
_PICKLES = ('.pth', '.pt', '.bin', '.ckpt', '.pkl', '.pickle', '.tar')


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredWeights:
  """A source of weights that is open but not yet read.

  Attributes:
    name: name of the source, for messages.
    naming: names and layouts of the tensors.
    prefix: prefix of all tensors that their names here leave out.
    tensors: shape and dtype by name.
    metadata: metadata of the weights.
    read: (names) -> arrays by name.
  """

  name: str
  naming: Naming
  prefix: str = ''
  tensors: Mapping[str, tuple[tuple[int, ...], str]]
  metadata: Metadata = dataclasses.field(default_factory=Metadata)
  read: Callable[[list[str]], dict[str, np.ndarray]] = lambda _: {}


def from_tensors(
  name: str,
  tensors: Mapping[str, tuple[tuple[int, ...], str]],
  read: Callable[[list[str]], dict[str, np.ndarray]],
  metadata: Metadata | None = None,
) -> StoredWeights:
  """Opens the tensors of a file or state dict, without a common prefix."""
  common = os.path.commonprefix(list(tensors))  # noqa: RUF071
  match = _PREFIX.match(common)
  prefix = match.group() if match else ''
  bare = {key.removeprefix(prefix): value for key, value in tensors.items()}

  def read_bare(keys: list[str]) -> dict[str, np.ndarray]:
    arrays = read([prefix + key for key in keys])
    return {key: arrays[prefix + key] for key in keys}

  return StoredWeights(
    name=name,
    naming=find_naming(bare),
    prefix=prefix,
    tensors=bare,
    metadata=metadata or Metadata(),
    read=read_bare,
  )


def split_raw(source: str) -> tuple[str, bool]:
  """Returns the source without the suffix '#raw', and whether it had one."""
  if source.endswith(_RAW) and not os.path.exists(source):
    return source.removesuffix(_RAW), True
  return source, False


def score(evaluation: Mapping[str, float]) -> float:
  """Returns the score by which the best checkpoint of a run is chosen.

  It is the top-1 accuracy, of the moving averages if the run keeps them.
  """
  return evaluation.get('eval_ema/top1', evaluation['eval/top1'])


def best_step(
  manager: ocp.CheckpointManager, metrics: Callable[[int], Any]
) -> int | None:
  """Returns the step with the highest `score`; None if none was evaluated."""
  step = manager.best_step()
  return None if step is None or metrics(step) is None else step


def open_stored(source: str) -> StoredWeights:
  """Opens a .safetensors file, 'hf-hub:owner/name[@revision]' or a folder.

  A folder is an Orbax checkpoint or the workdir of a run. In a workdir, this
  opens the checkpoint with the highest `score`, or the latest one if none was
  evaluated. If the run keeps moving averages, it opens those; 'FOLDER#raw'
  selects the weights themselves.

  Raises:
    InputError: the source does not exist, is damaged, or is a pickle.
  """
  source = os.path.expanduser(source)
  if source.startswith(_HUB):
    return _open_hub(source)
  source, is_raw = split_raw(source)
  if os.path.isdir(source):
    return _open_folder(source, is_raw=is_raw)
  if is_raw:
    raise InputError(f'{source}{_RAW} is not a folder: leave {_RAW} out.')
  if not os.path.exists(source):
    raise InputError(
      f'There are no weights at {source!r}: give a .safetensors file, a'
      f' workdir, an Orbax checkpoint or {_HUB}OWNER/NAME@REVISION.'
    )
  with open(source, 'rb') as file:
    start = file.read(9)
  # torch.save writes a zip file or, in old versions, a pickle of protocol 2. A
  # safetensors file starts with the length of its header, then '{'.
  is_pickle = start[:1] in (b'P', b'\x80') and start[8:] != b'{'
  if is_pickle or source.endswith(_PICKLES):
    target = os.path.splitext(os.path.basename(source))[0]
    raise InputError(
      f'{source} is a pickle, which can run any program when it is opened.'
      ' If you trust it, convert it to safetensors with PyTorch:'
      f" state = torch.load('{source}', map_location='cpu', weights_only=True);"
      f" safetensors.torch.save_file(state, '{target}.safetensors')"
    )
  return _open_safetensors(source, source, metadata_lib.from_header)


def _open_safetensors(
  path: str, name: str, metadata: Callable[[str, dict[str, str]], Metadata]
) -> StoredWeights:
  try:
    with safetensors.safe_open(path, framework='np') as file:
      tensors = {}
      for key in file.keys():  # noqa: SIM118
        tensor = file.get_slice(key)
        dtype = str(tensor.get_dtype())
        tensors[key] = tuple(tensor.get_shape()), _DTYPES.get(dtype, dtype)
      header = file.metadata() or {}
  except Exception as error:  # SafetensorError derives from Exception alone.
    raise InputError(
      f'{path} is damaged or not a safetensors file: {error}.'
    ) from None

  def read(keys: list[str]) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework='np') as file:
      return {key: file.get_tensor(key) for key in keys}

  return from_tensors(name, tensors, read, metadata(path, header))


def _open_hub(source: str) -> StoredWeights:
  repository, _, revision = source.removeprefix(_HUB).partition('@')
  try:
    import huggingface_hub  # pyright: ignore[reportMissingImports]
  except ImportError:
    raise InputError(
      f'{source} needs huggingface_hub: pip install huggingface_hub'
    ) from None

  def fetch(file: str) -> str:
    try:
      return huggingface_hub.hf_hub_download(
        repository, file, revision=revision or None
      )
    except Exception as error:  # A failed download raises one of many types.
      text = ' '.join(str(error).split())
      raise InputError(
        f'{source}: {file} cannot be downloaded: {text}'
      ) from None

  def metadata(path: str, header: dict[str, str]) -> Metadata:
    if 'preprocessing' in header:
      return metadata_lib.from_header(path, header)
    return metadata_lib.from_timm(fetch('config.json'))

  return _open_safetensors(fetch('model.safetensors'), source, metadata)


def _open_folder(folder: str, *, is_raw: bool) -> StoredWeights:
  # Start JAX first, so that its errors are not reported as the folder's.
  backend.devices()
  config = os.path.join(folder, 'config.json')
  is_workdir = os.path.exists(config)
  metadata = metadata_lib.from_workdir(config) if is_workdir else Metadata()
  path = _item_folder(os.path.abspath(folder))
  checkpointer = ocp.PyTreeCheckpointer()
  try:
    item: Any = checkpointer.metadata(path).item_metadata
    has_ema = bool(item.tree.get('ema')) and not is_raw
    saved = item.tree['ema'] if has_ema else item.tree
    tree = {part: saved.get(part) or {} for part in ('params', 'batch_stats')}
    leaves: Any = traverse_util.flatten_dict(tree, sep='/')
    tensors = {
      name: (tuple(leaf.shape), str(leaf.dtype))
      for name, leaf in leaves.items()
    }
  except Exception as error:  # Damaged files make Orbax raise many types.
    raise InputError(f'{path} is not an Orbax checkpoint: {error}') from None

  def read(keys: list[str]) -> Any:
    del keys  # Orbax restores all tensors at once.
    item = {'ema': tree} if has_ema else tree
    numpy = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
      item=item,
      restore_args=jax.tree.map(lambda _: numpy, item),
      partial_restore=True,
    )
    try:
      restored = checkpointer.restore(path, args=args)
    except Exception as error:
      raise InputError(f'{path} cannot be read: {error}') from None
    restored = restored['ema'] if has_ema else restored
    return traverse_util.flatten_dict(restored, sep='/')

  return StoredWeights(
    name=path,
    naming=ORBAX,
    tensors=tensors,
    metadata=dataclasses.replace(metadata, ema=has_ema),
    read=read,
  )


def _item_folder(folder: str) -> str:
  """Returns the folder of a checkpoint's arrays inside `folder`."""
  if os.path.exists(os.path.join(folder, '_METADATA')):
    return folder
  if os.path.isdir(os.path.join(folder, 'default')):
    return os.path.join(folder, 'default')
  options = ocp.CheckpointManagerOptions(
    best_fn=score, read_only=True, create=False
  )
  for steps in (os.path.join(folder, 'checkpoints'), folder):
    if not (os.path.isdir(steps) and any(map(str.isdigit, os.listdir(steps)))):
      continue
    try:
      with ocp.CheckpointManager(steps, options=options) as manager:
        step = best_step(manager, manager.metrics)
        step = manager.latest_step() if step is None else step
    except Exception as error:
      raise InputError(f'{steps} cannot be read: {error}') from None
    if step is None:
      raise InputError(f'{steps} holds no finished checkpoint.')
    return os.path.join(steps, str(step), 'default')
  raise InputError(f'{folder} is neither a workdir nor an Orbax checkpoint.')
