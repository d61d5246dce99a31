"""The encoder as a torch module, by the table of its operations: any preset.

Names of parameters are those of the released weight files; the backbone is DINOv2 in
the names of facebookresearch/dinov2. Needs torch.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Self-attention; `change` adds to the output projection what it makes of its
    input."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x, change=None):
        b, t, width = x.shape
        x = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(*x).transpose(1, 2)
        x = x.reshape(b, t, width)
        return self.proj(x) if change is None else self.proj(x) + change(x)


class Mlp(nn.Module):
    """Two layers with the exact GELU between them."""

    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """A gated layer and one after it."""

    def __init__(self, width, hidden):
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        gate, value = self.w12(x).chunk(2, -1)
        return self.w3(F.silu(gate) * value)


class Scale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each on a normed stream and scaled."""

    def __init__(self, width, heads, mlp):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, 1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads), mlp
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x, change=None):
        x = x + self.ls1(self.attn(self.norm1(x), change))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Patches(nn.Module):
    """A convolution with the patch as its step."""

    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, 14, 14)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class Vit(nn.Module):
    """DINOv2 up to the tokens before its first block."""

    def __init__(
        self, width, depth, registers, side, heads=None, kind="gelu", hidden=None
    ):
        super().__init__()
        heads, hidden = heads or width // 64, hidden or 4 * width
        mlp = {"gelu": Mlp, "swiglu": SwiGlu}[kind]
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.patch_embed = Patches(width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp(width, hidden)) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width, 1e-6)

    def tokens(self, x):
        x = self.patch_embed(x)
        grid, side = (round(n**0.5) for n in (x.shape[1], self.pos_embed.shape[1] - 1))
        position = self.pos_embed[:, 1:]
        if grid != side:
            old = position.reshape(1, side, side, -1).permute(0, 3, 1, 2)
            new = F.interpolate(old, (grid, grid), mode="bicubic", antialias=True)
            position = new.permute(0, 2, 3, 1).flatten(1, 2)
        x = x + position
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        registers = self.register_tokens.expand(len(x), -1, -1)
        return torch.cat([cls, registers, x], 1)


class Looking(nn.Module):
    """Spatial attention of one tap."""

    def __init__(self, embed, channels):
        super().__init__()
        self.project = nn.Linear(embed, embed)
        self.project_x = nn.Linear(channels, embed)

    def forward(self, embedding, position, x):
        logits = self.project(embedding) @ (self.project_x(x) + position).mT
        return logits.softmax(-1) @ x


class Encoder(nn.Module):
    """Predicts every voxel of its table, or of embeddings given.

    `kind` of the adapter: "residual" after each block, as released, or "lora" on the
    output projection of the attention. `keep_cls`: the head sees CLS too.
    """

    def __init__(
        self,
        vit,
        *,
        voxels,
        taps,
        embed,
        channels,
        rank,
        alpha,
        tokens,
        kind="residual",
        keep_cls=True,
        mlp_ratio=4,
        dropout=0.0,
    ):
        super().__init__()
        self.kind, self.keep_cls, self.dropout = kind, keep_cls, dropout
        width, depth = vit.cls_token.shape[-1], len(vit.blocks)
        count = len(taps)
        self.embed_model = vit
        self.select_layers, self.r, self.lora_scale = list(taps), rank, alpha / rank
        self.num_reg_tokens = vit.register_tokens.shape[1]
        self.include_reg_tokens, self.drop = False, "registers"
        self.voxel_embed = nn.Parameter(torch.zeros(voxels, embed))
        self.layer_embed = nn.Parameter(torch.zeros(embed, count))
        self.feat_embed = nn.Parameter(torch.zeros(embed, count * channels))
        self.pos_embed = nn.Parameter(torch.zeros(tokens, embed))

        def each(make, number=count):
            return nn.ModuleList(make() for _ in range(number))

        self.norm_in = each(lambda: nn.LayerNorm(width))
        self.in_project = each(lambda: nn.Linear(width, channels))
        self.map_att = each(lambda: Looking(embed, channels))
        self.norm = each(lambda: nn.LayerNorm(channels))
        self.mlp = each(lambda: Mlp(channels, mlp_ratio * channels))
        self.lora_A = each(lambda: nn.Linear(rank, width, bias=False), depth)
        self.lora_B = each(lambda: nn.Linear(width, rank, bias=False), depth)

    def low_rank(self, i, x):
        down, up = self.lora_B[i].weight, self.lora_A[i].weight
        return F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype)) * self.lora_scale

    def block(self, i, x):
        """Block `i` with its adapter."""
        if self.kind == "lora":
            return self.embed_model.blocks[i](x, lambda y: self.low_rank(i, y))
        x = self.embed_model.blocks[i](x)
        return x if self.kind == "none" else x + self.low_rank(i, x)

    def seen(self, x):
        """Of the tokens of a tap, those for the head."""
        r = self.num_reg_tokens
        if not self.keep_cls:
            return x[:, 1 + r :]
        if self.drop == "last_patches":
            return x[:, :-r]
        return torch.cat([x[:, :1], x[:, 1 + r :]], 1)

    def tapped(self, images):
        """Tokens for the head after each tapped block."""
        x, found = self.embed_model.tokens(images), []
        for i in range(self.select_layers[-1]):
            x = self.block(i, x)
            if i + 1 in self.select_layers:
                found.append(self.seen(x))
        return found

    def respond(self, tapped, embedding):
        """Embeddings (V, E), or (B, N, E) with other voxels for each image."""
        found = []
        for k, seen in enumerate(tapped):
            y = self.in_project[k](self.norm_in[k](seen))
            y = self.map_att[k](embedding, self.pos_embed[None], y)
            y = F.dropout(self.norm[k](y), self.dropout, self.training)
            found.append(y + self.mlp[k](y))
        return (torch.cat(found, -1) * (embedding @ self.feat_embed)).sum(-1)

    def forward(self, images, embedding):
        return self.respond(self.tapped(images), embedding)
