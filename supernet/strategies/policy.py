"""The LSTM controller of ENAS: a policy over the variables of a space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supernet.decisions import Variable

ATTENDED = ("input", "skip")
"""Kinds of variables whose values are earlier places; every other kind has a vocabulary."""


@dataclass(frozen=True)
class Rollout:
    """A batch of B architectures: ``values_BV``; the log-probability and the entropy of each, summed over variables;
    and ``on_BS``, the logit of "on", ln(p / (1 - p)), of every skip connection (S is 0 where a space has none)."""

    values_BV: Tensor
    log_prob_B: Tensor
    entropy_B: Tensor
    on_BS: Tensor


class LstmPolicy(nn.Module):
    """ENAS (arXiv:1802.03268), section 2.2: an LSTM chooses variable after variable, fed with its last choice.

    An op is a softmax over W h. An input is a softmax over v tanh(W_1 a_j + W_2 h), a_j the state of the LSTM after
    node j (zero for the inputs of a cell, whose W_1 a_j is learned from the first steps); edges that the node has
    chosen already are left out. The skips into a layer are all chosen at once (section 2.3), each by the same
    attention: q = v tanh(W_1 a_j + W_2 h), with logits -q and q as in the published code. Logits are divided by
    ``temperature`` and bent to ``tanh_constant`` * tanh(logits); for ops by ``tanh_constant / op_tanh_reduce``. The
    published bias of ops towards separable convolutions is not.
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        *,
        hidden: int,
        temperature: float,
        tanh_constant: float,
        op_tanh_reduce: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.variables = tuple(variables)
        self.blocks = _blocks(self.variables)
        self.skips = any(v.kind == "skip" for v in variables)
        self.temperature, self.tanh_constant, self.op_tanh_reduce = temperature, tanh_constant, op_tanh_reduce
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.start = nn.Parameter(torch.empty(1, hidden))
        vocabularies = sorted({v.labels for v in variables if v.kind not in ATTENDED})
        self._vocabulary = {labels: i for i, labels in enumerate(vocabularies)}
        self.embeddings = nn.ParameterList(torch.empty(len(labels), hidden) for labels in vocabularies)
        self.heads = nn.ParameterList(torch.empty(hidden, len(labels)) for labels in vocabularies)
        self.attention_1 = nn.Parameter(torch.empty(hidden, hidden))
        self.attention_2 = nn.Parameter(torch.empty(hidden, hidden))
        self.attention_v = nn.Parameter(torch.empty(hidden))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-0.1, 0.1, generator=generator)

    def sample(self, batch: int, generator: torch.Generator) -> Rollout:
        """Draw ``batch`` architectures."""
        return self._roll(batch, None, generator)

    def evaluate(self, values_BV: Tensor) -> Rollout:
        """Log-probability and entropy of given architectures."""
        return self._roll(len(values_BV), values_BV, None)

    def draw(self, generator: torch.Generator) -> tuple[int, ...]:
        """Draw the values of one architecture, without a graph."""
        with torch.no_grad():
            return tuple(self.sample(1, generator).values_BV[0].tolist())

    def greedy(self) -> tuple[int, ...]:
        """The values chosen where every variable takes its most probable one."""
        with torch.no_grad():
            return tuple(self._roll(1, None, None).values_BV[0].tolist())

    def _roll(self, batch: int, given_BV: Tensor | None, generator: torch.Generator | None) -> Rollout:
        state = _State(self, batch)
        values_BV = torch.empty(batch, len(self.variables), dtype=torch.int64)
        log_probs, entropies, on = [], [], [self.start.new_zeros(batch, 0)]
        for block in self.blocks:
            variable = self.variables[block[0]]
            logits_BSK = self._logits(variable, state)
            log_p_BSK = logits_BSK.log_softmax(dim=-1)
            if given_BV is not None:
                value_BS = given_BV[:, block]
            elif generator is not None:
                p_K = log_p_BSK.detach().exp().flatten(0, 1)
                value_BS = torch.multinomial(p_K, 1, generator=generator).view(batch, -1)
            else:
                value_BS = log_p_BSK.argmax(dim=-1)
            values_BV[:, block] = value_BS
            log_probs.append(log_p_BSK.gather(2, value_BS[..., None]).sum(dim=(1, 2)))
            entropies.append(-(log_p_BSK.exp() * log_p_BSK).sum(dim=(1, 2)))
            if variable.kind == "skip":
                on.append(logits_BSK[..., 1] - logits_BSK[..., 0])
            state.chose(variable, value_BS)
        return Rollout(values_BV, torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0), torch.cat(on, dim=1))

    def _logits(self, variable: Variable, state: _State) -> Tensor:
        """``logits_BSK`` of a block, which ``variable`` begins."""
        h_BH = state.step(variable)
        if variable.kind not in ATTENDED:
            logits_BK = h_BH @ self.heads[self._vocabulary[variable.labels]]
            return self._bent(logits_BK, self.tanh_constant / self.op_tanh_reduce)[:, None]
        keys_BJH = state.left_BJH(state.projected) if variable.kind == "input" else torch.stack(state.projected, dim=1)
        q_BJ = torch.tanh(keys_BJH + (h_BH @ self.attention_2)[:, None]) @ self.attention_v
        if variable.kind == "input":
            return self._bent(q_BJ, self.tanh_constant)[:, None]
        return self._bent(torch.stack([-q_BJ, q_BJ], dim=-1), self.tanh_constant)

    def _bent(self, logits: Tensor, constant: float) -> Tensor:
        return constant * torch.tanh(logits / self.temperature)


