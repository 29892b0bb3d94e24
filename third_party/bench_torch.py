"""Times a PyTorch peer for `dsrl bench --peer=torch`: one question in, one JSON object out.

    python third_party/bench_torch.py '{"task": "check", "work": {...}}'
    python third_party/bench_torch.py '{"task": "time", "work": {...}, "variant": {...}, ...}'

`work` holds the fields of dsrl_jax.workload.Workload.  `check` compares full-size scores, and for
a training step every term of its loss, with ours (which run on the CPU) for the same random
weights, in float32; `time` answers the first call's seconds, the timings of dsrl_jax.timing and the
peak of the device's memory.  What runs is what dsrl_jax.workload describes: the step with all
losses (targets of heatmaps drawn in it) and SGD from a uint8 batch on the device, or
the float32 input on the device to the class map.  Tuned as one would: cudnn.benchmark, TF32 where
float32 is asked for, autocast for bfloat16, fused SGD, torch.compile at fixed shapes (CUDA graphs,
`reduce-overhead`, for predictions).
"""

import json
import math
import sys
import time

import peers
import torch
from peers.dsrl import DSRL, cross_entropy, inputs, losses, state_dict
from peers.heatmaps import heatmap_term
from peers.layers import enlarge

from dsrl_jax import config as configs
from dsrl_jax import timing, turns
from dsrl_jax.errors import UserError

DEVICE = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
FORMATS = {'contiguous': torch.contiguous_format, 'channels_last': torch.channels_last}


def main(question: dict) -> dict:
    """The answer to a question."""
    if question['task'] == 'check':
        return check(question['work'])
    names = ('work', 'variant', 'latency_batches', 'budget', 'turn')
    return measure(*(question[name] for name in names))


def check(work: dict) -> dict:
    """Largest difference of the full-size scores of a small image, ours against the peer's, in std.

    And `terms` of a training step, dropout left out: the relative difference of every term of its
    loss on a small random batch, from the uint8 view on.  Every array is random, statistics of
    norms too, so that none can be ignored unnoticed.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dsrl_jax import inference
    from dsrl_jax.models import heads
    from dsrl_jax.models.dsrl import inference_variables
    from dsrl_jax.workload import Workload, configuration

    options = {**work['options'], 'dropout': 0.0}
    small = {**work, 'dtype': 'float32', 'kind': 'exact', 'batch': 2, 'options': options}
    model = _model(small, training=work['train'])  # first: there may be no such peer
    small = Workload(**small)
    config = configuration(small)
    network = inference.build_network(config, small.num_classes)
    unit = network.multiple
    small = small._replace(size=tuple(min(n, unit * math.ceil(96 / unit)) for n in small.size))
    shapes = inference.abstract_variables(network, config)
    shapes = shapes if small.train else inference_variables(shapes)
    rng = np.random.default_rng(0)
    variables = jax.tree.map_with_path(lambda path, x: _random(rng, path[-1].key, x.shape), shapes)
    image = rng.normal(size=(small.batch, *small.size, 3)).astype(np.float32)

    run = jax.jit(lambda v, x: heads.logits(network.apply(v, x, train=False), small.view))
    ours = np.asarray(run(variables, jnp.asarray(image)))
    _set_tf32(False)
    model.load_state_dict(state_dict(small.net, variables, **small.options))
    with torch.inference_mode():
        outputs = model.to(DEVICE).eval()(torch.from_numpy(image).permute(0, 3, 1, 2).to(DEVICE))
        theirs = peers.logits(outputs, small.view).permute(0, 2, 3, 1).cpu().numpy()
    difference = float(np.abs(ours - theirs).max() / ours.std())
    found = {'difference': difference, 'torch': torch.__version__}
    if small.train:
        found['terms'] = _compare_terms(small, network, variables, model)
    return found


def _compare_terms(small, network, variables: dict, model: DSRL) -> dict:
    """{term of the loss: its relative difference}, ours of these variables against the model's."""
    import jax
    import optax

    from dsrl_jax import state, tasks
    from dsrl_jax.step import make_forward
    from dsrl_jax.workload import configuration

    config, task = configuration(small), tasks.of(network)
    batch = task.random_batch(config, small.num_classes)
    prepare = make_forward(network, task.make_loss(config, network), config)

    @jax.jit
    def ours(variables, batch):
        current = state.create(variables, optax.identity(), ema=False)
        return prepare(current, batch)[1](current.params)[0]

    ours = {name: float(value) for name, value in ours(variables, batch).items()}
    given = {name: torch.from_numpy(value).to(DEVICE) for name, value in batch.items()}
    truth = (given['joints'], given['visible']) if task is tasks.pose else given['label'].long()
    image, view = inputs(given['target'], *_color(), small.scale)
    with torch.no_grad():
        theirs = objective(model.train(), small._asdict())(image, view, truth, given['mask'])
    differ = {name: abs(theirs[name].item() - value) for name, value in ours.items()}
    return {name: value / abs(ours[name]) for name, value in differ.items()}


