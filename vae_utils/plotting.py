"""Pictures of digits, latent spaces and training. Every function takes an optional `ax` and returns the Axes."""

from statistics import NormalDist

import numpy as np

from vae_utils._validation import as_numbers, check_sizes

#: Ten colours for ten classes, told apart with every common colour vision: Petroff (2021), arXiv:2107.02270. Its second
#: grey is black here, since small dots of the two greys look alike.
CLASS_COLORS = tuple("#3f90da #ffa90e #bd1f01 #94a4a2 #832db6 #a96b59 #e76300 #b9ac70 #1f2127 #92dadd".split())  # noqa: SIM905


def plot_digits(images, columns=10, limits=(0, 1), ax=None):
    """Draw images in a grid, row by row; grey ones black on white, others in their colours.

    Args:
        images: Pixels, shape `(n, height, width)`, or `(n, height, width, channels)` with 1 or 3 channels.
        columns: Images per row.
        limits: The values that are drawn as paper and as full ink (in colour: as none and all of the light). `None`
            takes the least and the greatest value.
        ax: Optional Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: If the images have another shape, hold NaN, or there are none, or there is no column.
    """
    images = _as_images(images, limits)
    check_sizes(columns=columns)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    paper = 0 if images.ndim == 3 else 1
    blank = np.full((rows * columns - len(images), *images.shape[1:]), paper)
    tiles = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    ax = _axes(ax, (0.65 * columns, 0.65 * rows))
    ax.imshow(_mosaic(tiles), cmap="gray_r", vmin=0, vmax=1)
    ax.set_axis_off()
    return ax


