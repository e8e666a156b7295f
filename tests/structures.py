"""Small networks, one for each structure in which the layers of published models are put together.

Each is written for the order of its layers and for how these are connected, and not to learn anything. Images have 3
channels, and 16 × 16 pixels where a network counts them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import TransformerBlock

CLASSES = 4
WIDTH = 8
SIZE = 16


def conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution '0' and its norm '1'."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def mlp(width: int, hidden: int) -> nn.Sequential:
    """Linear '0', GELU '1', linear '2'."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def patches_of(convolution: nn.Module, x: Tensor) -> Tensor:
    return convolution(x).flatten(2).transpose(1, 2)


# --- images: no attention


class MixerBlock(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.tokens = mlp(tokens, 6)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.channels = mlp(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Two MLPs in turns: one over the patches, one over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock((SIZE // 4) ** 2) for _ in range(2)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(patches_of(self.stem, x))).mean(1))


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def conv_mixer() -> nn.Sequential:
    """Depthwise and pointwise convolutions in turns, the norm behind the activation."""

    def block() -> nn.Sequential:
        depthwise = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH), nn.GELU(), nn.BatchNorm2d(WIDTH))
        return nn.Sequential(Residual(depthwise), nn.Conv2d(WIDTH, WIDTH, 1), nn.GELU(), nn.BatchNorm2d(WIDTH))

    stem = nn.Sequential(nn.Conv2d(3, WIDTH, 4, 4), nn.GELU(), nn.BatchNorm2d(WIDTH))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES))
    return nn.Sequential(stem, block(), block(), head)


class StandardisedConv(nn.Conv2d):
    """The weight is standardised in each pass, and scaled by a gain of as many dimensions."""

    def __init__(self, inputs: int, outputs: int, size: int = 3) -> None:
        super().__init__(inputs, outputs, size, padding=size // 2)
        self.gain = nn.Parameter(torch.ones(outputs, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * (variance + 1e-5).rsqrt() * self.gain
        return F.conv2d(x, weight, self.bias, padding=self.padding)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, 2, 1)
        self.expand = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class NormFreeBlock(nn.Module):
    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        self.skip_gain = nn.Parameter(torch.ones(()))
        self.conv1 = StandardisedConv(WIDTH, WIDTH)
        self.conv2 = StandardisedConv(WIDTH, WIDTH)
        self.se = SqueezeExcite(WIDTH)
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.conv2(F.silu(self.conv1(F.silu(x)))))
        return x + self.alpha * self.skip_gain * y


class NormFree(nn.Module):
    """Without norms; each residual branch is scaled by a number that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = StandardisedConv(3, WIDTH)
        self.blocks = nn.Sequential(NormFreeBlock(), NormFreeBlock())
        self.final = StandardisedConv(WIDTH, 12, 1)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.silu(self.final(self.blocks(self.stem(x)))).mean((2, 3)))


class PoolBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, WIDTH)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.scale1 = nn.Parameter(torch.ones(WIDTH))
        self.norm2 = nn.GroupNorm(1, WIDTH)
        self.fc1 = nn.Conv2d(WIDTH, 12, 1)
        self.fc2 = nn.Conv2d(12, WIDTH, 1)
        self.scale2 = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.scale1[:, None, None] * (self.pool(y) - y)
        return x + self.scale2[:, None, None] * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PoolNet(nn.Module):
    """Mixes the patches by a pooling that has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 7, 4, 2)
        self.stages = nn.ModuleList([nn.Sequential(PoolBlock()), nn.Sequential(PoolBlock())])
        self.downsample = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        self.norm = nn.GroupNorm(1, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[1](self.downsample(self.stages[0](self.stem(x))))
        return self.head(self.norm(x).mean((2, 3)))


class PartialDenseBlock(nn.Module):
    """One part of the channels goes through dense layers, the other one around them."""

    def __init__(self) -> None:
        super().__init__()
        self.part1 = conv_bn(WIDTH, 4, 1)
        self.part2 = conv_bn(WIDTH, 4, 1)
        self.dense = nn.ModuleList([conv_bn(4, 4), conv_bn(8, 4)])
        self.transition = conv_bn(12, 4, 1)
        self.merge = conv_bn(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.part1(x).relu(), self.part2(x).relu()
        for layer in self.dense:
            through = torch.cat([through, layer(through).relu()], 1)
        return self.merge(torch.cat([self.transition(through).relu(), around], 1)).relu()


class PartialDenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, WIDTH, 3, 2)
        self.blocks = nn.Sequential(PartialDenseBlock(), PartialDenseBlock())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class ResponseNorm(nn.Module):
    """Scales each channel by its share of the response; its parameters have the dimensions of an image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        response = x.norm(p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * response / (response.mean(-1, keepdim=True) + 1e-6)) + self.beta + x


class ResponseNormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(WIDTH, WIDTH, 7, padding=3, groups=WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.expand = nn.Linear(WIDTH, 16)
        self.grn = ResponseNorm(16)
        self.project = nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return x + self.project(self.grn(F.gelu(self.expand(y)))).permute(0, 3, 1, 2)


class ResponseNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(ResponseNormBlock(), ResponseNormBlock())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class Ghost(nn.Module):
    """Half of the channels are made from the other half by a cheap convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.primary = conv_bn(inputs, outputs // 2, 1)
        self.cheap = conv_bn(outputs // 2, outputs // 2, 3, groups=outputs // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x).relu()
        return torch.cat([x, self.cheap(x).relu()], 1)


class GhostBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shortcut = conv_bn(WIDTH, WIDTH, 1)
        self.ghost1 = Ghost(WIDTH, 16)
        self.se = SqueezeExcite(16)
        self.ghost2 = Ghost(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.ghost2(self.se(self.ghost1(x))) + self.shortcut(x)


class GhostNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, WIDTH, 3, 2)
        self.blocks = nn.Sequential(GhostBlock(), GhostBlock())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class ThreeBranches(nn.Module):
    """Two convolutions and a mere norm, side by side, which are one convolution when training is over."""

    def __init__(self) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(WIDTH)
        self.conv3 = conv_bn(WIDTH, WIDTH, 3)
        self.conv1 = conv_bn(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv3(x) + self.conv1(x) + self.identity(x)).relu()


class BranchNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, WIDTH, 3, 2)
        self.blocks = nn.Sequential(ThreeBranches(), ThreeBranches())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))


