"""Commands, one module or package each: python -m resnet.tools.NAME --help"""
