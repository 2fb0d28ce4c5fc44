"""The networks against torchvision and timm, side by side.

In float64: no number lies so close to the zero of a ReLU, or to its neighbour
in a window of max-pooling, that rounding decides on its side.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import create_model
from resnet.training.losses import cross_entropy
from resnet.weights import from_state_dict, to_state_dict
from resnet.weights.convert import to_stored

torch = pytest.importorskip('torch')

# Blocks that change the shape and one that does not: depth adds nothing that
# could be wrong.
_STAGE_SIZES = (1, 2, 1, 1)
# 40 pixels become 20, 10, 5, 3, 2 (without pooling 20, 20, 10, 5, 3): odd ones
# too.
_IMAGES = (2, 40, 40, 3)
_NUM_CLASSES = 10
_TOLERANCE = 1e-10


def _torchvision(block, **fields):
  library = pytest.importorskip('torchvision').models.resnet
  block = getattr(library, block)
  return library.ResNet(block, _STAGE_SIZES, num_classes=_NUM_CLASSES, **fields)


def _timm(name):
  return pytest.importorskip('timm').create_model(
    name, layers=_STAGE_SIZES, num_classes=_NUM_CLASSES
  )


def _timm_v2(name):
  model = _timm(name)
  # It pools before the first batch norm, we do after its ReLU; without pooling
  # the two are the same network.
  model.stem.pool = torch.nn.Identity()
  return model


# One network of each kind, by our names.
_NETWORKS = {
  'resnet18': functools.partial(_torchvision, 'BasicBlock'),
  'resnet50': functools.partial(_torchvision, 'Bottleneck'),
  'resnext50_32x4d': functools.partial(
    _torchvision, 'Bottleneck', groups=32, width_per_group=4
  ),
  'resnet18d': functools.partial(_timm, 'resnet18d'),
  'seresnet50': functools.partial(_timm, 'seresnet50'),
  'resnetrs50': functools.partial(_timm, 'resnetrs50'),
  'resnetblur18': functools.partial(_timm, 'resnetblur18'),
  'resnetblur50': functools.partial(_timm, 'resnetblur50'),
  'preact_resnet50': functools.partial(_timm_v2, 'resnetv2_50'),
}
# Their parts are in other nets, or take long to compile.
_SLOW = ('resnet50', 'resnet18d', 'seresnet50', 'resnetrs50', 'resnetblur50')


@pytest.fixture(autouse=True)
def _one_thread():
  """Tests already run next to each other, and threads that wait are slow."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ())
    for name in _NETWORKS
  ],
)
def test_networks_equal_those_of_pytorch(name):
  """Bits of the state dict; activations, gradients and statistics."""
  torch.manual_seed(0)
  model = _NETWORKS[name]()
  _randomize(model)
  state = model.state_dict()
  fields = {'stage_sizes': _STAGE_SIZES}
  variables = from_state_dict(name, state, **fields)
  # torchvision's names are timm's too.
  again = to_state_dict(name, variables, naming='timm', **fields)
  assert again.keys() == state.keys()
  for key, tensor in state.items():
    theirs = tensor.numpy()
    assert (again[key].shape, again[key].dtype) == (theirs.shape, theirs.dtype)
    assert again[key].tobytes() == theirs.tobytes(), key
  rng = np.random.default_rng(0)
  images = rng.standard_normal(_IMAGES)
  labels = rng.integers(0, _NUM_CLASSES, len(images), np.int32)
  ours = _our_results(name, variables, images, labels)
  theirs = _torch_results(model.double(), images, labels)
  for part, expected in theirs.items():
    _assert_close(ours[part], expected)


def _assert_close(ours, theirs):
  """Of each array, the largest difference against the largest number."""
  assert ours.keys() == theirs.keys()
  differences = {}
  for name, expected in theirs.items():
    assert (ours[name].shape, ours[name].dtype) == (expected.shape, np.float64)
    largest = np.max(np.abs(expected))
    assert largest > 0, name
    differences[name] = np.max(np.abs(ours[name] - expected)) / largest
  worst = max(differences, key=differences.get)
  assert differences[worst] <= _TOLERANCE, (worst, differences)


def _norms(model):
  """The batch norms by name; timm's have a class derived from PyTorch's."""
  modules = model.named_modules()
  return {n: m for n, m in modules if isinstance(m, torch.nn.BatchNorm2d)}


