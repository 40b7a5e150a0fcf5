"""Change only the FFN of a small Transformer and watch where the computation goes."""

import os
from importlib.metadata import version

# MKL rounds a product by where its operands lie in memory, and so by a model's place in its stack, unless told not
# to. It costs no measurable time, and must be said before MKL's first product.
os.environ.setdefault("MKL_CBWR", "AUTO")

__version__ = version("sparsity-moves")
