"""Draw the pictures of the book that no notebook draws: the explorer's digits, the social card, the favicon.

Usage: python -m tools.draw_book_art, once, when the weights that ship with `vae_utils` change.
"""

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from tools.chapters import ROOT
from vae_utils.architectures import load_pretrained

STATIC = ROOT / "book" / "_static"

#: The explorer's grid: book.js has the same two numbers.
SIDE, LIMIT = 25, 2.4


def decode_grid(vae, side, limit):
    """Decode a grid over [−limit, limit]², z₀ to the right and z₁ up, to one mosaic, ink 0 and paper 1."""
    ticks = np.linspace(-limit, limit, side)
    z0, z1 = np.meshgrid(ticks, ticks[::-1])
    tiles = vae.decode(np.column_stack([z0.ravel(), z1.ravel()])).reshape(side, side, 28, 28)
    return 1 - tiles.transpose(0, 2, 1, 3).reshape(side * 28, side * 28)


def save_grey(pixels, path):
    """Save in 16 greys: half the bytes of 256, and no eye tells them apart at this size."""
    image = Image.fromarray(np.uint8(np.round(pixels * 15) * 17))
    image.quantize(16).save(path, optimize=True, bits=4)


def draw_card(mosaic, path):
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="white")
    side = 9 * 28
    start = (mosaic.shape[0] - side) // 2
    figure.add_axes([0.52, 0, 0.48, 1]).imshow(mosaic[start : start + side, start : start + side], cmap="gray")
    figure.axes[0].set_axis_off()
    figure.text(0.05, 0.56, "Variational\nautoencoders", fontsize=44, weight="bold", va="center", color="#1f2d3d")
    figure.text(0.05, 0.30, "every equation executed", fontsize=27, va="center", color="#17639c")
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    Image.open(path).convert("L").quantize(32).save(path, optimize=True)


def main():
    vae = load_pretrained("dense-2d")
    save_grey(decode_grid(vae, SIDE, LIMIT), STATIC / "explorer.png")
    draw_card(decode_grid(vae, 15, 2.0), STATIC / "card.png")
    digit = 1 - vae.decode([[-0.8, -0.4]])[0, :, :, 0]
    save_grey(np.kron(digit, np.ones((2, 2))), STATIC / "favicon.png")


if __name__ == "__main__":
    main()
