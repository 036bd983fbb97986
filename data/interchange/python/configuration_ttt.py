"""Configuration of TTT language models (arXiv:2407.04620)."""

from transformers import PretrainedConfig


class TTTConfig(PretrainedConfig):
    """One key for every choice; the published Mamba backbone is use_gate, share_qk and pre_conv."""

    model_type = "ttt"

    def __init__(
        self,
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=12,
        num_attention_heads=12,
        hidden_act="silu",
        max_position_embeddings=2048,
        initializer_range=0.02,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        use_gate=False,
        share_qk=False,
        pre_conv=False,
        conv_kernel=4,
        ttt_layer_type="linear",
        ttt_base_lr=1.0,
        mini_batch_size=16,
        pad_token_id=None,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        use_cache=False,
        **kwargs,
    ):
        if hidden_act != "silu":
            raise ValueError(f"hidden_act must be 'silu', not {hidden_act!r}")
        if ttt_layer_type not in ("linear", "mlp"):
            raise ValueError(f"ttt_layer_type must be 'linear' or 'mlp', not {ttt_layer_type!r}")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.rms_norm_eps = rms_norm_eps
        self.rope_theta = rope_theta
        self.use_gate = use_gate
        self.share_qk = share_qk
        self.pre_conv = pre_conv
        self.conv_kernel = conv_kernel
        self.ttt_layer_type = ttt_layer_type
        self.ttt_base_lr = ttt_base_lr
        self.mini_batch_size = mini_batch_size
        self.use_cache = use_cache
        super().__init__(
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            tie_word_embeddings=tie_word_embeddings,
            **kwargs,
        )
