"""The networks against torchvision and timm, side by side."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import create_model
from resnet.models.weights import from_state_dict, to_state_dict
from resnet.training.losses import cross_entropy

torch = pytest.importorskip('torch')

_TORCHVISION = (
  'resnet18',
  'resnet50',
  'resnet101',
  'resnext50_32x4d',
  'wide_resnet50_2',
)
# By our names.
_TIMM = {
  'resnet18d': 'resnet18d',
  'resnet50d': 'resnet50d',
  'seresnet50': 'seresnet50',
  'resnetrs50': 'resnetrs50',
  'preact_resnet50': 'resnetv2_50',
}
# Their blocks are those of resnet50: more of them, or wider.
_SLOW = ('resnet101', 'wide_resnet50_2')
# 40 pixels become 20, 10, 5, 3, 2 (without pooling 20, 20, 10, 5, 3): odd ones
# too, and the last batch norms still see 32 numbers of a channel.
_IMAGES = (8, 40, 40, 3)
_FORWARD_TOLERANCE, _GRADIENT_TOLERANCE = 1e-5, 1e-4
_ZERO_MARGIN, _TIE_MARGIN = 5e-4, 2e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Results:
  """What a network gives; the last two by PyTorch's names.

  Attributes:
    evaluation: activations and logits by name.
    training: likewise, with the statistics of the batch.
    grads: of the mean cross entropy in training.
    stats: running statistics after it, with biased variances.
  """

  evaluation: dict[str, np.ndarray]
  training: dict[str, np.ndarray]
  grads: dict[str, np.ndarray]
  stats: dict[str, np.ndarray]


@pytest.fixture(scope='module', autouse=True)
def _one_thread():
  """Tests already run next to each other, and threads that wait are slow."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.fixture(
  scope='module',
  params=[
    pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ())
    for name in (*_TORCHVISION, *_TIMM)
  ],
)
def results(request):
  """Returns what a network gives here, and what it gives in PyTorch."""
  name = request.param
  model = _create_torch_model(name)
  _randomize(model)
  images = _keep_off_jumps(model)
  _randomize_statistics(model)
  labels = np.random.default_rng(0).integers(0, 1000, len(images), np.int32)
  ours = _our_results(name, model.state_dict(), images, labels)
  theirs = _torch_results(model, images, labels)
  return ours, theirs


def test_activations_in_evaluation(results):
  ours, theirs = results
  _assert_close(ours.evaluation, theirs.evaluation, _FORWARD_TOLERANCE)


def test_activations_in_training(results):
  ours, theirs = results
  _assert_close(ours.training, theirs.training, _FORWARD_TOLERANCE)


def test_gradients_of_all_parameters(results):
  ours, theirs = results
  _assert_close(ours.grads, theirs.grads, _GRADIENT_TOLERANCE)


def test_running_statistics(results):
  ours, theirs = results
  _assert_close(ours.stats, theirs.stats, _FORWARD_TOLERANCE)


def _assert_close(ours, theirs, tolerance):
  """Of each array, the largest difference against the largest number."""
  assert ours.keys() == theirs.keys()
  differences = {}
  for name, expected in theirs.items():
    assert ours[name].shape == expected.shape, name
    largest = np.max(np.abs(expected))
    assert largest > 0, name
    differences[name] = np.max(np.abs(ours[name] - expected)) / largest
  worst = max(differences, key=differences.get)
  assert differences[worst] <= tolerance, (worst, differences)


# The networks in PyTorch: weights, and biases for which gradients compare.


def _create_torch_model(name):
  torch.manual_seed(0)
  if name in _TORCHVISION:
    torchvision = pytest.importorskip('torchvision')
    return getattr(torchvision.models, name)(weights=None)
  model = pytest.importorskip('timm').create_model(_TIMM[name])
  if _is_v2(model):
    # It pools before the first batch norm, we do after its ReLU; without
    # pooling the two are the same network.
    model.stem.pool = torch.nn.Identity()
  return model


def _is_v2(model):
  return hasattr(model, 'stages')


def _stages(model):
  if _is_v2(model):
    return list(model.stages)
  return [model.layer1, model.layer2, model.layer3, model.layer4]


def _blocks(model):
  for stage in _stages(model):
    yield from stage.blocks if _is_v2(model) else stage


