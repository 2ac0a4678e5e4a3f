"""The task: a classifier of texts as transformers saves it.

Written by `streamfluence init --hf`; change what your training did otherwise.
"""

from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

BASE = ""  # folder of the model that the checkpoint is an adapter of; empty if it is none
TRUST_REMOTE_CODE = False  # whether Python files in the model's folder may run
LABEL = "label"  # field of the class: a number, or a name that the model's config has
PADDING = 0  # token that a classifier without one of its own takes for padding

likelihood = "categorical"  # "bernoulli" for several classes at once, "gaussian" for a number


def model(checkpoint: str) -> torch.nn.Module:
    """Return the model; of an adapter only the adapter's weights have a gradient."""
    net = AutoModelForSequenceClassification.from_pretrained(
        Path(__file__).parent / BASE if BASE else checkpoint,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=TRUST_REMOTE_CODE,
    )
    if net.config.pad_token_id is None:
        net.config.pad_token_id = PADDING
    if BASE:
        from peft import PeftModel

        net = PeftModel.from_pretrained(net, checkpoint, is_trainable=True)
    return net.float().eval()


def forward(net: torch.nn.Module, batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (logits, targets) of a batch."""
    longest = int(batch["attention_mask"].sum(1).max())  # the rest is padding
    tokens, mask = (batch[name][:, :longest] for name in ("input_ids", "attention_mask"))
    logits, labels = net(input_ids=tokens, attention_mask=mask).logits, batch[LABEL]
    if not isinstance(labels, torch.Tensor):  # names of classes
        numbers = [net.config.label2id[name] for name in labels]
        labels = torch.tensor(numbers, device=logits.device)
    if likelihood == "categorical":
        return logits, labels
    return logits, labels.to(logits.dtype).reshape(logits.shape)
