"""What the public reference imports from `transformers`, as far as a forward and backward pass needs it. Used only where that package is
missing: `install()` puts the modules in sys.modules."""

import importlib.util
import logging as python_logging
import sys
import types
from dataclasses import fields

import torch


class PretrainedConfig:
    def __init__(self, **values):
        self.output_hidden_states = False
        self.use_return_dict = True
        for name, value in values.items():
            setattr(self, name, value)


class PreTrainedModel(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config

    @property
    def device(self):
        return next(self.parameters()).device

    def post_init(self):
        self.apply(self._init_weights)
        output = self.get_output_embeddings() if hasattr(self, "get_output_embeddings") else None
        if output is not None and self.config.tie_word_embeddings:
            output.weight = self.get_input_embeddings().weight


class ModelOutput:
    """A dataclass that can be indexed by the place of a field that is set."""

    def __getitem__(self, index):
        return [value for field in fields(self) if (value := getattr(self, field.name)) is not None][index]


class Logger(python_logging.Logger):
    warning_once = python_logging.Logger.warning


def install() -> None:
    if importlib.util.find_spec("transformers") is not None:
        return
    logging = types.SimpleNamespace(get_logger=Logger)
    modules = {
        "transformers": {"PretrainedConfig": PretrainedConfig},
        "transformers.activations": {"ACT2FN": {"silu": torch.nn.functional.silu}},
        "transformers.modeling_outputs": {"BaseModelOutputWithPast": ModelOutput, "CausalLMOutputWithPast": ModelOutput},
        "transformers.modeling_utils": {"PreTrainedModel": PreTrainedModel},
        "transformers.utils": {"ModelOutput": ModelOutput, "logging": logging},
        "transformers.utils.import_utils": {"is_causal_conv1d_available": lambda: False},
    }
    for name, contents in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents)
        sys.modules[name] = module
