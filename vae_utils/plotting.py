"""Pictures of digits, latent spaces and training. Every function takes an optional `ax` and returns the Axes."""

from statistics import NormalDist

import numpy as np

from vae_utils.data import as_numbers, check_sizes

#: Ten colours for ten classes, told apart with every common colour vision: Petroff (2021), arXiv:2107.02270. Its second
#: grey is black here, since small dots of the two greys look alike.
CLASS_COLORS = tuple("#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #1f2127 #92dadd".split())  # noqa: SIM905


def plot_digits(images, columns=10, ax=None):
    """Draw images in a grid, row by row, black on white.

    Args:
        images: Pixels in [0, 1], shape `(n, height, width)` or `(n, height, width, 1)`.
        columns: Images per row.
        ax: Optional Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: If the images have another shape, hold NaN, or there are none, or there is no column.
    """
    images = _as_images(images)
    check_sizes(columns=columns)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    blank = np.zeros((rows * columns - len(images), *images.shape[1:]))
    tiles = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    ax = _axes(ax, (0.65 * columns, 0.65 * rows))
    ax.imshow(_mosaic(tiles), cmap="gray_r", vmin=0, vmax=1)
    ax.set_axis_off()
    return ax


def plot_reconstructions(vae, x, ax=None):
    """Draw images above their reconstructions.

    Args:
        vae: `vae_utils.models.VAE`.
        x: Images in [0, 1], shape `(n, height, width, 1)`.
        ax: Optional Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: If the images do not fit the model.
    """
    vae.check_images(x)
    x = as_numbers(x)
    reconstructions = vae.decode(vae.encode(x)[0])
    height = x.shape[1]
    ax = plot_digits(np.concatenate([x, reconstructions]), columns=len(x), ax=ax)
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks([height / 2, 3 * height / 2], ["digit", "reconstruction"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def plot_latent_space(z, labels, ax=None):
    """Scatter the first two latent dimensions, a colour for each class, its digit at the class mean.

    Args:
        z: Latent points, usually `z_mean`, shape `(n, latent_dim)` with two dimensions or more.
        labels: Integer classes from 0 to 9, shape `(n,)`.
        ax: Optional Axes.

    Returns:
        The Axes: z₀ to the right, z₁ up.

    Raises:
        ValueError: If the shapes do not match or a label is not a digit.
    """
    z, labels = as_numbers(z, "z"), as_numbers(labels, "labels")
    if z.ndim != 2 or z.shape[1] < 2 or labels.shape != (len(z),) or not np.isfinite(z).all() or len(z) == 0:
        raise ValueError(
            "`z` must hold finite values in the shape (n, 2 or more), n ≥ 1, and `labels` must have the shape (n,). "
            f"Received: z.shape={z.shape}, labels.shape={labels.shape}"
        )
    if not np.isin(labels, np.arange(10)).all():
        raise ValueError(f"`labels` must be digits 0 to 9. Received: {np.unique(labels)}")
    labels = labels.astype(int)
    ax = _axes(ax, (6, 5))
    for digit in np.unique(labels):
        points = z[labels == digit]
        style = {"color": CLASS_COLORS[digit], "linewidths": 0, "rasterized": True}
        ax.scatter(*points[:, :2].T, s=4, alpha=0.5, label=str(digit), **style)
    for digit in np.unique(labels):
        box = {"boxstyle": "circle,pad=0.15", "fc": "white", "ec": CLASS_COLORS[digit]}
        style = {"fontsize": 15, "fontweight": "bold", "ha": "center", "va": "center", "bbox": box}
        ax.text(*z[labels == digit, :2].mean(axis=0), str(digit), **style)
    ax.set(xlabel="$z_0$", ylabel="$z_1$", aspect="equal")
    legend = ax.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return ax


def plot_manifold(vae, n=30, limit=2.0, quantiles=False, ax=None):
    """Decode an `n` × `n` grid of latent points and draw each image where its point lies.

    Args:
        vae: `vae_utils.models.VAE` with two latent dimensions.
        n: Images along each axis.
        limit: The grid spans [−limit, limit]²; with `quantiles`, it is ignored.
        quantiles: Space the grid by the prior's quantiles from 5 % to 95 % instead of evenly.
        ax: Optional Axes.

    Returns:
        The Axes: z₀ to the right, z₁ up, as in `plot_latent_space`.

    Raises:
        ValueError: If the model has not two latent dimensions, or there is no such grid.
    """
    check_sizes(n=n)
    if not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be positive and finite. Received: {limit}")
    if vae.latent_dim != 2:
        raise ValueError(f"A manifold needs 2 latent dimensions. Received: {vae.latent_dim}")
    ticks = _normal_quantiles(n) if quantiles else np.linspace(-limit, limit, n)
    z0, z1 = np.meshgrid(ticks, ticks[::-1])  # row by row from the top: z₁ falls, z₀ rises
    images = _as_images(vae.decode(np.column_stack([z0.ravel(), z1.ravel()])))
    ax = _axes(ax, (6, 6))
    # One unit per image, so that uneven grids, too, are drawn without stretching.
    mosaic = _mosaic(images.reshape(n, n, *images.shape[1:]))
    ax.imshow(mosaic, cmap="gray_r", vmin=0, vmax=1, extent=(-0.5, n - 0.5, -0.5, n - 0.5))
    shown = np.unique(np.linspace(0, n - 1, min(n, 5)).round().astype(int))
    # The middle quantile is a rounding error away from 0, below it or above: + 0.0 takes the sign from −0.0.
    labels = [f"{round(ticks[i], 1) + 0.0:.1f}".replace("-", "−") for i in shown]
    ax.set_xticks(shown, labels)
    ax.set_yticks(shown, labels)
    ax.set(xlabel="$z_0$", ylabel="$z_1$")
    return ax


def plot_history(history, metric="loss", ax=None):
    """Draw a metric over the epochs, on training and, where there are any, on held-out digits.

    Args:
        history: What `fit` returns, or its `.history`.
        metric: `"loss"`, `"reconstruction_loss"` or `"kl_loss"`.
        ax: Optional Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: If the history does not hold the metric.
    """
    history = getattr(history, "history", history)
    if not isinstance(history, dict):
        raise ValueError(f"`history` must be what `fit` returns, or its `.history`. Received: {history!r}")
    if metric not in [*history]:
        raise ValueError(f"`metric` must be one of {sorted(history)}. Received: {metric!r}")
    ax = _axes(ax, (5, 3.2))
    for key, name, style in ((metric, "training", "-"), (f"val_{metric}", "held out", "--")):
        if key in history:
            epochs = np.arange(1, len(history[key]) + 1)
            ax.plot(epochs, history[key], style, marker="o", markersize=3, label=name)
    ax.set(xlabel="epoch", ylabel="nats per image", title=metric.replace("_", " "))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    return ax


def _normal_quantiles(n):
    return np.array([NormalDist().inv_cdf(p) for p in np.linspace(0.05, 0.95, n)])


def _axes(ax, figsize):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # here, so that whoever draws nothing does not wait for it

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def _as_images(images):
    images = as_numbers(images, "images")
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if images.ndim != 3 or images.size == 0:
        raise ValueError(
            f"Images must have the shape (n, height, width) or (n, height, width, 1), n ≥ 1. Received: {images.shape}"
        )
    if np.isnan(images).any():
        raise ValueError(f"Images must be numbers. Received: {np.isnan(images).sum()} values that are NaN.")
    return images


def _mosaic(tiles):
    """Join tiles of shape (rows, columns, height, width) into one image."""
    rows, columns, height, width = tiles.shape
    return tiles.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
