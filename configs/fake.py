"""A tiny run on made-up images: tests in seconds that everything works.

  python main.py --config=configs/fake.py

Hardware: any. Aim: exit code 0; the accuracy on made-up images means nothing.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 64
  config.num_epochs = 2.0
  config.log_every_steps = 4
  config.eval_every_epochs = 1.0
  config.save_every_steps = 8

  config.model.name = 'cifar_resnet8'

  config.data.name = 'fake'
  config.data.eval_split = 'test'
  config.data.image_size = 16
  config.data.eval_resize = 16
  config.data.crop = 'pad'
  config.data.crop_padding = 2
  config.data.num_threads = 1

  config.schedule.decay_epochs = (1.0,)
  return config