@torch.no_grad()
def _randomize(model):
  """Makes batch norms other than the identity, as if they had learned."""
  for norm in _norms(model).values():
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.uniform_(-0.5, 0.5)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 1.5)


def _our_results(name, variables, images, labels):
  """Returns activations by our names, the rest by PyTorch's.

  'evaluation' and 'training' are activations and logits in either mode,
  'gradients' those of the mean cross entropy in training, and 'statistics' the
  running ones after it, with biased variances.
  """
  fields = {'stage_sizes': _STAGE_SIZES}
  if name.startswith('preact'):
    fields['stem_pool'] = None

  def outputs(variables, **mode):
    apply = functools.partial(model.apply, variables, images, **mode)
    return apply(), apply(method='features')

  def loss(params, batch_stats):
    (logits, updates), (features, _) = outputs(
      {'params': params, 'batch_stats': batch_stats},
      train=True,
      mutable=['batch_stats'],
    )
    training = {**features, 'logits': logits}
    return jnp.mean(cross_entropy(logits, labels)), (training, updates)

  @jax.jit
  def everything(variables):
    logits, features = outputs(variables, train=False)
    results = jax.grad(loss, has_aux=True)(
      variables['params'], variables['batch_stats']
    )
    return {**features, 'logits': logits}, *results

  with jax.enable_x64(True):
    model = create_model(
      name, num_classes=_NUM_CLASSES, dtype=jnp.float64, **fields
    )
    variables = {
      part: jax.tree.map(np.float64, variables[part])
      for part in ('params', 'batch_stats')
    }
    evaluation, grads, (training, updates) = jax.device_get(
      everything(variables)
    )
  tensors = {
    key.replace('stem.norm', 'stages.0.blocks.0.norm1'): tensor
    for key, tensor in to_stored({'params': grads, **updates}).items()
    if not key.endswith('num_batches_tracked')
  }
  return {
    'evaluation': evaluation,
    'training': training,
    'gradients': {n: t for n, t in tensors.items() if 'running' not in n},
    'statistics': {n: t for n, t in tensors.items() if 'running' in n},
  }


def _torch_results(model, images, labels):
  images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  labels = torch.from_numpy(labels).long()
  features, stats = {}, {}

  def keep(name, _, __, output):
    features[name] = _nhwc(output)

  def update(name, norm, inputs):
    """PyTorch itself keeps the unbiased variance."""
    x = inputs[0].detach()
    batch = {
      'running_mean': x.mean((0, 2, 3)),
      'running_var': x.var((0, 2, 3), unbiased=False),
    }
    for field, value in batch.items():
      new = 0.9 * getattr(norm, field) + 0.1 * value
      stats[f'{name}.{field}'] = new.numpy()

  for name, module in _feature_modules(model).items():
    module.register_forward_hook(functools.partial(keep, name))
  for name, norm in _norms(model).items():
    norm.register_forward_pre_hook(functools.partial(update, name))
  with torch.no_grad():
    logits = model.eval()(images)
  evaluation = {**features, 'logits': _nhwc(logits)}
  logits = model.train()(images)
  torch.nn.functional.cross_entropy(logits, labels).backward()
  return {
    'evaluation': evaluation,
    'training': {**features, 'logits': _nhwc(logits)},
    'gradients': {n: p.grad.numpy() for n, p in model.named_parameters()},
    'statistics': stats,
  }


def _feature_modules(model):
  """The modules that give our features."""
  if hasattr(model, 'stages'):  # timm's v2.
    stem, pooled = model.stages[0].blocks[0].norm1, model.head.global_pool
    stages = model.stages
  else:
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    if hasattr(model, 'relu'):  # torchvision's.
      stem, pooled = model.relu, model.avgpool
    else:
      # ResNet-RS: a convolution in the place of max-pooling, of the stem here.
      parts = model.maxpool.modules()  # Of a blur pool there are two.
      is_pooled = any(isinstance(x, torch.nn.MaxPool2d) for x in parts)
      stem = model.act1 if is_pooled else model.maxpool
      pooled = model.global_pool
  stages = {f'stage{i}': m for i, m in enumerate(stages, start=1)}
  return {'stem': stem, **stages, 'pooled': pooled}


def _nhwc(tensor):
  """Returns a copy, as the next ReLU may overwrite it."""
  array = tensor.detach().clone().numpy()
  if array.ndim == 2:
    return array
  array = array.transpose(0, 2, 3, 1)
  return array[:, 0, 0] if array.shape[1:3] == (1, 1) else array
