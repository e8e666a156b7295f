"""Data sets by name, and batches of them."""

import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from composer.utils import dist
from PIL import Image
from pydantic import TypeAdapter

from composer_freezeout.run.build import assemble
from composer_freezeout.run.config import load
from composer_freezeout.run.data import build_data, open_source, per_rank
from composer_freezeout.run.data_config import Augment, DataConfig
from composer_freezeout.run.faults import ConfigError
from composer_freezeout.run.images import ImageTensors, Normalize, Source, augmented

YAMLS = Path(__file__).parent.parent / 'yamls'


def section(name: str, role: str = 'train', **keys):
    config = TypeAdapter(DataConfig).validate_python({'name': name, 'batch_size': 4, **keys})
    config.fill_in(role)
    return config


def batches(config, num_classes: int = 10, path: str = 'train_data'):
    spec = build_data(config, path, num_classes=num_classes, seed=0)
    return [spec.batch_transforms(batch) for batch in spec.dataloader]


# Augmentation


def numbered(batch: int = 64, size: int = 6) -> torch.Tensor:
    """Images whose pixels are all different and none 0."""
    return torch.arange(1, size * size + 1, dtype=torch.uint8).view(1, 1, size, size).repeat(batch, 3, 1, 1)


def test_a_crop_is_a_shift_with_zeros():
    images = numbered()
    shifted = augmented(images, Augment(crop_padding=2))
    assert shifted.shape == images.shape and shifted.dtype == torch.uint8
    offsets = set()
    for image in shifted:
        assert torch.equal(image[0], image[1])
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(torch.nn.functional.pad(images[0], (2,) * 4)[:, top : top + 6, left : left + 6], image)
        ]
        assert len(found) == 1
        offsets.add(found[0])
    assert {top for top, _ in offsets} == set(range(5)) == {left for _, left in offsets}


def test_a_flip_is_drawn_for_each_image():
    images = numbered()
    flipped = augmented(images, Augment(flip=True))
    kinds = [torch.equal(image, images[0].flip(2)) - torch.equal(image, images[0]) for image in flipped]
    assert set(kinds) == {-1, 1}


def test_augmentation_draws_from_the_global_generator():
    augment = Augment(crop_padding=2, flip=True)
    torch.manual_seed(3)
    first = augmented(numbered(), augment)
    assert not torch.equal(first, augmented(numbered(), augment))
    torch.manual_seed(3)
    assert torch.equal(first, augmented(numbered(), augment))


def test_no_augmentation_leaves_the_images_alone():
    assert torch.equal(augmented(numbered(), Augment()), numbered())


def test_batches_are_picked_whole():
    images, labels = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1), torch.arange(5)
    dataset = ImageTensors(images, labels)
    assert len(dataset) == 5
    picked, picked_labels = dataset.__getitems__([3, 1])
    assert picked.flatten().tolist() == [3, 1] == picked_labels.tolist()
    assert dataset[2][0].shape == (1, 1, 1) and dataset[2][1].item() == 2


def test_normalize():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    normalized, labels = Normalize([0.0, 0.2, 0.5], [1.0, 0.1, 0.25])((images, torch.tensor([1])))
    assert normalized.dtype == torch.float32 and labels.tolist() == [1]
    assert torch.allclose(normalized.flatten(), torch.tensor([0.0, 0.0, 2.0]), atol=1e-6)


# Digits


def test_digits_are_split_the_same_way_whatever_the_seed():
    torch.manual_seed(0)
    train = open_source(section('digits')).dataset
    torch.manual_seed(1)
    test = open_source(section('digits', 'eval')).dataset
    assert isinstance(train, ImageTensors) and isinstance(test, ImageTensors)
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.dtype == torch.uint8 and train.labels.dtype == torch.int64
    assert torch.bincount(test.labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]  # stratified
    rows = {bytes(image.numpy()) for image in train.images}
    assert not any(bytes(image.numpy()) in rows for image in test.images)


