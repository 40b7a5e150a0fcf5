"""A process of its own for every row: what one does to memory, or its end, does not touch the others."""

from __future__ import annotations

import contextlib
import gc
import importlib
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from peers import ROWS, Unavailable

Answer = dict[str, Any]


def serve(row: str, device: str, connection: Connection) -> None:
    """Answer one request after another: a method of `_Row` by name, with its arguments."""
    served = _Row(row, device)
    while True:
        name, *given = connection.recv()
        if name == "end":
            return
        try:
            connection.send(getattr(served, name)(*given))
        except Exception as error:
            connection.send({"reason": sentence(error)})


def sentence(error: BaseException) -> str:
    """Why there is no number, in a line."""
    text = f"{error}".strip() or "no more is known"
    if "out of memory" in text.lower() or "RESOURCE_EXHAUSTED" in text:
        return "does not fit in memory"
    line = text.splitlines()[0][:160]
    return line if isinstance(error, Unavailable) else f"{type(error).__name__}: {line}"


class _Row:
    def __init__(self, row: str, device: str) -> None:
        self.file, self.device = ROWS[row][1], device
        self.rounds: dict[Any, Callable[[], Any]] = {}
        self.best: dict[Any, str] = {}
        """The form that was fastest when a problem was first seen; other numbers of models take the same."""

    def prepare(self, problem: Any, models: int, steps: int) -> Answer:
        """Build the fastest form: its name, seconds until its first round was done, and that round's losses."""
        from peers.work import work

        module = importlib.import_module(f"peers.{self.file}")
        given = work(problem, models, steps)
        forms = [self.best[problem]] if problem in self.best else module.forms(given.spec, self.device)
        speeds: dict[str, float] = {}
        failed: dict[str, str] = {}
        answer: Answer = {}
        for form in forms:
            try:
                started = time.perf_counter()
                a_round = module.build(given, self.device, form)
                losses = a_round()
                setup = time.perf_counter() - started
                speeds[form] = rate(a_round, 0.3) if len(forms) > 1 else 0.0
                if speeds[form] == max(speeds.values()):
                    self.rounds[problem, models] = a_round
                    answer = {"form": form, "setup": setup, "losses": losses.tolist()}
            except Unavailable:
                raise
            except Exception as error:
                failed[form] = sentence(error)
            a_round = None
            self.clear()
        if not answer:
            raise Unavailable("; ".join(f"{form}: {why}" for form, why in failed.items()))
        self.best[problem] = answer["form"]
        return answer | {"forms": speeds, "failed": failed}

    def measure(self, problem: Any, models: int, seconds: float) -> Answer:
        return {"rate": rate(self.rounds[problem, models], seconds)}

    def drop(self, problem: Any, models: int) -> Answer:
        del self.rounds[problem, models]
        self.clear()
        return {}

    def clear(self) -> None:
        gc.collect()
        if self.device == "cuda" and self.file != "jax_vmap":
            import torch

            torch.cuda.empty_cache()

    def ceilings(self) -> Answer:
        """The device's rates, as they are now."""
        from peers.floor import ceilings

        found = ceilings(self.device)
        self.clear()
        return found


def rate(a_round: Callable[[], Any], seconds: float) -> float:
    """Model-steps a second, over rounds that take so many seconds or more; a round ends when its losses are there."""
    rounds, started = 0, time.perf_counter()
    while (took := time.perf_counter() - started) < seconds or not rounds:
        losses = a_round()
        rounds += 1
    return rounds * losses.numel() / took


class Worker:
    """A row's process, seen from outside; one that ends or takes too long is replaced."""

    def __init__(self, row: str, device: str) -> None:
        self.row, self.device = row, device
        self.start()

    def start(self) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(self.row, self.device, theirs), daemon=False)
        self.process.start()
        theirs.close()

    def ask(self, *request: Any) -> None:
        self.connection.send(request)

    def answer(self, limit: float) -> Answer:
        reason = f"took longer than {limit:.0f} s"
        try:
            if self.connection.poll(limit):
                return self.connection.recv()
        except (EOFError, ConnectionResetError):
            reason = "its process ended"
        self.end()
        self.start()
        return {"reason": reason}

    def end(self, patience: float = 0.0) -> None:
        if patience:
            with contextlib.suppress(OSError):
                self.ask("end")
        self.process.join(patience)
        self.process.kill()
        self.process.join()
        self.connection.close()
