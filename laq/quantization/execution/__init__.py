"""How the analog and the quantized networks run: the graph, passes over it, offloading, fusion."""
