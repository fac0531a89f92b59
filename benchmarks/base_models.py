"""Trained base models of the benchmarks, by name and seed.

    python benchmarks/base_models.py resnet20x1 0 1     get the networks of these seeds and print their accuracies

A network is read from ``$WBFUSE_ZOO/{name}_s{seed}.pt``, a dict with the state dict under "state" (half precision is made
single), else from ``base_models`` in the cache folder of the data sets (~/.cache/sklearn_wbfuse), else it is trained on one
thread and kept there: half a minute for a perceptron or a network on text, 2 to 8 minutes for a recurrent one on MNIST, 15 to
20 minutes for a network on CIFAR-10. The seed decides the initialisation and the order of the data, not which images a parent
"+A" or "+B" sees. Epochs and rates on text were chosen on the validation splits.
"""

import argparse
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.utils import Bunch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_wbfuse import FusionInput
from sklearn_wbfuse.data.scores import outputs, score_outputs
from sklearn_wbfuse.datasets import (
    MLP,
    VGG11,
    MLPNet,
    RecurrentNet,
    ResNet20,
    TextNet,
    load_ag_news,
    load_cifar10,
    load_mnist,
    load_sst2,
)
from sklearn_wbfuse.datasets.files import cache_folder


@dataclass(frozen=True)
class Recipe:
    """A network and how it is trained: SGD or Adam at a constant rate, or one-cycle up to that rate.

    Momentum is SGD's; gradients are cut to the norm `clip` if that is not 0.
    """

    build: Callable[[], nn.Module]
    load_data: Callable[[], Bunch]
    epochs: int
    learning_rate: float
    momentum: float = 0.0
    optimizer: str = "sgd"
    one_cycle: bool = False
    weight_decay: float = 0.0
    clip: float = 0.0
    batch_size: int = 64
    flip: bool = False


# Read, decoded and embedded once per process.
mnist, cifar10, sst2, ag_news = (functools.cache(load) for load in (load_mnist, load_cifar10, load_sst2, load_ag_news))


@functools.cache
def _half(part: str) -> Bunch:
    """MNIST for a parent "A" that sees every 4 and a tenth of the rest, or "B" that sees the other nine tenths and no 4."""
    data = mnist()
    fours = data.y_train == 4
    rest = np.random.RandomState(0).permutation(np.flatnonzero(~fours.numpy()))
    seen = fours.clone()
    seen[rest[: len(rest) // 10]] = True
    rows = seen if part == "A" else ~seen
    return Bunch(X_train=data.X_train[rows], y_train=data.y_train[rows], X_test=data.X_test, y_test=data.y_test)


def _text_net(cell: str, data: Callable[[], Bunch], classes: int) -> TextNet:
    return TextNet(cell, data().embedding, classes=classes)


_CIFAR = {"momentum": 0.9, "one_cycle": True, "weight_decay": 5e-4, "batch_size": 128, "flip": True}
_TEXT = {"optimizer": "adam", "one_cycle": True, "clip": 1.0}
RECIPES: dict[str, Recipe] = {
    "mlpnet": Recipe(MLPNet, mnist, 20, 0.05, 0.5),
    "mlpnet-nobias": Recipe(lambda: MLPNet(bias=False), mnist, 20, 0.05, 0.5),
    "mlp-2048": Recipe(lambda: MLP([784, 2048, 2048, 2048, 10]), mnist, 2, 0.05, 0.9, batch_size=256),
    "resnet20x1": Recipe(ResNet20, cifar10, 10, 0.1, **_CIFAR),
    "vgg11x0.5": Recipe(lambda: VGG11(0.5), cifar10, 12, 0.05, **_CIFAR),
    "rnn-256": Recipe(lambda: RecurrentNet("rnn"), mnist, 6, 1e-3, optimizer="adam", batch_size=128),
    "lstm-256": Recipe(lambda: RecurrentNet("lstm"), mnist, 5, 1e-3, optimizer="adam", batch_size=128),
    "gru-256": Recipe(lambda: RecurrentNet("gru"), mnist, 4, 1e-3, optimizer="adam", batch_size=128),
}

for _name, _build in (("mlpnet", MLPNet), ("mlpsmall", functools.partial(MLP, (784, 200, 100, 50, 10)))):
    for _part in "AB":
        RECIPES[f"{_name}+{_part}"] = Recipe(_build, functools.partial(_half, _part), 10, 0.01, 0.5)

for _name, _data, _classes in (("sst2", sst2, 2), ("agnews", ag_news, 4)):
    for _cell, _epochs, _rate in (("rnn", 8, 1e-3), ("lstm", 5, 2e-3)):
        _build = functools.partial(_text_net, _cell, _data, _classes)
        RECIPES[f"{_name}-{_cell}-256"] = Recipe(_build, _data, _epochs, _rate, **_TEXT)


def base_model(name: str, seed: int) -> nn.Module:
    """The trained network of a name in `RECIPES` and a seed, in eval mode."""
    file = f"{name}_s{seed}.pt"
    zoo = os.environ.get("WBFUSE_ZOO")
    cached = cache_folder() / "base_models" / file
    path = Path(zoo) / file if zoo and (Path(zoo) / file).is_file() else cached
    if not path.is_file():
        state = trained(name, seed).state_dict()
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{os.getpid()}.part")
        torch.save({"name": name, "seed": seed, "state": state}, partial)
        partial.replace(cached)
    state = torch.load(path, weights_only=True)["state"]
    with torch.random.fork_rng(devices=[]):
        model = RECIPES[name].build()
    model.load_state_dict({key: t.float() if t.is_floating_point() else t for key, t in state.items()})
    return model.eval()


def trained(name: str, seed: int) -> nn.Module:
    recipe = RECIPES[name]
    data = recipe.load_data()
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        return _train(recipe.build(), data.X_train, data.y_train, recipe, f"{name}, seed {seed}")


def _train(model: nn.Module, X: Tensor, y: Tensor, recipe: Recipe, label: str) -> nn.Module:
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "adam":
        optimizer = torch.optim.Adam(model.parameters(), **options)
    else:
        optimizer = torch.optim.SGD(model.parameters(), momentum=recipe.momentum, **options)
    steps = -(-len(X) // recipe.batch_size) * recipe.epochs
    schedule = None
    if recipe.one_cycle:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    for epoch in range(recipe.epochs):
        start, total = time.perf_counter(), 0.0
        for rows in torch.randperm(len(X)).split(recipe.batch_size):
            batch = X[rows]
            if recipe.flip:
                mirrored = torch.rand(len(batch)) < 0.5
                batch[mirrored] = batch[mirrored].flip(-1)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch), y[rows])
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += float(loss.detach()) * len(rows)
        seconds = time.perf_counter() - start
        print(f"  {label}: epoch {epoch + 1} of {recipe.epochs}, loss {total / len(X):.4f}, {seconds:.0f} s", flush=True)
    return model.eval()


def accuracy(predicted: Tensor, y: Tensor) -> float:
    """Accuracy in % of logits (n, classes)."""
    return 100 * score_outputs(predicted.numpy(), y)


def logits(model: nn.Module, X: Tensor) -> Tensor:
    """Outputs in batches of 100: the activations of larger batches of images fit no cache and take three times as long."""
    return torch.as_tensor(outputs(model, FusionInput([], X), batch_size=100))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Get trained base models, and train those that are missing.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("seeds", nargs="+", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = RECIPES[arguments.name].load_data()
    for seed in arguments.seeds:
        model = base_model(arguments.name, seed)
        print(f"{arguments.name}, seed {seed}: {accuracy(logits(model, data.X_test), data.y_test):.2f} %", flush=True)
