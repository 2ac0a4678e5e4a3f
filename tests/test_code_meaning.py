"""A run is held to what its code says, not to how it is written down."""

import pytest
from small_job import write_job

from streamfluence.errors import InputError
from streamfluence.execution import Execution
from streamfluence.job_parser import load_job
from streamfluence.run import session
from streamfluence.run.resolve import open_run
from streamfluence.stages.collect import collect
from streamfluence.stages.sketch import sketch
from streamfluence.user_code import digest_of_source

SERIAL = Execution(executor="serial")
SOURCE = b"""
'''What it is.'''
import math

class Net:
    "A net."
    def f(self, x, *, y=1.0):
        return math.sin(x) + y * [1, (2,)][0]
"""
SAME = [
    SOURCE.replace(b"import math", b"import math  # for the sine"),
    SOURCE.replace(b"What it is.", b"Something else."),
    SOURCE.replace(b'    "A net."\n', b""),
    SOURCE.replace(b"x, *, y=1.0", b"\n        x,\n        *,\n        y=1.0,\n    "),
    SOURCE.replace(b"return math.sin(x) + y * ", b"return math.sin( x ) + \\\n            y*"),
    SOURCE.replace(b"1.0", b"1e0").replace(b"'''", b'"""'),
]
OTHER = [
    SOURCE.replace(b"1.0", b"1"),
    SOURCE.replace(b"(2,)", b"(2)"),
    SOURCE.replace(b"sin", b"cos"),
    SOURCE.replace(b"*, ", b""),
    SOURCE.replace(b"math.sin(x) + y *", b"(math.sin(x) + y) *"),
    SOURCE.replace(b"class Net:", b"class Net(object):"),
    SOURCE.replace(b"+ y", b"+ -y"),
    SOURCE + b"print()\n",
]


@pytest.mark.parametrize("source", SAME)
def test_comments_docstrings_and_layout_are_no_part_of_a_digest(source):
    assert source != SOURCE
    assert digest_of_source(source) == digest_of_source(SOURCE)


@pytest.mark.parametrize("source", OTHER)
def test_whatever_may_compute_something_else_is_part_of_it(source):
    assert digest_of_source(source) != digest_of_source(SOURCE)


def test_no_two_forms_are_one():
    pairs = [(b"x = 'a]'", b"x = ['a']"), (b"f(a=b)", b"f(a, b)"), (b"x = True", b"x = 1")]
    for one, other in [*pairs, (b"x = '1'", b"x = 1"), (b"x = b'1'", b"x = '1'")]:
        assert digest_of_source(one) != digest_of_source(other)


@pytest.mark.parametrize(
    "reads", [b"f.__doc__", b"inspect.getsource(f)", b"torch.jit.script(f)", b"open(__file__)"]
)
def test_code_that_looks_at_its_own_text_is_held_to_every_byte_of_it(reads):
    source = SOURCE + b"text = " + reads + b"\n"
    assert digest_of_source(source) != digest_of_source(source + b"# a comment\n")


def test_what_is_no_python_is_held_to_its_bytes():
    assert digest_of_source(b"PK\x03\x04\x00") != digest_of_source(b"PK\x03\x04\x01")
    assert digest_of_source(b"def f(:") != digest_of_source(b"def f(: ")


def test_a_comment_in_the_task_does_not_end_a_run_and_a_change_does(tmp_path):
    write_job(tmp_path, n=40)
    path, task = str(tmp_path / "run"), tmp_path / "task.py"
    open_run(load_job(tmp_path / "job.toml"), path)
    sketch(path, SERIAL)
    source = task.read_text()
    task.write_text('"""Now with a word about it."""\n' + source.replace("\n\n", "\n# a line\n\n"))
    session._session.cache_clear()
    open_run(load_job(tmp_path / "job.toml"), path)
    collect(path, ["train"], SERIAL)
    task.write_text(source.replace("nn.Tanh()", "nn.Sigmoid()"))
    session._session.cache_clear()
    with pytest.raises(
        InputError, match="changed since the run was made, and its code was not run"
    ):
        collect(path, ["test"], SERIAL)
