import pytest

from reparam.errors import UserError
from reparam.machine.environment import real, whole


@pytest.mark.parametrize(("text", "value"), [(None, 7), ("1", 1), ("999999999", 999_999_999)])
def test_a_whole_number_is_read(text: str | None, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if text:
        monkeypatch.setenv("REPARAM_SOME", text)
    assert whole("REPARAM_SOME", 7, "a number of things", least=1) == value


@pytest.mark.parametrize("text", ["", "0", "-1", "2.5", "two", "²", "9" * 5_000])
def test_other_text_is_no_whole_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_SOME", text)
    with pytest.raises(UserError) as caught:
        whole("REPARAM_SOME", 7, "a number of things", least=1)
    assert str(caught.value) == f"REPARAM_SOME: wanted a number of things, found {text!r}; fix or unset it"


@pytest.mark.parametrize(("text", "value"), [(None, 0.5), ("0", 0.0), ("1e-3", 0.001), ("2", 2.0)])
def test_a_number_is_read(text: str | None, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if text:
        monkeypatch.setenv("REPARAM_SOME", text)
    assert real("REPARAM_SOME", 0.5, "a share", most=2.0) == value


@pytest.mark.parametrize("text", ["", "-0.1", "2.1", "nan", "inf", "half"])
def test_other_text_is_no_number(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPARAM_SOME", text)
    with pytest.raises(UserError) as caught:
        real("REPARAM_SOME", 0.5, "a share", most=2.0)
    assert str(caught.value) == f"REPARAM_SOME: wanted a share, found {text!r}; fix or unset it"
