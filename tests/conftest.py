"""Eight virtual CPU devices for every test, set before anything imports JAX."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
).strip()
os.environ.setdefault("VIDGEN_COMPILE_CACHE", "off")  # not in the home of who tests
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import pytest

# A scalar per video that meets a whole video would broadcast over the wrong axis without a word.
jax.config.update("jax_numpy_rank_promotion", "raise")


_GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_addoption(parser):
    parser.addoption(
        "--golden",
        metavar="DIR",
        default=str(_GOLDEN),
        help="folder of golden cases, see test_golden",
    )


def pytest_generate_tests(metafunc):
    if "golden_folder" in metafunc.fixturenames:
        root = pathlib.Path(metafunc.config.getoption("--golden"))
        folders = sorted(path for path in root.glob("*") if path.is_dir())
        if not folders:
            raise pytest.UsageError(f"--golden={root} holds no case: give the folder above them.")
        metafunc.parametrize("golden_folder", folders, ids=lambda path: path.name)


def pytest_terminal_summary(terminalreporter):
    """Shows what golden cases recorded; reports carry it also from the workers of xdist."""
    for report in terminalreporter.stats.get("passed", ()):
        for name, share in report.user_properties:
            if name.startswith("golden ") and report.when == "call":
                line = f"{name.removeprefix('golden ')}: largest error {share:.1%} of the tolerance"
                terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def mesh():
    """A (data=4, fsdp=2) mesh over the eight devices."""
    from vidgen.training import sharding

    return sharding.make_mesh({"data": -1, "fsdp": 2})
