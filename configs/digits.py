"""ResNet-20 on 8x8 images of digits: the config that main.py uses by default.

  python main.py            (or: make train)

Hardware: any CPU; one minute on two cores.
Aim: top-1 accuracy of 0.985 on the 360 test images. There is no published
result for this split.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 128
  config.num_epochs = 50.0
  config.log_every_steps = 50
  config.eval_every_epochs = 10.0
  config.save_every_steps = 200

  config.model.name = 'cifar_resnet20'

  config.data.name = 'digits'
  config.data.eval_split = 'test'
  config.data.image_size = 8
  config.data.eval_resize = 8
  # Crop only mildly: the digits are centred, and the images have 8x8 pixels.
  config.data.crop_area = (0.7, 1.0)
  config.data.crop_aspect = (0.85, 1 / 0.85)
  config.data.flip = False
  config.data.num_threads = 1

  config.optimizer.nesterov = True
  config.optimizer.decay_rule = 'kernels'
  config.schedule.name = 'cosine'
  config.schedule.base_batch_size = 128
  config.schedule.warmup_epochs = 2.0
  config.schedule.decay_epochs = ()
  config.loss.label_smoothing = 0.1
  return config
