"""Downloads files of the Hugging Face hub, and keeps them in its cache."""

import logging
import sys
from typing import Any

from resnet.errors import InputError

HUB = 'hf-hub:'


def fetch(source: str, file: str) -> str | None:
  """Returns the path of a file of a repository, None if it has no such file.

  Args:
    source: 'hf-hub:owner/name[@revision]'.
    file: name of the file in the repository.

  Raises:
    InputError: huggingface_hub is not installed, or the file is not in the
      cache and cannot be downloaded.
  """
  repository, _, revision = source.removeprefix(HUB).partition('@')
  try:
    import huggingface_hub as hub  # pyright: ignore[reportMissingImports]
    from huggingface_hub import constants, errors  # pyright: ignore
  except ImportError:
    raise InputError(
      f'{source} needs huggingface_hub: pip install huggingface_hub'
    ) from None
  where = {'repo_id': repository, 'revision': revision or None}
  # It logs each attempt; the last error says the same.
  logger, cached = logging.getLogger('huggingface_hub'), None
  level = logger.level
  logger.setLevel(logging.CRITICAL)
  try:
    cached: Any = hub.try_to_load_from_cache(filename=file, **where)
    is_silent = sys.stderr.isatty() or constants.is_offline_mode()
    if not (is_silent or cached):
      print(f'Downloading {file} of {source}', file=sys.stderr)
    return hub.hf_hub_download(filename=file, **where)
  except errors.LocalEntryNotFoundError:
    if cached is not None:  # Known to be missing.
      return None
    why = 'is not in the cache, and the hub cannot be reached.'
    if constants.is_offline_mode():
      why = 'is not in the cache, and HF_HUB_OFFLINE is set.'
  except errors.EntryNotFoundError:
    return None
  except Exception as error:  # A failed download raises one of many types.
    why = f'cannot be downloaded: {" ".join(str(error).split())}'
  finally:
    logger.setLevel(level)
  raise InputError(f'{source}: {file} {why}')
