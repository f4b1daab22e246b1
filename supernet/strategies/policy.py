"""The LSTM controller of ENAS: a policy over the variables of a space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from supernet.decisions import Variable


@dataclass(frozen=True)
class Rollout:
    """A batch of B architectures: ``values_BV``, the log-probability and the entropy of each, summed over variables."""

    values_BV: Tensor
    log_prob_B: Tensor
    entropy_B: Tensor


class LstmPolicy(nn.Module):
    """ENAS (arXiv:1802.03268), section 2.2: an LSTM chooses variable after variable, fed with its last choice.

    An op is a softmax over W h; an input is a softmax over v tanh(W_1 a_j + W_2 h), a_j the state of the LSTM after
    node j (zero for the inputs of a cell, whose W_1 a_j is learned from the first steps). Logits are divided by
    ``temperature`` and bent to ``tanh_constant`` * tanh(logits); for ops by ``tanh_constant / op_tanh_reduce``. Edges
    that the node has chosen already are left out. The published bias of ops towards separable convolutions is not.
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
        self.temperature, self.tanh_constant, self.op_tanh_reduce = temperature, tanh_constant, op_tanh_reduce
        self.lstm = nn.LSTMCell(hidden, hidden)
        self.start = nn.Parameter(torch.empty(1, hidden))
        vocabularies = sorted({v.labels for v in variables if v.kind == "op"})
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

    def greedy(self) -> tuple[int, ...]:
        """The values chosen where every variable takes its most probable one."""
        with torch.no_grad():
            return tuple(self._roll(1, None, None).values_BV[0].tolist())

    def _roll(self, batch: int, given_BV: Tensor | None, generator: torch.Generator | None) -> Rollout:
        state = _State(self, batch)
        chosen, log_probs, entropies = [], [], []
        for i, variable in enumerate(self.variables):
            logits_BK = self._logits(variable, state)
            log_p_BK = logits_BK.log_softmax(dim=-1)
            if given_BV is not None:
                value_B = given_BV[:, i]
            elif generator is not None:
                value_B = torch.multinomial(log_p_BK.detach().exp(), 1, generator=generator)[:, 0]
            else:
                value_B = log_p_BK.argmax(dim=-1)
            chosen.append(value_B)
            log_probs.append(log_p_BK.gather(1, value_B[:, None])[:, 0])
            entropies.append(-(log_p_BK.exp() * log_p_BK).sum(dim=-1))
            state.chose(variable, value_B)
        return Rollout(torch.stack(chosen, 1), torch.stack(log_probs).sum(0), torch.stack(entropies).sum(0))

    def _logits(self, variable: Variable, state: _State) -> Tensor:
        h_BH = state.step(variable)
        if variable.kind == "op":
            logits_BK, bend = h_BH @ self.heads[self._vocabulary[variable.labels]], self.op_tanh_reduce
        else:
            query_BJH = torch.tanh(state.left_BJH(state.projected) + (h_BH @ self.attention_2)[:, None])
            logits_BK, bend = query_BJH @ self.attention_v, 1.0
        constant = self.tanh_constant / bend
        return constant * torch.tanh(logits_BK / self.temperature)


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
        if (variable.group, variable.node) != self.place and variable.kind == "input":
            self._enter(variable)
        self._advance()
        return self.h

    def _advance(self) -> None:
        self.h, self.c = self.policy.lstm(self.inputs_BH, (self.h, self.c))

    def _enter(self, variable: Variable) -> None:
        """Begin a node: all its edges are left, and the node before has become an anchor."""
        if self.place is None or self.place[0] != variable.group:
            self.anchors, self.projected = [], []
        while len(self.anchors) < variable.size:
            self._advance()
            first = len(self.anchors) < 2  # the inputs of the cell, as published: a zero that attention can tell apart
            self.anchors.append(torch.zeros_like(self.h) if first else self.h)
            self.projected.append(self.h @ self.policy.attention_1)
            self.inputs_BH = self.policy.start.expand(self.batch, -1)
        self.place = (variable.group, variable.node)
        self.left_BJ = torch.arange(variable.size, device=self.h.device).expand(self.batch, -1)

    def left_BJH(self, each: Sequence[Tensor]) -> Tensor:
        """What stands for the edges that the node has not chosen yet."""
        stacked_BSH = torch.stack(list(each), dim=1)
        return stacked_BSH.gather(1, self.left_BJ[..., None].expand(-1, -1, stacked_BSH.shape[-1]))

    def chose(self, variable: Variable, value_B: Tensor) -> None:
        """Feed the choice back."""
        if variable.kind == "op":
            policy = self.policy
            self.inputs_BH = policy.embeddings[policy._vocabulary[variable.labels]][value_B]
            return
        index_B1H = value_B[:, None, None].expand(-1, 1, self.h.shape[-1])
        self.inputs_BH = self.left_BJH(self.anchors).gather(1, index_B1H)[:, 0]
        keep = torch.ones_like(self.left_BJ, dtype=torch.bool).scatter_(1, value_B[:, None], False)
        self.left_BJ = self.left_BJ[keep].view(self.batch, -1)