def test_digits_scale_up_and_are_normalised_by_the_training_split():
    source = open_source(section('digits', image_size=16, channels=3))
    assert isinstance(source.dataset, ImageTensors)
    assert source.dataset.images.shape == (1437, 3, 16, 16)
    normalized, _ = source.normalize((source.dataset.images, source.dataset.labels))
    assert normalized.mean().item() == pytest.approx(0, abs=1e-5)
    assert normalized.std().item() == pytest.approx(1, abs=1e-3)


# Loaders


def test_training_drops_the_rest_and_shuffles_by_seed_and_epoch():
    config = section('synthetic', num_samples=10, image_size=2)
    spec = build_data(config, 'train_data', num_classes=10, seed=5)
    loader = spec.dataloader
    assert isinstance(loader, torch.utils.data.DataLoader) and spec.num_samples == 10
    first = [labels.tolist() for _, labels in loader]
    assert [len(labels) for labels in first] == [4, 4]
    assert first == [labels.tolist() for _, labels in loader]
    loader.sampler.set_epoch(1)  # pyright: ignore[reportAttributeAccessIssue]
    assert first != [labels.tolist() for _, labels in loader]
    other = build_data(config, 'train_data', num_classes=10, seed=6).dataloader
    assert first != [labels.tolist() for _, labels in other]


def test_evaluation_keeps_order_and_rest():
    config = section('synthetic', 'eval', num_samples=10, image_size=2)
    dataset = open_source(config).dataset
    assert isinstance(dataset, ImageTensors)
    labels = [label for _, batch in batches(config) for label in batch.tolist()]
    assert labels == dataset.labels.tolist()


def test_workers_give_the_same_batches():
    plain = batches(section('synthetic', 'eval', num_samples=10, image_size=2))
    workers = batches(section('synthetic', 'eval', num_samples=10, image_size=2, num_workers=1))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(plain, workers, strict=True))


def test_the_global_batch_is_divided(monkeypatch):
    monkeypatch.setattr(dist, 'get_world_size', lambda: 4)
    assert per_rank(8, 'train_data') == 2
    with pytest.raises(ConfigError, match=r'eval_data\.batch_size: 6 cannot be divided evenly among 4 processes'):
        per_rank(6, 'eval_data')


def test_too_few_samples_for_a_batch():
    with pytest.raises(ConfigError, match=r'train_data\.batch_size: 4 is more than the 3 samples'):
        batches(section('synthetic', num_samples=3))
    assert len(batches(section('synthetic', num_samples=3, drop_last=False))) == 1


# Synthetic


def test_synthetic_depends_on_seed_and_split():
    def images(**keys):
        dataset = open_source(section('synthetic', **keys)).dataset
        assert isinstance(dataset, ImageTensors)
        return dataset.images

    assert images().shape == (1024, 3, 32, 32)
    assert torch.equal(images(), images())
    assert not torch.equal(images(), images(seed=1))
    assert not torch.equal(images(), images(split='test'))


# CIFAR


