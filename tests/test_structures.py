"""Networks of many structures: their units, and what is left of the backward pass when the first units are frozen.

What is expected was judged from how each network is defined. Copies with some of their parameters really frozen show
what a backward pass then runs.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from composer_freezeout.freezing.observing.names import owners_of
from composer_freezeout.freezing.observing.partition import Partition, partition_model
from composer_freezeout.freezing.observing.rehearsal import rehearse
from composer_freezeout.freezing.observing.tensors import tensors_in

from . import structures

IMAGE = torch.linspace(-1, 1, 2 * 3 * structures.SIZE**2).view(2, 3, structures.SIZE, structures.SIZE)
TOKENS = torch.arange(10).view(2, 5)
FEATURES = torch.linspace(-1, 1, 48).view(2, 4, 6)


@dataclass(frozen=True)
class Case:
    """A network and what is expected of it.

    Attributes:
        make (Callable): Makes it.
        run (Callable): Runs it and returns its outputs.
        units (Sequence[str] | int): Names of the units, in order, or how many there are.
        heads (Sequence[str]): Names of the last units, which produce the outputs.
        blocks (Sequence[str] | int): The units of the granularity ``'block'``.
        cuts (Sequence[int] | bool): The cuts, or whether they are clean.
        points (int): At about how many freeze points the graph is looked at.
    """

    make: Callable[[], nn.Module]
    run: Callable[[Any], Any]
    units: Sequence[str] | int
    heads: Sequence[str]
    blocks: Sequence[str] | int
    cuts: Sequence[int] | bool = True
    points: int = 1000


def within(prefix: str, *names: str) -> list[str]:
    return [f'{prefix}.{name}' for name in names]


def in_each(prefixes: Iterable[str], *names: str) -> list[str]:
    return list(chain.from_iterable(within(prefix, *names) for prefix in prefixes))


# --- torchvision

# The side of the image, then what is counted: units by module, units by block.
TORCHVISION: dict[str, tuple[int, int, int, list[str]]] = {
    'alexnet': (64, 5 + 3, 5 + 3, ['classifier.6']),
    # stem, (depthwise, 2 linear, scale) in 18 blocks, 3 convolutions between the stages, head
    'convnext_tiny': (32, 1 + 4 * 18 + 3 + 1, 1 + 18 + 3 + 1, ['classifier.2']),
    'densenet121': (32, 1 + 2 * 58 + 3 + 1, 1 + 58 + 3 + 1, ['classifier']),
    # The first block does not expand.
    'efficientnet_b0': (32, 1 + 4 + 5 * 15 + 1 + 1, 1 + 16 + 1 + 1, ['classifier.1']),
    # stem, blocks of one convolution, of two, of five
    'efficientnet_v2_s': (32, 1 + 2 + 2 * 8 + 5 * 30 + 1 + 1, 1 + 40 + 1 + 1, ['classifier.1']),
    # 3, then 6 in each inception module, 2 in front of each auxiliary head; the modules are in no container
    'googlenet': (32, 3 + 6 * 9 + 2 * 2 + 3, 3 + 6 * 9 + 2 * 2 + 3, ['aux1.fc2', 'aux2.fc2', 'fc']),
    # The auxiliary head needs an image of this size.
    'inception_v3': (299, 5 + 3 * 7 + 4 + 4 * 10 + 6 + 2 * 9 + 2 + 2, 98, ['AuxLogits.fc', 'fc']),
    # stem; 11 layers of a, b, squeeze, excite, c and twice (qkv, table, merge, 2 linear); 4 shortcuts; 2 linear
    'maxvit_t': (224, 2 + 11 * (5 + 2 * 5) + 4 + 2, 2 + 4 + 2, ['classifier.5']),
    'mnasnet0_5': (32, 3 + 3 * 16 + 1 + 1, 3 + 16 + 1 + 1, ['classifier.1']),
    'mobilenet_v2': (32, 1 + 2 + 3 * 16 + 1 + 1, 1 + 17 + 1 + 1, ['classifier.1']),
    # The first block does not expand, the two behind it have no squeeze.
    'mobilenet_v3_small': (32, 1 + 4 + 2 * 3 + 8 * 5 + 1 + 2, 1 + 11 + 1 + 2, ['classifier.3']),
    'regnet_y_400mf': (32, 1 + 5 * 16 + 4 + 1, 1 + 16 + 1, ['fc']),
    'resnet18': (32, 1 + 2 * 8 + 3 + 1, 1 + 8 + 1, ['fc']),
    'resnext50_32x4d': (32, 1 + 3 * 16 + 4 + 1, 1 + 16 + 1, ['fc']),
    'wide_resnet50_2': (32, 1 + 3 * 16 + 4 + 1, 1 + 16 + 1, ['fc']),
    'shufflenet_v2_x0_5': (32, 1 + 3 * 16 + 2 * 3 + 1 + 1, 1 + 16 + 1 + 1, ['fc']),
    'squeezenet1_1': (32, 1 + 3 * 8 + 1, 1 + 8 + 1, ['classifier.1']),
    # patches, (qkv, table, proj, 2 linear) in 12 blocks, 3 mergers, head
    'swin_t': (32, 1 + 5 * 12 + 3 + 1, 1 + 12 + 3 + 1, ['head']),
    # (qkv, scale, 2 linear for the table, proj, 2 linear)
    'swin_v2_t': (32, 1 + 7 * 12 + 3 + 1, 1 + 12 + 3 + 1, ['head']),
    'vgg11_bn': (32, 8 + 3, 8 + 3, ['classifier.6']),
    # patches, class token, positions, (in_proj, out_proj, 2 linear) in 12 blocks, head
    'vit_b_32': (32, 3 + 4 * 12 + 1, 3 + 12 + 1, ['heads.head']),
}


def torchvision_case(name: str) -> Case:
    size, units, blocks, heads = TORCHVISION[name]
    arguments: dict[str, Any] = {'googlenet': {'init_weights': False}, 'inception_v3': {'init_weights': False}}.get(
        name, {}
    )
    if name == 'vit_b_32':
        arguments = {'image_size': size}
    image = torch.linspace(-1, 1, 2 * 3 * size**2).view(2, 3, size, size)
    return Case(
        make=lambda: torchvision.models.get_model(name, weights=None, num_classes=4, **arguments),
        run=lambda model: model(image),
        units=units,
        heads=heads,
        blocks=blocks,
        points=3 if size > 64 else 6,
    )


# --- small structures


def see(model: nn.Module) -> Any:
    return model(IMAGE)


def simple(make: Callable[[], nn.Module], stem: str, names: Sequence[str], **arguments: Any) -> Case:
    """A stem, two blocks, a head."""
    units = [stem, *in_each(['blocks.0', 'blocks.1'], *names), 'head']
    return Case(make, see, units, ['head'], [stem, 'blocks.0', 'blocks.1', 'head'], **arguments)


TRANSFORMER = ['attention.in_proj_weight', 'attention.out_proj', 'mlp.0', 'mlp.2']
DECODER = ['self_attn.in_proj_weight', 'self_attn.out_proj', 'cross_attn.in_proj_weight', 'cross_attn.out_proj']
BACKBONE = ['backbone.0.0', 'backbone.2.0', 'projection', 'positions']
# What is made of queries alone comes where it meets the image: behind the part of the next layer that reads the image.
DETECTOR = [
    *BACKBONE,
    *in_each(['encoder.0', 'encoder.1'], *TRANSFORMER),
    'decoder.0.cross_attn.in_proj_weight',
    'queries',
    *within('decoder.0', 'self_attn.in_proj_weight', 'self_attn.out_proj', 'cross_attn.out_proj', 'mlp.0', 'mlp.2'),
    *within('decoder.1', *DECODER, 'mlp.0', 'mlp.2'),
    'box_head.0',
    'class_head',
    'box_head.2',
]
DETECTOR_BLOCKS = [
    *BACKBONE,
    *['encoder.0', 'encoder.1', 'queries', 'decoder.0', 'decoder.1', 'box_head.0', 'class_head', 'box_head.2'],
]
PYRAMID = ['lateral.2', 'smooth.2', 'lateral.1', 'smooth.1', 'lateral.0', 'smooth.0', 'classifier']
UNET = ['down1.0', 'down2.0', 'middle.0', 'up2', 'merge2.0', 'up1', 'merge1.0', 'classifier']
EXPERTS = ['router', 'experts.0.0', 'experts.0.2', 'experts.1.0', 'experts.1.2', 'experts.2.0', 'experts.2.2']

SMALL = {
    'mixer': simple(structures.Mixer, 'stem', ['tokens.0', 'tokens.2', 'channels.0', 'channels.2']),
    'conv_mixer': Case(
        structures.conv_mixer,
        see,
        ['0.0', '1.0.inner.0', '1.1', '2.0.inner.0', '2.1', '3.2'],
        ['3.2'],
        ['0.0', '1.0', '1.1', '2.0', '2.1', '3.2'],
    ),
    'norm_free': Case(
        structures.NormFree,
        see,
        [
            'stem',
            *in_each(['blocks.0', 'blocks.1'], 'conv1', 'conv2', 'se.reduce', 'se.expand', 'skip_gain'),
            'final',
            'head',
        ],
        ['head'],
        ['stem', 'blocks.0', 'blocks.1', 'final', 'head'],
    ),
    'pool': Case(
        structures.PoolNet,
        see,
        [
            'stem',
            *within('stages.0.0', 'scale1', 'fc1', 'fc2', 'scale2'),
            'downsample',
            *within('stages.1.0', 'scale1', 'fc1', 'fc2', 'scale2'),
            'head',
        ],
        ['head'],
        ['stem', 'stages.0.0', 'downsample', 'stages.1.0', 'head'],
    ),
    'partial_dense': simple(
        structures.PartialDenseNet,
        'stem.0',
        ['part1.0', 'part2.0', 'dense.0.0', 'dense.1.0', 'transition.0', 'merge.0'],
    ),
    'response_norm': simple(structures.ResponseNormNet, 'stem', ['depthwise', 'expand', 'grn', 'project']),
    'ghost': simple(
        structures.GhostNet,
        'stem.0',
        [
            'ghost1.primary.0',
            'ghost1.cheap.0',
            'se.reduce',
            'se.expand',
            'ghost2.primary.0',
            'ghost2.cheap.0',
            'shortcut.0',
        ],
    ),
    'branches': simple(structures.BranchNet, 'stem.0', ['conv3.0', 'conv1.0']),
    'pyramid': Case(
        structures.Pyramid,
        see,
        ['stages.0.0', 'stages.1.0', 'stages.2.0', *PYRAMID],
        ['classifier'],
        ['stages.0.0', 'stages.1.0', 'stages.2.0', *PYRAMID],
    ),
    'unet': Case(structures.UNet, see, UNET, ['classifier'], UNET),
    'distilled': Case(
        structures.DistilledTransformer,
        see,
        [
            'stem',
            'cls_token',  # with the other token and the positions, which come in right behind it
            *in_each(['blocks.0', 'blocks.1'], 'attn.qkv', 'attn.proj', 'gamma1', 'mlp.0', 'mlp.2', 'gamma2'),
            'head',
            'head_dist',
        ],
        ['head', 'head_dist'],
        ['stem', 'cls_token', 'blocks.0', 'blocks.1', 'head', 'head_dist'],
    ),
    'relative': simple(
        structures.RelativeTransformer,
        'stem',
        # The biases are put together before the weight is read.
        ['attn.q_bias', 'attn.qkv', 'attn.relative_position_bias_table', 'attn.proj', 'mlp.0', 'mlp.2'],
    ),
    'conv_attention': Case(
        structures.ConvAttention,
        see,
        [
            'stem.0.0',
            'stem.2.0',
            *in_each(['blocks.0', 'blocks.1'], 'qkv.linear', 'biases', 'proj.linear', 'expand.linear', 'shrink.linear'),
            'head',
        ],
        ['head'],
        ['stem.0.0', 'stem.2.0', 'blocks.0', 'blocks.1', 'head'],
    ),
    'late_class_token': Case(
        structures.LateClassToken,
        see,
        [
            'stem',
            'pos_embed',
            *in_each(['blocks.0', 'blocks.1'], 'qkv', 'talk1', 'talk2', 'proj'),
            'cls_token',
            *in_each(['class_blocks.0', 'class_blocks.1'], 'q', 'k', 'v', 'proj'),
            'head',
        ],
        ['head'],
        ['stem', 'pos_embed', 'blocks.0', 'blocks.1', 'cls_token', 'class_blocks.0', 'class_blocks.1', 'head'],
    ),
    'detector': Case(
        lambda: structures.Detector(repeated=False),
        see,
        DETECTOR,
        ['class_head', 'box_head.2'],
        DETECTOR_BLOCKS,
        # What attends to the image works on the queries, too, and stays until they and what they went through leave.
        cuts=[{13: 12, 14: 13, 15: 14}.get(k, k) for k in range(29)],
    ),
    'detector_repeated': Case(
        lambda: structures.Detector(repeated=True),
        see,
        DETECTOR,
        ['class_head', 'box_head.2'],
        DETECTOR_BLOCKS,
        cuts=[{13: 12, 14: 13, 15: 14}.get(k, k) for k in range(29)],
    ),
    'siamese': Case(
        structures.Siamese,
        lambda model: model(IMAGE, IMAGE.flip(0)),
        ['encoder.0.0', 'encoder.2.0', 'embed', 'compare'],
        ['compare'],
        ['encoder.0.0', 'encoder.2.0', 'embed', 'compare'],
    ),
    'experts': Case(
        structures.MixtureOfExperts,
        lambda model: model(FEATURES),
        ['stem', *in_each(['blocks.0', 'blocks.1'], *EXPERTS), 'head'],
        ['head'],
        ['stem', 'blocks.0', 'blocks.1', 'head'],
    ),
    'two_towers': Case(
        structures.TwoTowers,
        lambda model: model(IMAGE, TOKENS),
        [
            'image.patches',
            *within('image.blocks.0', *TRANSFORMER),
            'text.tokens',
            'text.positions',
            *within('text.blocks.0', *TRANSFORMER),
            'image_projection',
            'text_projection',
            'logit_scale',
        ],
        ['image_projection', 'text_projection', 'logit_scale'],
        [
            'image.patches',
            'image.blocks.0',
            'text.tokens',
            'text.positions',
            'text.blocks.0',
            'image_projection',
            'text_projection',
            'logit_scale',
        ],
    ),
    'recurrent': Case(
        structures.Recurrent,
        lambda model: model(FEATURES),
        ['stem', 'cell.0', 'cell.2', 'head'],
        ['head'],
        ['stem', 'cell.0', 'cell.2', 'head'],
        cuts=[0, 1, 1, 3, 4],  # the cell's first layer comes behind its second one as well
    ),
}


# --- language


def gpt(tied: bool) -> nn.Module:
    config = GPT2Config(
        vocab_size=11,
        n_positions=8,
        n_embd=8,
        n_layer=2,
        n_head=2,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=tied,
    )
    return GPT2LMHeadModel(config)


def bert(kind: Any) -> nn.Module:
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        hidden_dropout_prob=0,
        attention_probs_dropout_prob=0,
    )
    return kind(config)


def t5(tied: bool) -> nn.Module:
    config = T5Config(
        vocab_size=11,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=2,
        num_heads=2,
        dropout_rate=0,
        use_cache=False,
        decoder_start_token_id=0,
        tie_word_embeddings=tied,
    )
    return T5ForConditionalGeneration(config)


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS).logits


def translate(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS, decoder_input_ids=TOKENS.flip(1)).logits


def t5_stack(name: str, attentions: int) -> list[str]:
    """The bias of the first block, which is added to the scores of all, belongs where it is added first."""
    names = []
    for block in (0, 1):
        self_attention = within(f'{name}.block.{block}.layer.0.SelfAttention', 'q', 'k', 'v', 'o')
        if block == 0:
            self_attention.insert(3, f'{name}.block.0.layer.0.SelfAttention.relative_attention_bias')
        names += self_attention
        if attentions == 2:
            names += within(f'{name}.block.{block}.layer.1.EncDecAttention', 'q', 'k', 'v', 'o')
        names += within(f'{name}.block.{block}.layer.{attentions}.DenseReluDense', 'wi', 'wo')
    return names


GPT = in_each(['transformer.h.0', 'transformer.h.1'], 'attn.c_attn', 'attn.c_proj', 'mlp.c_fc', 'mlp.c_proj')
GPT_BLOCKS = ['transformer.h.0', 'transformer.h.1']
BERT_EMBEDDINGS = within('bert.embeddings', 'word_embeddings', 'token_type_embeddings', 'position_embeddings')
BERT_BLOCKS = ['bert.encoder.layer.0', 'bert.encoder.layer.1']
BERT = in_each(
    BERT_BLOCKS,
    'attention.self.query',
    'attention.self.key',
    'attention.self.value',
    'attention.output.dense',
    'intermediate.dense',
    'output.dense',
)
MASKED = ['cls.predictions.transform.dense', 'cls.predictions.decoder']

LANGUAGE = {
    'gpt': Case(
        lambda: gpt(tied=False),
        logits,
        ['transformer.wte', 'transformer.wpe', *GPT, 'lm_head'],
        ['lm_head'],
        ['transformer.wte', 'transformer.wpe', *GPT_BLOCKS, 'lm_head'],
    ),
    'gpt_tied': Case(
        lambda: gpt(tied=True),
        logits,
        ['transformer.wpe', *GPT, 'lm_head'],
        ['lm_head'],
        ['transformer.wpe', *GPT_BLOCKS, 'lm_head'],
        cuts=False,
    ),
    'bert': Case(
        lambda: bert(BertForSequenceClassification),
        logits,
        [*BERT_EMBEDDINGS, *BERT, 'bert.pooler.dense', 'classifier'],
        ['classifier'],
        [*BERT_EMBEDDINGS, *BERT_BLOCKS, 'bert.pooler.dense', 'classifier'],
    ),
    'bert_tied': Case(
        lambda: bert(BertForMaskedLM),
        logits,
        [*BERT_EMBEDDINGS[1:], *BERT, *MASKED],
        MASKED[-1:],
        [*BERT_EMBEDDINGS[1:], *BERT_BLOCKS, *MASKED],
        cuts=False,
    ),
    # Encoder and decoder share their embedding, whether the head does or not.
    't5': Case(
        lambda: t5(tied=False),
        translate,
        [*t5_stack('encoder', 1), 'shared', *t5_stack('decoder', 2), 'lm_head'],
        ['lm_head'],
        ['encoder.block.0', 'encoder.block.1', 'shared', 'decoder.block.0', 'decoder.block.1', 'lm_head'],
        cuts=False,
    ),
    't5_tied': Case(
        lambda: t5(tied=True),
        translate,
        [*t5_stack('encoder', 1), *t5_stack('decoder', 2), 'lm_head'],
        ['lm_head'],
        ['encoder.block.0', 'encoder.block.1', 'decoder.block.0', 'decoder.block.1', 'lm_head'],
        cuts=False,
    ),
}

CASES = {**{name: torchvision_case(name) for name in TORCHVISION}, **SMALL, **LANGUAGE}


# --- what a copy shows


def nodes_behind(outputs: Iterable[Tensor]) -> set[Any]:
    """The nodes that a backward pass from some tensors runs."""
    found: set[Any] = set()
    todo: list[Any] = [output.grad_fn for output in outputs]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [child for child, _ in node.next_functions]
    return found


class FrozenCopy:
    """A copy of a model of which one unit after the other is frozen.

    Attributes:
        nodes (int): How many nodes the backward pass of the latest run had.
        trained (set[str]): The parameters that it led to.
        passed (set[str]): The modules that it went on behind, since something that they were given asked for a
            gradient.
        told (set[str]): The modules of which this can be told, since they were called with numbers that could.
    """

    def __init__(self, model: nn.Module, run: Callable[[Any], Any]) -> None:
        self.model = copy.deepcopy(model).train()
        self._run = run
        self.nodes = 0
        self.trained: set[str] = set()
        self.passed: set[str] = set()
        self.told: set[str] = set()
        for name, module in self.model.named_modules():
            module.register_forward_pre_hook(self._look(name), with_kwargs=True)

    def freeze(self, names: Iterable[str]) -> None:
        for name in names:
            self.model.get_parameter(name).requires_grad_(False)

    def run(self) -> None:
        self.passed, self.told = set(), set()
        torch.manual_seed(0)
        nodes = nodes_behind(tensors_in(self._run(self.model)))
        self.nodes = len(nodes)
        leaves = {id(node.variable) for node in nodes if hasattr(node, 'variable')}
        self.trained = {name for name, parameter in self.model.named_parameters() if id(parameter) in leaves}

    def _look(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = list(tensors_in((args, kwargs)))
            if any(tensor.is_floating_point() for tensor in given):
                self.told.add(name)
            if any(tensor.requires_grad for tensor in given):
                self.passed.add(name)

        return hook


def assert_total(model: nn.Module, result: Partition) -> None:
    """Every trainable parameter is in exactly one unit."""
    owned = [name for unit in result.units for name in unit.parameters]
    assert sorted(owned) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


def possible_cuts(frozen: Sequence[Sequence[str]], owners: dict[str, list[str]], shown: FrozenCopy) -> range:
    """How many of the frozen units can have left the backward pass.

    Units of modules that it goes on behind have not left it, and others have. Where a module is not called, as its
    parameters are used by the one around it, this can't be told.
    """
    modules = [{owner for name in names for owner in owners[name]} for names in frozen]
    stay = sum(bool(of_unit & shown.passed) for of_unit in modules)
    unknown = sum(not of_unit & shown.passed and not of_unit <= shown.told for of_unit in modules)
    return range(len(frozen) - stay - unknown, len(frozen) - stay + 1)


@pytest.mark.parametrize('granularity', ['module', 'block'])
@pytest.mark.parametrize('name', CASES)
def test_structure(name, granularity):
    case = CASES[name]
    torch.manual_seed(0)
    model = case.make().train()
    observed = rehearse(model, lambda: case.run(model))
    result = partition_model(model, observed, granularity=granularity)
    names, count = [unit.name for unit in result.units], len(result.units)
    assert_total(model, result)
    assert result.unseen == ()

    shown, owners = FrozenCopy(model, case.run), owners_of(model)
    parameters = [unit.parameters for unit in result.units]
    freezing = count - result.heads
    wrong_nodes, wrong_cuts = {}, {}
    for k in range(freezing + 1):
        shown.freeze(parameters[k - 1] if k else ())
        if k % max(1, freezing // case.points) and k < freezing:
            continue
        shown.run()
        trained = list(chain.from_iterable(parameters[k:]))
        # Nothing but what is still trained, and at the last point nothing but the heads, keeps a node.
        assert shown.trained == set(trained)
        if shown.nodes != (predicted := observed.nodes_left(trained)):
            wrong_nodes[k] = predicted, shown.nodes
        if result.cuts[k] not in (possible := possible_cuts(parameters[:k], owners, shown)):
            wrong_cuts[k] = result.cuts[k], possible
    assert not wrong_nodes
    assert not wrong_cuts

    expected = case.units if granularity == 'module' else case.blocks
    assert (count if isinstance(expected, int) else names) == expected
    assert names[freezing:] == list(case.heads)
    if isinstance(case.cuts, bool):
        assert (list(result.cuts) == list(range(count + 1))) == case.cuts
    elif granularity == 'module':
        assert list(result.cuts) == list(case.cuts)
