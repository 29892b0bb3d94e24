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
# Compiling costs more than running here: without LLVM's expensive passes it takes half the time.
os.environ['XLA_FLAGS'] = ' '.join(
    [
        os.environ.get('XLA_FLAGS', ''),
        '--xla_backend_optimization_level=0',
        '--xla_llvm_disable_expensive_passes=true',
    ]
).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker processes read absl flags


REPOSITORY = pathlib.Path(__file__).resolve().parent.parent

# Twenty steps with a checkpoint after the eleventh and the last. The same configuration finds its
# compiled step in the cache again.
TINY_RUN = (
    'train',
    '--config=synthetic:tiny,dsrl=full,net=toy_network:Short',
    '--config.steps=20',
    '--config.checkpoint.every=11',
    '--config.checkpoint.keep=3',
)


@pytest.fixture(scope='session')
def real_data() -> pathlib.Path:
    """The folder of real samples ($DSRL_DATA); tests that need it skip where there is none."""
    folder = pathlib.Path(os.environ.get('DSRL_DATA', REPOSITORY.parent / 'shared' / 'data'))
    if not folder.is_dir():
        pytest.skip('no folder of real data')
    return folder


@pytest.fixture(scope='session')
def tiny_run(tmp_path_factory) -> pathlib.Path:
    """The workdir of a finished run of TINY_RUN; copy it before changing anything in it."""
    from dsrl_jax import cli

    workdir = tmp_path_factory.mktemp('tiny') / 'run'
    assert cli.main([*TINY_RUN, f'--workdir={workdir}']) == 0
    return workdir
