"""Times torchvision's network, eager or compiled, for `--against=torch`.

Reads numbers of steps and prints the seconds they took; for "memory", the peak
of the device's memory in bytes, or null on a CPU. The argument is a JSON
object, see benchmarks/compare.py. Images are uint8 on the device
in channels_last memory; bfloat16 uses autocast.
"""

import contextlib
import json
import sys
import time

try:
  import torch
  from torch import nn
  from torch.nn import functional
  from torchvision import models
except ImportError:
  sys.exit()


class OptionA(nn.Module):
  """Takes every second pixel and fills new channels with zeros."""

  def forward(self, x):
    return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def _cifar(depth, num_classes):
  """Returns a network of He et al. 2016, section 4.2, in torchvision."""
  block = models.resnet.BasicBlock
  layers = [
    nn.Conv2d(3, 16, 3, padding=1, bias=False),
    nn.BatchNorm2d(16),
    nn.ReLU(inplace=True),
  ]
  before = 16
  for width in (16, 32, 64):
    for i in range((depth - 2) // 6):
      shrinks = i == 0 and width > 16
      layers.append(
        block(
          before,
          width,
          2 if shrinks else 1,
          downsample=OptionA() if shrinks else None,
        )
      )
      before = width
  layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes)]
  return nn.Sequential(*layers)


def _network(options):
  name, num_classes = options['config']['model.name'], options['num_classes']
  if name.startswith('cifar_resnet'):
    return _cifar(int(name.removeprefix('cifar_resnet')), num_classes)
  return models.get_model(name, weights=None, num_classes=num_classes)


def _batch(options, device):
  size, (height, width, channels) = (
    options['batch_size'],
    options['image_shape'],
  )
  shape = (size, channels, height, width)
  images = torch.randint(0, 256, shape, dtype=torch.uint8)
  labels = torch.randint(0, options['num_classes'], (size,))
  images = images.to(device, memory_format=torch.channels_last)
  return images, labels.to(device)


def _step(options, model, images, labels):
  """Returns a function that makes one step."""
  device, config = images.device.type, options['config']
  mean, std = (
    torch.tensor(options[name], device=device).reshape(1, -1, 1, 1)
    for name in ('mean', 'std')
  )
  autocast = contextlib.nullcontext()
  if config['model.dtype'] == 'bfloat16':
    autocast = torch.autocast(device, torch.bfloat16)
  loss_fn = nn.CrossEntropyLoss(label_smoothing=config['loss.label_smoothing'])
  optimizer = torch.optim.SGD(
    model.parameters(),
    lr=0.1,
    momentum=config['optimizer.momentum'],
    nesterov=config['optimizer.nesterov'],
    weight_decay=config['optimizer.weight_decay'],
    foreach=True,
  )

  def loss():
    with autocast:
      return loss_fn(model((images.float() - mean) / std), labels)

  def train():
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()

  return loss if options['subject'] == 'eval' else train


def _first_line(error):
  return next((x for x in str(error).splitlines() if x), repr(error))


def main():
  options = json.loads(sys.argv[1])
  device = options['device']
  try:
    model = _network(options)
  except ValueError:  # torchvision has no such network.
    return
  model = model.to(device, memory_format=torch.channels_last)
  torch.backends.cudnn.benchmark = True
  is_eval = options['subject'] == 'eval'
  model.train(not is_eval)
  if options['compile']:
    model = torch.compile(model)
  step = _step(options, model, *_batch(options, device))
  wait = torch.cuda.synchronize if device == 'cuda' else lambda: None
  with torch.inference_mode() if is_eval else contextlib.nullcontext():
    try:
      step()
      wait()
    except Exception as error:  # torch.compile raises many kinds.
      if not options['compile']:
        raise
      return print(json.dumps(_first_line(error)))
    print(json.dumps('ready'), flush=True)
    if device == 'cuda':  # Without the memory of cuDNN's trials.
      torch.cuda.reset_peak_memory_stats()
    for line in sys.stdin:
      if 'memory' in line:
        on_gpu = device == 'cuda'
        peak = torch.cuda.max_memory_allocated() if on_gpu else None
        print(json.dumps(peak), flush=True)
        continue
      start = time.perf_counter()
      for _ in range(int(line)):
        step()
      wait()
      print(json.dumps(time.perf_counter() - start), flush=True)


if __name__ == '__main__':
  main()
