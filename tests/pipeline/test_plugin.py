"""Tokenizers of others pass the suite that ours pass: run, resume, verify, load, reconstruct."""

from __future__ import annotations

import importlib.metadata
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from jobs import reconstruct
from pipeline.chosen_tokenizer import token_spec
from pipeline.dataset import TokenDataset
from pipeline.errors import FingerprintMismatch, PipelineError
from pipeline.verify import main as verify
from tests.pipeline import runs
from tests.pipeline.foreign import Palette
from tokenizer import ConfigError, PluginConfig, Setting, open_tokenizer

README = Path(__file__).parents[2] / "tokenizer" / "README.md"
HERE = "tests.pipeline.foreign"
BOTH = {
    "palette": (f"{HERE}:Palette", (), [2, 8, 8]),
    "cosines": ("my_vae:MyVae", ("output.latent_dtype=fp32",), [48, 4, 2, 2]),
}
"""Plugin, overrides, shape of a clip's tokens at 32 x 32."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.write_shards(tmp_path_factory.mktemp("shards"), num_shards=2, num_videos=2)


@pytest.fixture(scope="module", autouse=True)
def my_vae(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The code of the how-to, as somebody would copy it."""
    code = re.search(r'```python\n(""".*?my_vae.*?)```', README.read_text(), re.DOTALL)
    assert code is not None
    assert len(code[1].splitlines()) <= 60
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_vae.py").write_text(code[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def overrides(plugin: str, shards: str, out: Path, *more: str) -> tuple[str, ...]:
    return (
        *("+dataset=tars", f"dataset.shards={shards}", "+tokenizer=plugin", "tokenizer.name=mine"),
        *(f"tokenizer.plugin={plugin}", "sampling.resolution=32", "encoder.threads=1"),
        *("encoder.decoders=1", "encoder.batch_clips=2", f"output.root={out}", *more),
    )


def run(plugin: str, shards: str, out: Path, *more: str) -> int:
    return runs.execute_here(*overrides(plugin, shards, out, *more))


