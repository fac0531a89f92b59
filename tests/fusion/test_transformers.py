"""Models of the transformers library with random weights: their groups have the sizes that they should, and copies fuse back."""

import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from architectures import randomised

from sklearn_wbfuse import WassersteinFusion
from sklearn_wbfuse.discovery import Architecture, floating_state, plain_copy
from sklearn_wbfuse.network.groups import relabel

tr = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn_wbfuse.exceptions.FusionWarning")

# All that were tried go through torch.export. Not here all the same:
# FNet mixes its units by a Fourier transform over them, so that its stream can't be permuted.
# LeViT keeps its attention biases in a cache that does not notice when its parameters change.
# XLNet has parameters that its forward does not use.


def tokens(*shape, masked=False):
    """Token sequences, perhaps with a mask that ends each one step before the last."""

    def draw(rng):
        drawn = torch.as_tensor(rng.integers(3, 20, shape))
        lengths = torch.arange(shape[1], 0, -1)[: len(drawn), None]
        return (drawn, (torch.arange(shape[1]) < lengths).long()) if masked else (drawn,)

    return draw


def floats(*shape):
    return lambda rng: (torch.as_tensor(rng.normal(size=shape)),)


@dataclass(frozen=True)
class Case:
    """A model, its inputs, and by hand the sizes of its groups: "3x4" are 3 blocks of 4 units, and the blocks a group "3"."""

    build: Callable
    inputs: Callable
    sizes: dict
    dtype: torch.dtype = torch.float64  # some have masks that double precision can't hold in their softmax

    @functools.cached_property
    def prepared(self):
        """The model with random values, its inputs and its graph."""
        rng = np.random.default_rng(0)
        model, inputs = randomised(self.build(), rng).to(self.dtype), self.inputs(rng)
        inputs = tuple(t.to(self.dtype) if t is not None and t.is_floating_point() else t for t in inputs)
        return model, inputs, Architecture.of(model, inputs).spec


TEXT, MASKED, IMAGE, LARGE = tokens(3, 7), tokens(3, 7, masked=True), floats(2, 3, 32, 32), floats(2, 3, 64, 64)

WIDTHS = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
WORDS = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {**WIDTHS, **WORDS, "max_position_embeddings": 40}
GPT2 = {**WORDS, "n_embd": 12, "n_layer": 2, "n_head": 3, "n_inner": 20, "n_positions": 40, "use_cache": False}
D_MODEL = {**WORDS, "d_model": 12, "use_cache": False}
D_MODEL_OF_MAMBA = {**WORDS, "hidden_size": 12, "use_cache": False}
VIT = {**WIDTHS, "image_size": 32, "patch_size": 8, "num_labels": 5}
LLAMA = {**BERT, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False}
STAGES = {"hidden_sizes": [4, 6, 8, 10], "depths": [1, 1, 2, 1], "num_labels": 5}
SIDE = {"layers": 2, "attention_heads": 3, "ffn_dim": 20}
BART = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in SIDE.items()}
SQUEEZED = ("q", "k", "v", "post_attention", "intermediate", "output")

# Of every layer: the hidden units of its two linear layers, the units of queries and keys, and those of values. Where a model
# returns its stream, as those without a head do, that stays in place; if tokens are read from one table, every stream does.
LAYERS = {"20": 2, "3x4": 4, "3": 2}

