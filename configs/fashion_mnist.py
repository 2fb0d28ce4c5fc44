"""ResNet-20 on Fashion-MNIST (Xiao et al. 2017), 60,000 real images.

  python main.py --config=configs/fashion_mnist.py

An argument after a colon selects another net:
configs/fashion_mnist.py:resnet56.

Hardware: one GPU, or two CPU cores and an hour. The set is prepared from files
on disk; see docs/experiments.md.
Aim: top-1 accuracy of 0.93; seed 0 reaches 0.9361 (docs/results). With longer
recipes, ResNet-20 reaches 0.952 to 0.956, and ResNet-18 0.949 (the README of
the data set).
"""

from configs import default


def get_config(net='resnet20'):
  config = default.get_config()
  config.batch_size = 128
  config.num_epochs = 12.0

  config.log_every_steps = 50

  config.model.name = f'cifar_{net}'

  config.data.name = 'fashion_mnist'
  config.data.eval_split = 'test'
  config.data.image_size = 28
  config.data.eval_resize = 28
  config.data.crop = 'pad'
  config.data.crop_padding = 2

  config.optimizer.nesterov = True
  config.optimizer.weight_decay = 5e-4

  config.schedule.name = 'cosine'
  config.schedule.base_batch_size = 128
  config.schedule.decay_epochs = ()
  config.schedule.warmup_epochs = 1.0
  return config
