"""Per-example gradients of models of the transformers library, small and with random weights."""

import warnings

import pytest
import torch
from per_example import assert_exact
from torch import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")

B, LENGTH, VOCABULARY = 4, 6, 19
SMALL = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
ROTARY = {**SMALL, "vocab_size": VOCABULARY, "num_key_value_heads": 1}
ENCODER = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 16}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def tokens(length=LENGTH):
    return torch.randint(0, VOCABULARY, (B, length))


def padded():
    mask = torch.ones(B, LENGTH, dtype=torch.long)
    mask[0, 4:] = 0
    return {"input_ids": tokens(), "attention_mask": mask}


def gpt2():
    return transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=8, n_embd=8, n_layer=2, n_head=2
    )


MODELS = {
    "GPT2LMHeadModel": (gpt2, padded),
    "BertForMaskedLM": (
        lambda: transformers.BertConfig(num_hidden_layers=2, **ENCODER),
        padded,
    ),
    "LlamaForCausalLM": (
        lambda: transformers.LlamaConfig(num_hidden_layers=2, **ROTARY),
        lambda: {"input_ids": tokens(), "use_cache": False},
    ),
    "MixtralForCausalLM": (
        lambda: transformers.MixtralConfig(
            num_hidden_layers=1, num_local_experts=3, num_experts_per_tok=2, **ROTARY
        ),
        lambda: {"input_ids": tokens(), "use_cache": False},
    ),
    "ViTForImageClassification": (
        lambda: transformers.ViTConfig(num_hidden_layers=2, image_size=8, patch_size=4, **SMALL),
        lambda: {"pixel_values": torch.randn(B, 3, 8, 8)},
    ),
    "DebertaV2ForSequenceClassification": (
        lambda: transformers.DebertaV2Config(
            num_hidden_layers=1, relative_attention=True, pos_att_type=["p2c", "c2p"], **ENCODER
        ),
        padded,
    ),
    "T5ForConditionalGeneration": (
        lambda: transformers.T5Config(
            vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_heads=2
        ),
        lambda: {"input_ids": tokens(), "decoder_input_ids": tokens(4), "use_cache": False},
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_captured_exactly(name):
    config, inputs = MODELS[name]
    model = getattr(transformers, name)(config())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    batch = inputs()
    options = {key: batch.pop(key) for key in ("use_cache",) if key in batch}
    _, _, left_out = assert_exact(model, batch, run=lambda m, b: m(**b, **options).logits)
    assert not left_out


@pytest.mark.filterwarnings("ignore")
def test_the_transposed_layers_of_gpt2_have_a_rule_and_the_tied_table_one_block():
    model = transformers.GPT2LMHeadModel(gpt2())
    capture, _, _ = assert_exact(model, padded(), run=lambda m, b: m(**b).logits)
    assert not any("run again" in said for said in capture.announcements)
    tied = [b for b in capture.blocks if "transformer.wte.weight" in b.parameters]
    assert len(tied) == 1 and (tied[0].left, tied[0].right) == (VOCABULARY, 8)
