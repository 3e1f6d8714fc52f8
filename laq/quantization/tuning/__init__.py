"""Tuning of a whole quantized network, after its layers were quantized one by one.

The float network is the teacher: no labels are needed, and of its outputs those of some classes alone may
count. Calibration images that neither the method nor the tuning sees tell how well it went.
"""
