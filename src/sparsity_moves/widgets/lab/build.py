"""From C to the WebAssembly that the page carries: `python -m sparsity_moves.widgets.lab.build`.

The compiler is the pinned package `ziglang`. The result is committed, and a test builds it again and compares.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sparsity_moves.errors import UserError

SOURCES = Path(__file__).parent / "trainer"
WASM = Path(__file__).parent / "trainer.wasm"
FLAGS = [
    "--target=wasm32-freestanding",
    "-mcpu=generic+simd128+bulk_memory",  # plain SIMD: relaxed SIMD may round differently on every machine
    "-Os",
    "-std=c11",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-sanitize=all",
    "-fvisibility=hidden",
    "-Wl,--no-entry",
    "-Wl,--export-dynamic",
    "-Wl,--strip-all",
]


def build(target: Path = WASM) -> None:
    """Compile the trainer into `target`.

    Raises:
        UserError: the compiler is not installed, or refused.
    """
    sources = sorted(path.name for path in SOURCES.glob("*.c"))
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "ziglang", "cc", *FLAGS, *sources, "-o", str(target.resolve())],
            cwd=SOURCES,  # so that no path of this machine gets in
            env=os.environ | {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise UserError(f"The trainer was not compiled: {done.stderr.strip()[:2000]}")


if __name__ == "__main__":
    build()
    print(f"{WASM.name}: {WASM.stat().st_size} bytes")
