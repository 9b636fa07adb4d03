import gzip
import hashlib
import http.server
import os
import threading
from pathlib import Path

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.problems import PROBLEMS, analytic, data, idx, logistic, named
from tests.benchmarks.helpers import invoke


def test_a_missing_file_says_which_command_brings_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="`python -m benchmarks download libsvm`"):
        data.read(tmp_path, "a9a")
    with pytest.raises(FileNotFoundError, match=r"--data-dir FOLDER .*download text"):
        data.read(None, "tinyshakespeare.txt")


def test_files_are_found_in_the_folder_or_its_sub_folder_gzipped_or_not(tmp_path):
    (tmp_path / "a9a").write_bytes(b"1 1:1\n")
    (tmp_path / "libsvm").mkdir()
    (tmp_path / "libsvm" / "w8a.gz").write_bytes(gzip.compress(b"-1 2:1\n"))
    assert data.read(tmp_path, "a9a") == b"1 1:1\n"
    assert data.read(tmp_path, "w8a") == b"-1 2:1\n"
    assert data.provenance("a9a", b"1 1:1\n").startswith(" [not the published a9a: sha256 ")


def test_download_refuses_a_file_with_another_checksum(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text("To be", encoding="utf-8")
    result = invoke("download", "text", "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert "checksum" in result.words
    wrong = invoke("download", "imagenet")
    assert wrong.exit_code == 2
    assert "libsvm, mnist, text" in wrong.words


_PLAIN, _PACKED = b"To be, or not to be " * 50, gzip.compress(b"\0\0\10\1" * 99)


@pytest.fixture
def server(monkeypatch):
    """Serves the published files, the same changed, and one that breaks off in the middle."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served = {"plain": _PLAIN, "packed.gz": _PACKED, "changed": _PLAIN[1:], "torn": _PLAIN}
            name = self.path.strip("/")
            if name not in served:
                self.send_error(404)
                return
            content = served[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:10] if name == "torn" else content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{running.server_port}/"
        checksum = f"sha256:{hashlib.sha256(_PLAIN).hexdigest()}"
        unpacked = hashlib.md5(gzip.decompress(_PACKED)).hexdigest()
        served = hashlib.sha256(_PACKED).hexdigest()
        files = [
            data.DataFile("plain", "text", url + "plain", checksum),
            data.DataFile(
                "packed", "mnist", url + "packed.gz", f"md5:{unpacked}", f"sha256:{served}"
            ),
            data.DataFile("changed", "text", url + "changed", checksum),
            data.DataFile("torn", "text", url + "torn", checksum),
            data.DataFile("gone", "text", url + "gone", checksum),
        ]
        monkeypatch.setattr(data, "FILES", {file.name: file for file in files})
        yield
        running.shutdown()
        thread.join()


@pytest.mark.usefixtures("server")
def test_download_fetches_what_is_published_and_leaves_nothing_else(tmp_path):
    assert data.download(tmp_path, "plain") == tmp_path / "text" / "plain"
    assert data.download(tmp_path, "packed") == tmp_path / "mnist" / "packed"
    assert data.read(tmp_path, "packed") == gzip.decompress(_PACKED)
    with pytest.raises(ValueError, match=r"http://.*/changed may have changed: .*does not match"):
        data.download(tmp_path, "changed")
    with pytest.raises(OSError, match=r"torn|IncompleteRead|Connection broken"):
        data.download(tmp_path, "torn")
    with pytest.raises(OSError, match="404"):
        data.download(tmp_path, "gone")
    left = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["packed", "packed.gz", "plain"]
    # Already there: a server that has nothing is not asked.
    (tmp_path / "text" / "gone").write_bytes(_PLAIN)
    data.download(tmp_path, "gone")
    (tmp_path / "text" / "gone").write_bytes(_PLAIN[:-1])
    with pytest.raises(ValueError, match="remove it and call download again"):
        data.download(tmp_path, "gone")


@pytest.mark.usefixtures("server")
def test_the_download_command_says_what_a_server_refused(tmp_path):
    result = invoke("download", "text", "--data-dir", tmp_path)
    assert result.exit_code == 2
    assert "may have changed" in result.words


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2]), bytes([0, 0, 8, 3, 0])]
)
def test_what_is_not_an_idx_file_is_refused(content):
    with pytest.raises(ValueError, match="the images"):
        idx.parse(content, "images")


def test_libsvm_labels_of_either_convention_become_zero_and_one():
    for low, high in (("-1", "+1"), ("1", "2")):
        features, labels = logistic.parse(f"{low} 1:1 3:0.5\n{high} 2:1\n".encode())
        np.testing.assert_array_equal(features, [[1, 0, 0.5], [0, 1, 0]])
        np.testing.assert_array_equal(labels, [0, 1])
    with pytest.raises(ValueError, match="two labels, the file has 3"):
        logistic.parse(b"1 1:1\n2 1:1\n3 1:1\n")


def test_the_logistic_loss_is_that_of_its_probabilities(tmp_path):
    rows = np.random.default_rng(0).integers(0, 2, (20, 4))
    lines = [
        f"{2 * (i % 2) - 1} " + " ".join(f"{j + 1}:1" for j in range(4) if row[j] or j == 3)
        for i, row in enumerate(rows)
    ]
    (tmp_path / "a9a").write_text("\n".join(lines) + "\n", encoding="utf-8")
    problem = PROBLEMS["a9a"](tmp_path)
    params = {"weight": jnp.array([0.3, -1.0, 2.0, 0.1]), "bias": jnp.array(-0.2)}
    x, y = problem.train["x"], problem.train["y"]
    probability = 1 / (1 + np.exp(-(np.asarray(x) @ np.asarray(params["weight"]) - 0.2)))
    expected = -np.mean(np.where(np.asarray(y) == 1, np.log(probability), np.log(1 - probability)))
    expected += logistic.L2 / 2 * (0.09 + 1 + 4 + 0.01)
    assert float(problem.loss(params, problem.train)) == pytest.approx(expected, rel=1e-5)
    composed = problem.output_loss(problem.outputs(params, problem.train), problem.train)
    assert float(composed) < expected


def test_the_targets_of_logistic_regression_are_just_above_their_minima():
    # From the published mushrooms file, where it is at hand: Newton's method agrees with the recorded minimum.
    folder = os.environ.get("OPTAX_IGR_DATA")
    if folder is None or data.find(Path(folder), "mushrooms") is None:
        pytest.skip("needs the mushrooms file in OPTAX_IGR_DATA")
    problem = PROBLEMS["mushrooms"](Path(folder))
    examples = jax.tree.map(lambda x: jnp.asarray(x, float), problem.train)
    flat, unravel = jax.flatten_util.ravel_pytree(
        jax.tree.map(lambda x: x.astype(float), problem.init(jax.random.key(0)))
    )

    def loss(x):
        return problem.loss(unravel(x), examples)

    for _ in range(20):
        hessian = jax.hessian(loss)(flat) + 1e-12 * jnp.eye(len(flat))
        flat -= jnp.linalg.solve(hessian, jax.grad(loss)(flat))
    assert float(loss(flat)) == pytest.approx(logistic.OPTIMA["mushrooms"], rel=1e-8)
    assert problem.target.value == logistic.TARGET_RATIO * logistic.OPTIMA["mushrooms"]


def test_the_minima_of_the_analytic_problems_are_where_they_are_said_to_be():
    for problem, minimum in (
        (analytic.quadratic(dimension=5), jnp.zeros(5)),
        (analytic.rosenbrock(dimension=4), jnp.ones(4)),
        (analytic.scalar_product(), jnp.full(2, 0.6**0.5)),
    ):
        np.testing.assert_allclose(jax.grad(problem.loss)(minimum, None), 0, atol=1e-6)
        assert float(problem.loss(minimum, None)) == pytest.approx(0, abs=1e-12)
    curvature = jax.hessian(analytic.quadratic(dimension=5).loss)(jnp.ones(5), None)
    eigenvalues = np.linalg.eigvalsh(curvature)
    np.testing.assert_allclose(eigenvalues, np.geomspace(1e-3, 1, 5), rtol=1e-4, atol=1e-7)


def test_the_transformer_predicts_from_the_past_alone(tmp_path):
    (tmp_path / "tinyshakespeare.txt").write_text(
        "to be or not to be, that is the question " * 20, encoding="utf-8"
    )
    problem = PROBLEMS["shakespeare"](tmp_path, length=8, width=8, depth=1, num_heads=2)
    params = problem.init(jax.random.key(0))
    window = problem.train[:1]
    before = problem.outputs(params, window)
    # The last token read is the second last of the window: its own prediction alone may change.
    after = problem.outputs(params, window.at[0, -2].set((window[0, -2] + 1) % 3))
    np.testing.assert_allclose(before[0, :-1], after[0, :-1], atol=1e-6)
    assert not np.allclose(before[0, -1], after[0, -1])


def test_a_wrong_problem_lists_the_right_ones():
    with pytest.raises(ValueError, match=r"unknown problem 'digit'; choose from .*digits"):
        named(["digit"], None)
