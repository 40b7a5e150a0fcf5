"""Kernels that start where the imports are done: each is forked from a process that has the heavy packages already.

Most of a short chapter's time would go into importing torch, SciPy and Altair. `multiprocessing` keeps one server a
process, which imports them once and forks; a notebook's kernel is then an ordinary ipykernel, alone in its process,
with nothing run in it yet. Packages that start threads when they are imported (polars) are left to the kernels.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any
from uuid import uuid4

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from sparsity_moves.processes import end_with

HEAVY = ["ipykernel.kernelapp", "torch", "scipy.stats", "altair"]


class WarmKernelManager(AsyncKernelManager):
    """Runs a kernel of this Python, forked from the server."""

    async def _async_pre_start_kernel(self, **kw: Any) -> tuple[list[str], dict[str, Any]]:
        self.kernel_id = self.kernel_id or str(uuid4())
        self.provisioner = _Forked(kernel_id=self.kernel_id, kernel_spec=self.kernel_spec, parent=self)
        return await super()._async_pre_start_kernel(**kw)


class _Forked(LocalProvisioner):
    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        arguments = cmd[cmd.index("-f") :]  # before it stands which Python, and which module
        environment = kwargs.get("env") or os.environ.copy()
        context = get_context("forkserver")
        context.set_forkserver_preload(HEAVY)
        process = context.Process(
            target=_kernel, args=(arguments, environment, str(kwargs.get("cwd") or Path.cwd()), os.getpid())
        )
        process.start()
        self.process = _Popen(process)  # type: ignore[assignment]
        self.pid, self.pgid = process.pid, None  # its group is its own only once it runs
        return self.connection_info


class _Popen:
    """A process of `multiprocessing`, asked as `subprocess` is."""

    stdin = stdout = stderr = None

    def __init__(self, process: ForkServerProcess) -> None:
        self._process = process
        self.terminate, self.kill = process.terminate, process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)


def _kernel(arguments: Sequence[str], environment: Mapping[str, str], folder: str, asker: int) -> None:
    """What a forked process does: become a kernel, in a session of its own as others are."""
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    end_with(asker)  # the server, its parent, goes on as long as a kernel does
    os.chdir(folder)
    sys.argv = ["ipykernel_launcher", *arguments]
    IPKernelApp.launch_instance(list(arguments))
