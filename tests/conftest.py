"""Every test runs on four fake CPU devices and shares one compilation cache."""

import os
import pathlib
import tempfile

CACHE = os.environ.setdefault(
    'JAX_COMPILATION_CACHE_DIR', os.path.join(tempfile.gettempdir(), 'dsrl_jax_test_cache')
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.3')
os.environ.setdefault('MPLBACKEND', 'Agg')

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags


REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
    """The folder of real samples ($DSRL_DATA); tests that need it skip where there is none."""
    folder = pathlib.Path(os.environ.get('DSRL_DATA', REPOSITORY.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip('no folder of real data')
    return folder