def _norms(model):
  """The batch norms by name; timm's have a class derived from PyTorch's."""
  modules = model.named_modules()
  return {n: m for n, m in modules if isinstance(m, torch.nn.BatchNorm2d)}


@torch.no_grad()
def _randomize(model):
  """Makes batch norms other than the identity, and residuals small.

  Batch norm makes a random net with large residuals amplify its own rounding,
  to several 1e-5 by the end of resnet50, in PyTorch as here.
  """
  for norm in _norms(model).values():
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.uniform_(-0.5, 0.5)
  for block in _blocks(model):
    if _is_v2(model):
      block.conv3.weight *= 0.25
    else:
      last = block.bn3 if hasattr(block, 'bn3') else block.bn2
      last.weight.uniform_(0.1, 0.3)


@torch.no_grad()
def _randomize_statistics(model):
  for norm in _norms(model).values():
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 1.5)


@torch.no_grad()
def _keep_off_jumps(model):
  """Returns images, and shifts biases, for which rounding decides nothing.

  The derivative of a ReLU jumps at zero, that of max-pooling where the two
  largest numbers are equal. Of millions of numbers a few lie so close to such a
  place that rounding decides on their side, and one of them changes gradients
  by far more than rounding does.
  """
  hooks = _Hooks()
  handles = [
    *(block.register_forward_pre_hook(hooks.block) for block in _blocks(model)),
    *(n.register_forward_pre_hook(hooks.norm) for n in _norms(model).values()),
  ]
  for module in model.modules():
    if isinstance(module, torch.nn.ReLU):
      handles.append(module.register_forward_pre_hook(hooks.relu))
    elif isinstance(module, torch.nn.MaxPool2d):
      handles.append(module.register_forward_pre_hook(hooks.max_pool))
  model.train()
  for seed in range(50):
    images = _images(seed)
    try:
      hooks.margin = _ZERO_MARGIN
      model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    except _TieError:
      continue
    break
  else:
    raise AssertionError('all images have ties')
  for handle in handles:
    handle.remove()
  return images


def _images(seed):
  """Noise, each image with a brightness and contrast of its own."""
  rng = np.random.default_rng(seed)
  own = (_IMAGES[0], 1, 1, 3)
  images = rng.standard_normal(_IMAGES) * rng.uniform(0.5, 2.0, own)
  return (images + rng.standard_normal(own)).astype(np.float32)


class _TieError(Exception):
  """Two numbers in a window of max-pooling are close to equal."""


class _Hooks:
  """What is done before modules of the network run.

  Attributes:
    margin: that ReLUs keep from zero.
  """

  def __init__(self):
    self.margin = _ZERO_MARGIN
    self._last_norm = None
    self._shifts = []

  def norm(self, norm, _):
    self._last_norm = norm

  def relu(self, _, inputs):
    (x,) = inputs
    if x.shape[-1] == 1:
      return None  # Of squeeze-and-excitation: too few numbers to matter.
    shift = _shift_off_zero(x, self.margin)
    self._shifts.append(shift)
    self._last_norm.bias += shift
    return x + shift[:, None, None]

  def block(self, block, inputs):
    # Where a gate follows the batch norm, it lets only a part of the shift
    # through: again, and content with less each time, until none is needed.
    for margin in _ZERO_MARGIN * 0.8 ** np.arange(16):
      self.margin = float(margin)
      self._shifts.clear()
      block.forward(*inputs)
      if not any(torch.any(shift) for shift in self._shifts):
        return
    raise AssertionError('no biases found')

  def max_pool(self, _, inputs):
    (x,) = inputs
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    windows = padded.unfold(2, 3, 2).unfold(3, 3, 2).flatten(4)
    largest, second = windows.topk(2).values.unbind(-1)
    # Where all are zero, no gradient goes through the ReLU before.
    if torch.any((largest > 0) & (largest - second < _TIE_MARGIN)):
      raise _TieError


def _shift_off_zero(x, margin):
  """Returns the least shift of each channel that leaves none close to zero."""
  numbers = x.transpose(0, 1).flatten(1).sort(dim=1).values
  infinity = torch.full_like(numbers[:, :1], torch.inf)
  # From each number to the next, where zero may lie.
  lows = torch.cat([-infinity, numbers], dim=1) + margin
  highs = torch.cat([numbers, infinity], dim=1) - margin
  zeros = torch.zeros_like(lows).clamp(lows, highs)
  zeros = torch.where(lows <= highs, zeros, infinity)
  nearest = torch.argmin(torch.abs(zeros), dim=1, keepdim=True)
  return -zeros.gather(1, nearest)[:, 0]


