"""A language model of Hugging Face and a text file, for ``composer-freezeout … --import my_project.freezing``."""

from pathlib import Path

import torch
from composer.metrics import LanguageCrossEntropy, LanguagePerplexity
from composer.models import HuggingFaceModel
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from composer_freezeout import register_data, register_model


@register_model
def causal_language_model(pretrained: str, untie: bool = True) -> HuggingFaceModel:
    """A pretrained language model with its loss, and cross entropy and perplexity as metrics.

    Args:
        pretrained (str): Name of the model, or its folder.
        untie (bool): Whether the head gets weights of its own. A head that shares those of the embedding keeps the
            embedding training to the end, and with it the whole backward pass.
    """
    network = AutoModelForCausalLM.from_pretrained(pretrained)
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if untie and head.weight is embedding.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        network.config.tie_word_embeddings = False
    metrics = [LanguageCrossEntropy(), LanguagePerplexity()]
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    return HuggingFaceModel(network, tokenizer, use_logits=True, metrics=[], eval_metrics=metrics)


class Blocks(Dataset[torch.Tensor]):
    """Stretches of a text that are all as long, in tokens."""

    def __init__(self, tokens: torch.Tensor, length: int) -> None:
        self.blocks = tokens[: len(tokens) // length * length].view(-1, length)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.blocks[index]

    def collate_fn(self, blocks: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """A batch as Hugging Face's models take it; they shift the labels themselves."""
        tokens = torch.stack(blocks)
        return {'input_ids': tokens, 'attention_mask': torch.ones_like(tokens), 'labels': tokens.clone()}


@register_data
def text_file(file: Path, tokenizer: str, role: str, length: int = 128, eval_share: float = 0.1) -> Blocks:
    """A text file: the last part of it for evaluation, the rest for training.

    Args:
        file (Path): The text.
        tokenizer (str): Name of the model whose tokenizer is used, or its folder.
        role (str): ``'train'`` or ``'eval'``, from the run.
        length (int): Tokens of a sample.
        eval_share (float): In ``(0, 1)``.
    """
    tokens = AutoTokenizer.from_pretrained(tokenizer)(file.read_text(encoding='utf-8'), verbose=False)['input_ids']
    cut = round(len(tokens) * (1 - eval_share))
    blocks = Blocks(torch.tensor(tokens[:cut] if role == 'train' else tokens[cut:]), length)
    if not len(blocks):
        raise ValueError(f'file has {len(tokens)} tokens, too few for a sample of {length}; take a smaller length')
    return blocks
