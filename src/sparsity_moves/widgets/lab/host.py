"""The shipped trainer outside of a browser, with `wasmtime`: for tests, benchmarks and the recorded run."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
import wasmtime
from torch import Tensor

from sparsity_moves.errors import UserError
from sparsity_moves.model import Parameters
from sparsity_moves.training import Spec
from sparsity_moves.widgets.lab.build import WASM
from sparsity_moves.widgets.lab.interface import ACTIVATIONS as ACTIVATIONS
from sparsity_moves.widgets.lab.interface import GATES as GATES
from sparsity_moves.widgets.lab.interface import ROUTERS as ROUTERS
from sparsity_moves.widgets.lab.interface import TENSORS, setup_of

NO_ATTENTION, NO_FFN = 1, 2


@cache
def _compiled() -> tuple[wasmtime.Engine, wasmtime.Module]:
    engine = wasmtime.Engine()
    return engine, wasmtime.Module.from_file(engine, str(WASM))


class Host:
    """One trainer with one model in it."""

    def __init__(self, spec: Spec, capacity: int = 256) -> None:
        """Raises `UserError` where the spec asks for what the trainer does not have."""
        engine, module = _compiled()
        self.store = wasmtime.Store(engine)
        self.calls: Any = wasmtime.Instance(self.store, module, []).exports(self.store)
        self.spec, self.task, self.capacity = spec, spec.task_object, capacity
        self._twin: Host | None = None
        self.parameters = self.call("setup", *setup_of(spec), capacity)
        if not self.parameters:
            raise UserError("the trainer refused these settings")

    @property
    def blocks(self) -> int:
        """Blocks whose tokens `loads` counts: experts, or every node of every tree."""
        return self.spec.width if self.spec.router == "tree" else self.spec.experts

    def call(self, name: str, *values: float) -> Any:
        """One of the trainer's own functions."""
        return self.calls[name](self.store, *values)

    def read(self, name: str, count: int, kind: type = np.float32) -> Any:
        """A copy of the array that a function points to."""
        at = self.call(name)
        return np.frombuffer(self.calls["memory"].read(self.store, at, at + 4 * count), kind).copy()

    def write(self, name: str, values: Any, offset: int = 0) -> None:
        """Put an array where a function points, `offset` elements further."""
        self.calls["memory"].write(self.store, values.tobytes(), self.call(name) + 4 * offset)

    def tensors(self, buffer: str = "parameter_values") -> Parameters:
        """The parameters, or with `gradients` their gradients, by the package's names."""
        flat = torch.from_numpy(self.read(buffer, self.parameters))
        found = {}
        for name, shape in self.spec.architecture.shapes().items():
            place, size = self._place(name)
            found[name] = flat[place : place + size].view(shape)
        if self.spec.router == "hash":
            found["0.ffn.hash"] = torch.from_numpy(
                self.read("hash_values", self.task.vocabulary, np.int32)
            ).long()
        return found

    def start_from(self, parameters: Parameters) -> None:
        """Take one model's parameters, without the fleet's axis."""
        for name, value in parameters.items():
            if name == "0.ffn.hash":
                self.write("hash_values", value.numpy().astype(np.int32))
            else:
                self.write("parameter_values", value.numpy().astype(np.float32).ravel(), self._place(name)[0])

    def _place(self, name: str) -> tuple[int, int]:
        which = TENSORS.index(name)
        return self.call("tensor_offset", which), self.call("tensor_size", which)

    def put_batch(self, tokens: Tensor, targets: Tensor) -> None:
        """Tokens (B, T) and targets (B, R)."""
        self.write("token_values", tokens.numpy().astype(np.int32))
        self.write("target_values", targets.numpy().astype(np.int32))

    def batch(self, sequences: int) -> tuple[Tensor, Tensor]:
        """The batch that the trainer drew: tokens (B, T) and targets (B, R)."""
        length, answers = self.task.length, len(self.task.read_out)
        tokens = self.read("token_values", sequences * length, np.int32).reshape(sequences, length)
        targets = self.read("target_values", sequences * answers, np.int32).reshape(sequences, answers)
        return torch.from_numpy(tokens).long(), torch.from_numpy(targets).long()

    def differentiate(self, sequences: int) -> float:
        """Gradients of the batch that is there, and its cross-entropy."""
        return float(self.call("differentiate", sequences, float(self.spec.balance_weight)))

    def step(self, rate: float) -> float:
        """One step of training as the page takes it, in two halves, and the batch's cross-entropy."""
        batch, balance = self.spec.batch, float(self.spec.balance_weight)
        self.call("draw_batch", batch)
        if self._twin is None:
            self._twin = Host(self.spec, self.capacity)
        twin, halves = self._twin, (self, self._twin)
        twin.write("parameter_values", self.read("parameter_values", self.parameters))
        for name, count in (
            ("token_values", batch * self.task.length),
            ("target_values", batch * len(self.task.read_out)),
            ("hash_values", self.task.vocabulary),
        ):
            twin.write(name, self.read(name, count, np.int32))
        for which, half in enumerate(halves):
            half.call("half_forward", which, batch)
        if balance:
            whole = sum(half.read("whole_loads", self.spec.experts, np.int32) for half in halves)
            for half in halves:
                half.write("whole_loads", whole)
        for half in halves:
            half.call("half_backward", batch, balance)
        self.write("other_gradients", twin.read("gradients", self.parameters + 4))
        loss = float(self.call("join"))
        self.update(rate)
        return loss

    def update(self, rate: float) -> None:
        s = self.spec
        self.call("update", *map(float, (rate, s.weight_decay, s.beta1, s.beta2, s.clip)))

    def evaluate(self, without: int = 0) -> tuple[float, float, float | None]:
        """Accuracy of single answers, of whole sequences, and on inputs held out (None where there are none)."""
        at = self.call("evaluate", without)
        right, exact, held = np.frombuffer(self.calls["memory"].read(self.store, at, at + 12), np.float32)
        return float(right), float(exact), None if held < 0 else float(held)
