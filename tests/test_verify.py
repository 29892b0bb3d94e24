"""`dsrl train --verify`: two short twins, equal bit for bit or not."""

import itertools

import pytest
from flax import linen as nn
from refusals import refused
from toy_network import Toy

from dsrl_jax import cli

COMMON = ('train', '--verify', '--config=synthetic:tiny,dsrl=sssr', '--config.steps=3')
_builds = itertools.count()


class Drifting(Toy):
    """A network whose scores depend on how many were built before it: nothing repeats."""

    @nn.compact
    def __call__(self, image, train=False):
        outputs = super().__call__(image, train)
        return {**outputs, 'scores': outputs['scores'] * (1 + next(_builds))}


@pytest.mark.parametrize(
    ('net', 'code', 'words'),
    [
        ('toy_network:Toy', 0, ['3 steps on 4 x cpu: equal, bit for bit; 0 of']),
        ('test_verify:Drifting', 1, ['first difference: train/', ' of step 1, ', ': differ; ']),
    ],
)
def test_twins_are_equal_or_their_first_difference_is_said(net, code, words, capsys, tmp_path):
    argv = [*COMMON, f'--config.model.net={net}', f'--workdir={tmp_path}']
    assert cli.main(argv) == code
    said = capsys.readouterr().out
    assert not [word for word in words if word not in said], said
    assert 'mIoU' not in said  # nothing is scored
    if not code:
        refused(capsys, argv, str(tmp_path / 'verify'), 'a folder that exists')
