"""Published architectures in plain PyTorch, each with a table of its neuron groups that is written by hand.

`FIXTURES` holds them in small widths for tests; without options, ``fixture.kind()`` has the published ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .attention import BERT, GPT, AttentiveLSTM, ViT
from .convnets import VGG11, ConvNeXt, DenseNet121, MobileNetV2, ResNet18, ResNet50, ResNeXt50, ShuffleNetV2, UNet
from .several import Siamese, TwoInputs
from .tables import Table, Units

__all__ = ["FIXTURES", "Fixture", "Table", "Units", "randomised"]


@dataclass(frozen=True)
class Fixture:
    """An architecture, the options that make it small, and the shapes of its inputs: tokens where `vocabulary` is given."""

    kind: Callable
    options: dict
    shapes: tuple = ((3, 3, 32, 32),)
    vocabulary: int = 0
    masked: bool = False

    def build(self, seed=0):
        """The small network in double precision with random values everywhere, its table and its inputs."""
        rng = np.random.default_rng(seed)
        vocabulary = {"vocabulary": self.vocabulary} if self.vocabulary else {}
        network = randomised(self.kind(**self.options, **vocabulary), rng)
        return network, Table(network), self.inputs(rng)

    def inputs(self, rng):
        """Random images, vectors or tokens, these perhaps with a mask that is zero where a sequence has ended."""
        if not self.vocabulary:
            return tuple(torch.as_tensor(rng.normal(size=shape)) for shape in self.shapes)
        tokens = torch.as_tensor(rng.integers(0, self.vocabulary, self.shapes[0]))
        lengths = torch.arange(tokens.shape[1], 0, -1)[: len(tokens), None]
        return (tokens, (torch.arange(tokens.shape[1]) < lengths).long()) if self.masked else (tokens,)


def randomised(network, rng):
    """The network in double precision and eval mode with random values in every parameter and buffer of floats."""
    network = network.double().eval()
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            positive = name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight"))  # of a norm
            std = (2 / np.prod(tensor.shape[1:])) ** 0.5 if tensor.dim() > 1 else 0.3
            drawn = rng.uniform(0.5, 1.5, tensor.shape) if positive else rng.normal(0, std, tensor.shape)
            tensor.copy_(torch.as_tensor(drawn))
    return network


TEXT = {"shapes": ((3, 7),), "vocabulary": 11}

FIXTURES = {
    "vgg11": Fixture(VGG11, {"width": 3}),
    "vgg11_bn": Fixture(VGG11, {"width": 3, "norm": True, "image": 64}, ((2, 3, 64, 64),)),
    "resnet18": Fixture(ResNet18, {"width": 4}),
    "resnet50": Fixture(ResNet50, {"width": 3}),
    "resnext50": Fixture(ResNeXt50, {"width": 3, "inner": 8, "groups": 4}),
    "mobilenet_v2": Fixture(MobileNetV2, {"width": 1 / 8}),
    "densenet121": Fixture(DenseNet121, {"growth": 4}),
    "shufflenet_v2": Fixture(ShuffleNetV2, {"channels": (8, 24, 48, 96, 16)}),
    "unet": Fixture(UNet, {"width": 3}),
    "unet_group_norm": Fixture(UNet, {"width": 6, "groups": 2}),
    "convnext": Fixture(ConvNeXt, {"width": 4}, ((2, 3, 64, 64),)),
    "vit": Fixture(ViT, {"width": 12, "heads": 3, "image": 32, "patch": 8}),
    "bert": Fixture(BERT, {"width": 12, "heads": 3, "length": 9}, **TEXT, masked=True),
    "gpt": Fixture(GPT, {"width": 12, "heads": 3, "length": 9}, **TEXT),
    "attentive_lstm": Fixture(AttentiveLSTM, {"embedding": 6, "hidden": 8}, **TEXT),
    "siamese": Fixture(Siamese, {"width": 3}, ((3, 1, 28, 28), (3, 1, 28, 28))),
    "two_inputs": Fixture(TwoInputs, {"width": 4}, ((3, 3, 8, 8), (3, 7))),
}
