"""Optimisers and schedules: SGD or Adam, poly or step, decay mask, learning rates by path."""

import re

import jax
import optax

from dsrl_jax.errors import UserError, lookup


def make_optimizer(
    config, params, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The gradient transformation for `config` (the optimizer section) and its schedule.

    Weight decay is coupled, before the momentum, as in torch's SGD (section 4.2 of the paper:
    momentum 0.9, decay 5e-4, lr 0.01, poly 0.9 per step). `params` may be shapes.
    """
    schedule = make_schedule(config, steps)
    chain = []
    if config.clip_norm:
        chain.append(optax.clip_by_global_norm(config.clip_norm))
    if config.weight_decay:
        chain.append(
            optax.add_decayed_weights(config.weight_decay, mask=decay_mask(config, params))
        )
    if config.name == 'sgd':
        chain.append(optax.trace(decay=config.momentum))
    else:
        chain.append(optax.scale_by_adam())
    chain.append(optax.scale_by_learning_rate(schedule))
    if config.lr_groups:
        factors = lr_factors(config.lr_groups, params)
        chain.append(
            optax.stateless(lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors))
        )
    return optax.chain(*chain), schedule


def make_schedule(config, steps: int) -> optax.Schedule:
    """Learning rate over steps; poly is lr (1 - i/N)^power, after the warm-up if there is one."""
    rest = max(1, steps - config.warmup)
    schedules = {
        'poly': lambda: optax.polynomial_schedule(config.lr, 0.0, config.power, rest),
        'step': lambda: optax.piecewise_constant_schedule(
            config.lr, {round(m * steps) - config.warmup: 0.1 for m in config.milestones}
        ),
        'constant': lambda: optax.constant_schedule(config.lr),
    }
    schedule = lookup(schedules, config.schedule, 'config.optimizer.schedule')()
    if not config.warmup:
        return schedule
    warm = optax.linear_schedule(config.lr / config.warmup, config.lr, config.warmup)
    return optax.join_schedules([warm, schedule], [config.warmup])


def decay_mask(config, params):
    """Which leaves are decayed: kernels alone, or all of them (the paper's reading)."""
    if config.decay == 'all':
        return jax.tree.map(lambda _: True, params)
    return jax.tree.map_with_path(lambda path, _: path_name(path).endswith('kernel'), params)


def lr_factors(groups, params):
    """Factor on the learning rate of every leaf; the first regex that matches its path counts."""
    used = set()

    def factor(path, _):
        for regex, value in groups:
            if re.search(regex, path_name(path)):
                used.add(regex)
                return float(value)
        return 1.0

    factors = jax.tree.map_with_path(factor, params)
    for regex, _ in groups:
        if regex not in used:
            names = sorted(
                {path_name(p).split('/')[0] for p, _ in jax.tree.leaves_with_path(params)}
            )
            raise UserError(
                'config.optimizer.lr_groups',
                f'{regex!r}, which no parameter matches',
                'a regex of parameter paths such as network/level1/conv/kernel',
                'the paths begin with ' + ', '.join(names) + '.',
            )
    return factors


def path_name(path) -> str:
    """A tree path as 'network/level1/conv/kernel'."""
    return '/'.join(str(getattr(key, 'key', key)) for key in path)