# The results, ours and PyTorch's.


def _our_results(name, state_dict, images, labels):
  overrides = {'stem_pool': False} if _TIMM.get(name) == 'resnetv2_50' else {}
  model = create_model(name, **overrides)
  variables = from_state_dict(name, state_dict, **overrides)
  variables.pop('num_batches_tracked', None)

  def outputs(variables, **mode):
    apply = functools.partial(model.apply, variables, images, **mode)
    return apply(), apply(method='features')

  @jax.jit
  def everything(variables):
    def loss(params):
      (logits, updates), (features, _) = outputs(
        {**variables, 'params': params}, train=True, mutable=['batch_stats']
      )
      training = {**features, 'logits': logits}
      return jnp.mean(cross_entropy(logits, labels)), (training, updates)

    logits, features = outputs(variables, train=False)
    results = jax.grad(loss, has_aux=True)(variables['params'])
    return {**features, 'logits': logits}, *results

  evaluation, grads, (training, updates) = jax.device_get(everything(variables))
  tensors = _torch_names(name, {'params': grads, **updates}, overrides)
  return _Results(
    evaluation=evaluation,
    training=training,
    grads={n: t for n, t in tensors.items() if 'running' not in n},
    stats={n: t for n, t in tensors.items() if 'running' in n},
  )


def _torch_names(name, variables, overrides):
  """Our variables, or gradients of them, as a state dict."""
  state_dict = to_state_dict(name, variables, **overrides)
  # naming='timm' would refuse scales below zero, as gradients are.
  return {
    key.replace('stem.norm', 'stages.0.blocks.0.norm1'): tensor
    for key, tensor in state_dict.items()
    if not key.endswith('num_batches_tracked')
  }


def _torch_results(model, images, labels):
  images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  labels = torch.from_numpy(labels).long()
  features, counts = {}, {}

  def keep(name, _, __, output):
    features[name] = _nhwc(output)

  def count(name, _, inputs):
    counts[name] = inputs[0].numel() // inputs[0].shape[1]

  for name, module in _feature_modules(model).items():
    module.register_forward_hook(functools.partial(keep, name))
  for name, norm in _norms(model).items():
    norm.register_forward_pre_hook(functools.partial(count, name))
  with torch.no_grad():
    logits = model.eval()(images)
  evaluation = {**features, 'logits': _nhwc(logits)}
  old_vars = {
    n: m.running_var.clone().numpy() for n, m in _norms(model).items()
  }
  logits = model.train()(images)
  torch.nn.functional.cross_entropy(logits, labels).backward()
  stats = {}
  for name, norm in _norms(model).items():
    stats[f'{name}.running_mean'] = norm.running_mean.numpy()
    # PyTorch updates with n / (n - 1) of the variance that it normalises by.
    share = 1 - 1 / counts[name]
    kept = 0.9 * old_vars[name]
    stats[f'{name}.running_var'] = kept + share * (
      norm.running_var.numpy() - kept
    )
  return _Results(
    evaluation=evaluation,
    training={**features, 'logits': _nhwc(logits)},
    grads={n: p.grad.numpy() for n, p in model.named_parameters()},
    stats=stats,
  )


def _feature_modules(model):
  """The modules that give our features."""
  if _is_v2(model):
    stem, pooled = model.stages[0].blocks[0].norm1, model.head.global_pool
  elif hasattr(model, 'relu'):  # torchvision's.
    stem, pooled = model.relu, model.avgpool
  else:
    # ResNet-RS: a convolution in the place of max-pooling, of the stem here.
    is_pooled = isinstance(model.maxpool, torch.nn.MaxPool2d)
    stem = model.act1 if is_pooled else model.maxpool
    pooled = model.global_pool
  stages = {f'stage{i}': m for i, m in enumerate(_stages(model), start=1)}
  return {'stem': stem, **stages, 'pooled': pooled}


def _nhwc(tensor):
  """Returns a copy, as the next ReLU may overwrite it."""
  array = tensor.detach().clone().numpy()
  if array.ndim == 2:
    return array
  array = array.transpose(0, 2, 3, 1)
  return array[:, 0, 0] if array.shape[1:3] == (1, 1) else array
