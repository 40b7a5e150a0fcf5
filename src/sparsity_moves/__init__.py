"""Change only the FFN of a small Transformer and watch where the computation goes."""

from importlib.metadata import version

__version__ = version("sparsity-moves")
