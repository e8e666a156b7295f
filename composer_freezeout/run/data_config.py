"""The data sets' sections of a configuration."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, PrivateAttr, TypeAdapter, WrapValidator, model_validator
from pydantic_core import PydanticKnownError

from composer_freezeout.run.fields import Classes, Count, Natural, Section, Size
from composer_freezeout.run.registered import DATA_SETS

__all__ = [
    'BUILT_IN',
    'Augment',
    'Cifar10',
    'Cifar100',
    'DataConfig',
    'Digits',
    'ImageFolder',
    'OwnData',
    'Streaming',
    'Subset',
    'Synthetic',
]


class Augment(Section):
    """Random changes to training images: zero padding and a crop of the old size, and a horizontal flip."""

    crop_padding: Natural = 0
    flip: bool = False


class Subset(Section):
    """A part of a data set: some of its classes, which are numbered from 0 in this order, and so many samples of each.

    The samples are drawn with the run's seed, so that runs of one seed have the same ones.
    """

    classes: Annotated[list[Classes], Field(min_length=1)] | None = None
    per_class: Count | None = None

    @property
    def indices(self) -> list[int] | None:
        """The chosen classes, one by one; None for all."""
        if self.classes is None:
            return None
        ends = [[int(end) for end in str(entry).split('-')] for entry in self.classes]
        return [index for first, *last in ends for index in range(first, (last or [first])[0] + 1)]

    @model_validator(mode='after')
    def _check(self) -> 'Subset':
        indices = self.indices
        if indices is not None and len(indices) > len(set(indices)):
            twice = next(index for index in indices if indices.count(index) > 1)
            raise ValueError(f'classes has class {twice} twice; name each once')
        return self


class _Data(Section):
    """What all data sets share. Keys left out are filled in by the role, train or eval."""

    batch_size: Count
    shuffle: bool | None = None
    drop_last: bool | None = None
    num_workers: Natural = 0
    augment: Augment | None = None
    subset: Subset | None = None

    num_classes_known: ClassVar[int | None] = None
    channels_known: ClassVar[int | None] = None
    eval_split: ClassVar[str] = 'test'
    train_augment: ClassVar[Augment | None] = None

    def fill_in(self, role: Literal['train', 'eval']) -> None:
        """Sets the keys that were left out to what is usual for the role."""
        train = role == 'train'
        defaults = {
            'split': 'train' if train else self.eval_split,
            'shuffle': train,
            'drop_last': train,
            'augment': self.train_augment if train else None,
        }
        for key, value in defaults.items():
            # Only `augment: null` means something by itself: do not augment.
            if key not in self.model_fields_set or (getattr(self, key) is None and key != 'augment'):
                setattr(self, key, value)

    @property
    def number_of_classes(self) -> int | None:
        """Number of classes, where the configuration tells it."""
        indices = None if self.subset is None else self.subset.indices
        return self._whole_number_of_classes if indices is None else len(indices)

    @property
    def _whole_number_of_classes(self) -> int | None:
        return self.num_classes_known

    @property
    def image_channels(self) -> int | None:
        """Channels of an image, where the configuration tells them."""
        return self.channels_known


class _TrainTest(_Data):
    split: Literal['train', 'test'] | None = None


class _Cifar(_TrainTest):
    root: str = 'data'
    image_size: Annotated[int, Field(ge=8, le=32)] | None = None

    channels_known: ClassVar[int | None] = 3
    train_augment: ClassVar[Augment | None] = Augment(crop_padding=4, flip=True)


class Cifar10(_Cifar):
    """CIFAR-10, downloaded to ``root`` where there is a network; its pixels are averaged to ``image_size`` if given."""

    name: Literal['cifar10']
    num_classes_known: ClassVar[int | None] = 10


class Cifar100(_Cifar):
    """CIFAR-100, likewise."""

    name: Literal['cifar100']
    num_classes_known: ClassVar[int | None] = 100


class Digits(_TrainTest):
    """Scikit-learn's handwritten digits (1,797 images of 8x8), scaled up to ``image_size``."""

    name: Literal['digits']
    image_size: Annotated[int, Field(ge=8, le=512)] = 8
    channels: Literal[1, 3] = 1

    num_classes_known: ClassVar[int | None] = 10

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return self.channels


