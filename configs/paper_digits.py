"""The recipe of resnet.tools.reproduce on digits, the same at any depth.

  python main.py --config=configs/paper_digits.py:plain56

Hardware: any CPU; on two cores, 0.5, 1 and 3 minutes for 20, 56 and 110 layers.
Aim: a small version of He et al. 2016, section 4.2, with batch size 128,
momentum 0.9, weight decay 1e-4, and a learning rate that is divided by 10 after
1/2 and 3/4 of the run. For all nets, plain or residual, the warm-up is the
first quarter of the run, because nets of 110 layers do not converge without
one, as the paper says. For all nets the learning rate is 0.05 instead of the
paper's 0.1: at 0.1, ResNet-110 with seed 0 learnt until the warm-up reached
0.09, then diverged and stayed at a training error of 74 %. There is no
augmentation, because the question is whether a net can be optimised.
"""

from configs import default


def get_config(net='resnet20'):
  config = default.get_config()
  config.batch_size = 128
  epochs = config.num_epochs = 18.0
  config.log_every_steps = 11  # About one epoch.
  config.eval_every_epochs = 2.0
  config.save_every_steps = 200
  config.keep_checkpoints = 1

  config.model.name = f'cifar_{net}'

  config.data.name = 'digits'
  config.data.eval_split = 'test'
  config.data.image_size = 8
  config.data.eval_resize = 8
  config.data.crop = 'none'
  config.data.flip = False
  config.data.num_threads = 1

  config.schedule.learning_rate = 0.05
  config.schedule.base_batch_size = 128
  config.schedule.warmup_epochs = epochs / 4
  config.schedule.decay_epochs = (epochs / 2, epochs * 3 / 4)
  return config
