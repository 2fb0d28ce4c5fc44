"""Random-access sources of labelled images, one module per format.

To add one, write a module that returns `base.Source` and register it in
`registry`.
"""