CASES = {
    "bert": Case(lambda: tr.BertModel(tr.BertConfig(**BERT)), MASKED, LAYERS),
    "bert_classifier": Case(
        lambda: tr.BertForSequenceClassification(tr.BertConfig(**BERT, num_labels=5)), MASKED, {"12": 2, **LAYERS}
    ),
    "bert_tied": Case(lambda: tr.BertForMaskedLM(tr.BertConfig(**BERT)), MASKED, {"12": 1, **LAYERS}),
    "distilbert": Case(
        lambda: tr.DistilBertForSequenceClassification(
            tr.DistilBertConfig(**WORDS, dim=12, n_layers=2, n_heads=3, hidden_dim=20, max_position_embeddings=40)
        ),
        MASKED,
        {"12": 2, **LAYERS},
    ),
    "roberta": Case(lambda: tr.RobertaForSequenceClassification(tr.RobertaConfig(**BERT)), MASKED, {"12": 2, **LAYERS}),
    # one layer, applied twice
    "albert": Case(
        lambda: tr.AlbertForSequenceClassification(tr.AlbertConfig(**BERT, embedding_size=8)),
        MASKED,
        {"8": 1, "12": 2, "20": 1, "3x4": 2, "3": 1},
    ),
    "electra": Case(
        lambda: tr.ElectraForSequenceClassification(tr.ElectraConfig(**BERT, embedding_size=8)),
        MASKED,
        {"8": 1, "12": 2, **LAYERS},
    ),
    "squeezebert": Case(
        lambda: tr.SqueezeBertForSequenceClassification(
            tr.SqueezeBertConfig(**BERT, embedding_size=12, **{f"{p}_groups": 1 for p in SQUEEZED})
        ),
        MASKED,
        {"12": 2, **LAYERS},
    ),
    # tables of relative positions are another stream
    "deberta_v2": Case(
        lambda: tr.DebertaV2ForSequenceClassification(
            tr.DebertaV2Config(**BERT, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        MASKED,
        {"12": 3, **LAYERS},
    ),
    "mpnet": Case(lambda: tr.MPNetModel(tr.MPNetConfig(**BERT)), MASKED, {"20": 2, "3x4": 4, "3": 1}),
    "gpt2": Case(lambda: tr.GPT2Model(tr.GPT2Config(**GPT2)), TEXT, LAYERS),
    "gpt2_tied": Case(lambda: tr.GPT2LMHeadModel(tr.GPT2Config(**GPT2)), TEXT, {"12": 1, **LAYERS}),
    "gpt_neo": Case(
        lambda: tr.GPTNeoForCausalLM(
            tr.GPTNeoConfig(
                **BERT | {"num_layers": 2, "num_heads": 3, "attention_types": [[["global", "local"], 1]], "use_cache": False}
            )
        ),
        TEXT,
        {"12": 1, **LAYERS},
    ),
    "opt": Case(
        lambda: tr.OPTForCausalLM(tr.OPTConfig(**BERT, word_embed_proj_dim=12, ffn_dim=20, use_cache=False)),
        TEXT,
        {"12": 1, **LAYERS},
    ),
    # each head has a slope of its own: heads stay in place, their units do not
    "bloom": Case(
        lambda: tr.BloomForCausalLM(tr.BloomConfig(**WORDS, hidden_size=12, n_layer=2, n_head=3, use_cache=False)),
        TEXT,
        {"12": 1, "48": 2, "4": 12},
    ),
    # positions turn queries and keys: these stay in place within their heads; two heads share keys and values
    "llama": Case(lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**LLAMA)), TEXT, {"16": 1, "20": 2, "2x4": 2, "2": 2}),
    "mistral": Case(lambda: tr.MistralForCausalLM(tr.MistralConfig(**LLAMA)), TEXT, {"16": 1, "20": 2, "2x4": 2, "2": 2}),
    # positions turn two of the eight units of queries and keys
    "gpt_neox": Case(
        lambda: tr.GPTNeoXForCausalLM(tr.GPTNeoXConfig(**BERT | {"hidden_size": 24, "use_cache": False})),
        TEXT,
        {"24": 1, "20": 2, "3x8": 2, "3x6": 2, "3": 2},
    ),
    # all layers share biases of the heads
    "t5_encoder": Case(
        lambda: tr.T5EncoderModel(tr.T5Config(**WORDS, d_model=12, d_kv=4, d_ff=20, num_layers=2, num_heads=3)),
        TEXT,
        {"20": 2, "3x4": 4, "3": 1},
    ),
    "t5": Case(
        lambda: tr.T5ForConditionalGeneration(tr.T5Config(**D_MODEL, d_kv=4, d_ff=20, num_layers=2, num_heads=3)),
        lambda rng: (*MASKED(rng), *TEXT(rng)),
        {"20": 4, "3x4": 12, "3": 4},
    ),
    "bart": Case(
        lambda: tr.BartModel(tr.BartConfig(**D_MODEL, **BART, max_position_embeddings=40)),
        TEXT,
        {"20": 4, "3x4": 12, "3": 6},
    ),
    # the units of a layer, its states, its step sizes
    "mamba": Case(
        lambda: tr.MambaForCausalLM(
            tr.MambaConfig(**WORDS, hidden_size=20, state_size=4, num_hidden_layers=2, time_step_rank=3, use_cache=False)
        ),
        TEXT,
        {"20": 1, "40": 2, "4": 2, "3": 2},
    ),
    "vit": Case(lambda: tr.ViTForImageClassification(tr.ViTConfig(**VIT)), IMAGE, {"12": 1, **LAYERS}),
    "deit": Case(lambda: tr.DeiTForImageClassification(tr.DeiTConfig(**VIT)), IMAGE, {"12": 1, **LAYERS}),
    "beit": Case(lambda: tr.BeitForImageClassification(tr.BeitConfig(**VIT)), IMAGE, {"12": 1, **LAYERS}),
    "dinov2": Case(
        lambda: tr.Dinov2ForImageClassification(tr.Dinov2Config(**VIT, mlp_ratio=2, use_mask_token=False)),
        IMAGE,
        {"12": 1, "24": 2, "3x4": 4, "3": 2},
    ),
    "clip": Case(lambda: tr.CLIPVisionModel(tr.CLIPVisionConfig(**VIT)), IMAGE, LAYERS),
    # windows of pixels; the second stage reads four pixels of the first at once
    "swin": Case(
        lambda: tr.SwinForImageClassification(
            tr.SwinConfig(image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=4)
        ),
        IMAGE,
        {"8": 1, "16": 1, "32": 2, "64": 2, "2x4": 4, "4x4": 4, "2": 2, "4": 2},
    ),
    # a convolution before the keys and values makes units of its own in all stages but the last
    "segformer": Case(
        lambda: tr.SegformerForImageClassification(
            tr.SegformerConfig(depths=[1] * 4, hidden_sizes=[8, 12, 16, 20], num_attention_heads=[2, 3, 4, 5], num_labels=5)
        ),
        LARGE,
        {"8": 2, "12": 2, "16": 2, "20": 1, "32": 1, "48": 1, "64": 1, "80": 1}
        | {f"{n}x4": 2 for n in (2, 3, 4, 5)}
        | {f"{n}": 1 for n in (2, 3, 4, 5)},
    ),
    "poolformer": Case(
        lambda: tr.PoolFormerForImageClassification(tr.PoolFormerConfig(**STAGES)),
        LARGE,
        {"4": 1, "6": 1, "8": 1, "10": 1, "16": 1, "24": 1, "32": 2, "40": 1},
    ),
    "convnext": Case(
        lambda: tr.ConvNextForImageClassification(tr.ConvNextConfig(**STAGES)),
        LARGE,
        {"4": 1, "6": 1, "8": 1, "10": 1, "16": 1, "24": 1, "32": 2, "40": 1},
    ),
    "convnext_v2": Case(
        lambda: tr.ConvNextV2ForImageClassification(tr.ConvNextV2Config(**STAGES)),
        LARGE,
        {"4": 1, "6": 1, "8": 1, "10": 1, "16": 1, "24": 1, "32": 2, "40": 1},
    ),
    # stem, four stages, and two widths inside of every block
    "resnet": Case(
        lambda: tr.ResNetForImageClassification(
            tr.ResNetConfig(embedding_size=6, hidden_sizes=[8, 12, 16, 20], depths=[2, 1, 1, 1], num_labels=5)
        ),
        LARGE,
        {"6": 1, "8": 1, "12": 1, "16": 1, "20": 1, "2": 4, "3": 2, "4": 2, "5": 2},
    ),
    # the stem, expansions, and what is between them
    "mobilenet_v1": Case(
        lambda: tr.MobileNetV1ForImageClassification(tr.MobileNetV1Config(depth_multiplier=0.125, min_depth=4, num_labels=5)),
        IMAGE,
        {"4": 1, "8": 1, "16": 2, "32": 2, "64": 6, "128": 2},
    ),
    "mobilenet_v2": Case(
        lambda: tr.MobileNetV2ForImageClassification(
            tr.MobileNetV2Config(depth_multiplier=0.25, min_depth=4, depth_divisible_by=4, finegrained_output=False, num_labels=5)
        ),
        IMAGE,
        {"8": 1, "24": 1, "48": 5, "96": 4, "144": 3, "240": 3} | {"4": 1, "8": 3, "16": 1, "24": 2, "40": 1, "80": 1, "320": 1},
    ),
    # the same, and squeezed widths
    "efficientnet": Case(
        lambda: tr.EfficientNetForImageClassification(
            tr.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.3, depth_divisor=4, hidden_dim=320, num_labels=5)
        ),
        LARGE,
        {"1": 1, "2": 2, "3": 1, "4": 1, "5": 1, "7": 1, "8": 2, "12": 3, "20": 1, "24": 1, "28": 1, "48": 2, "72": 1}
        | {"80": 1, "120": 1, "168": 1, "288": 2, "320": 1},
    ),
    # 2, 4 and 3 layers of attention between convolutions
    "mobilevit": Case(
        lambda: tr.MobileViTForImageClassification(
            tr.MobileViTConfig(
                image_size=64,
                hidden_sizes=[12, 16, 20],
                neck_hidden_sizes=[4, 4, 6, 8, 8, 8, 32],
                num_attention_heads=4,
                num_labels=5,
            )
        ),
        LARGE,
        {"4": 10, "6": 1, "8": 12, "12": 1, "16": 3, "20": 1, "24": 5, "32": 7, "40": 3, "4x3": 4, "4x4": 8, "4x5": 6},
    ),
    # groups of four channels; squeezed to a quarter of the channels that a block gets
    "regnet": Case(
        lambda: tr.RegNetForImageClassification(
            tr.RegNetConfig(embedding_size=24, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], groups_width=4, num_labels=5)
        ),
        LARGE,
        {"24": 1, "8": 1, "12": 1, "16": 1, "20": 1, "2x4": 2, "3x4": 2, "4x4": 4, "5x4": 2}
        | {"6": 1, "2": 2, "3": 2, "4": 4, "5": 1},
    ),
    "wav2vec2": Case(
        lambda: tr.Wav2Vec2ForSequenceClassification(
            tr.Wav2Vec2Config(
                **WIDTHS,
                conv_dim=(6, 7, 8),
                conv_stride=(5, 2, 2),
                conv_kernel=(10, 3, 3),
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=2,
                mask_time_prob=0.0,
                classifier_proj_size=9,
            )
        ),
        floats(2, 400),
        {"6": 1, "7": 1, "8": 1, "9": 1, "2x6": 1, "2": 1, "20": 2, "3x4": 4, "3": 2},
    ),
    "whisper_encoder": Case(
        lambda: tr.WhisperForAudioClassification(
            tr.WhisperConfig(**WORDS, **{**BART, "d_model": 12}, num_mel_bins=8, max_source_positions=10, classifier_proj_size=9)
        ),
        floats(2, 8, 20),
        {"12": 2, "9": 1, **LAYERS},
    ),
    # the encoder and the decoder return their streams
    "whisper": Case(
        lambda: tr.WhisperModel(
            tr.WhisperConfig(
                **WORDS,
                **{**BART, "d_model": 12},
                num_mel_bins=8,
                max_source_positions=10,
                max_target_positions=30,
                use_cache=False,
            )
        ),
        lambda rng: (*floats(2, 8, 20)(rng), None, *tokens(2, 7)(rng)),
        {"12": 1, "20": 4, "3x4": 12, "3": 6},
    ),
    # relative positions are picked from their table by constants
    "deberta": Case(
        lambda: tr.DebertaForSequenceClassification(
            tr.DebertaConfig(**BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], max_relative_positions=8)
        ),
        MASKED,
        {"12": 2, **LAYERS},
    ),
    # of a selective state space, heads have numbers of their own and stay; the units within them move
    "mamba2": Case(
        lambda: tr.Mamba2ForCausalLM(
            tr.Mamba2Config(
                **D_MODEL_OF_MAMBA, num_hidden_layers=1, num_heads=3, head_dim=8, state_size=4, n_groups=1, chunk_size=4, expand=2
            )
        ),
        TEXT,
        {"12": 1, "1x8": 3, "1": 3, "4": 1},
    ),
    # a scale for each dimension of a head, the same in all heads: queries and keys move with their head
    "timesfm": Case(
        lambda: tr.TimesFmModel(
            tr.TimesFmConfig(
                **{**WIDTHS, "num_hidden_layers": 1}, patch_length=4, context_length=16, horizon_length=4, head_dim=4, freq_size=2
            )
        ),
        lambda rng: (*floats(2, 16)(rng), torch.zeros(2, 16, dtype=torch.long), torch.zeros(2, 1, dtype=torch.long)),
        {"20": 2, "3": 1, "3x4": 1},
        torch.float32,
    ),
    "canine": Case(
        lambda: tr.CanineModel(
            tr.CanineConfig(
                **BERT, num_hash_functions=2, num_hash_buckets=16, local_transformer_stride=4, upsampling_kernel_size=2
            )
        ),
        tokens(2, 16),
        {"20": 4, "3x4": 8, "3": 4},
        torch.float32,
    ),
    # half of the dimensions of queries and keys are turned, which stay in order within their head
    "phi": Case(
        lambda: tr.PhiForCausalLM(tr.PhiConfig(**{**BERT, "hidden_size": 24}, partial_rotary_factor=0.5, use_cache=False)),
        TEXT,
        {"24": 1, "3": 2, "3x1": 2, "3x4": 2, "3x8": 2, "20": 2},
    ),
}


