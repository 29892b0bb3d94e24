"""Cost of a model: parameters and multiply-accumulates, the super-resolution head included.

MACs are read off the jaxpr of the plain convolution forms: convolutions and matrix products,
a transposed convolution as input pixels x k^2 x Cin x Cout / groups; resizing, pooling, norms
and activations are left out.  The paper's GFLOPs are 2 x MACs *without* its head; both stand here.
"""

import math
import re
from collections import Counter

import jax
import jax.numpy as jnp

from dsrl_jax import models
from dsrl_jax.errors import UserError
from dsrl_jax.models import dsrl as dsrl_model
from dsrl_jax.models import heads

_LEFT_OUT = {'resize', 'pool'}  # the scopes that ops.resize opens


def report(net: str, size, *, num_classes: int = 20, dsrl=None, head=None, **options) -> dict:
    """`measure` of the network `net`, and what was asked for: a dict that JSON can hold.

    `dsrl` None counts the plain network, else the mode; `head` overrides the SSSR head; `options`
    go to models.create.  Raises UserError for a head without a mode that has one.
    """
    if head is not None:
        if dsrl in (None, 'none'):
            raise UserError('head', f'{head!r} with dsrl {dsrl!r}', 'a mode with SSSR', 'set dsrl.')
        options['sssr'] = {**dict(options.get('sssr') or {}), 'head': head}
    model = models.create(net, num_classes=num_classes, dsrl=dsrl, conv_impl='lax', **options)
    asked = {'net': net, 'size': list(size), 'num_classes': num_classes, 'dsrl': dsrl}
    return {**asked, **measure(model, size)}


def measure(model, size) -> dict:
    """Parameters and MACs by branch of a model for one image of `size` = (H, W); nothing runs.

    In `params` and `macs`, `inference` is network + sssr and `training` the forward pass of every
    branch, auxiliary classifiers too (a backward pass adds about twice that).  The model must have
    been built with conv_impl='lax': the fast forms hide their convolutions from the count.
    """
    wrapped = isinstance(model, dsrl_model.DSRL)
    branches = {'sr': True} if wrapped else {}
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(lambda key, x: model.init(key, x, **branches), key, image)

    def predict(variables, image):
        outputs = model.apply(variables, image, train=False)
        return outputs['scores'] if 'scores' in outputs else outputs['logits']  # a classifier

    def train(variables, image, key):
        call = {'train': True, 'mutable': ['batch_stats'], 'rngs': {'dropout': key}}
        return model.apply(variables, image, **call)

    kept = dsrl_model.inference_variables(variables) if wrapped else variables
    inference = macs_by_branch(predict, kept, image)
    training = macs_by_branch(train, variables, image, key)
    macs = {**training, **inference}
    trees = variables['params'] if wrapped else {'network': variables['params']}
    params = {branch: count_params(trees.get(branch, {})) for branch in macs}
    return {
        'head': _head_name(model) if wrapped else None,
        'params': {**params, **_totals(params)},
        'macs': {**macs, 'inference': sum(inference.values()), 'training': sum(training.values())},
        'flops': 2 * sum(inference.values()),
        'xla_flops': xla_flops(predict, kept, image),
    }


def count_params(tree) -> int:
    """How many numbers the arrays of a tree hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_macs(fn, *shapes) -> int:
    """Multiply-accumulates of fn(*shapes), trees of arrays or ShapeDtypeStructs; nothing runs.

    Only what the result needs is counted; a scan counts its length, a cond its dearest branch, a
    while loop one turn.
    """
    return sum(macs for _, macs in _walk(jax.make_jaxpr(fn)(*shapes).jaxpr, ()))


def macs_by_branch(fn, *shapes) -> Counter:
    """MACs as `count_macs`, {branch of DSRL: macs}; what is in no other branch is the network's."""
    total = Counter()
    for scopes, macs in _walk(jax.make_jaxpr(fn)(*shapes).jaxpr, ()):
        total[next((s for s in scopes if s in dsrl_model.BRANCHES), 'network')] += macs
    return total


def xla_flops(fn, *shapes) -> float | None:
    """XLA's estimate before its optimisations, 2 per multiply-add; None where it gives none."""
    cost = jax.jit(fn).lower(*shapes).cost_analysis()
    return float(cost['flops']) if cost else None


def _head_name(model):
    return next((name for name, head in heads.HEADS.items() if type(model.sssr) is head), None)


def _totals(params):
    inference = sum(params[b] for b in dsrl_model.INFERENCE if b in params)
    return {'inference': inference, 'training': sum(params.values())}


def _walk(jaxpr, outer):
    """Yield (names of the enclosing scopes, macs) for every counted equation, outermost first."""
    for eqn in _live(jaxpr):
        # Differentiation writes scopes as jvp(name): the names alone matter.
        scopes = (*outer, *re.findall(r'[^/()]+', str(eqn.source_info.name_stack)))
        if _LEFT_OUT.intersection(scopes):
            continue
        name = eqn.primitive.name
        if name == 'conv_general_dilated':
            yield scopes, _conv_macs(eqn)
        elif name == 'dot_general':
            yield scopes, _dot_macs(eqn)
        else:
            bodies = [list(_walk(inner, scopes)) for inner in _inner(eqn)]
            if name == 'cond':
                bodies = [max(bodies, key=lambda body: sum(macs for _, macs in body))]
            turns = eqn.params['length'] if name == 'scan' else 1
            yield from ((found, turns * macs) for body in bodies for found, macs in body)


def _live(jaxpr):
    """The equations whose results reach the outputs, in order."""
    needed, kept = set(_variables(jaxpr.outvars)), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(_variables(eqn.invars))
            kept.append(eqn)
    return kept[::-1]


def _variables(atoms):
    return (atom for atom in atoms if not hasattr(atom, 'val'))  # literals hold their value


def _inner(eqn):
    """The jaxprs an equation carries: of jit, remat, custom derivatives, scan, cond, ..."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            item = getattr(item, 'jaxpr', item)
            if hasattr(item, 'eqns'):
                yield item


def _conv_macs(eqn):
    left, kernel = (atom.aval.shape for atom in eqn.invars)
    out = eqn.outvars[0].aval.shape
    layout = eqn.params['dimension_numbers']
    # Each kernel number meets each output pixel once, or each input pixel where the input is
    # spread with zeros (a transposed convolution): the zeros cost nothing.
    spread = any(d > 1 for d in eqn.params['lhs_dilation'])
    shape, spec = (left, layout.lhs_spec) if spread else (out, layout.out_spec)
    batch, _, *spatial = spec
    return math.prod(shape[axis] for axis in (batch, *spatial)) * math.prod(kernel)


def _dot_macs(eqn):
    (contracted, _), _ = eqn.params['dimension_numbers']
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
