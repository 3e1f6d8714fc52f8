"""Charts, each in a module of its own: a function makes its Vega-Lite specification from a tidy table.

One specification serves as picture (``files.write``), on the page and as a template of DVC's plots.
"""
