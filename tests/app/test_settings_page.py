"""The page of settings is what the settings say."""

from pathlib import Path

from app.settings import Settings
from app.settings_page import page

DOCS = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert DOCS.read_text("utf-8") == page(), "run `make docs`"


def test_every_setting_is_documented() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert f"`SPOLIA_{name.upper()}`" in page()
