"""Weight names of wkentaro/pytorch-fcn (MIT), the same for FCN-8s trained in stages or at once."""

from dsrl_jax.foreign.table import Table

_TABLE = Table(renames=((r'^encoder\.', ''),), classes='score_fr.weight', preprocessing=('caffe',))
TABLES = {'staged': _TABLE, 'at_once': _TABLE}