class _ImageFiles(_Data):
    """Images of any size: a random part (training) or the centre (evaluation) is resized to ``image_size``."""

    image_size: Annotated[int, Field(ge=8)] | None = None
    mean: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.485, 0.456, 0.406], min_length=3, max_length=3)
    std: list[Annotated[float, Field(gt=0, le=1)]] = Field([0.229, 0.224, 0.225], min_length=3, max_length=3)

    channels_known: ClassVar[int | None] = 3
    eval_split: ClassVar[str] = 'val'
    train_augment: ClassVar[Augment | None] = Augment(flip=True)

    def _check_resizing(self, where: str, instead: str = '') -> None:
        if self.augment is not None and self.augment.crop_padding:
            raise ValueError(
                f'augment.crop_padding={self.augment.crop_padding} has no meaning {where} '
                f'(a random part of the image is resized instead); remove it {instead}'.rstrip()
            )
        if self.image_size is None:
            self.image_size = 224


class ImageFolder(_ImageFiles):
    """Images in ``root/split/<class>/``, decoded once into memory (``cache``) or every time they are needed."""

    name: Literal['image_folder']
    root: str
    split: str | None = None
    cache: bool = False

    @model_validator(mode='after')
    def _check_cache(self) -> 'ImageFolder':
        if self.cache and self.image_size is not None:
            raise ValueError(
                'image_size has no meaning with cache: true (images keep their size); remove one of the two'
            )
        if not self.cache:
            self._check_resizing('with cache: false', 'or set cache: true')
        return self


class Streaming(_ImageFiles):
    """Images in MDS shards in ``remote/split``, fetched to ``local/split`` while they are needed.

    Their columns are those that MosaicML's ``streaming.vision`` writes: ``x`` (the image) and ``y`` (the class).
    """

    name: Literal['streaming']
    local: str
    remote: str | None = None
    split: str | None = None
    cache_limit: Size | None = None
    predownload: Count | None = None
    num_canonical_nodes: Count | None = None
    download_retry: Natural = 2
    download_timeout: Annotated[float, Field(gt=0)] = 60

    @model_validator(mode='after')
    def _check(self) -> 'Streaming':
        self._check_resizing('here')
        if self.subset is not None:
            raise ValueError('subset has no meaning here; write shards of what is to be used')
        return self


class Synthetic(_TrainTest):
    """Random images and labels from a seed, for measuring throughput."""

    name: Literal['synthetic']
    num_samples: Count = 1024
    image_size: Count = 32
    channels: Count = 3
    num_classes: Annotated[int, Field(ge=2)] = 10
    seed: Natural = 0

    @property
    def _whole_number_of_classes(self) -> int:
        return self.num_classes

    @property
    def image_channels(self) -> int:
        """Channels of an image."""
        return self.channels


class OwnData(Section):
    """A data set that a user has registered. The other keys are arguments of its function.

    Where the function makes a loader itself, ``shuffle``, ``drop_last`` and ``num_workers`` are for it to heed.
    """

    model_config = ConfigDict(extra='allow')

    name: str
    batch_size: Count
    shuffle: bool | None = None
    drop_last: bool | None = None
    num_workers: Natural = 0

    _role: Literal['train', 'eval'] = PrivateAttr('train')
    _given: frozenset[str] = PrivateAttr(frozenset())

    # What only the function knows.
    number_of_classes: ClassVar[None] = None
    image_channels: ClassVar[None] = None

    def fill_in(self, role: Literal['train', 'eval']) -> None:
        """Sets the keys that were left out to what is usual for the role."""
        self._role, self._given = role, frozenset(self.model_fields_set)
        self.shuffle = role == 'train' if self.shuffle is None else self.shuffle
        self.drop_last = role == 'train' if self.drop_last is None else self.drop_last

    @property
    def role(self) -> Literal['train', 'eval']:
        """What it is for."""
        return self._role

    @property
    def given(self) -> frozenset[str]:
        """The keys that were not left out."""
        return self._given

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the function."""
        return dict(self.model_extra or {})


_BuiltIn = Cifar10 | Cifar100 | Digits | ImageFolder | Streaming | Synthetic
_SCHEMA: TypeAdapter[Any] = TypeAdapter(Annotated[_BuiltIn, Field(discriminator='name')])
# Names of the data sets that come with the package.
BUILT_IN = frozenset(get_args(kind.model_fields['name'].annotation)[0] for kind in get_args(_BuiltIn))


def _by_name(value: Any, _: object) -> Any:
    name = value.get('name') if isinstance(value, Mapping) else None
    if not isinstance(name, str) or name in BUILT_IN:
        return _SCHEMA.validate_python(value)
    if name not in DATA_SETS:
        known = ', '.join(repr(tag) for tag in sorted(BUILT_IN | DATA_SETS.keys()))
        raise PydanticKnownError('union_tag_invalid', {'discriminator': "'name'", 'tag': name, 'expected_tags': known})
    return OwnData.model_validate(value)


DataConfig = Annotated[_BuiltIn | OwnData, WrapValidator(_by_name)]
