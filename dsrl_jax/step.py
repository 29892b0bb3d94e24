"""The jitted training and evaluation steps: pure functions of state and batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from dsrl_jax import accumulation, metrics, state
from dsrl_jax.models.freezing import frozen_norms
from dsrl_jax.ops import resize
from dsrl_jax.ops.scores import arg_max, arg_max_at


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss: Callable,
    config,
    schedule,
    guide: Callable | None = None,
) -> Callable:
    """`step(state, batch, teacher=None) -> (state, scalars)`, to be jitted with the state donated.

    The batch is the loader's: target [B,sH,sW,3] uint8, mask [B,sH,sW] and what the loss reads
    besides, as label [B,sH,sW]; its gradient is taken in config.accumulate parts. `guide` and
    `teacher` are those of `make_forward`.
    """
    prepare = make_forward(model, loss, config, guide)

    def gradient(current: state.TrainState, batch: dict, teacher: dict | None = None):
        _, forward = prepare(current, batch, teacher)

        def loss_of(params):
            terms, _, batch_stats = forward(params)
            return terms['total'], (terms, batch_stats)

        grads, (terms, batch_stats) = jax.grad(loss_of, has_aux=True)(current.params)
        return grads, terms, batch_stats

    if config.accumulate > 1:
        gradient = accumulation.in_parts(gradient, config.accumulate)

    def train_step(current: state.TrainState, batch: dict, teacher: dict | None = None):
        grads, terms, batch_stats = gradient(current, batch, teacher)
        updates, opt_state = tx.update(grads, current.opt_state, current.params)
        params = optax.apply_updates(current.params, updates)
        variables = {'params': params, 'batch_stats': batch_stats}
        scalars = {
            **terms,
            'grad_norm': _norm(grads),
            'lr': jnp.asarray(schedule(current.step), jnp.float32),
        }
        new = current.replace(
            step=current.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
            ema=state.update_ema(current.ema, variables, current.step, config.ema),
        )
        return new, scalars

    return train_step


def make_forward(
    model: nn.Module, loss: Callable, config, guide: Callable | None = None
) -> Callable:
    """`prepare(state, batch, teacher=None) -> (seen, forward)`: a step up to its loss.

    The small input is made here, on the device. `seen` is the batch as the loss sees it: with the
    normalised large `view` and, where `guide(teacher, target)` gives the outputs of a network whose
    variables are `teacher`, with those as `teacher`. `forward(params) -> (terms, outputs,
    batch_stats)`. Norms that config.model.freeze_bn names keep their statistics. The `part` of an
    accumulated batch changes what dropout draws.
    """

    def prepare(current: state.TrainState, batch: dict, teacher: dict | None = None):
        dropout, sampling = jax.random.split(
            jax.random.fold_in(jax.random.key(current.seed), current.step)
        )
        if 'part' in batch:
            dropout = jax.random.fold_in(dropout, batch['part'])
        view = resize.normalise(batch['target'], resize.SR_COLOR)
        image = resize.small_input(batch['target'], config.scale, config.data)
        seen = {**batch, 'view': view}
        if guide is not None:
            seen['teacher'] = guide(teacher, batch['target'])

        def forward(params):
            with frozen_norms(config.model.freeze_bn):
                outputs, updated = model.apply(
                    {'params': params, 'batch_stats': current.batch_stats},
                    image,
                    train=True,
                    mutable=['batch_stats'],
                    rngs={'dropout': dropout},
                )
            terms = loss(outputs, seen, step=current.step, key=sampling)
            return terms, outputs, updated['batch_stats']

        return seen, forward

    return prepare


def _norm(tree) -> jax.Array:
    """Euclidean norm of all leaves: one sum over one vector, not a program a leaf to compile."""
    return jnp.linalg.norm(jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)]))


# What an evaluation step gives for every image; the rest are sums over the batch.
PER_IMAGE = ('prediction', 'sr', 'bicubic_sr')


def make_eval_step(model: nn.Module, config, num_classes: int, *, sr: bool) -> Callable:
    """`step(variables, batch) -> {'prediction', 'confusion', 'quality'...}` for an eval batch.

    prediction [B,Hl,Wl] is the class map at the label's own size; confusion counts it against the
    label. With `sr` the output also holds the SR image `sr` [B,sH,sW,3] in 0..1 and the sums of
    PSNR and SSIM of it (`quality`) and of bicubic enlargement (`bicubic_quality`).
    """
    competing = config.eval.classes or num_classes

    def eval_step(variables: dict, batch: dict) -> dict:
        image = resize.small_input(batch['target'], config.scale, config.data)
        outputs = model.apply(variables, image, train=False, sr=sr)
        size = batch['target'].shape[1:3]
        prediction = label_map(
            outputs, size, batch, resize_by=config.eval.resize, classes=competing
        )
        result = count(prediction, batch, num_classes, competing)
        if sr:
            sums, images = image_quality(outputs, batch, config)
            result |= {**sums, **images}
        return result

    return eval_step


def image_quality(outputs: dict, batch: dict, config) -> tuple[dict, dict]:
    """Sums of PSNR and SSIM of the SR image and of bicubic enlargement, and the images themselves.

    {'quality', 'bicubic_quality'}, {'sr', 'bicubic_sr'}: metrics.ImageQuality, [B,sH,sW,3] in 0..1.
    """
    large = resize.normalise(batch['target'], resize.Color((0, 0, 0), (1, 1, 1)))
    small = resize.shrink(large, config.scale)
    images = {
        'sr': resize.denormalise(outputs['sr'], resize.SR_COLOR),
        'bicubic_sr': jnp.clip(metrics.bicubic(small, config.scale), 0, 1),
    }
    sums = {
        f'{name.removesuffix("sr")}quality': metrics.ImageQuality.from_model_output(
            image=value, target=large, mask=batch['mask'], valid=batch['valid']
        )
        for name, value in images.items()
    }
    return sums, images


def count(prediction, batch: dict, num_classes: int, competing: int) -> dict:
    """The `prediction` [B,Hl,Wl] of an eval step and its `confusion` with the label.

    255 where an output after the classes won (a background): no class.
    """
    if competing > num_classes:
        prediction = jnp.where(prediction < num_classes, prediction, 255)
    confusion = metrics.Confusion.from_model_output(
        prediction=prediction,
        label=batch['label'],
        valid=_inside(batch),
        num_classes=num_classes,
    )
    return {'prediction': prediction, 'confusion': confusion}


def label_map(outputs, size, batch, *, resize_by: str, classes: int) -> jax.Array:
    """Class map [B,Hl,Wl] at the size of `label`, from scores of the large view [B,sH,sW].

    'labels': arg-max at the large view, then nearest; 'logits': bilinear scores at every pixel of
    the label. `region` [B,4] says where in the large view the image lies, `size` [B,2] how many
    rows and columns of the label are real.
    """
    rows = _coordinates(batch, 0, batch['label'].shape[1])
    columns = _coordinates(batch, 1, batch['label'].shape[2])
    if resize_by == 'labels':
        whole = arg_max(outputs['scores'], size, convention=outputs['resize'], num_classes=classes)
        rows = jnp.clip(jnp.floor(rows + 0.5).astype(jnp.int32), 0, size[0] - 1)
        columns = jnp.clip(jnp.floor(columns + 0.5).astype(jnp.int32), 0, size[1] - 1)
        return jax.vmap(lambda m, r, c: m[r][:, c])(whole, rows, columns)
    small = outputs['scores'].shape[1:3]
    rows = to_grid(rows, size[0], small[0], outputs['resize'])
    columns = to_grid(columns, size[1], small[1], outputs['resize'])
    return arg_max_at(outputs['scores'], rows, columns, num_classes=classes)


def to_grid(x: jax.Array, size: int, small: int, convention: str) -> jax.Array:
    """Coordinates of a size-long axis in the grid of a small-long one."""
    if convention == 'align_corners':
        return x * (small - 1) / max(size - 1, 1)
    return (x + 0.5) * small / size - 0.5


def _coordinates(batch: dict, axis: int, length: int) -> jax.Array:
    """Where the label's rows (or columns) lie in the large view, real-valued, [B, length]."""
    start = batch['region'][:, axis, None].astype(jnp.float32)
    extent = batch['region'][:, 2 + axis, None].astype(jnp.float32)
    real = batch['size'][:, axis, None].astype(jnp.float32)
    return start + (jnp.arange(length, dtype=jnp.float32)[None] + 0.5) * extent / real - 0.5


def _inside(batch: dict) -> jax.Array:
    """Pixels [B,Hl,Wl] of the label map that belong to an image, not to padding."""
    height, width = batch['label'].shape[1:3]
    rows = jnp.arange(height)[None] < batch['size'][:, :1]
    columns = jnp.arange(width)[None] < batch['size'][:, 1:]
    return rows[:, :, None] & columns[:, None, :] & batch['valid'][:, None, None]
