"""Networks for small images, which torchvision does not have."""

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3
from torchvision.models.vgg import cfgs
from torchvision.ops import Conv2dNormActivation

__all__ = ['CifarDenseNet', 'CifarResNet', 'CifarVGG16', 'CifarWideResNet']


class _ShortcutA(nn.Module):
    """Option A of He et al.: skip every other pixel, and fill the new channels with zeros."""

    def __init__(self, new_channels: int):
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(nn.Module):
    """Residual network for small images: three stages of ``n`` basic blocks with 16, 32 and 64 channels.

    Shortcuts across stages have no parameters (option A: subsampling and zero padding), as in the paper.

    Args:
        depth (int): ``6n + 2`` with ``n`` in ``[1, ∞)``.
        num_classes (int): In ``[2, ∞)``.
        in_channels (int): In ``[1, ∞)``.

    Raises:
        ValueError: If ``depth`` is not of that form.
    """

    def __init__(self, depth: int, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f'depth must be 6n+2 with n of at least 1 (8, 14, 20, …), got {depth}')
        self.conv1 = nn.Conv2d(in_channels, 16, kernel_size=3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        _initialise_convolutions(self)

    @staticmethod
    def _stage(inplanes: int, planes: int, blocks: int) -> nn.Sequential:
        widened = planes - inplanes
        first = BasicBlock(inplanes, planes, 2, _ShortcutA(widened)) if widened else BasicBlock(inplanes, planes)
        return nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.avgpool(x).flatten(1))


class CifarDenseNet(torchvision.models.DenseNet):
    """DenseNet-BC for small images (`Huang et al., 2017 <https://arxiv.org/abs/1608.06993>`_).

    Three equal dense blocks of torchvision's behind a 3x3 convolution that keeps the resolution.

    Args:
        depth (int): ``L = 6n + 4`` with ``n`` layers in each block, in ``[1, ∞)``.
        growth_rate (int): ``k``: channels that a layer adds, in ``[1, ∞)``.
        num_classes (int): In ``[2, ∞)``.
        in_channels (int): In ``[1, ∞)``.

    Raises:
        ValueError: If ``depth`` is not of that form, or ``growth_rate`` is out of range.
    """

    def __init__(self, depth: int = 76, growth_rate: int = 12, num_classes: int = 10, in_channels: int = 3):
        layers = _per_stage(depth)
        _check_positive('growth_rate', growth_rate)
        super().__init__(growth_rate, (layers,) * 3, 2 * growth_rate, num_classes=num_classes)  # pyright: ignore[reportArgumentType]
        self.features.conv0 = conv3x3(in_channels, 2 * growth_rate)
        for large_images_only in ('norm0', 'relu0', 'pool0'):
            delattr(self.features, large_images_only)
        _initialise_convolutions(self)


class _PreactivationBlock(nn.Module):
    """Two 3x3 convolutions, each behind batch normalisation and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv3x3(channels, channels)
        self.shortcut = conv1x1(in_channels, channels, stride) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y = self.conv1(activated)
        y = self.conv2(self.dropout(F.relu(self.bn2(y))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class CifarWideResNet(nn.Module):
    """Wide residual network WRN-``depth``-``widen_factor`` (`Zagoruyko and Komodakis, 2016`_).

    Three stages of ``n`` pre-activation blocks with 16, 32 and 64 times ``widen_factor`` channels. Where the width
    changes, the shortcut is a 1x1 convolution.

    Args:
        depth (int): ``6n + 4`` with ``n`` in ``[1, ∞)``.
        widen_factor (int): In ``[1, ∞)``.
        dropout (float): Between the two convolutions of a block, in ``[0, 1]``.
        num_classes (int): In ``[2, ∞)``.
        in_channels (int): In ``[1, ∞)``.

    Raises:
        ValueError: If ``depth`` is not of that form, or another argument is out of range.

    .. _Zagoruyko and Komodakis, 2016: https://arxiv.org/abs/1605.07146
    """

    def __init__(
        self,
        depth: int = 40,
        widen_factor: int = 4,
        dropout: float = 0.0,
        num_classes: int = 10,
        in_channels: int = 3,
    ):
        blocks = _per_stage(depth)
        _check_positive('widen_factor', widen_factor)
        _check_dropout(dropout)
        super().__init__()
        widths = [16 * widen_factor, 32 * widen_factor, 64 * widen_factor]
        self.conv1 = conv3x3(in_channels, 16)
        self.layer1 = self._stage(16, widths[0], 1, blocks, dropout)
        self.layer2 = self._stage(widths[0], widths[1], 2, blocks, dropout)
        self.layer3 = self._stage(widths[1], widths[2], 2, blocks, dropout)
        self.bn = nn.BatchNorm2d(widths[2])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[2], num_classes)
        nn.init.zeros_(self.fc.bias)
        _initialise_convolutions(self)

    @staticmethod
    def _stage(in_channels: int, channels: int, stride: int, blocks: int, dropout: float) -> nn.Sequential:
        first = _PreactivationBlock(in_channels, channels, stride, dropout)
        return nn.Sequential(first, *(_PreactivationBlock(channels, channels, 1, dropout) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.avgpool(F.relu(self.bn(x))).flatten(1))


class CifarVGG16(nn.Module):
    """VGG-16 (`Simonyan and Zisserman, 2015 <https://arxiv.org/abs/1409.1556>`_) with batch normalisation, for CIFAR.

    Its 13 convolutions, without biases, and a classifier with 512 features in each layer instead of 4,096.

    Args:
        dropout (float): In the classifier, in ``[0, 1]``.
        num_classes (int): In ``[2, ∞)``.
        in_channels (int): In ``[1, ∞)``.

    Raises:
        ValueError: If ``dropout`` is out of range.
    """

    def __init__(self, dropout: float = 0.5, num_classes: int = 10, in_channels: int = 3):
        _check_dropout(dropout)
        super().__init__()
        self.features = nn.Sequential()
        for width in cfgs['D']:
            if width == 'M':
                self.features.append(nn.MaxPool2d(2))
            else:
                self.features.append(Conv2dNormActivation(in_channels, int(width)))
                in_channels = int(width)
        self.avgpool = nn.AdaptiveAvgPool2d(1)  # does nothing to what five poolings leave of 32x32 pixels
        self.classifier = nn.Sequential(*self._hidden(dropout), *self._hidden(dropout), nn.Linear(512, num_classes))
        _initialise_convolutions(self)
        for module in self.classifier:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    @staticmethod
    def _hidden(dropout: float) -> list[nn.Module]:
        return [nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(inplace=True), nn.Dropout(dropout)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images of at least 32x32 pixels."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def _per_stage(depth: int) -> int:
    number, rest = divmod(depth - 4, 6)
    if rest or number < 1:
        raise ValueError(f'depth must be 6n+4 with n of at least 1 (10, 16, 22, …, 40, …, 76, …), got {depth}')
    return number


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f'{name} must be in [1, ∞), got {value}')


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout <= 1:
        raise ValueError(f'dropout must be in [0, 1], got {dropout}')


def _initialise_convolutions(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
