"""Data sets of the hub: sampled as published, cached, and a fast user error when they are not available."""

from __future__ import annotations

import errno
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import datasets
import pytest

from barber import hub_access
from barber.data import token_sets as calibration
from barber.data.hub import tokenizer_fingerprint
from barber.data.sources import tokenise
from barber.data.token_sets import load_calibration, load_evaluation
from barber.errors import UserError
from barber.hub_access import quick_offline
from barber.registry import DATA_SOURCES, DataSource, HubData, Split
from tests.support.tiny import story, tokenizer


@pytest.fixture
def tok():
    return tokenizer()


class TestHub:
    """The real `datasets` loaders, on data sets in local folders."""

    @pytest.fixture(autouse=True)
    def published(self, tmp_path, monkeypatch):
        for name, column in (("c4", "text"), ("wikitext2", "text"), ("ptb", "sentence")):
            folder = tmp_path / name
            folder.mkdir()
            for split in ("train", "validation", "test"):
                texts = [story(seed, 5 + seed % 60) for seed in range(60)]
                lines = [json.dumps({column: f"{split} {text}"}) for text in texts]
                (folder / f"{split}.jsonl").write_text("\n".join(lines))
            data = DATA_SOURCES[name].hub
            splits = [
                Split(split.name, split.join, split.first, f"{split.name}.jsonl" if split.files else None)
                for split in (data.calibration, data.evaluation)
            ]
            local = HubData(str(folder), column, *splits)
            monkeypatch.setitem(DATA_SOURCES, name, DataSource(name, name, local))

    def texts(self, split: str) -> list[str]:
        return [f"{split} {story(seed, 5 + seed % 60)}" for seed in range(60)]

    @pytest.mark.parametrize("spec", ["wikitext2", "ptb"])
    def test_calibration_draws_as_published(self, spec, tok, tmp_path):
        data = load_calibration(spec, tok, 4, 16, seed=7, window_start="none", cache_dir=str(tmp_path / "cache"))
        ids = tokenise(tok, " ".join(self.texts("train")))
        random.seed(7)
        starts = [random.randint(0, len(ids) - 16 - 1) for _ in range(4)]
        assert data.tokens.tolist() == [ids[start : start + 16] for start in starts]
        assert data.source == f"{spec} (train split)"

    def test_c4_calibration_draws_as_published(self, tok, tmp_path):
        data = load_calibration("c4", tok, 6, 40, seed=2, window_start="none", cache_dir=str(tmp_path / "cache"))
        texts, expected = self.texts("train"), []
        random.seed(2)
        while len(expected) < 6:
            ids = tokenise(tok, texts[random.randint(0, len(texts) - 1)])
            if len(ids) > 40:
                start = random.randint(0, len(ids) - 40 - 1)
                expected.append(ids[start : start + 40])
        assert data.tokens.tolist() == expected

    @pytest.mark.parametrize(
        ("spec", "split", "join"), [("wikitext2", "test", "\n\n"), ("ptb", "test", " "), ("c4", "validation", " ")]
    )
    def test_evaluation_joins_as_published(self, spec, split, join, tok, tmp_path):
        data = load_evaluation(spec, tok, 2, window_start="none", cache_dir=str(tmp_path / "cache"))
        ids = tokenise(tok, join.join(self.texts(split)))
        most = 256 if spec == "c4" else len(ids)
        assert len(ids) // 2 > 256
        assert data.tokens.tolist() == [ids[i : i + 2] for i in range(0, len(ids) - 1, 2)][:most]
        assert data.dataset == f"{spec} ({split} split)"

    def test_the_key_of_the_token_cache_has_everything_that_changes_tokens(self, tok, tmp_path, monkeypatch):
        cache = str(tmp_path / "cache")
        made = load_calibration("ptb", tok, 4, 16, 0, cache_dir=cache)
        files = list((tmp_path / "cache" / "barber").iterdir())
        assert [path.suffix for path in files] == [".safetensors"]
        data = DATA_SOURCES["ptb"].hub
        gone = HubData(data.path, "gone", data.calibration, data.calibration)
        monkeypatch.setitem(DATA_SOURCES, "ptb", DataSource("ptb", "ptb", gone))
        assert load_calibration("ptb", tok, 4, 16, 0, cache_dir=cache).tokens.equal(made.tokens)
        for other in ({"seed": 1}, {"samples": 5}, {"seqlen": 17}, {"tokenizer": tokenizer(extra="é")}):
            given = {"tokenizer": tok, "samples": 4, "seqlen": 16, "seed": 0} | other
            with pytest.raises(
                ValueError, match="gone"
            ):  # not from the cache: it reads the data set, which has changed
                load_calibration("ptb", **given, cache_dir=cache)
        files[0].write_bytes(b"damaged")
        with pytest.raises(ValueError, match="gone"):
            load_calibration("ptb", tok, 4, 16, 0, cache_dir=cache)

    def test_no_document_long_enough(self, tok, tmp_path, monkeypatch):
        monkeypatch.setattr(calibration, "DRAWS", 100)
        with pytest.raises(UserError, match="more than 500 tokens"):
            load_calibration("c4", tok, 1, 500, 0, cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("spec", ["c4", "wikitext2", "ptb"])
@pytest.mark.timeout(20)
def test_an_unreachable_hub_is_a_user_error(spec, tok, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access, "reachable", lambda: False)
    with pytest.raises(UserError, match=rf"^Data set {spec} \(.*the hub cannot be reached.*\.$"):
        load_evaluation(spec, tok, 16, cache_dir=str(tmp_path))
    assert datasets.config.HF_HUB_OFFLINE is False


def test_one_request_shows_whether_the_hub_is_reachable(monkeypatch):
    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(503)

        def log_message(self, *args):
            pass

    monkeypatch.setattr(hub_access.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        monkeypatch.setattr(hub_access.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        with quick_offline():
            assert datasets.config.HF_HUB_OFFLINE is False
        thread.join(10)
    with quick_offline():  # the server is closed
        assert datasets.config.HF_HUB_OFFLINE is hub_access.constants.HF_HUB_OFFLINE is True
    assert datasets.config.HF_HUB_OFFLINE is hub_access.constants.HF_HUB_OFFLINE is False


def test_the_last_that_leaves_restores_the_settings(monkeypatch):
    monkeypatch.setattr(hub_access.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_access.constants, "ENDPOINT", "http://127.0.0.1:9")
    first, second = quick_offline(), quick_offline()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert datasets.config.HF_HUB_OFFLINE is hub_access.constants.HF_HUB_OFFLINE is True
    second.__exit__(None, None, None)
    assert datasets.config.HF_HUB_OFFLINE is hub_access.constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach it"), "connect to the network"),
        (FileNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "it is gated: ask for access"),
        (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist.\nmore"), "the hub has none of that name"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: make room"),
        (PermissionError(errno.EACCES, "Permission denied"), "its cache may not be written"),
        (ValueError("internal words of the library\nmore"), r"is broken \(ValueError\): try again"),
    ],
)
def test_every_failed_download_names_the_remedy(error, message, tok, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=message):
        load_calibration("c4", tok, 4, 16, 0, cache_dir=str(tmp_path))


def test_the_fingerprint_differs_between_tokenizers(tok):
    assert tokenizer_fingerprint(tok) == tokenizer_fingerprint(tokenizer())
    assert tokenizer_fingerprint(tok) != tokenizer_fingerprint(tokenizer(extra="é"))
