"""Reference networks: perceptrons, VGG11, ResNet20, and recurrent classifiers of sequences and of text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MLP", "VGG11", "MLPNet", "RecurrentNet", "ResNet20", "TextNet"]


class MLP(nn.Module):
    """Linear layers with ReLUs between them; its parameters are ``layers.0.weight``, ``layers.0.bias`` and so on.

    Parameters
    ----------
    widths : sequence of int
        The widths of all layers, from the inputs to the outputs.
    bias : bool

    Examples
    --------
    >>> import torch
    >>> MLP([64, 32, 10])(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, widths: Sequence[int], bias: bool = True):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs, bias=bias) for inputs, outputs in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, widths[-1]); inputs of any shape are flattened."""
        x = x.flatten(1)
        for i, layer in enumerate(self.layers):
            x = layer(F.relu(x) if i else x)
        return x


class MLPNet(MLP):
    """The perceptron 784-400-200-100-10 for MNIST.

    Parameters
    ----------
    bias : bool
    """

    def __init__(self, bias: bool = True):
        super().__init__((784, 400, 200, 100, 10), bias)


_CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class RecurrentNet(nn.Module):
    """One recurrent layer and a linear classifier of its last state; its parameters are ``rnn.weight_ih_l0``, ..., ``fc.bias``.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru"}
        "rnn" is the Elman network with tanh.
    inputs, hidden, classes : int

    Examples
    --------
    >>> import torch
    >>> RecurrentNet("gru", 8, 16)(torch.zeros(5, 8, 8)).shape
    torch.Size([5, 10])
    """

    def __init__(self, cell: str = "rnn", inputs: int = 28, hidden: int = 256, classes: int = 10):
        super().__init__()
        self.rnn = _CELLS[cell](inputs, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of sequences (n, steps, inputs), or of images (n, 1, rows, columns), read row by row."""
        states, _ = self.rnn(x.squeeze(1) if x.dim() == 4 else x)
        return self.fc(states[:, -1])


class TextNet(nn.Module):
    """A frozen embedding, one recurrent layer and a linear classifier of its last state.

    Its parameters are ``embed.weight``, ``rnn.weight_ih_l0``, ..., ``fc.bias``.

    Parameters
    ----------
    cell : {"rnn", "lstm", "gru"}
        "rnn" is the Elman network with tanh.
    embedding : Tensor of shape (vocabulary, dim)
        Values of the embedding, which are copied.
    hidden, classes : int

    Examples
    --------
    >>> import torch
    >>> TextNet("lstm", torch.randn(30, 8), 16)(torch.randint(30, (5, 12))).shape
    torch.Size([5, 2])
    """

    def __init__(self, cell: str, embedding: Tensor, hidden: int = 256, classes: int = 2):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(embedding.clone(), freeze=True)
        self.rnn = _CELLS[cell](embedding.shape[1], hidden, batch_first=True)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, classes) for tokens of shape (n, steps)."""
        states, _ = self.rnn(self.embed(x))
        return self.fc(states[:, -1])


class VGG11(nn.Sequential):
    """VGG11 without batch norm for images of 32 x 32 pixels, with a single linear layer at the end.

    Parameters
    ----------
    width : float
        Factor for the numbers of channels, which are 64 to 512 for the factor 1.
    """

    def __init__(self, width: float = 1.0):
        layers: list[nn.Module] = []
        inputs = 3
        for stage in [(64,), (128,), (256, 256), (512, 512), (512, 512)]:
            for channels in stage:
                outputs = int(channels * width)
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.Flatten(), nn.Linear(inputs, 10))


class ResNet20(nn.Module):
    """ResNet20 for images of 32 x 32 pixels: nine residual blocks of 16, 32 and 64 channels.

    Shortcuts are projections where the shape changes.

    Parameters
    ----------
    width : int
        Factor for the numbers of channels.
    """

    def __init__(self, width: int = 1):
        super().__init__()
        inputs = 16 * width
        self.c = nn.Conv2d(3, inputs, 3, padding=1, bias=False)
        self.b = nn.BatchNorm2d(inputs)
        blocks: list[nn.Module] = []
        for channels in (16, 32, 64):
            for _ in range(3):
                stride = 2 if inputs < channels * width else 1
                blocks.append(_Residual(inputs, channels * width, stride))
                inputs = channels * width
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of shape (n, 10) for images of shape (n, 3, 32, 32)."""
        x = self.blocks(F.relu(self.b(self.c(x))))
        return self.fc(x.mean(dim=(2, 3)))


class _Residual(nn.Module):
    """Two convolutions and a shortcut `sc` around them."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.c1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.b1 = nn.BatchNorm2d(outputs)
        self.c2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.b2 = nn.BatchNorm2d(outputs)
        self.sc = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.sc = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.b1(self.c1(x)))
        return F.relu(self.b2(self.c2(inner)) + self.sc(x))
