"""Workdirs of runs that nobody made."""

import json

from resnet.run import workdir


def write_run(folder, lines, num_steps=20, **config):
  folder.mkdir(parents=True, exist_ok=True)
  fields = {'batch_size': 10, 'model.name': 'cifar_resnet8', **config}
  workdir.write_config(
    str(folder), fields, {'num_steps': num_steps, 'steps_per_epoch': 2.5}
  )
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (folder / 'metrics.jsonl').write_text(text)
  return str(folder)
