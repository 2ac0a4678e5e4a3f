"""Tokenizers and models as transformers saves them, tiny, made here: nothing is downloaded."""

import warnings
from pathlib import Path

import pytest
import torch

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "dogs",
    "ran",
    "home",
    "again",
    "with",
    "bones",
]


def save_tokenizer(folder: Path, kind: str = "words", **special: str):
    """Save a fast tokenizer into ``folder`` and return it: of words, of bytes, or of both ends marked."""
    tokenizers = pytest.importorskip("tokenizers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
    if kind == "bytes":
        made = tokenizers.ByteLevelBPETokenizer()
        made.train_from_iterator([" ".join(WORDS)] * 3, vocab_size=290, show_progress=False)
        made = made._tokenizer
        made.add_special_tokens(["<end>"])
    else:
        names = ["<pad>", "<unk>", "<end>", "<start>", *WORDS]
        vocabulary = {name: number for number, name in enumerate(names)}
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        made.add_special_tokens(["<pad>", "<unk>", "<end>", "<start>"])
    if kind == "marked":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="<start> $A <end>", special_tokens=[("<start>", 3), ("<end>", 2)]
        )
    pads = {"pad_token": "<end>" if kind == "bytes" else "<pad>", "eos_token": "<end>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **(pads | special))
    fast.save_pretrained(folder)
    return fast


def save_causal(folder: Path, vocabulary: int = 17, seed: int = 0, **how):
    """Save a causal language model of one block and return it."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_positions=16, n_embd=8, n_layer=1, n_head=2, eos_token_id=2
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder, **how)
    return model
