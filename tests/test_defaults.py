"""What ``auto`` means: the blocks of the curvature, the projection and its width."""

import tomllib

import pytest

from streamfluence.errors import InputError
from streamfluence.job_parser import parse_job
from streamfluence.run.defaults import blocks_of, decisive, projection_of, width_of

JOB = """
task = "task.py"
checkpoints = ["model.pt"]
[train]
reader = "arrays"
path = "x.npz"
[curvature]
"""


@pytest.mark.parametrize(
    "told, blocks",
    [
        ("", "joint"),
        ("damping = 0.1", "joint"),
        ("weight_decay = 0.1", "layer"),
        ("weight_decay = 0.1\nlearning_rate = 0.1\nsteps = 9", "joint"),
        ("weight_decay = 0.1\nblocks = 'joint'", "joint"),
        ("damping = 0.1\nblocks = 'layer'", "layer"),
        ("[projection]\nwidth = 4097", "layer"),
        ("[projection]\nname = 'identity'", "layer"),
        ("name = 'diagonal'", "layer"),
        ("name = 'diagonal'\nblocks = 'joint'", "joint"),
        ("name = 'diagonal'\n[projection]\nname = 'principal'", "joint"),
    ],
)
def test_blocks_follow_from_what_is_known_of_the_damping(tmp_path, told, blocks):
    assert blocks_of(parse_job(tomllib.loads(JOB + told), tmp_path)) == blocks


@pytest.mark.parametrize(
    "told, projection, width",
    [
        ("", "principal", 1024),
        ("[rows]\nbytes = 64", "principal", 1024),
        ("[rows]\nbytes = 768", "principal", 1536),
        ("[rows]\nbytes = 4096", "principal", 2048),
        ("weight_decay = 0.1", "spectral", 2048),
        ("weight_decay = 0.1\n[rows]\nbytes = 64", "spectral", 1024),
        ("blocks = 'layer'\n[rows]\nbytes = 4096", "spectral", 4096),
        ("name = 'identity'", "spectral", 2048),
        ("name = 'diagonal'", "spectral", 2048),
        ("name = 'diagonal'\nblocks = 'joint'", "spectral", 2048),
        ("[projection]\nname = 'gaussian'\nwidth = 7", "gaussian", 7),
        ("weight_decay = 0.1\n[projection]\nname = 'principal'", "principal", 1024),
        ("[projection]\nwidth = 4097", "spectral", 4097),
    ],
)
def test_the_projection_follows_from_the_blocks_and_the_width_from_the_bytes(
    tmp_path, told, projection, width
):
    job = parse_job(tomllib.loads(JOB + told), tmp_path)
    assert (projection_of(job), width_of(job)) == (projection, width)
    wanted = decisive(job)["projection"]
    assert (wanted["name"], wanted["width"]) == (projection, width)


def test_directions_over_all_layers_under_a_curvature_by_layer_are_refused(tmp_path):
    told = "blocks = 'layer'\n[projection]\nname = 'principal'"
    with pytest.raises(InputError, match="'spectral'"):
        parse_job(tomllib.loads(JOB + told), tmp_path)
