import numpy as np
import pytest
from lpr.plates import ALPHABET, PlateStyle, _strokes, characters_of, plate_texture, random_style, random_text


def plain(**changes: object) -> PlateStyle:
    fields = {
        "lines": 1, "colour": 0, "smooth": 1, "stroke": 0.15, "narrow": 1.0, "slant": 0.0, "band": False,
        "separator": " ", "dirt": 0.0,
    }  # fmt: skip
    return PlateStyle(**{**fields, **changes})


@pytest.mark.parametrize("smooth", [0, 1, 2])
def test_every_character_has_strokes_inside_its_cell(smooth: int) -> None:
    for char in ALPHABET:
        points = np.concatenate([np.array(stroke) for stroke in _strokes(char, smooth)])
        assert points[:, 0].min() >= 0, char
        assert points[:, 0].max() <= 4, char
        assert np.ptp(points[:, 1]) > 5.0, char


def test_no_two_characters_look_the_same() -> None:
    style, rng = plain(smooth=2), np.random.default_rng(0)
    images = {c: np.asarray(plate_texture(c, style, rng=rng).convert("L"), dtype=float) for c in ALPHABET}
    for a in ALPHABET:
        for b in ALPHABET:
            if a < b:
                assert np.abs(images[a] - images[b]).mean() > 0.3, (a, b)


def test_texts_follow_the_layouts_and_keep_to_the_alphabet() -> None:
    rng = np.random.default_rng(1)
    for lines in (1, 2):
        for _ in range(200):
            text = random_text(rng, lines=lines)
            assert text.count("/") == lines - 1
            assert set(characters_of(text)) <= set(ALPHABET)
            assert 5 <= len(characters_of(text)) <= 7


def test_texture_has_the_size_and_colours_of_its_style() -> None:
    rng = np.random.default_rng(2)
    light = np.asarray(plate_texture("AB 123 CD", plain(), rng=rng))
    dark = np.asarray(plate_texture("ABC/1234", plain(lines=2, colour=5), rng=rng))
    assert light.shape == (56, 240, 3)
    assert dark.shape == (96, 160, 3)
    assert light.mean() > 150
    assert dark.mean() < 100


def test_dirt_darkens_and_the_text_stays_within_the_border() -> None:
    clean = np.asarray(plate_texture("WWW 99", plain(), rng=np.random.default_rng(3)), dtype=float)
    dirty = np.asarray(plate_texture("WWW 99", plain(dirt=0.6), rng=np.random.default_rng(3)), dtype=float)
    assert dirty.mean() < clean.mean() - 10
    assert (clean[4:8, 4:-4] == clean[5, 120]).all()


def test_styles_vary_and_repeat_with_the_seed() -> None:
    styles = [random_style(np.random.default_rng(i)) for i in range(60)]
    assert {s.lines for s in styles} == {1, 2}
    assert len({s.colour for s in styles}) >= 5
    assert styles[7] == random_style(np.random.default_rng(7))
