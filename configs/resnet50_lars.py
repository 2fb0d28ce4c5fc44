"""ResNet-50 on ImageNet with batches of 32,768: LARS on a pod, after MLPerf.

  python main.py --config=configs/resnet50_lars.py --workdir=DIR --distributed

Hardware: a TPU pod slice of 256 chips, such as v5e:16x16, with 128 images a
chip; docs/pods.md has its memory, and scripts/ start it. TFDS needs the set
once, see the README.
Aim: 75.9 % top-1 of one 224-pixel centre crop, MLPerf's target. Rate, warm-up
and epochs are those that Kumar et al. 2019 (arXiv 1909.09756, Table 1, LARS
with scaled momentum) give for this batch. Not run.
"""

from configs import default


def get_config():
  config = default.get_config()
  config.batch_size = 32_768
  config.num_epochs = 72.0
  config.log_every_steps = 10
  config.eval_every_epochs = 4.0
  config.save_every_steps = 200

  config.model.name = 'resnet50'
  config.model.dtype = 'bfloat16'
  config.model.bn_group_size = 64
  config.model.zero_init_last_scale = True

  config.optimizer.name = 'lars'
  config.optimizer.decay_rule = 'kernels'
  config.schedule.name = 'polynomial'
  config.schedule.learning_rate = 31.2
  config.schedule.base_batch_size = 32_768
  config.schedule.warmup_epochs = 25.0
  config.schedule.decay_epochs = ()
  config.loss.label_smoothing = 0.1
  return config
