"""``python -m laq``: what the pipeline's stages call, so that they run the code beside them."""

from laq.cli import main

main()
