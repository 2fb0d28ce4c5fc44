"""Trains or evaluates a residual network: python main.py --help"""

from resnet.main import run

if __name__ == '__main__':
  run()
