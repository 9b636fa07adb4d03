"""Two processes of two devices train every transform as one process of four devices does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import chex
import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path(__file__).with_name("train.py")


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def start(num_processes, process, port):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(4 // num_processes),
    }
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(num_processes), str(process), str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(process):
    try:
        output, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, errors[-4000:]
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
def test_two_processes_train_as_one():
    port = free_port()
    pair = [start(2, index, port) for index in range(2)]
    first, second = (result(process) for process in pair)
    assert first == second
    chex.assert_trees_all_close(first, result(start(1, 0, port)), rtol=1e-5, atol=1e-6)
