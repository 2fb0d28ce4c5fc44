"""The recipe of resnet.tools.reproduce on digits: one for nets of any depth.

  python main.py --config=configs/paper_digits.py:plain56

Hardware: any CPU; half a minute, one and three minutes for 20, 56 and 110
layers on two cores.
Aim: He et al. 2016, section 4.2, in little: batch 128, momentum 0.9, weight
decay 1e-4, the rate divided by 10 after 1/2 and 3/4 of the run. All nets, plain
or residual, warm up over the first quarter: without that the 110 layers do not
start, as the paper says. The rate is 0.05 where the paper has 0.1, for all nets
too: at 0.1 ResNet-110 with seed 0 learnt until the warm-up came to 0.09, then
diverged and stayed at a training error of 74 %. No augmentation: what is asked
is whether a net can be optimised.
"""

from configs import default


def get_config(net='resnet20'):
  config = default.get_config()
  config.batch_size = 128
  epochs = config.num_epochs = 18.0
  config.log_every_steps = 11  # About an epoch.
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