def plot_reconstructions(vae, x, ax=None):
    """Draw images above their reconstructions.

    Args:
        vae: `VAE`.
        x: Images, shape `(n, height, width, channels)`, or `[images, condition]`.
        ax: Optional Axes.

    Returns:
        The Axes.

    Raises:
        ValueError: If the images do not fit the model.
    """
    x = vae.check_images(x)
    images, *condition = (as_numbers(part) for part in (x if vae.condition_shapes else [x]))
    reconstructions = vae.decode(vae.encode(x)[0], *condition)
    height = images.shape[1]
    both = np.concatenate([images, reconstructions])
    ax = plot_digits(both, columns=len(images), limits=_limits(vae), ax=ax)
    ax.set_axis_on()
    ax.set_xticks([])
    ax.set_yticks([height / 2, 3 * height / 2], ["image", "reconstruction"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def plot_latent_space(z, labels, ax=None):
    """Scatter the first two latent dimensions, a colour for each class, its name at the class mean.

    Args:
        z: Latent points, usually `z_mean`, shape `(n, latent_dim)` with two dimensions or more.
        labels: Classes: numbers or names, shape `(n,)`.
        ax: Optional Axes.

    Returns:
        The Axes: z₀ to the right, z₁ up.

    Raises:
        ValueError: If the shapes do not match, or there are more than 40 classes.
    """
    z = as_numbers(z, "z")
    try:
        labels = np.asarray(labels)
    except ValueError as error:  # ragged lists
        raise ValueError(f"`labels` must have the shape (n,). Received: {error}") from error
    if z.ndim != 2 or z.shape[1] < 2 or labels.shape != (len(z),) or not np.isfinite(z).all() or len(z) == 0:
        raise ValueError(
            "`z` must hold finite values in the shape (n, 2 or more), n ≥ 1, and `labels` must have the shape (n,). "
            f"Received: z.shape={z.shape}, labels.shape={labels.shape}"
        )
    classes = _classes(labels)
    ax = _axes(ax, (6, 5))
    for name, color in classes.items():
        points = z[labels == name]
        style = {"color": color, "linewidths": 0, "rasterized": True}
        ax.scatter(*points[:, :2].T, s=4, alpha=0.5, label=str(name), **style)
    for name, color in classes.items():
        box = {"boxstyle": "circle,pad=0.15" if len(str(name)) < 3 else "round,pad=0.15", "fc": "white", "ec": color}
        style = {"fontsize": 15, "fontweight": "bold", "ha": "center", "va": "center", "bbox": box}
        ax.text(*z[labels == name, :2].mean(axis=0), str(name), **style)
    ax.set(xlabel="$z_0$", ylabel="$z_1$", aspect="equal")
    columns = -(-len(classes) // 15)
    legend = ax.legend(title="class", loc="center left", bbox_to_anchor=(1, 0.5), markerscale=4, ncols=columns)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return ax


def plot_manifold(vae, n=30, limit=None, quantiles=False, condition=None, ax=None):
    """Decode an `n` × `n` grid of latent points and draw each image where its point lies.

    Args:
        vae: `VAE` with two latent dimensions.
        n: Images along each axis.
        limit: The grid spans [−limit, limit]², by default [−2, 2]².
        quantiles: Space the grid by the prior's quantiles from 5 % to 95 % instead of evenly.
        condition: For a model with a condition, the one for all images.
        ax: Optional Axes.

    Returns:
        The Axes: z₀ to the right, z₁ up, as in `plot_latent_space`.

    Raises:
        ValueError: If the model has not two latent dimensions, or there is no such grid.
    """
    check_sizes(n=n)
    if quantiles and limit is not None:
        raise ValueError(f"With `quantiles` the grid has no `limit`. Received: limit={limit}")
    limit = 2.0 if limit is None else limit
    if not 0 < limit < np.inf:
        raise ValueError(f"`limit` must be positive and finite. Received: {limit}")
    if vae.latent_dim != 2:
        raise ValueError(f"A manifold needs 2 latent dimensions. Received: {vae.latent_dim}")
    ticks = _normal_quantiles(n) if quantiles else np.linspace(-limit, limit, n)
    z0, z1 = np.meshgrid(ticks, ticks[::-1])  # row by row from the top: z₁ falls, z₀ rises
    decoded = vae.decode(np.column_stack([z0.ravel(), z1.ravel()]), condition)
    images = _as_images(decoded, _limits(vae))
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


def _classes(labels):
    """The classes in order, each with its colour: a digit has the same one in every picture."""
    names = np.unique(labels).tolist()
    if len(names) > 40 or any(name != name for name in names):
        received = f"{len(names)} different ones" if len(names) > 40 else "NaN among them"
        raise ValueError(f"`labels` must be classes, 40 at most. Received: {received}")
    names = [int(name) if isinstance(name, float) and name.is_integer() else name for name in names]
    if all(isinstance(name, int) and name in range(10) for name in names):
        return {name: CLASS_COLORS[name] for name in names}
    if len(names) <= 10:
        return dict(zip(names, CLASS_COLORS, strict=False))
    import matplotlib

    return dict(zip(names, matplotlib.colormaps["viridis"](np.linspace(0, 1, len(names))), strict=True))


def _limits(vae):
    """The values that a pixel may have, or None if there is no end to them."""
    limits = vae.likelihood.lowest, vae.likelihood.highest
    return limits if np.isfinite(limits).all() else None


def _as_images(images, limits):
    """Grey images as (n, height, width), others as (n, height, width, 3); the limits become 0 and 1."""
    images = as_numbers(images, "images")
    if images.ndim == 4 and images.shape[-1] == 1:
        images = images[..., 0]
    if (images.ndim != 3 and not (images.ndim == 4 and images.shape[-1] == 3)) or images.size == 0:
        raise ValueError(
            "Images must have the shape (n, height, width), (n, height, width, 1) or (n, height, width, 3), n ≥ 1. "
            f"Received: {images.shape}"
        )
    if np.isnan(images).any():
        raise ValueError(f"Images must be numbers. Received: {np.isnan(images).sum()} values that are NaN.")
    low, high = (images.min(), images.max()) if limits is None else limits
    if not -np.inf < low <= high < np.inf:
        raise ValueError(f"`limits` must be two finite numbers, the lower first. Received: {low}, {high}")
    images = (images.astype("float64") - low) / ((high - low) or 1)
    return images if images.ndim == 3 else images.clip(0, 1)


def _mosaic(tiles):
    """Join tiles of shape (rows, columns, height, width, …) into one image."""
    rows, columns, height, width, *channels = tiles.shape
    return tiles.swapaxes(1, 2).reshape(rows * height, columns * width, *channels)
