"""The script for a GPU machine, benchmarks/gpu.sh, tried on the CPU."""

import gzip
import json
import subprocess

import pytest

from benchmarks import gpu, gpu_parts, hlo
from tests.programs import ROOT, TIMEOUT_SECONDS, assert_refused, environment

# As XLA prints programs for GPUs: a kernel is transposed for cuDNN, and a
# fusion in a command buffer transposes the activations, 16 x 4 x 4 x 16.
PROGRAM = """
%fused (p: bf16[16,4,4,16]) -> bf16[16,16,4,4] {
  %p = bf16[16,4,4,16]{3,2,1,0} parameter(0)
  ROOT %t = bf16[16,16,4,4]{3,2,1,0} transpose(%p), dimensions={0,3,1,2}
}

%command_buffer (x: bf16[16,4,4,16]) -> bf16[16,16,4,4] {
  %x = bf16[16,4,4,16]{3,2,1,0} parameter(0)
  ROOT %f = bf16[16,16,4,4]{3,2,1,0} fusion(%x), kind=kInput, calls=%fused
}

ENTRY %main (a: bf16[16,4,4,16], k: bf16[3,3,16,16]) -> bf16[16,16,4,4] {
  %a = bf16[16,4,4,16]{3,2,1,0} parameter(0)
  %k = bf16[3,3,16,16]{3,2,1,0} parameter(1)
  %w = bf16[16,3,3,16]{3,2,1,0} transpose(%k), dimensions={3,0,1,2}
  %cudnn-conv = (bf16[16,4,4,16]{3,2,1,0}, u8[0]{0}) custom-call(%a, %w), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, \
custom_call_target="__cudnn$convForward"
  %gte = bf16[16,4,4,16]{3,2,1,0} get-tuple-element(%cudnn-conv), index=0
  ROOT %call = bf16[16,16,4,4]{3,2,1,0} call(%gte), to_apply=%command_buffer
}
"""


def script(*args):
  return subprocess.run(
    [ROOT / 'benchmarks' / 'gpu.sh', *args],
    env=environment(),
    capture_output=True,
    text=True,
    timeout=TIMEOUT_SECONDS,
    check=False,
  )


def test_hlo_counts_layouts_transposes_and_bytes():
  activation, kernel = 2 * 16 * 4 * 4 * 16, 2 * 3 * 3 * 16 * 16
  assert hlo.count(PROGRAM, largest_kernel=kernel // 2) == {
    'convolutions': {'__cudnn$convForward b01f_o01i->b01f': 1},
    'transposes': {'activations': 1, 'smaller': 1},
    'fusions': {'kInput': 1},
    # The transpose of the kernel, the convolution and the fusion.
    'bytes': 2 * kernel + (2 * activation + kernel) + 2 * activation,
  }


def test_each_part_has_a_limit_and_all_end_in_time():
  assert list(gpu.LIMITS) == list(gpu_parts.PARTS)
  assert sum(gpu.LIMITS.values()) < 8 * 60 - 10  # Their start is not counted.


@pytest.mark.slow
def test_a_machine_without_gpu_is_refused(tmp_path):
  assert_refused(script(tmp_path / 'out'), 'JAX finds no GPU', '--cpu')
  assert not (tmp_path / 'out').exists()


def test_a_stopped_part_keeps_its_rows(tmp_path):
  gpu.Report(tmp_path).set('cifar', 'a', {'images/s': 12345.6, 'ratio': 0.9})
  gpu.Report(tmp_path).set('cifar', 'b')
  gpu.Report(tmp_path).end('cifar', 'stopped')
  lines = (tmp_path / 'gpu.md').read_text().splitlines()
  assert [[cell.strip() for cell in x.split('|')[2:4]] for x in lines[2:]] == [
    ['a', 'images/s 12,346, ratio 0.9'],
    ['b', 'not run: stopped'],
    ['status', 'stopped'],
  ]


@pytest.mark.slow
def test_parts_run_on_a_cpu(tmp_path):
  parts = {'environment': 300, 'hlo': 300, 'variants': 1, 'cifar': 300}
  limits = [f'--limit={part}={limit}' for part, limit in parts.items()]
  result = script(
    *(tmp_path, '--cpu', '--tiny', '--batch-sizes=6', '--rounds=1'),
    *(f'--parts={",".join(parts)}', *limits),
  )
  assert result.returncode == 0, result.stderr
  found = json.loads((tmp_path / 'gpu.json').read_text())
  status = {part: rows['status']['figures'] for part, rows in found.items()}
  stopped = {'variants': 'stopped at its limit of 1 s'}
  assert status == dict.fromkeys(parts, 'done') | stopped
  counts = found['hlo']['training']['figures']
  by_compiler = counts['by the compiler']
  assert counts['passes over activations'] == pytest.approx(by_compiler, 0.1)
  # Seven layers, forward and backward; the first has no gradient of its input.
  assert sum(counts['convolutions'].values()) == 3 * 7 - 1
  text = gzip.decompress((tmp_path / 'training.hlo.txt.gz').read_bytes())
  assert b'ENTRY' in text
  no_data = found['cifar']['ResNet-8, 1 steps per call']['figures']
  assert no_data == 'not run: no data'
