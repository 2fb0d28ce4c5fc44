"""Trains with a config's recipe in PyTorch, to compare accuracy with ours.

  make .venv/installed-parity
  PYTHONPATH=. python benchmarks/photographs_torch.py \\
    --config=configs/imagenette.py:128x5 --config.data.data_dir=DIR \\
    --out=torch.json

As `python main.py` with the same flags, but with timm's network of the same
name, Pillow's decoder, torchvision's crops, and PyTorch's loss, gradients and
optimizer. If both reach the same accuracy after each epoch, within the spread
over seeds, then the recipe, not our code, determines the accuracy.

These are ours: the files and their labels, the initial weights (the same
numbers), the learning rates, and the mean and std of the pixels. As in ours, a
batch may span two epochs and no image is dropped. Order, crops and flips have
the same distribution but other random numbers. The running variances are
PyTorch's, which are unbiased.

A field that has no counterpart here is refused unless it has its default.
`data.num_workers` is the number of worker processes; with 0, reading and
training take turns. With the same seed and number of workers, a CPU repeats its
results; on a GPU, PyTorch does not promise that.
"""

import io
import math
import time

import jax
import numpy as np
from PIL import Image
import timm
import torch
from torch import nn
from torch.nn import functional
from torch.utils import data
import torchvision
from torchvision.transforms import v2

from configs import default
from resnet import config as config_lib
from resnet import experiment, fields
from resnet.errors import InputError, nearest
from resnet.run.provenance import commit
from resnet.tools import command
from resnet.tools.benchmark import timing
from resnet.training.optimizers import DECAY_RULES
from resnet.weights import to_state_dict

# Fields that may have any value here. Besides these, the fields of the schedule
# may, which is ours. The last two change how our network computes, not what.
_TRANSLATED = {
  *('seed', 'batch_size', 'num_epochs', 'loss.label_smoothing'),
  *('model.name', 'model.num_classes', 'model.zero_init_last_scale'),
  *('data.name', 'data.train_split', 'data.eval_split', 'data.image_size'),
  *('data.eval_size', 'data.eval_resize', 'data.crop_area', 'data.crop_aspect'),
  *('data.flip', 'data.interpolation', 'data.mean', 'data.std'),
  *('optimizer.name', 'optimizer.momentum', 'optimizer.nesterov'),
  *('optimizer.b2', 'optimizer.eps', 'optimizer.weight_decay'),
  *('optimizer.decay_rule', 'model.bn_momentum'),
  *('model.conv_backend', 'model.remat'),
}
_OPTIMIZERS = ('sgd', 'adamw')


def main(args):
  check(args.config)
  jax.config.update('jax_platforms', 'cpu')  # The GPU is for PyTorch.
  run = experiment.resolve(args.config, devices=jax.devices('cpu')[:1])
  if run.image_shape[-1] != 3:
    raise InputError(
      f'data.name={args.config.data.name!r} has grey images; expected RGB: type'
      ' another --config.data.name'
    )
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  modules = (jax, timm, torch, torchvision)
  figures = {
    'config': run.config,
    'derived': run.derived(),
    'commit': commit(),
    'device': torch.cuda.get_device_name() if device == 'cuda' else 'cpu',
    'num_threads': torch.get_num_threads(),
    'versions': {module.__name__: module.__version__ for module in modules},
    'epochs': [],
  }
  for line in train(run, device):
    print(
      f'epoch {line["epoch"]:.2f}: top-1 {100 * line["eval/top1"]:.2f} %,'
      f' training loss {line["train/loss"]:.4f},'
      f' {line["images_per_second"]:,.1f} images/s',
      flush=True,
    )
    figures['epochs'].append(line)
    timing.save_figures(args.out, figures)


def check(config):
  """Raises an InputError for a field that cannot be translated."""
  free = _TRANSLATED | fields.FREE_FIELDS | fields.SAFE_FIELDS
  usual = config_lib.flatten(default.get_config())
  for field, value in config_lib.flatten(config).items():
    is_free = field in free or field.startswith('schedule.')
    if not is_free and value != (text := usual[field]):
      text = tuple(text) if isinstance(text, list) else text
      raise InputError(
        f'{field}={value!r} cannot be translated to PyTorch: type'
        f" --config.{field}='{text}'"
      )
  if config.optimizer.name not in _OPTIMIZERS:
    raise InputError(
      f'optimizer.name={config.optimizer.name!r} is not one of'
      f' {", ".join(_OPTIMIZERS)}.'
    )
  if not timm.is_model(name := config.model.name):
    raise InputError(
      f'model.name={name!r} is not in timm.{nearest(name, timm.list_models())}'
    )


