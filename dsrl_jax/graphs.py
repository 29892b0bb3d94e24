"""Predictions on a GPU as one CUDA graph: a small request costs its kernels, not their launches.

By default XLA records no convolution, so a network falls into as many graphs as it has of them and
a request of one image waits for the host (ESPNetv2 on an H100: 1.3 ms of kernels in 2.8 ms).
"""

import jax

COMMANDS = (
    *('FUSION', 'CUBLAS', 'CUBLASLT', 'CUDNN', 'CUSTOM_CALL', 'CONVOLUTION'),
    'DYNAMIC_SLICE_FUSION',
)
_NO_GRAPH = {'xla_gpu_graph_min_graph_size': 1_000_000}
_GRAPH = {'xla_gpu_enable_command_buffer': ','.join(COMMANDS), 'xla_gpu_graph_min_graph_size': 2}


def compile_graph(lowered, arguments: tuple):
    """The executable of a lowered function, on a GPU with everything in graphs; and its form.

    'graph', or 'plain' where there is no GPU or the graph could not be recorded.  `arguments` are
    of the shapes it will be called with.
    """
    if jax.default_backend() != 'gpu':
        return lowered.compile(), 'plain'
    # Libraries load a kernel when it first runs, which is forbidden while a graph is recorded.
    plain = lowered.compile(compiler_options=_NO_GRAPH)
    jax.block_until_ready(plain(*arguments))
    try:
        graph = lowered.compile(compiler_options=_GRAPH)
        jax.block_until_ready(graph(*arguments))
    except jax.errors.JaxRuntimeError:
        return lowered.compile(), 'plain'
    return graph, 'graph'
