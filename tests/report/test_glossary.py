"""Words that a page explains: those that stand on it, and none besides."""

from villani.report.glossary import WORDS, words_of


def words(text):
    return {word for word, _ in words_of(text)}


def test_a_word_is_found_as_a_word():
    assert words("Ψ at λ = 0.1, s = 2, against (iv)") == {"Ψ", "λ", "s", "(iv)"}
    assert words("the population's laws, loss and Laplacian") == set()
    assert words("s* of an orbit") == {"s*", "orbit"}
    assert words("nothing is not refuted here") >= {"not refuted"}


def test_what_words_mean_is_said_in_less_than_a_line_of_thought():
    assert all(10 < len(meaning) < 130 or word in ("holds", "(i)", "θ") for word, meaning in WORDS.items())
