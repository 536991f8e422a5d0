"""The demo end to end: the bars its accuracy must clear, and everything it says it writes."""

import zipfile
from pathlib import Path

import pytest
import torch

import qcompiler as qc
from qcompiler import demo, passes
from qcompiler.report import Report
from qcompiler.zoo.data import imagenet20, preprocess

TOP1, TOP5 = 17, 19  # of 20 pictures; torch's float32 has 18 and 19
SQNR_DB = 20.0  # 22 dB were measured; without bias correction it is 17.5
IMAGES = 16  # half of the demo's calibration, for time


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> demo.Outcome:
    return demo.main(tmp_path_factory.mktemp("demo"), images=IMAGES, rounds=2)


def test_int8_is_nearly_as_right_as_float32(outcome: demo.Outcome) -> None:
    score = outcome.scores[demo.INT8]
    assert score.top1 >= TOP1 and score.top5 >= TOP5
    assert score.agree >= TOP1
    assert SQNR_DB <= score.sqnr_db < 40


def test_float32_is_as_right_as_torch(outcome: demo.Outcome) -> None:
    torchs, ours = outcome.scores[demo.TORCH], outcome.scores[demo.FLOAT32]
    assert (torchs.top1, torchs.top5, torchs.agree) == (18, 19, 20)
    assert (ours.top1, ours.top5, ours.agree) == (18, 19, 20)
    assert ours.sqnr_db > 80
    assert torchs.sqnr_db == float("inf")


def test_everything_is_integer_and_a_quarter_of_the_size(outcome: demo.Outcome) -> None:
    report = outcome.report
    assert report.integer_share == 1.0 and not report.floats
    assert (report.quantizes, report.dequantizes) == (1, 1)
    assert report.macs == pytest.approx(385e6, rel=0.01)
    assert 3.5 < outcome.scores[demo.TORCH].bytes / outcome.scores[demo.INT8].bytes < 4


def test_the_program_it_saved_is_the_graph_it_dumped(outcome: demo.Outcome) -> None:
    """The program, loaded, gives the interpreter's bits for the graph read back from its text."""
    model = qc.load(str(outcome.out / "m.qcm"), threads=1)
    (integer,) = outcome.out.glob(f"graphs/{len(passes.QUANTIZE):02}_*.qir")
    graph = qc.load_graph(integer)
    assert graph.level is qc.Level.INTEGER
    for x in preprocess(imagenet20()[0][:2]).split(1):
        assert torch.equal(model(x), qc.interpret(graph, x))
    assert model.report == outcome.report
    assert set(model.report.times_ms) == set(outcome.scores)


def test_one_dump_for_each_pass(outcome: demo.Outcome) -> None:
    names = [f.stem for f in sorted(outcome.out.glob("graphs/*.qir"))]
    expected = ["input", *(p.name for p in (*passes.QUANTIZE, *passes.BUILD))]
    assert names == [f"{k:02}_{name}" for k, name in enumerate(expected)]


def test_the_page_shows_results_and_no_pictures(outcome: demo.Outcome) -> None:
    page = (outcome.out / "report.html").read_text()
    assert "17.91 MiB" in page and "SQNR of logits" in page
    assert page.count('<figure id="w-') == 50  # a histogram for each layer with weights
    assert page.count('<figure id="a-') == 51  # and for each tensor of codes
    assert "<img" not in page and "data:image" not in page and "imagenet" not in page


def test_the_artifact_holds_no_pictures(outcome: demo.Outcome) -> None:
    with zipfile.ZipFile(outcome.out / "m.qcm") as archive:
        assert not [n for n in archive.namelist() if n.endswith((".png", ".jpg", ".npz"))]
        stored = next(n for n in archive.namelist() if n.endswith("report.json"))
        assert Report.from_json(archive.read(stored).decode()) == outcome.report


def test_the_table_says_what_was_found(outcome: demo.Outcome) -> None:
    found = dict((row[0], row[1:]) for row in demo.rows(outcome))
    assert found["top-1"][2] == f"{outcome.scores[demo.INT8].top1} of 20"
    assert found["model size"][:1] == ("17.91 MiB",)
    assert found["against torch"] == ("1.00x", *found["against torch"][1:])
    text = "\n".join(demo.remarks(outcome))
    assert "100.0 % of 385.2 M multiply-adds" in text
    assert "stayed float: nothing" in text


def test_scores_count_what_is_right() -> None:
    reference = torch.eye(6)[:3] * 2
    logits = reference.clone()
    logits[2, 5] = 3.0  # the first class is wrong, the right one is second
    score = demo.score(logits, reference, [0, 1, 2], 10, 1.5)
    assert (score.top1, score.top5, score.agree) == (2, 3, 2)
    assert score.sqnr_db == pytest.approx(10 * torch.tensor(12 / 9).log10().item(), abs=1e-4)


def test_a_missing_package_is_named_with_the_cure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "PACKAGES", ("torch", "no_such_package"))
    with pytest.raises(demo.DemoError) as error:
        demo.main(tmp_path / "out")
    text = str(error.value)
    assert text == "the demo needs no_such_package: pip install 'qcompiler[demo]'"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(demo.DemoError, match=r"file/out.*choose another folder"):
        demo.main(tmp_path / "file" / "out")


def test_torch_gets_its_threads_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(KeyError), demo.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before
