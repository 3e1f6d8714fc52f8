"""Activations of few bits: where a network rounds them, over which ranges, and how.

They are rounded where an integer runtime rounds them: the inputs and outputs of what it computes in
integers. Each such point is a module of its own in the network's graph, so that the methods that choose
weights see their inputs as they are after rounding, and so that a file says where integers begin and end.
"""