@pytest.fixture
def fake_cifar(tmp_path, monkeypatch):
    """The archive's layout with 2 images a file, and torchvision's checksums switched off."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, '_check_integrity', lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, 'check_integrity', lambda *_: True)
    generator = np.random.default_rng(0)

    def write(file, label_key):
        data = generator.integers(0, 256, (2, 3072), dtype=np.uint8)
        (tmp_path / file).write_bytes(pickle.dumps({'data': data, label_key: [1, 2]}))
        return data

    ten, hundred = 'cifar-10-batches-py', 'cifar-100-python'
    for folder in (ten, hundred):
        (tmp_path / folder).mkdir()
    names = [f'class {index}' for index in range(10)]
    (tmp_path / ten / 'batches.meta').write_bytes(pickle.dumps({'label_names': names}))
    (tmp_path / hundred / 'meta').write_bytes(pickle.dumps({'fine_label_names': names * 10}))
    first, *_ = [write(f'{ten}/data_batch_{index}', 'labels') for index in range(1, 6)]
    write(f'{ten}/test_batch', 'labels')
    for split in ('train', 'test'):
        write(f'{hundred}/{split}', 'fine_labels')
    return tmp_path, first


@pytest.mark.parametrize(('name', 'classes', 'train'), [('cifar10', 10, 10), ('cifar100', 100, 2)])
def test_cifar_is_read_into_memory(fake_cifar, name, classes, train):
    root, _ = fake_cifar
    source = open_source(section(name, root=str(root), augment=None))
    assert source.num_classes == classes and len(source.dataset) == train
    (images, labels), *_ = batches(section(name, 'eval', root=str(root)), num_classes=classes, path='eval_data')
    assert images.shape == (2, 3, 32, 32) and images.dtype == torch.float32
    assert labels.tolist() == [1, 2] and labels.dtype == torch.int64


def test_cifar_keeps_the_order_of_channels(fake_cifar):
    root, data = fake_cifar
    dataset = open_source(section('cifar10', root=str(root))).dataset
    assert isinstance(dataset, ImageTensors)
    assert np.array_equal(dataset.images[:2].numpy(), data.reshape(2, 3, 32, 32))


def test_smaller_images_are_means_of_the_pixels(fake_cifar):
    root, data = fake_cifar
    dataset = open_source(section('cifar10', root=str(root), image_size=16)).dataset
    assert isinstance(dataset, ImageTensors)
    means = data.reshape(2, 3, 16, 2, 16, 2).mean((3, 5))
    assert np.abs(dataset.images[:2].numpy() - means).max() <= 0.5 + 1e-3  # rounded


def test_cifar_without_network_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError('no network')

    monkeypatch.setattr(torchvision.datasets.cifar, 'download_and_extract_archive', no_network)
    with pytest.raises(ConfigError, match=r'train_data\.root: cifar10 is not in .* cannot be downloaded .*digits'):
        open_source(section('cifar10', root=str(tmp_path)))


# Image folder


@pytest.fixture
def folder(tmp_path):
    def write(sizes=((8, 6),) * 4):
        for split in ('train', 'val'):
            for index, size in enumerate(sizes):
                path = tmp_path / split / f'class{index % 2}' / f'{index}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new('RGB', size, (index, 100, 200)).save(path)
        return tmp_path

    return write


def test_image_folder_in_memory(folder):
    source = open_source(section('image_folder', 'eval', root=str(folder()), cache=True))
    assert isinstance(source.dataset, ImageTensors)
    assert source.dataset.images.shape == (4, 3, 6, 8) and source.num_classes == 2
    assert source.dataset.labels.tolist() == [0, 0, 1, 1]
    assert source.dataset.images[:, :, 0, 0].tolist() == [[i, 100, 200] for i in (0, 2, 1, 3)]


def test_image_folder_in_memory_needs_one_size(folder):
    with pytest.raises(ConfigError, match=r'train_data\.cache: .*8x6 and .*9x6'):
        open_source(section('image_folder', root=str(folder(((8, 6), (8, 6), (9, 6)))), cache=True))


@pytest.mark.parametrize('role', ['train', 'eval'])
def test_image_folder_from_files(folder, role):
    config = section('image_folder', role, root=str(folder(((40, 30), (50, 20), (8, 8), (20, 60)))), image_size=16)
    ((images, labels),) = batches(config, num_classes=2)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert sorted(labels.tolist()) == [0, 0, 1, 1] and labels.dtype == torch.int64
    blue = (200 / 255 - 0.406) / 0.225
    assert torch.allclose(images[:, 2], torch.tensor(blue), atol=1e-4)


@pytest.mark.parametrize(
    ('keys', 'part'),
    [
        ({'root': 'nowhere'}, r'train_data\.root: no folder'),
        ({'split': 'training'}, r'train_data\.split: no folder'),
        ({'split': 'empty'}, r'train_data\.root: .*class folder'),
    ],
)
def test_image_folder_that_is_not_there(folder, keys, part):
    root = folder()
    (root / 'empty').mkdir()
    with pytest.raises(ConfigError, match=part):
        open_source(section('image_folder', **{'root': str(root), **keys}))


def test_cifar_is_also_read_from_folders_of_lossless_images(tmp_path):
    for split in ('train', 'test'):
        for index in range(10):
            (tmp_path / split / f'class{index}').mkdir(parents=True)
            Image.new('RGB', (32, 32), (index, 100, 200)).save(tmp_path / split / f'class{index}' / '0.png')
    source = open_source(section('cifar10', root=str(tmp_path), subset={'classes': ['3-4']}))
    assert isinstance(source.dataset, ImageTensors) and source.num_classes == 2
    assert source.dataset.images[:, 0, 0, 0].tolist() == [3, 4] and source.dataset.augment == Augment(
        crop_padding=4, flip=True
    )
    assert torch.equal(source.normalize.mean.flatten(), torch.tensor([0.4914, 0.4822, 0.4465]) * 255)
    smaller = open_source(section('cifar10', root=str(tmp_path), image_size=8)).dataset
    assert isinstance(smaller, ImageTensors) and smaller.images.shape == (10, 3, 8, 8)
    assert smaller.images[:, 0, 0, 0].tolist() == list(range(10))
    with pytest.raises(ConfigError, match=r'train_data\.root: .*has 10 folders of classes: it is not cifar100'):
        open_source(section('cifar100', root=str(tmp_path)))
    (tmp_path / 'train' / 'class0' / '1.jpg').touch()
    with pytest.raises(ConfigError, match='has JPEG files, whose pixels are others: it is not cifar10'):
        open_source(section('cifar10', root=str(tmp_path)))


# Subsets


def test_a_subset_has_some_classes_and_so_many_samples_of_each():
    whole = open_source(section('digits')).dataset
    part = open_source(section('digits', subset={'classes': [9, '2-3'], 'per_class': 5}), seed=3)
    assert isinstance(whole, ImageTensors) and isinstance(part.dataset, ImageTensors) and part.num_classes == 3
    assert torch.bincount(part.dataset.labels).tolist() == [5, 5, 5]
    # They are numbered in the order of the choice, and stand in that of the data set.
    places = [torch.nonzero((whole.images == image).flatten(1).all(1)).flatten()[0] for image in part.dataset.images]
    assert places == sorted(places)
    assert [(9, 2, 3)[label] for label in part.dataset.labels] == whole.labels[torch.stack(places)].tolist()


def test_the_samples_of_a_subset_are_drawn_with_the_seed():
    config = section('digits', subset={'per_class': 5})
    first, again, other = (open_source(config, seed=seed).dataset.images for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_not_in_the_subset_is_not_decoded(folder):
    root = folder()
    (root / 'train' / 'class0' / '0.png').write_bytes(b'no image')
    source = open_source(section('image_folder', root=str(root), cache=True, subset={'classes': [1]}))
    assert source.dataset.labels.tolist() == [0, 0] and source.num_classes == 1


def test_files_of_a_subset_are_read_when_they_are_needed(folder):
    config = section('image_folder', root=str(folder()), image_size=16, subset={'classes': [1], 'per_class': 1})
    dataset = open_source(config).dataset
    assert len(dataset) == 1 and dataset[0][1] == 0


@pytest.mark.parametrize(
    ('subset', 'part'),
    [
        ({'classes': [10]}, r'train_data\.subset\.classes: has class 10, but the data set has 10 classes, 0 to 9'),
        ({'per_class': 10**6}, r'train_data\.subset\.per_class: is 1000000, but a class has \d+ samples'),
    ],
)
def test_a_subset_that_is_not_there(subset, part):
    with pytest.raises(ConfigError, match=part):
        open_source(section('digits', subset=subset))


@pytest.mark.parametrize('classes', [[], ['5-3'], [-1], ['a'], [1.5], [True], [3, '2-4']])
def test_classes_that_are_none(classes):
    with pytest.raises(ValueError):
        section('digits', subset={'classes': classes})


def test_the_number_of_classes_is_that_of_the_subset():
    assert section('cifar100', subset={'classes': ['80-99']}).number_of_classes == 20
    assert section('image_folder', root='.', subset={'classes': [4, 7]}).number_of_classes == 2
    assert section('cifar100', subset={'per_class': 3}).number_of_classes == 100
    assert section('image_folder', root='.').number_of_classes is None


def test_another_number_of_classes(folder):
    with pytest.raises(ConfigError, match=r'model\.num_classes: is 10, but train_data \(image_folder\) has 2 classes'):
        batches(section('image_folder', root=str(folder()), cache=True))


@pytest.mark.parametrize(
    'keys', [{'cache': True, 'image_size': 32}, {'augment': {'crop_padding': 4}}, {'mean': [0.5, 0.5]}]
)
def test_keys_that_contradict_each_other(keys):
    with pytest.raises(ValueError):
        section('image_folder', root='data', **keys)


# Streaming


def test_streaming_without_its_package_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'streaming', None)
    monkeypatch.delitem(sys.modules, 'composer_freezeout.run.mds', raising=False)
    with pytest.raises(ConfigError, match=r"train_data\.name: .*pip install 'composer-freezeout\[streaming\]'"):
        open_source(section('streaming', local=str(tmp_path)))


@pytest.mark.parametrize(
    ('keys', 'part'),
    [
        ({}, 'local'),
        ({'local': 'x', 'augment': {'crop_padding': 4}}, 'crop_padding=4 has no meaning here'),
        ({'local': 'x', 'cache_limit': '200'}, "'200gb'"),
        ({'local': 'x', 'cache_limit': 200}, 'string'),
    ],
)
def test_streaming_keys(keys, part):
    with pytest.raises(ValueError, match=part):
        section('streaming', **keys)


def test_samples_of_a_set_that_deals_them_out_itself_are_those_of_all_processes():
    class Share(torch.utils.data.IterableDataset):
        size = 10

        def __len__(self):
            return 5

        def __iter__(self):
            return iter(range(5))

    assert Source(Share(), Normalize([0.5], [0.5]), None).samples == 10


@pytest.fixture
def shards(tmp_path):
    """Writes a split of numbered images, every third one of them grey, in MDS format."""
    pytest.importorskip('streaming')
    from streaming import MDSWriter  # pyright: ignore[reportMissingImports]
    from streaming.base.util import clean_stale_shared_memory  # pyright: ignore[reportMissingImports]

    def write(samples=12, split='train', label='y'):
        columns = {'x': 'png', label: 'int'}
        with MDSWriter(out=str(tmp_path / 'mds' / split), columns=columns, size_limit=2000) as writer:
            for index in range(samples):
                image = (
                    Image.new('L', (20, 30), 100) if index % 3 == 0 else Image.new('RGB', (40, 20), (index, 100, 200))
                )
                writer.write({'x': image, label: index})
        return str(tmp_path / 'mds')

    yield write
    clean_stale_shared_memory()


def labels_of(loader) -> list[int]:
    return [label for _, labels in loader for label in labels.tolist()]


@pytest.mark.parametrize('role', ['train', 'eval'])
def test_streaming_gives_images_of_one_size_and_three_channels(shards, role):
    local = shards(split='train' if role == 'train' else 'val')
    (images, labels), *rest = batches(section('streaming', role, local=local, image_size=16), num_classes=12)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.float32
    assert labels.dtype == torch.int64 and len(rest) == 2
    green = (100 / 255 - 0.456) / 0.224
    assert torch.allclose(images[:, 1], torch.tensor(green), atol=1e-4)


def test_streaming_evaluation_keeps_order_and_rest(shards):
    spec = build_data(section('streaming', 'eval', local=shards(10, 'val')), 'eval_data', num_classes=12, seed=0)
    assert spec.num_samples == 10 and len(spec.dataloader) == 3  # pyright: ignore[reportArgumentType]
    assert labels_of(spec.dataloader) == list(range(10))


def test_streaming_shuffles_by_seed_and_epoch_and_drops_the_rest(shards):
    local = shards(10)

    def loader(seed):
        return build_data(section('streaming', local=local), 'train_data', num_classes=12, seed=seed).dataloader

    first, other = loader(5), loader(6)
    order = labels_of(first)
    assert len(order) == 8 and len(set(order)) == 8 and order != sorted(order)
    assert labels_of(loader(5)) == order
    assert labels_of(first) != order
    assert labels_of(other) != order


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize(('interval', 'checkpoint'), [('5ba', 'ep1-ba5'), ('1ep', 'ep1-ba3'), ('1ep', 'ep2-ba6')])
def test_streaming_goes_on_where_a_checkpoint_was_saved(shards, tmp_path, interval, checkpoint, workers):
    """Within an epoch of three batches and at its end; who sees the same batches ends with the same weights."""
    data = (
        f'{{name: streaming, local: {shards()}, image_size: 32, batch_size: 4, augment: null, num_workers: {workers}}}'
    )
    small = [f'train_data={data}', 'eval_data=null', 'model.num_classes=12', 'max_duration=3ep', 'progress_bar=false']

    def weights(name, **checkpoint_keys):
        keys = [f'checkpoint.{key}={value}' for key, value in checkpoint_keys.items()]
        file = YAMLS / 'resnet8_cifar10_jpeg' / 'baseline.yaml'
        overrides = [*small, *keys, 'train_subset_num_batches=null', f'output={tmp_path / name}']
        trainer = assemble(load(file, overrides)).build().trainer
        trainer.fit()
        trainer.close()
        return trainer.state.model.state_dict()

    whole = weights('whole', interval=interval)
    saved = tmp_path / 'whole' / 'checkpoints' / f'{checkpoint}-rank0.pt'
    resumed = weights('resumed', load_path=saved)
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())


def test_streaming_fetches_what_is_not_there(shards, tmp_path):
    remote = shards()
    config = section('streaming', local=str(tmp_path / 'cache'), remote=remote)
    assert sorted(label for _, batch in batches(config, num_classes=12) for label in batch.tolist()) == list(range(12))
    assert (tmp_path / 'cache' / 'train' / 'index.json').is_file()


def test_streaming_data_that_are_not_there(shards, tmp_path):
    local = shards()
    with pytest.raises(ConfigError, match=r"train_data\.local: no MDS data set in '.*nowhere/train'"):
        open_source(section('streaming', local=str(tmp_path / 'nowhere')))
    with pytest.raises(ConfigError, match=r"eval_data\.local: no MDS data set in '.*mds/val'"):
        open_source(section('streaming', 'eval', local=local), 'eval_data')
    with pytest.raises(ConfigError, match=r"train_data\.remote: '.*nowhere' cannot be opened"):
        open_source(section('streaming', local=str(tmp_path / 'cache'), remote=str(tmp_path / 'nowhere')))


def test_streaming_needs_images_and_classes(shards):
    with pytest.raises(ConfigError, match=r"train_data\.local: .* has the columns \['label', 'x'\]"):
        open_source(section('streaming', local=shards(label='label')))


def test_streaming_with_too_few_samples_for_a_batch(shards):
    with pytest.raises(ConfigError, match=r'train_data\.batch_size: 4 is more than the 3 samples'):
        batches(section('streaming', local=shards(3)))