class Pyramid(nn.Module):
    """Classifies what each of three scales shows, coarsest first, with one classifier for all."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(WIDTH, CLASSES)
        self.smooth = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(3))
        self.lateral = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(3))
        self.stages = nn.ModuleList(conv_bn(WIDTH if index else 3, WIDTH, 3, 2) for index in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        scales: list[Tensor] = []
        for stage in self.stages:
            x = stage(x).relu()
            scales.append(x)
        top, outputs = self.lateral[2](scales[2]), []
        for index in (2, 1, 0):
            if index < 2:
                top = self.lateral[index](scales[index]) + F.interpolate(top, scale_factor=2.0)
            outputs.append(self.classifier(self.smooth[index](top).mean((2, 3))))
        return outputs


class UNet(nn.Module):
    """Down and up again, with what was seen on the way down; one class for each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = conv_bn(3, WIDTH)
        self.down2 = conv_bn(WIDTH, WIDTH)
        self.middle = conv_bn(WIDTH, WIDTH)
        self.up1 = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
        self.up2 = nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2)
        self.merge1 = conv_bn(2 * WIDTH, WIDTH)
        self.merge2 = conv_bn(2 * WIDTH, WIDTH)
        self.classifier = nn.Conv2d(WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x).relu()
        coarse = self.down2(F.max_pool2d(fine, 2)).relu()
        x = self.middle(F.max_pool2d(coarse, 2)).relu()
        x = self.merge2(torch.cat([self.up2(x), coarse], 1)).relu()
        x = self.merge1(torch.cat([self.up1(x), fine], 1)).relu()
        return self.classifier(x)


# --- images: attention


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Of heads, written out."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1) @ v


