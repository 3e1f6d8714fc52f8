"""Methods that choose the codes of a layer: round-to-nearest, GPFQ, GPTQ, Qronos, and what they share."""