QUICK = "bert_classifier gpt2_tied vit convnext resnet llama t5_encoder wav2vec2".split()


@pytest.fixture(params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES])
def case(request):
    return CASES[request.param]


def sizes(spec):
    """How many groups there are of each size."""
    blocks = {n: spec.sizes[g.block_group] for n, g in spec.groups.items() if g.block_group is not None}
    return Counter(f"{blocks[n]}x{g.size // blocks[n]}" if n in blocks else f"{g.size}" for n, g in spec.groups.items())


def units(size):
    """The number of units of a group: "3x4" are twelve."""
    return int(np.prod([int(n) for n in size.split("x")]))


def leaves(output):
    return torch.cat([t.flatten() for t in torch.utils._pytree.tree_leaves(output) if isinstance(t, torch.Tensor)])


def test_groups_have_the_sizes_of_the_architecture(case):
    discovered_sizes = sizes(case.prepared[2])
    covered = sum(units(size) * min(discovered_sizes[size], count) for size, count in case.sizes.items())
    assert covered >= 0.95 * sum(units(size) * count for size, count in case.sizes.items()), discovered_sizes


def test_a_permuted_copy_fuses_back(case):
    model, inputs, spec = case.prepared
    order = spec.orders(np.random.default_rng(1).permutation)
    twin = plain_copy(model)
    twin.load_state_dict({n: relabel(t, spec.tensors[n], order, {}) for n, t in floating_state(twin).items()}, strict=False)
    fused = WassersteinFusion(example_inputs=inputs, correction=None).fit([model, twin]).fused_model_
    with torch.no_grad():
        expected = leaves(model(*inputs))
        tol = 1e-6 if case.dtype == torch.float64 else 1e-3
        assert (leaves(fused(*inputs)) - expected).abs().max() < tol * expected.abs().max()


