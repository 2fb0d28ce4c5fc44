"""The papers' experiments: python -m resnet.tools.reproduce --help"""

from resnet import config as config_lib

config_lib.provide_configs()  # Before its modules import them.
