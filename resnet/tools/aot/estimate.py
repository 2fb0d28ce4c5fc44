"""Estimates the largest batch and the speed from the compiler's figures."""

import math
from typing import Any

from resnet.experiment import Experiment
from resnet.tools.aot.compiled import Compiled
from resnet.tools.aot.topologies import Chip, Topology

# From the maker's "How to Scale Your Model", section "Sharded Matrices".
_HOP_SECONDS = 1e-6


def largest_batch(chip: Chip, train: Compiled, run: Experiment) -> int:
  """Returns the batch per chip at which temporaries would fill the chip.

  A small network may need no temporaries, so the images themselves count too.
  """
  per_chip = run.length.batch_size // run.sharding.mesh.size
  per_image = train.temporary_bytes / per_chip + math.prod(run.image_shape)
  return per_chip + int((chip.hbm_bytes - train.peak_bytes) // per_image)


def speed(topology: Topology, train: Compiled, per_chip: int) -> dict[str, Any]:
  """Estimates the time of a step, and the images/s of all chips.

  A step takes the longer of arithmetic and memory, which overlap, and then the
  collectives, during which the chip waits. The efficiency is the share of the
  step without them. In a collective of n chips, each chip sends (n - 1) / n of
  the bytes over all its links, in an all-reduce twice as many. Links between
  the ends of an axis are missing in small slices: there, the bytes take twice
  as long and the way is longer.
  """
  chip, count = topology.chip, len(topology.devices)
  assert chip  # A CPU has no peak figures.
  shape = list(map(int, topology.name.partition(':')[2].split('x')))
  is_torus = all(n % chip.ring_multiple == 0 for n in shape)
  hops = sum(n // 2 if is_torus else n - 1 for n in shape)
  rate = chip.ici_bytes_per_second / 2 / (1 if is_torus else 2)
  collectives = sum(
    (2 if row['kind'] == 'all-reduce' else 1)
    * (
      row['bytes'] * (count - 1) / count / rate
      + row['count'] * hops * _HOP_SECONDS
    )
    for row in train.collectives
  )
  seconds = {
    'arithmetic': train.flops / chip.flops_per_second,
    'memory': train.accessed_bytes / chip.hbm_bytes_per_second,
  }
  alone = max(seconds.values())
  step = alone + collectives
  return {
    'seconds': {**seconds, 'collectives': collectives},
    'step_seconds': step,
    'efficiency': alone / step,
    'images_per_second': per_chip * count / step,
  }
