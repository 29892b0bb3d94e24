"""Cost of a model: parameters and multiply-accumulates, the super-resolution head included.

MACs are read off the jaxpr of the plain convolution forms: convolutions and matrix products,
a transposed convolution as input pixels x k^2 x Cin x Cout / groups; resizing, pooling, norms
and activations are left out.  Biases and norms are counted apart, for conventions that have them;
`paper_costs` holds those of the paper, all of which leave its head out.
"""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dsrl_jax import models
from dsrl_jax.errors import UserError
from dsrl_jax.models import dsrl as dsrl_model
from dsrl_jax.models import heads

_LEFT_OUT = {'resize', 'pool'}  # the scopes that ops.resize and ops.pooling open


class Operations(NamedTuple):
    """What a forward pass computes: multiply-accumulates of two kinds, and additions beside them.

    `conv2d` holds matrix products too; `biases` are the outputs of layers with a bias, `norms` the
    elements that batch norms in eval mode pass over.
    """

    conv2d: int = 0
    transposed: int = 0
    biases: int = 0
    norms: int = 0

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return self.conv2d + self.transposed


def report(net: str, size, *, num_classes: int = 20, dsrl=None, head=None, **options) -> dict:
    """`measure` of the network `net`, and what was asked for: a dict that JSON can hold.

    `dsrl` None counts the plain network, else the mode; `head` overrides the SSSR head; `options`
    go to models.create.  Raises UserError for a head without a mode that has one.
    """
    asked = {'net': net, 'size': list(size), 'num_classes': num_classes, 'dsrl': dsrl, **options}
    if head is not None:
        if dsrl in (None, 'none'):
            raise UserError('head', f'{head!r} with dsrl {dsrl!r}', 'a mode with SSSR', 'set dsrl.')
        options['sssr'] = {**dict(options.get('sssr') or {}), 'head': head}
    model = models.create(net, num_classes=num_classes, dsrl=dsrl, conv_impl='lax', **options)
    return {**asked, **measure(model, size)}


