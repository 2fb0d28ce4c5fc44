"""Every field once, with unit, meaning and source. All configs begin here.

Not meant to be run: where a value must stand, it is that of the ImageNet recipe
of He et al. 2016 as torchvision's references run it for 90 epochs. The paper
itself differs: it crops from a shorter side of 256 to 480 pixels, jitters
colours, and divides the rate when the error plateaus.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
  """Returns the fields; a placeholder is a field that may stay None."""
  config = ConfigDict()

  # Seed of initialisation, data order and augmentation.
  config.seed = 0
  # Weights to begin with, for fine-tuning: a .safetensors file,
  # 'hf-hub:OWNER/NAME@REVISION', a workdir or an Orbax checkpoint; None: random
  # ones. A checkpoint in the workdir goes before them.
  config.init_from = config_dict.placeholder(str)
  # Images per update over all devices of all processes.
  config.batch_size = 256
  # Passes over the training split; may be a fraction.
  config.num_epochs = 90.0
  # Micro-batches per update (gradient accumulation).
  config.accumulation_steps = 1
  # Updates from one metrics line to the next.
  config.log_every_steps = 100
  # Epochs from one evaluation to the next; there is always one at the end.
  config.eval_every_epochs = 1.0
  # Updates from one checkpoint to the next; there is always one at the end.
  config.save_every_steps = 1000
  # Latest checkpoints to keep, besides the best by eval top-1, that of the
  # moving averages where there are any.
  config.keep_checkpoints = 3
  # An update is skipped where loss or gradients are not finite; so many in a
  # row end the run, and --mode=replay shows why.
  config.max_bad_steps = 10
  # Without progress for so many seconds, and 50 steps, the run writes what its
  # threads do and ends; not while it compiles. None: it may hang for ever.
  config.watchdog_seconds = config_dict.placeholder(float)  # It may be None.
  config.watchdog_seconds = 600.0
  # From SIGTERM or Ctrl-C to the end of the process: the time to save.
  config.preemption_grace_seconds = 30.0
  # Share of the moving averages of weights and statistics that each of their
  # moves keeps, 0.9999 for long runs, less in the first ones; evaluated beside
  # the weights, and what prediction, export and fine-tuning take. None: none.
  config.ema_decay = config_dict.placeholder(float)
  # Updates from one move to the next.
  config.ema_every_steps = 1

  model = config.model = ConfigDict()
  # One of resnet.models.list_models().
  model.name = 'resnet50'
  # Number of logits; None: the classes of the data set.
  model.num_classes = config_dict.placeholder(int)
  # Dtype of the computation, 'float32' or 'bfloat16'; parameters are float32.
  model.dtype = 'float32'
  # Start every residual block as the identity (Goyal et al. 2017, 5.1); None:
  # the network's own, which is False.
  model.zero_init_last_scale = config_dict.placeholder(bool)
  # Shortcut option 'A', 'B' or 'C' (He et al. 2016, Table 3), 'D' (He et al.
  # 2019) or 'none'; None: the network's own.
  model.shortcut = config_dict.placeholder(str)
  # Images per group of batch statistics; None: the whole batch. Per device in
  # the paper and in torchvision: 32 images. To keep the statistics on a device,
  # a divisor of batch_size / accumulation_steps / devices.
  model.bn_group_size = config_dict.placeholder(int)
  # Share of the running statistics that one update keeps; None: the network's
  # own, which is 0.9 as in the paper.
  model.bn_momentum = config_dict.placeholder(float)
  # For fine-tuning: the stem and so many stages stay as they are, their batch
  # norms too; None: none.
  model.frozen_stages = config_dict.placeholder(int)
  # For fine-tuning: batch norms normalise with their running statistics in
  # training too, and keep them; None: no.
  model.frozen_bn = config_dict.placeholder(bool)
  # Share of the images, 0 to 1, whose residual the last block leaves out in
  # training, the ones before it less (Huang et al. 2016); None: none.
  model.drop_path = config_dict.placeholder(float)
  # Share of the pooled features that training leaves out before the head
  # (Srivastava et al. 2014); None: none.
  model.dropout = config_dict.placeholder(float)
  # Convolutions of 1x1, or larger than the image, by 'xla' or as a 'matmul';
  # None: the faster one on the backend at hand, which is 'matmul' on a CPU
  # only. The sums are the same but for their order.
  model.conv_backend = config_dict.placeholder(str)
  # Keep of each block only its input for the backward pass and compute it again
  # there (Chen et al. 2016): for larger batches; None: no.
  model.remat = config_dict.placeholder(bool)

  data = config.data = ConfigDict()
  # 'digits', 'fake', 'folder' (image files in class folders), or any TFDS
  # classification set: 'set/config:version'.
  data.name = 'imagenet2012'
  # Folder of prepared TFDS sets; None: $TFDS_DATA_DIR or ~/tensorflow_datasets.
  # For 'folder': what holds train/CLASS/FILE and val/CLASS/FILE.
  data.data_dir = config_dict.placeholder(str)
  # TFDS splits: 'train', 'train[:90%]', ...; for 'folder' names of folders.
  data.train_split = 'train'
  data.eval_split = 'validation'
  # Side of the square images that the network sees, pixels ...
  data.image_size = 224
  # ... in training, from an epoch on: (epoch, size) pairs, both rising, from
  # epoch 0 to a last size that is image_size (progressive resizing: Howard
  # 2018; Tan and Le 2021, section 4). FFCV's 88 epochs: ((0.0, 160), (71.0,
  # 192)). (): image_size throughout.
  data.size_schedule = ()
  # ... and in evaluation (Touvron et al. 2019, FixRes); None: the same.
  data.eval_size = config_dict.placeholder(int)
  # Training crop: 'random_resized' (Szegedy et al. 2015), 'pad' (He et al.
  # 2016, section 4.2) or 'none'.
  data.crop = 'random_resized'
  # For 'random_resized': range of the share of the area ...
  data.crop_area = (0.08, 1.0)
  # ... and of width / height.
  data.crop_aspect = (3 / 4, 4 / 3)
  # For 'pad': zeros on each side, pixels.
  data.crop_padding = 4
  # Mirror half of the training images.
  data.flip = True
  # Copies of an image in a batch, each with crop and augmentation of its own;
  # an epoch is as long, of fewer different images (Hoffer et al. 2020).
  data.repeats = 1
  # Evaluation: the shorter side is resized to this, then the centre is cut.
  data.eval_resize = 256
  # Resizing, with antialias as in torchvision: 'bilinear' or 'bicubic'.
  data.interpolation = 'bilinear'
  # Where training images are cropped and flipped: on the 'host', or on the
  # 'device', for images that are stored in one size (resnet.tools.prepare
  # --raw) where the host is short of cores.
  data.augment_on = 'host'
  # Mean and standard deviation of each channel, in units of 0..255 pixels;
  # None: published ones where known, else measured on 1,024 training images.
  data.mean = config_dict.placeholder(tuple)
  data.std = config_dict.placeholder(tuple)
  # Processes that read; 0: threads of the main process.
  data.num_workers = 0
  # Threads in each of these processes.
  data.num_threads = 8
  # Batches that wait, ready, in each of these processes.
  data.prefetch_batches = 8
  # Of a training or evaluation image that cannot be decoded: 'error', or 'skip'
  # it. In training the next record takes its place, in evaluation none does.
  data.on_bad_image = 'error'
  # For 'skip': different ones that a process may leave out before it is an
  # error after all.
  data.max_bad_images = 100
  # Times that reading goes on after the death of a data worker process, such as
  # by lack of memory; counted anew in each evaluation.
  data.max_worker_restarts = 0

  # Inside the step, after crop and flip, for any data.augment_on: see
  # docs/recipes.md.
  augment = config.augment = ConfigDict()
  # Names, in the order in which they are applied: 'randaugment',
  # 'trivialaugment_wide', 'autoaugment_imagenet', 'autoaugment_cifar',
  # 'augmix', 'color_jitter', 'lighting'; and 'erasing', on normalised images,
  # the last.
  augment.operations = ()
  # For 'randaugment' (Cubuk et al. 2020): operations an image gets, and number
  # of their magnitude, 0 to 30.
  augment.num_layers = 2
  augment.magnitude = 9
  # And timm's two: standard deviation of the magnitude, drawn anew for each
  # operation, in the same units (three of them are one of timm's, whose
  # magnitude ends at 10); and the chance that an operation is done, 0 to 1.
  augment.magnitude_std = 0.0
  augment.operation_probability = 1.0
  # Interpolation of shears, translations, rotations: 'nearest' or 'bilinear'.
  augment.interpolation = 'nearest'
  # For 'color_jitter': of brightness, contrast and saturation, whose factor is
  # uniform in 1 - s .. 1 + s (0.4 in fb.resnet.torch).
  augment.jitter = (0.4, 0.4, 0.4)
  # For 'lighting': standard deviation (Krizhevsky et al. 2012, section 4.1).
  augment.lighting = 0.1
  # For 'erasing' (Zhong et al. 2020): of an image, ...
  augment.erase_probability = 0.25
  # ... range of the share of the area, and of height / width ...
  augment.erase_area = (0.02, 1 / 3)
  augment.erase_aspect = (0.3, 10 / 3)
  # ... and what is put there: 'noise' in each pixel or the 'mean' colour.
  augment.erase_fill = 'noise'
  # Of Beta(alpha, alpha), the share that a batch keeps of its images: mixup
  # (Zhang et al. 2018) and cutmix (Yun et al. 2019); 0: none.
  augment.mixup_alpha = 0.0
  augment.cutmix_alpha = 0.0
  # Share of the groups that are mixed; and of these, those that take cutmix
  # where both are on.
  augment.mix_probability = 1.0
  augment.cutmix_share = 0.5
  # Neighbouring images of a batch that are mixed with each other, by one draw;
  # None: model.bn_group_size, else the whole batch. timm and torchvision mix
  # the batch of a process. No image leaves its device where this divides
  # batch_size / devices.
  augment.mix_group_size = config_dict.placeholder(int)

  # All devices of all processes, a mesh of data x fsdp; both split the batch.
  sharding = config.sharding = ConfigDict()
  # Devices over which the state is replicated; None: what fsdp leaves.
  sharding.data = config_dict.placeholder(int)
  # Devices over which kernels and their optimizer state are split (Rajbhandari
  # et al. 2020, ZeRO), in a dim that they divide: less memory, more traffic.
  sharding.fsdp = 1

  optimizer = config.optimizer = ConfigDict()
  # 'sgd'; 'sgdw' or 'adamw', with decoupled weight decay (Loshchilov and Hutter
  # 2019); for batches of 8,192 and more 'lars' (You et al. 2017) or 'lamb' (You
  # et al. 2020), which take decay_rule='kernels'.
  optimizer.name = 'sgd'
  # For 'adamw' and 'lamb' the decay of the first moment.
  optimizer.momentum = 0.9
  # Nesterov's momentum; the paper has the classical one.
  optimizer.nesterov = False
  # For 'lars': of norm(kernel) / norm(gradient), eta in the paper.
  optimizer.trust_coefficient = 0.001
  # For 'adamw' and 'lamb': decay of the second moment, and what is added to its
  # root.
  optimizer.b2 = 0.999
  optimizer.eps = 1e-6
  # L2, added to the gradient; for 'sgdw', 'adamw' and 'lamb' to the direction.
  optimizer.weight_decay = 1e-4
  # 'all' parameters (He et al. 2016) or 'kernels' (Goyal et al. 2017).
  optimizer.decay_rule = 'all'
  # Most that the norm of all gradients together may be (Pascanu et al. 2013);
  # None: they are not clipped.
  optimizer.clip_norm = config_dict.placeholder(float)
  # Most that a gradient's norm may be of the weights', for each output channel
  # but those of the head (Brock et al. 2021: 0.01 for batches of 4,096); None.
  optimizer.clip_adaptive = config_dict.placeholder(float)
  # How far uphill of the weights, in the norm of all of them, their gradient is
  # taken (Foret et al. 2021, SAM: 0.05), for twice the work; None: at them.
  optimizer.sam_rho = config_dict.placeholder(float)
  # For fine-tuning: share of the learning rate, 0 to 1, that all parameters but
  # those of the head have.
  optimizer.backbone_multiplier = 1.0

  schedule = config.schedule = ConfigDict()
  # 'step' (He et al. 2016), 'cosine' (Loshchilov and Hutter 2017), 'polynomial'
  # (MLPerf, You et al. 2017), 'one_cycle' (Smith and Topin 2018) or 'wsd',
  # warm-up, stable, decay (Hu et al. 2024).
  schedule.name = 'step'
  # At a batch of base_batch_size images; scales with batch_size.
  schedule.learning_rate = 0.1
  schedule.base_batch_size = 256
  # Linear warm-up (Goyal et al. 2017, 2.2); may be a fraction. Of 'one_cycle'
  # the way up.
  schedule.warmup_epochs = 0.0
  # At its beginning, at a batch of base_batch_size images; None: the peak over
  # the steps of the warm-up.
  schedule.warmup_learning_rate = config_dict.placeholder(float)
  # For 'step': epochs after which the rate is multiplied by decay_factor.
  schedule.decay_epochs = (30.0, 60.0)
  schedule.decay_factor = 0.1
  # For 'polynomial', and the cool-down of 'wsd': 1 is a straight line.
  schedule.decay_power = 2.0
  # For 'cosine', 'polynomial' and 'wsd': where the rate falls to, at a batch of
  # base_batch_size images.
  schedule.final_learning_rate = 0.0
  # The last epochs: in which the rate of 'wsd' falls, and in which that of
  # 'cosine' and 'polynomial' has fallen and stays.
  schedule.cooldown_epochs = 0.0

  loss = config.loss = ConfigDict()
  # 'cross_entropy', or 'binary_cross_entropy' of each class (Wightman et al.
  # 2021); that of evaluation is always plain cross entropy.
  loss.name = 'cross_entropy'
  # Szegedy et al. 2016; 0 is plain cross entropy.
  loss.label_smoothing = 0.0
  # For 'binary_cross_entropy': a class with a larger share is a one, others
  # are zeros; None: the shares themselves, which matter with mixup or cutmix.
  loss.target_threshold = config_dict.placeholder(float)
  # For 'binary_cross_entropy': 'mean' or 'sum' over the classes.
  loss.reduction = 'mean'

  return config.lock()