def _blocks(variables: Sequence[Variable]) -> list[list[int]]:
    """The variables in the order in which they are chosen: one by one, but the skips into a layer at once, after it."""
    order = list(range(len(variables)))
    if any(v.kind == "skip" for v in variables):
        order.sort(key=lambda i: (variables[i].node, variables[i].kind == "skip"))
    blocks: list[list[int]] = []
    for i in order:
        last = variables[blocks[-1][-1]] if blocks else None
        if last is not None and variables[i].kind == last.kind == "skip" and variables[i].node == last.node:
            blocks[-1].append(i)
        else:
            blocks.append([i])
    return blocks


class _State:
    """The LSTM in the middle of a batch of rollouts."""

    def __init__(self, policy: LstmPolicy, batch: int) -> None:
        self.policy, self.batch = policy, batch
        hidden = policy.start.shape[1]
        self.h = self.c = policy.start.new_zeros(batch, hidden)
        self.inputs_BH = policy.start.expand(batch, -1)
        self.place: tuple[str, int] | None = None
        self.anchors: list[Tensor] = []
        self.projected: list[Tensor] = []
        self.left_BJ = torch.zeros(batch, 0, dtype=torch.int64)

    def step(self, variable: Variable) -> Tensor:
        """The hidden state from which a variable is chosen."""
        if variable.kind == "skip":
            return self.h  # the layer's own, from after its operation
        if (variable.group, variable.node) != self.place and variable.kind == "input":
            self._enter(variable)
        self._advance()
        return self.h

    def _advance(self) -> None:
        self.h, self.c = self.policy.lstm(self.inputs_BH, (self.h, self.c))

    def _anchor(self, anchor_BH: Tensor) -> None:
        self.anchors.append(anchor_BH)
        self.projected.append(self.h @ self.policy.attention_1)

    def _enter(self, variable: Variable) -> None:
        """Begin a node: all its edges are left, and the node before has become an anchor."""
        if self.place is None or self.place[0] != variable.group:
            self.anchors, self.projected = [], []
        while len(self.anchors) < variable.size:
            self._advance()
            first = len(self.anchors) < 2  # the inputs of the cell, as published: a zero that attention can tell apart
            self._anchor(torch.zeros_like(self.h) if first else self.h)
            self.inputs_BH = self.policy.start.expand(self.batch, -1)
        self.place = (variable.group, variable.node)
        self.left_BJ = torch.arange(variable.size, device=self.h.device).expand(self.batch, -1)

    def left_BJH(self, each: Sequence[Tensor]) -> Tensor:
        """What stands for the edges that the node has not chosen yet."""
        stacked_BSH = torch.stack(list(each), dim=1)
        return stacked_BSH.gather(1, self.left_BJ[..., None].expand(-1, -1, stacked_BSH.shape[-1]))

    def chose(self, variable: Variable, value_BS: Tensor) -> None:
        """Feed the choice back."""
        policy = self.policy
        if variable.kind == "skip":
            self._skipped(value_BS.to(self.h.dtype))
        elif variable.kind == "input":
            index_B1H = value_BS[..., None].expand(-1, 1, self.h.shape[-1])
            self.inputs_BH = self.left_BJH(self.anchors).gather(1, index_B1H)[:, 0]
            keep = torch.ones_like(self.left_BJ, dtype=torch.bool).scatter_(1, value_BS, False)
            self.left_BJ = self.left_BJ[keep].view(self.batch, -1)
        else:
            self.inputs_BH = policy.embeddings[policy._vocabulary[variable.labels]][value_BS[:, 0]]
            if policy.skips:
                self._advance()
                if not self.anchors:  # nothing comes before the first layer
                    self._anchor(self.h)
                    self.inputs_BH = policy.start.expand(self.batch, -1)

    def _skipped(self, on_BS: Tensor) -> None:
        """The next layer is fed with the sum of the layers that were chosen over one more than their number."""
        chosen_BH = (on_BS[..., None] * torch.stack(self.anchors, dim=1)).sum(dim=1)
        self._anchor(self.h)
        self.inputs_BH = chosen_BH / (1.0 + on_BS.sum(dim=1, keepdim=True))
