"""Networks with attention. The defaults are the published widths; each knows its units, see `tables`."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """Self-attention with queries, keys and values from one linear layer."""

    def __init__(self, width, heads, causal=False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))

    def units(self, t, x):
        qk, v = attention_units(t, self.heads, len(x))
        t.reads(self.qkv, x)
        t.writes(self.qkv, np.concatenate([qk, qk, v]))
        t.layer(self.out, v, to=x)


def attention_units(t, heads, width):
    """A unit of a head's queries is one of its keys; its values are others. Both lie in heads."""
    heads = t.new(heads)
    return t.new(width, heads), t.new(width, heads)


class Block(nn.Module):
    """Attention and two linear layers, each behind a layer norm and beside a shortcut."""

    def __init__(self, width, heads, causal=False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))

    def units(self, t, x):
        t.norm(self.norm1, x)
        self.attention.units(t, x)
        t.norm(self.norm2, x)
        t.layer(self.fc2, t.layer(self.fc1, x), to=x)


class ViT(nn.Module):
    """ViT-B/16 [Dosovitskiy et al. 2021]: a class token, learned positions, twelve blocks."""

    def __init__(self, width=768, heads=12, depth=12, image=224, patch=16, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])

    def units(self, t):
        x = t.layer(self.patches, None)
        t.stand(self.token, 2, x)
        t.stand(self.positions, 2, x)
        for block in self.blocks:
            block.units(t, x)
        t.reads(self.head, t.norm(self.norm, x))


class BERT(nn.Module):
    """BERT base [Devlin et al. 2019] of PyTorch's own encoder layers: post-norm, a mask, a pooler and a classifier."""

    def __init__(self, width=768, heads=12, depth=12, vocabulary=30522, length=512, classes=10):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.segments = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width)
        options = {"activation": "gelu", "batch_first": True}
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(width, heads, 4 * width, **options) for _ in range(depth))
        self.pooler = nn.Linear(width, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, tokens, mask):
        x = (
            self.tokens(tokens)
            + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
            + self.segments(torch.zeros_like(tokens))
        )
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask == 0)
        return self.classifier(torch.tanh(self.pooler(x[:, 0])))

    def units(self, t):
        x = t.new(self.tokens.embedding_dim)
        for table in (self.tokens, self.positions, self.segments):
            t.stand(table.weight, 1, x)
        t.norm(self.norm, x)
        for layer in self.layers:
            attention = layer.self_attn
            qk, v = attention_units(t, attention.num_heads, len(x))
            t.stand(attention.in_proj_weight, 1, x)
            t.stand(attention.in_proj_weight, 0, np.concatenate([qk, qk, v]))
            t.stand(attention.in_proj_bias, 0, np.concatenate([qk, qk, v]))
            t.layer(attention.out_proj, v, to=x)
            t.norm(layer.norm1, x)
            t.layer(layer.linear2, t.layer(layer.linear1, x), to=x)
            t.norm(layer.norm2, x)
        t.reads(self.classifier, t.layer(self.pooler, x))


class GPT(nn.Module):
    """GPT-2 [Radford et al. 2019]: causal, pre-norm, and the logits read the table of tokens."""

    def __init__(self, width=768, heads=12, depth=12, vocabulary=50257, length=1024):
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))

    def units(self, t):
        x = t.new(self.wte.embedding_dim)
        t.stand(self.wte.weight, 1, x)
        t.stand(self.wpe.weight, 1, x)
        for block in self.blocks:
            block.units(t, x)
        t.reads(self.lm_head, t.norm(self.norm, x))


class AttentiveLSTM(nn.Module):
    """An LSTM whose last state attends to its states of all steps [Luong et al. 2015]; a classifier reads both."""

    def __init__(self, embedding=100, hidden=256, vocabulary=20000, classes=10):
        super().__init__()
        self.table = nn.Embedding(vocabulary, embedding)
        self.rnn = nn.LSTM(embedding, hidden, batch_first=True)
        self.fc = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, classes)

    def forward(self, tokens):
        states, (last, _) = self.rnn(self.table(tokens))
        attention = (states @ last[-1].unsqueeze(-1)).softmax(1)
        context = (attention * states).sum(1)
        return self.head(torch.tanh(self.fc(torch.cat([context, last[-1]], 1))))

    def units(self, t):
        x, h = t.new(self.table.embedding_dim), t.new(self.rnn.hidden_size)
        t.stand(self.table.weight, 1, x)
        t.stand(self.rnn.weight_ih_l0, 1, x)
        t.stand(self.rnn.weight_hh_l0, 1, h)
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            t.stand(getattr(self.rnn, name), 0, np.tile(h, 4))
        t.reads(self.head, t.layer(self.fc, np.tile(h, 2)))
