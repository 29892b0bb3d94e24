"""Thirty real people, learnt by heart: every stage from the image to COCO's AP, on photographs."""

import overfit_people
import pytest

# The tests compile without these: a step of this network takes four times as long then.
FAST = {'xla_backend_optimization_level': 3, 'xla_llvm_disable_expensive_passes': False}


@pytest.mark.slow
def test_thirty_people_are_learnt_by_heart(real_data):
    folder = real_data / 'coco_mini'
    if not folder.is_dir():
        pytest.skip('no folder of real people')
    first, scores = overfit_people.overfit(folder, 'full', 450, {}, compiler_options=FAST)
    # An empty heatmap to start with; what DSRL adds to the loss is no more than that.
    assert 1e-3 < first['heatmap'] <= first['total'] < 2 * first['heatmap']
    assert scores['people'] == 30 and scores['boxes'] == ''
    assert scores['AP'] > 0.9 and scores['AR'] > 0.9, scores