def train(run, device):
  """Trains; yields the metrics of each evaluation, named as in metrics.jsonl.

  The speed includes reading, but not evaluation.
  """
  torch.manual_seed(run.task.seed)
  torch.backends.cudnn.deterministic = True
  train_loader, eval_loader = create_loaders(run)
  model = create_network(run).to(device, memory_format=torch.channels_last)
  optimizer = create_optimizer(model, run.config)
  rates = np.asarray(run.task.schedule(np.arange(run.length.num_steps)))
  losses, start = [], time.monotonic()
  for step, (images, labels) in enumerate(train_loader, start=1):
    for group in optimizer.param_groups:
      group['lr'] = float(rates[step - 1])
    loss = functional.cross_entropy(
      model(images.to(device, memory_format=torch.channels_last)),
      labels.to(device),
      label_smoothing=run.config['loss.label_smoothing'],
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.detach())
    if run.is_eval_step(step):
      mean_loss = torch.stack(losses).mean().item()  # Waits for the device.
      seconds = time.monotonic() - start
      yield {
        'step': step,
        'epoch': run.epoch(step),
        'train/loss': mean_loss,
        'eval/top1': evaluate(model, eval_loader, device),
        'images_per_second': len(losses) * run.length.batch_size / seconds,
      }
      losses, start = [], time.monotonic()


@torch.inference_mode()
def evaluate(model, loader, device):
  """Returns the top-1 accuracy over all images of the loader."""
  model.eval()
  hits = []
  for images, labels in loader:
    images = images.to(device, memory_format=torch.channels_last)
    hits.append(model(images).argmax(1).cpu() == labels)
  model.train()
  return torch.cat(hits).double().mean().item()


def create_network(run):
  """Creates timm's network with our initial weights for the run's seed."""
  name = run.config['model.name']
  state = to_state_dict(name, run.create_state().variables)
  model = timm.create_model(name, num_classes=run.derived()['num_classes'])
  model.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  for module in model.modules():
    if isinstance(module, nn.BatchNorm2d):
      module.momentum = 1 - run.task.model.bn_momentum
  return model.train()


def create_optimizer(model, config):
  """Creates the optimizer, whose learning rate is to be set in each step."""
  decays = DECAY_RULES[config['optimizer.decay_rule']]
  groups = [
    {
      'params': [p for p in model.parameters() if decays(p) == is_decayed],
      'weight_decay': is_decayed * config['optimizer.weight_decay'],
    }
    for is_decayed in (True, False)
  ]
  momentum = config['optimizer.momentum']
  if config['optimizer.name'] == 'sgd':
    nesterov = config['optimizer.nesterov']
    return torch.optim.SGD(groups, 0.0, momentum, nesterov=nesterov)
  betas = (momentum, config['optimizer.b2'])
  return torch.optim.AdamW(groups, 0.0, betas, config['optimizer.eps'])


def create_loaders(run):
  """Creates loaders of all batches of the run, and of an evaluation."""
  config, batch_size = run.config, run.length.batch_size
  mode = v2.InterpolationMode(config['data.interpolation'])
  area, aspect = config['data.crop_area'], config['data.crop_aspect']
  normalize = [
    v2.PILToTensor(),
    v2.ToDtype(torch.float32),  # From 0 to 255, as mean and std.
    v2.Normalize(run.task.mean, run.task.std),
  ]

  def load(reader, order, *transforms):
    workers = config['data.num_workers']
    return data.DataLoader(
      Photographs(reader.source, v2.Compose([*transforms, *normalize])),
      batch_sampler=[x.tolist() for x in order.split(batch_size)],
      num_workers=workers,
      persistent_workers=workers > 0,
      # Forked processes could wait forever for locks of JAX's threads.
      multiprocessing_context='spawn' if workers else None,
    )

  num_images = len(run.train_reader.source)
  num_seen = run.length.num_steps * batch_size
  generator = torch.Generator().manual_seed(run.task.seed)
  epochs = [
    torch.randperm(num_images, generator=generator)
    for _ in range(math.ceil(num_seen / num_images))
  ]
  return load(
    run.train_reader,
    torch.cat(epochs)[:num_seen],
    v2.RandomResizedCrop(run.image_shape[0], area, aspect, mode),
    v2.RandomHorizontalFlip(0.5 if config['data.flip'] else 0.0),
  ), load(
    run.eval_reader,
    torch.arange(len(run.eval_reader.source)),
    v2.Resize(config['data.eval_resize'], mode),
    v2.CenterCrop(run.eval_image_shape[0]),
  )


class Photographs(data.Dataset):
  """Decodes the images of a source with Pillow and transforms them."""

  def __init__(self, source, transform):
    self._records, self._transform = source.records, transform

  def __getitem__(self, index):
    record = self._records[index]
    image = record['image']  # Bytes of a file, or pixels.
    if isinstance(image, bytes):
      image = Image.open(io.BytesIO(image)).convert('RGB')
    else:
      image = Image.fromarray(image)
    return self._transform(image), record['label']


def parser():
  """Returns the parser of the command line."""
  prog = 'python benchmarks/photographs_torch.py'
  result = command.ConfigParser(doc=__doc__, prog=prog)
  result.add_argument('--out', metavar='FILE', help='write the metrics to FILE')
  return result


if __name__ == '__main__':
  command.run(main, parser())
