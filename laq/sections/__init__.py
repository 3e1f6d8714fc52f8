"""The sections of ``params.yaml``, a module for each stage, whose code depends on no other stage's.

None imports torch, pandas or numba, so that the file is read at once.
"""
