"""Measures how long it takes to create, count, convert and compile networks.

  PYTHONPATH=. python benchmarks/networks.py
  PYTHONPATH=. python benchmarks/networks.py --compile=cifar_resnet1202

Without --compile, prints the seconds to create and trace each network of up to
200 layers, and to convert ResNet-152's state dict to our variables and back
(medians of five, compared with a plain copy of the arrays, and peak memory as a
multiple of their size). With --compile, prints the seconds to trace and compile
the training step of a CIFAR network for this machine, batch 128.
"""

import argparse
import functools
import statistics
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from resnet import weights
from resnet.models import cost, create_model, list_models
from resnet.training.losses import cross_entropy
from resnet.training.optimizers import create_optimizer
from resnet.training.sharding import create_sharding
from resnet.training.state import create_state
from resnet.training.step import Task, train_step


def _seconds(function, repeat=1):
  times = []
  for _ in range(repeat):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def count_networks():
  for name in list_models():
    model = create_model(name)
    if getattr(model, 'scan_blocks', False):
      continue
    size = 32 if model.num_classes == 10 else 224
    seconds = _seconds(functools.partial(cost.trace, name, size))
    print(f'create and count {name:24} {seconds:6.2f} s')


def convert():
  network = cost.trace('resnet152', 224)
  images = jnp.zeros((1, 32, 32, 3))
  shapes = jax.eval_shape(
    functools.partial(network.model.init, train=False),
    jax.random.key(0),
    images,
  )
  variables = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  state = weights.to_state_dict('resnet152', variables)
  size = sum(array.nbytes for array in state.values())
  baseline = _seconds(lambda: {k: v.copy() for k, v in state.items()}, 5)
  print(f'copy a ResNet-152 state dict      {baseline:6.2f} s  (baseline)')
  for title, function in (
    ('from_state_dict', lambda: weights.from_state_dict('resnet152', state)),
    ('to_state_dict', lambda: weights.to_state_dict('resnet152', variables)),
  ):
    seconds = _seconds(function, 5)
    tracemalloc.start()
    function()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(
      f'{title} of it{"":{18 - len(title)}}     {seconds:6.2f} s '
      f' ({seconds / baseline:.1f} times the baseline; {1 + peak / size:.2f}'
      ' times its size in memory, itself included)'
    )


def compile_train_step(name):
  model = create_model(name)
  tx = create_optimizer(lambda _: 0.1, default.get_config().optimizer)
  task = Task(
    model=model,
    tx=tx,
    schedule=lambda _: 0.1,
    loss_fn=cross_entropy,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    accumulation_steps=1,
    log_every_steps=1,
  )
  create = functools.partial(create_state, task=task, image_shape=(32, 32, 3))
  start = time.perf_counter()
  state = jax.eval_shape(create, jax.random.key(0))
  batch = {
    'image': jax.ShapeDtypeStruct((128, 32, 32, 3), jnp.uint8),
    'label': jax.ShapeDtypeStruct((128,), jnp.int32),
    'mask': jax.ShapeDtypeStruct((128,), jnp.bool_),
  }
  step = functools.partial(train_step, task=task, sharding=create_sharding())
  lowered = jax.jit(step, donate_argnums=0).lower(state, batch)
  traced = time.perf_counter()
  compiled = lowered.compile()
  done = time.perf_counter()
  memory = compiled.memory_analysis().temp_size_in_bytes
  print(
    f'{name}: traced in {traced - start:.0f} s, compiled in'
    f' {done - traced:.0f} s; temporaries {memory / 1e9:.1f} GB'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--compile', metavar='NETWORK')
  args = parser.parse_args()
  if args.compile:
    compile_train_step(args.compile)
  else:
    count_networks()
    convert()


if __name__ == '__main__':
  main()
