"""Parses command lines of tools and reports errors in one line on stderr."""

import argparse
from collections.abc import Callable, Sequence
import logging
import math
import os
import sys
from typing import Any, NoReturn

from resnet import backend
from resnet import config as config_lib
from resnet.errors import InputError, RunError
from resnet.output import print_error


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that reports an error in one line.

  Expands a leading ~/ in values, as shells leave --out=~/sets unchanged.
  """

  def __init__(self, tool: str = '', doc: str | None = None, **options: Any):
    """Creates the parser of `resnet.tools.TOOL`, described by `doc`."""
    options.setdefault('prog', f'python -m resnet.tools.{tool}')
    raw = argparse.RawDescriptionHelpFormatter
    super().__init__(description=doc, formatter_class=raw, **options)

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    namespace, rest = super().parse_known_args(args, namespace)
    for name, value in vars(namespace).items():
      if isinstance(value, str) and value.startswith(f'~{os.sep}'):
        setattr(namespace, name, os.path.expanduser(value))
    return namespace, rest

  def error(self, message: str) -> NoReturn:
    _fail(f'{message}. See {self.prog} --help')


class ConfigParser(Parser):
  """A Parser that also takes --config and --config.FIELD, as main.py does."""

  def __init__(self, tool: str = '', doc: str | None = None, **options: Any):
    epilog = 'Also takes --config=FILE and --config.FIELD=VALUE, like main.py.'
    super().__init__(tool, doc, epilog=epilog, **options)

  def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
    """Adds `config`, `config_path` and the flags of the config, `flags`."""
    namespace, rest = self.parse_known_args(args, namespace)
    namespace.flags = rest
    namespace.config, namespace.config_path = config_lib.read(
      [self.prog, *rest]
    )
    return namespace


def positive(text: str) -> int:
  """Returns a positive integer; for the `type` of an argument."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text!r} is not an integer of 1 or more')
  return int(text)


def size_text(num_bytes: float, digits: int = 1) -> str:
  """Returns '1.5 MB' for 1,500,000 bytes."""
  power = min(int(math.log10(max(abs(num_bytes), 1)) / 3), 4)
  unit = ('B', 'kB', 'MB', 'GB', 'TB')[power]
  return f'{num_bytes / 1000**power:.{digits}f} {unit}'


def table(rows: Sequence[Sequence[str]], *, markdown: bool = False) -> str:
  """Returns a table with titles in row 0; right-aligns columns of numbers."""
  columns = []
  for column in zip(*rows, strict=True):
    width = max(map(len, column))
    is_number = all(cell[:1].isdigit() for cell in column[1:])
    justify = str.rjust if is_number else str.ljust
    cells = [justify(cell, width) for cell in column]
    if markdown:
      cells.insert(1, '-' * (width - is_number) + ':' * is_number)
    columns.append(cells)
  left, between, right = ('| ', ' | ', ' |') if markdown else ('', '  ', '')
  lines = zip(*columns, strict=True)
  return '\n'.join(f'{left}{between.join(x)}{right}'.rstrip() for x in lines)


def run(main: Callable[[argparse.Namespace], None], parser: Parser) -> None:
  """Parses the command line and runs `main` with it."""
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax logs a lot.
  try:
    main(parser.parse_args())
  except InputError as error:
    _fail(str(error))
  except RunError as error:
    _fail(str(error), 1)
  except BrokenPipeError:  # The reader has ended, as in `... | head`.
    sys.stderr.close()
  except (RuntimeError, AssertionError):
    try:
      backend.devices()
    except InputError as error:  # JAX has no device: the likely cause.
      _fail(str(error))
    raise
  except KeyboardInterrupt:
    _fail('Stopped by Ctrl-C.', 130)


def _fail(message: str, code: int = 2) -> NoReturn:
  sys.exit(print_error(message, code))
