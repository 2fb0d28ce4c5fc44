"""Times the update of a config, for the variants of benchmarks/gpu_parts.py.

Takes --config and --config.FIELD=VALUE. Answers each number on stdin with the
mean seconds of as many steps as fit into a round.
"""

import json
import sys

from resnet import config as config_lib
from resnet.tools.benchmark import programs, step


def main():
  config, _ = config_lib.read(sys.argv)
  program = programs.ours(programs.resolve_here(config), 'step')
  program.seconds(5)  # Warm-up.
  count = max(1, round(step.ROUND_SECONDS / program.seconds(1)))
  print(json.dumps('ready'), flush=True)
  for _ in sys.stdin:
    print(json.dumps(program.seconds(count) / count), flush=True)


if __name__ == '__main__':
  main()