@pytest.fixture(scope="module", params=BOTH)
def made(
    request: pytest.FixtureRequest, shards: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A finished run of each."""
    out = tmp_path_factory.mktemp(request.param)
    plugin, more, _ = BOTH[request.param]
    assert run(plugin, shards, out, *more) == 0
    return request.param, out


def test_rows_say_what_the_spec_says(made: tuple[str, Path]) -> None:
    name, out = made
    found = runs.rows(out)
    assert len(found) == 4 * (40 // (9 if name == "palette" else 12))
    assert {tuple(row["token_shape"]) for row in found.values()} == {tuple(BOTH[name][2])}
    assert len({row["tokens"] for row in found.values()}) == len(found)
    material = json.loads((out / "run.json").read_text())["fingerprint_of"]["tokenizer"]
    assert (material["name"], material["plugin"]) == ("mine", BOTH[name][0])


def test_verify_and_a_second_tokenisation_find_it_sound(
    made: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify([str(made[1]), "--deep", "--sample", "4"]) == 0
    said = capsys.readouterr().out
    assert "sound: 2 receipts" in said
    assert re.search(r"tokenised again: (\d+) clips of \d videos, \1 bit-equal", said)


def test_a_run_that_was_cut_off_ends_with_the_same_rows(
    made: tuple[str, Path], shards: str, tmp_path: Path
) -> None:
    name, out = made
    plugin, more, _ = BOTH[name]
    first = shards.replace("{00000..00001}", "00000")
    assert run(plugin, first, tmp_path, *more, "commit.max_clips=1") == 0
    last = sorted((tmp_path / "receipts").glob("*.json"))[-1]
    last.unlink()
    assert run(plugin, shards, tmp_path, *more) == 0
    assert runs.rows(tmp_path) == runs.rows(out)


def test_the_loader_gives_what_the_tokenizer_gave(made: tuple[str, Path]) -> None:
    name, out = made
    [batch] = TokenDataset(str(out), batch_size=len(runs.rows(out)))
    assert "log_variance" not in batch
    assert list(batch["tokens"].shape[1:]) == BOTH[name][2]
    if name == "palette":
        assert batch["tokens"].dtype == torch.int32
        assert 0 <= batch["tokens"].min() <= batch["tokens"].max() < 64
        with pytest.raises(ValueError, match="tokens_dtype=codes is for FSQ; mine has another"):
            list(TokenDataset(str(out), batch_size=1, tokens_dtype="codes"))
        return
    assert batch["tokens"].dtype == torch.float32
    with pytest.raises(ValueError, match=r"latents=sample needs a log-variance; mine gives"):
        list(TokenDataset(str(out), batch_size=1, latents="sample"))
    [normal] = TokenDataset(str(out), batch_size=len(runs.rows(out)), normalize=True)
    assert normal["tokens"].mean(dim=(0, 2, 3, 4)).abs().max() < 1e-3


def test_a_clip_becomes_video_again(made: tuple[str, Path], tmp_path: Path) -> None:
    name, out = made
    row = next(iter(runs.rows(out).values()))
    target = tmp_path / "clip.mp4"
    assert reconstruct.main([str(target), "--from", str(out), "--clip-id", row["clip_id"]]) == 0
    with av.open(str(target)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(pictures) == len(row["frame_seconds"])
    with av.open(io.BytesIO(runs.video(0))) as container:
        source = next(container.decode(video=0)).to_ndarray(format="rgb24")
    halved = source.reshape(32, 2, 32, 2, 3).mean((1, 3))
    error = np.sqrt(np.square(pictures[0].astype(float) - halved).mean())
    assert error < (60 if name == "palette" else 40), "it looks like the source"


def test_whole_videos_are_streamed_by_a_plugin_that_can(shards: str, tmp_path: Path) -> None:
    palette, whole, clips = BOTH["palette"][0], tmp_path / "whole", tmp_path / "clips"
    assert run(palette, shards, whole, "sampling.mode=whole") == 0
    assert run(palette, shards, clips, "sampling.clip_frames=33") == 0
    assert {tuple(row["token_shape"]) for row in runs.rows(whole).values()} == {(5, 8, 8)}
    assert runs.tokens(whole) == runs.tokens(clips), "in pieces as in one"
    with pytest.raises(PipelineError, match=r"mine cannot stream \(TokenSpec.can_stream\)"):
        run(BOTH["cosines"][0], shards, tmp_path / "no", "sampling.mode=whole")


def test_other_options_do_not_mix_with_the_tokens_that_are_there(
    made: tuple[str, Path], shards: str
) -> None:
    name, out = made
    option = "+tokenizer.options.gain=0.5" if name == "palette" else "+tokenizer.options.keep=3"
    with pytest.raises(FingerprintMismatch, match=r"tokenizer\.options"):
        run(BOTH[name][0], shards, out, *BOTH[name][1], option)


@pytest.mark.slow
def test_ray_workers_find_the_plugin_and_give_the_same_tokens(
    shards: str, my_vae: Path, tmp_path: Path
) -> None:
    plugin, more, _ = BOTH["cosines"]
    arguments = overrides(plugin, shards, tmp_path / "ray", *more)
    ended = runs.run(*arguments, cwd=tmp_path, PYTHONPATH=str(my_vae))
    assert ended.returncode == 0, ended.stderr
    assert run(plugin, shards, tmp_path / "here", *more) == 0
    assert runs.rows(tmp_path / "ray") == runs.rows(tmp_path / "here")


# ---- mistakes ----


@pytest.mark.parametrize(
    ("plugin", "line"),
    [
        ("nowhere:Vae", "tokenizer.plugin nowhere:Vae: cannot import nowhere: No module named"),
        (f"{HERE}:Nothing", f"module {HERE} has no function or class 'Nothing'"),
        ("unheard_of", "is neither package.module:factory nor an entry point of group vidtok.tok"),
        (f"{HERE}:WithoutLoad", "WithoutLoad has no method load; tokenizer/protocol.py says what"),
        (f"{HERE}:WithoutSpec", "its spec must be a tokenizer.TokenSpec, it is dict"),
        (f"{HERE}:WithoutChunks", "has no method encode_chunk, which spec.can_stream promises"),
        (
            f"{HERE}:WrongShape",
            "tokenizer 'mine': encode gave [1, 1, 16, 16] for frames [1, 9, 64, 64, 3], its spec "
            "says [1, 2, 16, 16]",
        ),
        (f"{HERE}:WrongDtype", "encode gave torch.int64, its spec wants torch.int32: add .to(torc"),
        (f"{HERE}:BeyondTheCodebook", "its spec says 0..63: correct TokenSpec.codebook_size"),
        (":Vae", "tokenizer.plugin ':Vae' names no module: package.module:factory is needed"),
        (
            "broken_module:Vae",
            "tokenizer.plugin broken_module:Vae: importing broken_module failed: SyntaxError: ",
        ),
        (
            f"{HERE}:RaisesInFactory",
            f"tokenizer.plugin {HERE}:RaisesInFactory cannot be made with options {{}}: "
            "FileNotFoundError: [Errno 2] No such file or directory: 'no_such_weights.pt'",
        ),
        (
            f"{HERE}:RaisesInWeights",
            "tokenizer 'mine': weights() failed: OSError: the disk is gone",
        ),
        (f"{HERE}:RaisesInLoad", "tokenizer 'mine': load() failed: KeyError: 'encoder.conv_in'"),
        (
            f"{HERE}:TorchInFingerprint",
            "TokenSpec.fingerprint must be plain values (text, numbers, lists of them), got "
            "{'dtype': torch.float16}",
        ),
        ("", "tokenizer=plugin needs tokenizer.plugin=package.module:factory, or the name of an"),
        (f"{HERE}:Dice", "tokenizer 'mine' is not deterministic: encoding the canary clip twice"),
    ],
)
def test_a_bad_plugin_is_one_line(
    plugin: str, line: str, shards: str, my_vae: Path, tmp_path: Path
) -> None:
    (my_vae / "broken_module.py").write_text("class Vae(:\n")
    with pytest.raises(PipelineError) as caught:
        run(plugin, shards, tmp_path)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("parts/*"))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("tokenizer.ch=8", "tokenizer.ch is for tokenizers of the family"),
        (
            "+tokenizer.options.gain=abc",
            f"{HERE}:Palette cannot be made with options {{'gain': 'abc'}}: ValueError: could not "
            "convert string to float: 'abc'",
        ),
        ("sampling.clip_frames=10", "expected 1 + k*8 frames, height a multiple of 4"),
    ],
)
def test_what_does_not_suit_a_plugin_is_refused(override: str, line: str, shards: str) -> None:
    with pytest.raises(PipelineError, match=re.escape(line)):
        runs.config(*overrides(BOTH["palette"][0], shards, Path("out"), override))


def test_a_plugin_that_is_not_named_is_asked_for() -> None:
    with pytest.raises(PipelineError, match=r"^tokenizer=plugin needs tokenizer\.plugin=package"):
        runs.config("+dataset=demo", "+tokenizer=plugin")


def test_a_tokenizer_of_the_family_takes_no_options(shards: str) -> None:
    with pytest.raises(PipelineError, match=r"tokenizer\.options is for tokenizer\.plugin"):
        runs.config(
            "+dataset=tars", f"dataset.shards={shards}", *runs.TINY, "+tokenizer.options.a=1"
        )


def test_an_entry_point_names_a_plugin(monkeypatch: pytest.MonkeyPatch, shards: str) -> None:
    entry = importlib.metadata.EntryPoint("mine", f"{HERE}:Palette", "vidtok.tokenizers")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda *, group: [entry] if group == entry.group else [],
    )
    assert isinstance(open_tokenizer(PluginConfig(name="x", plugin="mine")), Palette)
    made = runs.config(*overrides("mine", shards, Path("out")))
    assert token_spec(made) == Palette(Setting(name="mine")).spec
    with pytest.raises(ConfigError, match="installed are: mine"):
        open_tokenizer(PluginConfig(name="x", plugin="other"))
    lost = importlib.metadata.EntryPoint("mine", "lost_package:X", entry.group)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [lost])
    with pytest.raises(ConfigError, match="entry point mine = lost_package:X: No module named"):
        open_tokenizer(PluginConfig(name="x", plugin="mine"))
