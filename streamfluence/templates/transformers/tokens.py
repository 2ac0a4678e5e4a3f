"""The task: a classifier of tokens as transformers saves it.

Written by `streamfluence init --hf`; change what your training did otherwise. The data hold
`input_ids` and `labels`, one class a token, -100 where a token has none.
"""

from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification

BASE = ""  # folder of the model that the checkpoint is an adapter of; empty if it is none
TRUST_REMOTE_CODE = False  # whether Python files in the model's folder may run

likelihood = "categorical"
reduction = "mean"  # over the tokens of an example; "sum" if training added them up
ignore_index = -100


def model(checkpoint: str) -> torch.nn.Module:
    """Return the model; of an adapter only the adapter's weights have a gradient."""
    net = AutoModelForTokenClassification.from_pretrained(
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
    """Return (logits, targets) of a batch."""
    longest = int(batch["attention_mask"].sum(1).max())  # the rest is padding
    tokens, mask, labels = (
        batch[name][:, :longest] for name in ("input_ids", "attention_mask", "labels")
    )
    return net(input_ids=tokens, attention_mask=mask).logits, labels
