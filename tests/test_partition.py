import pytest
import torch
import torchvision
from torch import nn

from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse

from .networks import DenseNet, ResidualNet, Transformer, chain


def partition(model: nn.Module, *inputs: torch.Tensor, **arguments) -> Partition:
    return partition_model(model, rehearse(model, lambda: model(*inputs)), **arguments)


def names(result: Partition) -> list[str]:
    return [unit.name for unit in result.units]


def assert_total(model: nn.Module, result: Partition) -> None:
    """Every trainable parameter is in exactly one unit."""
    owned = [name for unit in result.units for name in unit.parameters]
    assert sorted(owned) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    stateful = [norm for unit in result.units for norm in unit.norms]
    assert len(set(stateful)) == len(stateful)


def assert_clean(result: Partition) -> None:
    assert result.cuts == tuple(range(len(result.units) + 1))
    assert result.describe_bad_cuts() is None


IMAGE = torch.zeros(2, 3, 8, 8)


def test_norm_joins_the_layer_before_it():
    model = chain()
    result = partition(model, IMAGE)
    assert [(unit.name, unit.parameters, unit.norms) for unit in result.units] == [
        ('conv1', ('conv1.weight', 'conv1.bias', 'bn1.weight', 'bn1.bias'), ('bn1',)),
        ('conv2', ('conv2.weight', 'conv2.bias', 'bn2.weight', 'bn2.bias'), ('bn2',)),
        ('conv3', ('conv3.weight', 'conv3.bias', 'bn3.weight', 'bn3.bias'), ('bn3',)),
        ('head', ('head.weight', 'head.bias'), ()),
    ]
    assert_clean(result)


def test_order_is_that_of_the_forward_pass_not_of_definition():
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 4)
            self.middle = nn.Linear(4, 4)
            self.stem = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.middle(self.stem(x)))

    result = partition(Backwards(), torch.zeros(1, 4))
    assert names(result) == ['stem', 'middle', 'head']
    assert_clean(result)


def test_module_used_twice_counts_by_its_last_use():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(4, 4)
            self.middle = nn.Linear(4, 4)
            self.head = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.shared(self.middle(self.shared(x))))

    result = partition(Twice(), torch.zeros(1, 4))
    assert names(result) == ['middle', 'shared', 'head']
    # While `shared` trains, the backward pass goes on to its first use, below `middle`.
    assert result.cuts == (0, 0, 2, 3)
    problem = result.describe_bad_cuts()
    assert problem is not None
    assert "when 'middle' freezes" in problem


def test_tied_parameters_belong_to_their_last_user():
    model = Transformer(tied=True)
    result = partition(model, torch.zeros(2, 5, dtype=torch.long))
    assert_total(model, result)
    assert result.units[-1].name == 'lm_head'
    # The tensor's first name is the embedding's, but the head uses it last.
    assert 'embedding.weight' in result.units[-1].parameters
    assert result.describe_bad_cuts() is not None


def test_parameters_of_modules_around_others_have_a_unit():
    class ClassToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 4))
            self.stem = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.cat([self.token.expand(len(x), -1), self.stem(x)])
            return self.head(x)

    model = ClassToken()
    result = partition(model, torch.zeros(3, 4))
    assert_total(model, result)
    # `scale` is never used; it goes with the module that holds it.
    assert names(result) == ['stem', 'token', 'head']
    assert result.units[1].parameters == ('token', 'scale')
    assert_clean(result)


def test_parameters_frozen_by_the_user_are_left_alone():
    model = chain()
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    result = partition(model, IMAGE)
    assert names(result) == ['conv2', 'conv3', 'head']
    assert_total(model, result)
    assert 'bn1' not in [norm for unit in result.units for norm in unit.norms]


def test_norms_without_parameters_are_held_with_the_layer_before_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3))
    result = partition(model, IMAGE)
    assert [(unit.name, unit.norms) for unit in result.units] == [('0', ('1',)), ('2', ())]


def test_norms_before_the_first_layer_go_with_it():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    result = partition(model, IMAGE)
    assert [(unit.name, unit.norms) for unit in result.units] == [('1', ('0',)), ('3', ())]
    assert_total(model, result)


@pytest.mark.parametrize(
    ('norm', 'stateful'), [(nn.GroupNorm(2, 4), False), (nn.InstanceNorm2d(4, track_running_stats=True), True)]
)
def test_other_norms(norm, stateful):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3))
    result = partition(model, IMAGE)
    assert names(result) == ['0', '2']
    assert result.units[0].norms == (('1',) if stateful else ())


def test_head_only_and_empty_models():
    result = partition(nn.Linear(4, 2), torch.zeros(1, 4))
    assert len(result.units) == 1
    with pytest.raises(ValueError, match='no trainable parameter'):
        partition(nn.ReLU(), torch.zeros(1, 4))


# --- blocks


