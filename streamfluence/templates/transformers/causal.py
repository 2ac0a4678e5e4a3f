"""The task: a causal language model as transformers saves it.

Written by `streamfluence init --hf`; change what your training did otherwise.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

BASE = ""  # folder of the model that the checkpoint is an adapter of; empty if it is none
TRUST_REMOTE_CODE = False  # whether Python files in the model's folder may run

likelihood = "categorical"
reduction = "mean"  # over the tokens of an example; "sum" if training added them up
ignore_index = -100  # of padding, and of prompts


def model(checkpoint: str) -> torch.nn.Module:
    """Return the model; of an adapter only the adapter's weights have a gradient."""
    net = AutoModelForCausalLM.from_pretrained(
        Path(__file__).parent / BASE if BASE else checkpoint,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=TRUST_REMOTE_CODE,
    )
    if BASE:
        from peft import PeftModel

        net = PeftModel.from_pretrained(net, checkpoint, is_trainable=True)
    return net.float().eval()


def forward(net: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits, targets): every token is predicted from those before it."""
    longest = max(int(batch["attention_mask"].sum(1).max()), 2)  # the rest is padding
    tokens, mask, labels = (
        batch[name][:, :longest] for name in ("input_ids", "attention_mask", "labels")
    )
    logits = net(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return logits[:, :-1], labels[:, 1:]
