"""Convolutional networks. The defaults are the published widths; each knows its units, see `tables`."""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class VGG11(nn.Module):
    """Eight convolutions, three linear layers [Simonyan and Zisserman 2015], for images of 32 x 32 or multiples."""

    def __init__(self, width=64, norm=False, image=32, classes=10):
        super().__init__()
        channels = [width * f for f in (1, 2, 4, 4, 8, 8, 8, 8)]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise([3, *channels]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(c) if norm else nn.Identity() for c in channels)
        self.pixels, last = (image // 32) ** 2, channels[-1]
        self.classifier = nn.ModuleList([nn.Linear(last * self.pixels, last), nn.Linear(last, last), nn.Linear(last, classes)])

    def forward(self, x):
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x, 2) if i in (0, 1, 3, 5, 7) else x
        x = x.flatten(1)
        for layer in self.classifier[:-1]:
            x = F.dropout(F.relu(layer(x)), 0.5, self.training)
        return self.classifier[-1](x)

    def units(self, t):
        x = None
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = t.layer(conv, x, norm)
        x = np.repeat(x, self.pixels)
        for layer in self.classifier[:-1]:
            x = t.layer(layer, x)
        t.reads(self.classifier[-1], x)


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.down = shortcut(inputs, outputs, stride)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.down is None else self.down(x)))

    def units(self, t, x):
        inner = t.layer(self.conv1, x, self.bn1)
        y = x if self.down is None else t.layer(self.down[0], x, self.down[1])
        return t.layer(self.conv2, inner, self.bn2, to=y)


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut, the middle one in groups in a ResNeXt."""

    def __init__(self, inputs, inner, outputs, stride, groups=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.down = shortcut(inputs, outputs, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.down is None else self.down(x)))

    def units(self, t, x):
        blocks = t.new(self.conv2.groups) if self.conv2.groups > 1 else None
        first = t.layer(self.conv1, x, self.bn1, within=blocks)
        second = t.layer(self.conv2, first, self.bn2, within=blocks)
        y = x if self.down is None else t.layer(self.down[0], x, self.down[1])
        return t.layer(self.conv3, second, self.bn3, to=y)


def shortcut(inputs, outputs, stride):
    """The projection where a shape changes."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """A stem, four stages of residual blocks, a linear layer [He et al. 2016]."""

    def __init__(self, stem, blocks, last, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(last, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))

    def units(self, t):
        x = t.layer(self.conv1, None, self.bn1)
        for block in self.blocks:
            x = block.units(t, x)
        t.reads(self.fc, x)


class ResNet18(ResNet):
    """Two basic blocks a stage."""

    def __init__(self, width=64, classes=10):
        sizes = [width, *(width * 2**s for s in range(4) for _ in range(2))]
        blocks = [BasicBlock(a, b, 2 if b > a else 1) for a, b in itertools.pairwise(sizes)]
        super().__init__(width, blocks, sizes[-1], classes)


class ResNet50(ResNet):
    """3, 4, 6 and 3 bottlenecks; a ResNeXt50 with `groups` of `inner / groups` channels [Xie et al. 2017]."""

    def __init__(self, width=64, inner=None, groups=1, classes=10):
        blocks, inputs = [], width
        for stage, depth in enumerate((3, 4, 6, 3)):
            outputs = 4 * width * 2**stage
            for i in range(depth):
                blocks.append(Bottleneck(inputs, (inner or width) * 2**stage, outputs, 2 if stage and not i else 1, groups))
                inputs = outputs
        super().__init__(width, blocks, inputs, classes)


class ResNeXt50(ResNet50):
    """32 groups of 4 channels in the first stage."""

    def __init__(self, width=64, inner=128, groups=32, classes=10):
        super().__init__(width, inner, groups, classes)


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection without an activation."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        self.expand = nn.Conv2d(inputs, inner, 1, bias=False) if expansion > 1 else None
        self.norm1 = nn.BatchNorm2d(inner) if expansion > 1 else None
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.project = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = x if self.expand is None else F.relu6(self.norm1(self.expand(x)))
        y = self.norm3(self.project(F.relu6(self.norm2(self.depthwise(y)))))
        return x + y if self.residual else y

    def units(self, t, x):
        inner = x if self.expand is None else t.layer(self.expand, x, self.norm1)
        t.norm(self.norm2, t.writes(self.depthwise, inner))
        return t.layer(self.project, inner, self.norm3, to=x if self.residual else None)


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals [Sandler et al. 2018]; `width` is a factor of all channels."""

    def __init__(self, width=1.0, classes=10):
        super().__init__()
        inputs, last = int(32 * width), int(1280 * width)
        self.stem = nn.Conv2d(3, inputs, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(inputs)
        blocks = []
        stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
        for expansion, channels, depth, stride in stages:
            for i in range(depth):
                blocks.append(InvertedResidual(inputs, int(channels * width), 1 if i else stride, expansion))
                inputs = int(channels * width)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(inputs, last, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, classes)

    def forward(self, x):
        x = self.blocks(F.relu6(self.stem_norm(self.stem(x))))
        return self.fc(F.relu6(self.last_norm(self.last(x))).mean((2, 3)))

    def units(self, t):
        x = t.layer(self.stem, None, self.stem_norm)
        for block in self.blocks:
            x = block.units(t, x)
        t.reads(self.fc, t.layer(self.last, x, self.last_norm))


class DenseLayer(nn.Module):
    """Norm, 1 x 1 convolution, norm, 3 x 3 convolution; its output joins its input."""

    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)

    def units(self, t, x):
        inner = t.layer(self.conv1, t.norm(self.norm1, x), self.norm2)
        return np.concatenate([x, t.layer(self.conv2, inner)])


