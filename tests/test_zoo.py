"""The zoo's models are the published ones: same numbers as the packages the weights come from."""

import importlib.util
import sys
import types
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qcompiler import zoo
from qcompiler.zoo import (
    data,
    efficientnet_lite,
    hf,
    minilm,
    mobilenet,
    mtcnn,
    packages,
    randomize,
    resnet,
    silero,
    unet,
)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ------------------------------------------------------------------------------ pretrained models


def test_lite0_recognises_the_labelled_pictures() -> None:
    pictures, labels = data.imagenet20()
    with torch.no_grad():
        logits = efficientnet_lite.load_efficientnet_lite0()(data.preprocess(pictures))
    top5 = logits.topk(5).indices.numpy()
    assert (top5[:, 0] == labels).sum() == 18
    assert (top5 == labels[:, None]).any(axis=1).sum() == 19


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_covers_the_input_as_tensorflow_does(
    size: int, kernel: int, stride: int
) -> None:
    conv = efficientnet_lite.SameConv(1, 1, kernel, stride, bias=False)
    nn.init.ones_(conv.weight)
    with torch.no_grad():
        out = conv(torch.ones(1, 1, size, size))[0, 0]
    expected = -(-size // stride)
    before = max((expected - 1) * stride + kernel - size, 0) // 2
    starts = np.arange(expected) * stride - before
    covered = [min(start + kernel, size) - max(start, 0) for start in starts]
    assert torch.equal(out, torch.outer(*2 * (torch.tensor(covered, dtype=torch.float32),)))


def test_minilm_equals_transformers() -> None:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    folder = packages.require(minilm.PACKAGE) / "model"
    published = load_file(folder / "model.safetensors")
    reference = BertModel(BertConfig.from_pretrained(str(folder))).eval()
    assert not reference.load_state_dict(published, strict=False).missing_keys
    ids, mask = minilm.tokenize(data.sentences(6), 48)
    with torch.no_grad():
        expected = reference(ids, mask).last_hidden_state
        found = minilm.load_minilm(pooled=False)(ids, mask)
        pooled = minilm.load_minilm()(ids, mask)
    assert mask.min() == 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    mean = torch.stack([row[keep != 0].mean(0) for row, keep in zip(expected, mask, strict=True)])
    torch.testing.assert_close(pooled, nn.functional.normalize(mean), atol=1e-5, rtol=0)


def test_minilm_finds_the_paraphrase() -> None:
    texts = ["A man is playing a guitar.", "Someone plays music.", "The bank cut its rates."]
    with torch.no_grad():
        embedded = minilm.load_minilm()(*minilm.tokenize(texts, 16))
    near, far = embedded[0] @ embedded[1], embedded[0] @ embedded[2]
    assert near > 0.5 > 0.2 > far


def test_tokens_are_cut_and_padded() -> None:
    ids, mask = minilm.tokenize(["one two three four five six", "one"], 5)
    assert ids.dtype == mask.dtype == torch.int64
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert ids[0, 0] == ids[1, 0] == 101 and ids[0, -1] == ids[1, 2] == 102


@pytest.fixture
def facenet(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """facenet-pytorch's network definitions; the detection code beside them needs torchvision."""
    path = packages.require("facenet_pytorch") / "models"
    for name in ("facenet", "facenet.utils", "facenet.utils.detect_face"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for function in ("detect_face", "extract_face"):
        setattr(sys.modules["facenet.utils.detect_face"], function, None)
    spec = importlib.util.spec_from_file_location("facenet.mtcnn", path / "mtcnn.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "size"), [("RNet", 24), ("ONet", 48)])
def test_face_nets_equal_facenet_pytorch(facenet: types.ModuleType, name: str, size: int) -> None:
    ours = {"RNet": mtcnn.load_rnet, "ONet": mtcnn.load_onet}[name]()
    pictures = torch.from_numpy(data.calibration_images(4)).permute(0, 3, 1, 2).float()
    x = (nn.functional.interpolate(pictures, size) - 127.5) / 128
    with torch.no_grad():
        expected, found = getattr(facenet, name)()(x), ours(x)
    assert len(found) == len(expected)
    for ours_, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours_, theirs, atol=1e-6, rtol=0)


def test_silero_equals_its_torchscript() -> None:
    path = packages.data_file("silero_vad", "data", "silero_vad.jit")
    reference = torch.jit.load(path)
    samples = 20 * silero.SAMPLES
    sweep = torch.sin(torch.linspace(0, 40, samples).square())
    audio = 0.5 * sweep * torch.sin(torch.linspace(0, 9, samples)) + 0.01 * randomize.noise(samples)
    with torch.no_grad():
        expected = torch.stack(
            [reference(chunk[None], 16000)[0, 0] for chunk in audio.split(silero.SAMPLES)]
        )
        found = silero.speech_probabilities(silero.load_silero(), audio)
    assert found.shape == (20,) and expected.std() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


# --------------------------------------------------------------------------- random-weight models


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (resnet.ResNet50, 25.557032),
        (mobilenet.make_v2, 3.504872),
        (lambda: mobilenet.make_v3(mobilenet.V3_SMALL, 1024), 2.542856),
        (lambda: mobilenet.make_v3(mobilenet.V3_LARGE, 1280), 5.483032),
    ],
    ids=["resnet50", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"],
)
def test_architectures_have_the_papers_sizes(model: type[nn.Module], millions: float) -> None:
    assert parameters(model()) == round(millions * 1e6)


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "mobilenet_v3_large", "unet"])
def test_random_weights_keep_every_layer_alive_and_bounded(name: str) -> None:
    model, inputs = zoo.load(name)
    seen: dict[str, torch.Tensor] = {}
    for key, layer in model.named_modules():
        if isinstance(layer, nn.BatchNorm2d | nn.Conv2d | nn.Linear):
            layer.register_forward_hook(
                lambda _, __, out, key=key: seen.update({key: out.detach()})
            )
    with torch.no_grad():
        model(*inputs)
    assert not model.training and len(seen) > 10
    assert {k: v for k, v in seen.items() if not v.std() > 0.02} == {}
    assert {k: v.abs().max() for k, v in seen.items() if not v.abs().max() < 100} == {}


