"""Thirty real people, learnt by heart by a small HRNet: every stage from the image to COCO's AP.

    python launch/overfit_people.py --root=DIR [--dsrl=full] [--steps=350] [--config.FIELD=VALUE]

DIR is a set in COCO's form; its first thirty people of `val` are trained on as evaluation sees
them, at 64x64, ten a step, and scored against their own annotations alone. Prints one JSON object.
"""

import argparse
import json
import time

import jax
import numpy as np

from dsrl_jax import config as configs
from dsrl_jax import data, inference, optimizer, tasks
from dsrl_jax import state as states
from dsrl_jax.circumstances import circumstances
from dsrl_jax.data.persons import Persons, PersonSource
from dsrl_jax.data.sources import Cached
from dsrl_jax.step import make_train_step

COUNT, PART = 30, 10  # people, and of a batch
SETTINGS = {
    'model.net': 'dsrl_jax.models.hrnet:Small',
    'model.width': '16.0',
    'data.size': '(128,128)',
    'data.eval_batch_size': '32',
    # The views of evaluation.
    **{'data.flip': 'False', 'pose.half_body': '0', 'pose.scale_factor': '0', 'pose.rotation': '0'},
    # Nothing is lost to rounding, so what is missing is the network's.
    **{'pose.encode': 'dark', 'pose.decode': 'dark', 'pose.flip_test': 'False'},
    **{'optimizer.lr': '2e-3', 'optimizer.schedule': 'poly', 'sisr.trunk': '16', 'epochs': '0'},
}


def main():
    """Print the terms of the first step, the scores after the last and what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--root', required=True, help='folder with annotations/ and val2017/')
    parser.add_argument('--dsrl', default='none', choices=configs.DSRL_MODES)
    parser.add_argument('--steps', type=int, default=350)
    args, rest = parser.parse_known_args()
    changes = dict(word.removeprefix('--config.').split('=', 1) for word in rest)
    start = time.process_time()
    first, scores = overfit(args.root, args.dsrl, args.steps, changes)
    shown = {name: round(float(value), 5) for name, value in first.items()}
    asked = {'dsrl': args.dsrl, 'steps': args.steps, 'config': changes}
    scores |= {'cpu_seconds': round(time.process_time() - start)}
    print(json.dumps({**asked, 'first_step': shown, 'scores': scores, **circumstances()}))


def overfit(root, mode, steps, changes, compiler_options=None):
    """(terms of the first step, scores after the last) of a run on the people of that folder."""
    sigma = {'pose.sigma': '1' if mode == 'none' else '2'}  # four pixels of the input
    given = SETTINGS | sigma | {'data.root': str(root), 'steps': str(steps)} | changes
    config = configs.load(f'coco:dsrl={mode}', given.items())
    source = data.build(config.data, 'val')
    first_ones = Persons(*(column[:COUNT] for column in source.persons))
    people = Cached(Few(**vars(source) | {'persons': first_ones}))
    network = inference.build_network(config, people.num_classes)
    small = inference.input_size(config, config.data.size)
    position = {'seed': 0, 'start': 0, 'batch_size': COUNT}
    everyone = next(tasks.pose.train_batches(people, config, **position))
    key = jax.random.key(config.seed, impl='rbg')
    variables = jax.jit(lambda key: states.init_variables(network, small, key))(key)
    tx, schedule = optimizer.make_optimizer(config.optimizer, variables['params'], steps)
    state = states.create(variables, tx, ema=False)
    loss = tasks.pose.make_loss(config, network)
    step = make_train_step(network, tx, loss, config, schedule)
    step = jax.jit(step, donate_argnums=0, compiler_options=compiler_options)
    rng, first = np.random.default_rng(config.seed), None
    for number in range(steps):
        if not (part := number % (COUNT // PART)):
            order = rng.permutation(COUNT).reshape(-1, PART)
        state, terms = step(state, {name: x[order[part]] for name, x in everyone.items()})
        first = first or jax.device_get(terms)
    return first, tasks.pose.evaluate(network, state.eval_variables(), config, people, sr=False)


class Few(PersonSource):
    """People of a source, scored against their own annotations alone."""

    def ground_truth(self):
        """COCO's form; whoever else is on the images is not annotated, and no box is theirs."""
        truth, mine = super().ground_truth(), set(self.persons.number.tolist())
        return {**truth, 'annotations': [a for a in truth['annotations'] if a['id'] in mine]}


if __name__ == '__main__':
    main()
