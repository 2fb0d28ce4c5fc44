"""Programs that tests start: main.py and scripts in processes of their own."""

import atexit
from collections.abc import Callable
import concurrent.futures
import functools
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
# The smallest run there is: 16 steps of a few milliseconds.
SMALL = (
  '--config=configs/fake.py',
  '--config.data.image_size=8',
  '--config.data.eval_resize=8',
)
# Bounds a hang. No test depends on how fast the machine is.
TIMEOUT_SECONDS = 600


def environment(
  *, devices: int = 1, keep_programs: bool = True, **others: str
) -> dict[str, str]:
  """Returns the environment of a program with so many virtual devices.

  Compiling is most of a small run's time, so compiled programs are kept for the
  next program of this process. Pass `keep_programs=False` for a program that
  may be killed while it compiles and for programs that run at the same time
  (except the processes of one run, of which only the first writes), because JAX
  does not write its cache atomically.
  """
  flag = f'--xla_force_host_platform_device_count={devices}'
  kept = {
    'JAX_ENABLE_COMPILATION_CACHE': 'true',
    'JAX_COMPILATION_CACHE_DIR': _cache_dir(),
  }
  return {
    **os.environ,
    'XLA_FLAGS': f'{os.environ["XLA_FLAGS"]} {flag}',
    **(kept if keep_programs else {}),
    **others,
  }


@functools.cache
def _cache_dir() -> str:
  folder = tempfile.TemporaryDirectory()
  atexit.register(folder.cleanup)
  return folder.name


def start(
  *args: Any, cwd: Any = ROOT, before: tuple[str, ...] = (), **options: Any
) -> subprocess.Popen[str]:
  """Starts `[before] python ARGS`; the options are those of `environment`."""
  return subprocess.Popen(
    [*before, sys.executable, *map(str, args)],
    cwd=cwd,
    env=environment(**options),
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def run(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
  """Runs `python ARGS` to its end; the options are those of `start`."""
  with start(*args, **options) as process:
    try:
      out, err = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
      process.kill()
  return subprocess.CompletedProcess(args, process.returncode, out, err)


def run_main(*args: Any, **options: Any) -> subprocess.CompletedProcess[str]:
  """Runs `python main.py ARGS` to its end; the options are those of `start`."""
  return run('main.py', *args, **options)


def assert_refused(result: subprocess.CompletedProcess[str], *parts: str):
  """Asserts exit code 2 and one line on stderr that contains all the parts."""
  assert result.returncode == 2, result.stdout + result.stderr
  assert len(result.stderr.splitlines()) == 1, result.stderr
  for part in parts:
    assert part in result.stderr


def wait_until(
  condition: Callable[[], Any], *processes: subprocess.Popen[str]
) -> None:
  """Returns once the condition holds; fails if one of the processes ends."""
  end = time.monotonic() + TIMEOUT_SECONDS
  while not condition():
    for process in processes:
      if process.poll() is not None:
        out, err = process.communicate()
        raise AssertionError(f'ended with {process.returncode}: {out}{err}')
    assert time.monotonic() < end
    time.sleep(0.02)


def finish(
  *processes: subprocess.Popen[str],
) -> list[subprocess.CompletedProcess[str]]:
  """Waits until all processes have ended; kills those that do not."""

  def communicate(process: subprocess.Popen[str]) -> tuple[str, str]:
    return process.communicate(timeout=TIMEOUT_SECONDS)

  # At the same time: a process waits, and the others for it, once its pipe is
  # full.
  with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
    try:
      ends = list(pool.map(communicate, processes))
    finally:
      for process in processes:
        process.kill()
  return [
    subprocess.CompletedProcess(process.args, process.returncode, out, err)
    for process, (out, err) in zip(processes, ends, strict=True)
  ]


def free_port() -> int:
  """Returns a port of this machine that nobody listens at."""
  with socket.create_server(('127.0.0.1', 0)) as server:
    return server.getsockname()[1]
