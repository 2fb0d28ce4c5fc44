"""Small runs of `configs/fake.py`: their configs, and what they left behind."""

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
import numpy as np

from configs import fake
from resnet import experiment
from resnet.training import workdir as workdir_lib
from resnet.training.checkpoint import Checkpoints

# Metrics that differ from run to run.
TIMES = ('images_per_second', 'data_wait')


def fake_config(**changes: Any) -> ConfigDict:
  """Returns the config `fake` with fields changed; '__' stands for a dot."""
  config = fake.get_config()
  config.update_from_flattened_dict(
    {name.replace('__', '.'): value for name, value in changes.items()}
  )
  return config


def resolve(**changes: Any) -> experiment.Experiment:
  """Returns the experiment of `fake_config`."""
  return experiment.resolve(fake_config(**changes))


def read_metrics(workdir: Any) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def final_state(workdir: Any, **changes: Any) -> Any:
  """Returns the newest checkpoint of a run of `fake_config(**changes)`."""
  checkpoints = Checkpoints(str(workdir))
  target = resolve(**changes).abstract_state()
  return jax.device_get(checkpoints.restore(checkpoints.latest_step(), target))


def assert_same_run(workdir: Any, other: Any, **changes: Any) -> None:
  """Asserts equal metrics and, bit for bit, equal final states."""
  untimed = [
    [
      {name: value for name, value in line.items() if name not in TIMES}
      for line in read_metrics(folder)
    ]
    for folder in (workdir, other)
  ]
  assert untimed[0] == untimed[1]
  assert untimed[0]
  jax.tree.map(
    np.testing.assert_array_equal,
    final_state(workdir, **changes),
    final_state(other, **changes),
  )


def save_run(
  workdir: Any, run: experiment.Experiment, variables: Any, ema: Any = None
) -> Any:
  """Writes config and checkpoint of a run with these variables, untrained.

  Returns the state: zeros but for the variables and their moving averages.
  """
  state = jax.tree.map(
    lambda x: np.zeros(x.shape, x.dtype), run.abstract_state()
  )
  state = state.replace(**variables, ema=ema)
  workdir_lib.write_config(str(workdir), run.config, run.derived())
  checkpoints = Checkpoints(str(workdir), keep=1)
  checkpoints.save(state, None)
  checkpoints.close()
  return state


def as_flags(**changes: Any) -> list[str]:
  """Returns the flags of main.py for `fake_config(**changes)`."""
  return [
    '--config=configs/fake.py',
    *(f'--config.{k.replace("__", ".")}={v}' for k, v in changes.items()),
  ]