ONE = {"num_hidden_layers": 1, "num_labels": 5}
WIDER = {
    "bert": (
        lambda width=20: tr.BertForSequenceClassification(tr.BertConfig(**BERT | ONE | {"intermediate_size": width})),
        MASKED,
        {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6},
    ),
    "vit": (
        lambda: tr.ViTForImageClassification(tr.ViTConfig(**VIT | ONE)),
        IMAGE,
        {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 6},
    ),
    "llama": (
        lambda: tr.LlamaForCausalLM(tr.LlamaConfig(**LLAMA | ONE)),
        TEXT,
        {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4},
    ),
    "t5": (
        lambda: tr.T5EncoderModel(tr.T5Config(**WORDS, d_model=12, d_kv=4, d_ff=20, num_layers=1, num_heads=3)),
        TEXT,
        {"d_model": 12, "d_kv": 4, "d_ff": 40, "num_heads": 6},
    ),
}


def fused_wider(models, draw, widths):
    """A fusion into other widths, its inputs, and what its network computes."""
    inputs = tuple(t.float() if t.is_floating_point() else t for t in draw(np.random.default_rng(0)))
    fusion = WassersteinFusion(widths, random_state=0, example_inputs=inputs, correction=None).fit([m.eval() for m in models])
    with torch.no_grad():
        return fusion, inputs, leaves(fusion.fused_model_(*inputs))


def assert_comes_back(model, inputs, expected, folder):
    model.save_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(leaves(type(model).from_pretrained(folder).eval()(*inputs)), expected)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "bert" else pytest.mark.slow) for n in WIDER])
def test_configurations_follow_the_widths(name, tmp_path):
    build, draw, wanted = WIDER[name]
    model = build()
    before = model.config.to_dict()
    fusion, inputs, expected = fused_wider([model], draw, 2.0)
    assert {field: getattr(fusion.fused_model_.config, field) for field in wanted} == wanted
    assert model.config.to_dict() == before
    assert_comes_back(fusion.fused_model_, inputs, expected, tmp_path)


@pytest.mark.slow
def test_the_configuration_is_that_of_the_wider_parent(tmp_path):
    build, draw, _ = WIDER["bert"]
    fusion, inputs, expected = fused_wider([build(18), build(22)], draw, None)
    assert fusion.fused_model_.config.intermediate_size == 22
    assert_comes_back(fusion.fused_model_, inputs, expected, tmp_path)
