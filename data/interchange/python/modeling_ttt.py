"""TTT language models (arXiv:2407.04620) in plain PyTorch.

The state of a TTT layer is a small model (linear, or an MLP) that is trained while reading: every
mini-batch of tokens is one step of gradient descent on reconstructing v from k, and the output is
what the trained model makes of q. Generation reads the whole text again for every token.
"""

import torch
import torch.nn.functional as F
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .configuration_ttt import TTTConfig

try:
    from transformers import GenerationMixin
except ImportError:
    from transformers.generation import GenerationMixin

NORM_EPS = 1e-6  # of the inner and the output LayerNorm


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class CausalConv(nn.Conv1d):
    """Depthwise over time; the last tap is the present token."""

    def __init__(self, size, kernel):
        super().__init__(size, size, kernel, groups=size, bias=True)

    def forward(self, x):  # [B, L, C]
        padded = F.pad(x.transpose(1, 2), (self.kernel_size[0] - 1, 0))
        return super().forward(padded).transpose(1, 2)


class PreConv(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.conv = CausalConv(config.hidden_size, config.conv_kernel)

    def forward(self, x):
        return self.conv(self.norm(x))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def gelu(x):
    return F.gelu(x, approximate="tanh")


def gelu_slope(x):
    tanh = torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x))
    return 0.5 * x * (1 - tanh * tanh) * (0.79788456 + 0.1070322243 * x * x) + 0.5 * (1 + tanh)


def standardize(z):
    """Zero mean and unit variance over the head, and the standard deviation."""
    centered = z - z.mean(-1, keepdim=True)
    deviation = torch.sqrt(centered.square().mean(-1, keepdim=True) + NORM_EPS)
    return centered / deviation, deviation


def rotate(x, period, theta):
    """Rotary embedding on neighbouring pairs; positions restart with every mini-batch."""
    length, width = x.shape[-2:]
    place = torch.arange(length, device=x.device, dtype=x.dtype) % period
    pair = torch.arange(0, width, 2, device=x.device, dtype=x.dtype)
    angle = place[:, None] * theta ** (-pair / width)
    cos, sin = angle.cos(), angle.sin()
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


class TTTLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        size, heads = config.hidden_size, config.num_attention_heads
        width = size // heads
        self.q_proj = nn.Linear(size, size, bias=False)
        if config.share_qk:
            self.conv_q = CausalConv(size, config.conv_kernel)
            self.conv_k = CausalConv(size, config.conv_kernel)
        else:
            self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        if config.use_gate:
            self.g_proj = nn.Linear(size, size, bias=False)
        self.learnable_token_idx = nn.Parameter(torch.zeros(config.mini_batch_size))
        self.learnable_ttt_lr_weight = nn.Parameter(torch.zeros(heads, 1, size))
        self.learnable_ttt_lr_bias = nn.Parameter(torch.zeros(heads, 1))
        self.ttt_norm_weight = nn.Parameter(torch.ones(heads, width))
        self.ttt_norm_bias = nn.Parameter(torch.zeros(heads, width))
        self.post_norm = nn.LayerNorm(size, eps=NORM_EPS)
        inner = width if config.ttt_layer_type == "linear" else 4 * width
        self.W1 = nn.Parameter(torch.zeros(heads, width, inner))
        self.b1 = nn.Parameter(torch.zeros(heads, 1, inner))
        if config.ttt_layer_type == "mlp":
            self.W2 = nn.Parameter(torch.zeros(heads, inner, width))
            self.b2 = nn.Parameter(torch.zeros(heads, 1, width))

    def inner_norm(self, z):
        gamma, beta = (p.to(z.dtype)[:, None] for p in (self.ttt_norm_weight, self.ttt_norm_bias))
        return gamma * standardize(z)[0] + beta

    def inner_gradient(self, z, target):
        """d/dz of half the squared distance from LayerNorm(z) to the target."""
        gamma, beta = (p.to(z.dtype)[:, None] for p in (self.ttt_norm_weight, self.ttt_norm_bias))
        n, deviation = standardize(z)
        e = (gamma * n + beta - target) * gamma
        return (e - e.mean(-1, keepdim=True) - n * (e * n).mean(-1, keepdim=True)) / deviation

    def read(self, x, keys, grad, rate, weight, bias):
        """x under the weights each token sees: those at the start minus the steps up to it."""
        steps = (rate * (x @ keys.transpose(-1, -2) + 1)) @ grad
        return x @ weight + bias - steps

    def mini_batch(self, q, k, v, token_rate, state):
        """Output of one mini-batch [B, H, r, f] and the state after it."""
        count = q.shape[-2]
        place = torch.arange(1, count + 1, device=q.device, dtype=q.dtype)
        scale = (1 / place + self.learnable_token_idx[:count].to(q.dtype)).clamp_min(0)
        rate = torch.tril(scale[:, None] * token_rate[..., None, :])  # [B, H, r, r]
        last = (scale[-1] * token_rate)[..., None]

        def step(weight, bias, x, grad):
            return (weight - x.transpose(-1, -2) @ (last * grad),
                    bias - (last * grad).sum(-2, keepdim=True))

        if self.config.ttt_layer_type == "linear":
            w1, b1 = state
            grad = self.inner_gradient(k @ w1 + b1, v - k)
            z = self.read(q, k, grad, rate, w1, b1)
            return q + self.inner_norm(z), step(w1, b1, k, grad)
        w1, b1, w2, b2 = state
        z1 = k @ w1 + b1
        x2 = gelu(z1)
        grad2 = self.inner_gradient(x2 @ w2 + b2, v - k)
        grad1 = (grad2 @ w2.transpose(-1, -2)) * gelu_slope(z1)
        hidden = gelu(self.read(q, k, grad1, rate, w1, b1))
        z = self.read(hidden, x2, grad2, rate, w2, b2)
        return q + self.inner_norm(z), step(w1, b1, k, grad1) + step(w2, b2, x2, grad2)

    def forward(self, x):  # [B, L, C]
        batch, length, size = x.shape
        heads = self.config.num_attention_heads
        wide = torch.promote_types(x.dtype, torch.float32)
        projected = self.q_proj(x)
        if self.config.share_qk:
            q, k = self.conv_q(projected), self.conv_k(projected)
        else:
            q, k = projected, self.k_proj(x)
        q, k, v = (t.to(wide).view(batch, length, heads, size // heads).transpose(1, 2)
                   for t in (q, k, self.v_proj(x)))
        period = self.config.mini_batch_size
        q, k = (rotate(t, period, self.config.rope_theta) for t in (q, k))
        gate = torch.einsum("blc,hc->bhl", x.to(wide), self.learnable_ttt_lr_weight[:, 0].to(wide))
        gate = torch.sigmoid(gate + self.learnable_ttt_lr_bias.to(wide))
        token_rate = self.config.ttt_base_lr / (size // heads) * gate

        names = ("W1", "b1") if self.config.ttt_layer_type == "linear" else ("W1", "b1", "W2", "b2")
        state = tuple(getattr(self, n).to(wide).expand(batch, -1, -1, -1) for n in names)
        outputs = []
        for begin in range(0, length, period):
            part = slice(begin, begin + period)
            out, state = self.mini_batch(q[:, :, part], k[:, :, part], v[:, :, part],
                                         token_rate[:, :, part], state)
            outputs.append(out)
        y = torch.cat(outputs, dim=2).transpose(1, 2).reshape(batch, length, size)
        y = self.post_norm(y.to(x.dtype))
        if self.config.use_gate:
            y = gelu(self.g_proj(x)) * y
        return self.o_proj(y)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        if config.pre_conv:
            self.conv = PreConv(config)
        self.pre_conv = config.pre_conv
        self.seq_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.seq_modeling_block = TTTLayer(config)
        self.ffn_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x):
        if self.pre_conv:
            x = x + self.conv(x)
        x = x + self.seq_modeling_block(self.seq_norm(x))
        return x + self.mlp(self.ffn_norm(x))


class TTTPreTrainedModel(PreTrainedModel):
    config_class = TTTConfig
    base_model_prefix = "model"
    _no_split_modules = ["Block"]

    def _init_weights(self, module):
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=std)
        elif isinstance(module, TTTLayer):
            for name in ("W1", "W2", "learnable_ttt_lr_weight"):
                if hasattr(module, name):
                    nn.init.normal_(getattr(module, name), std=std)


class TTTModel(TTTPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed_tokens

    def set_input_embeddings(self, value):
        self.embed_tokens = value

    def forward(self, input_ids):
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class TTTForCausalLM(TTTPreTrainedModel, GenerationMixin):
    # transformers 5 wants to know what is tied to what, 4 only the names.
    _tied_weights_keys = (
        {"lm_head.weight": "model.embed_tokens.weight"}
        if int(transformers.__version__.split(".")[0]) >= 5
        else ["lm_head.weight"]
    )

    def __init__(self, config):
        super().__init__(config)
        self.model = TTTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, value):
        self.lm_head = value

    def forward(self, input_ids, attention_mask=None, labels=None, **_):
        # Padding on the right is harmless: no token sees what follows it.
        if attention_mask is not None and not bool(attention_mask[:, 0].all()):
            raise ValueError("padding on the left would enter the state: pad on the right")
        logits = self.lm_head(self.model(input_ids))
        loss = None
        if labels is not None:
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide[:, :-1].flatten(0, 1), labels[:, 1:].flatten(),
                                   ignore_index=-100)
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        return {"input_ids": input_ids, "attention_mask": attention_mask}
