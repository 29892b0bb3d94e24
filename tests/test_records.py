"""Files that several processes write and read at once."""

import json
import subprocess
import sys

WRITE = """
import json, pathlib, sys
from dsrl_jax.records import replace
for turn in range(500):
    replace(pathlib.Path(sys.argv[1]), json.dumps([sys.argv[2]] * 20000))
"""


def test_a_file_that_processes_replace_at_once_is_always_one_of_theirs(tmp_path):
    file = tmp_path / 'ladder.json'
    running = [
        subprocess.Popen([sys.executable, '-c', WRITE, str(file), name], stderr=subprocess.PIPE)
        for name in 'ab'
    ]
    seen = set()
    while any(process.poll() is None for process in running):
        if file.is_file():
            (name,) = set(json.loads(file.read_text()))
            seen.add(name)
    for process in running:
        assert process.wait() == 0, process.stderr.read().decode()
    assert seen == {'a', 'b'}
    assert list(tmp_path.iterdir()) == [file]
