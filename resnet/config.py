"""Parses the flags --config and --config.FIELD and explains their errors."""

import ast
from collections.abc import Sequence
import contextlib
import functools
import json
import os
import pathlib
import re
import sys
import types
from typing import Any

from absl import flags
from ml_collections import config_flags

from resnet.errors import InputError, nearest

# Beside resnet/ in a clone, inside it in a wheel: there, a top-level package
# named configs could be another project's.
_HERE = pathlib.Path(__file__).parent
_CONFIGS = (_HERE if (_HERE / 'configs').is_dir() else _HERE.parent) / 'configs'
_IN_FILE = 'Error whilst parsing config file'


def provide_configs() -> None:
  """Makes `from configs import default` work wherever a program starts."""
  configs = types.ModuleType('configs')
  configs.__path__ = [str(_CONFIGS)]
  sys.modules.setdefault('configs', configs)


def find(path: str) -> str:
  """Returns the path of a file that may be named as in configs/.

  A file of this name in the current folder comes first. An argument, as in
  'resnet50_timm.py:a3', is kept.
  """
  name, colon, argument = path.partition(':')
  own = _CONFIGS / name.removeprefix('configs/')
  if os.path.exists(name) or not own.is_file():
    return path
  return f'{own}{colon}{argument}'


def with_file(argv: Sequence[str]) -> list[str]:
  """Returns a command line whose --config is the path of a file.

  Without --config, it is that of configs/digits.py.
  """
  provide_configs()
  argv, is_given = list(argv), False
  for i, arg in enumerate(argv):
    flag, equals, value = arg.partition('=')
    if flag.lstrip('-') == 'config':
      is_given = True
      if equals:
        argv[i] = f'{flag}={find(value)}'
      elif argv[i + 1 :]:
        argv[i + 1] = find(argv[i + 1])
  if not is_given:
    # As the flag's default, it would be loaded before flags are parsed.
    argv.insert(1, f'--config={_CONFIGS / "digits.py"}')
  return argv


def split_none(argv: Sequence[str]) -> tuple[list[str], list[str]]:
  """Returns a command line without --config.FIELD=None flags, and their fields.

  A config file can set a field to None, but the flags of ml_collections cannot.
  """
  rest, is_none, args = [], {}, list(argv)
  while args:
    arg = args.pop(0)
    flag, equals, value = arg.partition('=')
    field = re.fullmatch(r'--?config\.([\w.]+)', flag)
    if field and not equals and args[:1] == ['None']:  # '--config.FIELD None'
      value = args.pop(0)
    if field:
      is_none[field[1]] = value == 'None'  # The last flag of a field counts.
    if not field or value != 'None':
      rest.append(arg)
  return rest, [name for name, value in is_none.items() if value]


def set_none(config: Any, fields: Sequence[str]) -> None:
  """Sets fields of a `ConfigDict` to None."""
  for field in fields:
    *sections, name = field.split('.')
    section = functools.reduce(getattr, sections, config)
    getattr(section, name)  # For an unknown name, raises with a suggestion.
    with section.ignore_type():
      setattr(section, name, None)
  _ = config.seed  # A config file that failed to load raises here.


def read(argv: Sequence[str]) -> tuple[Any, str]:
  """Returns the config of a command line, and the path of its config file.

  Raises:
    InputError: a flag or the config file is wrong.
  """
  argv, none_fields = split_none(with_file(argv))
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  try:
    rest = values(argv)
    set_none(config.value, none_fields)
  except SystemExit:
    raise InputError('The config file ended the program.') from None
  except Exception as error:  # A config file can raise any exception.
    raise InputError(explain(error)) from None
  if len(rest) > 1:
    raise InputError(f'{rest[1]!r} is not a flag; flags begin with --.')
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(argv[:1])  # Grain's worker processes need parsed flags.
  return config.value, config_flags.get_config_filename(values['config'])


def flatten(config: Any) -> dict[str, Any]:
  """Returns the fields by dotted name, with lists instead of tuples."""
  flat = {}  # Without Flax: importing it takes longer than printing --help.
  for name, value in json.loads(config.to_json()).items():
    section = value if isinstance(value, dict) else {None: value}
    flat |= {f'{name}.{key}' if key else name: v for key, v in section.items()}
  return flat


def changed(config: Any, fields: str) -> Any:
  """Returns a copy of a `ConfigDict`, changed by 'FIELD=VALUE FIELD=VALUE'."""
  config = config.copy_and_resolve_references()
  for field in fields.split():
    name, equals, value = field.partition('=')
    if not equals:
      raise InputError(f'--also={fields!r}: {field!r} is not FIELD=VALUE.')
    with contextlib.suppress(ValueError, SyntaxError):
      value = ast.literal_eval(value)  # Otherwise it stays a string.
    try:
      config.update_from_flattened_dict({name: value})
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(f'--also={fields!r}: {error}') from None
  return config


def explain(error: Exception) -> str:
  """Explains an error of the flags or the config file in one line."""
  cause = error
  # ml_collections, and then absl, wrap the exception of a config file.
  while _IN_FILE in str(cause) and cause.__context__:
    cause = cause.__context__
  if isinstance(cause, InputError):
    return str(cause)
  # If calling config() itself failed, the traceback does not enter the file.
  is_call = cause.__traceback__ and not cause.__traceback__.tb_next
  if is_call and 'config() takes 0 positional arguments' in str(cause):
    given = str(error).partition(f': {_IN_FILE}')[0].removeprefix('flag ')
    return (
      f'{given}: this config takes no argument after the colon: type'
      f' {given.partition(":")[0]}'
    )
  if isinstance(error, (AttributeError, KeyError)):
    # The innermost message of ml_collections lists the nearest field.
    cause = error
    while isinstance(cause, Exception) and cause.args:
      cause = cause.args[0]
    if ' has no attribute ' in str(cause):
      return f'The config file is not valid: {cause}'
    name, _, near = str(cause).partition(' ')
    return f'There is no config field {name}. {near}'.rstrip()
  if isinstance(error, OSError) and (
    missing := re.search(r'Attempted.*?: \'?([^\s\']+\.py)', str(error), re.S)
  ):
    names = [path.name for path in _CONFIGS.glob('[a-z]*.py')]
    near = nearest(os.path.basename(missing[1]), names)
    return f'There is no config file {missing[1]}.{near}'
  # The last line of a traceback is its exception.
  message, _, trace = str(error).partition('Traceback')
  last_line = trace.strip().rpartition('\n')[2].strip()
  kind = '' if isinstance(error, flags.Error) else f'{type(error).__name__}:'
  return f'{kind} {message} {last_line}'


def default_workdir(path: str) -> str:
  """Returns 'runs/<config name>', or the workdir of 'saved.py:WORKDIR'."""
  path, _, argument = path.partition(':')
  stem = os.path.splitext(os.path.basename(path))[0]
  if stem == 'saved':
    return argument
  argument = re.sub(r'[^\w.-]+', '_', argument).strip('._')
  return os.path.join('runs', f'{stem}_{argument}' if argument else stem)
