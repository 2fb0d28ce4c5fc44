"""Lists the packages of the wheel; the rest is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
  packages=[*find_packages(include=['resnet', 'resnet.*']), 'resnet.configs'],
  # A top-level package named configs could be another project's.
  package_dir={'resnet.configs': 'configs'},
)