def test_random_weights_answer_to_the_input_and_the_seed() -> None:
    x = (randomize.noise(1, 3, 96, 96),)
    first, again, other = (
        randomize.randomize_(unet.UNet(), x, seed=seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    norm = "down.0.0.1."
    for leaf in ("running_mean", "running_var", "weight", "bias"):
        assert first[norm + leaf].unique().numel() > 10
        assert not torch.equal(first[norm + leaf], other[norm + leaf])
    model, inputs = zoo.load("resnet50")
    with torch.no_grad():
        here, there = model(*inputs), model(randomize.noise(1, 3, 224, 224, seed=5))
    assert (here - there).norm() > 0.1 * here.norm()


@pytest.mark.parametrize(
    "source",
    [hf.bert_base, hf.vit_b16, hf.gpt2_small, hf.llama_tiny, hf.whisper_encoder],
    ids=lambda f: f.__name__,
)
def test_transformers_run_reduced_and_repeat(source: object) -> None:
    before = torch.random.get_rng_state()
    model, inputs = source(reduced=True)
    assert torch.equal(before, torch.random.get_rng_state())
    with torch.no_grad():
        out = next(iter(model(*inputs).values()))
    assert not model.training and out.isfinite().all() and out.std() > 0.05
    again = dict(source(reduced=True)[0].named_parameters())
    assert all(torch.equal(p, again[key]) for key, p in model.named_parameters())


def test_names_lead_to_sources() -> None:
    for source in zoo.MODELS.values():
        module, _, function = source.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    model, inputs = zoo.load("rnet")
    assert [tuple(y.shape) for y in model(*inputs)] == [(1, 4), (1, 2)]
    with pytest.raises(ValueError, match="no model 'vgg' in the zoo; there are: efficientnet"):
        zoo.load("vgg")


# ------------------------------------------------------------------------------------------- data


def test_calibration_pictures_are_many_repeatable_and_not_the_test_pictures() -> None:
    first, again = data.calibration_images(12), data.calibration_images(12)
    assert first.shape == (12, 224, 224, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, data.calibration_images(12, seed=1))
    assert len({picture.tobytes() for picture in first}) == 12
    test, _ = data.imagenet20()

    def small(pictures: np.ndarray) -> np.ndarray:
        blocks = pictures.reshape(-1, 8, 28, 8, 28, 3)
        cells = blocks.mean(axis=(2, 4, 5)).reshape(-1, 64)
        cells = cells - cells.mean(axis=1, keepdims=True)
        return cells / np.linalg.norm(cells, axis=1, keepdims=True)

    alike = small(data.calibration_images(64)) @ small(test).T
    assert alike.max() < 0.95 < (small(test) @ small(test[:, ::1]).T).max()


def test_preprocess_is_the_models_own() -> None:
    pixels = np.array([0, 127, 255], dtype=np.uint8).reshape(1, 1, 1, 3)
    assert data.preprocess(pixels).flatten().tolist() == [-127 / 128, 0.0, 1.0]
    item = next(data.lite0_calibration(1))
    assert item.shape == (1, 3, 224, 224) and item.dtype == torch.float32


def test_documents_come_with_how_similar_people_found_them() -> None:
    texts, judged = data.lee50()
    assert len(texts) == 50 and len(set(texts)) == 50 and judged.shape == (50, 50)
    assert (judged == judged.T).all() and (judged.diagonal() == 1).all()
    assert judged.min() >= 0 and judged.max() == 1 and len(np.unique(judged)) > 20


def test_sentences_are_enough_and_the_splits_differ() -> None:
    test, calibration = data.sentences(130), data.sentences(2000, "calibration")
    assert len(set(test)) == 130 and not set(test) & set(calibration)
    assert all(len(s.split()) >= 5 for s in test)
    with pytest.raises(ValueError, match="100000 sentences wanted, the test split has"):
        data.sentences(100000)
    ids, mask = next(data.minilm_batches(3, 32))
    assert ids.shape == mask.shape == (1, 32)


def test_a_missing_package_names_the_command() -> None:
    with pytest.raises(ImportError, match="'absent' is not installed: run pip install 'a-b'"):
        packages.require("absent", {"absent": "pip install 'a-b'"})
    with pytest.raises(ImportError, match=r"holds no data/none.jpg: install the version"):
        packages.data_file("foolbox", "data", "none.jpg")


# ------------------------------------------------------------------------------- language model


def test_smollm2_speaks_english_and_8_bit_weights_do_not_hurt_it() -> None:
    """Its perplexity on news it has not seen, as its authors' runtime has it: 37."""
    import qcompiler as qc
    from qcompiler.zoo import smollm2

    model, (first,) = zoo.load("smollm2")
    held = smollm2.windows(" ".join(data.sentences(130)), 2)
    assert held[0].shape == (1, smollm2.LENGTH)
    graph = qc.trace(model, (first,))
    eight = qc.quantize(graph, recipe="w8a16")

    def perplexity(call: Callable[[torch.Tensor], torch.Tensor]) -> float:
        losses = [F.cross_entropy(call(ids)[0, :-1], ids[0, 1:]) for ids in held]
        return float(torch.stack(losses).mean().exp())

    with torch.no_grad():
        plain = perplexity(model)
        assert 20 < plain < 60
        assert perplexity(lambda ids: qc.interpret(eight, ids)) < 1.01 * plain
