"""What every refusal of a user's mistake looks like, and the words of a toy run."""

import re

from dsrl_jax import cli

TINY = 'synthetic:tiny,net=toy_network:Toy'


def refused(capsys, argv, *named):
    """Run a command that must fail; its one line on stderr, which holds every text of `named`."""
    capsys.readouterr()
    code = cli.main([str(item) for item in argv])
    stderr = capsys.readouterr().err
    assert code == 2, f'exit code {code} of {argv}; stderr: {stderr}'
    assert_one_line(stderr, named)
    return stderr


def assert_one_line(stderr, named):
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    form = re.fullmatch(r'error: .+: found .+; expected .+; (?P<remedy>\S.+)', lines[0])
    assert form, lines[0]
    missing = [text for text in named if text not in lines[0]]
    assert not missing, f'{missing} not in: {lines[0]}'