class Transition(nn.Module):
    """Half the channels and half the pixels."""

    def __init__(self, inputs):
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)

    def units(self, t, x):
        return t.layer(self.conv, t.norm(self.norm, x))


class DenseNet121(nn.Module):
    """Four dense blocks of 6, 12, 24 and 16 layers [Huang et al. 2017]."""

    def __init__(self, growth=32, classes=10):
        super().__init__()
        channels = 2 * growth
        self.stem = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        blocks = []
        for depth in (6, 12, 24, 16):
            blocks += [Transition(channels)] if blocks else []
            channels //= 2 if len(blocks) else 1
            for _ in range(depth):
                blocks.append(DenseLayer(channels, growth))
                channels += growth
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 3, 2, 1)
        return self.fc(F.relu(self.norm(self.blocks(x))).mean((2, 3)))

    def units(self, t):
        x = t.layer(self.stem, None, self.stem_norm)
        for block in self.blocks:
            x = block.units(t, x)
        t.reads(self.fc, t.norm(self.norm, x))


class ShuffleUnit(nn.Module):
    """Half of the channels go around three convolutions, then both halves are shuffled; with stride 2 all go both ways."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        half, self.stride = outputs // 2, stride
        into = inputs if stride > 1 else half
        if stride > 1:
            self.depthwise0 = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
            self.norm00 = nn.BatchNorm2d(inputs)
            self.conv0 = nn.Conv2d(inputs, half, 1, bias=False)
            self.norm0 = nn.BatchNorm2d(half)
        self.conv1 = nn.Conv2d(into, half, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.depthwise = nn.Conv2d(half, half, 3, stride, 1, groups=half, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, half, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(half)

    def forward(self, x):
        around, x = x.chunk(2, 1) if self.stride == 1 else (x, x)
        if self.stride > 1:
            around = F.relu(self.norm0(self.conv0(self.norm00(self.depthwise0(around)))))
        x = self.norm2(self.depthwise(F.relu(self.norm1(self.conv1(x)))))
        x = torch.cat([around, F.relu(self.norm3(self.conv3(x)))], 1)
        return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)

    def units(self, t, x):
        around, x = np.split(x, 2) if self.stride == 1 else (x, x)
        if self.stride > 1:
            around = t.layer(self.conv0, t.norm(self.norm00, t.writes(self.depthwise0, around)), self.norm0)
        x = t.layer(self.conv1, x, self.norm1)
        t.norm(self.norm2, t.writes(self.depthwise, x))
        return np.stack([around, t.layer(self.conv3, x, self.norm3)], 1).ravel()


class ShuffleNetV2(nn.Module):
    """Sixteen shuffled units [Ma et al. 2018]; the default is the 1x network."""

    def __init__(self, channels=(24, 116, 232, 464, 1024), classes=10):
        super().__init__()
        inputs, *stages, last = channels
        self.stem = nn.Conv2d(3, inputs, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(inputs)
        blocks = []
        for outputs, depth in zip(stages, (4, 8, 4), strict=True):
            blocks += [ShuffleUnit(outputs if i else inputs, outputs, 1 if i else 2) for i in range(depth)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Conv2d(inputs, last, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 3, 2, 1)
        return self.fc(F.relu(self.last_norm(self.last(self.blocks(x)))).mean((2, 3)))

    def units(self, t):
        x = t.layer(self.stem, None, self.stem_norm)
        for block in self.blocks:
            x = block.units(t, x)
        t.reads(self.fc, t.layer(self.last, x, self.last_norm))


class DoubleConv(nn.Module):
    """Twice a convolution and a norm; `groups` is the number of groups of a group norm, 0 of a batch norm."""

    def __init__(self, inputs, outputs, groups):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, outputs) if groups else nn.BatchNorm2d(outputs)
        self.groups = groups

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))

    def units(self, t, x):
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2)):
            x = t.layer(conv, x, norm, within=t.new(self.groups) if self.groups else None)
        return x


class UNet(nn.Module):
    """Four times down, four times up by transposed convolutions, each with a skip [Ronneberger et al. 2015]."""

    def __init__(self, width=64, groups=0, classes=10):
        super().__init__()
        sizes = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(DoubleConv(a, b, groups) for a, b in itertools.pairwise([3, *sizes]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * c, c, 2, 2) for c in sizes[-2::-1])
        self.join = nn.ModuleList(DoubleConv(2 * c, c, groups) for c in sizes[-2::-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x):
        skips = []
        for level, conv in enumerate(self.down):
            x = conv(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)

    def units(self, t):
        x, skips = None, []
        for conv in self.down:
            x = conv.units(t, x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join.units(t, np.concatenate([skip, t.layer(up, x)]))
        t.reads(self.head, x)


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, then a layer norm and two linear layers, channels last; scaled, and added to its input."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.fc1 = nn.Linear(channels, 4 * channels)
        self.fc2 = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x):
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.fc2(F.gelu(self.fc1(y)))
        return x + y.permute(0, 3, 1, 2)

    def units(self, t, x):
        t.norm(self.norm, t.writes(self.depthwise, x))
        t.layer(self.fc2, t.layer(self.fc1, x), to=x)
        t.stand(self.gamma, 0, x)


class ConvNeXt(nn.Module):
    """ConvNeXt-T [Liu et al. 2022]."""

    def __init__(self, width=96, depths=(3, 3, 9, 3), classes=10):
        super().__init__()
        sizes = [width * 2**stage for stage in range(4)]
        self.reduce = nn.ModuleList(nn.Conv2d(a, b, 2, 2) for a, b in itertools.pairwise([3, *sizes]))
        self.reduce[0] = nn.Conv2d(3, width, 4, 4)
        self.norms = nn.ModuleList(nn.LayerNorm(c, eps=1e-6) for c in [width, *sizes])
        self.stages = nn.ModuleList(
            nn.Sequential(*(ConvNeXtBlock(c) for _ in range(depth))) for c, depth in zip(sizes, depths, strict=True)
        )
        self.fc = nn.Linear(sizes[-1], classes)

    def forward(self, x):
        for i, (reduce, stage) in enumerate(zip(self.reduce, self.stages, strict=True)):
            x = reduce(self.normed(i, x)) if i else self.normed(0, reduce(x))
            x = stage(x)
        return self.fc(self.norms[4](x.mean((2, 3))))

    def normed(self, i, x):
        """A layer norm over the channels of images."""
        return self.norms[i](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def units(self, t):
        x = None
        for i, (reduce, stage) in enumerate(zip(self.reduce, self.stages, strict=True)):
            x = t.layer(reduce, t.norm(self.norms[i], x) if i else None)
            if not i:
                t.norm(self.norms[0], x)
            for block in stage:
                block.units(t, x)
        t.reads(self.fc, t.norm(self.norms[4], x))
