"""Language models with trees: a module that stands where an MLP stood, in models of `transformers`.

`transformers` is an extra (`pip install sparsity-moves[language]`); the module itself needs PyTorch alone.
"""

from sparsity_moves.language.module import Trees, counting, usage
from sparsity_moves.language.replace import mlps, with_trees

__all__ = ["Trees", "counting", "mlps", "usage", "with_trees"]
