"""How many bits each layer gets: what users write, sensitivities, and the allocation of a budget."""
