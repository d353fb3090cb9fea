"""What went wrong, in one message; the names that it is made of."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from dbexp.config.explain import explain, parameters, user_errors
from dbexp.core.errors import ConfigError, Interrupted


def unread(override: str) -> str:
    """What is said of an override that Hydra does not read."""
    with pytest.raises(OverrideParseException) as caught:
        OverridesParser.create().parse_overrides([override])
    return explain(caught.value)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("dataset.path=фото", """'dataset.path="фото"'"""),
        ("dataset.prompt=a {token} dog", """'dataset.prompt="a {token} dog"'"""),
        ("dataset.path=/my photos (1)", """'dataset.path="/my photos (1)"'"""),
        ("dataset.path=a=b", """'dataset.path="a=b"'"""),
        ("sample.prompts=[ein Löwe, a {token}]", """'sample.prompts=["ein Löwe","a {token}"]'"""),
        ("sample.prompts=['a {token}', Löwe]", """'sample.prompts=["a {token}","Löwe"]'"""),
        ("model.path=ö", """'model.path="ö"'"""),
    ],
)
def test_a_value_that_needs_quotes_is_shown_in_them(override: str, hint: str) -> None:
    assert unread(override) == f"{override}: Hydra's grammar needs quotes around this value: {hint}"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("lora.rank", "lora.rank: write NAME=VALUE"),
        ("sample.prompts=[a", "a list ends with a bracket, sample.prompts=[first,second]"),
        ("lora.rank=choice()", "is not in Hydra's grammar; lora.rank takes int"),
        ("evaluate.dino.kwargs={a:ü}", """texts in a dictionary need quotes, 'evaluate.dino.kwargs={key:"text"}'"""),
        ("dataset.path=[a", """needs quotes around this value: 'dataset.path="[a"'"""),
        ("dataset.path=C:\\фото,b", """'dataset.path="C:\\фото,b"'"""),
        ("tracking.tags=[a b,{d}]", """'tracking.tags=["a b","{d}"]'"""),
        ("lora={}{", "is not in Hydra's grammar; lora takes the name of an option"),
        (
            "dataset.prompt=a {token}, b",
            "and for a sweep around each value: 'dataset.prompt=",
        ),
    ],
)
def test_other_values_that_hydra_does_not_read(override: str, says: str) -> None:
    assert says in unread(override)


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("model/sd_15", "model=sd_15: there is no such option; did you mean sd15?"),
        ("experiment/reference/difusers", "experiment=reference/difusers: there is no such option; did you mean ref"),
        (
            "hydra/launcher/joblib",
            "hydra/launcher=joblib: needs the package hydra-joblib-launcher; pip install '.[joblib]' in dbexp's folder",
        ),
        ("hydra/launcher/pakc", "hydra/launcher=pakc: there is no such option; did you mean pack?"),
    ],
)
def test_an_option_that_nobody_has(file: str, says: str) -> None:
    error = MissingConfigException("missing", missing_cfg_file=file, options=["basic", "pack"])
    assert explain(error).startswith(says)


def test_parameters_are_all_of_them(composed: Callable[..., DictConfig]) -> None:
    types = parameters()
    assert types["lora.rank"] is int and types["dataset.path"] == str | None
    assert {"lora", "evaluate.dino.crop", "seeds.init", "seed"} <= types.keys()
    config = composed("model=sd15")
    assert all(OmegaConf.select(config, name, default="absent") != "absent" for name in types)


def test_what_a_user_can_mend_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, user_errors("prog", "nothing is kept"):
        raise ConfigError(["first", "second"])
    assert stop.value.code == "prog: 2 problems\n  first\n  second"
    with pytest.raises(SystemExit) as stop, user_errors("prog", "nothing is kept"):
        raise ConfigError("alone")
    assert stop.value.code == "prog: alone"
    with pytest.raises(SystemExit) as stop, user_errors("prog", "nothing is kept"):
        raise KeyboardInterrupt
    assert stop.value.code == 130
    with pytest.raises(SystemExit) as stop, user_errors("prog", "nothing is kept"):
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    with pytest.raises(SystemExit) as stop, user_errors("prog", "nothing is kept"):
        raise Interrupted(signal.SIGTERM, "stopped; half of it is kept")
    assert stop.value.code == 143
    assert capsys.readouterr().err == (
        "prog: stopped; nothing is kept\nprog: stopped; nothing is kept\nprog: stopped; half of it is kept\n"
    )
    with pytest.raises(ZeroDivisionError), user_errors("prog", "nothing is kept"):
        raise ZeroDivisionError