def measure(
    work: dict, variant: dict, latency_batches: list[int], budget: dict, turn: str | None
) -> dict:
    """Timings of one variant: mode eager or compile, memory_format contiguous or channels_last.

    With the folder `turn` every batch size is compiled first, then it waits for its turn.
    """
    torch.manual_seed(0)
    # Kernels are chosen by timing them: in training not beside others, but when it is our turn.
    # A graph of a prediction keeps those it was recorded with.
    torch.backends.cudnn.benchmark = turn is None or not work['train']
    _set_tf32(True)
    memory_format = FORMATS[variant['memory_format']]
    compiled = variant['mode'] == 'compile'
    make = training if work['train'] else prediction
    batches = [] if work['train'] else latency_batches
    start = time.perf_counter()
    calls = {n: _warm(make({**work, 'batch': n}, memory_format, compiled)) for n in [work['batch']]}
    first = time.perf_counter() - start
    for n in batches:
        if n not in calls:
            calls[n] = _warm(make({**work, 'batch': n}, memory_format, compiled))
    if turn is not None and DEVICE.type == 'cuda':
        torch.cuda.empty_cache()  # others have their turn first
    turns.wait(turn)
    torch.backends.cudnn.benchmark = True
    _warm(calls[work['batch']])
    if DEVICE.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
    step = timing.throughput(calls[work['batch']], wait, **budget)
    answer = {
        'step': step._asdict(),
        'first_seconds': first,
        'memory': torch.cuda.max_memory_allocated() if DEVICE.type == 'cuda' else None,
        'latency': {},
    }
    for n in batches:
        one = timing.latency(calls[n], wait, seconds=budget['seconds'])
        answer['latency'][str(n)] = one._asdict()
    return answer


def _warm(call):
    """The call, after three of them: the second records CUDA graphs."""
    for _ in range(3):
        wait(call())
    return call


def wait(_result) -> None:
    """Until the device has done what was queued; a CPU has when the call returns."""
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def prediction(work: dict, memory_format, compiled: bool):
    """`call()` -> class map [B, sH, sW] int64 (heatmaps for pose) of an image on the device."""
    model = _model(work, training=False).to(DEVICE, memory_format=memory_format).eval()
    image = torch.randn(work['batch'], 3, *work['size'], device=DEVICE)
    image = image.contiguous(memory_format=memory_format)
    view = _view(work)

    def predict(image):
        with _autocast(work):
            outputs = model(image)
            if model.task == 'pose':
                return outputs['scores']
            return enlarge(outputs['scores'], view, outputs['resize']).argmax(1)

    if compiled:
        predict = torch.compile(predict, mode='reduce-overhead', dynamic=False)

    def call():
        with torch.inference_mode():
            return predict(image)

    return call


