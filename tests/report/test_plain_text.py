import io
import json
import sys

import pytest
from pydantic import BaseModel

from villani.report.plain_text import degrade, in_ascii, print_json


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("Ψ_s = −3.1·10⁵ ± 0.2", "cp1252", "Psi_s = -3.1·10^5 ± 0.2"),
        ("Ψ_s = −3.1·10⁻¹² ± 0.2", "ascii", "Psi_s = -3.1*10^-12 +- 0.2"),
        ("tr ∇²L at λ ≥ 0, Δ", "ascii", "tr grad^2L at lambda >= 0, Delta"),
        ("x₀ naïve 世", "ascii", "x_0 naive ?"),
        ("Ψ λ ∇²", "utf-8", "Ψ λ ∇²"),
    ],
)
def test_what_an_encoding_lacks_is_written_in_ascii(text, encoding, expected):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    degrade(stream)
    stream.write(text)
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == expected


def test_every_sign_of_the_package_has_a_plain_form():
    assert not [c for c in "λ‖θ²−∇Ψβ·η§≥Δ≤→ρΣᵀ∞√₀δ⟩⟨ℓα…–τε₁πκ—±ξ×″σ′½⁻ψμé∫⪰³ω∈↦←ŷ⊙∂≈∝" if in_ascii(c) == "?"]


class Named(BaseModel):
    name: str
    value: float


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_means_the_same_in_every_encoding(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    record = Named(name="Ψ λ é 𝓛 \\u", value=0.1)
    print_json(record)
    stream.flush()
    assert json.loads(stream.buffer.getvalue().decode(encoding)) == record.model_dump()
