"""``nn.Embedding``: one-hot left sides, kept as indices."""

from torch import Tensor, nn

from streamfluence.capture._indexed import Indexed
from streamfluence.capture._rule import Layer, Rule, in_gradient_precision, own_forward
from streamfluence.capture.base import Use


class Embedding(Rule):
    """Left is the vocabulary; the padding index has no gradient, as in torch."""

    def accepts(self, module: nn.Module) -> bool:
        return own_forward(module, nn.Embedding)

    def refusal(self, module: Layer) -> str | None:
        asked = ["scale_grad_by_freq"] if module.scale_grad_by_freq else []
        asked += ["max_norm"] if module.max_norm is not None else []
        if not asked:
            return None
        return (
            f"the embedding has {' and '.join(asked)} set, which makes its gradient dependent on "
            "the rest of the batch; load the weights into an embedding without it"
        )

    def axes(self, module: Layer, dimensions: int) -> range:
        return range(dimensions)

    def shape(self, module: Layer) -> tuple[int, int, int]:
        return 1, *module.weight.shape

    def weight(self, module: Layer, inputs: Tensor, gradient: Tensor, bias: bool) -> Use:
        index = inputs.reshape(inputs.shape[0], -1).long()
        right = in_gradient_precision(gradient.reshape(*index.shape, gradient.shape[-1]))
        if module.padding_idx is not None:
            right = right.masked_fill((index == module.padding_idx).unsqueeze(-1), 0.0)
        return Indexed(index, right)
