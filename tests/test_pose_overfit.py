"""Thirty real people, learnt by heart: every stage from the image to COCO's AP, on photographs."""

import pathlib
import sys

import pytest

LAUNCH = pathlib.Path(__file__).resolve().parent.parent / 'launch'
# The tests compile without these: a step of this network takes four times as long then.
FAST = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}


@pytest.fixture(scope='module')
def overfit():
    """launch/overfit_people.py's function."""
    sys.path.insert(0, str(LAUNCH))
    import overfit_people

    yield overfit_people.overfit
    sys.path.remove(str(LAUNCH))


@pytest.mark.slow
@pytest.mark.parametrize(('mode', 'steps'), [('none', 350), ('full', 450)])
def test_thirty_people_are_learnt_by_heart(mode, steps, overfit, real_data):
    folder = real_data / 'coco_mini'
    if not folder.is_dir():
        pytest.skip('no folder of real people')
    first, scores = overfit(folder, mode, steps, {}, compiler_options=FAST)
    # An empty heatmap to start with; what DSRL adds to the loss is no more than that.
    assert 1e-3 < first['heatmap'] <= first['total'] < 2 * first['heatmap']
    assert scores['people'] == 30 and scores['boxes'] == ''
    assert scores['AP'] > 0.9 and scores['AR'] > 0.9, scores
