"""Train a derived child from scratch: the published retraining recipe, without its selection on the test split."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from supernet.evaluate import eval_mode, loss_and_accuracy, predict
from supernet.interfaces import State
from supernet.loop import Job, Place, Services, Stream, annealed
from supernet.runtime.compute import autocast
from supernet.runtime.distributed import sync_grads
from supernet.runtime.microbatches import in_parts
from supernet.runtime.random import reseed
from supernet.schema import Config
from supernet.tasks.images import ImageClassification
from supernet.types import Mixing


class Retraining(Job):
    """Trains the child on the training split; the weights after the last epoch are the result, nothing is selected.

    All randomness is keyed by (seed, "retrain"), so a retraining by itself equals the one at the end of a search.
    """

    phase = "retrain"

    def __init__(self, config: Config, task: ImageClassification, child: nn.Module, services: Services) -> None:
        super().__init__(services, config.memory.micro_batches)
        self.config, self.task, self.child = config, task, child
        self.weights = list(child.parameters())
        settings = config.retrain
        self.optimizer = torch.optim.SGD(
            self.weights,
            lr=settings.lr,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            nesterov=settings.nesterov,
        )
        loaders = task.retrain_loaders(config, services.device)
        self.batches, self.evaluation = Stream(loaders["train"]), loaders.get("valid")
        self.epochs, self.steps_per_epoch = settings.epochs, len(loaders["train"])
        self.images_per_step = settings.batch
        self.drop_path = 0.0
        self.valid: dict[str, float] = {}

    def begin_epoch(self) -> None:
        settings = self.config.retrain
        self.drop_path = settings.drop_path * self.epoch / self.epochs  # the published linear ramp
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * annealed(settings, self.epoch, self.epochs)

    def train_step(self) -> None:
        settings = self.config.retrain

        def net(x_BCHW: Tensor, p: Mixing | None) -> Tensor | tuple[Tensor, Tensor]:
            output: Tensor | tuple[Tensor, Tensor] = self.child(x_BCHW, drop_path=self.drop_path)
            return output

        reseed(self.config.seed, "retrain", self.step)
        batch = self.batches.batch(self.step)
        with autocast(self.services.device, self.config.precision):
            step = partial(self.task.step, net, p=None, auxiliary_weight=settings.auxiliary_weight)
            result = in_parts(step, batch, self.micro_batches, self.child)
        result.loss.backward()
        sync_grads([w.grad for w in self.weights if w.grad is not None])
        norm = nn.utils.clip_grad_norm_(self.weights, settings.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = result.loss.detach()
        self.finite.note(loss=loss, **{"gradient of the weights": norm})
        self.meter.add({"loss": loss, "accuracy": result.metrics["correct"] / len(batch.y), "grad_norm": norm})

    def places(self, step: int) -> dict[str, Place]:
        return {"retraining": self.batches.place(step)}

    def end_epoch(self, means: dict[str, float]) -> None:
        values = {f"train_{name}" if name in ("loss", "accuracy") else name: v for name, v in means.items()}
        if self.evaluation is not None:
            with eval_mode(self.child):
                outputs = predict(self.child, self.evaluation.epoch(0), self.services.interrupt.check)
            self.valid = loss_and_accuracy(*outputs)
            values |= {f"valid_{name}": v for name, v in self.valid.items()}
        values |= {"lr": self.optimizer.param_groups[0]["lr"], "drop_path": self.drop_path}
        self.services.recorder.scalars("retrain", values, step=self.step, epoch=self.epoch)
        self.services.progress.epoch("retrain", self.epoch + 1, self.epochs, values)

    def state_dict(self) -> State:
        return {"child": self.child.state_dict(), "optimizer": self.optimizer.state_dict(), "valid": self.valid}

    def load_state_dict(self, state: State) -> None:
        self.child.load_state_dict(state["child"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.valid = state["valid"]
