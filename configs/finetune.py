"""Fine-tuning: any weights on any data set, with a new head.

  python main.py --config=configs/finetune.py:SOURCE,DATASET --workdir=DIR

SOURCE is a value of --config.init_from: a workdir, a .safetensors or .pth file,
or hf-hub:OWNER/NAME@REVISION. The metadata of the weights determine network,
image size, mean and standard deviation; weights without metadata imply
ResNet-50 at 224 pixels. DATASET is a TFDS name, or 'folder' with
--config.data.data_dir. The evaluation split is 'test', or 'val' for a folder;
--config.data.eval_split changes it. To continue a run without needing SOURCE,
use --config=configs/saved.py:DIR --workdir=DIR.

  --config.model.frozen_stages=2              keep the stem and two stages
  --config.model.frozen_bn=True               use fixed running statistics
  --config.optimizer.backbone_multiplier=0.1  all but the head learn slowly

Hardware: depends on the network; small ones take minutes on a CPU.
Aim: none; benchmarks/transfer.py compares it with training from scratch.
"""

from configs import default
from resnet.errors import InputError
from resnet.fields import FIELDS
from resnet.weights import open_stored


def get_config(source_and_dataset=''):
  source, _, dataset = source_and_dataset.rpartition(',')
  if not source or not dataset:
    raise InputError(
      f'{source_and_dataset!r} does not name both weights and a data set:'
      ' type --config=configs/finetune.py:SOURCE,DATASET'
    )
  metadata = open_stored(source).metadata
  config = default.get_config()
  config.init_from = source
  config.batch_size = 64
  config.num_epochs = 10.0
  config.log_every_steps = 20
  config.save_every_steps = 200

  config.model.name = metadata.model or 'resnet50'
  config.model.shortcut = metadata.shortcut

  config.data.name = dataset
  config.data.eval_split = 'val' if dataset == 'folder' else 'test'
  if metadata.preprocessing:
    size = metadata.preprocessing.image_size
    config.data.image_size = size
    config.data.eval_resize = metadata.preprocessing.resize_size
    if FIELDS['data.interpolation'].accepts(
      metadata.preprocessing.interpolation
    ):
      config.data.interpolation = metadata.preprocessing.interpolation
  # Crop less than for ImageNet, because data sets for fine-tuning are small.
  config.data.crop_area = (0.5, 1.0)

  # As in Kornblith et al. 2019, "Do better ImageNet models transfer better?":
  # Nesterov's momentum, a cosine schedule, and a tenth of the learning rate of
  # training from scratch.
  config.optimizer.nesterov = True
  config.optimizer.decay_rule = 'kernels'
  config.schedule.name = 'cosine'
  config.schedule.learning_rate = 0.01
  config.schedule.base_batch_size = 64
  config.schedule.decay_epochs = ()
  return config
