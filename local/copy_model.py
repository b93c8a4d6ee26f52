"""A tiny, true Qwen-Image-Edit model that copies its reference: what comes out is what went in, a little blurred.

With it a shift or a change of scale anywhere between source and result can be measured end to end. Nothing is
trained: the classes are the real ones, and every weight is zero but the few that are written here.

* VAE: each latent cell holds the mean colours of its four quarters. The decoder puts them back and interpolates, with
  filters that are the same to the left and to the right. Twelve of the sixteen latent channels are used.
* Transformer: each token of the target looks, by its position alone, at the token in the same place of the first
  reference and answers (own latents - reference) / sigma. That is the velocity of data that are the reference
  themselves, at every sigma, so any sampler ends at the reference, whatever the seed. It reads no text.

Both pass their numbers through norms and SiLUs, which would bend them. Beside a constant that is much larger a norm
only divides by a constant, and SiLU halves what is much smaller than one.

    python -m local.copy_model FOLDER [--plus]
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel

from local import tiny_model

# --- VAE
COLOURS = 3
QUARTERS = [(row, column) for row in (0, 1) for column in (0, 1)]
USED = COLOURS * len(QUARTERS)  # latent channels
Z_DIM = 16
WIDTH = 16  # channels inside; the one behind the used ones carries the constant
CONSTANT = 64.0  # against the root of the sum of squares of USED numbers in -1..1
FAINT = 1 / 64  # SiLU(x) = x / 2 for x of this order
# What a quarter adds along one axis when each cell is doubled: the two make up [1 2 1] / 4 on the finer grid.
BEFORE, BEHIND = torch.tensor([0.0, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.0])
# The same for a number that is doubled as it is: linear interpolation.
BETWEEN = torch.tensor([0.25, 0.5, 0.25])

# --- Transformer
PACKED = 64  # numbers a token: 2 x 2 cells of Z_DIM channels
BALANCE, HIGH, LOW = PACKED, PACKED + 1, PACKED + 2  # channels that keep mean and variance as they are
AXES = (16, 32, 32)  # of the rotary embedding: frame, row, column
HIDDEN = sum(AXES)
LARGE = 1024.0  # in HIGH, and negative in LOW
DEVIATION = LARGE * math.sqrt(2 / HIDDEN)  # what the layer norms divide by
SHARPNESS = 12.0  # of the attention: what fits next best weighs exp(-16) of the right token
LEAST_SIGMA = 0.01


def make(folder: Path, *, plus: bool = False, drift: tuple[int, int] = (0, 0)) -> Path:
    """Write the copying model into `folder`, replacing what is there, and return the folder.

    Args:
        folder: where the model goes.
        plus: QwenImageEditPlusPipeline (several images) instead of QwenImageEditPipeline.
        drift: how far the copy slides to the left and up, in tokens of 16 x 16 pixels.
    """
    tiny_model.make(folder, plus=plus)
    parts = {"transformer": _transformer(drift), "vae": _vae()}
    for name, part in parts.items():
        part.to(torch.bfloat16).save_pretrained(folder / name)
    return folder


@torch.no_grad()
def _vae() -> AutoencoderKLQwenImage:
    vae = AutoencoderKLQwenImage(
        base_dim=WIDTH, z_dim=Z_DIM, dim_mult=[1] * 4, num_res_blocks=0,
        temperal_downsample=[False] * 3, latents_mean=[0.0] * Z_DIM, latents_std=[0.5] * Z_DIM,
    )  # fmt: skip
    _clear(vae)
    _pass_on(vae.quant_conv, USED)
    _pass_on(vae.post_quant_conv, USED)

    encoder = vae.encoder
    _pass_on(encoder.conv_in, COLOURS)
    *halvings, last = [block.resample[1] for block in encoder.down_blocks]
    for convolution in halvings:
        for colour in range(COLOURS):
            convolution.weight[colour, colour, :2, :2] = 0.25
    for colour, quarter, channel in _channels():
        last.weight[channel, colour, quarter[0], quarter[1]] = 1.0
    last.bias[USED] = CONSTANT
    _pass_head(encoder, USED)

    decoder = vae.decoder
    _pass_on(decoder.conv_in, USED)
    decoder.conv_in.bias[USED] = CONSTANT  # interpolated with the colours, and at the border as little of it is left
    first, *doublings = [block.upsamplers[0].resample[1] for block in decoder.up_blocks[:-1]]
    for colour, quarter, channel in _channels():
        rows, columns = (BEHIND if side else BEFORE for side in quarter)
        first.weight[colour, channel] = torch.outer(rows, columns)
    first.weight[COLOURS, USED] = torch.outer(BETWEEN, BETWEEN)
    for convolution in doublings:
        for channel in range(COLOURS + 1):
            convolution.weight[channel, channel] = torch.outer(BETWEEN, BETWEEN)
    for block in decoder.up_blocks[1:]:
        _pass_on(block.resnets[0].conv_shortcut, COLOURS + 1)
    _pass_head(decoder, COLOURS)
    return vae


def _channels() -> list[tuple[int, tuple[int, int], int]]:
    """Each colour of each quarter, and its latent channel."""
    pairs = [(colour, quarter) for quarter in QUARTERS for colour in range(COLOURS)]
    return [(colour, quarter, channel) for channel, (colour, quarter) in enumerate(pairs)]


def _pass_on(convolution: Any, channels: int) -> None:
    """Let the first channels through as they are. Of the three frames of a causal kernel the last is the picture."""
    height, width = convolution.weight.shape[-2:]
    for channel in range(channels):
        convolution.weight[channel, channel, -1, height // 2, width // 2] = 1.0


def _pass_head(network: Any, channels: int) -> None:
    """The same for norm, SiLU and convolution at the end of encoder and decoder."""
    network.norm_out.gamma.fill_(FAINT)
    _pass_on(network.conv_out, channels)
    network.conv_out.weight.mul_(2 * CONSTANT / (math.sqrt(WIDTH) * FAINT))


@torch.no_grad()
def _transformer(drift: tuple[int, int]) -> QwenImageTransformer2DModel:
    transformer = QwenImageTransformer2DModel(
        in_channels=PACKED, out_channels=Z_DIM, num_layers=1, attention_head_dim=HIDDEN, num_attention_heads=1,
        joint_attention_dim=32, axes_dims_rope=AXES,
    )  # fmt: skip
    _clear(transformer)
    latents = range(PACKED)
    transformer.img_in.weight[latents, latents] = 1.0
    transformer.img_in.weight[BALANCE] = -1.0
    transformer.img_in.bias[HIGH], transformer.img_in.bias[LOW] = LARGE, -LARGE

    block = transformer.transformer_blocks[0]
    block.img_mod[1].bias.view(6, HIDDEN)[2] = 1.0  # the attention's gate
    carried = range(PACKED + 1)
    block.attn.to_v.weight[carried, carried] = DEVIATION
    block.attn.to_out[0].weight[carried, carried] = -1.0
    block.attn.to_q.bias.copy_(_where_to_look(transformer, drift))
    block.attn.to_k.bias[0::2] = 1.0
    block.attn.norm_q.weight.fill_(SHARPNESS)
    block.attn.norm_k.weight.fill_(SHARPNESS)

    _one_over_sigma(transformer)
    transformer.proj_out.weight[latents, latents] = DEVIATION
    return transformer


def _where_to_look(transformer: Any, drift: tuple[int, int]) -> torch.Tensor:
    """The query that fits best to the key of one place in the next frame: the target is 0, the reference 1.

    A key is 1 in every complex plane of the rotary embedding, which turns it by its position.
    """
    turns = transformer.pos_embed.pos_freqs.split([axis // 2 for axis in AXES], dim=1)
    planes = [turn[ahead] for turn, ahead in zip(turns, (1, drift[1], drift[0]), strict=True)]
    return torch.view_as_real(torch.cat(planes)).flatten()


def _one_over_sigma(transformer: Any) -> None:
    """Let the last norm multiply by 1 / sigma, from straight lines between sigmas in geometric order.

    The timestep is read from the slowest of its sines. A unit of the first layer bends the line at one sigma: it is
    zero above. The second layer gives the result and its negative, as SiLU(x) - SiLU(-x) is x.
    """
    sigmas = torch.logspace(math.log10(LEAST_SIGMA), 0, HIDDEN + 1, dtype=torch.float64)
    sines = transformer.time_text_embed.time_proj(sigmas.float())[:, -1].double()
    slopes = -(1 / sigmas).diff() / sines.diff()
    bends = slopes - torch.cat([slopes[1:], slopes.new_zeros(1)])
    knots = sines[1:]
    steepness = 100 / knots

    embedder = transformer.time_text_embed.timestep_embedder
    embedder.linear_1.weight[:, -1] = -steepness
    embedder.linear_1.bias.copy_(steepness * knots)
    last = transformer.norm_out.linear  # scale less one, then shift
    last.bias[:HIDDEN] = -1.0
    for unit, sign in enumerate((1.0, -1.0)):
        embedder.linear_2.weight[unit] = sign * bends / steepness
        embedder.linear_2.bias[unit] = sign
        last.weight[:HIDDEN, unit] = sign


def _clear(module: torch.nn.Module) -> None:
    for weight in module.parameters():
        weight.zero_()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plus", action="store_true", help="QwenImageEditPlusPipeline: several images")
    arguments = parser.parse_args()
    make(arguments.folder, plus=arguments.plus)