def heads_of(x: Tensor, heads: int = 2) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(heads_of, self.qkv(x).chunk(3, -1))
        return self.proj(joined(attention(q, k, v)))


class ScaledBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma1 = nn.Parameter(torch.full((WIDTH,), 1e-4))
        self.gamma2 = nn.Parameter(torch.full((WIDTH,), 1e-4))
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = mlp(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        return x + self.gamma2 * self.mlp(self.norm2(x))


class DistilledTransformer(nn.Module):
    """A class token and one of a teacher, with a head each; residual branches are scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // 4) ** 2 + 2, WIDTH))
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(ScaledBlock(), ScaledBlock())
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.head_dist = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = patches_of(self.stem, x)
        tokens = [self.cls_token.expand(len(x), -1, -1), self.dist_token.expand(len(x), -1, -1)]
        x = self.norm(self.blocks(torch.cat([*tokens, x], 1) + self.pos_embed))
        return self.head(x[:, 0]), self.head_dist(x[:, 1])


class RelativeAttention(nn.Module):
    """Positions are a bias of the scores; the keys have no bias of their own."""

    def __init__(self) -> None:
        super().__init__()
        tokens = (SIZE // 4) ** 2
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(WIDTH))
        self.v_bias = nn.Parameter(torch.zeros(WIDTH))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2 * tokens - 1, 2))
        place = torch.arange(tokens)
        self.register_buffer('index', place[:, None] - place + tokens - 1)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = map(heads_of, F.linear(x, self.qkv.weight, bias).chunk(3, -1))
        scores = self.relative_position_bias_table[self.index.flatten()].view(*self.index.shape, -1).permute(2, 0, 1)
        return self.proj(joined(attention(q, k, v, scores)))


class RelativeBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = RelativeAttention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = mlp(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class RelativeTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.ModuleList([RelativeBlock(), RelativeBlock()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = patches_of(self.stem, x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean(1)))


class LinearNorm(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)
        self.bn = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).view_as(x)


class BiasedBlock(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.qkv = LinearNorm(WIDTH, 4 + 4 + 2 * WIDTH)  # keys are narrower than values
        self.biases = nn.Parameter(torch.zeros(2, tokens))
        place = torch.arange(tokens)
        self.register_buffer('offsets', (place[:, None] - place).abs())
        self.proj = LinearNorm(2 * WIDTH, WIDTH)
        self.expand = LinearNorm(WIDTH, 16)
        self.shrink = LinearNorm(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(heads_of, self.qkv(x).split([4, 4, 2 * WIDTH], -1))
        x = x + self.proj(F.hardswish(joined(attention(q, k, v, self.biases[:, self.offsets]))))
        return x + self.shrink(F.hardswish(self.expand(x)))


class ConvAttention(nn.Module):
    """Convolutions, then attention of which each layer has a batch norm; the score of a patch is biased."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 4, 3, 2), nn.Hardswish(), conv_bn(4, WIDTH, 3, 2))
        self.blocks = nn.Sequential(BiasedBlock((SIZE // 4) ** 2), BiasedBlock((SIZE // 4) ** 2))
        self.bn = nn.BatchNorm1d(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1)))


class TalkingBlock(nn.Module):
    """Attention in which linear layers mix the heads, before the softmax and behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.talk1 = nn.Linear(2, 2)
        self.talk2 = nn.Linear(2, 2)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(heads_of, self.qkv(self.norm(x)).chunk(3, -1))
        scores = self.talk1((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).softmax(2)
        return x + self.proj(joined(self.talk2(scores).permute(0, 3, 1, 2) @ v))


class ClassAttentionBlock(nn.Module):
    """The class token looks at the patches, which stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        both = self.norm(torch.cat([token, x], 1))
        q, k, v = map(heads_of, (self.q(both[:, 0]).unsqueeze(1), self.k(both), self.v(both)))
        return token + self.proj(joined(attention(q, k, v)))


class LateClassToken(nn.Module):
    """The class token comes in behind the blocks of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, (SIZE // 4) ** 2, WIDTH))
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(TalkingBlock(), TalkingBlock())
        self.class_blocks = nn.ModuleList([ClassAttentionBlock(), ClassAttentionBlock()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(patches_of(self.stem, x) + self.pos_embed)
        token = self.cls_token.expand(len(x), -1, -1)
        for block in self.class_blocks:
            token = block(token, x)
        return self.head(self.norm(token[:, 0]))


# --- more than one part


class DecoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross_attn = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = mlp(WIDTH, 12)
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, memory: Tensor, positions: Tensor | float) -> Tensor:
        query = x + positions
        x = self.norm1(x + self.self_attn(query, query, x, need_weights=False)[0])
        x = self.norm2(x + self.cross_attn(x + positions, memory, memory, need_weights=False)[0])
        return self.norm3(x + self.mlp(x))


class Detector(nn.Module):
    """Learned queries, each for one object with its class and its box.

    Args:
        repeated (bool): Whether the queries are added in each layer of the decoder, to zeros at first, and not only the
            input of the first one.
    """

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.decoder = nn.ModuleList([DecoderLayer(), DecoderLayer()])
        self.encoder = nn.Sequential(TransformerBlock(WIDTH), TransformerBlock(WIDTH))
        self.class_head = nn.Linear(WIDTH, CLASSES)
        self.box_head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))
        self.queries = nn.Embedding(5, WIDTH)
        self.positions = nn.Parameter(torch.zeros((SIZE // 4) ** 2, WIDTH))
        self.projection = nn.Conv2d(12, WIDTH, 1)
        self.backbone = nn.Sequential(conv_bn(3, WIDTH, 3, 2), nn.ReLU(), conv_bn(WIDTH, 12, 3, 2), nn.ReLU())
        self.repeated = repeated

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        memory = self.encoder(patches_of(self.projection, self.backbone(image)) + self.positions)
        queries = self.queries.weight.expand(len(image), -1, -1)
        x, positions = (torch.zeros_like(queries), queries) if self.repeated else (queries, 0.0)
        for layer in self.decoder:
            x = layer(x, memory, positions)
        return {'logits': self.class_head(x), 'boxes': self.box_head(x).sigmoid()}


class Siamese(nn.Module):
    """One encoder for both images."""

    def __init__(self) -> None:
        super().__init__()
        self.compare = nn.Linear(WIDTH, 1)
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.encoder = nn.Sequential(conv_bn(3, WIDTH, 3, 2), nn.ReLU(), conv_bn(WIDTH, WIDTH, 3, 2))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        embedded = [self.embed(self.encoder(image).mean((2, 3))) for image in (first, second)]
        return self.compare((embedded[0] - embedded[1]).abs())


class Experts(nn.Module):
    """Each expert sees everything; a router says how much each one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(WIDTH, 6) for _ in range(3))
        self.router = nn.Linear(WIDTH, 3)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        shares = self.router(y).softmax(-1)
        return x + sum(shares[..., i : i + 1] * expert(y) for i, expert in enumerate(self.experts))


class MixtureOfExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, WIDTH)
        self.blocks = nn.ModuleList([Experts(), Experts()])
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ImageTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.ModuleList([TransformerBlock(WIDTH)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = patches_of(self.patches, x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x.mean(1))


class TextTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, WIDTH)
        self.positions = nn.Parameter(torch.zeros(5, WIDTH))
        self.blocks = nn.ModuleList([TransformerBlock(WIDTH)])
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, -1])


class TwoTowers(nn.Module):
    """How well each image goes with each text."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.text_projection = nn.Linear(WIDTH, 6, bias=False)
        self.image_projection = nn.Linear(WIDTH, 6, bias=False)
        self.text = TextTower()
        self.image = ImageTower()

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        images = F.normalize(self.image_projection(self.image(image)), dim=-1)
        texts = F.normalize(self.text_projection(self.text(text)), dim=-1)
        logits = self.logit_scale.exp() * images @ texts.t()
        return logits, logits.t()


class Recurrent(nn.Module):
    """One cell, three times over."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)
        self.cell = mlp(WIDTH, 12)
        self.stem = nn.Linear(6, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.cell(x)
        return self.head(x)