def training(work: dict, memory_format, compiled: bool):
    """`call()` -> loss of one SGD step on a random uint8 batch on the device."""
    config = configs.base()
    model = _model(work, training=True).to(DEVICE, memory_format=memory_format).train()
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{'params': kernels, 'weight_decay': config.optimizer.weight_decay}, {'params': others}],
        lr=config.optimizer.lr,
        momentum=config.optimizer.momentum,
        fused=DEVICE.type == 'cuda',
    )
    shape = (work['batch'], *_view(work))
    target = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=DEVICE)
    mask = torch.ones(shape, dtype=torch.bool, device=DEVICE)
    truth, color = _random_truth(work, model.task), _color()
    terms = objective(model, work)

    def total(image, view):
        return terms(image, view, truth, mask)['total']

    if compiled:
        total = torch.compile(total, dynamic=False)

    def call():
        image, view = inputs(target, *color, work['scale'])
        image = image.contiguous(memory_format=memory_format)
        optimizer.zero_grad(set_to_none=True)
        loss = total(image, view)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return call


def objective(model: DSRL, work: dict):
    """`terms(image, view, truth, mask)`: those of dsrl.losses, weighed as our defaults are.

    image [B, 3, H, W] and view [B, 3, sH, sW] are those of dsrl.inputs; truth is label [B, sH, sW],
    or for pose joints [B, J, 2] and visible [B, J], and the heatmaps are drawn here.
    """
    config = configs.base()
    main = ('ce', cross_entropy)
    if model.task == 'pose':
        size = model.result_size(work['size'])
        main = heatmap_term(size, work['size'][0] // size[0], config.pose.sigma)

    def terms(image, view, truth, mask):
        with _autocast(work):
            return losses(
                model(image),
                view,
                truth,
                mask,
                main=main,
                aux_weight=model.aux_weight,
                mse_weight=config.mse.weight,
                fa_weight=config.fa.weight,
                scale=work['scale'],
                grid=config.fa.grid,
            )

    return terms


def _random_truth(work, task):
    """What `objective` wants, on the device; every joint visible and in the image."""
    if task != 'pose':
        shape = (work['batch'], *_view(work))
        return torch.randint(0, work['num_classes'], shape, device=DEVICE)
    height, width = work['size']
    joints = torch.rand(work['batch'], work['num_classes'], 2, device=DEVICE)
    joints *= torch.tensor([width - 1, height - 1], device=DEVICE)
    return joints, torch.ones(joints.shape[:2], device=DEVICE)


def _color():
    """Mean and standard deviation of an image, [3, 1, 1] on the device."""
    color = configs.base().data
    return tuple(torch.tensor(v, device=DEVICE)[:, None, None] for v in (color.mean, color.std))


def _model(work, *, training):
    if work['head'] not in (None, 'official_deconv'):
        raise UserError('--head', repr(work['head']), 'official_deconv', 'leave --head out.')
    network = peers.create(work['net'], work['num_classes'], **work['options'])
    mode = work['dsrl']
    if not training and mode != 'none':
        mode = 'sssr'  # the branch a prediction needs
    return DSRL(network, mode=mode, scale=work['scale'])


def _view(work):
    return tuple(work['scale'] * n for n in work['size'])


def _autocast(work):
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=work['dtype'] == 'bfloat16')


def _set_tf32(allowed):
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cuda.matmul.allow_tf32 = allowed


def _random(rng, name, shape):
    """Values of a variable of ours, by its name, that keep activations within sight of 1."""
    if name == 'kernel':
        values = rng.normal(size=shape) * math.sqrt(2 / math.prod(shape[:-1]))
    elif name in ('scale', 'var'):
        values = rng.uniform(0.5, 1.5, shape)
    elif name == 'slope':
        values = rng.uniform(0.1, 0.4, shape)
    else:
        values = 0.1 * rng.normal(size=shape)
    return values.astype('float32')


if __name__ == '__main__':
    try:
        answer = main(json.loads(sys.argv[1]))
    except UserError as error:
        answer = {'refused': [error.where, error.found, error.expected, error.remedy]}
    print(json.dumps(answer), flush=True)
