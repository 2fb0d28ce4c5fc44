"""A PyTorch recipe means the same thing here: twenty steps, side by side."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet import experiment
from resnet.training.step import train_step
from resnet.weights import from_state_dict
from resnet.weights.convert import to_stored
from tests.runs import fake_config

torch = pytest.importorskip('torch')
models = pytest.importorskip('torchvision').models

NUM_STEPS, WARMUP_STEPS, DECAY_STEP = 20, 5, 12
BATCH_SIZE, STEPS_PER_EPOCH = 16, 32
# In units of pixels, and such that float32 holds every normalised pixel: what
# rounding does to the images is not what is compared here.
MEAN, STD = (124.0, 116.5, 104.25), (64.0, 32.0, 128.0)
# Float32 holds these too, and the rates of the warm-up, 1/64 to 5/64 of them:
# schedules are float32 whatever the network is.
PEAK, DECAY_FACTOR = 5 / 16384, 0.25


@pytest.fixture(autouse=True)
def _one_thread():
  """Tests already run next to each other, and threads that wait are slow."""
  threads = torch.get_num_threads()
  torch.set_num_threads(1)
  yield
  torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet18', 'resnet50'])
def test_losses_and_parameters_equal_those_of_pytorch_in_float64(name):
  with jax.enable_x64(True):
    run = make_run(name)
    batches = [run.train_reader(step) for step in range(NUM_STEPS)]
    ours, our_state = our_run(run, name, batches)
  theirs, torch_state = torch_run(name, batches)
  np.testing.assert_allclose(ours, theirs, rtol=1e-9)
  for key, expected in torch_state.items():
    actual = our_state[key]
    assert actual.dtype == np.float64, key
    error = np.max(np.abs(actual - expected)) / np.max(np.abs(expected))
    assert error <= 1e-8, (key, error)


def make_run(name):
  config = fake_config(
    batch_size=BATCH_SIZE,
    num_epochs=NUM_STEPS / STEPS_PER_EPOCH,
    log_every_steps=1,
    model__name=name,
    data__image_size=32,
    data__eval_resize=32,
    data__mean=MEAN,
    data__std=STD,
    schedule__name='step',
    schedule__learning_rate=PEAK * 256 / BATCH_SIZE,
    schedule__warmup_epochs=WARMUP_STEPS / STEPS_PER_EPOCH,
    schedule__decay_epochs=(DECAY_STEP / STEPS_PER_EPOCH,),
    schedule__decay_factor=DECAY_FACTOR,
    optimizer__momentum=0.9,
    optimizer__nesterov=True,
    optimizer__weight_decay=1e-4,
    optimizer__decay_rule='all',
    loss__label_smoothing=0.1,
  )
  # On more devices, each would compute all of it.
  return experiment.resolve(config, devices=jax.devices()[:1])


def create_torch_model(name):
  torch.manual_seed(0)
  # The residuals begin as zeros, which keeps random nets of fifty layers from
  # amplifying their rounding.
  return getattr(models, name)(num_classes=10, zero_init_residual=True)


def our_run(run, name, batches):
  """Returns the loss of each step and the final state dict."""
  variables = from_state_dict(name, create_torch_model(name).state_dict())
  variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables)
  state = run.create_state()
  state = state.replace(
    **variables,
    opt_state=run.task.tx.init(variables['params']),
    sums={**state.sums, 'loss': jnp.zeros(())},
  )
  task = dataclasses.replace(
    run.task, model=run.task.model.clone(dtype=jnp.float64)
  )
  step = functools.partial(train_step, task=task, sharding=run.sharding)
  step_fn = jax.jit(step, donate_argnums=0)
  losses = []
  for batch in batches:
    state, sums = step_fn(state, batch)
    losses.append(float(sums['loss']) / float(sums['num_examples']))
  return losses, to_stored(state.variables)


def torch_run(name, batches):
  """The same in PyTorch, by its own parts."""
  model = create_torch_model(name).double().train()
  optimizer = torch.optim.SGD(
    model.parameters(), PEAK, momentum=0.9, nesterov=True, weight_decay=1e-4
  )
  schedulers = torch.optim.lr_scheduler
  scheduler = schedulers.SequentialLR(
    optimizer,
    [
      schedulers.LinearLR(optimizer, 1 / WARMUP_STEPS, 1.0, WARMUP_STEPS - 1),
      schedulers.MultiStepLR(
        optimizer, [DECAY_STEP - WARMUP_STEPS], DECAY_FACTOR
      ),
    ],
    milestones=[WARMUP_STEPS],
  )
  losses = []
  for batch in batches:
    images = torch.tensor((batch['image'] - np.array(MEAN)) / np.array(STD))
    loss = torch.nn.functional.cross_entropy(
      model(images.permute(0, 3, 1, 2).contiguous()),
      torch.tensor(batch['label']).long(),
      label_smoothing=0.1,
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