@pytest.mark.parametrize(
    ('model', 'inputs', 'blocks'),
    [
        (ResidualNet(), IMAGE, ['stem', 'blocks.0', 'blocks.1', 'blocks.2', 'head']),
        (DenseNet(), IMAGE, ['stem', 'layers.0', 'layers.1', 'layers.2', 'head']),
        (Transformer(), torch.zeros(2, 5, dtype=torch.long), ['embedding', 'blocks.0', 'blocks.1', 'lm_head']),
    ],
    ids=['residual', 'dense', 'transformer'],
)
def test_blocks_as_units(model, inputs, blocks):
    result = partition(model, inputs, granularity='block')
    assert names(result) == blocks
    assert_total(model, result)
    assert_clean(result)
    assert_clean(partition(model, inputs))


# --- networks as people use them

SIZES = {'resnet18': 64, 'densenet121': 64, 'vgg11_bn': 32, 'vit_b_16': 224, 'mobilenet_v3_small': 64}
# stem, 2 convolutions in each of 8 blocks, 3 shortcuts, head; stem, 2·58 dense + 3 transitions, head; 8 + 3; …
UNITS = {
    'resnet18': (1 + 16 + 3 + 1, 10),
    'densenet121': (1 + 116 + 3 + 1, 1 + 58 + 3 + 1),
    'vgg11_bn': (11, 11),
    # patches, class token, positions, (in_proj, out_proj, 2 MLP) in 12 blocks, head
    'vit_b_16': (3 + 4 * 12 + 1, 3 + 12 + 1),
    'mobilenet_v3_small': (54, 15),
}


@pytest.mark.parametrize('name', SIZES)
def test_torchvision_networks(name):
    model = torchvision.models.get_model(name, weights=None)
    image = torch.zeros(1, 3, SIZES[name], SIZES[name])
    usage = rehearse(model, lambda: model(image))
    for granularity, count in zip(('module', 'block'), UNITS[name], strict=True):
        result = partition_model(model, usage, granularity=granularity)
        assert len(result.units) == count
        assert_total(model, result)
        assert_clean(result)


# --- layers=


def test_layers_give_units_and_their_order():
    model = ResidualNet()
    result = partition(model, IMAGE, layers=['stem.*', r'blocks\.[01]', r'blocks\.2', 'head'])
    assert names(result) == ['stem.*', r'blocks\.[01]', r'blocks\.2', 'head']
    assert_total(model, result)
    assert_clean(result)
    assert result.units[1].norms == ('blocks.0.bn1', 'blocks.0.bn2', 'blocks.1.bn1', 'blocks.1.bn2')


def test_layers_in_another_order_than_the_forward_pass_are_reported():
    result = partition(ResidualNet(), IMAGE, layers=[r'blocks.*', 'stem.*', 'head'])
    assert result.cuts == (0, 0, 2, 3)
    assert 'Order `layers`' in str(result.describe_bad_cuts())


@pytest.mark.parametrize(
    ('layers', 'message'),
    [
        (['stem.*', 'blocks', 'head', 'nothing'], "'nothing' matches no module"),
        (['stem.*', 'blocks', r'blocks\.1', 'head'], r"both match the parameter 'blocks.1.conv1.weight'"),
        (['stem.*', 'blocks'], "no expression matches the trainable parameter 'head.weight'"),
        (['stem.*', 'blocks', 'head', 'head'], "'head' stands more than once"),
        (['('], 'is not a regular expression'),
        ([], 'at least one regular expression'),
    ],
)
def test_bad_layers_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        partition(ResidualNet(), IMAGE, layers=layers)


def test_a_string_is_not_a_list_of_layers():
    with pytest.raises(TypeError, match='list of regular expressions'):
        partition(ResidualNet(), IMAGE, layers='head')


def test_order_needs_a_trace_or_layers():
    with pytest.raises(ValueError, match='give `layers`, or an example batch'):
        partition_model(chain())


# --- the trace leaves no trace


def test_tracing_changes_nothing():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 4, 3).eval())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    rehearse(model, lambda: model(torch.rand(2, 3, 8, 8)))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_parameters_that_are_gathered_for_the_forward_pass():
    """Sharding wrappers put other tensors, not always parameters, in the place of those that are registered."""
    model = ResidualNet()
    expected = partition(model, IMAGE)

    def gather(module: nn.Module, _: object) -> None:
        module.sharded = dict(module._parameters)
        for name, parameter in module.sharded.items():
            del module._parameters[name]
            setattr(module, name, parameter.detach().clone())

    def shard(module: nn.Module, *_: object) -> None:
        for name, parameter in module.sharded.items():
            delattr(module, name)
            module.register_parameter(name, parameter)

    for module in model.modules():
        if any(True for _ in module.parameters(recurse=False)):
            module.register_forward_pre_hook(gather)
            module.register_forward_hook(shard)
    assert partition(model, IMAGE) == expected


def test_lazy_modules_are_refused():
    model = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(ValueError, match=r'0\.weight is not initialized'):
        rehearse(model, lambda: None)
