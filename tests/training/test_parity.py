"""A PyTorch recipe means the same thing here: twenty steps, side by side."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet.models import create_model
from resnet.models.weights import from_state_dict
from resnet.models.weights.convert import to_torch
from resnet.training import metrics
from resnet.training.losses import create_loss
from resnet.training.optimizers import create_optimizer
from resnet.training.schedules import RunLength, create_schedule
from resnet.training.state import TrainState
from resnet.training.step import Task, train_step

torch = pytest.importorskip('torch')
models = pytest.importorskip('torchvision').models

_NUM_STEPS, _WARMUP_STEPS, _DECAY_STEP = 20, 5, 12
_BATCH_SIZE, _SIZE, _NUM_CLASSES = 16, 64, 10
# In units of pixels, and such that float32 holds every normalised pixel: what
# rounding does to the images is not what is compared here.
_MEAN, _STD = (124.0, 116.5, 104.25), (64.0, 32.0, 128.0)
# Float32 holds these too, and the rates of the warm-up, 1/64 to 5/64 of them:
# schedules are float32 whatever the network is.
# Higher ones let fifty layers in float32 amplify their rounding beyond 1e-4 in
# twenty steps, in PyTorch as here; float64 shows that nothing else differs.
_PEAK, _DECAY_FACTOR = 5 / 16384, 0.25
_MOMENTUM, _WEIGHT_DECAY, _SMOOTHING = 0.9, 1e-4, 0.1
_NAMES = ['resnet18', pytest.param('resnet50', marks=pytest.mark.slow)]


@pytest.fixture
def double_precision():
  with jax.enable_x64(True):
    yield


@pytest.fixture(autouse=True)
def _one_thread():
  """Tests already run next to each other, and threads that wait are slow."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


# With float64, below, the other schedule is tested for all.
@pytest.mark.parametrize(
  'schedule', ['cosine', pytest.param('step', marks=pytest.mark.slow)]
)
@pytest.mark.parametrize('name', _NAMES)
def test_losses_in_float32(name, schedule):
  ours, _ = _our_run(name, schedule, jnp.float32)
  theirs, _ = _torch_run(name, schedule, torch.float32)
  np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.usefixtures('double_precision')
@pytest.mark.parametrize('name', _NAMES)
def test_losses_and_parameters_in_float64(name):
  ours, our_state = _our_run(name, 'step', jnp.float64)
  theirs, torch_state = _torch_run(name, 'step', torch.float64)
  np.testing.assert_allclose(ours, theirs, rtol=1e-9)
  for key, expected in torch_state.items():
    actual = our_state[key]
    assert actual.dtype == np.float64, key
    error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
    assert error <= 1e-8, (key, error)


def _create_torch_model(name):
  torch.manual_seed(0)
  # The residuals begin as zeros, which keeps random nets of fifty layers from
  # amplifying their rounding.
  create = getattr(models, name)
  return create(num_classes=_NUM_CLASSES, zero_init_residual=True)


def _batch(step):
  """Noise around a colour, which is that of the class."""
  colors = np.random.default_rng(0).integers(64, 192, (_NUM_CLASSES, 1, 1, 3))
  rng = np.random.default_rng(1 + step)
  labels = rng.integers(0, _NUM_CLASSES, _BATCH_SIZE, np.int32)
  noise = rng.integers(-64, 64, (_BATCH_SIZE, _SIZE, _SIZE, 3))
  return (colors[labels] + noise).astype(np.uint8), labels


def _our_run(name, schedule, dtype):
  """Returns the loss of each step and the final state dict."""
  task = _task(name, schedule, dtype)
  variables = from_state_dict(name, _create_torch_model(name).state_dict())
  variables = jax.tree.map(lambda x: jnp.asarray(x, dtype), variables)
  sums = metrics.zeros()
  state = TrainState(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=task.tx.init(variables['params']),
    sums={**sums, 'loss': sums['loss'].astype(dtype)},
    skipped_steps=jnp.zeros((), jnp.int32),
    skipped_in_row=jnp.zeros((), jnp.int32),
  )
  step_fn = jax.jit(functools.partial(train_step, task=task), donate_argnums=0)
  losses = []
  for step in range(_NUM_STEPS):
    images, labels = _batch(step)
    mask = np.ones(_BATCH_SIZE, bool)
    batch = {'image': images, 'label': labels, 'mask': mask}
    state, sums = step_fn(state, batch)
    losses.append(float(sums['loss']) / float(sums['num_examples']))
  return losses, to_torch(state.variables)


def _task(name, schedule, dtype):
  length = RunLength(
    batch_size=_BATCH_SIZE, num_steps=_NUM_STEPS, steps_per_epoch=10.0
  )
  rate = create_schedule(
    length,
    name=schedule,
    learning_rate=_PEAK * 256 / _BATCH_SIZE,
    base_batch_size=256,
    warmup_epochs=_WARMUP_STEPS / 10,
    decay_epochs=(_DECAY_STEP / 10,) if schedule == 'step' else (),
    decay_factor=_DECAY_FACTOR,
    decay_power=2.0,
    cooldown_epochs=0.0,
  )
  return Task(
    model=create_model(name, num_classes=_NUM_CLASSES, dtype=dtype),
    tx=create_optimizer(
      rate,
      name='sgd',
      momentum=_MOMENTUM,
      nesterov=True,
      trust_coefficient=0.001,
      b2=0.999,
      eps=1e-6,
      weight_decay=_WEIGHT_DECAY,
      decay_rule='all',
    ),
    schedule=rate,
    loss_fn=create_loss(
      name='cross_entropy',
      label_smoothing=_SMOOTHING,
      target_threshold=None,
      reduction='mean',
    ),
    mean=_MEAN,
    std=_STD,
    accumulation_steps=1,
    log_every_steps=1,
  )


def _torch_run(name, schedule, dtype):
  """The same in PyTorch, by its own parts."""
  model = _create_torch_model(name).to(dtype).train()
  optimizer = torch.optim.SGD(
    model.parameters(),
    lr=_PEAK,
    momentum=_MOMENTUM,
    nesterov=True,
    weight_decay=_WEIGHT_DECAY,
  )
  scheduler = _torch_schedule(optimizer, schedule)
  mean, std = (torch.tensor(x, dtype=dtype) for x in (_MEAN, _STD))
  losses = []
  for step in range(_NUM_STEPS):
    images, labels = map(torch.from_numpy, _batch(step))
    images = ((images.to(dtype) - mean) / std).permute(0, 3, 1, 2).contiguous()
    loss = torch.nn.functional.cross_entropy(
      model(images), labels.long(), label_smoothing=_SMOOTHING
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    losses.append(loss.item())
  # Its running variances are unbiased, so they differ.
  return losses, {
    key: tensor.numpy()
    for key, tensor in model.state_dict().items()
    if not key.endswith(('running_var', 'num_batches_tracked'))
  }


def _torch_schedule(optimizer, schedule):
  schedulers = torch.optim.lr_scheduler
  warmup = schedulers.LinearLR(
    optimizer, start_factor=1 / _WARMUP_STEPS, total_iters=_WARMUP_STEPS - 1
  )
  if schedule == 'cosine':
    main = schedulers.CosineAnnealingLR(
      optimizer, T_max=_NUM_STEPS - _WARMUP_STEPS
    )
  else:
    main = schedulers.MultiStepLR(
      optimizer, [_DECAY_STEP - _WARMUP_STEPS], gamma=_DECAY_FACTOR
    )
  return schedulers.SequentialLR(
    optimizer, [warmup, main], milestones=[_WARMUP_STEPS]
  )
