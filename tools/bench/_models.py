"""The two networks of the collect benchmark, as task files a job can name."""

TRANSFORMER = '''
import torch
from torch import nn
from torch.nn import functional as F

likelihood = "categorical"
VOCABULARY, WIDTH, HEADS, LAYERS, LENGTH = 256, 384, 6, 6, 128


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        examples, length, _ = x.shape
        q, k, v = self.qkv(self.first(x)).view(examples, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(examples, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """10.8 million weights."""

    def __init__(self):
        super().__init__()
        self.token, self.place = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*[Block() for _ in range(LAYERS)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.token(tokens) + self.place(places))))


def model(checkpoint):
    net = Transformer()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(net, batch):
    tokens = batch["tokens"]
    return net(tokens[:, :-1]), tokens[:, 1:]
'''

RESNET = '''
import torch
from torch import nn

likelihood = "categorical"


def step(before, after, pool=False):
    layers = [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(2)] if pool else []))


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(step(width, width), step(width, width))

    def forward(self, x):
        return x + self.inner(x)


class ResNet9(nn.Module):
    """A ResNet-9-like net for 32x32 images, 6.6 million weights."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            step(3, 64), step(64, 128, pool=True), Residual(128),
            step(128, 256, pool=True), step(256, 512, pool=True), Residual(512),
            nn.MaxPool2d(4), nn.Flatten(), nn.Linear(512, 10),
        )

    def forward(self, x):
        return self.layers(x)


def model(checkpoint):
    net = ResNet9()
    net.load_state_dict(torch.load(checkpoint, weights_only=True))
    return net.eval()


def forward(net, batch):
    return net(batch["image"]), batch["label"]
'''
