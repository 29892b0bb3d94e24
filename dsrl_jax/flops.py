"""`dsrl flops`: parameters and multiply-adds of a network, with and without its head."""

import argparse
import json

from dsrl_jax import costs
from dsrl_jax.errors import UserError
from dsrl_jax.models import heads

_TITLES = {
    'network': 'network',
    'sssr': 'SSSR head',
    'inference': 'inference: network + head',
    'sisr': 'SISR branch',
    'transform': 'feature transform',
    'training': 'training forward: all',
}


def flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `dsrl flops`."""
    parser.add_argument('--net', required=True, help='name of a network')
    parser.add_argument('--size', required=True, help='height and width of the input: 512x1024')
    parser.add_argument('--num_classes', type=int, default=20)
    parser.add_argument('--dsrl', help='none, sssr, sssr+sisr or full; default: the plain network')
    parser.add_argument('--head', help=f'SSSR head: {", ".join(heads.HEADS)}')
    parser.add_argument('--width', type=float, help='width of the network, where it has one')


def main(args) -> int:
    """Run `dsrl flops`; the last line of stdout is one JSON object."""
    options = {} if args.width is None else {'width': args.width}
    run(args.net, _size(args.size), args.num_classes, args.dsrl, args.head, options)
    return 0


def run(net: str, size, num_classes: int = 20, dsrl=None, head=None, options=None) -> dict:
    """Print the table of `report`, then the report as one JSON line, and return it."""
    found = costs.report(
        net, size, num_classes=num_classes, dsrl=dsrl, head=head, **(options or {})
    )
    print(
        f'{net}, {num_classes} classes, input {size[0]}x{size[1]}, '
        f'dsrl {dsrl or "none"}, head {found["head"] or "none"}'
    )
    print(f'{"":28}{"params":>12}{"M MACs":>12}{"G 2xMACs":>12}')
    for part, title in _TITLES.items():
        if part in found['params']:
            macs = found['macs'][part]
            print(f'{title:28}{found["params"][part]:12,}{macs / 1e6:12.2f}{2 * macs / 1e9:12.3f}')
    if found['xla_flops'] is not None:
        giga = found['xla_flops'] / 1e9
        print(f"XLA's own count for inference, resizing and norms in it: {giga:.3f} GFLOP")
    print("The paper's GFLOPs for ESPNetv2 are the 2xMACs of the network row, without the head.")
    print(json.dumps(found), flush=True)
    return found


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition('x')
    if not (height.isdigit() and width.isdigit()):
        raise UserError('--size', repr(text), 'HEIGHTxWIDTH', 'write it like 512x1024.')
    return int(height), int(width)
