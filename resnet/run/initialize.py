"""Initial weights of a run, and the weights that an evaluation reads."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import traverse_util
import jax

from resnet import weights
from resnet.data.host.warnings import DataWarnings
from resnet.data.sources.imagenet_names import readable_name
from resnet.errors import InputError
from resnet.evaluation.evaluate import describe, evaluate
from resnet.experiment import Experiment
from resnet.output import ProgressBar
from resnet.run import workdir as workdir_lib
from resnet.run.checkpoint import Checkpoints
from resnet.training.state import TrainState
from resnet.training.step import jit_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitialWeights:
  """Weights that fit a run but have not been read yet.

  Attributes:
    source: where they are stored.
    model: name of the network.
    overrides: fields of the network that the config changes.
    new_head: keep the initial head, because the source has none for these
      classes.
  """

  source: weights.StoredWeights
  model: str
  overrides: Mapping[str, Any]
  new_head: bool

  def apply(self, state: TrainState) -> TrainState:
    """Returns an initial state with its weights replaced by these."""
    variables = weights.read_stored(
      self.source, self.model, needs_head=not self.new_head, **self.overrides
    )
    new = {part: dict(variables[part]) for part in state.variables}
    if self.new_head:
      new['params']['head'] = state.params['head']
    shardings = jax.tree.map(lambda x: x.sharding, state.variables)
    return state.replace(**jax.device_put(new, shardings)).with_new_ema()

  def describe(self) -> str:
    """Returns a line that names the source of the weights."""
    text = f'Weights from {self.source.name}'
    if self.new_head:
      text += '; the head is new, because they have none for these classes'
    return '. '.join([text, *self.source.remarks()])


def open_weights(experiment: Experiment) -> tuple[InitialWeights, Experiment]:
  """Opens `init_from` and checks that it fits the run; reads no tensor.

  Returns:
    The weights and the experiment. If the config sets neither mean nor standard
    deviation, those of the source replace the data set's.
  """
  config = experiment.config
  source = weights.open_stored(config['init_from'])
  shortcut = config['model.shortcut']
  overrides = {} if shortcut is None else {'shortcut': shortcut}
  model = config['model.name']
  theirs = weights.check_stored(source, model, needs_head=False, **overrides)
  params = {'params': experiment.abstract_state().params}
  ours: dict[Any, Any] = traverse_util.flatten_dict(params)
  differing = [path for path, x in ours.items() if theirs.get(path) != x.shape]
  for path in differing:
    if path[1] != 'head':
      raise InputError(
        f'{"/".join(path)} in {source.name} has the shape {list(theirs[path])};'
        f' images with {experiment.image_shape[-1]} channels need'
        f' {list(ours[path].shape)}.'
      )
  preprocessing = source.metadata.preprocessing
  given = config['data.mean'] is not None or config['data.std'] is not None
  if preprocessing and not given:
    if len(preprocessing.mean) != experiment.image_shape[-1]:
      raise InputError(
        f'{source.name} has a mean for {len(preprocessing.mean)} channels, but'
        f' the images have {experiment.image_shape[-1]}: set data.mean and'
        ' data.std.'
      )
    statistics = {'mean': preprocessing.mean, 'std': preprocessing.std}
    experiment = experiment.with_statistics_of(
      {name: [255 * x for x in values] for name, values in statistics.items()}
    )
  classes = (
    map(readable_name, names or ())
    for names in (
      experiment.train_reader.source.class_names,
      source.metadata.class_names,
    )
  )
  # Names are compared as far as both sides have them.
  differ = any(x != y for x, y in zip(*classes, strict=False))
  initial = InitialWeights(
    source=source,
    model=model,
    overrides=overrides,
    new_head=bool(differing) or differ,
  )
  return initial, experiment


def evaluate_checkpoint(
  experiment: Experiment, workdir: str, which: str
) -> int:
  """Evaluates a checkpoint of a run and prints the result; writes nothing.

  Args:
    experiment: must have the same model as the run. Its data may differ, but
      is normalised like the run's.
    workdir: folder of the run; if there is no run, `init_from` is evaluated.
    which: 'latest', or 'best' by `checkpoint_folder.score` (latest if none was
      scored).

  Returns:
    The exit code.
  """
  step, state, experiment = open_state(experiment, workdir, which, say=True)
  steps = jit_steps(experiment.task, experiment.sharding)
  reader, is_first = experiment.eval_reader, jax.process_index() == 0
  warnings = DataWarnings(reader.max_bad_images)
  try:
    with ProgressBar('evaluated', len(reader.source), is_shown=is_first) as bar:
      values = evaluate(experiment, steps, state, warnings, advance=bar.update)
    assert values is not None  # No signal can stop it.
  finally:
    for line in warnings.take():
      print(line)
  if is_first:
    print(describe(step, values))
  return 0


def open_state(
  experiment: Experiment, workdir: str, which: str, *, say: bool = False
) -> tuple[int, TrainState, Experiment]:
  """Returns the step and the state to evaluate, and the experiment.

  The experiment gets the mean and the standard deviation that the weights were
  trained with. With `say`, process 0 prints which checkpoint it is.
  """
  saved = workdir_lib.read_config(workdir)
  if saved is not None:
    data_fields = {f for f in experiment.config if not f.startswith('model.')}
    workdir_lib.check_same_config(
      workdir, saved['config'], experiment.config, ignore=data_fields
    )
    checkpoints = Checkpoints(workdir)
    step = checkpoints.best_step() if which == 'best' else None
    kind = 'latest' if step is None else 'best'
    step = checkpoints.latest_step() if step is None else step
    if step is None:
      raise InputError(f'{workdir} holds no checkpoint yet.')
    if say and jax.process_index() == 0:
      print(f'Reading the {kind} checkpoint of {workdir}, step {step}.')
    experiment = experiment.with_statistics_of(saved['derived'])
    state = checkpoints.restore(step, experiment.abstract_state())
    return step, state, experiment
  if experiment.config['init_from'] is None:
    raise InputError(
      f'{workdir} holds no run: train one first, or type the --workdir of a run'
      ' or --config.init_from=WEIGHTS.'
    )
  initial, experiment = open_weights(experiment)
  if initial.new_head:
    raise InputError(
      f'{initial.source.name} has no head for the classes of the data: train'
      ' one with --config=configs/finetune.py:SOURCE,DATASET, or evaluate it on'
      ' data with its own classes.'
    )
  if jax.process_index() == 0:
    print(initial.describe())
  return 0, initial.apply(experiment.create_state()), experiment
