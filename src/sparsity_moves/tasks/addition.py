"""Add a constant digit, with carry: 497 + 7 = 0504, digits written ones first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from sparsity_moves.errors import UserError
from sparsity_moves.tasks.task import Sequences, Task

PAD, EOS = 10, 11


@dataclass(frozen=True)
class Addition(Task):
    """Add-7 (Smithline & Mascioli 2026), for any number of digits and any one-digit addend.

    The sequence is the input's digits, EOS, the output's digits, EOS. The model reads all but the last EOS
    under a causal mask, and predicts the output digits and that EOS (teacher forcing). Every batch is drawn
    from all inputs: nothing is held out, unless asked for.
    """

    digits: int = 3
    addend: int = 7
    train_below: int | None = None
    """Train on inputs whose ones digit is below this, and hold the others out; None trains on all."""

    name: ClassVar[str] = "add7"
    causal: ClassVar[bool] = True
    tied: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 6:
            raise UserError(
                f"addition takes 1 to 6 digits, since all inputs are enumerated; not {self.digits}"
            )
        if not 1 <= self.addend <= 9:
            raise UserError(f"the addend is one digit from 1 to 9, not {self.addend}")
        if self.train_below is not None and not 1 <= self.train_below <= 9:
            raise UserError(
                f"some ones digits are trained on and some are not: 1 to 9, not {self.train_below}"
            )

    @property
    def vocabulary(self) -> int:
        return 12

    @property
    def classes(self) -> int:
        return 12

    @property
    def length(self) -> int:
        return 2 * self.digits + 2

    @property
    def read_out(self) -> tuple[int, ...]:
        return tuple(range(self.digits, self.length))

    @property
    def scored(self) -> tuple[int, ...]:
        return tuple(range(self.digits + 1))  # the output digits; the final EOS is no computation

    @property
    def operation_names(self) -> tuple[str, ...]:
        return f"+{self.addend}", "+1", "+0"

    def everything(self) -> Sequences:
        """All 10^digits inputs, in order."""
        numbers = torch.arange(10**self.digits)
        place = 10 ** torch.arange(self.digits + 1)
        given = numbers[:, None] // place[:-1] % 10
        answer = (numbers + self.addend)[:, None] // place % 10
        eos = torch.full((len(numbers), 1), EOS)
        whole = torch.cat([given, eos, answer, eos], dim=1)
        # A carry reaches place i exactly when the digits below it, plus the addend, overflow.
        carry = (numbers[:, None] % place[1:] + self.addend) >= place[1:]
        operations = torch.full((len(numbers), self.digits + 2), -1)
        operations[:, 0] = 0
        operations[:, 1 : self.digits + 1] = torch.where(carry, 1, 2)
        held_out = None if self.train_below is None else given[:, 0] >= self.train_below
        return Sequences(whole[:, :-1], whole[:, self.digits + 1 :], operations, held_out)

    def training_pool(self, seed: int, draw: int, size: int) -> Sequences:
        every = self.everything()
        return every if every.held_out is None else every[~every.held_out]

    def evaluation(self, seed: int, size: int) -> Sequences:
        return self.everything()

    def chance(self) -> dict[str, float]:
        every = self.everything()
        answer = every.targets[:, list(self.scored)]
        majority = torch.stack([column.bincount().max() for column in answer.T]).double().mean() / len(every)
        return {"most frequent answer": majority.item(), "copy the digit, no overflow": self.copied(every)}

    def copied(self, sequences: Sequences) -> float:
        """Share of the answers' digits that are right where the input's are copied, with no overflow."""
        answer = sequences.targets[:, list(self.scored)]
        copied = torch.cat([sequences.tokens[:, : self.digits], torch.zeros_like(answer[:, :1])], dim=1)
        return (copied == answer).double().mean().item()

    def render(self, sequences: Sequences, index: int) -> str:
        digit = "".join(map(str, reversed(sequences.tokens[index, : self.digits].tolist())))
        answer = "".join(map(str, reversed(sequences.targets[index, : self.digits + 1].tolist())))
        return f"{digit} + {self.addend} = {answer}"
