"""Random-access sources of labelled images, one module per format.

A new source is a module that returns `base.Source`, and a line in `registry`.
"""
