"""If this fails, a wrong configuration is taken silently, or a right one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from indextts.config import ConfigError, IndexTTSConfig, config_from_dict, config_to_dict, load_config
from indextts.config_vocoder import load_bigvgan_config


def test_an_empty_configuration_is_the_release() -> None:
    config = config_from_dict({})
    assert (config.gpt.layers, config.gpt.model_dim, config.s2mel.DiT.depth, config.inference.num_beams) == (24, 1280, 13, 3)
    assert config.gpt_latent_dim == 1280


def test_a_section_written_partly_keeps_its_own_defaults() -> None:
    config = config_from_dict({"gpt": {"emo_condition_module": {"num_blocks": 2}}})
    assert config.gpt.emo_condition_module.linear_units == 1024  # the emotion encoder's, not the speaker encoder's 2048


def test_it_survives_writing_and_reading(tmp_path: Path) -> None:
    config = config_from_dict({"gpt": {"layers": 3}, "inference": {"num_beams": 1}})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)), encoding="utf-8")
    assert load_config(path) == config


def test_what_public_copies_contain_is_accepted() -> None:
    config = config_from_dict(
        {
            "dataset": {"bpe_model": "bpe.model", "sample_rate": 24000, "squeeze": False, "mel": {"n_fft": 2048}},
            "vocoder": {"type": "bigvgan", "name": "bigvgan"},
            "emo_matrix": "feat2.pt ",
            "version": 2.0,
        }
    )
    assert config.emo_matrix == "feat2.pt"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"gpt": {"layer": 3}}, "did you mean 'layers'"),
        ({"gpt": {"layers": "many"}}, "gpt.layers must be a whole number"),
        ({"gpt": {"layers": True}}, "gpt.layers must be a whole number"),
        ({"gpt": {"layers": -1}}, "gpt.layers must be a whole number"),
        ({"gpt": {"heads": 7}}, "must be a multiple of gpt.heads"),
        ({"gpt": {"heads": 0}}, "must be a multiple of gpt.heads"),
        ({"gpt": ["layers"]}, "section gpt must be a mapping"),
        ({"gpt": {"condition_type": "perceiver"}}, "only 'conformer_perceiver' is supported"),
        ({"gpt": {"stop_mel_token": 9000}}, "must be below number_mel_codes"),
        ({"s2mel": {"DiT": {"is_causal": True}}}, "s2mel.DiT.is_causal is True"),
        ({"s2mel": {"DiT": {"style_condition": "yes"}}}, "must be true or false"),
        ({"s2mel": {"style_encoder": {"dim": 3}}}, "these widths must be equal"),
        ({"s2mel": {"preprocess_params": {"spect_params": {"fmax": 8000}}}}, "fmax"),
        ({"s2mel": {"length_regulator": {"sampling_ratios": 4}}}, "must be a list of whole numbers"),
        ({"semantic_codec": {"codebook_size": 9000}}, "start_mel_token"),
        ({"inference": {"temperature": float("nan")}}, "must be a number"),
        ({"emo_num": [1, 2]}, "8 counts"),
        ({"gpt": {"layers": 1_000_000}}, "gpt.layers is 1000000; it must be between 1 and 200"),
        ({"gpt": {"stop_text_token": 1_000_000}}, "gpt.stop_text_token"),
        ({"s2mel": {"preprocess_params": {"spect_params": {"win_length": 4096}}}}, "win_length"),
        ({"s2mel": {"DiT": {"depth": 0}}}, "s2mel.DiT.depth"),
        ({"version": 2.5}, "release 2.5; only release 2.0 is supported"),
    ],
)
def test_what_is_wrong_is_named(raw: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_dict(raw)


def test_an_unknown_field_is_mentioned_and_ignored(caplog: pytest.LogCaptureFixture) -> None:
    assert config_from_dict({"gpt": {"colour": "blue"}}) == IndexTTSConfig()
    assert "gpt.colour is unknown" in caplog.text


@pytest.mark.parametrize("content", ["gpt: [unclosed", "- a list", "\x00", "just text"])
def test_a_file_that_is_no_configuration(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"config\.yaml"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("content", ["{", "[]", '{"resblock": "2"}', '{"upsample_rates": [4], "upsample_kernel_sizes": [8, 4]}'])
def test_a_vocoder_configuration_that_cannot_be_used(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"BigVGAN|config\.json"):
        load_bigvgan_config(path)