def measure(model, size) -> dict:
    """Parameters and MACs by branch of a model for one image of `size` = (H, W); nothing runs.

    In `params` and `macs`, `inference` is network + sssr and `training` the forward pass of every
    branch, auxiliary classifiers too (a backward pass adds about twice that); `conv2d` and
    `transposed` are the two parts of `macs`, `biases` the additions of `Operations`; `xla_flops`
    is XLA's own estimate for inference, if any.  The model must have been built with
    conv_impl='lax': the fast forms hide their convolutions.
    """
    wrapped = isinstance(model, dsrl_model.DSRL)
    variables = variable_shapes(model, size)
    image = _image(size)

    def train(variables, image, key):
        call = {'train': True, 'mutable': ['batch_stats'], 'rngs': {'dropout': key}}
        return model.apply(variables, image, **call)

    kept = dsrl_model.inference_variables(variables) if wrapped else variables
    predict = jax.jit(forward(model)).trace(kept, image)
    inference = _by_branch(predict.jaxpr.jaxpr)
    # Two images: a norm behind a global mean trains on no fewer.
    pair, key = _image(size, 2), jax.eval_shape(jax.random.key, 0)
    training = {
        branch: Operations(*(amount // 2 for amount in found))
        for branch, found in operations_by_branch(train, variables, pair, key).items()
    }
    trees = variables['params'] if wrapped else {'network': variables['params']}
    branches = {**training, **inference}
    params = {branch: count_params(trees.get(branch, {})) for branch in branches}
    inferred = sum(params[branch] for branch in dsrl_model.INFERENCE if branch in params)

    def split(part):
        counts = {branch: getattr(found, part) for branch, found in branches.items()}
        return {
            **counts,
            'inference': sum(getattr(found, part) for found in inference.values()),
            'training': sum(getattr(found, part) for found in training.values()),
        }

    macs = split('macs')
    return {
        'head': _head_name(model) if wrapped else None,
        'params': {**params, 'inference': inferred, 'training': sum(params.values())},
        'macs': macs,
        'conv2d': split('conv2d'),
        'transposed': split('transposed'),
        'biases': split('biases'),
        'flops': 2 * macs['inference'],
        'xla_flops': _xla_flops(predict),
    }


def variable_shapes(model, size):
    """The variables of every branch of a model as ShapeDtypeStructs, for images of `size`."""
    branches = {'sr': True} if isinstance(model, dsrl_model.DSRL) else {}
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(lambda key, x: model.init(key, x, **branches), key, _image(size))


def forward(model, every_output: bool = False):
    """The function (variables, image) -> scores in eval mode, or all outputs of the model."""

    def apply(variables, image):
        outputs = model.apply(variables, image, train=False)
        if every_output:
            return outputs
        return outputs['scores'] if 'scores' in outputs else outputs['logits']  # a classifier

    return apply


def count(model, variables, size, every_output: bool = False) -> Operations:
    """Operations of one image of `size`; `every_output` counts auxiliary classifiers too."""
    found = operations_by_branch(forward(model, every_output), variables, _image(size))
    return Operations(*map(sum, zip(*found.values())))


def count_params(tree) -> int:
    """How many numbers the arrays of a tree hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def count_macs(fn, *shapes) -> int:
    """Multiply-accumulates of fn(*shapes), trees of arrays or ShapeDtypeStructs; nothing runs.

    Only what the result needs is counted; a scan counts its length, a cond its dearest branch, a
    while loop one turn.
    """
    return sum(found.macs for found in operations_by_branch(fn, *shapes).values())


def operations_by_branch(fn, *shapes) -> dict[str, Operations]:
    """Operations as `count_macs`, {branch of DSRL: counts}; the network's are all the others."""
    return _by_branch(jax.make_jaxpr(fn)(*shapes).jaxpr)


def _by_branch(jaxpr):
    layers = defaultdict(Counter)
    for scopes, kind, amount in _walk(jaxpr, ()):
        layers[scopes][kind] += amount
    total = defaultdict(Operations)
    for scopes, spent in layers.items():
        # The addition in a layer that convolves is its bias; a layer that takes an inverse root
        # is a norm, which subtracts its mean once from each element.
        convolves = spent['conv2d'] or spent['transposed']
        found = Operations(
            spent['conv2d'],
            spent['transposed'],
            biases=spent['add'] if convolves else 0,
            norms=spent['sub'] if spent['rsqrt'] else 0,
        )
        branch = next((s for s in scopes if s in dsrl_model.BRANCHES), 'network')
        total[branch] = Operations(*map(sum, zip(total[branch], found)))
    return dict(total)


def _xla_flops(traced):
    """XLA's estimate before its optimisations, 2 per multiply-add; None where it gives none."""
    cost = traced.lower().cost_analysis()
    return float(cost['flops']) if cost else None


def _image(size, count=1):
    return jax.ShapeDtypeStruct((count, *size, 3), jnp.float32)


def _head_name(model):
    return next((name for name, head in heads.HEADS.items() if type(model.sssr) is head), None)


def _walk(jaxpr, outer):
    """Yield (names of the enclosing scopes, kind, amount) of every counted equation, in order."""
    for eqn in _live(jaxpr):
        # Differentiation writes scopes as jvp(name): the names alone matter.
        scopes = (*outer, *re.findall(r'[^/()]+', str(eqn.source_info.name_stack)))
        if _LEFT_OUT.intersection(scopes):
            continue
        name = eqn.primitive.name
        if name == 'conv_general_dilated':
            yield scopes, 'transposed' if _is_transposed(eqn) else 'conv2d', _conv_macs(eqn)
        elif name == 'dot_general':
            yield scopes, 'conv2d', _dot_macs(eqn)
        elif name in ('add', 'sub', 'rsqrt'):
            yield scopes, name, eqn.outvars[0].aval.size
        else:
            bodies = [list(_walk(inner, scopes)) for inner in _inner(eqn)]
            if name == 'cond':
                bodies = [max(bodies, key=_macs)]
            turns = eqn.params['length'] if name == 'scan' else 1
            yield from ((*found, turns * n) for body in bodies for *found, n in body)


def _macs(body):
    return sum(amount for _, kind, amount in body if kind in ('conv2d', 'transposed'))


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
    # Each kernel number meets each output pixel once, or each input pixel of a transposed
    # convolution: the zeros between them cost nothing.
    shape, spec = (left, layout.lhs_spec) if _is_transposed(eqn) else (out, layout.out_spec)
    batch, _, *spatial = spec
    return math.prod(shape[axis] for axis in (batch, *spatial)) * math.prod(kernel)


def _is_transposed(eqn):
    """Is the input spread with zeros?"""
    return any(d > 1 for d in eqn.params['lhs_dilation'])


def _dot_macs(eqn):
    (contracted, _), _ = eqn.params['dimension_numbers']
    left = eqn.invars[0].aval.shape
    return math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
